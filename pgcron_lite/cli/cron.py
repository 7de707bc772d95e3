"""`pgcron cron`: what an expression means, and when it is due next. Needs neither an app nor a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import click

from .. import schedule
from ..zone import zone
from . import output
from .words import read_moment


@click.command(short_help="Explain a cron expression, and print its next ticks.")
@click.argument("expression", nargs=-1, required=True)
@click.option("--tz", metavar="ZONE", default="UTC", show_default=True, help="The time zone whose clock it follows.")
@click.option(
    "--from", "since", metavar="TIME",
    help="Ticks from this time on instead of now: 2026-03-28, 2026-03-28T12:00 (in ZONE) or 2026-03-28T12:00Z.",
)
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=5, show_default=True, metavar="N", help="How many ticks."
)
@output.as_json
def cron(expression: tuple[str, ...], tz: str, since: str | None, count: int, as_json: bool) -> None:
    """Explain EXPRESSION, and print its next ticks.

    \b
    pgcron cron "30 2 * * *" --tz Europe/Berlin
    pgcron cron "every 90s"

    Quote it, or the shell puts the names of your files in place of the stars.
    """
    if len(expression) > 1 and any(Path(word).exists() for word in expression):
        raise click.UsageError("the shell has put names of files in place of a star; quote the expression: '* * * * *'")
    timing = schedule.read(" ".join(expression), tz)
    info = zone(tz).info
    after = datetime.now(UTC) if since is None else read_moment(since, info, "--from") - timedelta(microseconds=1)
    ticks: list[dict[str, Any]] = []
    while len(ticks) < count and (tick := timing.next(after)) is not None:
        ticks.append(tick_fields(timing, tick, info))
        after = tick
    if as_json:
        for fields in ticks:
            output.print_json({"expression": str(timing), "tz": tz, "words": timing.words, **fields})
        return
    click.echo(f"{timing.words[0].upper()}{timing.words[1:]}{_where(timing, tz)}.\n")
    print_ticks(ticks)


def print_ticks(ticks: list[dict[str, Any]]) -> None:
    """What `tick_fields` says, in columns."""
    rows = [(_day(each["local"]), each["local"][-6:], each["tick"], each["note"] or "") for each in ticks]
    output.print_table(("LOCAL", "OFFSET", "UTC", "NOTE"), rows)


def tick_fields(timing: schedule.Cron | schedule.Every, tick: datetime, zone: tzinfo) -> dict[str, Any]:
    """A tick as `--json` has it: its time, what the clock shows there, and what there is to know about it."""
    note = timing.note(tick) if isinstance(timing, schedule.Cron) else None
    return {"tick": output.iso(tick), "local": tick.astimezone(zone).isoformat(), "note": note}


def _day(local: str) -> str:
    return f"{datetime.fromisoformat(local):%a} {local[:-6].replace('T', ' ')}"


def _where(timing: schedule.Cron | schedule.Every, tz: str) -> str:
    return f", in {tz}" if isinstance(timing, schedule.Cron) else ", on a grid that the name of the schedule decides"
