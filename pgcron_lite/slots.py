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
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from . import execute
from .clock import Clock, monotonic
from .errors import PgCronError
from .execute import Ended
from .job import Job

if TYPE_CHECKING:
    from .app import PgCron

logger = logging.getLogger(__name__)


class Slots:
    """`count` places to run jobs in, and a few jobs that wait for one. What ended waits in `ended`.

    `tell` is called when somebody should look there: nothing waits any more, or there is `enough`. Nothing begins that
    has been ours for longer than `patience` seconds: this process must have been frozen, and it may be others' now.
    """

    def __init__(
        self,
        app: PgCron,
        count: int,
        tell: Callable[[], None],
        is_stopping: Callable[[], bool],
        patience: float = math.inf,
        clock: Clock = monotonic,
    ) -> None:
        self.count = count
        self.enough = 1
        self.ended: collections.deque[Ended] = collections.deque()
        self._app = app
        self._tell = tell
        self._is_stopping = is_stopping
        self._patience = patience
        self._clock = clock
        # Each with the moments since when it has been ours, and since when it waits.
        self._waiting: collections.deque[tuple[Job, float, float]] = collections.deque()
        self._late: collections.deque[Job] = collections.deque()
        # Ends the rest of one slot. Kept until a slot comes for it, so that none can be missed.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Counted by the worker's loop alone; what slots change are the deques.
        self._given = self._returned = 0
        self._told = self._closing = False

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
        while len(self._threads) < min(self.count, self.busy) and self._grow():
            pass
        for _ in range(min(len(jobs), len(self._threads)) - self._bell.qsize()):
            self._bell.put(None)

    def collect(self) -> list[Ended]:
        """Take what ended."""
        # In this order: what ends from here on is told again.
        self._told = False
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
                back.append(self._late.popleft())
        with contextlib.suppress(IndexError):
            while True:
                back.append(self._waiting.popleft()[0])
        self._returned += len(back)
        return back

    def close(self) -> None:
        """Let idle slots end. A slot that runs a job ends after it."""
        self._closing = True
        for _ in self._threads:
            self._bell.put(None)

    def _grow(self) -> bool:
        thread = threading.Thread(target=self._serve, name=f"pgcron-slot-{len(self._threads)}", daemon=True)
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

    def _serve(self) -> None:
        process = os.getpid()
        while True:
            try:
                job, since, _ = self._waiting.popleft()
            except IndexError:
                if self._closing:
                    return
                self._rest()
                continue
            if self._clock() - since > self._patience:
                self._late.append(job)
                self._say()
                continue
            ended = self._run(job)
            if os.getpid() != process:
                _end_forked_child(ended)
            self.ended.append(ended)
            if not self._waiting or len(self.ended) >= self.enough:
                self._say()

    def _say(self) -> None:
        """Once, until somebody has come: a byte through a pipe costs more than a short job."""
        if not self._told:
            self._told = True
            self._tell()

    def _rest(self) -> None:
        try:
            self._bell.get()
        except BaseException as error:
            # Under gevent a deadline that a job has set and forgotten goes off here, or it has every greenlet
            # killed. Both are meant for the job, which is gone; the slot stays.
            logger.warning("a job has left a %s behind, which is dropped", type(error).__name__)

    def _run(self, job: Job) -> Ended:
        try:
            # A context of its own, so that what one job sets does not reach the next.
            return contextvars.Context().run(execute.run, self._app, job, self._is_stopping)
        except BaseException as error:
            # Thrown in by another thread when the task was no longer there to take it.
            return execute.thrown_off(job, error)


def _end_forked_child(ended: Ended) -> NoReturn:
    """A task has forked, and its child has come back out of the task: it is no worker, and must not become one."""
    code = 0 if ended.error is None else 1
    if isinstance(ended.error, SystemExit):
        given = ended.error.code
        code = given if isinstance(given, int) else int(given is not None)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)
