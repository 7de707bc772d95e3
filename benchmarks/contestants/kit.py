"""Shared code of the contestants written in Python: their calls, their marks, and their common start.

It runs in environments without this project, so it needs only the standard library. PROTOCOL.md describes each part.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

COUNT, FIRST, LAST = 0, 1, 2
_ROW = 3 * 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The call of a verb. A verb reads the fields that PROTOCOL.md names for it."""

    marks: Path
    url: str = ""
    host: str = ""
    port: int = 0
    user: str = ""
    database: str = ""
    redis: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    count: int = 0
    warm_up: int = 0
    every_seconds: float = 0.0
    task: str = "noop"
    slots: int | None = None
    case: str = ""


Answer = dict[str, Any] | None
Verb = Callable[[Request], Answer]


def main(verbs: dict[str, Verb]) -> None:
    """Run the verb that the command line names and print its answer as the last line."""
    name, text = sys.argv[1:3]
    fields = {**json.loads(text)}
    request = Request(marks=Path(os.environ["BENCH_MARKS"]), **fields)
    answer = verbs[name](request) if name in verbs else {"unsupported": f"has no {name}"}
    print(json.dumps(answer or {}), flush=True)


# ---- The bodies of the three tasks.


def noop() -> None:
    """The body of the task `noop`."""
    _marks().add()


def nap() -> None:
    """The body of the task `sleep`, where bodies are plain functions."""
    time.sleep(0.001)
    _marks().add()


async def nap_async() -> None:
    """The body of the task `sleep`, where bodies are coroutines."""
    import asyncio

    await asyncio.sleep(0.001)
    _marks().add()


def stamp(sent: int) -> None:
    """The body of the task `stamp`: record how long ago the job was sent."""
    marks = _marks()
    marks.note(now() - sent)
    marks.add()


def now() -> int:
    """Return the microseconds of a clock that all processes of the machine share."""
    return time.monotonic_ns() // 1000


# ---- The producers.


def produce(send: Callable[[], object], request: Request) -> dict[str, Any]:
    """Call `send` for the warm-up, wait for the start, then call it `count` times. The answer of `enqueue`."""
    for _ in range(request.warm_up):
        send()
    wait_for_start()
    began = now()
    for _ in range(request.count):
        send()
    return {"began": began, "ended": now(), "jobs": request.count}


async def produce_async(send: Callable[[], Awaitable[object]], request: Request) -> dict[str, Any]:
    """The `produce` for coroutines, one job after the other."""
    for _ in range(request.warm_up):
        await send()
    wait_for_start()
    began = now()
    for _ in range(request.count):
        await send()
    return {"began": began, "ended": now(), "jobs": request.count}


def trickle(send: Callable[[int], object], request: Request) -> dict[str, Any]:
    """Call `send(now())` once each `every_seconds`, `count` times. The answer of `trickle`."""
    started = time.monotonic()
    for number in range(request.count):
        time.sleep(max(0.0, started + number * request.every_seconds - time.monotonic()))
        send(now())
    return {"jobs": request.count}


async def trickle_async(send: Callable[[int], Awaitable[object]], request: Request) -> dict[str, Any]:
    """The `trickle` for coroutines."""
    import asyncio

    started = time.monotonic()
    for number in range(request.count):
        await asyncio.sleep(max(0.0, started + number * request.every_seconds - time.monotonic()))
        await send(now())
    return {"jobs": request.count}


# ---- The start.


def wait_for_start() -> None:
    """Signal that this process is ready, and return when the contest starts; at once if it has started."""
    folder = Path(os.environ["BENCH_MARKS"])
    if not (folder / "go").exists():
        (folder / f"{os.getpid()}.ready").touch()
        while not (folder / "go").exists():
            time.sleep(0.001)


# ---- The marks.


class Marks:
    """A count of the bodies that this process has run, in a file that the contest reads at the same time."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        path = folder / f"{os.getpid()}.marks"
        path.write_bytes(bytes(_ROW))
        with path.open("r+b") as file:
            self._row = memoryview(mmap.mmap(file.fileno(), _ROW)).cast("q")
        self._notes = (folder / f"{os.getpid()}.notes").open("ab", buffering=0)

    def add(self) -> None:
        """Count one more body."""
        with self._lock:
            row = self._row
            row[LAST] = at = time.monotonic_ns() // 1000
            if not row[COUNT]:
                row[FIRST] = at
            row[COUNT] += 1

    def note(self, microseconds: int) -> None:
        """Keep a time measured by a body."""
        self._notes.write(b"%d\n" % microseconds)


_here: Marks | None = None
_making = threading.Lock()


def _marks() -> Marks:
    global _here
    if _here is None:
        # A second thread that creates the file would truncate it after the first has counted.
        with _making:
            _here = _here or Marks(Path(os.environ["BENCH_MARKS"]))
    return _here


def _forget() -> None:
    global _here, _making
    _here, _making = None, threading.Lock()


# A process forked after its parent has run bodies counts its own.
os.register_at_fork(after_in_child=_forget)
