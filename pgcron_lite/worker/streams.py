"""Standard output and standard error of a worker: opened anew when a task has closed them.

They belong to the process. A job that closes `sys.stdout` would make every later `print` of other jobs, and the
worker's own log, fail with "I/O operation on closed file".
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from dataclasses import dataclass
from typing import TextIO

# Spare descriptors lie above those that programs expect in a certain place.
FIRST_SPARE = 10


@dataclass(frozen=True, slots=True)
class _Kept:
    """A stream as it was found, with a second descriptor for what it writes to."""

    number: int
    spare: int
    encoding: str
    errors: str | None


class Streams:
    """The two streams for as long as a worker runs."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def take(self) -> None:
        """Remember where the streams write to. Streams without a descriptor are left alone."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            try:
                number = stream.fileno()
                spare = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_SPARE)
            except (AttributeError, OSError, ValueError):
                continue
            self._kept[name] = _Kept(number, spare, stream.encoding, stream.errors)

    def keep(self) -> None:
        """Open anew what a task has closed."""
        for name, kept in self._kept.items():
            stream = getattr(sys, name)
            if getattr(stream, "closed", False):
                self._open_again(name, kept, stream)
            elif not _is_open(kept.number):
                with contextlib.suppress(OSError):
                    os.dup2(kept.spare, kept.number)

    def give_back(self) -> None:
        """Close the spare descriptors."""
        for kept in self._kept.values():
            with contextlib.suppress(OSError):
                os.close(kept.spare)
        self._kept.clear()

    def _open_again(self, name: str, kept: _Kept, closed: TextIO) -> None:
        try:
            # Something else may have been opened under that number since.
            number = os.dup(kept.spare) if _is_open(kept.number) else os.dup2(kept.spare, kept.number)
        except OSError:
            return
        stream = open(number, "w", buffering=1, encoding=kept.encoding, errors=kept.errors)  # noqa: SIM115
        setattr(sys, name, stream)
        for handler in _handlers():
            if isinstance(handler, logging.StreamHandler) and handler.stream is closed:
                # Not setStream(), which would flush the closed one.
                handler.stream = stream


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _handlers() -> list[logging.Handler]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    return [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
