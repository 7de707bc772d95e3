"""`pgcron import-crontab`: turns the jobs of a crontab into schedules of the task that runs shell commands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click

from ...app import SHELL
from ...cli import FAILED, output
from ...cli.context import opened
from ...cli.schedule_status import in_words, reading
from ...cli.types import Span
from ...errors import OptionError
from ...schedules import api
from ...schedules.schedule import Schedule, schedule_name
from . import parser
from .parser import CrontabEntry, Problem

if TYPE_CHECKING:
    from ...app import PgCron
    from ...schedules.ticks import ScheduleView

Change = Literal["new", "changed", "same", "gone"]


@dataclass(frozen=True, slots=True)
class Import:
    """The options of one import."""

    prefix: str
    timeout: timedelta
    cwd: str | None = None

    @property
    def tag(self) -> str:
        """The tag of its schedules, by which the next import recognises them."""
        return f"crontab:{self.prefix}"

    def options(self, entry: CrontabEntry) -> dict[str, Any]:
        """Return the options of a job's schedule, without timing and task. They give it the behaviour of cron."""
        told = {
            "stdin": entry.stdin,
            "environment": dict(entry.environment) or None,
            # cron runs a command in the home folder, which the crontab may set.
            "cwd": self.cwd or entry.environment.get("HOME") or None,
        }
        args = {"command": entry.command, **{name: value for name, value in told.items() if value is not None}}
        return {
            "args": {**args, "timeout": self.timeout.total_seconds()},
            # As in cron, runs may overlap, and runs that were missed while the machine was off are skipped.
            "overlap": "allow",
            "catch_up": "skip",
            "tags": (self.tag,),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A job of the crontab, and the change to its schedule. `line` is 0 for a job that is no longer in the file."""

    line: int
    change: Change
    schedule: Schedule
    next_tick: datetime | None
    command: str


@click.command("import-crontab", short_help="Turn a crontab into schedules.")
@click.argument("file", type=click.File("rb"))
@click.option("--system", is_flag=True, help="Read a system crontab (/etc/crontab), with a user before each command.")
@click.option("--tz", metavar="ZONE", default="UTC", show_default=True, help="Its time zone, without CRON_TZ.")
@click.option("--prefix", metavar="P", default="cron-", show_default=True,
              help="Prefix of the schedules' names. Use one for each crontab.")
@click.option("--timeout", type=Span(), default="1d", show_default=True, metavar="SPAN",
              help="End a command after this time. cron has no such limit.")
@click.option("--cwd", metavar="FOLDER",
              help="Folder for commands, on the worker's machine. Default: HOME of the crontab, else the worker's own.")
@click.option("--prune", is_flag=True, help="Remove schedules of earlier imports that are no longer in the file.")
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

    They run as the task pgcron.shell, which the app has to enable: app.enable_shell(). A worker runs the commands as
    its own user, and exit code and output are kept with each job. As with cron, a run starts on time even if the last
    one is still running, a failed run is not repeated, and a run that cannot start within a minute of its time is
    skipped.

    Importing the same file again changes nothing: a schedule is replaced only when it differs. An edited line is a new
    job; the schedule of the old line stays until an import with --prune.

    Exits with 1 if some lines could not be imported, or only in part; all others are imported.
    """  # fmt: skip
    how = Import(prefix, timeout, cwd)
    schedule_name(prefix)
    entries, problems = parser.read(_text(file), system=system, tz=tz)
    with opened(ctx, with_tasks=True) as app:
        _check_shell(app)
        now = app.store.now()
        there = {view.name: view for view in app.schedules.list()}
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
        output.echo(f"line {problem.line}: {output.line(problem.why)}", err=True)
        output.echo(f"    {output.line(problem.text.strip())}", err=True)
    if gone and not prune:
        names = output.line(", ".join(view.name for view in gone))
        output.echo(f"no longer in the file, but scheduled until an import with --prune: {names}", err=True)
    _say_whose(entries)
    _sum_up(reports, problems, dry_run)
    if problems:
        ctx.exit(FAILED)


def take_over(
    app: PgCron, how: Import, entries: Iterable[CrontabEntry], problems: list[Problem], there: dict[str, ScheduleView],
    now: datetime, *, write: bool,
) -> Iterator[Report]:
    """Create or replace the schedule of each job. Add those that cannot be imported to `problems`."""  # fmt: skip
    task = app.find_task(SHELL)
    for entry in entries:
        name = f"{how.prefix}{entry.name}"
        try:
            made = api.make(schedule_name(name), entry.expression, task, entry.tz, how.options(entry))
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
            " made with PgCron(...), write: app.enable_shell(). From then on anyone who may write to the queue can run"
            " any command as the user of the worker."
        )


def _text(file: BinaryIO) -> str:
    # Text that is not UTF-8 is a problem of its line, not of the file.
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


def _say_whose(entries: Iterable[CrontabEntry]) -> None:
    users = sorted({entry.user for entry in entries if entry.user is not None})
    if users:
        names = output.line(", ".join(users))
        output.echo(f"the users are not imported ({names}): commands run as the user of the worker", err=True)


def _sum_up(reports: list[Report], problems: list[Problem], dry_run: bool) -> None:
    counts = {word: sum(each.change == word for each in reports) for word in ("new", "changed", "same", "gone")}
    told = ", ".join(f"{number:,} {word}" for word, number in counts.items() if number) or "no jobs"
    wrong = f"; {output.count(len(problems), 'problem')}" if problems else ""
    output.echo(f"{told}{wrong}{' (nothing was changed: --dry-run)' if dry_run else ''}", err=True)
