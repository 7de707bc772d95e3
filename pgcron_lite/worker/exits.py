"""The end of a worker process: an ordinary exit of the interpreter, bounded in time."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from typing import NoReturn

from ..errors import PgCronError
from . import gevent_support
from .signals import stop_signals
from .slots import SlotThread

logger = logging.getLogger("pgcron_lite")

# At the exit of the interpreter: how long threads that tasks have left behind may take to end, and exit handlers.
THREADS_SECONDS, HANDLERS_SECONDS = 5.0, 10.0


def leave(code: int) -> NoReturn:
    """End the process with `code`, by an ordinary exit of the interpreter: exit handlers run, threads are waited for.

    A job that did not stop within the grace cannot be waited for, nor for ever a thread that a task left behind. Then
    the process ends at once, and says so.
    """
    if slots := [t for t in threading.enumerate() if isinstance(t, SlotThread)]:
        jobs = "a job" if len(slots) == 1 else f"{len(slots)} jobs"
        logger.warning("%s did not stop: the process ends at once, and exit handlers do not run", jobs)
        _end_at_once(code)
    # Who is told to stop once more is on the way out, and the exit handlers are to end. How long is bounded below.
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)
    # Beside the exit, outside the hub. The second one says nothing, because to say something may block.
    with contextlib.suppress(PgCronError):
        gevent_support.start_outside_the_hub(lambda: _end_after_timeout(code), "pgcron-exit")
        gevent_support.start_outside_the_hub(
            lambda: _end_after_timeout(code, extra_seconds=2.0, logs=False), "pgcron-exit-2"
        )
    sys.exit(code)


def _end_after_timeout(code: int, *, extra_seconds: float = 0.0, logs: bool = True) -> None:
    """Wait as long as the exit of the interpreter may take, then end the process."""
    pause = gevent_support.wake_outside_the_hub()
    pause.wait(THREADS_SECONDS + extra_seconds)
    if not _threads_left():
        pause.wait(HANDLERS_SECONDS - THREADS_SECONDS)
    if logs:
        if names := _threads_left():
            logger.warning("tasks left threads behind that do not end: %s", ", ".join(names))
        else:
            logger.warning("exit handlers did not end within %g s; the process ends at once", HANDLERS_SECONDS)
        _end_at_once(code)
    os._exit(code)


def _threads_left() -> list[str]:
    """The names of the threads that keep the interpreter from exiting."""
    return [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]


def _end_at_once(code: int) -> NoReturn:
    if "pgcron_lite.contrib.crontab.shell" in sys.modules:
        # Their jobs have been handed back, and nobody would watch these commands any more.
        sys.modules["pgcron_lite.contrib.crontab.shell"].kill_all()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)
