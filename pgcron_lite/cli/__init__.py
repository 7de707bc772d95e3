"""The command line: `pgcron`, and what all of its commands share. Each noun is a module, loaded when it is asked for.

Importing this package loads click and nothing else that is heavy: `--help` and completion must answer at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from .. import errors
from ..errors import near_miss

OK, FAILED, USAGE, UNREACHABLE, MISFIT, FORCED = 0, 1, 2, 69, 78, 130

# Which exit code says what; the first class that fits decides.
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

# Command: the module it lives in and its name there. The order is the order of `--help`.
COMMANDS: dict[str, str] = {
    "dev": "dev:dev",
    "worker": "worker:worker",
    "scheduler": "worker:scheduler",
    "migrate": "migrate:migrate",
    "enqueue": "enqueue:enqueue",
    "jobs": "jobs:jobs",
    "queues": "queues:queues",
    "schedules": "schedules:schedules",
    "cron": "cron:cron",
    "import-crontab": "crontab:import_crontab",
    "tasks": "tasks:tasks",
    "workers": "workers:workers",
    "health": "health:health",
    "completion": "about:completion",
    "version": "about:version",
    "dev-worker": "dev_child:dev_worker",
}


class Refusal(click.ClickException):
    """An error of ours as the command line says it: one sentence, and a code that scripts can tell apart."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = code

    def show(self, file: Any = None) -> None:
        click.echo(f"{click.style('Error:', fg='red')} {self.message}", file=file, err=file is None)


def refusal(error: errors.PgCronError) -> Refusal:
    """What is said about `error`, with the way out where the error itself cannot know it."""
    message = str(error)
    if isinstance(error, errors.DatabaseUnavailable) and "cannot connect" in message:
        from .opening import is_dev_url

        if is_dev_url(os.environ.get("DATABASE_URL")):
            message = "the development database in .pgcron/ is not running; `pgcron dev` starts it"
        else:
            end = "" if message.endswith((".", "?")) else "."
            message += f"{end} Is DATABASE_URL set, and right? `pgcron dev` starts a database of its own."
    return Refusal(message, next(code for kind, code in CODES if isinstance(error, kind)))


class Nouns(click.Group):
    """A group that loads its commands when they are needed, knows near misses, and turns our errors into exit codes."""

    def __init__(self, *args: Any, lazily: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazily = dict(lazily or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        # In the order in which they were added: what one needs first stands first.
        return [*self.commands, *self._lazily]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # `job` is `jobs`: nobody should have to remember which it was.
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
            near = near_miss(word, known) or f". The commands are: {', '.join(known)}"
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


@click.group(cls=Nouns, lazily=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-A", "--app", metavar="MODULE[:NAME]",
    help="Where the app is: a module, module:name, module:factory() or a file. Default: PGCRON_APP, FLASK_APP, then"
    " wsgi.py or app.py, then the only file here that makes a PgCron.",
)
@click.pass_context
def pgcron(ctx: click.Context, app: str | None) -> None:
    """Background jobs in the PostgreSQL you already run.

    Begin with `pgcron dev`: it brings a database of its own. Every command that shows something takes --json.
    """
    from .opening import Chosen

    ctx.obj = Chosen(app)
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> NoReturn:
    """Run the command in `sys.argv`, and end the process with its exit code."""
    # When Ctrl-C meets a statement, psycopg warns of what it could not tidy up. We say what happened ourselves.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    pgcron.main(prog_name="pgcron")
    sys.exit(OK)
