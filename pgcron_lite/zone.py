"""A time zone as arithmetic: from instants to what the clock on the wall shows there, and back.

An *instant* is in seconds of UTC since 1970. A *reading* is what a wall clock shows, in seconds since its own 1970.
Clocks that are put forward leave readings out, clocks that are put back show some twice; all we need to know about
that is in `Zone.reached` and `Zone.reach`. Where the data comes from is zoneinfo's business.
"""

from __future__ import annotations

import functools
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from .errors import OptionError, near_miss

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400

# Time as far as we are concerned. Around it, Python can still write down every moment in every zone.
BEGIN, END = datetime(1900, 1, 1, tzinfo=UTC), datetime(8999, 12, 31, 23, 59, 59, tzinfo=UTC)

# From, until (not included), and how far the clock is ahead of UTC meanwhile. All in seconds.
Span: TypeAlias = tuple[int, int, int]

# Spans are looked up in pieces of 388 days, each a little longer than that at both ends: a question asked for a
# reading and one asked for its instant, at most 26 hours apart, then find their answer in the same piece.
_PIECE = 25
_MARGIN = 3 * DAY


@functools.lru_cache(maxsize=1024)
def zone(name: str) -> Zone:
    """The zone that the IANA database has under `name`."""
    return Zone(name, _load(name))


class Zone:
    """One zone. Immutable, but for the pieces it has looked up."""

    __slots__ = ("_pieces", "info", "name")

    def __init__(self, name: str, info: zoneinfo.ZoneInfo) -> None:
        self.name = name
        self.info = info
        self._pieces: dict[int, tuple[Span, ...]] = {}

    def reading(self, instant: int) -> int:
        """What the clock shows at `instant`."""
        for _, end, offset in self.spans(instant):
            if instant < end:
                return instant + offset
        raise AssertionError("a piece reaches beyond what it is asked for")

    def reached(self, instant: int) -> int:
        """The latest reading the clock has shown up to `instant`; it shows less when it has been put back."""
        return max(min(instant, end - 1) + offset for start, end, offset in self.spans(instant) if start <= instant)

    def reach(self, reading: int) -> int:
        """The first instant at which the clock shows `reading`, or later because that was left out."""
        for start, end, offset in self.spans(reading):
            if reading < end + offset:
                return max(start, reading - offset)
        raise AssertionError("a piece reaches beyond what it is asked for")

    def instants(self, reading: int) -> list[int]:
        """When the clock shows exactly `reading`: once, not at all, or twice."""
        return [reading - offset for start, end, offset in self.spans(reading) if start <= reading - offset < end]

    def spans(self, second: int) -> tuple[Span, ...]:
        """The spans around an instant or a reading, in order and without holes, for at least two days either way."""
        number = second >> _PIECE
        piece = self._pieces.get(number)
        if piece is None:
            # Two threads may both do this; they come to the same.
            piece = self._pieces[number] = self._look_up(number)
        return piece

    def _look_up(self, number: int) -> tuple[Span, ...]:
        start, last = (number << _PIECE) - _MARGIN, ((number + 1) << _PIECE) + _MARGIN
        offset, found = self._offset(start), []
        # No zone has ever changed its clocks and changed them back within a day; a test asks all of them.
        for day in range(start + DAY, last + DAY, DAY):
            if (after := self._offset(day)) != offset:
                change = self._change(day - DAY, day, offset)
                found.append((start, change, offset))
                start, offset = change, after
        return (*found, (start, last, offset))

    def _change(self, before: int, after: int, offset: int) -> int:
        """The first second, after `before` and not after `after`, that has another offset than `offset`."""
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
        raise OptionError(f"tz={name!r}: expected the name of a time zone, such as 'Europe/Berlin' or 'UTC'")
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        # A name that is none may be a path that leads out of the database, or a folder in it.
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
