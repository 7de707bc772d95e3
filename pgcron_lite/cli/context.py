"""The app and the store that a command works on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..app import PgCron
from ..errors import AppNotFound, ConfigError
from . import find_app, output

if TYPE_CHECKING:
    from ..store import Store

DEV_FOLDER = ".pgcron"
URL_NAMES = ("PGCRON_DATABASE_URL", "DATABASE_URL")


class Chosen:
    """The app of a command line, found once, on first use."""

    # The program that a user types before the name of a command.
    program = "pgcron"

    def __init__(self, given: str | None = None, app: PgCron | None = None) -> None:
        self.given = given
        self._app = app

    def app(self) -> PgCron:
        """Return the app with its tasks. Raise `AppNotFound` if there is none."""
        if self._app is None:
            dev_url = borrow_dev_url()
            self._app = find_app.find_app(self.given)
            say_whose(self._app, dev_url)
        return self._app

    def app_or_bare(self) -> PgCron:
        """Return the app, for its settings; if there is none, an app with the settings of the environment.

        For commands that need only the database: operators also run them where the code is not installed.
        """
        if self._app is None and find_app.asked_for(self.given) is None:
            dev_url = borrow_dev_url()
            try:
                self._app = find_app.find_app()
            except find_app.NothingHere:
                self._app = PgCron("pgcron")
            except AppNotFound as error:
                # There is an app that cannot be imported: only the environment can name the database now.
                if not any(os.environ.get(name) for name in URL_NAMES):
                    raise
                output.echo(f"(settings from the environment alone: {str(error).splitlines()[0]})", err=True)
                self._app = PgCron("pgcron")
            say_whose(self._app, dev_url)
        return self.app()


def chosen(ctx: click.Context) -> Chosen:
    """Return the `Chosen` of this command line, also below a group of another program."""
    return ctx.find_object(Chosen) or Chosen()


def command(words: str) -> str:
    """Return the command `words` as typed in this program: `pgcron worker`, or `flask jobs worker` in Flask."""
    return f"{chosen(click.get_current_context()).program} {words}"


@contextmanager
def queue(ctx: click.Context) -> Iterator[Store]:
    """Open the store of the app's queue and check its schema; close it at the end."""
    app = chosen(ctx).app_or_bare()
    _refuse_memory(app)
    store = app._open_store("pgcron cli", size=1, checks_label=True)
    try:
        store.check_schema()
        yield store
    finally:
        store.close()
        app.close()


@contextmanager
def opened(ctx: click.Context, *, with_tasks: bool = False) -> Iterator[PgCron]:
    """Open the app and check the schema of its queue; close it at the end."""
    app = chosen(ctx).app() if with_tasks else chosen(ctx).app_or_bare()
    _refuse_memory(app)
    try:
        app.store.check_schema()
        yield app
    finally:
        app.close()


def _refuse_memory(app: PgCron) -> None:
    if app.settings.is_memory:
        raise ConfigError("memory:// keeps the queue inside the process that uses it; another process cannot read it")


# The development database, for every command in its folder

def dev_url_file(folder: Path | None = None) -> Path:
    return (folder or Path.cwd()) / DEV_FOLDER / "url"


def borrow_dev_url() -> str | None:
    """Use the database of `pgcron dev` in this folder if the environment names no other."""
    if any(os.environ.get(name) for name in URL_NAMES):
        return None
    url = _dev_url()
    # The app's modules read it too, as they would in production.
    if url is not None:
        os.environ["DATABASE_URL"] = url
    return url


def is_dev_url(url: str | None) -> bool:
    """Return True if `url` is that of the development database in this folder."""
    return url is not None and _dev_url() == url


def _dev_url() -> str | None:
    """Return the URL that `pgcron dev` wrote here. Ignore a file that others may write: it could name any database."""
    from ..embedded.system import open_own_file

    try:
        with open(open_own_file(dev_url_file(), os.O_RDONLY), encoding="utf-8") as file:
            is_private = not stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            return file.read().strip() if is_private else None
    except (OSError, UnicodeError):
        return None


def say_whose(app: PgCron, dev_url: str | None) -> None:
    if dev_url is not None and app.settings.database_url == dev_url:
        output.echo(f"(database of `pgcron dev` in {DEV_FOLDER}/, as DATABASE_URL is not set)", err=True)
