"""Exit of a worker process: an ordinary exit of the interpreter, limited in time."""

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

# Limits for the exit of the interpreter: for threads that tasks have left running, and for exit handlers.
THREADS_SECONDS, HANDLERS_SECONDS = 5.0, 10.0


def leave(code: int) -> NoReturn:
    """End the process with `code` by an ordinary exit of the interpreter: run exit handlers, wait for threads.

    If a job did not stop within the grace, the process ends at once. If a thread that a task left running or an exit
    handler takes too long, it ends after a limit. Both are logged.
    """
    if slots := [t for t in threading.enumerate() if isinstance(t, SlotThread)]:
        jobs = "a job" if len(slots) == 1 else f"{len(slots)} jobs"
        logger.warning("%s did not stop: the process ends at once, and exit handlers do not run", jobs)
        _end_at_once(code)
    # Ignore further stop signals: the process is already exiting, and its exit handlers should complete. The time for
    # that is limited below.
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)
    # In threads outside the hub, parallel to the exit. The second one logs nothing, because logging may block.
    with contextlib.suppress(PgCronError):
        gevent_support.start_outside_the_hub(lambda: _end_after_timeout(code), "pgcron-exit")
        gevent_support.start_outside_the_hub(
            lambda: _end_after_timeout(code, extra_seconds=2.0, logs=False), "pgcron-exit-2"
        )
    sys.exit(code)


def _end_after_timeout(code: int, *, extra_seconds: float = 0.0, logs: bool = True) -> None:
    """End the process after the time that the exit of the interpreter may take."""
    pause = gevent_support.wake_outside_the_hub()
    pause.wait(THREADS_SECONDS + extra_seconds)
    if not _threads_left():
        pause.wait(HANDLERS_SECONDS - THREADS_SECONDS)
    if logs:
        if names := _threads_left():
            logger.warning("tasks left threads running that do not end: %s", ", ".join(names))
        else:
            logger.warning("exit handlers did not end within %g s; the process ends at once", HANDLERS_SECONDS)
        _end_at_once(code)
    os._exit(code)


def _threads_left() -> list[str]:
    """Return the names of the threads that keep the interpreter from exiting."""
    return [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]


def _end_at_once(code: int) -> NoReturn:
    if "pgcron_lite.contrib.crontab.shell" in sys.modules:
        # Their jobs have been handed back, and these commands would run on without supervision.
        sys.modules["pgcron_lite.contrib.crontab.shell"].kill_all()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)
