"""`pgcron health`: checks of the database, the workers and the schedules, with an exit code for probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from ..durations import in_utc
from . import FAILED, output, schedule_status
from .context import chosen, command, queue
from .types import Span
from .workers import condition

if TYPE_CHECKING:
    from ..schedules.ticks import ScheduleView
    from ..store import Store


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    ok: bool
    detail: str
    schedule: str | None = None


@click.command()
@click.option("--max-age", type=Span(), metavar="SPAN",
              help="Fail if a due job has waited longer. Paused queues are ignored.")
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME", help="With --max-age: only this queue.")
@click.option("--schedules", "with_schedules", is_flag=True,
              help="Also fail if a schedule is late or its last run failed. Paused schedules, and runs that were"
                   " cancelled by hand, are listed.")
@output.as_json
@click.pass_context
def health(
    ctx: click.Context, max_age: timedelta | None, queues: tuple[str, ...], with_schedules: bool, as_json: bool
) -> None:
    """Check that jobs are being run.

    The exit code is 0 if the database answers, the schema fits, a worker is alive and none is stuck; else 1. As for
    every command it is 69 if the database cannot be reached, and 78 if the schema does not fit.
    """
    from ..checks import queue_name

    for name in queues:
        # Refuse an empty name: no job is ever in that queue, so the check would always pass.
        queue_name(name)
    limit = None if max_age is None else max_age.total_seconds()
    with queue(ctx) as store:
        lease = chosen(ctx).app_or_bare().settings.lease.total_seconds()
        findings = list(_findings(store, lease, limit, queues))
        if with_schedules:
            findings += of_schedules(store)
    for finding in findings:
        if as_json:
            which = {} if finding.schedule is None else {"schedule": finding.schedule}
            output.print_json({"check": finding.check, "ok": finding.ok, "detail": finding.detail, **which})
        else:
            word = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red", bold=True)
            name = "" if finding.schedule is None else f"{finding.schedule}: "
            output.echo(output.Styled(f"{word}  {finding.check:<10} {output.line(name + finding.detail)}"))
    if not all(finding.ok for finding in findings):
        ctx.exit(FAILED)


def _findings(store: Store, lease: float, limit: float | None, names: tuple[str, ...]) -> Iterator[Finding]:
    yield Finding("database", True, store.describe())
    workers = store.workers()
    conditions = [condition(worker, lease) for worker in workers]
    # Workers without a queue run the scheduler, and no jobs.
    alive = [w for w, c in zip(workers, conditions, strict=True) if c in ("ok", "stopping") and w.queues]
    running, slots = sum(w.running for w in alive), sum(w.slots for w in alive)
    busy = f"{output.count(len(alive), 'worker')} alive, {running} of {output.count(slots, 'slot')} busy"
    yield Finding("workers", bool(alive), busy if alive else f"no worker is alive; start one with: {command('worker')}")
    stuck = [w for w, c in zip(workers, conditions, strict=True) if c == "stuck"]
    where = ", ".join(f"{w.host} pid {w.pid} for {output.span(w.idle_loop)}" for w in stuck)
    yield Finding("loops", not stuck, f"stuck: {where}" if stuck else "none is stuck")
    if limit is not None:
        waiting = [q for q in store.queues() if q.due and not q.paused_at and (not names or q.name in names)]
        oldest = max(waiting, key=lambda q: q.oldest_seconds, default=None)
        age = 0.0 if oldest is None else oldest.oldest_seconds
        waits = "nothing" if oldest is None else f"a job of queue {oldest.name} for {output.span(age)}"
        yield Finding("oldest due", age <= limit, waits)


def of_schedules(store: Store) -> list[Finding]:
    """Return a summary of all schedules, then one finding for each that is in trouble, paused or called off."""
    views, now = store.schedules(), store.now()
    told: list[Finding] = []
    for view in views:
        how = schedule_status.condition(view, now)
        if how.is_bad:
            told.append(Finding("schedule", False, f"{how.word}, {how.detail}", view.name))
        elif how.word == "paused":
            told.append(Finding("schedule", True, f"paused {how.detail}", view.name))
        elif how.word != "retired" and (failure := _failure(store, view)) is not None:
            told.append(Finding("schedule", False, failure, view.name))
        elif how.word != "retired" and (note := _called_off(store, view)) is not None:
            told.append(Finding("schedule", True, note, view.name))
    wrong = sum(not finding.ok for finding in told)
    count = output.count(sum(view.retired_at is None for view in views), "schedule")
    return [Finding("schedules", not wrong, f"{count}, {f'{wrong:,}' if wrong else 'none'} in trouble"), *told]


def _failure(store: Store, view: ScheduleView) -> str | None:
    """Return the finding for a schedule whose last run failed; None if it did not."""
    # A skipped tick, or a run under way, does not clear an earlier failure.
    if view.last_outcome in (None, "done"):
        return None
    last = schedule_status.last_end(store, view)
    if last is None or last.outcome != "failed":
        return None
    return f"its run of {in_utc(last.tick)} failed; to see why: pgcron jobs show {last.job_id}"


def _called_off(store: Store, view: ScheduleView) -> str | None:
    """Name the last run if it was cancelled or deleted by hand before it began, which is no failure; else None."""
    if view.last_outcome not in ("cancelled", "deleted") or view.last_tick is None:
        return None
    last = store.ticks(view.name, before=view.last_tick + timedelta(microseconds=1), limit=1)
    if not last or last[0].started_at is not None:
        return None
    following = "" if view.next_due_at is None else f"; the next is due {in_utc(view.next_due_at)}"
    return f"its run of {in_utc(view.last_tick)} was {view.last_outcome} by hand before it began{following}"
