"""`pgcron import-crontab`: the jobs of a crontab as schedules of the task that runs commands of the shell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click

from .. import crontab, schedules
from ..app import SHELL
from ..crontab import Entry, Problem
from ..errors import OptionError
from ..plan import Schedule, schedule_name
from . import FAILED, output
from .opening import opened
from .standing import in_words, reading
from .words import Span

if TYPE_CHECKING:
    from ..app import PgCron
    from ..ticks import ScheduleView

Change = Literal["new", "changed", "same", "gone"]


@dataclass(frozen=True, slots=True)
class Import:
    """How the jobs of one crontab become schedules."""

    prefix: str
    timeout: timedelta
    cwd: str | None = None

    @property
    def tag(self) -> str:
        """What marks them, so that the next import knows them again."""
        return f"crontab:{self.prefix}"

    def options(self, entry: Entry) -> dict[str, Any]:
        """The schedule of a job, but for when and what: it does what cron does."""
        told = {
            "stdin": entry.stdin,
            "environment": dict(entry.environment) or None,
            # cron goes to the home folder, which may have been set in the crontab.
            "cwd": self.cwd or entry.environment.get("HOME") or None,
        }
        args = {"command": entry.command, **{name: value for name, value in told.items() if value is not None}}
        return {
            "args": {**args, "timeout": self.timeout.total_seconds()},
            # Runs that overlap, run; what the machine slept through is over.
            "overlap": "allow",
            "catch_up": "skip",
            "tags": (self.tag,),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A job of the crontab, and what becomes of its schedule. `line` is 0 for one that is not in the file any more."""

    line: int
    change: Change
    schedule: Schedule
    next_tick: datetime | None
    command: str


@click.command("import-crontab", short_help="Turn a crontab into schedules.")
@click.argument("file", type=click.File("rb"))
@click.option("--system", is_flag=True, help="It is like /etc/crontab: a user stands before each command.")
@click.option("--tz", metavar="ZONE", default="UTC", show_default=True, help="Whose clock it follows, without CRON_TZ.")
@click.option("--prefix", metavar="P", default="cron-", show_default=True,
              help="How the names begin. One for each crontab.")
@click.option("--timeout", type=Span(), default="1d", show_default=True, metavar="SPAN",
              help="When a command is ended. cron has no such limit.")
@click.option("--cwd", metavar="FOLDER",
              help="Where commands run, on the worker's machine. Default: HOME of the crontab, else the worker's own.")
@click.option("--prune", is_flag=True, help="Remove schedules of earlier imports that are not in the file any more.")
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done.")
@output.as_json
@click.pass_context
def import_crontab(
    ctx: click.Context, /, file: BinaryIO, system: bool, tz: str, prefix: str, timeout: timedelta, cwd: str | None,
    prune: bool, dry_run: bool, as_json: bool,
) -> None:
    """Turn the jobs of the crontab FILE (or - for standard input) into schedules.

    \b
    crontab -l | pgcron import-crontab - --tz Europe/Berlin --dry-run

    They run as the task pgcron.shell, which the app has to enable: app.enable_shell(). A worker runs the commands, as
    its own user, and exit code and output are kept with each job. As with cron, a run starts on time even if the last
    one is still going on, one that fails is not repeated, and what cannot start within a minute of its time is left
    out.

    The same file again changes nothing: a schedule is replaced only when it differs. A line that was edited is another
    job; the one it was before goes on until an import with --prune.

    Exits with 1 if some lines could not be taken over, or not in every respect; all others are.
    """  # fmt: skip
    how = Import(prefix, timeout, cwd)
    schedule_name(prefix)
    entries, problems = crontab.read(_text(file), system=system, tz=tz)
    with opened(ctx, with_tasks=True) as app:
        _check_shell(app)
        now = app.store.now()
        there = {view.name: view for view in app.schedules.all()}
        reports = list(take_over(app, how, entries, problems, there, now, write=not dry_run))
        kept = {report.schedule.name for report in reports}
        gone = [view for view in there.values() if _is_ours(view, how) and view.name not in kept]
        if prune:
            reports += [_removed(app, view, write=not dry_run) for view in gone]
    problems.sort(key=lambda problem: problem.line)
    if as_json:
        _print_json(reports, problems)
    else:
        _print(reports, now)
    for problem in problems:
        click.echo(f"line {problem.line}: {output.line(problem.why)}", err=True)
        click.echo(f"    {output.line(problem.text.strip())}", err=True)
    if gone and not prune:
        names = output.line(", ".join(view.name for view in gone))
        click.echo(f"not in the file any more, and going on until an import with --prune: {names}", err=True)
    _say_whose(entries)
    _sum_up(reports, problems, dry_run)
    if problems:
        ctx.exit(FAILED)


def take_over(
    app: PgCron, how: Import, entries: Iterable[Entry], problems: list[Problem], there: dict[str, ScheduleView],
    now: datetime, *, write: bool,
) -> Iterator[Report]:
    """Make or replace the schedule of each job. What cannot be taken over is added to `problems`."""  # fmt: skip
    task = app.find_task(SHELL)
    for entry in entries:
        name = f"{how.prefix}{entry.name}"
        try:
            made = schedules.make(app, schedule_name(name), entry.expression, task, entry.tz, how.options(entry))
            change = _change(there.get(name), made, how)
            if write and change != "same":
                put = app.schedules.add if change == "new" else app.schedules.replace
                put(name, entry.expression, task, tz=entry.tz, **how.options(entry))
        except OptionError as error:
            problems.append(Problem(entry.line, entry.command, str(error)))
        else:
            yield Report(entry.line, change, made, made.timing.next(now), entry.command)


def _change(view: ScheduleView | None, made: Schedule, how: Import) -> Change:
    if view is None:
        return "new"
    if not _is_ours(view, how):
        raise OptionError(f"there is a schedule {view.name!r} that no import has made; choose another --prefix")
    return "same" if view.definition == made.dumps() else "changed"


def _is_ours(view: ScheduleView, how: Import) -> bool:
    schedule, _ = reading(view)
    return schedule is not None and view.origin == "hand" and schedule.task == SHELL and how.tag in schedule.tags


def _removed(app: PgCron, view: ScheduleView, *, write: bool) -> Report:
    if write:
        app.schedules.remove(view.name)
    schedule = view.schedule
    return Report(0, "gone", schedule, None, str(json.loads(schedule.args)["command"]))


def _check_shell(app: PgCron) -> None:
    if SHELL not in app.tasks:
        raise OptionError(
            f"the commands of a crontab run as the task {SHELL!r}, which app {app.name!r} does not have. Where it is"
            " made with PgCron(...), write: app.enable_shell(). From then on whoever may write to the queue can run"
            " any command as the user of the worker."
        )


def _text(file: BinaryIO) -> str:
    # What is no UTF-8 is a problem of its line, and not of the file.
    return file.read().decode("utf-8", "surrogateescape")


# What is printed

def _print(reports: list[Report], now: datetime) -> None:
    output.print_table(
        ("LINE", "CHANGE", "NAME", "NEXT (UTC)", "WHEN", "COMMAND"),
        [
            (
                each.line or "-", each.change, each.schedule.name, output.upcoming(each.next_tick, now),
                in_words(each.schedule), each.command,
            )
            for each in reports
        ],
        right="LINE",
    )


def _print_json(reports: list[Report], problems: list[Problem]) -> None:
    for each in reports:
        timing = each.schedule.timing
        output.print_json(
            {
                "line": each.line or None,
                "change": each.change,
                "schedule": each.schedule.name,
                "timing": str(timing),
                "tz": getattr(timing, "tz", None),
                "words": timing.words,
                "next_tick": output.iso(each.next_tick),
                "command": each.command,
            }
        )
    for problem in problems:
        text = problem.text.encode("utf-8", "backslashreplace").decode()
        output.print_json({"line": problem.line, "change": None, "problem": problem.why, "text": text})


def _say_whose(entries: Iterable[Entry]) -> None:
    users = sorted({entry.user for entry in entries if entry.user is not None})
    if users:
        names = output.line(", ".join(users))
        click.echo(f"the users are not taken over ({names}): commands run as the user of the worker", err=True)


def _sum_up(reports: list[Report], problems: list[Problem], dry_run: bool) -> None:
    counts = {word: sum(each.change == word for each in reports) for word in ("new", "changed", "same", "gone")}
    told = ", ".join(f"{number:,} {word}" for word, number in counts.items() if number) or "no jobs"
    wrong = f"; {output.count(len(problems), 'problem')}" if problems else ""
    click.echo(f"{told}{wrong}{' (nothing was changed: --dry-run)' if dry_run else ''}", err=True)
