"""`pgcron schedules list`, `show` and `next`. The commands that change schedules are in `schedules_actions`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ..durations import in_utc, spoken
from ..errors import UnknownSchedule
from ..schedules.api import called_off
from ..schedules.schedule import Schedule
from ..schedules.ticks import ScheduleView, TickView
from ..schedules.timezones import zone
from ..schedules.timing import Cron
from . import FAILED, Nouns, output
from .context import command, opened
from .cron import print_ticks, tick_fields
from .schedule_status import condition, in_words, reading

if TYPE_CHECKING:
    from ..app import PgCron

ACTIONS = ("run", "pause", "resume", "backfill", "add", "remove")


@click.group(
    cls=Nouns,
    lazily={"history": "schedules_history:history", **{verb: f"schedules_actions:{verb}" for verb in ACTIONS}},
)
def schedules() -> None:
    """List and show schedules; pause, run and backfill them."""


@schedules.command("list")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@output.as_json
@click.pass_context
def list_schedules(ctx: click.Context, names: Sequence[str], as_json: bool) -> None:
    """List schedules, all or those named: states, last and next runs.

    States: ok; paused; retired, when no live worker's code declares it; off, by enabled=False; over, when there are no
    more ticks; missed, late or stuck when something is wrong, which is explained below the table.
    """
    with opened(ctx) as app:
        now = app.store.now()
        found, missing = (app.schedules.list(), False) if not names else _named(app, names)
        hints = [] if names else list(_not_in_force(app, found))
    if as_json:
        for view in found:
            output.print_json(fields(view, now))
    elif found:
        _print_table(found, now)
    elif not names:
        output.echo("no schedules yet; declare one with @app.cron, or: pgcron schedules add", err=True)
    for hint in hints:
        output.echo(hint, err=True)
    if missing:
        ctx.exit(FAILED)


@schedules.command("show")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@output.as_json
@click.pass_context
def show_schedule(ctx: click.Context, names: Sequence[str], as_json: bool) -> None:
    """Show a schedule: policies, arguments, last and next run."""
    with opened(ctx) as app:
        now = app.store.now()
        found, missing = _named(app, names)
    for number, view in enumerate(found):
        if as_json:
            output.print_json(fields(view, now))
        else:
            if number:
                output.echo()
            _show(view, now)
    if missing:
        ctx.exit(FAILED)


@schedules.command("next")
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 10_000), default=5, show_default=True, metavar="N", help="How many.")
@output.as_json
@click.pass_context
def next_ticks(ctx: click.Context, name: str, count: int, as_json: bool) -> None:
    """Print the next ticks of a schedule.

    They follow from its timing alone. Runs that were cancelled or deleted by hand are not listed, but named below.
    """
    with opened(ctx) as app:
        view, now = app.schedules.get(name), app.store.now()
        schedule, ticks = view.schedule, app.schedules.next(name, count)
        gone = called_off(app.store, name, now)
    said = [_tick_fields(schedule, tick) for tick in ticks]
    if as_json:
        for each in said:
            output.print_json({"schedule": name, **each})
    else:
        print_ticks([{**each, "note": "; ".join(_notes(each))} for each in said])
    for tick in gone:
        if not ticks or tick.tick <= ticks[-1]:
            output.echo(f"(not listed: {_why_not(tick)})", err=True)
    how = condition(view, now)
    if how.word != "ok":
        output.echo(f"({output.line(f'{name} is {how.word}: {how.detail}')})", err=True)
    elif not ticks:
        output.echo("its next run is counted from the end of the one under way", err=True)
    elif schedule.max_runs is not None:
        output.echo(f"(it ends with run {schedule.max_runs:,}; {view.runs:,} have run or are planned)", err=True)


# What is printed

def fields(view: ScheduleView, now: datetime) -> dict[str, Any]:
    """Return a schedule as `--json` prints it. The names are stable; new ones may be added."""
    how, (schedule, _) = condition(view, now), reading(view)
    said: dict[str, Any] = {
        "schedule": view.name,
        "state": how.word,
        "detail": how.detail or None,
        "origin": _origin(view),
        "app": view.app,
        "next_tick": output.iso(view.next_tick),
        "next_due_at": output.iso(view.next_due_at),
        "last_tick": output.iso(view.last_tick),
        "last_outcome": view.last_outcome,
        "runs": view.runs,
        "alarm": view.alarm,
        "alarm_tick": output.iso(view.alarm_tick),
        "trouble": view.trouble,
        "paused_at": output.iso(view.paused_at),
        "retired_at": output.iso(view.retired_at),
    }
    if schedule is None:
        return said
    timing = schedule.timing
    return said | {
        "task": schedule.task,
        "args": json.loads(schedule.args),
        "timing": str(timing),
        "tz": timing.tz if isinstance(timing, Cron) else None,
        "words": timing.words,
        "start": output.iso(timing.start),
        "end": output.iso(timing.end),
        "queue": schedule.queue,
        "priority": schedule.priority,
        "max_attempts": schedule.max_attempts,
        "tags": list(schedule.tags),
        "catch_up": schedule.catch_up,
        "start_within_seconds": schedule.start_within and schedule.start_within.total_seconds(),
        "overlap": schedule.overlap,
        "jitter_seconds": schedule.jitter.total_seconds(),
        "max_runs": schedule.max_runs,
        "run_on_start": schedule.run_on_start,
        "after_finish": schedule.after_finish,
        "enabled": schedule.enabled,
        "alert_seconds": schedule.alert_after and schedule.alert_after.total_seconds(),
        # Not the url itself: anyone who knows it can report to the check.
        "has_ping": schedule.ping is not None,
    }


def _print_table(views: Sequence[ScheduleView], now: datetime) -> None:
    how = {view.name: condition(view, now) for view in views}
    output.print_table(
        ("NAME", "STATE", "NEXT (UTC)", "LAST (UTC)", "OUTCOME", "FROM", "TASK", "WHEN"),
        [
            (
                view.name, how[view.name].word, output.upcoming(view.next_due_at, now), output.utc(view.last_tick),
                view.last_outcome or "-", _origin(view), *_what_and_when(view),
            )
            for view in views
        ],
    )
    bad = [view for view in views if how[view.name].is_bad]
    if bad:
        output.echo()
    for view in bad:
        word = click.style(how[view.name].word, fg="red")
        output.echo(output.Styled(f"{output.line(view.name)} is {word}: {output.line(how[view.name].detail)}"))


def _what_and_when(view: ScheduleView) -> tuple[str, str]:
    schedule, _ = reading(view)
    return ("?", "?") if schedule is None else (schedule.task, in_words(schedule))


def _origin(view: ScheduleView) -> str:
    return "code" if view.origin == "code" else "run time"


def _show(view: ScheduleView, now: datetime) -> None:
    how, (schedule, _) = condition(view, now), reading(view)
    output.echo(output.Styled(f"{click.style(output.line(view.name), bold=True)}  {output.state(how.word)}"))
    due_at = view.next_due_at
    last = None if view.last_tick is None else f"{in_utc(view.last_tick)}, {view.last_outcome}"
    made = "declared in code" if view.origin == "code" else "made at run time"
    rows: list[tuple[str, str | None]] = [
        ("state", how.detail or None),
        ("runs", None if schedule is None else in_words(schedule)),
        ("next", None if due_at is None else f"{in_utc(due_at)}, {output.coming(due_at, now)}"),
        ("last", last),
        ("so far", f"{output.count(view.runs, 'run')}, with those planned"),
        *(() if schedule is None else _policies(schedule)),
        ("from", f"{made}, app {view.app}"),
    ]  # fmt: skip
    for name, text in rows:
        if text is not None:
            output.echo(output.Styled(f"  {click.style(f'{name:<10}', dim=True)} {output.line(text)}"))


def _policies(schedule: Schedule) -> Iterator[tuple[str, str | None]]:
    timing = schedule.timing
    bounds = [f"{word} {in_utc(at)}" for word, at in (("from", timing.start), ("until", timing.end)) if at is not None]
    yield "timing", f"{timing}{f', {timing.tz}' if isinstance(timing, Cron) else ''}"
    yield "within", " ".join(bounds) or None
    yield "task", schedule.task
    yield "arguments", schedule.args
    yield "queue", f"{schedule.queue}, priority {schedule.priority}, {output.count(schedule.max_attempts, 'attempt')}"
    yield "tags", ", ".join(schedule.tags) or None
    yield "overlap", schedule.overlap
    within = "" if schedule.start_within is None else f", within {spoken(schedule.start_within)}"
    yield "catch up", f"{schedule.catch_up}{within}"
    yield "jitter", f"up to {spoken(schedule.jitter)}" if schedule.jitter else None
    yield "most runs", None if schedule.max_runs is None else f"{schedule.max_runs:,}"
    yield "at start", "runs once when its code starts" if schedule.run_on_start else None
    yield "alert", None if schedule.alert_after is None else f"{spoken(schedule.alert_after)} after it was due"
    yield "pings", None if schedule.ping is None else "yes"


def _tick_fields(schedule: Schedule, tick: datetime) -> dict[str, Any]:
    timing = schedule.timing
    clock = zone(timing.tz if isinstance(timing, Cron) else "UTC").info
    return {**tick_fields(timing, tick, clock), "due_at": output.iso(schedule.due_at(tick))}


def _notes(said: dict[str, Any]) -> Iterator[str]:
    if said["note"]:
        yield said["note"]
    if said["due_at"] != said["tick"]:
        put_off = datetime.fromisoformat(said["due_at"]) - datetime.fromisoformat(said["tick"])
        yield f"put off by {output.span(put_off)} of jitter"


def _why_not(tick: TickView) -> str:
    """Return the reason why no run begins at a future tick."""
    moment = in_utc(tick.tick)
    if tick.outcome == "cancelled":
        return f"the run of {moment} was cancelled by hand; to run it now: {command(f'jobs retry {tick.job_id}')}"
    if tick.outcome == "deleted":
        return f"the run of {moment} was deleted by hand"
    return f"the run of {moment} was retried by hand before its time; its job is {tick.job_id}"


# Selection by name

def _named(app: PgCron, names: Sequence[str]) -> tuple[list[ScheduleView], bool]:
    """Return the schedules of these names, and True if some do not exist, which it prints."""
    found, missing = [], False
    for name in dict.fromkeys(names):
        try:
            found.append(app.schedules.get(name))
        except UnknownSchedule as error:
            missing = True
            output.echo(str(error), err=True)
    return found, missing


def _not_in_force(app: PgCron, views: Sequence[ScheduleView]) -> Iterator[str]:
    """Yield hints about schedules that this code declares and that are not in force in the database."""
    there = {view.name: view for view in views}
    waiting, taken = [], []
    for name, definition in sorted(app._definitions.items()):
        view = there.get(name)
        if view is not None and view.origin == "hand":
            taken.append(name)
        elif view is None or view.retired_at is not None or view.definition != definition:
            waiting.append(name)
    if waiting:
        yield f"(declared in the code here, in force when its next worker starts: {_some(waiting)})"
    if taken:
        yield f"(declared in the code here, but made at run time as well, which is in force: {_some(taken)})"


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return output.line(", ".join(itertools.islice(names, most))) + more
