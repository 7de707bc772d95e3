"""One command of the shell, run to its end: the task behind `app.enable_shell()`.

Whatever the command prints, little of it is kept in memory; however the task ends, nothing of the command goes on but
what it has itself sent into the background before it ended well. All in the thread that asks.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from . import moment
from .clock import monotonic
from .errors import OptionError, PgCronError

# What is kept of the output, in bytes of UTF-8, and how much of it an error shows, in characters.
MOST_OUTPUT, MOST_TOLD = 32_000, 1_500
# From SIGTERM to SIGKILL.
GRACE_SECONDS = 5.0
# What a start may take when this process is about to end.
START_SECONDS = 1.0
# How often to look whether the command has ended, when something else holds its output open ...
LOOK_SECONDS = 0.25
# ... and how often, and for how long, to look for output when it has. A pipe is read empty by that: all that the
# command has printed is in there when it ends.
LAST_LOOKS, LAST_LOOK_SECONDS = 10, 0.05
_PIECE = 65_536


class CommandFailed(PgCronError):
    """The command ended with another exit code than 0 or by a signal, or could not be started; the end of its output
    is in the message, what was kept of it in `output`."""

    def __init__(self, what: str, *, exit_code: int | None = None, output: str = "") -> None:
        told = f"…{output[-MOST_TOLD:]}" if len(output) > MOST_TOLD else output
        super().__init__(f"{what}:\n{told.rstrip()}" if told.strip() else what)
        self.exit_code = exit_code
        self.output = output


class CommandTimedOut(CommandFailed):
    """The command did not end in time, and was ended."""


def run(
    command: str,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout: float = 3600.0,
) -> dict[str, Any]:
    """Run `command` with the shell: `{"exit_code": 0, "output": "...", "seconds": 1.2}`.

    The shell is that of SHELL in `environment`, or /bin/sh. `environment` is added to that of this process. Standard
    error is part of the output. What the command leaves running in the background is left alone if it ends well, and
    is not listened to.
    """
    seconds = moment.duration(timeout, name="timeout").total_seconds()
    started = monotonic()
    child = _Child()
    try:
        child.start(command, stdin, environment or {}, cwd)
        child.attend(started + seconds, seconds)
    except BaseException:
        # BaseException: a deadline, a greenlet that is killed, Ctrl-C.
        child.kill()
        raise
    finally:
        child.close()
    code, output = child.process.returncode, child.output.text()
    if code != 0:
        raise CommandFailed(_ending(code), exit_code=code if code > 0 else None, output=output)
    return {"exit_code": 0, "output": output, "seconds": round(monotonic() - started, 3)}


def kill_all() -> None:
    """Kill what is still running, and let nothing be started any more: this process ends without its threads, and
    nobody would watch it."""
    _leaving.set()
    until = monotonic() + START_SECONDS
    # What is being started is not in the list yet. Whose start hangs, on a file system that has gone away, does not
    # hold up the end.
    while _starting and monotonic() < until:
        time.sleep(0.01)
    for group, process in list(_groups.items()):
        # In a forked copy of this process they are not ours to kill.
        if process == os.getpid():
            _tell(group, signal.SIGKILL)


# The process group of each command that runs, and the process that watches it.
_groups: dict[int, int] = {}
# Those that are on the way into that list.
_starting: set[_Child] = set()
_leaving = threading.Event()

atexit.register(kill_all)


class _Child:
    """The shell in a process group of its own, and our ends of its pipes."""

    def __init__(self) -> None:
        # Made in two steps: whoever is interrupted in the second one has the child's pid to kill.
        self.process: subprocess.Popen[bytes] = subprocess.Popen.__new__(subprocess.Popen)
        self.output = Output()
        self._input = memoryview(b"")
        self._reader: int | None = None
        self._writer: int | None = None
        self._poller = select.poll()

    def start(self, command: str, stdin: str | None, environment: Mapping[str, str], cwd: str | None) -> None:
        _starting.add(self)
        try:
            # In this order: who comes too late to be waited for knows it.
            if _leaving.is_set():
                raise CommandFailed("this process ends, and starts no command any more")
            self._make(command, stdin, environment, cwd)
            _groups[self.process.pid] = os.getpid()
        finally:
            _starting.discard(self)

    def _make(self, command: str, stdin: str | None, environment: Mapping[str, str], cwd: str | None) -> None:
        shell = environment.get("SHELL") or "/bin/sh"
        with contextlib.ExitStack() as theirs, _undisturbed():
            try:
                self._input = memoryview((stdin or "").encode("utf-8", "surrogateescape"))
                subprocess.Popen.__init__(
                    self.process,
                    [shell, "-c", command],
                    stdin=self._open_input(theirs) if self._input else subprocess.DEVNULL,
                    stdout=self._open_output(theirs),
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment, "SHELL": shell},
                    cwd=cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise CommandFailed(f"{shell!r} cannot be started in {cwd or os.curdir!r}: {error}") from error
            except (ValueError, TypeError, AttributeError) as error:
                raise OptionError(
                    f"a command, its input and its environment are text without NUL characters: {error}"
                ) from error

    def attend(self, until: float, seconds: float) -> None:
        """Give the command its input and take its output until it has ended."""
        while self.process.poll() is None:
            left = until - monotonic()
            if left <= 0:
                self._stop()
                told = self.output.text()
                raise CommandTimedOut(f"not done within {seconds:g} s, and ended", output=told)
            self._look(min(left, LOOK_SECONDS))
        self._look_again()

    def kill(self) -> None:
        """End all of it now."""
        pid = getattr(self.process, "pid", None)
        if not pid:
            return
        # Both: when the start was interrupted, the child may not lead its group yet.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _tell(pid, signal.SIGKILL)
        # It may hang in the kernel, on a file system that has gone away; then it is reaped by a later start.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
            _reap(pid, GRACE_SECONDS)

    def close(self) -> None:
        self._close_input()
        self._close_output()
        _groups.pop(getattr(self.process, "pid", None) or 0, None)

    def _stop(self) -> None:
        """Ask the whole group to end, and kill what has not after a while."""
        _tell(self.process.pid, signal.SIGTERM)
        until = monotonic() + GRACE_SECONDS
        while self._is_alive() and (left := until - monotonic()) > 0:
            self._look(min(left, LAST_LOOK_SECONDS))
        self.kill()
        self._look_again()

    def _is_alive(self) -> bool:
        # In this order: who has ended and has not been reaped would count as a member of the group.
        if self.process.poll() is None:
            return True
        _reap(self.process.pid, 0.0)
        return _tell(self.process.pid, 0)

    # Pipes

    def _open_input(self, theirs: contextlib.ExitStack) -> int:
        end, self._writer = os.pipe()
        theirs.callback(os.close, end)
        os.set_blocking(self._writer, False)
        self._poller.register(self._writer, select.POLLOUT)
        return end

    def _open_output(self, theirs: contextlib.ExitStack) -> int:
        self._reader, end = os.pipe()
        theirs.callback(os.close, end)
        os.set_blocking(self._reader, False)
        self._poller.register(self._reader, select.POLLIN)
        return end

    def _look(self, seconds: float) -> None:
        """Read and write what can be, or wait for that; for the end of the command if both pipes are done with."""
        if self._reader is not None or self._writer is not None:
            for fd, _ in self._poller.poll(int(seconds * 1000 + 0.999)):
                if fd == self._reader:
                    self._read(fd)
                else:
                    self._write(fd)
        elif self.process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        else:
            time.sleep(seconds)

    def _look_again(self) -> None:
        """Take what has been printed up to here. Not until the pipe is closed: others may hold it for as long as
        they live."""
        for _ in range(LAST_LOOKS):
            if self._reader is None:
                return
            self._look(LAST_LOOK_SECONDS)

    def _read(self, fd: int) -> None:
        try:
            piece = os.read(fd, _PIECE)
        except BlockingIOError:
            return
        if piece:
            self.output.add(piece)
        else:
            self._close_output()

    def _write(self, fd: int) -> None:
        try:
            self._input = self._input[os.write(fd, self._input[:_PIECE]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # nobody reads it: the command does not want the rest
            self._input = memoryview(b"")
        if not self._input:
            self._close_input()

    def _close_input(self) -> None:
        fd, self._writer = self._writer, None
        self._close(fd)

    def _close_output(self) -> None:
        fd, self._reader = self._reader, None
        self._close(fd)

    def _close(self, fd: int | None) -> None:
        if fd is not None:
            with contextlib.suppress(KeyError):
                self._poller.unregister(fd)
            os.close(fd)


class Output:
    """The beginning and the end of what a command prints, as text that a database takes."""

    def __init__(self, most: int = MOST_OUTPUT) -> None:
        self._half = most // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._head = bytearray()
        self._tail = bytearray()
        self._size = 0

    def add(self, piece: bytes, *, final: bool = False) -> None:
        text = self._decoder.decode(piece, final).replace("\0", "\\x00").encode()
        self._size += len(text)
        room = self._half - len(self._head)
        self._head += text[:room]
        self._tail += text[room:]
        del self._tail[: -self._half]

    def text(self) -> str:
        """What is kept. Where something is left out, it says how much."""
        self.add(b"", final=True)
        if self._size == len(self._head) + len(self._tail):
            return (self._head + self._tail).decode()
        # A character that the cut goes through is left out as well.
        head, tail = self._head.decode("utf-8", "ignore"), self._tail.decode("utf-8", "ignore")
        left_out = self._size - len(head.encode()) - len(tail.encode())
        return f"{head}\n… {left_out} bytes left out …\n{tail}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: heard as a process is made, it would be raised where its pid is lost."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        # Only that thread hears it.
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if heard:
            usual(*heard[0])


def _tell(group: int, number: int) -> bool:
    """Send a signal to a process group; False if there is none of which we may."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _reap(group: int, seconds: float) -> None:
    """Take note of the ends of the shell's children, which are ours if we are the first process of a container."""
    until = monotonic() + seconds
    with contextlib.suppress(ChildProcessError):  # there are none, or no more
        while os.waitpid(-group, os.WNOHANG)[0] or monotonic() < until:
            time.sleep(0.01)


def _ending(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:  # one of those that have only numbers
        return f"ended by signal {-code}"
