"""The one place where a process sleeps.

`Wake.wait` sleeps until time is up, a watched socket has something to read, or somebody called `ring`: a signal
handler, a slot whose job ended, the heartbeat. Nothing else in a worker blocks.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


class Wake:
    """A self-pipe and a wait on it. `poller` makes what waits, for a thread that is not to wait by an event loop."""

    def __init__(self, poller: Callable[[], Any] | None = None) -> None:
        # poll and not select.select, which fails for descriptors from 1024 on.
        self._poller = poller or select.poll
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._pipe = os.fstat(self._reader).st_ino

    def ring(self) -> None:
        """End the sleep. Safe from signal handlers and from any thread; never blocks, never raises."""
        # A full pipe already means "awake"; a closed one means nobody sleeps any more.
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
        # Who rings later must not write into what is opened under that number next.
        self._reader = self._writer = -1
        os.close(reader)
        os.close(writer)

    def _is_ours(self) -> bool:
        # Both ends, which have one inode: what is opened under the number of either would be read or written.
        try:
            return os.fstat(self._reader).st_ino == os.fstat(self._writer).st_ino == self._pipe
        except OSError:
            return False

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass


def _give_up() -> NoReturn:
    """End the process where it stands: a task has closed descriptors that were not its own.

    Ours are gone, and with them those of our connections. What is opened next gets their numbers, and statements would
    be sent over, and answers read from, whatever that is. The database rescues the jobs, as after any crash.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"pgcron_lite: a task has closed descriptors that were not its own; this process ends at once\n")
    os._exit(70)
