"""The time of a test: it stands still, and moves when it is told to.

It is the clock on the wall of the memory store and the stopwatch of the machines in one. If the test has frozen
Python's own clock with freezegun or time-machine, that one is led along.
"""

from __future__ import annotations

import contextlib
import datetime as calendar
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from .. import moment
from ..errors import OptionError
from ..moment import in_utc
from ..retry import Duration

# Machines take a clock that shows 0 for one that has never been looked at.
FIRST_SECOND = 1_000_000.0
# A frozen clock may tick a little.
_NEAR = timedelta(seconds=1)


class Timeline:
    """Says the same time until it is moved."""

    def __init__(self, at: str | datetime | None, tz: tzinfo, clock: Any) -> None:
        if clock is not None and not hasattr(clock, "move_to"):
            raise OptionError(
                f"clock={clock!r}: expected what freezegun's freeze_time() or time_machine.travel() gives:"
                " with freeze_time(...) as frozen, app.testing(clock=frozen) as t: ..."
            )
        self._tz = tz
        self._frozen = clock
        self._now = _system_now() if at is None else read(at, self._tz, name="at")
        self._start = self._now
        self._seconds = FIRST_SECOND
        if clock is not None:
            self._lead()

    def __call__(self) -> datetime:
        """What time it is, in UTC."""
        return self._now

    def seconds(self) -> float:
        """The same as a stopwatch."""
        return self._seconds

    def move(self, to: datetime) -> None:
        self._now = to
        self._seconds = FIRST_SECOND + (to - self._start).total_seconds()
        if self._frozen is not None:
            self._lead()

    def look(self) -> datetime:
        """What time it is if the test has moved its frozen clock meanwhile, which `follow` takes over."""
        return self._now if self._frozen is None else max(self._now, _system_now())

    def follow(self) -> None:
        """Take over the time to which the test has moved its frozen clock without telling us, if it has."""
        if self._frozen is None:
            return
        there = _system_now()
        if there < self._now - _NEAR:
            raise OptionError(
                f"clock={self._frozen!r}: datetime.now() shows {in_utc(there)}, and it was {in_utc(self._now)} already;"
                " time goes forward. Was it moved back, or frozen anew within the block?"
            )
        if there > self._now:
            self.move(there)

    def target(self, span: Duration | None, to: str | datetime | None) -> datetime:
        """The moment that `advance` was asked to go to."""
        if (span is None) == (to is None):
            raise OptionError('advance() takes a duration, advance("1d"), or a moment, advance(to="2026-03-29 12:00")')
        if span is not None:
            return self._now + _span(span)
        assert to is not None
        wanted = read(to, self._tz, name="to")
        if wanted < self._now:
            here = self._now.astimezone(self._tz)
            raise OptionError(f"advance(to={to!r}): it is {here:%Y-%m-%d %H:%M:%S %Z} already; time goes forward")
        return wanted

    def _lead(self) -> None:
        self._frozen.move_to(self._now)
        if abs(_system_now() - self._now) > _NEAR:
            raise OptionError(
                f"clock={self._frozen!r}: datetime.now() does not follow it. Is it still active? Enter app.testing()"
                " inside the block that freezes the time."
            )


def _span(value: Duration) -> timedelta:
    try:
        return moment.duration(value, name="advance")
    except OptionError:
        if _is_moment(value):
            raise OptionError(f"advance({value!r}): that is a moment, not a duration: advance(to={value!r})") from None
        raise


def _is_moment(value: object) -> bool:
    if not isinstance(value, str):
        return isinstance(value, datetime)
    with contextlib.suppress(ValueError):
        return bool(datetime.fromisoformat(value))
    return False


def read(value: str | datetime, tz: tzinfo, *, name: str) -> datetime:
    """A moment as people write it, on the clock of `tz` unless it says otherwise, in UTC."""
    given = value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise OptionError(f'{name}={given!r}: expected a moment such as "2026-03-28 12:00"') from None
    if not isinstance(value, datetime):
        raise OptionError(f'{name}={given!r}: expected a datetime or a text such as "2026-03-28 12:00"')
    if value.utcoffset() is None:
        value = value.replace(tzinfo=tz)
        if value.astimezone(UTC).astimezone(tz).replace(tzinfo=None) != value.replace(tzinfo=None):
            raise OptionError(
                f"{name}={given!r}: no clock shows that in {tz}: it is put forward over it."
                f" It would be {in_utc(value)}."
            )
    # A plain datetime, whatever a library that freezes time has put in its place.
    found = value.astimezone(UTC)
    return datetime(*found.timetuple()[:6], found.microsecond, tzinfo=UTC)


def _system_now() -> datetime:
    # By way of the module: libraries that freeze time put another class there.
    now = calendar.datetime.now(UTC)
    return datetime(now.year, now.month, now.day, now.hour, now.minute, now.second, now.microsecond, tzinfo=UTC)
