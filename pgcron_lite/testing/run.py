"""A run: one attempt of a job, as a test looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from .. import plan
from ..execute import one_line
from ..job import Job
from ..moment import in_utc
from ..retry import Steer

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
