"""A run: one attempt of a job, as a test sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ..durations import in_utc
from ..job import Job
from ..retry import Steer
from ..schedules import schedule
from ..worker.execute import one_line

Came = Literal["running", "done", "failed", "cancelled", "retrying", "snoozed", "crashed", "released"]


@dataclass(slots=True, repr=False)
class RunRecord:
    """One attempt of a job: its start, its outcome, and the error that the task has raised."""

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
        """The name of the schedule it ran for, if any."""
        return self.job.headers.get(schedule.SCHEDULE)

    @property
    def tick(self) -> datetime | None:
        """The tick it ran for, in UTC, if any."""
        return schedule.header_time(self.job.headers, schedule.TICK)

    @property
    def is_trouble(self) -> bool:
        """Return True if the task raised an error, rather than `Retry`, `Snooze` or `Cancel`."""
        return self.error is not None and not isinstance(self.error, Steer)
