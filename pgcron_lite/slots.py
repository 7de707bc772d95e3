"""The places where jobs run: a number of resident threads that take claimed jobs from one inbox.

In a process that gevent has patched the same threads are greenlets. They are started as they are needed, never one
per job, and never die of what a job does.
"""

from __future__ import annotations

import collections
import contextvars
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from . import execute
from .errors import PgCronError
from .execute import Ended
from .job import Job

if TYPE_CHECKING:
    from .app import PgCron

logger = logging.getLogger(__name__)


class Slots:
    """`count` places to run jobs in. What ended waits in `ended`; `tell` is called when there is something."""

    def __init__(self, app: PgCron, count: int, tell: Callable[[], None], is_stopping: Callable[[], bool]) -> None:
        self.count = count
        self.ended: collections.deque[Ended] = collections.deque()
        self._app = app
        self._tell = tell
        self._is_stopping = is_stopping
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Jobs put in and not ended yet. Changed by the worker's loop and by slots, so under a lock.
        self._busy = 0
        self._counting = threading.Lock()

    @property
    def busy(self) -> int:
        """How many jobs are in the slots, begun or not."""
        return self._busy

    @property
    def free(self) -> int:
        return max(0, self.count - self._busy)

    def put(self, job: Job) -> None:
        """Give a job to the next free slot."""
        with self._counting:
            self._busy += 1
            wanted = self._busy
        if wanted > len(self._threads) and len(self._threads) < self.count:
            self._grow()
        self._inbox.put(job)

    def take_back(self) -> list[Job]:
        """Jobs that no slot has begun; they will not be run here."""
        back: list[Job] = []
        try:
            while True:
                job = self._inbox.get_nowait()
                if job is not None:
                    back.append(job)
        except queue.Empty:
            pass
        with self._counting:
            self._busy -= len(back)
        return back

    def close(self) -> None:
        """Let idle slots end. A slot that runs a job ends after it."""
        for _ in self._threads:
            self._inbox.put(None)

    def _grow(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"pgcron-slot-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise PgCronError(f"this process may not start a single thread for its jobs: {error}") from error
            logger.warning("cannot start more than %d slots: %s", len(self._threads), error)
            self.count = len(self._threads)
            return
        self._threads.append(thread)

    def _serve(self) -> None:
        process = os.getpid()
        while (job := self._next()) is not None:
            ended = self._run(job)
            if os.getpid() != process:
                _end_forked_child(ended)
            self.ended.append(ended)
            with self._counting:
                self._busy -= 1
            self._tell()

    def _next(self) -> Job | None:
        while True:
            try:
                return self._inbox.get()
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
