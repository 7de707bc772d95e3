"""`pgcron schedules history`: the ticks of a schedule and their outcomes."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ..schedules.ticks import TickView
from . import output
from .context import opened
from .schedule_status import takes_turns

if TYPE_CHECKING:
    from ..store import Store


@click.command()
@click.argument("name")
@click.option("-n", "--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N")
@output.as_json
@click.pass_context
def history(ctx: click.Context, name: str, limit: int, as_json: bool) -> None:
    """List the ticks of a schedule and their outcomes, newest first.

    Works for a removed schedule too. LATE is how long after its time a run began.
    """
    with opened(ctx) as app:
        now, ticks = app.store.now(), app.schedules.history(name, limit)
        if not ticks:
            app.schedules.get(name)
        views = app.store.schedules(name)
        said = [_fields(tick, app.store, now, any(takes_turns(view, tick) for view in views)) for tick in ticks]
    if as_json:
        for each in said:
            output.print_json(each)
        return
    if not ticks:
        output.echo("no ticks yet", err=True)
        return
    output.print_table(
        ("TICK (UTC)", "KIND", "OUTCOME", "LATE", "STARTED (UTC)", "TOOK", "JOB", "NOTE"),
        [
            (
                output.utc(tick.tick), tick.kind, each["outcome"],
                "-" if tick.lateness is None else output.span(tick.lateness), output.utc(tick.started_at),
                _took(tick, now), tick.job_id or "-", (each["reason"] or "").partition("\n")[0],
            )
            for tick, each in zip(ticks, said, strict=True)
        ],
        right="JOB",
    )
    if len(ticks) == limit:
        output.echo(f"(the newest {limit}; --limit shows more)", err=True)


def _fields(tick: TickView, store: Store, now: datetime, waits: bool) -> dict[str, Any]:
    """Return a tick as `--json` prints it. A due tick with `waits` is waiting for the run before it."""
    reason, outcome = tick.reason, tick.outcome or _standing(tick, now)
    if outcome == "due" and waits:
        outcome, reason = "waiting", "for the run before it to end"
    if tick.outcome in ("failed", "cancelled") and tick.job_id is not None:
        job = store.get(tick.job_id)
        reason = job.error if job is not None else None
    return {
        "schedule": tick.schedule,
        "tick": output.iso(tick.tick),
        "kind": tick.kind,
        "outcome": outcome,
        "reason": reason,
        "job": tick.job_id,
        "due_at": output.iso(tick.due_at),
        "planned_at": output.iso(tick.planned_at),
        "started_at": output.iso(tick.started_at),
        "finished_at": output.iso(tick.finished_at),
        "late_seconds": None if tick.lateness is None else tick.lateness.total_seconds(),
    }


def _standing(tick: TickView, now: datetime) -> str:
    if tick.started_at is not None:
        return "running"
    return "planned" if tick.due_at > now else "due"


def _took(tick: TickView, now: datetime) -> str:
    if tick.started_at is None:
        return "-"
    if tick.finished_at is None:
        return f"{output.span(now - tick.started_at)} so far"
    return output.span(tick.finished_at - tick.started_at)
