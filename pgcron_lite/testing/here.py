"""Slots that run jobs here: in the thread that asks for it, one after the other, in the order they were claimed."""

from __future__ import annotations

import contextvars
import heapq
import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from .. import execute
from ..clock import monotonic
from ..execute import Ended
from ..job import Job
from ..slots import Slots
from .run import Came, Run


class Crash(BaseException):
    """Ends a task whose worker has just died. No `except Exception` of yours stops it."""


class Here(Slots):
    """Places for jobs without threads. What has been put here begins with `begin`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What runs for a while: until when, and then in the order in which it began.
        self._under_way: list[tuple[datetime, int, Run, Ended]] = []
        self._numbers = itertools.count()

    def put(self, *jobs: Job, since: float | None = None) -> None:
        self._given += len(jobs)
        now = self._clock()
        self._waiting.extend([(job, now, now) for job in jobs])

    @property
    def next_job(self) -> Job:
        """The one that begins next."""
        return self._waiting[0][0]

    @property
    def next_end(self) -> datetime | None:
        """When the first of the runs that last is over."""
        return self._under_way[0][0] if self._under_way else None

    def close(self) -> None:
        """There are no threads."""

    def begin(self, now: datetime, span: timedelta | None) -> Run:
        """Run the job that is next. It has ended then, or does when it has lasted for `span`, or its worker is dead."""
        job = self._waiting.popleft()[0]
        run = Run(job, now)
        ended = self._run(job)
        if isinstance(ended.error, Crash):
            run.state, run.error = "crashed", ended.error
        elif span is None:
            self._end(run, self._dated(ended, now, 0.0))
        else:
            ended = self._dated(ended, now + span, span.total_seconds())
            heapq.heappush(self._under_way, (now + span, next(self._numbers), run, ended))
        return run

    def end_until(self, now: datetime) -> list[Run]:
        """End what has lasted for long enough."""
        over = []
        while self._under_way and self._under_way[0][0] <= now:
            _, _, run, ended = heapq.heappop(self._under_way)
            self._end(run, ended)
            over.append(run)
        return over

    def give_up(self, state: Came) -> None:
        """What is under way never ends here."""
        for _, _, run, _ in self._under_way:
            run.state = state
        self._under_way.clear()

    def _run(self, job: Job) -> Ended:
        # A context of its own, as in a worker: a task sees nothing of the test's.
        return contextvars.Context().run(execute.run, self._app, job, self._is_stopping, _no_luck)

    def _dated(self, ended: Ended, at: datetime, seconds: float) -> Ended:
        """With the time and the seconds of the test's clock. On a server there is none, and what was measured stays."""
        outcome = ended.outcome
        if self._clock is monotonic:
            return ended
        if outcome.error is not None:
            outcome = replace(outcome, error={**outcome.error, "at": at.isoformat()})
        return Ended(ended.job, outcome, seconds, ended.error)

    def _end(self, run: Run, ended: Ended) -> None:
        run.state, run.error = _came_to(ended), ended.error
        self.ended.append(ended)


def _no_luck() -> float:
    """The middle of any jitter: a backoff of ten seconds takes ten seconds."""
    return 0.5


def _came_to(ended: Ended) -> Came:
    outcome = ended.outcome
    if outcome.state == "queued":
        return "snoozed" if outcome.gives_back else "retrying"
    return outcome.state
