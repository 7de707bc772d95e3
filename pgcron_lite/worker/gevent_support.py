"""The little that differs when gevent has patched the process. The only module, beside the start, that knows gevent."""

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
    """Are threads greenlets here?"""
    monkey = sys.modules.get("gevent.monkey")
    return bool(monkey and monkey.is_module_patched("threading"))


def unpatched(module: ModuleType, name: str) -> Any:
    """The function of `module` as it was before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module.__name__, name) if monkey else getattr(module, name)


def wake_outside_the_hub() -> Wake:
    """A sleep for a thread outside the hub: its own event loop could lose the timer to an exception thrown in."""
    return Wake(unpatched(select, "poll"))


def start_outside_the_hub(run: Callable[[], None], name: str) -> None:
    """Run `run` in a thread of the operating system, which no task that computes can hold up.

    Under gevent that is a thread of a pool of its own: threads started behind gevent's back have been seen to
    deadlock while they set up.
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
    """Go on if gevent has patched this process; else replace it by one that it has."""
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
    """`script.py ...` or `-m module ...`, run by gevent's own starter."""
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
