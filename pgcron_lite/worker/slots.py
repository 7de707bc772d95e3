"""Slots: a fixed number of threads that run claimed jobs from one queue.

In a process that gevent has patched these threads are greenlets. They are started when needed and reused for many jobs.
An exception in a job does not end them.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..clock import Clock, monotonic
from ..errors import PgCronError
from ..job import Job
from . import execute
from .execute import Ended

if TYPE_CHECKING:
    from ..app import PgCron

logger = logging.getLogger(__name__)


# How long idle slots may take to end. They have nothing to do, but may have to wait for a processor.
JOIN_SECONDS = 5.0
# The interval between two checks for slots that have ended.
CHECK_SECONDS = 1.0

# A job, the time since which it is ours, and the time since which it waits for a slot.
Waiting = tuple[Job, float, float]


class SlotThread(threading.Thread):
    """The thread of a slot. It is recognized by its class, because a job may rename its thread."""

    def __init__(self, serve: Callable[[SlotThread], None], name: str) -> None:
        super().__init__(target=serve, args=(self,), name=name, daemon=True)
        # At most one job: not started (Waiting), running (Job), or finished (Ended).
        self.holds: list[Any] = []
        # The last exception that was thrown in while no task was running.
        self.thrown: BaseException | None = None


class Slots:
    """`count` slots that run jobs, and a few jobs that wait for one. Finished jobs are collected from `ended`.

    `wake_loop` is called when there is something to collect: no job waits any more, or `enough` have ended. A job that
    has been ours for longer than `max_age` seconds is not started: the process must have been frozen, and another
    worker may have the job by now.
    """

    def __init__(
        self,
        app: PgCron,
        count: int,
        wake_loop: Callable[[], None],
        is_stopping: Callable[[], bool],
        max_age: float = math.inf,
        clock: Clock = monotonic,
    ) -> None:
        self.count = count
        self.enough = 1
        self.ended: collections.deque[Ended] = collections.deque()
        self._app = app
        self._wake_loop = wake_loop
        self._is_stopping = is_stopping
        self._max_age = max_age
        self._clock = clock
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._late: collections.deque[Waiting] = collections.deque()
        # Each item ends the wait of one slot. It stays until a slot takes it, so that none is lost.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._threads: list[SlotThread] = []
        # The names of exceptions thrown into slots while no task was running, and the time of the next check for them.
        self._thrown: collections.deque[str] = collections.deque()
        self._check_at = 0.0
        # Changed only by the worker's loop. The slots change only the deques.
        self._given = self._returned = 0
        self._was_woken = self._closing = False

    @property
    def busy(self) -> int:
        """The number of jobs that run or wait for a slot."""
        return self._given - self._returned - len(self.ended)

    @property
    def free(self) -> int:
        return max(0, self.count - self.busy)

    @property
    def waiting(self) -> int:
        """The number of jobs that no slot has started."""
        return len(self._waiting)

    def waited(self, now: float) -> float:
        """Return how many seconds the next job has waited."""
        try:
            return now - self._waiting[0][2]
        except IndexError:
            return 0.0

    @property
    def has_late(self) -> bool:
        """True if there are jobs that were not started because they had been ours for too long."""
        return bool(self._late)

    def put(self, *jobs: Job, since: float | None = None) -> None:
        """Give jobs to the next free slots. They are ours `since` that time, by default since now."""
        now = self._clock()
        since = now if since is None else since
        self._given += len(jobs)
        self._waiting.extend([(job, since, now) for job in jobs])
        self._grow_as_needed()
        for _ in range(min(len(jobs), len(self._threads)) - self._bell.qsize()):
            self._bell.put(None)

    def collect(self) -> list[Ended]:
        """Remove and return the finished jobs."""
        # Reset the flag first, so that a job that ends from here on wakes the loop again.
        self._was_woken = False
        if self._clock() >= self._check_at and not self._closing:
            self._check_threads()
        ended = []
        while self.ended:
            ended.append(self.ended.popleft())
            self._returned += 1
        return ended

    def take_back(self) -> list[Job]:
        """Remove and return the jobs that no slot has started. They will not run here."""
        back = []
        with contextlib.suppress(IndexError):
            while True:
                back.append(self._late.popleft()[0])
        with contextlib.suppress(IndexError):
            while True:
                back.append(self._waiting.popleft()[0])
        self._returned += len(back)
        return back

    def close(self, seconds: float = JOIN_SECONDS) -> None:
        """End the idle slots and wait up to `seconds` for them. A slot that runs a job ends after the job."""
        self._closing = True
        for _ in self._threads:
            self._bell.put(None)
        # Jobs that still run have been handed back, and may never end.
        deadline = time.monotonic() + seconds
        while len(living := [t for t in self._threads if t.is_alive()]) > self.busy and time.monotonic() < deadline:
            living[-1].join(0.01)

    def _grow_as_needed(self) -> None:
        while len(self._threads) < min(self.count, self.busy) and self._grow():
            pass

    def _grow(self) -> bool:
        thread = SlotThread(self._serve, f"pgcron-slot-{len(self._threads)}")
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise PgCronError(f"this process may not start a single thread for its jobs: {error}") from error
            logger.warning("cannot start more than %d slots: %s", len(self._threads), error)
            self.count = len(self._threads)
            return False
        self._threads.append(thread)
        return True

    def _check_threads(self) -> None:
        """Log the exceptions thrown into slots, and replace slots that were ended by one."""
        self._check_at = self._clock() + CHECK_SECONDS
        while self._thrown:
            logger.warning("dropped a %s that was thrown into a slot after its job had ended", self._thrown.popleft())
        for thread in [thread for thread in self._threads if not thread.is_alive()]:
            logger.warning("a slot was ended by something that an earlier job left running; it is replaced")
            self._threads.remove(thread)
            self._recover_job(thread)
            self._grow_as_needed()

    def _serve(self, thread: SlotThread) -> None:
        process = os.getpid()
        while True:
            try:
                return self._serve_until_closed(thread)
            except BaseException as error:
                # Meant for a job that is over: a deadline of another thread or of a greenlet, or code that kills every
                # greenlet. Not logged here: a second exception could leave the lock of a log handler locked for ever.
                if os.getpid() != process:
                    os._exit(1)
                thread.thrown = error
                self._thrown.append(type(error).__name__)
                self._check_at = 0.0

    def _serve_until_closed(self, thread: SlotThread) -> None:
        # An exception may be thrown in at any point. So a job moves from one container to the next in a single C call,
        # during which no exception is thrown in: exactly one container has it at any time.
        holds, process = thread.holds, os.getpid()
        if thread.thrown is not None:
            self._recover_job(thread)
        while True:
            try:
                holds.extend(map(collections.deque.popleft, (self._waiting,)))
            except IndexError:
                if self._closing:
                    return
                self._bell.get()
                continue
            job, since, _ = holds[0]
            if self._clock() - since > self._max_age:
                self._late.extend(map(list.pop, (holds,)))
                self._wake_loop_once()
                continue
            holds[0] = job
            holds[0] = ended = self._run(job)
            if os.getpid() != process:
                _end_forked_child(ended)
            self.ended.extend(map(list.pop, (holds,)))
            if not self._waiting or len(self.ended) >= self.enough:
                self._wake_loop_once()

    def _recover_job(self, thread: SlotThread) -> None:
        """Move the job that a slot held when an exception was thrown in to the right queue, and wake the loop."""
        holds = thread.holds
        if holds and isinstance(holds[0], tuple):
            self._waiting.extendleft(map(list.pop, (holds,)))
        elif holds:
            if isinstance(holds[0], Job):
                holds[0] = execute.interrupted(holds[0], thread.thrown or SystemExit())
            self.ended.extend(map(list.pop, (holds,)))
        # Unconditionally: the exception may have come between the flag and the call of the slot.
        self._was_woken = True
        self._wake_loop()

    def _wake_loop_once(self) -> None:
        """Wake the loop, but only once until it collects: a byte through a pipe costs more than a short job."""
        if not self._was_woken:
            self._was_woken = True
            self._wake_loop()

    def _run(self, job: Job) -> Ended:
        try:
            # In a new context, so that context variables set by one job do not reach the next.
            return contextvars.Context().run(execute.run, self._app, job, self._is_stopping)
        except BaseException as error:
            # Thrown in by another thread outside the task's own code.
            return execute.interrupted(job, error)


def check_slots(count: object) -> int:
    """Return `count` if it is a valid number of slots; raise an error otherwise."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 10_000:
        raise PgCronError(f"slots={count!r}: expected a whole number from 1 to 10000")
    return count


def _end_forked_child(ended: Ended) -> NoReturn:
    """End a child that a task has forked and that has returned from the task: it must not go on as a worker."""
    code = 0 if ended.error is None else 1
    if isinstance(ended.error, SystemExit):
        given = ended.error.code
        code = given if isinstance(given, int) else int(given is not None)
    for stream in (sys.stdout, sys.stderr):
        # The task may have closed it, or set it to None.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)
