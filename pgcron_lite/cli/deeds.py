"""`pgcron jobs retry`, `cancel` and `delete`: one by one by id, or in bulk by filter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import FAILED, output
from .jobs import Filter, filter_of, filtered
from .opening import queue
from .queues import confirm
from .words import JobId

if TYPE_CHECKING:
    from ..app import Store

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Deed:
    """Something to do to jobs: in which states it can be done, and how it is spoken of."""

    verb: str
    done: str
    states: tuple[str, ...]
    usual: tuple[str, ...]


RETRY = Deed("retry", "queued again", ("failed", "cancelled"), ("failed",))
CANCEL = Deed("cancel", "cancelled", ("queued",), ("queued",))
DELETE = Deed("delete", "deleted", ("queued", "done", "failed", "cancelled"), ("queued", "done", "failed", "cancelled"))


def by_id_or_filter(command: F) -> F:
    """Jobs by their ids, or by filter and with a question."""
    command = click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)
    command = click.option("-n", "--limit", type=click.IntRange(1), metavar="N",
                           help="At most so many, the newest first.")(command)
    return click.argument("ids", nargs=-1, type=JobId(), metavar="[ID]...")(filtered(command))


@click.command()
@by_id_or_filter
@click.pass_context
def retry(ctx: click.Context, /, **how: Any) -> None:
    """Queue failed jobs again, due now.

    They get all their attempts back. By filter, cancelled jobs are meant only with --state cancelled.
    """
    _do(ctx, RETRY, lambda store, job_id: store.retry(job_id), **how)


@click.command()
@by_id_or_filter
@click.pass_context
def cancel(ctx: click.Context, /, **how: Any) -> None:
    """Cancel jobs that have not begun."""
    _do(ctx, CANCEL, lambda store, job_id: store.cancel(job_id), **how)


@click.command()
@by_id_or_filter
@click.pass_context
def delete(ctx: click.Context, /, **how: Any) -> None:
    """Remove jobs without a trace, unless they are running."""
    _do(ctx, DELETE, lambda store, job_id: store.delete(job_id), **how)


def _do(
    ctx: click.Context,
    deed: Deed,
    do: Callable[[Store, int], bool],
    *,
    ids: Sequence[int],
    yes: bool,
    limit: int | None,
    **chosen_by: Any,
) -> None:
    wanted = filter_of(**chosen_by)
    if bool(ids) == bool(wanted):
        raise click.UsageError(
            f"which jobs? Either ids (pgcron jobs {deed.verb} 12 13), or a filter"
            f" (pgcron jobs {deed.verb} --task mail.send --since 1h)"
        )
    with queue(ctx) as store:
        done = _one_by_one(store, deed, do, ids) if ids else _in_bulk(store, deed, do, wanted, limit, yes)
        store.ring()
    if not done:
        ctx.exit(FAILED)


def _one_by_one(store: Store, deed: Deed, do: Callable[[Store, int], bool], ids: Sequence[int]) -> bool:
    """True if it could be done to all of them. Says for each what was done, or why not."""
    all_done = True
    for job_id in ids:
        if do(store, job_id):
            click.echo(f"#{job_id} {deed.done}")
        else:
            all_done = False
            click.echo(_why_not(store, deed, job_id), err=True)
    return all_done


def _why_not(store: Store, deed: Deed, job_id: int) -> str:
    job = store.get(job_id)
    if job is None:
        return f"there is no job #{job_id}"
    name = output.line(f"{job.task}#{job.id}")
    if job.state == "running" and deed is not RETRY:
        worker = next((w for w in store.workers() if w.id == job.worker), None)
        where = f" on {worker.host} pid {worker.pid}" if worker else ""
        return (
            f"{name} is running{where} and cannot be {deed.done}: a task is never interrupted from outside."
            " Wait for its end, or stop that worker: the job then goes back to the queue."
        )
    return f"{name} is {job.state}; only {' or '.join(deed.states)} jobs can be {deed.done}"


def _in_bulk(
    store: Store, deed: Deed, do: Callable[[Store, int], bool], wanted: Filter, limit: int | None, yes: bool
) -> bool:
    states = wanted.states or deed.usual
    hopeless = [s for s in states if s not in deed.states]
    if hopeless:
        raise click.UsageError(f"{hopeless[0]} jobs cannot be {deed.done}; only {' or '.join(deed.states)} ones")
    fitting = Filter(states, wanted.task, wanted.queue, wanted.tag, wanted.since)
    # Their ids are noted before anything is done, so that a job is met once and the question gives the true count.
    ids = [job.id for job in fitting.find(store, limit)]
    if not ids:
        click.echo(f"no {' or '.join(states)} jobs fit", err=True)
        return True
    confirm(f"{deed.verb.capitalize()} {output.count(len(ids), 'job')}?", yes)
    done = 0
    with click.progressbar(length=len(ids), label=deed.verb, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        for job_id in ids:
            done += do(store, job_id)
            bar.update(1)
    click.echo(f"{output.count(done, 'job')} {deed.done}")
    if done < len(ids):
        click.echo(f"{output.count(len(ids) - done, 'job')} had moved on in the meantime", err=True)
    return True
