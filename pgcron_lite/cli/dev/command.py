"""The command `pgcron dev`: a database and a worker to try things out, with nothing to install.

It provides an app and a database, then runs `parent`, which starts `child`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from .. import find_app, output
from ..context import DEV_FOLDER, URL_NAMES, Chosen, borrow_dev_url, chosen, dev_url_file
from ..queues import confirm
from ..worker import worker_options
from .parent import CALLED_AS, GRACE, Dev

NEW_APP = "hello"
HELLO = '''\
from pgcron_lite import PgCron

app = PgCron("hello")


@app.task
def add(x: int, y: int) -> int:
    """Add two numbers, in a worker."""
    return x + y
'''


@click.command()
@worker_options
@click.option("--run", "call", metavar="'TASK ARG...'",
              help="Run this job (and what else is due), show its result, and end.")
@click.option("--new", is_flag=True, help="Write hello.py, a first app with one task.")
@click.option("--no-reload", is_flag=True, help="Do not watch files.")
@click.option("--stop", is_flag=True, help="Stop the database that an earlier `pgcron dev` left running.")
@click.option("--reset", is_flag=True, help="Stop that database and delete its data.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
@click.pass_context
def dev(
    ctx: click.Context,
    /,
    call: str | None,
    new: bool,
    no_reload: bool,
    stop: bool,
    reset: bool,
    yes: bool,
    command: tuple[str, ...],
    **for_worker: Any,
) -> None:
    """Start a database and a worker that reloads.

    Shows what to try next. Uses DATABASE_URL if it is set, else an embedded PostgreSQL in .pgcron/. That one keeps
    running when this command ends, for other commands in this folder. A COMMAND (your web server) runs beside the
    worker, with DATABASE_URL set.
    """
    if stop or reset:
        _put_away(reset, yes)
        return
    if call is not None and command:
        raise click.UsageError("--run ends after one job; leave out the COMMAND")
    if call is not None and not call.split():
        raise click.UsageError("--run expects a task and its arguments: --run 'hello.add 1 2'")
    require_app(chosen(ctx), new)
    provide_database()
    os.environ[CALLED_AS] = called_as()
    words = _worker_words(chosen(ctx).given, for_worker, call)
    folders = [] if no_reload or call is not None else [Path.cwd()]
    ctx.exit(Dev(words, for_worker["grace"] or GRACE, command, folders).run())


# The app

def require_app(app: Chosen, new: bool) -> None:
    """Write hello.py if the user wants it. Before anything starts, refuse an app that the child would not import."""
    if new or (not _is_there_one(app) and sys.stdin.isatty() and _wants_hello()):
        if find_app.asked_for(app.given) is None:
            find_app.check_owners(Path.cwd(), [NEW_APP])
        _write_hello()
    if not _is_there_one(app):
        raise find_app.NothingHere(f"there is no app in this folder. {find_app.HOW}")
    if find_app.asked_for(app.given) is None:
        find_app.check_owners(Path.cwd(), find_app.candidates())


def _is_there_one(app: Chosen) -> bool:
    return find_app.asked_for(app.given) is not None or bool(find_app.candidates())


def _wants_hello() -> bool:
    return click.confirm("There is no app in this folder. Write hello.py, to begin with?", default=True, err=True)


def _write_hello() -> None:
    try:
        with open(f"{NEW_APP}.py", "x", encoding="utf-8") as file:
            file.write(HELLO)
    except FileExistsError:
        output.echo(f"{NEW_APP}.py is there already; it stays as it is", err=True)
    else:
        output.echo(f"wrote {NEW_APP}.py", err=True)


# The database

def provide_database() -> None:
    """Set DATABASE_URL to the embedded database, started if need be, unless the environment names a database."""
    if any(os.environ.get(name) for name in URL_NAMES):
        return
    from ...embedded import EmbeddedPostgres

    server = EmbeddedPostgres(DEV_FOLDER)
    begun = time.monotonic()
    known = server.home.is_dir() and borrow_dev_url() is not None and server.is_alive()
    url = server.url if known else server.start()
    _keep_url(url)
    took = "was running already" if known else f"started in {time.monotonic() - begun:.1f} s"
    output.echo(f"PostgreSQL in {DEV_FOLDER}/ {took}", err=True)
    os.environ["DATABASE_URL"] = url


def _keep_url(url: str) -> None:
    """Write the URL to a file for commands in other terminals. It has a password, so only the owner may read it."""
    from ...embedded.system import write_own_file

    write_own_file(dev_url_file(), f"{url}\n")


def _put_away(reset: bool, yes: bool) -> None:
    from ...embedded import EmbeddedPostgres

    server = EmbeddedPostgres(DEV_FOLDER)
    if not server.home.is_dir():
        output.echo(f"there is no {DEV_FOLDER}/ in this folder, so there is nothing to {'reset' if reset else 'stop'}")
        return
    if reset:
        confirm(f"Delete the development database in {str(server.home)!r}, with everything in it?", yes)
        server.reset()
        dev_url_file().unlink(missing_ok=True)
        output.echo(f"the database in {DEV_FOLDER}/ is deleted; the next `pgcron dev` makes a new one")
        return
    was_running = server.stop()
    output.echo(f"the database in {DEV_FOLDER}/ {'is stopped; its data stays' if was_running else 'was not running'}")


def called_as() -> str:
    """Return the command that runs this program: its name if PATH has it, else the path it was called by."""
    program = sys.argv[0]
    if Path(program).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m pgcron_lite"
    on_path = shutil.which("pgcron")
    return "pgcron" if on_path and Path(on_path).resolve() == Path(program).resolve() else shlex.quote(program)


def _worker_words(given: str | None, for_worker: dict[str, Any], call: str | None) -> list[str]:
    """Return the command line of the child."""
    words = [sys.executable, "-m", "pgcron_lite", *(["--app", given] if given else []), "dev-worker"]
    for queue in for_worker["queues"]:
        words += ["--queue", queue]
    if for_worker["gevent"]:
        words.append("--gevent")
    for name in ("slots", "grace", "log_format", "log_level"):
        if for_worker[name] is not None:
            value = for_worker[name]
            text = str(value.total_seconds()) if isinstance(value, timedelta) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return words if call is None else [*words, "--run", call]
