"""`pgcron cron`: explain an expression, and print its next ticks. Needs neither an app nor a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import click

from ..schedules.timezones import zone
from ..schedules.timing import Cron, Every, read_timing
from . import output
from .types import read_moment


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

    Quote it, or the shell replaces the stars with the names of your files.
    """
    if len(expression) > 1 and any(Path(word).exists() for word in expression):
        raise click.UsageError("the shell has replaced a star with names of files; quote the expression: '* * * * *'")
    timing = read_timing(" ".join(expression), tz)
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
    output.echo(f"{timing.words[0].upper()}{timing.words[1:]}{_where(timing, tz)}.")
    output.echo()
    print_ticks(ticks)


def print_ticks(ticks: list[dict[str, Any]]) -> None:
    """Print the results of `tick_fields` in columns."""
    rows = [(_day(each["local"]), each["local"][-6:], each["tick"], each["note"] or "") for each in ticks]
    output.print_table(("LOCAL", "OFFSET", "UTC", "NOTE"), rows)


def tick_fields(timing: Cron | Every, tick: datetime, zone: tzinfo) -> dict[str, Any]:
    """Return a tick as `--json` prints it: its time in UTC, its local time, and a note if the clocks change."""
    note = timing.note(tick) if isinstance(timing, Cron) else None
    return {"tick": output.iso(tick), "local": tick.astimezone(zone).isoformat(), "note": note}


def _day(local: str) -> str:
    return f"{datetime.fromisoformat(local):%a} {local[:-6].replace('T', ' ')}"


def _where(timing: Cron | Every, tz: str) -> str:
    return f", in {tz}" if isinstance(timing, Cron) else ", on a grid that the name of the schedule decides"
