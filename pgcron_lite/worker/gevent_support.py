"""Support for processes that gevent has patched. Only this module and the program start use gevent."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from ..errors import LatePatch, PgCronError
from .wake import Wake

STARTED_OVER = "PGCRON_STARTED_OVER"


def is_patched() -> bool:
    """Return True if gevent has patched threads, so that they are greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return bool(monkey and monkey.is_module_patched("threading"))


def unpatched(module: ModuleType, name: str) -> Any:
    """Return the function of `module` from before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module.__name__, name) if monkey else getattr(module, name)


def wake_outside_the_hub() -> Wake:
    """Return a `Wake` for a thread outside the hub.

    It does not wait by an event loop of that thread, which could lose its timer to an exception thrown into the thread.
    """
    return Wake(unpatched(select, "poll"))


def start_outside_the_hub(run: Callable[[], None], name: str) -> None:
    """Run `run` in a thread of the operating system, which a task that computes cannot delay.

    Under gevent the thread belongs to a separate gevent thread pool: threads started without gevent have deadlocked
    during their setup.
    """
    if is_patched():
        from gevent.threadpool import ThreadPool

        ThreadPool(1).spawn(run)
        return
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as error:
        raise PgCronError(f"this process may not start the threads it needs: {error}") from error


def ensure_patched() -> None:
    """Return if gevent has patched this process; otherwise replace the process by a patched one."""
    started_over = os.environ.pop(STARTED_OVER, None)
    if not is_patched():
        _start_over_patched(started_over is not None)


def _start_over_patched(again: bool) -> NoReturn:
    """Replace this process by one that runs the same command with gevent patched before anything else."""
    if again:
        raise LatePatch("the process was started again patched by gevent and still is not; is gevent installed?")
    os.environ[STARTED_OVER] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *_patched_command(sys.orig_argv[1:])])


def _patched_command(command: list[str]) -> list[str]:
    """Return the command that runs `script.py ...` or `-m module ...` under `gevent.monkey`."""
    flags: list[str] = []
    while command and command[0].startswith("-") and command[0] not in ("-m", "-c", "-"):
        flags += command[: 2 if command[0] in ("-X", "-W") else 1]
        command = command[2 if command[0] in ("-X", "-W") else 1 :]
    if not command or command[0] in ("-c", "-"):
        raise LatePatch(
            "gevent=True starts the program again, patched from the beginning; that needs a file or a module."
            " Use `pgcron worker --gevent`, or put gevent.monkey.patch_all() first."
        )
    if command[0] == "-m":
        return [*flags, "-m", "gevent.monkey", "--module", *command[1:]]
    return [*flags, "-m", "gevent.monkey", *command]
