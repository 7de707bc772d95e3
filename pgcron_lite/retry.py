"""Retry policy: the delay after a failed attempt, the number of attempts, and the errors that end a job.

`decide` is the whole policy as a pure function. Tasks raise `Retry`, `Snooze` and `Cancel` to override it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from . import durations
from .errors import OptionError
from .hints import refuses_unknown_options
from .job import Job, Outcome

Duration = str | int | float | timedelta
Errors = tuple[type[BaseException], ...]


class Steer(Exception):
    """Base class of the exceptions that a task raises to control its job. Not an error."""


class Retry(Steer):
    """Retry after `after` (or the task's backoff). It counts as an attempt like any failure."""

    def __init__(self, after: Duration | None = None, reason: str = "the task requested a retry") -> None:
        super().__init__(reason)
        self.after = None if after is None else durations.duration(after, name="after")


class Snooze(Steer):
    """Run the job again after `delay`. The attempt does not count."""

    def __init__(self, delay: Duration) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay = durations.duration(delay, name="delay")


class Cancel(Steer):
    """End the job for good, with `reason`, as cancelled and not as failed."""

    def __init__(self, reason: str = "the task cancelled itself") -> None:
        super().__init__(reason)


@dataclass(frozen=True, slots=True, init=False)
class Backoff:
    """The delay before the next attempt: `first`, then `factor` times as long each time, up to `max`.

    >>> [Backoff("5s", factor=2, max="1m", jitter=0).seconds(n) for n in (1, 2, 3, 4, 5, 6)]
    [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    """

    first: timedelta
    factor: float
    max: timedelta
    jitter: float

    @refuses_unknown_options("Backoff()")
    def __init__(
        self, first: Duration = "10s", factor: float = 3.0, max: Duration = "1h", jitter: float = 0.1
    ) -> None:
        set_ = object.__setattr__
        set_(self, "first", durations.duration(first, name="first"))
        set_(self, "max", durations.duration(max, name="max"))
        set_(self, "factor", _number(factor, "factor", low=1.0, high=1000.0))
        set_(self, "jitter", _number(jitter, "jitter", low=0.0, high=1.0))

    def seconds(self, attempt: int, luck: float = 0.5) -> float:
        """Return the seconds to wait after attempt number `attempt`. `luck` in 0..1 is the position in the jitter."""
        # Beyond 64 steps any factor > 1 has long reached `max`; the cap keeps the power from overflowing.
        planned = self.first.total_seconds() * self.factor ** min(attempt - 1, 64)
        capped = min(planned, self.max.total_seconds())
        return capped * (1 + self.jitter * (2 * luck - 1))


@dataclass(frozen=True, slots=True, init=False)
class RetryOn:
    """A rule for some exceptions: up to `max_attempts` attempts in total, with the delays of `backoff`."""

    errors: Errors
    max_attempts: int | None
    backoff: Backoff | None

    def __init__(
        self,
        *errors: type[BaseException],
        max_attempts: int | None = None,
        backoff: Backoff | Duration | None = None,
    ) -> None:
        set_ = object.__setattr__
        set_(self, "errors", exception_types(errors, "RetryOn"))
        set_(self, "max_attempts", None if max_attempts is None else attempts(max_attempts))
        set_(self, "backoff", None if backoff is None else as_backoff(backoff))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The retry options of a task. The first matching rule applies; `discard_on` is checked before them."""

    max_attempts: int = 5
    backoff: Backoff = field(default_factory=Backoff)
    retry_on: Errors | None = None
    discard_on: Errors = ()
    rules: tuple[RetryOn, ...] = ()

    @property
    def most_attempts(self) -> int:
        """The largest number of attempts that any rule allows, which the row has to permit."""
        return max(self.max_attempts, *(r.max_attempts or 0 for r in self.rules), 1)

    def plan(self, error: BaseException, limit: int) -> tuple[int, Backoff]:
        """Return the total number of attempts for `error`, and the backoff between them."""
        if isinstance(error, self.discard_on):
            return 0, self.backoff
        for rule in self.rules:
            if isinstance(error, rule.errors):
                return min(rule.max_attempts or limit, limit), rule.backoff or self.backoff
        if self.retry_on is not None and not isinstance(error, self.retry_on):
            return 0, self.backoff
        # The row may permit more attempts because of a rule. Other errors keep to the task's own number.
        own = self.max_attempts if self.rules else limit
        return min(own, limit), self.backoff


def decide(
    job: Job,
    error: BaseException,
    policy: RetryPolicy,
    described: dict[str, Any],
    luck: Callable[[], float] = random.random,
) -> Outcome:
    """Return the outcome of an attempt of `job` that raised `error`. `luck` in 0..1 is the position in the jitter."""
    assert job.claim is not None
    if isinstance(error, Snooze):
        return Outcome(job.id, job.claim, "queued", delay=error.delay.total_seconds(), gives_back=True)
    if isinstance(error, Cancel):
        return Outcome(job.id, job.claim, "cancelled", error=described)
    if isinstance(error, Retry):
        allowed, backoff, asked = job.max_attempts, policy.backoff, error.after
    else:
        (allowed, backoff), asked = policy.plan(error, job.max_attempts), None
    if job.attempt >= allowed:
        return Outcome(job.id, job.claim, "failed", error=described)
    # No cryptography: the jitter only prevents jobs that failed together from being retried together.
    wait = asked.total_seconds() if asked is not None else backoff.seconds(job.attempt, luck())
    return Outcome(job.id, job.claim, "queued", error=described, delay=wait)


def attempts(value: object) -> int:
    """Return `value` if it is a valid number of attempts."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 32_000:
        raise OptionError(f"max_attempts={value!r}: expected a whole number from 1 to 32000 (1 means no retry)")
    return value


def as_backoff(value: Backoff | Duration) -> Backoff:
    """Return `value` as a `Backoff`; a duration is a constant delay."""
    if isinstance(value, Backoff):
        return value
    pause = durations.duration(value, name="backoff")
    return Backoff(pause, factor=1, max=pause, jitter=0)


def exception_types(value: Sequence[type[BaseException]] | type[BaseException], name: str) -> Errors:
    """Return a tuple of exception classes, or raise `OptionError` for anything else."""
    found = value if isinstance(value, (tuple, list)) else (value,)
    for item in found:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise OptionError(f"{name}: expected exception classes such as ConnectionError, got {item!r}")
    return tuple(found)


def _number(value: float, name: str, *, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise OptionError(f"Backoff({name}={value!r}): expected a number from {low:g} to {high:g}")
    return float(value)
