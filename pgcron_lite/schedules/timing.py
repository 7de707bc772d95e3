"""Timings: `Cron` and `Every`, two values that compute their ticks.

A tick is a moment in UTC. Nothing here depends on the current time, on what runs at a tick, or on whether it has run.

In a time zone whose clocks change, an expression that names its hours (`30 2 * * *`) is due when the wall clock first
shows that time, or a later time if that one is skipped. So it is due once if the clock is put forward over it, at the
first instant after the gap, and once if the clock shows it twice. An expression with a wildcard or a step in the hour
(`*/15 * * * *`) is due whenever the clock matches it: in both occurrences of a repeated hour, and never in a skipped
one. Two times of one expression that fall on the same instant are one tick.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from .. import durations
from ..errors import OptionError
from ..retry import Duration
from .cron import describe, parser
from .cron.calendar import Pattern
from .timezones import BEGIN, END, EPOCH, TimeZone, Zone, zone

MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


class Timing(ABC):
    """Base class of `Cron` and `Every`: ticks from `start` to `end`, both inclusive."""

    __slots__ = ()

    start: datetime | None
    end: datetime | None

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick after `after`; None if there is none, or none before the year 9000."""
        first, last = self.start or BEGIN, self.end or END
        if after >= last:
            return None
        tick = self._next(max(after, first - MICROSECOND))
        return None if tick is None or tick > last else tick

    def previous(self, before: datetime) -> datetime | None:
        """Return the last tick before `before`; None if there is none, or none since 1900."""
        first, last = self.start or BEGIN, self.end or END
        if before <= first:
            return None
        tick = self._previous(min(before, last + MICROSECOND))
        return None if tick is None or tick < first else tick

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the ticks after `after`, up to and including `until`. There may be many: take what you need."""
        tick = self.next(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.next(tick)

    @property
    @abstractmethod
    def words(self) -> str:
        """A description in English, to follow "it runs": `at 02:30 every day`."""

    @abstractmethod
    def _next(self, after: datetime) -> datetime | None: ...

    @abstractmethod
    def _previous(self, before: datetime) -> datetime | None: ...


@dataclass(frozen=True, slots=True, init=False)
class Cron(Timing):
    """A cron expression of five fields, or six with the seconds last, on the wall clock of a time zone.

    >>> Cron("30 2 * * *", "Europe/Berlin").next(datetime(2026, 3, 28, 12, tzinfo=UTC))
    datetime.datetime(2026, 3, 29, 1, 0, tzinfo=datetime.timezone.utc)
    """

    expression: str
    tz: str
    start: datetime | None
    end: datetime | None
    pattern: Pattern = field(repr=False, compare=False)
    zone: Zone = field(repr=False, compare=False)

    def __init__(
        self, expression: str, tz: TimeZone = "UTC", *, start: datetime | None = None, end: datetime | None = None
    ) -> None:
        set_ = object.__setattr__
        set_(self, "pattern", parser.read(expression))
        set_(self, "expression", parser.tidy(expression))
        set_(self, "zone", zone(tz))
        set_(self, "tz", self.zone.name)
        _set_bounds(self, start, end)

    def __str__(self) -> str:
        return self.expression

    @property
    def words(self) -> str:
        return describe.describe(self.pattern)

    def note(self, tick: datetime) -> str | None:
        """Return the effect of a clock change on `tick`, in words; None if there is none."""
        instant = _floor(tick)
        if self.pattern.fixed:
            wanted = self.pattern.at_or_after(self.zone.reached(instant - 1) + 1)
            if wanted is not None and wanted < self.zone.reading(instant):
                return f"the clock skips {_clock(wanted)}; this is the first instant after the gap"
        twice = self.zone.instants(self.zone.reading(instant))
        if len(twice) < 2:
            return None
        if self.pattern.fixed:
            return "the clock shows this twice; runs the first time only"
        return f"the clock shows this twice; this is the {'first' if instant == twice[0] else 'second'} time"

    def _next(self, after: datetime) -> datetime | None:
        instant = _floor(after)
        if self.pattern.fixed:
            reading = self.pattern.at_or_after(self.zone.reached(instant) + 1)
            return None if reading is None else _moment(self.zone.reach(reading))
        return self._shown_from(instant + 1)

    def _previous(self, before: datetime) -> datetime | None:
        instant = _floor(before - MICROSECOND)
        if self.pattern.fixed:
            reading = self.pattern.at_or_before(self.zone.reached(instant))
            return None if reading is None else _moment(self.zone.reach(reading))
        return self._shown_back_from(instant)

    def _shown_from(self, instant: int) -> datetime | None:
        """Return the first instant, not before this one, at which the clock matches the pattern."""
        while instant <= _END:
            for _, end, offset in self.zone.spans(instant):
                if instant < end:
                    reading = self.pattern.at_or_after(instant + offset)
                    if reading is not None and reading - offset < end:
                        return _moment(reading - offset)
                    instant = end
        return None

    def _shown_back_from(self, instant: int) -> datetime | None:
        """Return the last instant, not after this one, at which the clock matches the pattern."""
        while instant >= _BEGIN:
            for start, _, offset in reversed(self.zone.spans(instant)):
                if start <= instant:
                    reading = self.pattern.at_or_before(instant + offset)
                    if reading is not None and reading - offset >= start:
                        return _moment(reading - offset)
                    instant = start - 1
        return None


@dataclass(frozen=True, slots=True, init=False)
class Every(Timing):
    """A fixed interval in real time, on a grid that depends only on `name`, or on `start` if there is one.

    A restart does not move the grid, and schedules of different names are spread over the interval.
    """

    interval: timedelta
    name: str
    start: datetime | None
    end: datetime | None
    _step: int = field(repr=False, compare=False)
    _phase: int = field(repr=False, compare=False)

    def __init__(
        self, interval: Duration, *, name: str = "", start: datetime | None = None, end: datetime | None = None
    ) -> None:
        set_ = object.__setattr__
        span = durations.duration(interval, name="every")
        if span < SECOND:
            raise OptionError(
                f"every={interval!r} is less than a second. To run code continuously, loop within one task."
            )
        set_(self, "interval", span)
        set_(self, "name", name)
        _set_bounds(self, start, end)
        set_(self, "_step", span // MICROSECOND)
        set_(self, "_phase", (_phase(name, span) if self.start is None else self.start - EPOCH) // MICROSECOND)

    def __str__(self) -> str:
        return f"every {durations.spoken(self.interval).replace(' ', '')}"

    @property
    def words(self) -> str:
        return f"every {durations.spoken(self.interval)}"

    def _next(self, after: datetime) -> datetime:
        return self._tick((_microseconds(after) - self._phase) // self._step + 1)

    def _previous(self, before: datetime) -> datetime:
        return self._tick(-((self._phase - _microseconds(before)) // self._step) - 1)

    def _tick(self, number: int) -> datetime:
        return EPOCH + timedelta(microseconds=self._phase + number * self._step)


def read_timing(text: str, tz: TimeZone = "UTC", *, name: str = "") -> Cron | Every:
    """Return the timing for `text`: "every 90s" or a cron expression."""
    interval = isinstance(text, str) and re.fullmatch(r"\s*every\s+(.*)", text, re.IGNORECASE | re.DOTALL)
    return Every(interval[1], name=name) if interval else Cron(text, tz)


def jitter_of(name: str, tick: datetime, most: timedelta) -> timedelta:
    """Return the delay of the schedule `name` after `tick`: from 0 up to `most`, and always the same."""
    return _share(f"{name}\n{_microseconds(tick)}", most // MICROSECOND) * MICROSECOND


def _phase(name: str, interval: timedelta) -> timedelta:
    if not name:
        return timedelta(0)
    # Whole seconds if the interval has enough of them to spread over: they are easier to read.
    unit = SECOND if interval >= MINUTE else SECOND / 1000
    return _share(name, interval // unit) * unit


def _share(text: str, of: int) -> int:
    """Return a number from 0 up to `of`, which is the same for `text` in every process and version."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:16], "big") * of >> 128


def _set_bounds(timing: Cron | Every, start: datetime | None, end: datetime | None) -> None:
    first, last = _bound(start, "start"), _bound(end, "end")
    if first is not None and last is not None and last < first:
        raise OptionError(f"end={end} is before start={start}, so there would be no tick at all")
    object.__setattr__(timing, "start", first)
    object.__setattr__(timing, "end", last)


def _bound(value: datetime | None, name: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise OptionError(f"{name}={value!r}: expected a datetime with a time zone")
    bound = durations.due(value, name=name)
    assert isinstance(bound, datetime)
    if not BEGIN <= bound <= END:
        raise OptionError(f"{name}={value} is not in the years from 1900 to 8999")
    return bound


def _floor(value: datetime) -> int:
    since = value - EPOCH
    return since.days * 86_400 + since.seconds


_BEGIN, _END = _floor(BEGIN), _floor(END)


def _moment(instant: int) -> datetime:
    return EPOCH + timedelta(seconds=instant)


def _microseconds(value: datetime) -> int:
    since = value - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _clock(reading: int) -> str:
    hour, minute, second = reading // 3600 % 24, reading // 60 % 60, reading % 60
    return f"{hour:02}:{minute:02}" + (f":{second:02}" if second else "")
