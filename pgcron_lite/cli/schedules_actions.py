"""The actions of `pgcron schedules`: `run`, `pause`, `resume`, `backfill`, `add` and `remove`."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from .. import durations
from ..durations import in_utc
from ..errors import OptionError, UnknownSchedule
from ..schedules.schedule import CatchUp, Overlap, Schedule
from ..schedules.timezones import zone
from ..schedules.timing import Cron
from . import FAILED, output
from .context import opened
from .enqueue import WithNumbers, complete_task, read_arguments, wait_for
from .queues import confirm
from .schedule_status import in_words, reading
from .types import Span, read_moment

if TYPE_CHECKING:
    from ..app import PgCron
    from ..schedules.ticks import ScheduleView
    from ..task import Task

F = TypeVar("F", bound=Callable[..., Any])


@click.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait for the run and print its result; exit with 1 if it fails.")
@click.option("--timeout", type=Span(), metavar="SPAN", help="With --wait: wait at most this long. The run goes on.")
@click.pass_context
def run(ctx: click.Context, name: str, wait: bool, timeout: timedelta | None) -> None:
    """Run a schedule once now. Its ticks are unaffected, and it may be paused."""
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    with opened(ctx) as app:
        task = app.schedules.get(name).schedule.task
        handle = app.schedules.run_now(name)
        job = output.line(f"{task}#{handle.id}")
        if wait:
            output.echo(f"{job} enqueued, waiting for it", err=True)
            wait_for(handle, job, None if timeout is None else timeout.total_seconds())
            return
        output.echo(job)
        output.echo(f"To see its outcome: pgcron jobs show {handle.id}", err=True)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_context
def pause(ctx: click.Context, names: Sequence[str]) -> None:
    """Start no more runs of a schedule, across deploys too.

    A run under way goes on. Ticks that pass in the meantime are recorded, and not caught up.
    """

    def paused(app: PgCron, view: ScheduleView) -> str:
        app.schedules.pause(view.name)
        already = "was paused already" if view.paused_at else "is paused"
        return f"schedule {view.name!r} {already}. To go on: pgcron schedules resume {shlex.quote(view.name)}"

    _each(ctx, names, paused)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_context
def resume(ctx: click.Context, names: Sequence[str]) -> None:
    """End the pause of a schedule, and go on from now."""

    def resumed(app: PgCron, view: ScheduleView) -> str:
        app.schedules.resume(view.name)
        how = "goes on" if view.paused_at else "was not paused"
        if view.retired_at is not None:
            return f"schedule {view.name!r} {how}, but is retired: it runs when a live worker's code declares it"
        return f"schedule {view.name!r} {how}{_next(app.schedules.get(view.name), app.store.now())}"

    _each(ctx, names, resumed)


@click.command()
@click.argument("name")
@click.option("--since", required=True, metavar="TIME",
              help="The first tick, by the clock of the schedule (2026-03-28, 2026-03-28T12:00), in UTC"
              " (2026-03-28T12:00Z), or how long ago (2d).")
@click.option("--until", metavar="TIME", help="Ticks before this time, instead of up to now.")
@click.pass_context
def backfill(ctx: click.Context, name: str, since: str, until: str | None) -> None:
    """Run the past ticks of a schedule that have not run.

    All are due at once, and their task can see that they are caught up. Ticks that ran or are planned stay unchanged.
    """
    with opened(ctx) as app:
        schedule, now = app.schedules.get(name).schedule, app.store.now()
        first = _moment(since, schedule, now, "--since")
        last = None if until is None else _moment(until, schedule, now, "--until")
        made = app.schedules.backfill(name, first, last)
    if made:
        ids = f"#{made[0].id}" if len(made) == 1 else f"#{made[0].id} to #{made[-1].id}"
        output.echo(f"{output.count(len(made), 'run')} of {name!r} enqueued, {ids}")
        output.echo(f"To see the outcomes: pgcron schedules history {shlex.quote(name)}", err=True)
    else:
        output.echo("there is no tick in this time that has not run or is not planned", err=True)


def of_definition(command: F) -> F:
    """Add the options of `app.schedules.add`, with its defaults."""
    for option in reversed(
        (
            click.option("--tz", metavar="ZONE", default="UTC", show_default=True,
                         help="The time zone whose clock it follows."),
            click.option("--args", "as_json", metavar="TEXT",
                         help="All arguments as a JSON object (by name) or array (by position)."),
            click.option("--start", metavar="TIME", help="No ticks before this time."),
            click.option("--end", metavar="TIME", help="No ticks after this time."),
            click.option("--catch-up", type=click.Choice(get_args(CatchUp)),
                         help="Policy for missed ticks.  [default: latest]"),
            click.option("--start-within", metavar="SPAN",
                         help="Skip a run that cannot start within this of its tick."),
            click.option("--overlap", type=click.Choice(get_args(Overlap)),
                         help="If the last run is still going on.  [default: skip]"),
            click.option("--jitter", metavar="SPAN", help="Delay each run by up to this, always equally for a tick."),
            click.option("--max-runs", type=click.IntRange(1), metavar="N", help="End after N runs."),
            click.option("--after-finish", is_flag=True, help="Count an interval from the end of the last run."),
            click.option("--alert-after", metavar="SPAN", help="Raise an alarm if a run takes longer."),
            click.option("--ping", metavar="URL", help="Report start, success and failure there."),
            click.option("-q", "--queue", metavar="NAME", help="Another queue than the task's own."),
            click.option("--priority", type=int, metavar="N", help="Another than the task's own, from -100 to 100."),
            click.option("--max-attempts", type=click.IntRange(1), metavar="N", help="Others than the task's own."),
            click.option("--tag", "tags", multiple=True, metavar="WORD", help="Mark the jobs; may be repeated."),
        )
    ):
        command = option(command)
    return command


@click.command(cls=WithNumbers)
@click.argument("name")
@click.argument("when")
@click.argument("task", shell_complete=complete_task)
@click.argument("arguments", nargs=-1, metavar="[ARG | KEY=VALUE]...")
@of_definition
@click.option("--replace", is_flag=True, help="If one of that name was made at run time, give it this definition.")
@click.pass_context
def add(
    ctx: click.Context, /, name: str, when: str, task: str, arguments: Sequence[str], tz: str, as_json: str | None,
    start: str | None, end: str | None, replace: bool, **given: Any,
) -> None:
    """Put TASK on a schedule at run time.

    \b
    pgcron schedules add digest "0 7 * * mon-fri" mail.digest --tz Europe/Berlin
    pgcron schedules add sync "every 90s" shop.sync full=false

    The schedule is stored in the database until it is removed. ARGs are read as by `pgcron enqueue`.
    """  # fmt: skip
    clock = zone(tz).info
    options = {option: value for option, value in given.items() if value not in (None, ()) and value is not False}
    for option, text in (("start", start), ("end", end)):
        if text is not None:
            options[option] = read_moment(text, clock, f"--{option}")
    with opened(ctx, with_tasks=True) as app:
        found = app.find_task(task)
        options["args"] = _arguments(found, arguments, as_json)
        is_there = bool(app.store.schedules(name))
        if is_there and not replace:
            raise OptionError(f"there is a schedule {name!r} already; --replace gives it another definition")
        put = app.schedules.replace if is_there else app.schedules.add
        view = put(name, when, found, tz=tz, **options)
        done = "replaced" if is_there else "added"
        output.echo(f"schedule {name!r} {done}: {in_words(view.schedule)}{_next(view, app.store.now())}")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def remove(ctx: click.Context, names: Sequence[str], yes: bool) -> None:
    """Remove a schedule that was made at run time.

    A run under way goes on, planned runs are withdrawn, and the history stays. If the code of workers declares a
    schedule of the same name, that one is in force then.
    """
    confirm(f"Remove {', '.join(map(repr, names))}?", yes)

    def removed(app: PgCron, view: ScheduleView) -> str:
        app.schedules.remove(view.name)
        done = f"schedule {view.name!r} removed"
        declared = next(iter(app.store.schedules(view.name)), None)
        if declared is None:
            return done
        found, trouble = reading(declared)
        what = str(trouble) if found is None else in_words(found) + _next(declared, app.store.now())
        return f"{done}; the one declared in code is in force: {what}"

    _each(ctx, names, removed)


def _each(ctx: click.Context, names: Sequence[str], do: Callable[[PgCron, ScheduleView], str]) -> None:
    """Apply `do` to each schedule that exists; exit with 1 if that was not possible for all."""
    all_done = True
    with opened(ctx) as app:
        for name in dict.fromkeys(names):
            try:
                output.echo(output.line(do(app, app.schedules.get(name))))
            except (UnknownSchedule, OptionError) as error:
                all_done = False
                output.echo(str(error), err=True)
    if not all_done:
        ctx.exit(FAILED)


def _next(view: ScheduleView, now: datetime) -> str:
    due_at = view.next_due_at
    return "" if due_at is None else f"; next at {in_utc(due_at)}, {output.coming(due_at, now)}"


def _moment(text: str, schedule: Schedule, now: datetime, option: str) -> datetime:
    """Return the time that `text` names: a time, in the schedule's zone if it has none, or a duration before now."""
    if re.fullmatch(r"(?:[\d.]+[a-z]+)+", text):
        return now - durations.duration(text, name=option)
    timing = schedule.timing
    return read_moment(text, zone(timing.tz if isinstance(timing, Cron) else "UTC").info, option)


def _arguments(
    task: Task[..., Any], words: Sequence[str], as_json: str | None
) -> Sequence[Any] | Mapping[str, Any]:
    args, named = read_arguments(task, words, as_json, "--args")
    if not args or not named:
        return named or args
    try:
        placed = inspect.signature(task.function).bind_partial(*args)
    except TypeError as error:
        raise OptionError(f"{task.name}{inspect.signature(task.function)}: {error}") from None
    # Decoded values are never tuples: a tuple is what *args has collected.
    if any(isinstance(value, tuple) for value in placed.arguments.values()):
        raise click.UsageError("give these arguments as JSON: --args '{\"name\": \"value\"}'")
    return {**placed.arguments, **named}
