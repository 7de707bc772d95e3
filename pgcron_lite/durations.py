"""Durations and moments as people write them: "90s", "1h30m", a number of seconds, a timedelta, a datetime.

Arithmetic only: the database decides what "now" is.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from reprlib import repr as short
from typing import NoReturn

from .errors import OptionError

FORMS = 'a duration such as "90s", "10m", "1h30m", "2d", "1w", "500ms", a number of seconds, or a timedelta'
# Longer than any useful duration, and within the range that timedelta and PostgreSQL can add to a date.
MAX_DURATION = timedelta(days=36525)

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([^\W\d_]*)\s*")
_MICROSECOND = timedelta(microseconds=1)


def duration(value: str | int | float | timedelta, *, name: str) -> timedelta:
    """Return `value` as a span from zero to 100 years. `name` is the option that `OptionError` names."""
    if isinstance(value, timedelta):
        return _within(value, value, name)
    if isinstance(value, str):
        return _within(_parsed(value, name), value, name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _within(_seconds(value, name), value, name)
    _refuse(name, value, f"is of type {type(value).__name__}")


def due(value: str | int | float | timedelta | datetime, *, name: str = "execute_after") -> timedelta | datetime:
    """Return `value` as a due time: a span from now, or a moment in UTC, which may be in the past."""
    if isinstance(value, datetime):
        return _moment(value, name)
    _refuse_day(value, name)
    if isinstance(value, str) and re.match(r"\s*[0-9]{4}-[0-9]{2}", value):
        raise OptionError(
            f"{name}={short(value)} is the text of a moment; expected a datetime with a time zone, or {FORMS}."
            f" Write datetime.fromisoformat(...), and .replace(tzinfo=UTC) if the text names no zone."
        )
    if isinstance(value, int | float) and 1_000_000_000 <= value <= MAX_DURATION.total_seconds():
        raise OptionError(
            f"{name}={value!r} would be {value / 31_557_600:,.0f} years from now; it looks like a Unix timestamp."
            f" Write datetime.fromtimestamp({value!r}, UTC), or a timedelta if you mean a span."
        )
    return duration(value, name=name)


def spoken(span: timedelta) -> str:
    """Return `span` in the form that `duration` reads: "1h 30m", "250ms", "0s"; with a minus sign if it is negative."""
    if span < timedelta(0):
        return "-" + spoken(-span)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, span = divmod(span, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    if span:
        parts.append(f"{span / _UNITS['ms']:g}ms")
    return " ".join(parts) or "0s"


def in_utc(moment: datetime) -> str:
    """Return `moment` as text, to the second: "2026-03-29 01:00:00 UTC"."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _parsed(text: str, name: str) -> timedelta:
    seen: set[str] = set()
    total, position = timedelta(0), 0
    while position < len(text) or not seen:
        part = _PART.match(text, position)
        if part is None:
            _refuse(name, text, "is not a duration")
        number, unit = part.groups()
        if unit not in _UNITS or unit in seen:
            _refuse(name, text, _unit_problem(number, unit, seen))
        seen.add(unit)
        position = part.end()
        total += _times(number, unit, name, text)
    return total


def _unit_problem(number: str, unit: str, seen: set[str]) -> str:
    if unit in seen:
        return f"names the unit {unit!r} twice"
    if not unit:
        return f'has no unit after {short(number)[1:-1]}; "{short(number)[1:-1]}s" would be seconds'
    return f"has the unit {short(unit)}; the units are {', '.join(_UNITS)}"


def _times(number: str, unit: str, name: str, text: str) -> timedelta:
    # In Decimal, so that "0.1s" is exact and a thousand digits do not overflow.
    count = Decimal(number)
    if count > MAX_DURATION / _UNITS["ms"]:
        _refuse_long(name, text)
    return int((count * (_UNITS[unit] // _MICROSECOND)).to_integral_value()) * _MICROSECOND


def _seconds(value: int | float, name: str) -> timedelta:
    if value != value:
        _refuse(name, value, "is not a number")
    if value > MAX_DURATION.total_seconds():
        _refuse_long(name, value)
    if value < 0:  # before rounding to microseconds makes it zero
        _refuse(name, value, "is negative")
    return timedelta(seconds=value)


def _within(span: timedelta, value: object, name: str) -> timedelta:
    if span < timedelta(0):
        _refuse(name, value, "is negative")
    if span > MAX_DURATION:
        _refuse_long(name, value)
    return span


def _refuse_day(value: object, name: str) -> None:
    if isinstance(value, date):
        raise OptionError(
            f"{name}={value!r} has no time of day; expected a datetime with a time zone."
            " Write datetime(2026, 3, 1, 9, 0, tzinfo=ZoneInfo('Europe/Berlin'))."
        )


def _moment(value: datetime, name: str) -> datetime:
    if value.utcoffset() is None:
        raise OptionError(
            f"{name}={value!r} has no time zone, so the database would read it in whatever zone its session is in."
            " Write datetime.now(UTC) + ..., or .replace(tzinfo=ZoneInfo('Europe/Berlin'))."
        )
    # Year 1 may leave the calendar in the conversion to UTC, and Python cannot read PostgreSQL's dates after 9999.
    if not 1 < value.year <= 9000:
        raise OptionError(
            f"{name}={value!r} is not a moment in a year from 2 to 9000. To run the job at once, leave it out."
        )
    return value.astimezone(UTC)


def _refuse_long(name: str, value: object) -> NoReturn:
    _refuse(name, value, "is longer than 100 years")


def _refuse(name: str, value: object, problem: str) -> NoReturn:
    try:
        shown = short(value)
    except ValueError:  # an int of thousands of digits, which Python refuses to write
        shown = f"<{type(value).__name__}>"
    raise OptionError(f"{name}={shown} {problem}; expected {FORMS}.")
