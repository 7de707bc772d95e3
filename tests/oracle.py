"""Reference implementation of ticks: go through the local clock step by step, and decide at each step if a job is due.

Independent of the code under test: expressions are not parsed, but written a second time in Python.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

Fits = Callable[[datetime], bool]

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Rule:
    """An expression, and the local times that match it. `fixed` is True if it names its hours."""

    expression: str
    fits: Fits
    fixed: bool = True


def is_last_sunday(r: datetime) -> bool:
    return r.weekday() == 6 and (r + 7 * DAY).month != r.month


RULES = [
    Rule("30 2 * * *", lambda r: (r.hour, r.minute) == (2, 30)),
    Rule("@daily", lambda r: r.hour == r.minute == 0),
    Rule("0 12 * * *", lambda r: (r.hour, r.minute) == (12, 0)),
    Rule("59 23 * * *", lambda r: (r.hour, r.minute) == (23, 59)),
    Rule("45 1 * * 1-5", lambda r: (r.hour, r.minute) == (1, 45) and r.weekday() < 5),
    Rule("*/15 2 * * *", lambda r: r.hour == 2 and r.minute % 15 == 0),
    Rule("0,30 23,0-3 * * *", lambda r: r.hour in (23, 0, 1, 2, 3) and r.minute in (0, 30)),
    Rule("5 0 L,30 * *", lambda r: (r.hour, r.minute) == (0, 5) and (r.day == 30 or (r + DAY).day == 1)),
    Rule("30 1 * * L0", lambda r: (r.hour, r.minute) == (1, 30) and is_last_sunday(r)),
    Rule("0 2 * 3,10 SUN#2", lambda r: r.minute == 0 and r.hour == 2 and r.month in (3, 10) and r.weekday() == 6
         and 8 <= r.day <= 14),
    Rule("10 2 8-14 * 0", lambda r: (r.hour, r.minute) == (2, 10) and (8 <= r.day <= 14 or r.weekday() == 6)),
    Rule("@hourly", lambda r: r.minute == 0, fixed=False),
    Rule("*/20 * * * *", lambda r: r.minute % 20 == 0, fixed=False),
    Rule("30 */2 * * *", lambda r: r.hour % 2 == 0 and r.minute == 30, fixed=False),
    Rule("15 1/3 * * *", lambda r: r.hour % 3 == 1 and r.minute == 15, fixed=False),
    Rule("0 0-23 * * 0", lambda r: r.minute == 0 and r.weekday() == 6, fixed=False),
]  # fmt: skip

RULES_OF_SECONDS = [
    Rule("59 1 * * * */20", lambda r: (r.hour, r.minute) == (1, 59) and r.second % 20 == 0),
    Rule("*/30 0-2 * * * 7", lambda r: r.hour < 3 and r.minute % 30 == 0 and r.second == 7),
    Rule("59 * * * * 58,59", lambda r: r.minute == 59 and r.second > 57, fixed=False),
    Rule("* * * * * */30", lambda r: r.second % 30 == 0, fixed=False),
]


class Wall:
    """The readings of a local clock from `start` to `end`, one per `step`."""

    def __init__(self, zone: zoneinfo.ZoneInfo, start: datetime, end: datetime, step: timedelta) -> None:
        self.step = step
        self.shown: list[tuple[datetime, datetime]] = []
        while start <= end:
            self.shown.append((start, start.astimezone(zone).replace(tzinfo=None)))
            start += step

    def ticks(self, rule: Rule) -> Iterator[datetime]:
        """Yield the due times of `rule`. The first days are needed to know which local times have occurred before."""
        seen: set[datetime] = set()
        before: datetime | None = None
        for instant, reading in self.shown:
            skipped = []
            if before is not None and rule.fixed:
                while (before := before + self.step) < reading:
                    skipped.append(before)
            new = [r for r in (*skipped, reading) if r not in seen] if rule.fixed else [reading]
            if any(map(rule.fits, new)):
                yield instant
            seen.update(new)
            before = reading


@dataclass(frozen=True)
class Change:
    """A clock change: the first instant after it, and the UTC offsets before and after."""

    zone: str
    instant: datetime
    before: timedelta
    after: timedelta

    @property
    def kind(self) -> tuple[object, ...]:
        """The size and the local time of the change. Changes of the same kind are equivalent."""
        return self.after - self.before, (self.instant + self.before).time()


def changes(name: str, start: datetime, end: datetime, step: timedelta) -> list[Change]:
    """Return the clock changes of a zone. All are found unless two fall into one `step`."""
    zone = zoneinfo.ZoneInfo(name)

    def ahead(at: datetime) -> timedelta:
        offset = at.astimezone(zone).utcoffset()
        assert offset is not None
        return offset

    found = []
    while start < end:
        if ahead(start) != ahead(start + step):
            low, high = start, start + step
            while high - low > MINUTE:
                middle = low + ((high - low) // 2 // MINUTE) * MINUTE
                low, high = (middle, high) if ahead(middle) == ahead(start) else (low, middle)
            found.append(Change(name, high, ahead(start), ahead(high)))
        start += step
    return found


def distinct(start: datetime, end: datetime, step: timedelta) -> Iterable[list[Change]]:
    """Return the clock changes of all zones, without duplicate histories."""
    histories = {}
    for name in sorted(zoneinfo.available_timezones()):
        found = changes(name, start, end, step)
        histories.setdefault(tuple((c.instant, c.before, c.after) for c in found), found)
    return histories.values()


YEARS = datetime(2000, 1, 1, tzinfo=UTC), datetime(2038, 1, 1, tzinfo=UTC)
