"""One measurement of one contestant: its database and folder, its verbs, and the marks that its bodies write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import processes
from .catalogue import Contestant
from .redis import Redis
from .requests import Requests
from .server import Server
from .venvs import REPOSITORY, Environment

PATIENCE = 120.0
# Interval of reading the marks: long enough to cost nothing, short enough to measure a run of a second.
LOOK = 0.005

# The row that the kit writes: number of bodies, microseconds of the first and of the last.
_ROW = struct.Struct("=3q")


class Failed(Exception):
    """A contestant did not execute a call. The text is the reason shown in the tables."""


class Unsupported(Failed):
    """The contestant itself answers that it does not support the call."""


@dataclass(frozen=True, slots=True)
class Marked:
    """The marks of all processes: how many bodies ran, and when (in seconds, monotonic)."""

    bodies: int
    processes: int
    first: float
    last: float
    # When the last of the processes ran its first body.
    all_began: float


class Trial:
    """A contestant, a fresh copy of the database it has set up, and the processes it runs."""

    def __init__(
        self,
        contestant: Contestant,
        environment: Environment,
        server: Server,
        template: str,
        known: dict[str, Any] | None = None,
    ) -> None:
        self.contestant = contestant
        self.environment = environment
        self.server = server
        self._template = template
        self.database = ""
        self.redis: Redis | None = None
        # The answer of `setup` when the template was created.
        self._known = known or {}
        self._stack = contextlib.ExitStack()
        self._running: list[Program] = []

    def __enter__(self) -> Trial:
        try:
            return self._open()
        except BaseException:
            self.__exit__()
            raise

    def _open(self) -> Trial:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pgcron-bench-")))
        self.marks = self.folder / "marks"
        self.marks.mkdir()
        self._address: dict[str, Any] = {}
        if self.contestant.family.database == "postgres":
            self.database = self.server.create("trial", self._template)
            self._stack.callback(self.server.drop, self.database)
            self._address = self.server.address(self.database)
            self.conn = self._stack.enter_context(self.server.connect(self.database))
        else:
            self.redis = self._stack.enter_context(Redis(self.environment.redis_server(), self.folder))
            self._address = {"redis": self.redis.url}
            self.call("setup")
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._running:
            program.kill()
        self._stack.close()

    def another(self) -> Trial:
        """Return a trial of the same contestant with another fresh database."""
        return Trial(self.contestant, self.environment, self.server, self._template, self._known)

    # ---- The verbs.

    def call(self, verb: str, patience: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Run a verb to its end and return its answer."""
        return self.start(verb, **fields).answer(patience)

    def start(self, verb: str, **fields: Any) -> Program:
        """Start a verb as a process, and return it."""
        fields = {**self._address, "options": self.contestant.options, **fields}
        log = self.folder / f"{verb}-{len(self._running)}"
        program = Program(self.environment.call(verb, json.dumps(fields)), log, self._variables())
        self._running.append(program)
        return program

    def fill(self, count: int, task: str = "noop") -> None:
        """Enqueue `count` due jobs, and let the database finish the work of that."""
        self.call("fill", patience=600, count=count, task=task)
        self.settle_down()

    def settle_down(self) -> None:
        """Let the database finish the work that the preparation has left."""
        if self.database:
            self.server.settle_down(self.conn)

    @property
    def remaining_sql(self) -> str:
        """The query that counts unfinished jobs in the contestant's tables; empty if it has none in PostgreSQL."""
        return str(self._known.get("remaining_sql", ""))

    def remaining(self) -> int:
        """Return the number of unfinished jobs, by the contestant's own tables."""
        if not self.remaining_sql:
            return int(self.call("remaining")["remaining"])
        return int(self.conn.execute(self.remaining_sql).fetchall()[0][0])

    # ---- The start and the marks.

    def go(self) -> None:
        """Start the processes that wait for the start."""
        (self.marks / "go").touch()

    def await_ready(self, count: int) -> None:
        """Wait until `count` processes wait for the start."""
        self.until(lambda: len(list(self.marks.glob("*.ready"))) >= count, "its producers are ready")

    def marked(self) -> Marked:
        """Return the marks so far."""
        contents = [path.read_bytes() for path in self.marks.glob("*.marks")]
        # A file that was made just now may be empty still.
        rows = [row for row in (_ROW.unpack(content) for content in contents if len(content) == _ROW.size) if row[0]]
        if not rows:
            return Marked(0, 0, 0.0, 0.0, 0.0)
        counts, firsts, lasts = zip(*rows, strict=True)
        return Marked(sum(counts), len(rows), min(firsts) / 1e6, max(lasts) / 1e6, max(firsts) / 1e6)

    def notes(self) -> list[int]:
        """Return the times that `stamp` has recorded, in microseconds, in the order of arrival within each process."""
        return [int(line) for path in sorted(self.marks.glob("*.notes")) for line in path.read_text().split()]

    def clear_marks(self) -> None:
        """Delete all marks. Only call this when no process that has written some still runs."""
        shutil.rmtree(self.marks)
        self.marks.mkdir()

    def until(self, holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Wait until `holds` is true. Raise `Failed` if one of our processes fails, or after `patience` seconds."""
        deadline = time.monotonic() + patience
        while not holds():
            for program in self._running:
                program.must_live()
            if time.monotonic() > deadline:
                raise Failed(f"waited {patience:g} s until {what}")
            time.sleep(LOOK)

    # ---- What they use.

    def workers(self) -> list[processes.Stat]:
        """Return all live processes of the contestant."""
        return processes.of_sessions(program.pid for program in self._running if program.is_alive())

    def worker_cpu_seconds(self) -> float:
        return sum(stat.cpu_seconds for stat in self.workers())

    def requests(self) -> contextlib.AbstractContextManager[Requests]:
        """Count the requests to the database of those that connect from now on."""
        return self.redis.requests() if self.redis else self.server.requests(self.database)

    def connections(self) -> int:
        return self.redis.connections() if self.redis else self.server.connections(self.database)

    def _variables(self) -> dict[str, str]:
        variables = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "BENCH_MARKS": str(self.marks),
            "BENCH_REPOSITORY": str(REPOSITORY),
        }
        if self.database:
            parts = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGDATABASE": "database"}
            variables |= {name: str(self._address[part]) for name, part in parts.items()}
        return variables


class Program:
    """A running verb: a process that leads a new session, with its output in files."""

    def __init__(self, command: list[str], log: Path, variables: dict[str, str]) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        self.began = time.monotonic()
        self._told_to_end = False
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=variables, cwd=log.parent,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def must_live(self) -> None:
        """Raise if it ended with an error, unless we have ended it."""
        if not self._told_to_end and self._process.poll() not in (None, 0):
            raise Failed(self._complaint())

    def answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait for its end, and return the answer on its last line."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"did not end within {patience:g} s") from None
        self.must_live()
        lines = self._out.read_text().strip().splitlines()
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        return answer

    def stop(self) -> None:
        """End it as a platform does: SIGTERM, and 15 s later SIGKILL for all that is left."""
        self._told_to_end = True
        if self.is_alive():
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        self.kill()

    def kill(self) -> None:
        """End it and all that it has started, now."""
        self._told_to_end = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _complaint(self) -> str:
        lines = [line for line in self._err.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else f"ended with {self._process.returncode}"


def share(values: list[float], percent: float) -> float:
    """Return the value below which `percent` of `values` are."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=1000, method="inclusive")[round(percent * 10) - 1]
