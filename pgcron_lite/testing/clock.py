"""The clock of a test, which changes only when it is moved, and the forecast of the next event.

It is both the wall clock of the memory store and the monotonic clock of the worker. If the test has frozen Python's own
clock with freezegun or time-machine, that clock is moved too.

Times at which nothing happens are skipped, and the worker is directed to what is due. Its periodic work is done only
while it can have an effect: while there is a dead worker to reap, or a job that must run isolated.
"""

from __future__ import annotations

import contextlib
import datetime as calendar
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from .. import durations
from ..clock import Spread
from ..durations import in_utc
from ..errors import OptionError
from ..memory import MemoryStore
from ..memory.deadlines import earliest
from ..retry import Duration
from ..schedules.ticks import MARGIN
from ..worker.loop import Worker

# Later than 0, which in the code of the worker means "never".
FIRST_SECOND = 1_000_000.0
# Tolerance for a frozen clock that ticks.
_NEAR = timedelta(seconds=1)


class ManualClock:
    """A clock whose time changes only when it is moved."""

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
        """Return the time in UTC."""
        return self._now

    def seconds(self) -> float:
        """Return the time of a monotonic clock that moves with this one."""
        return self._seconds

    def move(self, to: datetime) -> None:
        self._now = to
        self._seconds = FIRST_SECOND + (to - self._start).total_seconds()
        if self._frozen is not None:
            self._lead()

    def look(self) -> datetime:
        """Return the time, with a move of the test's frozen clock that `follow` has not applied yet."""
        return self._now if self._frozen is None else max(self._now, _system_now())

    def follow(self) -> None:
        """Move to the time of the test's frozen clock, if the test has moved that one."""
        if self._frozen is None:
            return
        there = _system_now()
        if there < self._now - _NEAR:
            raise OptionError(
                f"clock={self._frozen!r}: datetime.now() shows {in_utc(there)}, and it was {in_utc(self._now)} already;"
                " time goes forward. Was it moved back, or frozen again within the block?"
            )
        if there > self._now:
            self.move(there)

    def target(self, span: Duration | None, to: str | datetime | None) -> datetime:
        """Return the time that the arguments of `advance` name."""
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
        return durations.duration(value, name="advance")
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
    """Return the time that `value` names, in UTC. Without an offset it is a time in `tz`."""
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
                f"{name}={given!r}: this time does not exist in {tz}: clocks are put forward over it."
                f" It would be {in_utc(value)}."
            )
    # A plain datetime: a library that freezes time may have replaced the class.
    found = value.astimezone(UTC)
    return datetime(*found.timetuple()[:6], found.microsecond, tzinfo=UTC)


def _system_now() -> datetime:
    # Through the module: libraries that freeze time replace the class there.
    now = calendar.datetime.now(UTC)
    return datetime(now.year, now.month, now.day, now.hour, now.minute, now.second, now.microsecond, tzinfo=UTC)


# A shorter wait counts as none: the monotonic clock is slightly less exact than the wall clock.
SOON = 1e-4
_MOMENT = timedelta(microseconds=1)


class Forecast:
    """The forecast for a queue in memory, which uses the clock of the test."""

    def __init__(self, store: MemoryStore, manual_clock: ManualClock, *, keeps_schedules: bool) -> None:
        self._store = store
        self._manual_clock = manual_clock
        self._keeps_schedules = keeps_schedules
        self._jobs_at: datetime | None = None
        self._ticks_at: datetime | None = None
        self._alarm_at: datetime | None = None
        # True without other workers and suspects: then only what is in the tables can happen.
        self._is_calm = False

    def spread(self, low: float, high: float) -> float:
        """Return the worker's interval of periodic work: the usual one while it can have an effect, else infinity.

        `point_out` starts the work when the forecast has something due, so no step is spent on times without an event.
        """
        return math.inf if self._is_calm else high

    def disturb(self) -> None:
        """Note that a new worker has started, which may have to reap a dead one."""
        self._is_calm = False

    def forget(self) -> None:
        """Discard the forecast: the test may have enqueued jobs, or changed anything."""
        self._jobs_at = self._ticks_at = self._alarm_at = None

    def point_out(self, worker: Worker) -> None:
        """Make the worker check what is due by the forecast, and everything that has no forecast."""
        now = self._manual_clock()
        if self._jobs_at is None or self._jobs_at <= now:
            worker.claim_soon()
        if self._ticks_at is not None and self._ticks_at <= now:
            worker.scheduler.due_at = 0.0
        if not self._is_calm or self._alarm_at is None or self._alarm_at <= now:
            worker.poll_soon()

    def next_moment(self, worker: Worker, tasks: Sequence[str], wait: float, end: datetime | None) -> datetime | None:
        """Return the time of the next event after now; None if there is none.

        The worker knows `tasks`, and would sleep for `wait` seconds; the first run under way to end does so at `end`.
        """
        store = self._store
        self._jobs_at, self._alarm_at = store.next_moments(tasks)
        self._ticks_at = store.next_planning if self._keeps_schedules else None
        if self._ticks_at is not None:
            # Ticks are planned ahead of time; a `MARGIN` later is soon enough, and often the time of a run.
            self._ticks_at += MARGIN
        self._is_calm = not store.is_disturbed(worker.id)
        turn = None
        if not self._is_calm:
            # Reaping and isolated runs have deadlines of the worker's monotonic clock.
            turn = self._manual_clock() + max(_MOMENT, timedelta(seconds=min(wait, 60.0)))
        return earliest(self._jobs_at, self._ticks_at, self._alarm_at, end, turn)

    def is_something_due(self, wait: float) -> bool:
        """Return True if the worker would not sleep, or if a job is due that it was not notified of."""
        return wait <= SOON or self._store.is_something_due()

    @property
    def has_undecided_ticks(self) -> bool:
        planning = self._store.next_planning if self._keeps_schedules else None
        return planning is not None and planning <= self._manual_clock()

    def is_over(self, worker: Worker) -> bool:
        """Return True if nothing is left to do at this time. Only called when nothing is due."""
        return True


class NoForecast:
    """No forecast, for a server with its own clock and other clients. The worker checks all until it finds nothing."""

    has_undecided_ticks = False
    spread: Spread = staticmethod(random.uniform)

    def disturb(self) -> None:
        """No-op: there is no forecast to correct."""

    def forget(self) -> None:
        """No-op: there is no forecast to discard."""

    def point_out(self, worker: Worker) -> None:
        worker.claim_soon()
        worker.poll_soon()

    def is_something_due(self, wait: float) -> bool:
        return wait <= SOON

    def is_over(self, worker: Worker) -> bool:
        return worker.drained()
