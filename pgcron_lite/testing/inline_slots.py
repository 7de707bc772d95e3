"""Slots that run jobs in the calling thread, one after the other, in the order in which they were claimed.

One thread at a time runs jobs, and a task cannot step the worker that runs it.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from ..clock import monotonic
from ..errors import PgCronError
from ..job import Job
from ..worker import execute
from ..worker.execute import Ended
from ..worker.slots import Slots
from .run_record import Came, RunRecord


class Crash(BaseException):
    """The exception that ends a task whose worker has just died. `except Exception` does not catch it."""


class InlineSlots(Slots):
    """Slots without threads. Jobs that were put here start with `begin`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # A heap of the runs under way: by their ends, then in the order in which they began.
        self._under_way: list[tuple[datetime, int, RunRecord, Ended]] = []
        self._numbers = itertools.count()

    def put(self, *jobs: Job, since: float | None = None) -> None:
        self._given += len(jobs)
        now = self._clock()
        self._waiting.extend([(job, now, now) for job in jobs])

    @property
    def next_job(self) -> Job:
        """The job that begins next."""
        return self._waiting[0][0]

    @property
    def next_end(self) -> datetime | None:
        """The earliest end of the runs under way."""
        return self._under_way[0][0] if self._under_way else None

    def close(self, seconds: float = 0.0) -> None:
        """No-op: no thread has to be waited for."""

    def begin(self, now: datetime, span: timedelta | None) -> RunRecord:
        """Run the next job. Its run has ended then, or ends `span` later, or its worker has crashed."""
        job = self._waiting.popleft()[0]
        run = RunRecord(job, now)
        ended = self._run(job)
        if isinstance(ended.error, Crash):
            run.state, run.error = "crashed", ended.error
        elif span is None:
            self._end(run, self._dated(ended, now, 0.0))
        else:
            ended = self._dated(ended, now + span, span.total_seconds())
            heapq.heappush(self._under_way, (now + span, next(self._numbers), run, ended))
        return run

    def end_until(self, now: datetime) -> list[RunRecord]:
        """End the runs that are over at `now`, and return them."""
        over = []
        while self._under_way and self._under_way[0][0] <= now:
            _, _, run, ended = heapq.heappop(self._under_way)
            self._end(run, ended)
            over.append(run)
        return over

    def give_up(self, state: Came) -> None:
        """Abandon the runs under way, with `state` as their outcome."""
        for _, _, run, _ in self._under_way:
            run.state = state
        self._under_way.clear()

    def _run(self, job: Job) -> Ended:
        # In a new context, as in a worker: a task must not see context variables of the test.
        return contextvars.Context().run(execute.run, self._app, job, self._is_stopping, _no_luck)

    def _dated(self, ended: Ended, at: datetime, seconds: float) -> Ended:
        """Return `ended` with the times of the test's clock; unchanged on a server, where the test has no clock."""
        outcome = ended.outcome
        if self._clock is monotonic:
            return ended
        if outcome.error is not None:
            outcome = replace(outcome, error={**outcome.error, "at": at.isoformat()})
        return Ended(ended.job, outcome, seconds, ended.error, ended.limit)

    def _end(self, run: RunRecord, ended: Ended) -> None:
        run.state, run.error = _came_to(ended), ended.error
        self.ended.append(ended)


def _no_luck() -> float:
    """Return the middle of any jitter: a backoff of ten seconds takes ten seconds."""
    return 0.5


def _came_to(ended: Ended) -> Came:
    outcome = ended.outcome
    if outcome.state == "queued":
        return "snoozed" if outcome.gives_back else "retrying"
    return outcome.state


class RunLock:
    """A lock that lets one thread at a time run jobs."""

    def __init__(self) -> None:
        # The job that is running.
        self.serving: Job | None = None
        self._lock = threading.RLock()
        self._holder: int | None = None

    @property
    def obstacle(self) -> str:
        """The reason why other jobs cannot run now; empty if they can."""
        if self.serving is None:
            return ""
        if self._is_mine:
            return f"{self.serving} waits for it, and it runs after that"
        return f"another thread runs {self.serving}, and it runs after that"

    @contextlib.contextmanager
    def taken(self, what: str) -> Iterator[None]:
        """Hold the lock for `what`. The thread that has it may take it again, but not from within a task."""
        if self.serving is not None and self._is_mine:
            way_out = ' Say how long a run lasts with t.takes(task, "20m").' if what == "advance()" else ""
            raise PgCronError(f"{what} within a task ({self.serving}): a task cannot step its own worker.{way_out}")
        with self._lock, self._held():
            yield

    @contextlib.contextmanager
    def last(self, seconds: float) -> Iterator[bool]:
        """Take the lock for the last time. Yield False if another thread still holds it after `seconds`."""
        came = self._lock.acquire(timeout=seconds)
        try:
            yield came
        finally:
            if came:
                self._lock.release()

    @property
    def _is_mine(self) -> bool:
        """Return True if this thread holds the lock."""
        return self._holder == threading.get_ident()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        earlier, self._holder = self._holder, threading.get_ident()
        try:
            yield
        finally:
            self._holder = earlier
