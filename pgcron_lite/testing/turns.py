"""Whose turn it is: one thread at a time runs jobs, and a task cannot turn the worker that runs it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ..errors import PgCronError
from ..job import Job


class Turns:
    """A thread that wants to run jobs waits for the end of another's turn."""

    def __init__(self) -> None:
        # What runs in the turn that is on.
        self.serving: Job | None = None
        self._lock = threading.RLock()
        self._holder: int | None = None

    @property
    def obstacle(self) -> str:
        """What keeps others from running now, if something does."""
        if self.serving is None:
            return ""
        if self._is_mine:
            return f"{self.serving} waits for it, and it runs after that"
        return f"another thread runs {self.serving}, and it runs after that"

    @contextlib.contextmanager
    def taken(self, what: str) -> Iterator[None]:
        """The turn, for `what`; from within it may be taken again, but not from within a task."""
        if self.serving is not None and self._is_mine:
            way_out = ' Say how long a run lasts with t.takes(task, "20m").' if what == "advance()" else ""
            raise PgCronError(f"{what} within a task ({self.serving}): a task cannot turn its own worker.{way_out}")
        with self._lock, self._held():
            yield

    @contextlib.contextmanager
    def last(self, seconds: float) -> Iterator[bool]:
        """The last turn. False if another thread has not ended its own within `seconds`, and may never."""
        came = self._lock.acquire(timeout=seconds)
        try:
            yield came
        finally:
            if came:
                self._lock.release()

    @property
    def _is_mine(self) -> bool:
        """Does this thread have the turn?"""
        return self._holder == threading.get_ident()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        earlier, self._holder = self._holder, threading.get_ident()
        try:
            yield
        finally:
            self._holder = earlier
