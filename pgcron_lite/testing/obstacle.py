"""What stands between a job and its end, where nobody runs jobs but the test that waits for it."""

from __future__ import annotations

from datetime import datetime, tzinfo

from ..job import Job
from .post import STOPPED, Post

LATER = "t.advance() lets time pass"


def obstacle(job: Job, serving: Job | None, post: Post, now: datetime, tz: tzinfo) -> str:
    """Why `job` has not ended, after everything has run that is due, or while `serving` runs."""
    if serving is not None:
        return f"{serving} waits for it, and it runs after that"
    if post.worker is None:
        return STOPPED
    if job.state == "running":
        return f"it lasts for longer; {LATER}"
    if job.execute_after > now:
        return f"it is due at {job.execute_after.astimezone(tz):%Y-%m-%d %H:%M:%S %Z}; {LATER}"
    return "its task is not registered, its queue is paused, or it waits for another"
