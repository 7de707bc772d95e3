"""The `pgcron` command line: its root group, its errors and exit codes. Each command is a module, loaded on first use.

Importing this package loads click and no other heavy module: `--help` and completion must answer at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from .. import errors
from ..hints import near_miss

OK, FAILED, USAGE, UNREACHABLE, MISFIT, FORCED = 0, 1, 2, 69, 78, 130

# Exit code per class of error; the first class that matches applies.
CODES: tuple[tuple[type[errors.PgCronError], int], ...] = (
    (errors.DatabaseUnavailable, UNREACHABLE),
    (errors.EmbeddedDatabaseError, UNREACHABLE),
    (errors.ConfigError, MISFIT),
    (errors.SchemaMismatch, MISFIT),
    (errors.LatePatch, MISFIT),
    (errors.AppNotFound, USAGE),
    (errors.OptionError, USAGE),
    (errors.PayloadError, USAGE),
    (errors.UnknownTask, USAGE),
    (errors.PgCronError, FAILED),
)

# Module and attribute of each command, in the order of `--help`.
COMMANDS: dict[str, str] = {
    "dev": "dev.command:dev",
    "worker": "worker:worker",
    "scheduler": "worker:scheduler",
    "migrate": "migrate:migrate",
    "enqueue": "enqueue:enqueue",
    "jobs": "jobs:jobs",
    "queues": "queues:queues",
    "schedules": "schedules:schedules",
    "cron": "cron:cron",
    "import-crontab": ".contrib.crontab.command:import_crontab",
    "tasks": "tasks:tasks",
    "workers": "workers:workers",
    "health": "health:health",
    "completion": "version:completion",
    "version": "version:version",
    "dev-worker": "dev.child:dev_worker",
}


# Command names of other queues: the command here, and a clause that explains it.
FOREIGN_COMMANDS = {
    "beat": ("worker", "which keeps the schedules as well"),
    "rqscheduler": ("worker", "which keeps the schedules as well"),
    "rqworker": ("worker", "which runs jobs and keeps the schedules"),
    "consumer": ("worker", "which runs jobs and keeps the schedules"),
    "huey_consumer": ("worker", "which runs jobs and keeps the schedules"),
    "celery": ("worker", "which runs jobs and keeps the schedules"),
    "purge": ("queues clear", "which cancels the waiting jobs of one queue, and asks before it does"),
    "empty": ("queues clear", "which cancels the waiting jobs of one queue, and asks before it does"),
    "inspect": ("workers list", "which shows what each worker runs now"),
    "flower": ("jobs list", "beside `workers list` and `queues list`: there is no dashboard"),
    "dashboard": ("jobs list", "beside `workers list` and `queues list`: there is no dashboard"),
    "info": ("queues list", "which counts the jobs of each queue"),
    "stats": ("queues list", "which counts the jobs of each queue"),
    "status": ("health", "which reports it by its exit code"),
    "revoke": ("jobs cancel", "which cancels jobs that have not begun"),
    "requeue": ("jobs retry", "which queues failed jobs again"),
    "call": ("enqueue", "with the name of the task"),
}


class Refusal(click.ClickException):
    """An error of pgcron_lite as the command line reports it: one sentence, and an exit code for scripts."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = code

    def show(self, file: Any = None) -> None:
        from ..worker.logs import escaped

        # The message may quote what a task raised.
        click.echo(f"{click.style('Error:', fg='red')} {escaped(self.message)}", file=file, err=file is None)


def refusal(error: errors.PgCronError) -> Refusal:
    """Return `error` as a `Refusal`, with a hint that only the command line can give."""
    message = str(error)
    if isinstance(error, errors.DatabaseUnavailable) and "cannot connect" in message:
        from .context import is_dev_url

        if is_dev_url(os.environ.get("DATABASE_URL")):
            message = "the development database in .pgcron/ is not running; `pgcron dev` starts it"
        else:
            end = "" if message.endswith((".", "?")) else "."
            message += f"{end} Is the server running, and is that URL right? `pgcron dev` starts a local database."
    return Refusal(message, next(code for kind, code in CODES if isinstance(error, kind)))


class Nouns(click.Group):
    """A group that loads commands on first use, suggests near misses, and turns our errors into exit codes."""

    def __init__(self, *args: Any, lazily: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazily = dict(lazily or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        # In the order of definition instead of sorted: the commands of the first steps come first.
        return [*self.commands, *self._lazily]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Accept the singular too: `job` is `jobs`.
        name = next((name for name in (cmd_name, f"{cmd_name}s") if name in self.list_commands(ctx)), None)
        if name is None or name in self.commands:
            return self.commands.get(name or "")
        module, _, attribute = self._lazily[name].partition(":")
        command: click.Command = getattr(importlib.import_module(f".{module}", __name__), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-") and not ctx.resilient_parsing:
            known = [name for name in self.list_commands(ctx) if not self.is_hidden(ctx, name)]
            near = _foreign_command(word, known) or near_miss(word, known)
            near = near or f". The commands are: {', '.join(known)}"
            ctx.fail(f"there is no command {word!r}{near}")
        return super().resolve_command(ctx, args)

    def is_hidden(self, ctx: click.Context, name: str) -> bool:
        command = self.get_command(ctx, name)
        return command is None or command.hidden

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.PgCronError as error:
            raise refusal(error) from error
        except KeyboardInterrupt:
            raise Refusal("stopped by Ctrl-C", FORCED) from None


def _foreign_command(word: str, known: Sequence[str]) -> str:
    """Return `; here it is ...` for the command that another queue calls `word`, if it is among `known`."""
    from .context import command

    name, meaning = FOREIGN_COMMANDS.get(word, ("", ""))
    return f"; here it is `{command(name)}`, {meaning}" if name.split(" ")[0] in known else ""


@click.group(cls=Nouns, lazily=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-A", "--app", metavar="MODULE[:NAME]",
    help="Where the app is: a module, module:name, module:factory() or a file. Default: PGCRON_APP, FLASK_APP, then"
    " wsgi.py or app.py, then the only file here that makes a PgCron.",
)
@click.version_option(package_name="pgcron_lite", message="%(package)s %(version)s")
@click.pass_context
def pgcron(ctx: click.Context, app: str | None) -> None:
    """Background jobs in the PostgreSQL you already run.

    Begin with `pgcron dev`: it includes a database. Every command that prints data takes --json.
    """
    from .context import Chosen

    ctx.obj = Chosen(app)
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> NoReturn:
    """Run the command in `sys.argv`, and end the process with its exit code."""
    # When Ctrl-C interrupts a statement, psycopg logs a warning about its cleanup. Our own message is enough.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    pgcron.main(prog_name="pgcron")
    sys.exit(OK)
