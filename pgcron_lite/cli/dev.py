"""`pgcron dev`: everything one needs to try things out, with one command and nothing installed.

This is the command itself: it sees to an app and a database, then hands over to `dev_parent`, which runs `dev_child`.
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

from .. import discover
from .dev_parent import CALLED_AS, Dev
from .opening import DEV_FOLDER, URL_NAMES, Chosen, borrow_dev_url, chosen, dev_url_file
from .queues import confirm
from .worker import worker_options

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
@click.option("--new", is_flag=True, help="Write hello.py, an app with one task, to begin with.")
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
    """A database, a worker that reloads, and what to try next.

    Uses DATABASE_URL if it is set, else a PostgreSQL of its own in .pgcron/, which goes on when this ends, so that
    other commands in this folder find it. A COMMAND (your web server) is run beside the worker, with DATABASE_URL set.
    """
    if stop or reset:
        _put_away(reset, yes)
        return
    if call is not None and command:
        raise click.UsageError("--run ends after one job; leave out the COMMAND")
    if call is not None and not call.split():
        raise click.UsageError("--run expects a task and its arguments: --run 'hello.add 1 2'")
    _see_that_there_is_an_app(chosen(ctx), new)
    provide_database()
    os.environ[CALLED_AS] = called_as()
    words = _worker_words(chosen(ctx).given, for_worker, call)
    folders = [] if no_reload or call is not None else [Path.cwd()]
    ctx.exit(Dev(words, command, folders).run())


# The app

def _see_that_there_is_an_app(app: Chosen, new: bool) -> None:
    """Write a small app if that is wanted; complain now rather than in the child if there is none."""
    if new or (not _is_there_one(app) and sys.stdin.isatty() and _wants_hello()):
        _write_hello()
    if not _is_there_one(app):
        raise discover.NothingHere(f"there is no app in this folder. {discover.HOW}")


def _is_there_one(app: Chosen) -> bool:
    return discover.asked_for(app.given) is not None or bool(discover.candidates())


def _wants_hello() -> bool:
    return click.confirm("There is no app in this folder. Write hello.py, to begin with?", default=True, err=True)


def _write_hello() -> None:
    try:
        with open("hello.py", "x", encoding="utf-8") as file:
            file.write(HELLO)
    except FileExistsError:
        click.echo("hello.py is there already; it stays as it is", err=True)
    else:
        click.echo("wrote hello.py", err=True)


# The database

def provide_database() -> None:
    """See that DATABASE_URL names a database: the one given, or the embedded one, started if need be."""
    if any(os.environ.get(name) for name in URL_NAMES):
        return
    from ..embedded import EmbeddedPostgres

    server = EmbeddedPostgres(DEV_FOLDER)
    begun = time.monotonic()
    known = server.home.is_dir() and borrow_dev_url() is not None and server.is_alive()
    url = server.url if known else server.start()
    _keep_url(url)
    took = "was running already" if known else f"started in {time.monotonic() - begun:.1f} s"
    click.echo(f"PostgreSQL in {DEV_FOLDER}/ {took}", err=True)
    os.environ["DATABASE_URL"] = url


def _keep_url(url: str) -> None:
    """Write the URL down for the commands of other terminals. It holds a password: readable by its owner alone."""
    file = dev_url_file()
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(f"{url}\n")
    draft.replace(file)


def _put_away(reset: bool, yes: bool) -> None:
    from ..embedded import EmbeddedPostgres

    server = EmbeddedPostgres(DEV_FOLDER)
    if not server.home.is_dir():
        click.echo(f"there is no {DEV_FOLDER}/ in this folder, so there is nothing to {'reset' if reset else 'stop'}")
        return
    if reset:
        confirm(f"Delete the development database in {str(server.home)!r}, with everything in it?", yes)
        server.reset()
        dev_url_file().unlink(missing_ok=True)
        click.echo(f"the database in {DEV_FOLDER}/ is deleted; the next `pgcron dev` makes a new one")
        return
    was_running = server.stop()
    click.echo(f"the database in {DEV_FOLDER}/ {'is stopped; its data stays' if was_running else 'was not running'}")


def called_as() -> str:
    """How to type this program again: its name where that is enough, else the path it was called by."""
    program = sys.argv[0]
    if Path(program).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m pgcron_lite"
    on_path = shutil.which("pgcron")
    return "pgcron" if on_path and Path(on_path).resolve() == Path(program).resolve() else shlex.quote(program)


def _worker_words(given: str | None, for_worker: dict[str, Any], call: str | None) -> list[str]:
    """The command line of the child."""
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
