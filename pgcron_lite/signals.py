"""Signals of a worker process: noted by a handler that does nothing else, heeded by the loop."""

from __future__ import annotations

import collections
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Signals:
    """SIGTERM and SIGINT for as long as they are taken. Elsewhere than in the main thread nothing is taken."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._noted: collections.deque[int] = collections.deque()
        self._before: dict[int, Any] = {}
        # One object: a bound method is a new one each time it is named.
        self._handler = self._note
        _taken.add(self)

    def __bool__(self) -> bool:
        """Is there one that has not been heeded?"""
        return bool(self._noted)

    def __iter__(self) -> Iterator[int]:
        """Take what was noted, in order."""
        while self._noted:
            yield self._noted.popleft()

    def take(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handler)

    def keep(self) -> None:
        """A task may have installed handlers of its own; ours decide whether a deploy loses time."""
        for number in self._before:
            if signal.getsignal(number) is not self._handler:
                signal.signal(number, self._handler)

    def give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing else: no logging, no locks, no database. The loop does the rest.
        self._noted.append(number)
        self._tell()


_taken: weakref.WeakSet[Signals] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child that a task has forked: a signal to it is not one to the worker, and may end it."""
    for signals in list(_taken):
        signals.give_back()


os.register_at_fork(after_in_child=_after_fork)
