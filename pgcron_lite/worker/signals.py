"""Signals of a worker process: recorded by a minimal handler, handled by the loop."""

from __future__ import annotations

# The C part of `signal`. Its Python part converts each value to an enum and back, which cost ten times as much as the
# calls, and the loop installs its handlers in every turn.
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
    """The pending SIGTERM, SIGHUP and SIGINT signals of a worker. Handlers are installed only in the main thread."""

    def __init__(self, wake_loop: Callable[[], None]) -> None:
        self._wake_loop = wake_loop
        self._pending: collections.deque[int] = collections.deque()
        self._before: dict[int, Any] = {}
        # One object: every access to a bound method creates a new one.
        self._handler = self._note
        _installed.add(self)

    def __bool__(self) -> bool:
        """Return True if a signal has not been handled yet."""
        return bool(self._pending)

    def __iter__(self) -> Iterator[int]:
        """Remove and yield the recorded signals, in order."""
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
        # Unconditionally: getsignal() does not show handlers that C code has installed.
        for number in self._before:
            _signal.signal(number, self._handler)
        _signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)

    def restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed by Python, and that Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing else: no logging, no locks, no database. The loop does the rest.
        self._pending.append(number)
        self._wake_loop()


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a process. An ignored SIGHUP stays ignored, as `nohup` requires."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, signal.SIGHUP


_installed: weakref.WeakSet[Signals] = weakref.WeakSet()


def _after_fork() -> None:
    """Restore the handlers in a child that a task has forked: a signal to the child must not stop the worker."""
    for signals in list(_installed):
        signals.restore()


os.register_at_fork(after_in_child=_after_fork)
