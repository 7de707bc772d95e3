"""Supervisor of several worker processes: starts and restarts them, hands back jobs of dead ones, forwards signals.

The children run the same command as the parent; environment variables give them their ids. So the parent knows which
worker died, and hands its jobs back without waiting for the end of its lease. Each child writes its worker id into a
pipe to its parent and, as the last line, that it has ended. An exit code alone proves nothing: a task may call
`os._exit(0)`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from ..clock import monotonic
from ..errors import OptionError, PgCronError
from ..job import Job, named
from .signals import stop_signals
from .wake import Wake

if TYPE_CHECKING:
    from ..app import PgCron

logger = logging.getLogger("pgcron_lite")

CHILD, PARENT, STATUS = "PGCRON_WORKER_ID", "PGCRON_SUPERVISOR_PID", "PGCRON_SUPERVISOR_PIPE"
FIRST_PAUSE, MAX_PAUSE, STEADY_SECONDS = 0.5, 30.0, 60.0
# How long a child may take to hand back its jobs after its grace. One that takes longer is frozen or hangs.
OVERTIME_SECONDS = 4.0
# How long a child that has handed everything back may take to exit.
EXIT_SECONDS = 10.0
# How long the kernel may take to end a killed child. A process that waits for a disk or a network mount does not end.
KILLED_SECONDS = 5.0
# How long a child may run after its pipe was closed without a report of its end: it may be exiting.
PIPE_CLOSED_SECONDS = 5.0


def is_child() -> bool:
    return CHILD in os.environ


def take_id() -> uuid.UUID | None:
    """Return the worker id that the parent chose for this process. Removed from the environment for its children."""
    given = os.environ.pop(CHILD, None)
    return None if given is None else uuid.UUID(given)


def take_parent() -> int | None:
    """Return the process id of the supervisor, if any. Not `os.getppid()`: the supervisor may have ended by now."""
    given = os.environ.pop(PARENT, None)
    return None if given is None else int(given)


def take_status() -> Status | None:
    """Return the pipe to the supervisor, if any."""
    given = os.environ.pop(STATUS, None)
    with contextlib.suppress(OSError):
        return None if given is None else Status(int(given))
    return None


class Status:
    """The child's end of the pipe to its parent. Writing never blocks for long and never raises."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._inode = os.fstat(descriptor).st_ino

    def set_worker_id(self, worker: uuid.UUID) -> None:
        """Report the worker id under which this process holds jobs from now on."""
        self._write(f"id {worker}\n")

    def report_end(self, code: int, *, has_left: bool, is_over: bool) -> None:
        """Report an orderly end.

        `has_left`: it has deleted its row and holds no jobs. `is_over`: it must not be restarted.
        """
        self._write(f"end {code} {int(has_left)} {int(is_over)}\n")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            # A task may have closed the descriptor, and its number may belong to a file or a connection by now.
            if os.fstat(self._descriptor).st_ino == self._inode:
                os.write(self._descriptor, line.encode())


def run(app: PgCron, processes: int, grace: float) -> int:
    """Keep `processes` workers running until a signal stops them. Return the exit code."""
    if not isinstance(processes, int) or isinstance(processes, bool) or not 1 <= processes <= 256:
        raise OptionError(f"processes={processes!r}: expected a whole number from 1 to 256")
    if threading.current_thread() is not threading.main_thread():
        raise PgCronError(
            f"run_worker(processes={processes}) was called in the thread {threading.current_thread().name!r}. Only the"
            " main thread receives the signals that several processes need: call it there, or leave processes out."
        )
    return Supervisor(app, processes, grace).run()


@dataclass(slots=True)
class Child:
    """One of the child processes, and its successors after restarts."""

    process: subprocess.Popen[bytes] | None = None
    # Its worker id, once it has reported one.
    id: uuid.UUID | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause: float = FIRST_PAUSE
    ended_with: int | None = None
    has_left: bool = False
    # It has drained its queues, or its time is over. It is not restarted, whatever its exit code.
    is_over: bool = False
    # The time at which its pipe was closed without a report of its end.
    pipe_closed_at: float | None = None
    killed_at: float | None = None
    _reader: int | None = None
    _unread: bytes = field(default=b"")

    def start(self) -> None:
        """Start the process."""
        reader, writer = os.pipe()
        name = uuid.uuid4()
        try:
            # In a new session: Ctrl-C on the terminal reaches only the parent, which forwards it once.
            self.process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**os.environ, CHILD: str(name), PARENT: str(os.getpid()), STATUS: str(writer)},
                start_new_session=True,
                pass_fds=(writer,),
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        self.id, self.ended_with, self.pipe_closed_at, self.killed_at = None, None, None, None
        self.has_left = self.is_over = False
        self._reader, self._unread = reader, b""
        self.started_at = monotonic()

    def read(self) -> None:
        """Read the reports of the process from its pipe."""
        if self._reader is None:
            return
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._reader, 4096):
                self._unread += piece
            if self.pipe_closed_at is None and self.ended_with is None:
                self.pipe_closed_at = monotonic()
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            words = line.decode().split()
            if words[0] == "id":
                self.id = uuid.UUID(words[1])
            else:
                self.ended_with, self.has_left, self.is_over = int(words[1]), words[2] == "1", words[3] == "1"

    def kill(self) -> None:
        """Kill the process. `step` notices its end later, like any other."""
        assert self.process is not None
        self.process.kill()
        self.killed_at = monotonic()

    def close(self) -> int:
        """Read the rest of the pipe of an ended or killed process, and return its exit code."""
        assert self.process is not None
        self.read()
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None
        code, self.process = self.process.returncode, None
        # None: killed, but still in a system call. It executes no more Python.
        return -signal.SIGKILL if code is None else code


class Supervisor:
    """The parent process. It runs no jobs, and connects to the database only to hand back jobs."""

    def __init__(self, app: PgCron, processes: int, grace: float) -> None:
        self._app = app
        self._grace = grace
        self._children = [Child() for _ in range(processes)]
        self._wake = Wake()
        self._signals: list[int] = []
        self._stopping = False
        self._interrupts = 0
        self._kill_at: float | None = None
        self._exit_code = 0

    def run(self) -> int:
        handlers = {n: signal.signal(n, self._note) for n in (*stop_signals(), signal.SIGCHLD)}
        logger.info("pgcron_lite: %d worker processes under pid %d", len(self._children), os.getpid())
        try:
            while not self._stopping or any(c.process for c in self._children):
                self._wake.wait(self.step())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._wake.close()
        return self._exit_code

    def step(self) -> float:
        """Forward signals, clean up after ended processes, start missing ones. Return the seconds to the next step."""
        self._pass_signals_on()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._clean_up(child)
        self._kill_replaced()
        if self._stopping:
            self._kill_overdue()
            # The parent ends with its last child: a deploy waits for the parent.
            return 1.0 if any(c.process for c in self._children) else 0.0
        now = monotonic()
        for child in self._children:
            if child.process is None and now >= child.start_at:
                child.start()
        waits = [c.start_at - now for c in self._children if c.process is None]
        return max(0.0, min([5.0, *waits]))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._wake.ring()

    def _pass_signals_on(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGCHLD:
                continue
            self._stopping = True
            self._interrupts += number == signal.SIGINT
            # A second Ctrl-C ends the grace.
            grace = 0.0 if self._interrupts > 1 else self._grace
            late_at = monotonic() + grace + OVERTIME_SECONDS
            self._kill_at = late_at if self._kill_at is None else min(self._kill_at, late_at)
            for child in self._children:
                if child.process is not None:
                    # Not SIGHUP: a child started by nohup ignores it.
                    child.process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def _kill_replaced(self) -> None:
        """Kill children whose process runs but whose worker is gone, because a task has called `os.exec...`."""
        for child in self._children:
            child.read()
            if (
                child.process is not None and child.ended_with is None and child.pipe_closed_at is not None
                and monotonic() - child.pipe_closed_at > PIPE_CLOSED_SECONDS
            ):
                logger.error(
                    "worker process %s (pid %d) has closed its pipe and still runs, so a task has replaced it by"
                    " another program; killing it", str(child.id)[:8], child.process.pid,
                )
                child.kill()
                child.pipe_closed_at = math.inf

    def _kill_overdue(self) -> None:
        """Kill the children that should have ended by now: a frozen process does not react to SIGTERM."""
        late = monotonic() - (self._kill_at or math.inf)
        for child in self._children:
            child.read()
            if child.process is None:
                continue
            if child.killed_at is not None:
                if monotonic() - child.killed_at > KILLED_SECONDS:
                    logger.error(
                        "worker process (pid %d) was killed and has not ended; not waiting for it any longer",
                        child.process.pid,
                    )
                    self._clean_up(child)
            elif late > (0.0 if child.ended_with is None else EXIT_SECONDS):
                logger.error(
                    "worker process %s (pid %d) did not end within the grace of %g s; killing it",
                    str(child.id)[:8], child.process.pid, self._grace,
                )
                child.kill()

    def _clean_up(self, child: Child) -> None:
        lived = monotonic() - child.started_at
        code = child.close()
        if self._stopping and code in (-signal.SIGTERM, -signal.SIGINT) and child.id is None:
            # Our signal came before it had installed its handler, so no job had started.
            code = 0
        if self._stopping and code == -signal.SIGTERM and child.has_left:
            # A second signal came during its exit, after an orderly end of its worker.
            code = 0
        if code == 0 and child.ended_with is not None:
            # A program may ignore the exit code that run_worker() returns.
            code = child.ended_with
        is_well = child.is_over or (code == 0 and (child.ended_with is not None or self._stopping))
        held = [] if child.id is None or child.has_left else self._hand_back(child.id)
        if self._stopping or child.is_over:
            self._exit_code = max(self._exit_code, code if code >= 0 else 1)
        if not is_well:
            child.pause = FIRST_PAUSE if lived > STEADY_SECONDS else min(child.pause * 2, MAX_PAUSE)
            child.start_at = monotonic() + child.pause
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}" + " without stopping" * (code == 0)
            again = "" if self._stopping else f"; the next one starts in {child.pause:g} s"
            name = str(child.id)[:8] if child.id is not None else "that was starting"
            had = f" and held {named(held)}" if held else ""
            logger.error("worker process %s died (%s) after %.0f s%s%s", name, how, lived, had, again)
        elif not self._stopping:
            # It ended by itself, so it is not restarted.
            self._children = [c for c in self._children if c is not child]
            self._stopping = not self._children

    def _hand_back(self, worker: uuid.UUID) -> list[Job]:
        """Hand back the jobs of a dead process now, without waiting for its lease: its end is certain."""
        try:
            store = self._app._open_store("pgcron supervisor", size=1)
            try:
                rescued = store.reap([(worker, None)])
                if rescued:
                    store.ring()
            finally:
                store.close()
        except PgCronError as error:
            logger.warning("could not hand back the jobs of a dead process, another worker will: %s", error)
            return []
        for job in rescued:
            if job.state == "failed":
                logger.error("%s failed: %s", job, job.error)
        return rescued
