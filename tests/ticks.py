"""Ticks that no release of ours, of croniter or of Python may move: `data/ticks.json`, and how it is made.

``python tests/ticks.py --write`` writes it anew, which is right only after a change of the rule. All of it lies in
years whose time zones are settled, so newer zone data changes nothing either.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pgcron_lite.schedules.timing import Cron, Every, jitter_of

FILE = Path(__file__).parent / "data" / "ticks.json"

AROUND_CHANGES = [
    "30 2 * * *", "0 0 * * *", "0 0,12 * * *", "*/15 2 * * *", "30 1-3 * * *", "0 * * * *", "*/30 * * * *",
    "0 */2 * * *", "45 1,23 * * * 30",
]  # fmt: skip

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)

# Days of changes, with the two days around each.
CHANGES = {
    "UTC": ["2025-03-30"],
    "Europe/Berlin": ["2000-03-26", "2025-03-30", "2025-10-26"],
    "Europe/London": ["2024-03-31", "2024-10-27"],
    "America/New_York": ["2006-04-02", "2007-03-11", "2024-11-03"],
    "America/Sao_Paulo": ["2018-02-18", "2018-11-04"],  # at midnight
    "America/Havana": ["2010-03-14", "2010-10-31"],
    "Asia/Beirut": ["2022-03-27", "2021-10-31"],
    "Asia/Amman": ["2015-03-27", "2015-10-30"],
    "Atlantic/Azores": ["2010-03-28", "2010-10-31"],
    "Africa/Casablanca": ["2019-05-05", "2019-06-09"],  # Ramadan
    "Antarctica/Troll": ["2015-03-29", "2015-10-25"],  # by two hours
    "Australia/Lord_Howe": ["2020-04-05", "2020-10-04"],  # by half an hour
    "Pacific/Chatham": ["2020-04-05", "2020-09-27"],  # at a quarter to
    "Pacific/Apia": ["2011-12-30"],  # a day that never was
    "America/Caracas": ["2007-12-09", "2016-05-01"],
    "Asia/Pyongyang": ["2018-05-04"],
    "Asia/Kolkata": ["2020-01-01"],
}

# The first ticks since 2000.
OF_CALENDARS = [
    "@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually", "* * * * *", "*/5 9-17 * * 1-5",
    "0 0 29 2 *", "0 0 31 * *", "0 0 L * *", "0 0 15,L 2 *", "0 9 * * L5", "0 9 * * FRI#2", "0 9 * 2 6#5", "0 0 13 * 5",
    "0 0 1-7 * MON", "15 10 * JAN-MAR,OCT SAT-SUN", "0 22-2 * * FRI-MON", "0 0 * * 7", "0 0 */10 * *",
    "5/20 4/8 ? */5 ?",
    "* * * * * *", "* * * * * */25", "0 2 1 1 * 30", "59 23 31 12 * 59",
]  # fmt: skip


def made() -> dict[str, Any]:
    """What the file must hold."""
    return {
        "around changes": {zone: _around(zone, days) for zone, days in CHANGES.items()},
        "of calendars": {expression: _of_calendar(expression) for expression in OF_CALENDARS},
        "every": {f"{span} of {name}": _of_grid(span, name) for span in ("1s", "45s", "90s", "1d") for name in "ab"},
        "jitter of a minute": {name: str(jitter_of(name, JANUARY, timedelta(minutes=1))) for name in ("a", "b", "é")},
    }


def _around(zone: str, days: list[str]) -> dict[str, str]:
    found = {}
    for expression in AROUND_CHANGES:
        ticks = []
        for day in days:
            noon = datetime.fromisoformat(f"{day}T12:00Z")
            ticks += Cron(expression, zone).between(noon - timedelta(days=1), noon + timedelta(days=1))
        found[expression] = " ".join(tick.astimezone(ZoneInfo(zone)).isoformat() for tick in ticks)
    return found


def _of_calendar(expression: str) -> str:
    cron, tick, found = Cron(expression), datetime(2000, 1, 1, tzinfo=UTC), []
    while len(found) < 12 and (tick := cron.next(tick) or tick).year < 2025:
        found.append(tick.isoformat())
    return " ".join(found)


def _of_grid(every: str, name: str) -> str:
    tick = Every(every, name=name).next(JANUARY)
    assert tick is not None
    return tick.isoformat()


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/ticks.py --write")
    FILE.write_text(json.dumps(made(), indent=1) + "\n", "utf-8")
