"""Flask integration: settings from `app.config`, an app context around every job, and `flask jobs ...`.

`PgCron.init_app` calls `init_app` here. A PgCron may be connected with several Flask apps, as when tests call a factory
repeatedly: the last one is used, or the one whose `flask jobs worker` is running. Jobs never get a request context.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import click
import flask
from flask.cli import ScriptInfo

from .. import cli, config
from ..app import PgCron
from ..cli import Nouns
from ..cli.context import Chosen, borrow_dev_url, say_whose
from ..errors import AppNotFound, OptionError
from ..job import Job
from ..worker import gevent_support

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
    if surroundings.flask_app not in (None, flask_app) and not cron._is_running:
        cron.reset()
    cron.configure(f"the config of {flask_app!r}", **settings_of(flask_app))
    flask_app.extensions[EXTENSION] = cron
    if not cron._is_running:
        surroundings.flask_app = flask_app


def settings_of(flask_app: flask.Flask) -> dict[str, Any]:
    """Return the settings in the config: every PGCRON_ key, and the database of SQLAlchemy if no other is named."""
    given = {
        key.removeprefix(PREFIX).lower(): value for key, value in flask_app.config.items() if key.startswith(PREFIX)
    }
    if given.get("database_url") or os.environ.get(config.variable("database_url")):
        return given
    dialect, url = _database_of_sqlalchemy(flask_app)
    if dialect in ("postgresql", "postgres"):
        given["database_url"] = url
    elif dialect and flask_app.testing:
        # DATABASE_URL would be used next, and on a developer's machine or a CI runner it may be a real database.
        given["database_url"] = config.NoDatabase(
            f"{flask_app!r} is under test (TESTING) and its data are in {dialect}, so DATABASE_URL is not used: jobs of"
            " a test could reach a real queue. Use `with cron.testing():` around the test, or name the queue's"
            " database: PGCRON_DATABASE_URL in the config or the environment ('memory://' for a queue in this process)."
        )
    return given


def _database_of_sqlalchemy(flask_app: flask.Flask) -> tuple[str, str]:
    """Return the dialect of Flask-SQLAlchemy's database and its URL as libpq reads it; two empty texts for none."""
    url: Any = flask_app.config.get("SQLALCHEMY_DATABASE_URI")
    if hasattr(url, "render_as_string"):
        url = url.render_as_string(hide_password=False)
    scheme, _, place = str(url or "").partition(":")
    return scheme.partition("+")[0], f"postgresql:{place}"


class Surroundings:
    """The app context around each job of one PgCron."""

    def __init__(self) -> None:
        self.flask_app: flask.Flask | None = None

    def around_job(self, job: Job) -> Iterator[None]:
        # Pushed for each job and popped after it: the teardown functions run, and get the error of the task. That is
        # how Flask-SQLAlchemy closes its session.
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


# The commands. Flask finds `jobs` by its entry point, before it imports the user's code.

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

    program = "flask jobs"

    def __init__(self, info: ScriptInfo) -> None:
        super().__init__()
        self._info = info

    def app(self) -> PgCron:
        if self._app is None:
            _patch_if_asked()
            dev_url = borrow_dev_url()
            flask_app = self._info.load_app()
            found = flask_app.extensions.get(EXTENSION)
            if found is None:
                raise AppNotFound(f"{flask_app!r} has no PgCron; connect it: cron.init_app(app)")
            # Loading may have created other Flask apps; this is the one that the command runs for.
            init_app(found, flask_app)
            self._app = found
            say_whose(found, dev_url)
        return self._app

    def app_or_bare(self) -> PgCron:
        return self.app()


def _patch_if_asked() -> None:
    """Restart the command with --gevent, patched before the user's code is imported."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.params.get("gevent"):
        gevent_support.ensure_patched()


@click.group("jobs", cls=Commands, lazily={name: cli.COMMANDS[name] for name in COMMANDS})
@click.pass_context
def jobs(ctx: click.Context) -> None:
    """Background jobs: run a worker; list, retry and cancel jobs."""
    ctx.obj = ChosenByFlask(ctx.ensure_object(ScriptInfo))
