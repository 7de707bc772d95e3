"""Watchdog: a small process that ends its worker when the worker can no longer run Python.

C code that keeps the interpreter lock (GIL) stops every thread of its process: the heartbeat, the loop and the signal
handlers. One regular expression with endless backtracking does that. The worker writes a byte into a pipe every few
seconds, from a thread that never waits for the database. When no bytes arrive, the watchdog makes the worker print the
tracebacks of all threads and exit. The supervisor or the platform starts another worker, and the job runs isolated next
time.

A timer inside the worker, such as `faulthandler.dump_traceback_later`, does not work: after a process was stopped
(SIGSTOP, a paused container, a laptop in sleep mode), the timer would have expired and end the process when it
continues. The watchdog counts steps of its own running time, and none while the worker is stopped. A step in which
threads of the worker waited for a processor counts only in part: on an overloaded machine a healthy worker may run no
Python for a long time.

The watchdog is not a child of the worker: the process that the worker starts forks and exits. So a task that waits for
all its children (`os.waitpid(-1, 0)`) does not wait for the watchdog, and cannot take its exit status. The exception is
a worker that is the first process of a container: it inherits orphans, and so becomes the parent of its watchdog.

A task may replace the worker by another program (`os.exec...`). That program keeps the process id and the start time,
but not the worker's end of the pipe, which is closed on exec. So on Linux a process without that descriptor is not a
worker and is left alone, even if a child that was forked earlier keeps the pipe open.

This file is also the program of the watchdog process, which cannot import the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

STEPS = 10
# The minimum that a step counts on an overloaded machine: a hanging worker is ended after at most ten times as long.
MIN_STEP = 0.1
# How long the worker may take to print its tracebacks and exit before it is killed.
KILL_SECONDS = 10.0
STANDARD_ERROR = 2
PULSE, END = b".", b"q"


class Watchdog:
    """The watchdog of this process, which ends it after `seconds` without a pulse."""

    def __init__(self, seconds: float) -> None:
        from . import gevent_support

        self._step = seconds / STEPS
        self._pulse_at = 0.0
        reader, self._writer = os.pipe()
        try:
            # Not subprocess.Popen: under gevent it makes the event loop wait for every child of this process, including
            # those of tasks.
            spawn: Callable[..., int] = gevent_support.unpatched(os, "posix_spawn")
            starter = spawn(
                sys.executable,
                [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self._step), str(self._writer)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
            )
            _wait_for(starter)
        except BaseException:
            os.close(self._writer)
            raise
        finally:
            os.close(reader)
        os.set_blocking(self._writer, False)
        self._inode = os.fstat(self._writer).st_ino
        _dump_tracebacks_on_abort()

    def pulse(self) -> None:
        """Signal that this process runs Python. Never blocks, never raises."""
        now = time.monotonic()
        if now >= self._pulse_at:
            self._pulse_at = now + self._step
            self._write(PULSE)

    def close(self) -> None:
        """End the watch. The watchdog ends a moment later."""
        writer = self._writer
        self._write(END)
        self._writer = -1
        if writer >= 0:
            with contextlib.suppress(OSError):
                os.close(writer)

    def _write(self, what: bytes) -> None:
        with contextlib.suppress(OSError):
            # A task may have closed the descriptor, and its number may belong to a file or a connection by now.
            if os.fstat(self._writer).st_ino == self._inode:
                os.write(self._writer, what)


def _wait_for(starter: int) -> None:
    """Wait until the process that forks the watchdog has done so and exited."""
    from . import gevent_support

    wait: Callable[[int, int], tuple[int, int]] = gevent_support.unpatched(os, "waitpid")
    # A SIGCHLD handler of the program may already have waited for it.
    with contextlib.suppress(ChildProcessError):
        _, status = wait(starter, 0)
        if status != 0:
            raise OSError(f"the watchdog could not be started (status {status})")


def _dump_tracebacks_on_abort() -> None:
    """Make SIGABRT print the tracebacks of all threads, in C, and then end the process."""
    if os.getpid() == 1:
        # A signal's default action does not end the first process of a container, so the handler has to do it.
        faulthandler.disable()
        libc = ctypes.CDLL(None)
        libc.signal(int(signal.SIGABRT), ctypes.cast(libc._exit, ctypes.c_void_p))
    if not faulthandler.is_enabled():
        faulthandler.enable(file=STANDARD_ERROR, all_threads=True)


# The watchdog process


class Watched:
    """The watched worker: a process, and the program in it. A later process with the same id is not the worker."""

    def __init__(self, pid: int, writer: int) -> None:
        self.pid = pid
        self._writer = writer
        _, self._began = process_state(pid)
        # Empty where the descriptors of other processes are not visible. Then a replacement by `exec` is not noticed.
        self._pipe = self._link()

    @property
    def has_ended(self) -> bool:
        """True if the worker has ended, or if its id or its process now belongs to another program."""
        state, began = process_state(self.pid)
        return state in ("", "Z", "X") or began != self._began or (self._pipe != "" and self._link() != self._pipe)

    @property
    def is_stopped(self) -> bool:
        """True if the worker is stopped by a signal or a debugger."""
        return process_state(self.pid)[0] in ("T", "t")

    def _link(self) -> str:
        """Return the name of the pipe behind the worker's descriptor."""
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{self._writer}")
        except OSError:
            return ""


def start(worker: int, step: float, writer: int) -> None:
    """Fork, and watch in the child only."""
    # A platform may send these signals to every process of a service. The watchdog must end after its worker.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The worker is waiting for this process, so it has not ended and the id is still its own.
    watched = Watched(worker, writer)
    if os.fork() != 0:
        os._exit(0)
    # In a new session, which Ctrl-C does not reach, and without the descriptors of the worker.
    os.setsid()
    os.closerange(3, 4096)
    watch(watched, step)


def watch(worker: Watched, step: float) -> None:
    """Read pulses from standard input until the worker ends or must be ended."""
    silent, silent_since = 0.0, time.monotonic()
    while not worker.has_ended:
        step_began, waited = time.monotonic(), waited_for_processors(worker.pid)
        # A step counts as one at most, however long it took: this process may have been stopped too.
        has_pulse = bool(select.select([0], [], [], step)[0])
        if has_pulse:
            read = os.read(0, 4096)
            if not read or END in read:
                return
        now = time.monotonic()
        if has_pulse or worker.is_stopped:
            silent, silent_since = 0.0, now
            continue
        share = (waited_for_processors(worker.pid) - waited) / (now - step_began)
        silent += min(1.0, max(MIN_STEP, 1.0 - share))
        if silent >= STEPS:
            return end(worker, now - silent_since)


def end(worker: Watched, seconds: float) -> None:
    """Make `worker` print its tracebacks and exit."""
    if worker.has_ended:
        return
    message = (
        f"pgcron_lite: worker process {worker.pid} could run no Python for {seconds:.0f} s, because a job keeps the"
        " interpreter lock (GIL). It is ended here; the tracebacks of its threads follow. PGCRON_HANG_EXIT=no switches"
        " this off.\n"
    )
    with contextlib.suppress(OSError):
        os.write(STANDARD_ERROR, message.encode())
    os.kill(worker.pid, signal.SIGABRT)
    deadline = time.monotonic() + KILL_SECONDS
    while not worker.has_ended:
        if time.monotonic() > deadline:
            os.kill(worker.pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def waited_for_processors(process: int) -> float:
    """Return the total seconds for which threads of `process` were ready to run but had no processor."""
    waited = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{process}/task/{thread}/schedstat") as stat:
                waited += int(stat.read().split()[1])
    return waited / 1e9


def process_state(process: int) -> tuple[str, str]:
    """Return the state of a process, as one letter, and its start time. Both are empty if there is no such process."""
    if os.path.exists("/proc/self/stat"):
        try:
            with open(f"/proc/{process}/stat", encoding="latin-1") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            return "", ""
        return fields[0], fields[19]
    asked = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    state, _, began = asked.stdout.strip().partition(" ")
    return state[:1], began.strip()


if __name__ == "__main__":
    start(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
