"""Standard output and standard error of a worker: reopened when a task has closed them.

All jobs of a process share them. After a job that closes `sys.stdout`, every `print` of other jobs and the worker's own
log would fail with "I/O operation on closed file".
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from dataclasses import dataclass
from typing import TextIO

# The lowest number for spare descriptors, above the numbers that programs use for fixed purposes.
FIRST_SPARE = 10


@dataclass(frozen=True, slots=True)
class _Saved:
    """The properties of a stream, with a spare descriptor of the file that it writes to."""

    number: int
    spare: int
    encoding: str
    errors: str | None


class Streams:
    """The standard output and standard error of a running worker."""

    def __init__(self) -> None:
        self._saved: dict[str, _Saved] = {}

    def save(self) -> None:
        """Save the files that the streams write to. Streams without a descriptor are ignored."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            try:
                number = stream.fileno()
                spare = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_SPARE)
            except (AttributeError, OSError, ValueError):
                continue
            self._saved[name] = _Saved(number, spare, stream.encoding, stream.errors)

    def repair(self) -> None:
        """Reopen the streams that a task has closed."""
        for name, saved in self._saved.items():
            stream = getattr(sys, name)
            if getattr(stream, "closed", False):
                self._open_again(name, saved, stream)
            elif not _is_open(saved.number):
                with contextlib.suppress(OSError):
                    os.dup2(saved.spare, saved.number)

    def close(self) -> None:
        """Close the spare descriptors."""
        for saved in self._saved.values():
            with contextlib.suppress(OSError):
                os.close(saved.spare)
        self._saved.clear()

    def _open_again(self, name: str, saved: _Saved, closed: TextIO) -> None:
        try:
            # The number may belong to another open file by now.
            number = os.dup(saved.spare) if _is_open(saved.number) else os.dup2(saved.spare, saved.number)
        except OSError:
            return
        stream = open(number, "w", buffering=1, encoding=saved.encoding, errors=saved.errors)  # noqa: SIM115
        setattr(sys, name, stream)
        for handler in _handlers():
            if isinstance(handler, logging.StreamHandler) and handler.stream is closed:
                # Not setStream(), which would flush the closed stream.
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
