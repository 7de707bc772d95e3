"""Calendar of a cron expression: the next and the previous reading of a wall clock that matches it.

This is calendar arithmetic only: `parser` reads expressions, and `timezones` converts readings of a time zone.
Readings are seconds since 1970 on the wall clock.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from calendar import isleap
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date

from ..timezones import BEGIN, DAY, END

ALL_SECONDS = ALL_MINUTES = tuple(range(60))
ALL_HOURS = tuple(range(24))
ALL_DAYS = tuple(range(1, 32))
ALL_MONTHS = tuple(range(1, 13))
ALL_WEEKDAYS = tuple(range(7))  # from Sunday

# Maximum number of days in a month, by its number.
MONTH_LENGTHS = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

# As the number of a weekday, the last one of its month; as a day, the last day of the month.
LAST_ONE = -1

_EPOCH = date(1970, 1, 1).toordinal()
# One more day at each end: readings may be ahead of UTC or behind it.
_FIRST_DAY, _LAST_DAY = BEGIN.toordinal() - _EPOCH - 1, END.toordinal() - _EPOCH + 1


@dataclass(frozen=True, slots=True)
class Pattern:
    """The values of each field, sorted. `days` and `weekdays` are None if their field does not restrict the day.

    `days` may contain `LAST_ONE`. `nth` are weekdays with their number in the month. If both `days` and `weekdays`
    restrict, a day matches if it matches either. `fixed` is True if the hours are named without a wildcard or a step.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    months: tuple[int, ...]
    weekdays: tuple[int, ...] | None
    nth: tuple[tuple[int, int], ...] = ()
    fixed: bool = True
    _times: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _is_daily: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_times", _times(self.hours, self.minutes))
        free = self.days is None and self.weekdays is None and not self.nth
        object.__setattr__(self, "_is_daily", free and self.months == ALL_MONTHS)

    def at_or_after(self, reading: int) -> int | None:
        """Return the first match that is not before `reading`; None if there is none before the year 9000."""
        day, second = divmod(reading, DAY)
        found = self._day_from(day)
        if found == day:
            minute, second = divmod(second, 60)
            place = bisect_left(self._times, minute)
            if place < len(self._times):
                if self._times[place] > minute:
                    return day * DAY + self._times[place] * 60 + self.seconds[0]
                rest = bisect_left(self.seconds, second)
                if rest < len(self.seconds):
                    return day * DAY + minute * 60 + self.seconds[rest]
                if place + 1 < len(self._times):
                    return day * DAY + self._times[place + 1] * 60 + self.seconds[0]
            found = self._day_from(day + 1)
        return None if found is None else found * DAY + self._times[0] * 60 + self.seconds[0]

    def at_or_before(self, reading: int) -> int | None:
        """Return the last match that is not after `reading`; None if there is none since 1900."""
        day, second = divmod(reading, DAY)
        found = self._day_back_from(day)
        if found == day:
            minute, second = divmod(second, 60)
            place = bisect_right(self._times, minute) - 1
            if place >= 0:
                if self._times[place] < minute:
                    return day * DAY + self._times[place] * 60 + self.seconds[-1]
                rest = bisect_right(self.seconds, second) - 1
                if rest >= 0:
                    return day * DAY + minute * 60 + self.seconds[rest]
                if place > 0:
                    return day * DAY + self._times[place - 1] * 60 + self.seconds[-1]
            found = self._day_back_from(day - 1)
        return None if found is None else found * DAY + self._times[-1] * 60 + self.seconds[-1]

    def _day_from(self, day: int) -> int | None:
        if self._is_daily:
            return day if day <= _LAST_DAY else None
        for month, days in self._months_from(day):
            for number in days:
                if month + number - 1 >= day:
                    return month + number - 1
        return None

    def _day_back_from(self, day: int) -> int | None:
        if self._is_daily:
            return day if day >= _FIRST_DAY else None
        for month, days in self._months_from(day, step=-1):
            for number in reversed(days):
                if month + number - 1 <= day:
                    return month + number - 1
        return None

    def _months_from(self, day: int, step: int = 1) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield the month of `day` and those that follow it by `step`: its first day, and its matching days."""
        start = date.fromordinal(day + _EPOCH)
        year, month = start.year, start.month
        while True:
            if month in self.months:
                first = date(year, month, 1).toordinal() - _EPOCH
                if not _FIRST_DAY - 31 <= first <= _LAST_DAY:
                    return
                # 1970 began on a Thursday.
                shape = (first + 4) % 7, 28 if month == 2 and not isleap(year) else MONTH_LENGTHS[month]
                yield first, _days(self.days, self.weekdays, self.nth, *shape)
            years, month = divmod(month - 1 + step, 12)
            year, month = year + years, month + 1


# A few hundred schedules have only a dozen different combinations.
@functools.lru_cache(maxsize=1024)
def _times(hours: tuple[int, ...], minutes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(hour * 60 + minute for hour in hours for minute in minutes)


# A month has one of 28 shapes, by the weekday of its first day and its length.
@functools.lru_cache(maxsize=8192)
def _days(
    days: tuple[int, ...] | None,
    weekdays: tuple[int, ...] | None,
    nth: tuple[tuple[int, int], ...],
    first_weekday: int,
    length: int,
) -> tuple[int, ...]:
    month = range(1, length + 1)
    if nth:
        return tuple(day for day in month if any(_is_nth(day, length, first_weekday, *each) for each in nth))
    if days is None and weekdays is None:
        return tuple(month)
    named = {length if day == LAST_ONE else day for day in days or ()}
    of_week = {day for day in month if (first_weekday + day - 1) % 7 in (weekdays or ())}
    return tuple(day for day in month if day in named | of_week)


def _is_nth(day: int, length: int, first_weekday: int, weekday: int, number: int) -> bool:
    if (first_weekday + day - 1) % 7 != weekday:
        return False
    return day + 7 > length if number == LAST_ONE else (day - 1) // 7 + 1 == number
