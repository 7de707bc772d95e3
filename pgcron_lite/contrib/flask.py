"""Flask: settings from `app.config`, an app context around every job, and `flask jobs ...`.

`PgCron.init_app` leads here. A PgCron may meet several Flask apps, as when tests call a factory again and again: the
one that came last counts, or the one whose `flask jobs worker` is running. There is never a request context.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import click
import flask
from flask.cli import ScriptInfo

from .. import cli, config, green
from ..app import PgCron
from ..cli import Nouns
from ..cli.opening import Chosen
from ..errors import AppNotFound, OptionError
from ..job import Job

PREFIX = "PGCRON_"
EXTENSION = "pgcron"


def init_app(cron: PgCron, flask_app: flask.Flask) -> None:
    """Connect the two: `flask_app.extensions["pgcron"]` is `cron`, and its jobs run in contexts of `flask_app`."""
    if not isinstance(flask_app, flask.Flask):
        raise OptionError(f"init_app({flask_app!r}): expected a Flask app, as in cron.init_app(app)")
    other = flask_app.extensions.get(EXTENSION)
    if other not in (None, cron):
        raise OptionError(f"{flask_app!r} has {other!r} already; a Flask app has one PgCron, with all of its tasks")
    surroundings = _surroundings(cron)
    if surroundings.flask_app not in (None, flask_app) and not cron.is_running:
        cron.reset()
    cron.configure(f"the config of {flask_app!r}", **settings_of(flask_app))
    flask_app.extensions[EXTENSION] = cron
    if not cron.is_running:
        surroundings.flask_app = flask_app


def settings_of(flask_app: flask.Flask) -> dict[str, Any]:
    """What the config says: every PGCRON_ key, and the database of SQLAlchemy if no other is named."""
    given = {
        key.removeprefix(PREFIX).lower(): value for key, value in flask_app.config.items() if key.startswith(PREFIX)
    }
    named = given.get("database_url") or os.environ.get(config.variable("database_url"))
    if not named and (url := _database_of_sqlalchemy(flask_app)):
        given["database_url"] = url
    return given


def _database_of_sqlalchemy(flask_app: flask.Flask) -> str | None:
    """Where Flask-SQLAlchemy goes, without the name of its driver; None if that is not PostgreSQL."""
    url: Any = flask_app.config.get("SQLALCHEMY_DATABASE_URI")
    if hasattr(url, "render_as_string"):
        url = url.render_as_string(hide_password=False)
    scheme, separator, place = str(url or "").partition("://")
    dialect = scheme.partition("+")[0]
    return f"postgresql://{place}" if separator and dialect in ("postgresql", "postgres") else None


class Surroundings:
    """The app context around each job of one PgCron."""

    def __init__(self) -> None:
        self.flask_app: flask.Flask | None = None

    def around_job(self, job: Job) -> Iterator[None]:
        # Fresh for each job and popped after it: the teardown functions run, and see what the task raised. That is
        # how Flask-SQLAlchemy gives its session back.
        assert self.flask_app is not None
        with self.flask_app.app_context():
            yield


def _surroundings(cron: PgCron) -> Surroundings:
    for hook in cron.arounds:
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Surroundings):
            return owner
    owner = Surroundings()
    cron.around(owner.around_job, outermost=True)
    return owner


# The commands. Flask finds `jobs` by its entry point, before it has imported anything of the user's.

COMMANDS = (
    "worker", "scheduler", "migrate", "enqueue", "schedules", "import-crontab", "tasks", "queues", "workers", "health",
    "version",
)


class Commands(Nouns):
    """The commands of `pgcron`, with those of `pgcron jobs` beside them: `flask jobs list`, `flask jobs worker`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_about_jobs().list_commands(ctx), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _about_jobs().get_command(ctx, cmd_name) or super().get_command(ctx, cmd_name)


def _about_jobs() -> click.Group:
    module = importlib.import_module("pgcron_lite.cli.jobs")
    group: click.Group = module.jobs
    return group


class ChosenByFlask(Chosen):
    """The PgCron of the Flask app that `flask --app`, FLASK_APP or the files here name."""

    def __init__(self, info: ScriptInfo) -> None:
        super().__init__()
        self._info = info

    def app(self) -> PgCron:
        if self._app is None:
            _patch_if_asked()
            flask_app = self._info.load_app()
            found = flask_app.extensions.get(EXTENSION)
            if found is None:
                raise AppNotFound(f"{flask_app!r} has no PgCron; connect it: cron.init_app(app)")
            # Other Flask apps may have been made on the way; this is the one whose worker it is.
            init_app(found, flask_app)
            self._app = found
        return self._app

    def app_or_bare(self) -> PgCron:
        return self.app()


def _patch_if_asked() -> None:
    """With --gevent, start the command once more, patched before anything of the user's is imported."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.params.get("gevent"):
        green.ensure_patched()


@click.group("jobs", cls=Commands, lazily={name: cli.COMMANDS[name] for name in COMMANDS})
@click.pass_context
def jobs(ctx: click.Context) -> None:
    """Background jobs: run a worker, look, retry, cancel."""
    ctx.obj = ChosenByFlask(ctx.ensure_object(ScriptInfo))
