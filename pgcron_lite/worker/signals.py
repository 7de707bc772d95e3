"""Signals of a worker process: noted by a handler that does nothing else, heeded by the loop."""

from __future__ import annotations

# The C part of `signal`, whose Python part converts each value to an enum and back. The loop installs its handlers in
# every turn, and that conversion cost ten times the calls.
import _signal  # type: ignore[import-not-found]
import collections
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Signals:
    """SIGTERM, SIGHUP and SIGINT for as long as they are taken. Outside the main thread nothing is taken."""

    def __init__(self, wake_loop: Callable[[], None]) -> None:
        self._wake_loop = wake_loop
        self._pending: collections.deque[int] = collections.deque()
        self._before: dict[int, Any] = {}
        # One object: a bound method is a new one each time it is named.
        self._handler = self._note
        _installed.add(self)

    def __bool__(self) -> bool:
        """Is there one that has not been heeded?"""
        return bool(self._pending)

    def __iter__(self) -> Iterator[int]:
        """Take what was noted, in order."""
        while self._pending:
            yield self._pending.popleft()

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._before[number] = signal.signal(number, self._handler)

    def reinstall(self) -> None:
        """Install the handlers again: a task may have replaced, ignored or blocked the signals."""
        if not self._before:
            return
        # Without asking whether it is necessary: getsignal() does not show what C code has installed.
        for number in self._before:
            _signal.signal(number, self._handler)
        _signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)

    def restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed by Python, and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing else: no logging, no locks, no database. The loop does the rest.
        self._pending.append(number)
        self._wake_loop()


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that tell a process to stop. A SIGHUP that is ignored stays ignored: that is what `nohup` is for."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, signal.SIGHUP


_installed: weakref.WeakSet[Signals] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child that a task has forked: a signal to it is not one to the worker, and may end it."""
    for signals in list(_installed):
        signals.restore()


os.register_at_fork(after_in_child=_after_fork)
