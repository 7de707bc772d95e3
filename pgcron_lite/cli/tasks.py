"""`pgcron tasks`: the tasks of the app."""

from __future__ import annotations

import inspect

import click

from . import Nouns, output
from .context import chosen


@click.group(cls=Nouns)
def tasks() -> None:
    """List the tasks of your app."""


@tasks.command("list")
@output.as_json
@click.pass_context
def list_tasks(ctx: click.Context, as_json: bool) -> None:
    """List the tasks of the app with their options. Needs no database."""
    found = sorted(chosen(ctx).app().tasks.items())
    items = [
        {
            "task": name,
            "signature": str(inspect.signature(task.function)),
            "queue": task.settings.queue,
            "priority": task.settings.priority,
            "max_attempts": task.settings.policy.most_attempts,
            "max_crashes": task.settings.max_crashes,
            "keep_result": task.settings.keep_result,
            "doc": (inspect.getdoc(task.function) or "").partition("\n")[0],
        }
        for name, task in found
    ]
    if as_json:
        for item in items:
            output.print_json(item)
    elif not items:
        output.echo("no tasks; decorate a function with @app.task", err=True)
    else:
        output.print_table(
            ("TASK", "QUEUE", "PRIORITY", "ATTEMPTS", "CALL"),
            [(i["task"], i["queue"], i["priority"], i["max_attempts"], i["signature"]) for i in items],
            right="PRIORITY, ATTEMPTS",
        )
