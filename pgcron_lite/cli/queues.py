"""`pgcron queues`: list, pause, resume and clear queues."""

from __future__ import annotations

import click

from ..admin import Queues
from . import Nouns, output
from .context import queue


@click.group(cls=Nouns)
def queues() -> None:
    """List, pause, resume and clear queues."""


@queues.command("list")
@output.as_json
@click.pass_context
def list_queues(ctx: click.Context, as_json: bool) -> None:
    """List the queues that have waiting or running jobs, or are paused."""
    with queue(ctx) as store:
        now, found = store.now(), Queues(lambda: store).list()
    if as_json:
        for q in found:
            output.print_json(
                {
                    "queue": q.name,
                    "state": "paused" if q.paused_at else "open",
                    "due": q.due,
                    "deferred": q.deferred,
                    "running": q.running,
                    "oldest_seconds": round(q.oldest_seconds, 3),
                    "paused_at": output.iso(q.paused_at),
                }
            )
        return
    if not found:
        output.echo("all queues are empty", err=True)
        return
    output.print_table(
        ("QUEUE", "DUE", "DEFERRED", "RUNNING", "OLDEST DUE", "STATE"),
        [
            (
                q.name, f"{q.due:,}", f"{q.deferred:,}", f"{q.running:,}",
                output.span(q.oldest_seconds) if q.due else "-",
                f"paused {output.ago(q.paused_at, now)}" if q.paused_at else "open",
            )
            for q in found
        ],
        right="DUE, DEFERRED, RUNNING",
    )


@queues.command()
@click.argument("name")
@click.pass_context
def pause(ctx: click.Context, name: str) -> None:
    """Let no worker claim jobs of the queue NAME. Running jobs finish, new ones wait."""
    with queue(ctx) as store:
        queues = Queues(lambda: store)
        queues.pause(name)
        view = queues.get(name)
    jobs = output.count(view.due + view.deferred, "job")
    output.echo(f"queue {name!r} is paused, {jobs} waiting. To go on: pgcron queues resume {output.argument(name)}")


@queues.command()
@click.argument("name")
@click.pass_context
def resume(ctx: click.Context, name: str) -> None:
    """Let workers claim jobs of the queue NAME again."""
    with queue(ctx) as store:
        was_paused = Queues(lambda: store).resume(name)
    output.echo(f"queue {name!r} is {'open again' if was_paused else 'open; it was not paused'}")


@queues.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def clear(ctx: click.Context, name: str, yes: bool) -> None:
    """Cancel every waiting job of the queue NAME. Running ones go on; cancelled ones can be retried."""
    with queue(ctx) as store:
        queues = Queues(lambda: store)
        view = queues.get(name)
        waiting = view.due + view.deferred
        if not waiting:
            output.echo(f"queue {name!r} has no waiting jobs", err=True)
            return
        confirm(f"Cancel {output.count(waiting, 'waiting job')} of queue {name!r}?", yes)
        done = queues.clear(name)
    output.echo(f"{output.count(done, 'job')} cancelled")


def confirm(question: str, yes: bool) -> None:
    """Ask the user to confirm, and raise `ClickException` if the answer is not yes. Scripts pass --yes."""
    if yes:
        return
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        # The answer was "no", or there was no input to read an answer from.
        output.echo(err=True)
        raise click.ClickException("nothing was changed; --yes answers for you") from None
