"""`pgcron queues`: how the queues stand; pause, resume and clear them."""

from __future__ import annotations

import click

from . import Nouns, output
from .opening import queue

BATCH = 1000


@click.group(cls=Nouns)
def queues() -> None:
    """How the queues stand; pause, resume, clear."""


@queues.command("list")
@output.as_json
@click.pass_context
def list_queues(ctx: click.Context, as_json: bool) -> None:
    """Every queue that has waiting or running jobs, or is paused."""
    with queue(ctx) as store:
        now, found = store.now(), store.queues()
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
        click.echo("all queues are empty", err=True)
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
    """Let no worker take jobs from the queue NAME; running ones finish, new ones wait."""
    _check(name)
    with queue(ctx) as store:
        store.pause(name)
        waiting = sum(q.due + q.deferred for q in store.queues() if q.name == name)
    jobs = output.count(waiting, "job")
    click.echo(f"queue {name!r} is paused, {jobs} waiting. To go on: pgcron queues resume {name}")


@queues.command()
@click.argument("name")
@click.pass_context
def resume(ctx: click.Context, name: str) -> None:
    """Let workers take jobs from the queue NAME again."""
    _check(name)
    with queue(ctx) as store:
        was_paused = store.resume(name)
        store.ring()
    click.echo(f"queue {name!r} is {'open again' if was_paused else 'open; it was not paused'}")


@queues.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def clear(ctx: click.Context, name: str, yes: bool) -> None:
    """Cancel every waiting job of the queue NAME. Running ones go on; cancelled ones can be retried."""
    _check(name)
    with queue(ctx) as store:
        waiting = sum(q.due + q.deferred for q in store.queues() if q.name == name)
        if not waiting:
            click.echo(f"queue {name!r} has no waiting jobs", err=True)
            return
        confirm(f"Cancel {output.count(waiting, 'waiting job')} of queue {name!r}?", yes)
        done = 0
        # Not until it is empty: a busy producer would keep us here.
        while done < waiting and (gone := store.clear(name, min(BATCH, waiting - done))):
            done += gone
    click.echo(f"{output.count(done, 'job')} cancelled")


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone by itself; a script says --yes."""
    if yes:
        return
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        # Either "no", or nobody was there to be asked.
        click.echo(err=True)
        raise click.ClickException("nothing was changed; --yes answers for you") from None


def _check(name: str) -> None:
    from ..task import queue_name

    queue_name(name)
