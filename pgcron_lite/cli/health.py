"""`pgcron health`: is everything as it should be? One line per check, and an exit code for probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from ..moment import in_utc
from . import FAILED, output, standing
from .opening import chosen, queue
from .words import Span
from .workers import condition

if TYPE_CHECKING:
    from ..app import Store
    from ..ticks import ScheduleView


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to."""

    check: str
    ok: bool
    detail: str
    schedule: str | None = None


@click.command()
@click.option("--max-age", type=Span(), metavar="SPAN", help="How long a due job may wait, paused queues aside.")
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME", help="With --max-age: only this queue.")
@click.option("--schedules", "with_schedules", is_flag=True,
              help="Want every schedule on time, and its last run done. Paused ones are named.")
@output.as_json
@click.pass_context
def health(
    ctx: click.Context, max_age: timedelta | None, queues: tuple[str, ...], with_schedules: bool, as_json: bool
) -> None:
    """Are jobs being run? The exit code tells.

    0 if the database answers, the schema fits, a worker lives and none is stuck; else 1. As for every command it is 69
    if the database cannot be reached, and 78 if the schema does not fit.
    """
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
            click.echo(f"{word}  {finding.check:<10} {output.line(name + finding.detail)}")
    if not all(finding.ok for finding in findings):
        ctx.exit(FAILED)


def _findings(store: Store, lease: float, limit: float | None, names: tuple[str, ...]) -> Iterator[Finding]:
    yield Finding("database", True, store.describe())
    workers = store.workers()
    conditions = [condition(worker, lease) for worker in workers]
    # Those without a queue keep schedules, and run no jobs.
    alive = [w for w, c in zip(workers, conditions, strict=True) if c in ("ok", "stopping") and w.queues]
    running, slots = sum(w.running for w in alive), sum(w.slots for w in alive)
    busy = f"{output.count(len(alive), 'worker')} alive, {running} of {output.count(slots, 'slot')} busy"
    yield Finding("workers", bool(alive), busy if alive else "no worker is alive; start one with: pgcron worker")
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
    """How the schedules stand: all of them in a line, and those about which there is something to say."""
    views, now = store.schedules(), store.now()
    told: list[Finding] = []
    for view in views:
        how = standing.condition(view, now)
        if how.is_bad:
            told.append(Finding("schedule", False, f"{how.word}, {how.detail}", view.name))
        elif how.word == "paused":
            told.append(Finding("schedule", True, f"paused {how.detail}", view.name))
        elif how.word != "retired" and (failure := _failure(store, view)) is not None:
            told.append(Finding("schedule", False, failure, view.name))
    wrong = sum(not finding.ok for finding in told)
    count = output.count(sum(view.retired_at is None for view in views), "schedule")
    return [Finding("schedules", not wrong, f"{count}, {f'{wrong:,}' if wrong else 'none'} in trouble"), *told]


def _failure(store: Store, view: ScheduleView) -> str | None:
    """What is said of a schedule whose last run failed."""
    # What was skipped since, or is running, does not mend it.
    if view.last_outcome in (None, "done"):
        return None
    last = standing.last_end(store, view)
    if last is None or last.outcome != "failed":
        return None
    return f"its run of {in_utc(last.tick)} failed; to see why: pgcron jobs show {last.job_id}"
