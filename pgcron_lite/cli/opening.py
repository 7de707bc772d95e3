"""What a command works on: the app that was chosen, and the queue of its database."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import discover
from ..app import PgCron
from ..errors import AppNotFound, ConfigError

if TYPE_CHECKING:
    from ..app import Store

DEV_FOLDER = ".pgcron"
URL_NAMES = ("PGCRON_DATABASE_URL", "DATABASE_URL")


class Chosen:
    """The app of a command line: found once, when a command asks for it."""

    def __init__(self, given: str | None = None, app: PgCron | None = None) -> None:
        self.given = given
        self._app = app

    def app(self) -> PgCron:
        """The app with its tasks; `AppNotFound` when there is none."""
        if self._app is None:
            dev_url = borrow_dev_url()
            self._app = discover.find_app(self.given)
            _say_whose(self._app, dev_url)
        return self._app

    def app_or_bare(self) -> PgCron:
        """The app if there is one, for its settings; else one that knows only the environment.

        For commands that look at the database alone, which operators also run where there is no code.
        """
        if self._app is None and discover.asked_for(self.given) is None:
            dev_url = borrow_dev_url()
            try:
                self._app = discover.find_app()
            except discover.NothingHere:
                self._app = PgCron("pgcron")
            except AppNotFound as error:
                # There is something, and it cannot be had: then only the environment can say which database is meant.
                if not any(os.environ.get(name) for name in URL_NAMES):
                    raise
                click.echo(f"(settings from the environment alone: {str(error).splitlines()[0]})", err=True)
                self._app = PgCron("pgcron")
            _say_whose(self._app, dev_url)
        return self.app()


def chosen(ctx: click.Context) -> Chosen:
    """The choice of this command line, also below somebody else's group."""
    return ctx.find_object(Chosen) or Chosen()


@contextmanager
def queue(ctx: click.Context) -> Iterator[Store]:
    """The queue's store, with a schema that has been checked; closed at the end."""
    app = chosen(ctx).app_or_bare()
    _refuse_memory(app)
    store = app.open_store("pgcron cli", size=1)
    try:
        store.check_schema()
        yield store
    finally:
        store.close()
        app.close()


@contextmanager
def opened(ctx: click.Context, *, with_tasks: bool = False) -> Iterator[PgCron]:
    """The app on its queue, whose schema has been checked; closed at the end."""
    app = chosen(ctx).app() if with_tasks else chosen(ctx).app_or_bare()
    _refuse_memory(app)
    try:
        app.store.check_schema()
        yield app
    finally:
        app.close()


def _refuse_memory(app: PgCron) -> None:
    if app.settings.is_memory:
        raise ConfigError("memory:// keeps the queue inside the process that uses it; another cannot look into it")


# The development database, for every command in its folder

def dev_url_file(folder: Path | None = None) -> Path:
    return (folder or Path.cwd()) / DEV_FOLDER / "url"


def borrow_dev_url() -> str | None:
    """Use the database of `pgcron dev` in this folder if nothing names another."""
    if any(os.environ.get(name) for name in URL_NAMES):
        return None
    file = dev_url_file()
    try:
        status = file.stat()
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            return None
        url = file.read_text().strip()
    except (OSError, AttributeError):
        return None
    # The app's modules read it too, as they would in production.
    os.environ["DATABASE_URL"] = url
    return url


def is_dev_url(url: str | None) -> bool:
    """Is `url` that of the development database in this folder?"""
    try:
        return url is not None and dev_url_file().read_text().strip() == url
    except OSError:
        return False


def _say_whose(app: PgCron, dev_url: str | None) -> None:
    if dev_url is not None and app.settings.database_url == dev_url:
        click.echo(f"(database of `pgcron dev` in {DEV_FOLDER}/, as DATABASE_URL is not set)", err=True)
