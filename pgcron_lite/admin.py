"""Administration of jobs and queues, as `app.jobs` and `app.queues`. The command line uses the same objects.

Each call is one transaction of its own, unless its docstring says otherwise.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from . import durations
from .checks import checked_id, checked_states, checked_text, queue_name
from .errors import OptionError, UnknownJob
from .job import Job, QueueView, State
from .retry import Duration

if TYPE_CHECKING:
    from .store import Store

PAGE = 500
# Size of the first page with arguments and results, which may be a megabyte each. It doubles while they are small.
PAYLOAD_PAGE = 20
SMALL_PAYLOAD = 256 * 1024
# How many jobs `Queues.clear` cancels in one transaction.
CLEARED_AT_ONCE = 1000


class Jobs:
    """The jobs of the queue, live and ended."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store

    def get(self, job_id: int) -> Job:
        """Return the job as it is now. Raises `UnknownJob` when it is no longer kept, or was never committed."""
        found = self._store().get(checked_id(job_id, "jobs.get"))
        if found is None:
            raise UnknownJob(
                f"there is no job #{job_id}: it was deleted, its history was pruned, or the transaction that"
                " enqueued it has not been committed"
            )
        return found

    def list(
        self,
        *,
        state: State | Sequence[State] | None = None,
        task: str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        since: Duration | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> builtins.list[Job]:
        """Return the newest jobs that match, up to `limit`; `before=jobs[-1].id` continues with older ones.

        `state` is one state or several; `since` is how long ago a job was enqueued at most, as in "2h".
        """
        return [*self.find(state=state, task=task, queue=queue, tag=tag, since=since, before=before, limit=limit)]

    def find(
        self,
        *,
        state: State | Sequence[State] | None = None,
        task: str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        since: Duration | None = None,
        before: int | None = None,
        limit: int | None = None,
        with_payload: bool = True,
    ) -> Iterator[Job]:
        """Yield the matching jobs, newest first, fetched page by page: all of them, or up to `limit`.

        Without their payload, they come with no arguments, headers and results, which may be a megabyte each.
        """
        if before is not None and (not isinstance(before, int) or isinstance(before, bool)):
            raise OptionError(f"before={before!r}: expected the id of a job, which is job.id")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise OptionError(f"limit={limit!r}: expected a whole number of at least 1")
        states = checked_states(state)
        for option, value in (("task", task), ("queue", queue), ("tag", tag)):
            checked_text(value, option)
        span = None if since is None else durations.duration(since, name="since")
        if states == ():
            return iter(())
        # The table has no larger ids.
        last = None if before is None else max(0, min(before, 2**63 - 1))
        return self._pages(states or (), task, queue, tag, span, last, limit, with_payload)

    def cancel(self, job_id: int) -> bool:
        """Cancel the job if it has not begun. Return False if it is running, has ended, or does not exist."""
        store = self._store()
        return _after_change(store, store.cancel(checked_id(job_id, "jobs.cancel")))

    def retry(self, job_id: int) -> bool:
        """Queue a failed or cancelled job again, due now, with all its attempts. Return False if it is neither."""
        store = self._store()
        return _after_change(store, store.retry(checked_id(job_id, "jobs.retry")))

    def delete(self, job_id: int) -> bool:
        """Delete the job, live or ended. Return False if it is running or does not exist."""
        store = self._store()
        return _after_change(store, store.delete(checked_id(job_id, "jobs.delete")))

    def _pages(
        self, states: Sequence[State], task: str | None, queue: str | None, tag: str | None, since: timedelta | None,
        before: int | None, left: int | None, with_payload: bool,
    ) -> Iterator[Job]:  # fmt: skip
        store, size = self._store(), PAYLOAD_PAGE if with_payload else PAGE
        while left is None or left > 0:
            page = store.find(
                states=states, task=task, queue=queue, tag=tag, since=since, before=before,
                limit=size if left is None else min(size, left), with_payload=with_payload,
            )  # fmt: skip
            yield from page
            if not page:
                return
            if sum(len(job.args) + len(job.result or "") for job in page) < SMALL_PAYLOAD:
                size = min(2 * size, PAGE)
            before, left = page[-1].id, None if left is None else left - len(page)


class Queues:
    """The queues. One exists as soon as it has a job or is paused.

    A job that was inserted in SQL may be in a queue whose name Python would refuse. That queue is handled like others.
    """

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store

    def list(self) -> builtins.list[QueueView]:
        """Return every queue that has waiting or running jobs, or is paused, sorted by name."""
        return self._store().queues()

    def get(self, name: str) -> QueueView:
        """Return the state of one queue, which may be empty."""
        found = next((q for q in self.list() if q.name == name), None)
        return QueueView(queue_name(name), 0, 0, 0, 0.0, None) if found is None else found

    def pause(self, name: str) -> None:
        """Let no worker claim jobs of the queue until `resume`. Running jobs finish, new ones wait."""
        self._store().pause(self.get(name).name)

    def resume(self, name: str) -> bool:
        """Let workers claim jobs of the queue again. Return False if it was not paused."""
        store = self._store()
        was_paused = store.resume(self.get(name).name)
        store.ring()
        return was_paused

    def clear(self, name: str) -> int:
        """Cancel every waiting job of the queue, and return their number. Cancelled jobs can be retried.

        Jobs enqueued meanwhile may stay. A large queue is cleared in several transactions.
        """
        view, store = self.get(name), self._store()
        # Only as many as there were: with a busy producer the queue might never be empty.
        waiting, done = view.due + view.deferred, 0
        while done < waiting and (gone := store.clear(view.name, min(CLEARED_AT_ONCE, waiting - done))):
            done += gone
        store.ring()
        return done


def _after_change(store: Store, is_changed: bool) -> bool:
    """Wake the workers if a job has changed, and return whether it has."""
    # A job that is queued again is due, and so may be a run of a schedule that waited for one that is gone.
    if is_changed:
        store.ring()
    return is_changed
