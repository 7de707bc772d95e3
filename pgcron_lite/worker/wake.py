"""The only place where a worker process sleeps.

`Wake.wait` sleeps until the time is over, a watched socket is readable, or `ring` is called: by a signal handler, a
slot whose job ended, or the heartbeat. Nothing else in a worker's loop blocks.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


class Wake:
    """A self-pipe to wait on. `poller` creates the poll object, for threads that must not wait by an event loop."""

    def __init__(self, poller: Callable[[], Any] | None = None) -> None:
        # poll rather than select.select, which fails for descriptors of 1024 and above.
        self._poller = poller or select.poll
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._pipe = os.fstat(self._reader).st_ino

    def ring(self) -> None:
        """End the sleep. Safe from signal handlers and from any thread; never blocks, never raises."""
        # If the pipe is full, the sleep ends anyway. If it is closed, there is no sleep to end.
        with contextlib.suppress(OSError):
            os.write(self._writer, b"!")

    def wait(self, seconds: float, sockets: Iterable[int] = ()) -> None:
        """Sleep for at most `seconds`."""
        poller = self._poller()
        poller.register(self._reader, select.POLLIN)
        for fd in sockets:
            poller.register(fd, select.POLLIN)
        poller.poll(max(0, int(seconds * 1000 + 0.999)))
        if not self._is_ours():
            _give_up()
        self._drain()

    def close(self) -> None:
        reader, writer = self._reader, self._writer
        # A later `ring` must not write into a file that gets this number next.
        self._reader = self._writer = -1
        os.close(reader)
        os.close(writer)

    def _is_ours(self) -> bool:
        # Check both ends, which share one inode: a file opened under either number would be read or written.
        try:
            return os.fstat(self._reader).st_ino == os.fstat(self._writer).st_ino == self._pipe
        except OSError:
            return False

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass


def _give_up() -> NoReturn:
    """End the process at once: a task has closed descriptors that were not its own.

    The descriptors of our connections are probably closed too. The files opened next get their numbers, and statements
    would be written into them and replies read from them. Other workers rescue the jobs, as after any crash.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"pgcron_lite: a task has closed descriptors that were not its own; this process ends at once\n")
    os._exit(70)
