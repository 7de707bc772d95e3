"""What stands between a job and its end, where nobody runs jobs but the test that waits for it."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import TYPE_CHECKING

from .. import plan
from ..errors import near_miss
from ..job import Job
from .post import STOPPED, Post

if TYPE_CHECKING:
    from ..app import PgCron

LATER = "t.advance() lets time pass"


def obstacle(job: Job, app: PgCron, post: Post, now: datetime, tz: tzinfo) -> str:
    """Why `job` has not ended, after everything has run that is due."""
    if job.state == "running":
        return _of_a_running(job, post)
    if post.worker is None:
        return STOPPED
    if job.execute_after > now:
        return f"it is due at {job.execute_after.astimezone(tz):%Y-%m-%d %H:%M:%S %Z}; {LATER}"
    if job.task not in app.tasks:
        return f"no task named {job.task!r} is registered on {app!r}{near_miss(job.task, app.tasks)}"
    if any(view.name == job.queue and view.paused_at for view in app.store.queues()):
        return f"its queue {job.queue!r} is paused"
    return _of_a_due(job, post)


def _of_a_running(job: Job, post: Post) -> str:
    if post.worker is not None and job.worker == post.worker.id:
        return f"it lasts for longer; {LATER}"
    return f"the worker that ran it has died, and it is rescued after a lease; {LATER}"


def _of_a_due(job: Job, post: Post) -> str:
    if job.alone:
        return f"a worker has died with it, so it runs alone when the others have ended; {LATER}"
    if post.slots.free == 0:
        return f"every slot has a run that lasts for longer; {LATER}"
    if plan.SCHEDULE in job.headers:
        return f"another run of its schedule comes first; {LATER}"
    return f"the worker does not take it yet; {LATER}"
