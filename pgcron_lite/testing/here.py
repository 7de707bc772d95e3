"""Slots that run jobs here: in the thread that asks for it, one after the other, in the order they were claimed."""

from __future__ import annotations

import contextvars
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from .. import execute, plan
from ..clock import monotonic
from ..execute import Ended, one_line
from ..job import Job
from ..moment import in_utc
from ..ping import Kind, Pings
from ..retry import Steer
from ..slots import Slots

Came = Literal["running", "done", "failed", "cancelled", "retrying", "snoozed", "crashed", "released"]


@dataclass(slots=True, repr=False)
class Run:
    """One attempt of a job: when it began, and what it came to. `error` is what the task has raised."""

    job: Job
    at: datetime
    state: Came = "running"
    error: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.job} {self.state}, {in_utc(self.at)}" + (f": {one_line(self.error)}" if self.error else "")

    def __repr__(self) -> str:
        return f"<Run {self}>"

    @property
    def task(self) -> str:
        return self.job.task

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def schedule(self) -> str | None:
        """The name of the schedule it ran for, if it did."""
        return self.job.headers.get(plan.SCHEDULE)

    @property
    def tick(self) -> datetime | None:
        """The moment of its schedule that it ran for, in UTC."""
        return plan.told(self.job.headers, plan.TICK)

    @property
    def is_trouble(self) -> bool:
        """Did the task raise an error, rather than steer its job?"""
        return self.error is not None and not isinstance(self.error, Steer)


class Crash(BaseException):
    """Ends a task whose worker has just died. No `except Exception` of yours stops it."""


class Here(Slots):
    """Places for jobs without threads. What has been put here begins with `serve`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What runs for a while: until when, and then in the order in which it began.
        self.under_way: list[tuple[datetime, int, Run, Ended]] = []
        self._numbers = itertools.count()

    def put(self, *jobs: Job, since: float | None = None) -> None:
        self._given += len(jobs)
        now = self._clock()
        self._waiting.extend([(job, now, now) for job in jobs])

    @property
    def next_job(self) -> Job:
        """The one that begins next."""
        return self._waiting[0][0]

    def close(self) -> None:
        """There are no threads."""

    def serve(self, now: datetime, lasts: Callable[[Job], timedelta | None]) -> tuple[Run, Ended]:
        """Run the job that is next. It has ended then, or will when it has lasted for as long as it does."""
        job = self._waiting.popleft()[0]
        run = Run(job, now)
        ended = self._run(job)
        span = lasts(job)
        ended = self._dated(ended, now + (span or timedelta(0)), span)
        run.error = ended.error
        if span is not None:
            heapq.heappush(self.under_way, (now + span, next(self._numbers), run, ended))
        return run, ended

    def ends(self, run: Run, ended: Ended) -> None:
        """A run is over."""
        run.state = _came_to(ended)
        self.ended.append(ended)

    def end_until(self, now: datetime) -> None:
        """End what has lasted for long enough."""
        while self.under_way and self.under_way[0][0] <= now:
            _, _, run, ended = heapq.heappop(self.under_way)
            self.ends(run, ended)

    def give_up(self, state: Came) -> None:
        """What is under way never ends here."""
        for _, _, run, _ in self.under_way:
            run.state = state
        self.under_way.clear()

    def _run(self, job: Job) -> Ended:
        # A context of its own, as in a worker: a task sees nothing of the test's.
        return contextvars.Context().run(execute.run, self._app, job, self._is_stopping, _no_luck)

    def _dated(self, ended: Ended, now: datetime, span: timedelta | None) -> Ended:
        """With the seconds that have passed on the clock of the test, and its time on the error."""
        outcome = ended.outcome
        if self._clock is monotonic:
            return ended
        if outcome.error is not None:
            outcome = replace(outcome, error={**outcome.error, "at": now.isoformat()})
        return Ended(ended.job, outcome, span.total_seconds() if span else 0.0, ended.error)


class Noted(Pings):
    """Reports to monitors that are noted and not sent."""

    def __init__(self, sent: list[tuple[str, Kind, str]]) -> None:
        super().__init__()
        self._sent = sent

    def send(self, url: str, kind: Kind, text: str = "") -> None:
        self._sent.append((url, kind, text))

    def close(self, seconds: float) -> None:
        """Nothing is on its way."""


def _no_luck() -> float:
    """The middle of any jitter: a backoff of ten seconds takes ten seconds."""
    return 0.5


def _came_to(ended: Ended) -> Came:
    outcome = ended.outcome
    if outcome.state == "queued":
        return "snoozed" if outcome.gives_back else "retrying"
    return outcome.state
