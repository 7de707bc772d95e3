"""`pgcron jobs list` and `show`. The commands that change jobs are in `jobs_actions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..admin import Jobs
from ..checks import STATES
from ..job import SCHEDULE, Job, State
from . import FAILED, Nouns, output
from .context import chosen, command, queue
from .types import JobId, Span

if TYPE_CHECKING:
    from ..config import Settings
    from ..schedules.ticks import TickView
    from ..store import Store

F = TypeVar("F", bound=Callable[..., Any])

# Number of a schedule's newest ticks to search for the tick of a job. No more than these wait for an earlier run.
MAX_TICKS = 3_000


@dataclass(frozen=True, slots=True)
class Filter:
    """The criteria that select jobs."""

    states: tuple[State, ...] = ()
    task: str | None = None
    queue: str | None = None
    tag: str | None = None
    since: timedelta | None = None

    def __bool__(self) -> bool:
        return bool(self.states or self.task or self.queue or self.tag or self.since)

    def find(self, jobs: Jobs, limit: int | None, *, with_payload: bool = False) -> Iterator[Job]:
        """Yield the matching jobs, newest first; arguments and results only `with_payload`."""
        return jobs.find(
            state=self.states or None, task=self.task, queue=self.queue, tag=self.tag, since=self.since, limit=limit,
            with_payload=with_payload,
        )  # fmt: skip


def filtered(command: F) -> F:
    """Add the options that select jobs."""
    for option in reversed(
        (
            click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="May be repeated."),
            click.option("--task", metavar="NAME"),
            click.option("-q", "--queue", metavar="NAME"),
            click.option("--tag", metavar="WORD"),
            click.option("--since", type=Span(), metavar="SPAN", help="Enqueued within the last 30m, 2h, 7d."),
        )
    ):
        command = option(command)
    return command


def filter_of(
    states: tuple[State, ...], task: str | None, queue: str | None, tag: str | None, since: timedelta | None
) -> Filter:
    """Return the filter that the options of `filtered` describe."""
    return Filter(states, task, queue, tag, since)


@click.group(cls=Nouns, lazily={verb: f"jobs_actions:{verb}" for verb in ("retry", "cancel", "delete")})
def jobs() -> None:
    """List and show jobs; retry, cancel and delete them."""


@jobs.command("list")
@filtered
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N")
@output.as_json
@click.pass_context
def list_jobs(ctx: click.Context, /, limit: int, as_json: bool, **chosen_by: Any) -> None:
    """List the newest jobs, live and ended."""
    wanted = filter_of(**chosen_by)
    with queue(ctx) as store:
        jobs = Jobs(lambda: store)
        if as_json:
            for job in wanted.find(jobs, limit, with_payload=True):
                output.print_json(output.job_fields(job))
            return
        now, found = store.now(), list(wanted.find(jobs, limit))
        in_line = _runs_in_line(found, store, now)
    if not found:
        output.echo("no such jobs" if wanted else "no jobs yet", err=True)
        return
    output.print_table(
        ("ID", "STATE", "TASK", "QUEUE", "ATTEMPT", "ENQUEUED", "NOTE"),
        [
            (
                j.id, j.state, j.task, j.queue, f"{j.attempt}/{j.max_attempts}", output.ago(j.created_at, now),
                _note(j, now, is_in_line=j.id in in_line),
            )
            for j in found
        ],
        right="ID, ATTEMPT",
    )
    if len(found) == limit:
        output.echo(f"(the newest {limit}; --limit shows more)", err=True)


def _runs_in_line(jobs: Sequence[Job], store: Store, now: datetime) -> set[int]:
    """Return which of `jobs` are runs of a schedule that wait for an earlier run of it."""
    # The moment at which such a job asks again says nothing: it begins when the run before it ends.
    if not any(job.state == "queued" and job.execute_after > now for job in jobs):
        return set()
    # By the schedules, as jobs are listed without their headers.
    busy = [view.name for view in store.schedules() if view.is_running]
    ticks = (tick for name in busy for tick in store.ticks(name, until=now, limit=MAX_TICKS))
    return {tick.job_id for tick in ticks if tick.job_id is not None and _is_in_line(tick, now)}


def _is_in_line(tick: TickView, now: datetime) -> bool:
    """Return True if a run of a schedule is due and has not begun; its job is put off until the run before it ends."""
    return tick.started_at is None and tick.outcome is None and tick.due_at <= now


def _note(job: Job, now: datetime, *, is_in_line: bool) -> str:
    """Return the main fact about a job in a few words."""
    last = (job.error or "").partition("\n")[0]
    if job.state == "running":
        return f"for {output.span(now - job.claimed_at)}" if job.claimed_at else ""
    if job.state == "done":
        return f"took {output.took(job)}"
    if job.state == "queued" and job.execute_after > now and is_in_line:
        return "waits for the run before it to end"
    if job.state == "queued":
        when = "due" if job.execute_after <= now else f"in {output.span(job.execute_after - now)}"
        return f"{when}, after {last}" if last else when
    return last


@jobs.command()
@click.argument("ids", nargs=-1, required=True, type=JobId(), metavar="ID...")
@output.as_json
@click.pass_context
def show(ctx: click.Context, ids: Sequence[int], as_json: bool) -> None:
    """Show a job: arguments, times, errors, what is next."""
    missing = False
    with queue(ctx) as store:
        settings = chosen(ctx).app_or_bare().settings
        for number, job_id in enumerate(ids):
            job = store.get(job_id)
            if job is None:
                missing = True
                output.echo(f"there is no job #{job_id}: it was deleted, or its history was pruned", err=True)
            elif as_json:
                output.print_json(output.job_fields(job))
            else:
                if number:
                    output.echo()
                _show(job, store, settings)
    if missing:
        ctx.exit(FAILED)


def _show(job: Job, store: Store, settings: Settings) -> None:
    now = store.now()
    title = click.style(output.line(f"{job.task}#{job.id}"), bold=True)
    output.echo(output.Styled(f"{title}  {output.state(job.state)}"))
    rows: list[tuple[str, str | None]] = [
        ("next", _next(job, store, settings, now)),
        ("arguments", job.args),
        ("result", job.result),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("tags", ", ".join(job.tags) or None),
        ("headers", ", ".join(f"{name}={text}" for name, text in job.headers.items()) or None),
        ("attempt", f"{job.attempt} of {job.max_attempts}"),
        ("crashes", f"{job.crashes} of {job.max_crashes}" if job.crashes else None),
        ("enqueued", _moment(job.created_at, now)),
        ("due", _moment(job.execute_after, now)),
        ("started", _moment(job.claimed_at, now)),
        ("ended", _moment(job.finished_at, now)),
        ("took", output.took(job) if job.finished_at and job.claimed_at else None),
    ]
    for name, text in rows:
        if text is not None:
            output.echo(output.Styled(f"  {click.style(f'{name:<10}', dim=True)} {output.line(text)}"))
    for error in job.errors:
        _show_error(error)


def _show_error(error: Any) -> None:
    at = str(error.get("at", ""))[:19].replace("T", " ")
    number = click.style(output.line(f"attempt {error.get('attempt', '?')}"), fg="red")
    output.echo(output.Styled(f"\n  {number}  {output.line(at)} UTC"))
    output.echo(output.Styled(output.block(str(error.get("error", "")), "    ")))
    if error.get("traceback"):
        output.echo(output.Styled(click.style(output.block(str(error["traceback"]), "      "), dim=True)))


def _moment(value: datetime | None, now: datetime) -> str | None:
    if value is None:
        return None
    words = f"in {output.span(value - now)}" if value > now else output.ago(value, now)
    return f"{str(output.iso(value))[:19].replace('T', ' ')} UTC  ({words})"


def _next(job: Job, store: Store, settings: Settings, now: datetime) -> str:
    """Return what happens next to the job if no command changes it."""
    if job.state == "running":
        worker = next((w for w in store.workers() if w.id == job.worker), None)
        where = f"{worker.host} pid {worker.pid}" if worker else "a worker that is gone; another will run it again"
        since = output.span(now - job.claimed_at) if job.claimed_at else "?"
        return f"runs for {since} on {where}"
    if job.state == "queued":
        return _waits_for(job, store, now)
    keep = settings.keep_done if job.state == "done" else settings.keep_failed
    assert job.finished_at is not None
    gone = f"leaves the history {_in(job.finished_at + keep - now)}"
    return gone if job.state == "done" else f"{gone}; to run it again: pgcron jobs retry {job.id}"


def _waits_for(job: Job, store: Store, now: datetime) -> str:
    if any(q.name == job.queue and q.paused_at for q in store.queues()):
        return f"waits until the queue is resumed: pgcron queues resume {output.argument(job.queue)}"
    if job.execute_after > now:
        if (tick := _tick_of(job, store)) is not None and _is_in_line(tick, now):
            return f"waits for a run of schedule {tick.schedule!r} that is under way, and begins when that has ended"
        return f"attempt {job.attempt + 1} of {job.max_attempts} {_in(job.execute_after - now)}"
    if not any(job.queue in w.queues or "*" in w.queues for w in store.workers() if not w.stopping):
        return f"due; no worker serves the queue {job.queue!r}. Start one: {command('worker')}"
    return "due; it waits until a worker can run it alone" if job.alone else "due; it waits for a free slot"


def _tick_of(job: Job, store: Store) -> TickView | None:
    """Return the tick that the job runs for. The job's header names the schedule; only the tick itself proves it."""
    name = job.headers.get(SCHEDULE)
    found = [] if name is None else store.ticks(name, limit=MAX_TICKS)
    return next((tick for tick in found if tick.job_id == job.id), None)


def _in(span: timedelta) -> str:
    return "soon" if span <= timedelta(0) else f"in {output.span(span)}"
