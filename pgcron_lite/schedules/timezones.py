"""Arithmetic of time zones: conversion between instants and the readings of a wall clock.

An *instant* is in seconds of UTC since 1970. A *reading* is what a wall clock shows, in seconds since 1970 on that
clock. A clock that is put forward skips readings; a clock that is put back shows some twice. `Zone.reached` and
`Zone.reach` handle both cases. The data comes from zoneinfo.
"""

from __future__ import annotations

import functools
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from ..errors import OptionError
from ..hints import near_miss

TimeZone = str | zoneinfo.ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400

# The range of all ticks. Python can also represent the moments around it in every zone.
BEGIN, END = datetime(1900, 1, 1, tzinfo=UTC), datetime(8999, 12, 31, 23, 59, 59, tzinfo=UTC)

# Start, end (exclusive), and how far the clock is ahead of UTC between them. All in seconds.
Span: TypeAlias = tuple[int, int, int]

# Spans are looked up in pieces of 388 days, each extended by `_MARGIN` at both ends. So a reading and its instant,
# which are at most 26 hours apart, are in the same piece.
_PIECE = 25
_MARGIN = 3 * DAY


@functools.lru_cache(maxsize=1024)
def zone(tz: TimeZone) -> Zone:
    """Return the zone of that name in the IANA database. Of a `ZoneInfo`, only the name is used."""
    # A schedule is stored with the name alone, so every process reads the zone from its own database.
    if not isinstance(tz, zoneinfo.ZoneInfo):
        return Zone(tz, _load(tz))
    if tz.key is None:
        raise OptionError(f"tz={tz!r} has no name to store; expected one with a key, as ZoneInfo('Europe/Berlin')")
    return Zone(tz.key, _load(tz.key))


class Zone:
    """One zone. Immutable, except for the cache of its pieces."""

    __slots__ = ("_pieces", "info", "name")

    def __init__(self, name: str, info: zoneinfo.ZoneInfo) -> None:
        self.name = name
        self.info = info
        self._pieces: dict[int, tuple[Span, ...]] = {}

    def reading(self, instant: int) -> int:
        """Return what the clock shows at `instant`."""
        for _, end, offset in self.spans(instant):
            if instant < end:
                return instant + offset
        raise AssertionError("a piece extends beyond the requested second")

    def reached(self, instant: int) -> int:
        """Return the latest reading that the clock has shown up to `instant`, even if it has been put back since."""
        return max(min(instant, end - 1) + offset for start, end, offset in self.spans(instant) if start <= instant)

    def reach(self, reading: int) -> int:
        """Return the first instant at which the clock shows `reading`, or a later reading if that one is skipped."""
        for start, end, offset in self.spans(reading):
            if reading < end + offset:
                return max(start, reading - offset)
        raise AssertionError("a piece extends beyond the requested second")

    def instants(self, reading: int) -> list[int]:
        """Return the instants at which the clock shows exactly `reading`: none, one or two."""
        return [reading - offset for start, end, offset in self.spans(reading) if start <= reading - offset < end]

    def spans(self, second: int) -> tuple[Span, ...]:
        """Return the spans around an instant or a reading, in order, without gaps, for at least two days either way."""
        number = second >> _PIECE
        piece = self._pieces.get(number)
        if piece is None:
            # Two threads may both do this, with the same result.
            piece = self._pieces[number] = self._look_up(number)
        return piece

    def _look_up(self, number: int) -> tuple[Span, ...]:
        start, last = (number << _PIECE) - _MARGIN, ((number + 1) << _PIECE) + _MARGIN
        offset, found = self._offset(start), []
        # No zone has ever changed its clocks and changed them back within a day; a test checks all zones.
        for day in range(start + DAY, last + DAY, DAY):
            if (after := self._offset(day)) != offset:
                change = self._change(day - DAY, day, offset)
                found.append((start, change, offset))
                start, offset = change, after
        return (*found, (start, last, offset))

    def _change(self, before: int, after: int, offset: int) -> int:
        """Return the first second, after `before` and not after `after`, that has another offset than `offset`."""
        while after - before > 1:
            middle = (before + after) // 2
            if self._offset(middle) == offset:
                before = middle
            else:
                after = middle
        return after

    def _offset(self, instant: int) -> int:
        local = (EPOCH + timedelta(seconds=instant)).astimezone(self.info)
        offset = local.utcoffset()
        assert offset is not None
        return offset.days * DAY + offset.seconds


def _load(name: str) -> zoneinfo.ZoneInfo:
    if not isinstance(name, str):
        raise OptionError(
            f"tz={name!r}: expected the name of a time zone, such as 'Europe/Berlin' or 'UTC', or a ZoneInfo"
        )
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        # An invalid name may be a path outside the database, or a folder in it.
        raise OptionError(_unknown(name)) from None


def _unknown(name: str) -> str:
    known = zoneinfo.available_timezones()
    if not known:
        return (
            f"tz={name!r}: this Python finds no time zones at all. Install the package tzdata (pip install tzdata),"
            " or that of the operating system."
        )
    same = next((other for other in sorted(known) if other.lower() == name.lower()), None)
    city = next((other for other in sorted(known) if other.rpartition("/")[2].lower() == name.lower()), None)
    meant = same or city
    near = f"; did you mean {meant!r}?" if meant else near_miss(name, known)
    return f"there is no time zone tz={name!r}{near or '.'} Names are those of the IANA database, as 'Europe/Berlin'."
