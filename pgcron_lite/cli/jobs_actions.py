"""`pgcron jobs retry`, `cancel` and `delete`: by ids, or in bulk by a filter. What cannot be undone asks first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..admin import Jobs
from ..job import State
from . import FAILED, output
from .context import queue
from .jobs import Filter, filter_of, filtered
from .queues import confirm
from .types import JobId

if TYPE_CHECKING:
    from ..store import Store

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Action:
    """An action on jobs: its words in messages, the states it applies to, and a filter's usual states."""

    verb: str
    done: str
    states: tuple[State, ...]
    usual: tuple[State, ...]


RETRY = Action("retry", "queued again", ("failed", "cancelled"), ("failed",))
CANCEL = Action("cancel", "cancelled", ("queued",), ("queued",))
DELETE = Action(
    "delete", "deleted", ("queued", "done", "failed", "cancelled"), ("queued", "done", "failed", "cancelled")
)


def by_id_or_filter(command: F) -> F:
    """Add the options that select jobs by ids, or by a filter and after a question."""
    command = click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)
    command = click.option("-n", "--limit", type=click.IntRange(1), metavar="N",
                           help="At most N jobs, newest first.")(command)
    return click.argument("ids", nargs=-1, type=JobId(), metavar="[ID]...")(filtered(command))


@click.command()
@by_id_or_filter
@click.pass_context
def retry(ctx: click.Context, /, **how: Any) -> None:
    """Queue failed jobs again, due now.

    They get all their attempts back. A filter includes cancelled jobs only with --state cancelled.
    """
    _do(ctx, RETRY, Jobs.retry, **how)


@click.command()
@by_id_or_filter
@click.pass_context
def cancel(ctx: click.Context, /, **how: Any) -> None:
    """Cancel jobs that have not begun."""
    _do(ctx, CANCEL, Jobs.cancel, **how)


@click.command()
@by_id_or_filter
@click.pass_context
def delete(ctx: click.Context, /, **how: Any) -> None:
    """Delete jobs, live and ended, unless they are running. Asks first, as this cannot be undone."""
    _do(ctx, DELETE, Jobs.delete, **how)


def _do(
    ctx: click.Context,
    deed: Action,
    do: Callable[[Jobs, int], bool],
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
        if ids and deed is DELETE:
            which = f"job #{ids[0]}" if len(ids) == 1 else output.count(len(ids), "job")
            confirm(f"Delete {which}?", yes)
        jobs = Jobs(lambda: store)
        done = _one_by_one(store, deed, do, ids) if ids else _in_bulk(jobs, deed, do, wanted, limit, yes)
    if not done:
        ctx.exit(FAILED)


def _one_by_one(store: Store, deed: Action, do: Callable[[Jobs, int], bool], ids: Sequence[int]) -> bool:
    """Apply `do` to each job, and print what was done or why not. Return True if it was done to all."""
    jobs, all_done = Jobs(lambda: store), True
    for job_id in ids:
        if do(jobs, job_id):
            output.echo(f"#{job_id} {deed.done}")
        else:
            all_done = False
            output.echo(_why_not(store, deed, job_id), err=True)
    return all_done


def _why_not(store: Store, deed: Action, job_id: int) -> str:
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
    jobs: Jobs, deed: Action, do: Callable[[Jobs, int], bool], wanted: Filter, limit: int | None, yes: bool
) -> bool:
    states = wanted.states or deed.usual
    hopeless = [s for s in states if s not in deed.states]
    if hopeless:
        raise click.UsageError(f"{hopeless[0]} jobs cannot be {deed.done}; only {' or '.join(deed.states)} ones")
    fitting = Filter(states, wanted.task, wanted.queue, wanted.tag, wanted.since)
    # Collect the ids before anything changes: each job is handled once, and the question gives the exact count.
    ids = [job.id for job in fitting.find(jobs, limit)]
    if not ids:
        output.echo(f"no {' or '.join(states)} jobs match", err=True)
        return True
    confirm(f"{deed.verb.capitalize()} {output.count(len(ids), 'job')}?", yes)
    done = sum(do(jobs, job_id) for job_id in _with_progress_bar(ids, deed.verb))
    output.echo(f"{output.count(done, 'job')} {deed.done}")
    if done < len(ids):
        output.echo(f"{output.count(len(ids) - done, 'job')} had changed state in the meantime", err=True)
    return True


def _with_progress_bar(ids: Sequence[int], label: str) -> Iterator[int]:
    """Yield the ids, with a progress bar on a terminal."""
    if not sys.stderr.isatty():
        yield from ids
        return
    with click.progressbar(ids, label=label, file=sys.stderr) as bar:
        yield from bar
