"""Cron expressions in English: "at 02:30 every day", "every 5 minutes from 09:00 to 17:55, Monday to Friday".

A description depends on the values and not on the text, so two ways to write one schedule have the same description.
A schedule without a short form is described field by field. No two schedules have the same description.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from .calendar import ALL_HOURS, ALL_MINUTES, ALL_MONTHS, ALL_SECONDS, LAST_ONE, Pattern

MONTHS = (
    "", "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
NUMBERS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", LAST_ONE: "last"}

# Maximum number of times of day, and of values of a field, that are listed one by one.
_FEW_TIMES, _FEW_VALUES = 4, 6


def describe(pattern: Pattern) -> str:
    """Return `pattern` in words, to follow "it runs"."""
    times, is_whole_day = _times(pattern)
    days = _days(pattern)
    if not days and is_whole_day:
        return times
    # "at 09:00 on Mondays", but "at 09:00, Monday to Friday" and "every 5 minutes, on Mondays".
    is_plain = times.startswith("at ") and " of " not in times and not days[:1].isupper()
    return f"{times}{'' if is_plain else ','} {days or 'every day'}"


# Times of day.

def _times(pattern: Pattern) -> tuple[str, bool]:
    """Return the times of day in words, and True if they cover the whole day."""
    seconds, minutes, hours = pattern.seconds, pattern.minutes, pattern.hours
    if len(seconds) * len(minutes) * len(hours) <= _FEW_TIMES:
        return f"at {_list(_clock(h, m, s, pattern) for h in hours for m in minutes for s in seconds)}", False
    pace = _pace(pattern)
    if pace and hours == ALL_HOURS:
        return pace, True
    if pace and (span := _run(hours)):
        first = _clock(span[0], minutes[0], seconds[0], pattern)
        return f"{pace} from {first} to {_clock(span[1], minutes[-1], seconds[-1], pattern)}", False
    if len(minutes) == 1 and len(seconds) == 1 and (step := _step(hours)) and hours != ALL_HOURS:
        first, last = (_clock(hour, minutes[0], seconds[0], pattern) for hour in (hours[0], hours[-1]))
        return f"every {_units(step, 'hour')} from {first} to {last}", False
    return _by_fields(pattern), hours == ALL_HOURS


def _pace(pattern: Pattern) -> str:
    """Return the interval within its hours, or "" if it is not even: every hour, every 5 minutes, every 10 seconds."""
    seconds, minutes = pattern.seconds, pattern.minutes
    if minutes == ALL_MINUTES and (step := _even(seconds, ALL_SECONDS)):
        return f"every {_units(step, 'second')}"
    if seconds == (0,) and (step := _even(minutes, ALL_MINUTES)):
        return f"every {_units(step, 'minute')}"
    if seconds == minutes == (0,):
        return "every hour"
    return ""


def _by_fields(pattern: Pattern) -> str:
    """Return the times of day field by field: at second 30 of minutes 5 to 9 of every hour."""
    parts = []
    if pattern.seconds != (0,):
        parts.append("every second" if pattern.seconds == ALL_SECONDS else f"second{_values(pattern.seconds)}")
    parts.append("every minute" if pattern.minutes == ALL_MINUTES else f"minute{_values(pattern.minutes)}")
    parts.append("every hour" if pattern.hours == ALL_HOURS else f"hour{_values(pattern.hours)}")
    return "at " + " of ".join(parts)


def _clock(hour: int, minute: int, second: int, pattern: Pattern) -> str:
    return f"{hour:02}:{minute:02}" + (f":{second:02}" if pattern.seconds != (0,) else "")


# Days.

def _days(pattern: Pattern) -> str:
    """Return the days in words; "" if it is every day."""
    months = "" if pattern.months == ALL_MONTHS else _named(pattern.months, MONTHS)
    of = f" of {months}" if months else " of the month"
    if pattern.nth:
        return f"on {_list(f'the {NUMBERS[number]} {WEEKDAYS[day]}' for day, number in pattern.nth)}{of}"
    within = f" in {months}" if months else ""
    if pattern.days is None:
        return _weekdays(pattern, within) if pattern.weekdays else f"every day{within}" if within else ""
    named = _named_days(pattern.days, months)
    if pattern.weekdays is None:
        return named
    return f"{named}, and also {_weekdays(pattern, within)}"


def _weekdays(pattern: Pattern, within: str) -> str:
    # A week that begins on Monday has its Sunday last.
    found = sorted(pattern.weekdays or (), key=lambda day: (day - 1) % 7)
    if len(found) > 2 and _run([(day - 1) % 7 for day in found]):
        return f"{WEEKDAYS[found[0]]} to {WEEKDAYS[found[-1]]}{within}"
    return f"on {_list(f'{WEEKDAYS[day]}s' for day in found)}{within}"


def _named_days(days: Sequence[int], months: str) -> str:
    of = f" of {months}" if months else " of the month"
    numbers = [day for day in days if day != LAST_ONE]
    last = ["the last day"] if LAST_ONE in days else []
    if not numbers:
        return f"on {last[0]}{of}"
    return f"on {_list([f'day{_values(numbers)}', *last])}{of}"


def _named(found: Sequence[int], names: Sequence[str]) -> str:
    return _list(_ranges(found, names))


# Lists.

def _values(found: Sequence[int]) -> str:
    """Return the text that follows the name of a field: " 5", "s 0, 20 and 40", "s 1 to 7 and 15"."""
    if len(found) > _FEW_VALUES and (step := _step(found) or 1) > 1:
        return f"s {found[0]} to {found[-1]} in steps of {step}"
    return f"{'s' * (len(found) > 1)} {_list(_ranges(found))}"


def _ranges(found: Sequence[int], names: Sequence[str] | None = None) -> list[str]:
    """Return the values as texts, three or more in a row as a range."""
    runs: list[list[int]] = []
    for value in found:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    words = []
    for run in runs:
        texts = [names[value] if names else str(value) for value in run]
        words += [f"{texts[0]} to {texts[-1]}"] if len(run) > 2 else texts
    return words


def _run(found: Sequence[int]) -> tuple[int, int] | None:
    """Return the first and the last value, or None if one between them is missing."""
    return (found[0], found[-1]) if found[-1] - found[0] == len(found) - 1 else None


def _step(found: Sequence[int]) -> int | None:
    """Return the distance if there are at least three values and it is the same between all, else None."""
    steps = {after - before for before, after in itertools.pairwise(found)}
    return steps.pop() if len(found) > 2 and len(steps) == 1 else None


def _even(found: Sequence[int], whole: Sequence[int]) -> int | None:
    """Return the distance if it is the same over the whole field, from 0 back to 0, else None."""
    if len(found) < 2 or len(whole) % len(found):
        return None
    step = len(whole) // len(found)
    return step if list(found) == list(whole[::step]) else None


def _units(number: int, unit: str) -> str:
    return unit if number == 1 else f"{number} {unit}s"


def _list(words: Iterable[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last
