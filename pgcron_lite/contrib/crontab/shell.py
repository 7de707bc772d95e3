"""Execution of one shell command: the task behind `app.enable_shell()`.

The memory for its output is bounded, however much it prints. When the task ends, no process of the command keeps
running, except for background processes of a command that ended by itself. All of it runs in the caller's thread.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import functools
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

from ... import durations
from ...clock import monotonic
from ...errors import OptionError, PgCronError

# Limits of the output: bytes of UTF-8 to keep, and characters to show in an error.
MAX_OUTPUT, MAX_TOLD = 32_000, 1_500
# The time from SIGTERM to SIGKILL.
GRACE_SECONDS = 5.0
# How long the end of this process waits for commands that are being started.
START_SECONDS = 1.0
# Interval of the checks for the command's end, while another process keeps its output open.
LOOK_SECONDS = 0.25
# Number and length of the waits for output after the command has ended. They empty the pipe, which contains at that
# time all that the command has printed.
LAST_LOOKS, LAST_LOOK_SECONDS = 10, 0.05
_PIECE = 65_536
# Variables of our environment that each command gets, besides every LC_*: what programs need to run at all, and nothing
# that may be secret.
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR")


class CommandFailed(PgCronError):
    """The command ended with another exit code than 0 or by a signal, or could not be started. The message has the end
    of its output, `output` has all that was kept of it."""

    def __init__(self, what: str, *, exit_code: int | None = None, output: str = "") -> None:
        told = f"…{output[-MAX_TOLD:]}" if len(output) > MAX_TOLD else output
        super().__init__(f"{what}:\n{told.rstrip()}" if told.strip() else what)
        self.exit_code = exit_code
        self.output = output


class CommandTimedOut(CommandFailed):
    """The command did not end within its timeout, and was terminated."""


def run(
    command: str,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout: float = 3600.0,
) -> dict[str, Any]:
    """Run `command` with the shell: `{"exit_code": 0, "output": "...", "seconds": 1.2}`.

    The shell is that of SHELL in `environment`, or /bin/sh. Of the environment of this process the command gets PATH,
    HOME, USER, LOGNAME, the language, TZ and TMPDIR; `environment` is added to that, and so are the variables that
    `enable_shell(env=...)` names. Standard error is part of the output. If the command ends by itself, processes that
    it has left in the background keep running, and their output is not read. At the timeout, or when the task is
    interrupted, its whole process group is ended, but not a child that has left the group, as by `setsid`.
    """
    return _run(command, stdin, {**_inherited(()), **(environment or {})}, cwd, timeout)


def passing(names: Iterable[str]) -> Callable[..., dict[str, Any]]:
    """Return `run` with additional variables of this process's environment, given by name."""
    checked = _variable_names(names)
    if not checked:
        return run

    @functools.wraps(run)
    def run_with_more(
        command: str,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float = 3600.0,
    ) -> dict[str, Any]:
        return _run(command, stdin, {**_inherited(checked), **(environment or {})}, cwd, timeout)

    return run_with_more


def _variable_names(names: Iterable[str]) -> tuple[str, ...]:
    expected = "expected names of variables, such as enable_shell(env=['BACKUP_DIR'])"
    if isinstance(names, (str, bytes, Mapping)) or not isinstance(names, Iterable):
        raise OptionError(f"enable_shell(env=...) got a value of type {type(names).__name__}; {expected}")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            # Not shown: a definition instead of a name may contain a secret.
            raise OptionError(f"enable_shell(env=...): one of the names is none; {expected}")
    return found


def _inherited(names: Iterable[str]) -> dict[str, str]:
    wanted = {*INHERITED, *names}
    return {name: value for name, value in os.environ.items() if name in wanted or name.startswith("LC_")}


def _run(
    command: str, stdin: str | None, environment: Mapping[str, str], cwd: str | None, timeout: float
) -> dict[str, Any]:
    seconds = durations.duration(timeout, name="timeout").total_seconds()
    started = monotonic()
    child = _Child()
    try:
        child.start(command, stdin, environment, cwd)
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
    """Kill the running commands, and refuse to start others: this process ends without its threads, so no thread would
    watch them."""
    _leaving.set()
    until = monotonic() + START_SECONDS
    # A command that is being started is not in the list yet. The wait is bounded, as a start may hang on a lost file
    # system.
    while _starting and monotonic() < until:
        time.sleep(0.01)
    kill_running()


def kill_running() -> None:
    """Kill the running commands: their jobs have been released."""
    for group, process in list(_groups.items()):
        # In a fork of this process, they belong to its parent.
        if process == os.getpid():
            _tell(group, signal.SIGKILL)


# The process group of each running command: the pid of the process that watches it.
_groups: dict[int, int] = {}
# Commands that are being started, and are not in `_groups` yet.
_starting: set[_Child] = set()
_leaving = threading.Event()

atexit.register(kill_all)


class _Child:
    """The shell in a new process group, and our ends of its pipes."""

    def __init__(self) -> None:
        # Created in two steps: if the second is interrupted, this object has the child's pid to kill.
        self.process: subprocess.Popen[bytes] = subprocess.Popen.__new__(subprocess.Popen)
        self.output = Output()
        self._input = memoryview(b"")
        self._reader: int | None = None
        self._writer: int | None = None
        self._poller = select.poll()

    def start(self, command: str, stdin: str | None, environment: Mapping[str, str], cwd: str | None) -> None:
        _starting.add(self)
        try:
            # In this order: either kill_all() sees this start and waits for it, or this check sees `_leaving`.
            if _leaving.is_set():
                raise CommandFailed("this process is ending, and starts no more commands")
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
                    env={**environment, "SHELL": shell},
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
        """Write the command's input and read its output until it has ended."""
        while self.process.poll() is None:
            left = until - monotonic()
            if left <= 0:
                self._stop()
                told = self.output.text()
                raise CommandTimedOut(f"not done within {seconds:g} s, and ended", output=told)
            self._look(min(left, LOOK_SECONDS))
        self._look_again()

    def kill(self) -> None:
        """Kill the command and its process group now."""
        pid = getattr(self.process, "pid", None)
        if not pid:
            return
        # Both: when the start was interrupted, the child may not lead its group yet.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _tell(pid, signal.SIGKILL)
        # It may hang in the kernel, on a lost file system; then it is reaped by a later start.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
            _reap(pid, GRACE_SECONDS)

    def close(self) -> None:
        self._close_input()
        self._close_output()
        _groups.pop(getattr(self.process, "pid", None) or 0, None)

    def _stop(self) -> None:
        """Send SIGTERM to the whole group, and kill what has not ended after `GRACE_SECONDS`."""
        _tell(self.process.pid, signal.SIGTERM)
        until = monotonic() + GRACE_SECONDS
        while self._is_alive() and (left := until - monotonic()) > 0:
            self._look(min(left, LAST_LOOK_SECONDS))
        self.kill()
        self._look_again()

    def _is_alive(self) -> bool:
        # In this order: a process that has ended and has not been reaped counts as a member of the group.
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
        """Wait until a pipe is ready, and read or write it. Wait for the command's end if both pipes are closed."""
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
        """Read what has been printed so far. The end of the pipe is not awaited: other processes may keep it open for
        any time."""
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
        except BrokenPipeError:  # the command does not read the rest of its input
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
    """The beginning and the end of a command's output, as text that PostgreSQL can store."""

    def __init__(self, most: int = MAX_OUTPUT) -> None:
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
        """Return the output that was kept, with a note in place of what was left out."""
        self.add(b"", final=True)
        if self._size == len(self._head) + len(self._tail):
            return (self._head + self._tail).decode()
        # A character of which only a part was kept is left out too.
        head, tail = self._head.decode("utf-8", "ignore"), self._tail.decode("utf-8", "ignore")
        left_out = self._size - len(head.encode()) - len(tail.encode())
        return f"{head}\n… {left_out} bytes left out …\n{tail}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block. Raised while a process is created, it would lose the process's pid."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        # Only the main thread handles signals.
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
    """Send a signal to a process group. Return False if there is none that we may signal."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _reap(group: int, seconds: float) -> None:
    """Reap ended children of the shell, which become ours if we are the first process of a container."""
    until = monotonic() + seconds
    with contextlib.suppress(ChildProcessError):  # no children, or no more
        while os.waitpid(-group, os.WNOHANG)[0] or monotonic() < until:
            time.sleep(0.01)


def _ending(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:  # a signal without a name
        return f"ended by signal {-code}"
