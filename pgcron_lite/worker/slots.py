"""The places where jobs run: a number of resident threads that take claimed jobs from one queue.

In a process that gevent has patched the same threads are greenlets. They are started as they are needed, never one
per job, and never die of what a job does.
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


# How long idle slots may take to end. They wait for nothing, but may have to wait for a processor.
JOIN_SECONDS = 5.0
# How often slots that have ended are looked for.
CHECK_SECONDS = 1.0

# A job with the moments since when it has been ours, and since when it waits.
Waiting = tuple[Job, float, float]


class SlotThread(threading.Thread):
    """The thread of a slot, known by its class: a job may rename the thread it runs in."""

    def __init__(self, serve: Callable[[SlotThread], None], name: str) -> None:
        super().__init__(target=serve, args=(self,), name=name, daemon=True)
        # One job at most: one that has not begun (Waiting), one that has (Job), or what it came to (Ended).
        self.holds: list[Any] = []
        # The exception that was thrown in last beside a job.
        self.thrown: BaseException | None = None


class Slots:
    """`count` places to run jobs in, and a few jobs that wait for one. What ended waits in `ended`.

    `tell` is called when somebody should look there: nothing waits any more, or there is `enough`. Nothing begins that
    has been ours for longer than `patience` seconds: this process must have been frozen, and it may be others' now.
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
        # Ends the rest of one slot. Kept until a slot comes for it, so that none can be missed.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._threads: list[SlotThread] = []
        # What was thrown into slots beside a job, and when to look for that again.
        self._thrown: collections.deque[str] = collections.deque()
        self._check_at = 0.0
        # Counted by the worker's loop alone; what slots change are the deques.
        self._given = self._returned = 0
        self._was_woken = self._closing = False

    @property
    def busy(self) -> int:
        """How many jobs are in the slots or wait for one."""
        return self._given - self._returned - len(self.ended)

    @property
    def free(self) -> int:
        return max(0, self.count - self.busy)

    @property
    def waiting(self) -> int:
        """How many jobs no slot has begun."""
        return len(self._waiting)

    def waited(self, now: float) -> float:
        """For how long the one that is next has waited."""
        try:
            return now - self._waiting[0][2]
        except IndexError:
            return 0.0

    @property
    def has_late(self) -> bool:
        """Is there something that was not begun because it had waited for too long?"""
        return bool(self._late)

    def put(self, *jobs: Job, since: float | None = None) -> None:
        """Give jobs to the next free slots. They have been ours `since` then, or now."""
        now = self._clock()
        since = now if since is None else since
        self._given += len(jobs)
        self._waiting.extend([(job, since, now) for job in jobs])
        self._grow_as_needed()
        for _ in range(min(len(jobs), len(self._threads)) - self._bell.qsize()):
            self._bell.put(None)

    def collect(self) -> list[Ended]:
        """Take what ended."""
        # In this order: what ends from here on is told again.
        self._was_woken = False
        if self._clock() >= self._check_at and not self._closing:
            self._check_threads()
        ended = []
        while self.ended:
            ended.append(self.ended.popleft())
            self._returned += 1
        return ended

    def take_back(self) -> list[Job]:
        """Jobs that no slot has begun; they will not be run here."""
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
        """End the idle slots, and wait up to `seconds` for them. A slot that runs a job ends after it."""
        self._closing = True
        for _ in self._threads:
            self._bell.put(None)
        # The jobs that still run have been handed back, and nothing says when they end.
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
        """Say what has been thrown into slots, and replace those that it has ended."""
        self._check_at = self._clock() + CHECK_SECONDS
        while self._thrown:
            logger.warning("a job has left a %s behind, which is dropped", self._thrown.popleft())
        for thread in [thread for thread in self._threads if not thread.is_alive()]:
            logger.warning("something that a job has left behind has ended its slot, which is replaced")
            self._threads.remove(thread)
            self._recover_job(thread)
            self._grow_as_needed()

    def _serve(self, thread: SlotThread) -> None:
        process = os.getpid()
        while True:
            try:
                return self._serve_until_closed(thread)
            except BaseException as error:
                # Meant for a job that is over: a deadline that another thread keeps, or a greenlet's own, or somebody
                # kills every greenlet. Not logged here: the next one could leave a handler's lock locked for ever.
                if os.getpid() != process:
                    os._exit(1)
                thread.thrown = error
                self._thrown.append(type(error).__name__)
                self._check_at = 0.0

    def _serve_until_closed(self, thread: SlotThread) -> None:
        # At any point an exception may be thrown in. So a job goes from one place to the next in one call of C, in
        # which nothing is thrown in: there is always exactly one place that has it.
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
        """Bring what a slot held when something was thrown in to where it belongs, and say so."""
        holds = thread.holds
        if holds and isinstance(holds[0], tuple):
            self._waiting.extendleft(map(list.pop, (holds,)))
        elif holds:
            if isinstance(holds[0], Job):
                holds[0] = execute.interrupted(holds[0], thread.thrown or SystemExit())
            self.ended.extend(map(list.pop, (holds,)))
        # The slot may have been about to.
        self._was_woken = True
        self._wake_loop()

    def _wake_loop_once(self) -> None:
        """Once, until somebody has come: a byte through a pipe costs more than a short job."""
        if not self._was_woken:
            self._was_woken = True
            self._wake_loop()

    def _run(self, job: Job) -> Ended:
        try:
            # A context of its own, so that what one job sets does not reach the next.
            return contextvars.Context().run(execute.run, self._app, job, self._is_stopping)
        except BaseException as error:
            # Thrown in by another thread when the task was no longer there to take it.
            return execute.interrupted(job, error)


def check_slots(count: object) -> int:
    """A number of slots, or a sentence about it."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 10_000:
        raise PgCronError(f"slots={count!r}: expected a whole number from 1 to 10000")
    return count


def _end_forked_child(ended: Ended) -> NoReturn:
    """A task has forked, and its child has come back out of the task: it is no worker, and must not become one."""
    code = 0 if ended.error is None else 1
    if isinstance(ended.error, SystemExit):
        given = ended.error.code
        code = given if isinstance(given, int) else int(given is not None)
    for stream in (sys.stdout, sys.stderr):
        # The task may have closed it, or set it to None.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)
