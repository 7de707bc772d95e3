"""The parent process of `pgcron dev`: runs a worker with the newest code, and the user's command beside it.

It imports nothing of the app, so an error there never ends it: it waits for the next change.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType

from ...worker.reporting import one_log_line
from ...worker.signals import stop_signals
from ...worker.wake import Wake
from .. import FAILED, OK, output
from .reload import Changes

# Shorter than a worker's usual grace: after saving a file, a developer waits for the reload.
GRACE = timedelta(seconds=3)
# After its grace the worker releases its jobs. If it still has not ended this much later, it hangs.
OVERTIME_SECONDS = 7.0
# Limits for the command that runs beside the worker to end, and for the kernel to end it once it is killed.
COMMAND_SECONDS, KILLED_SECONDS = 10.0, 5.0
# Environment variable: the descriptor to which the child writes when the tables exist and its worker starts.
READY = "PGCRON_DEV_READY"
# Environment variable: the name of this program in the commands that it proposes.
CALLED_AS = "PGCRON_CALLED_AS"


class Dev:
    """A supervisor that runs a worker with the newest code, and a command beside it if there is one."""

    def __init__(self, worker: Sequence[str], grace: timedelta, beside: Sequence[str], folders: Sequence[Path]) -> None:
        self._words = worker
        self._grace = grace.total_seconds()
        self._beside_words = beside
        self._wake = Wake()
        self._changes = Changes(folders, self._wake.ring) if folders else None
        self._signals: list[int] = []
        self._worker: subprocess.Popen[bytes] | None = None
        self._beside: subprocess.Popen[bytes] | None = None
        self._kill_at: float | None = None
        self._kill_beside_at: float | None = None
        self._was_killed = False
        self._ready, self._ready_end = os.pipe()
        self._is_ready = False
        self._stopping = False
        self._exit_code = OK

    def run(self) -> int:
        handlers = {n: signal.signal(n, self._note) for n in (*stop_signals(), signal.SIGCHLD)}
        try:
            if self._changes is not None:
                self._changes.start()
            self._start_worker()
            while not self._is_over():
                self._wake.wait(self.step(), () if self._is_ready else (self._ready,))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            if self._changes is not None:
                self._changes.stop()
            for end in (self._ready, self._ready_end):
                os.close(end)
            self._wake.close()
        return self._exit_code

    def step(self) -> float:
        """Handle signals, ended children and changed files. Return the seconds until the next deadline."""
        self._heed_signals()
        self._see_who_ended()
        if not self._is_ready and self._was_called_ready():
            self._is_ready = True
            self._start_beside()
        changed = self._changes.take() if self._changes is not None else []
        if changed and not self._stopping:
            self._reload(changed)
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_worker()
        if self._kill_beside_at is not None and now >= self._kill_beside_at:
            self._kill_beside()
        if self._is_over():
            return 0.0
        deadlines = [at for at in (self._kill_at, self._kill_beside_at) if at is not None]
        return max(0.1, min([*deadlines, now + 5.0]) - time.monotonic())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._wake.ring()

    def _heed_signals(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGCHLD:
                continue
            # Ctrl-C on a terminal has reached the children too, and a second SIGINT would force them to end; an
            # additional SIGTERM changes nothing. So send SIGINT only for the user's second Ctrl-C.
            is_second = self._stopping and number == signal.SIGINT
            self._stopping = True
            self._stop_worker(signal.SIGINT if is_second else signal.SIGTERM, 0.0 if is_second else self._grace)
            self._stop_beside(0.0 if is_second else COMMAND_SECONDS)

    def _see_who_ended(self) -> None:
        if self._beside is not None and (code := self._beside.poll()) is not None:
            if not self._stopping:
                output.echo(f"`{shlex.join(self._beside_words)}` ended with {code}", err=True)
                self._exit_code = code if code >= 0 else 128 - code
                self._stopping = True
                self._stop_worker(signal.SIGTERM, self._grace)
            self._beside, self._kill_beside_at = None, None
        if self._worker is not None and (code := self._worker.poll()) is not None:
            self._worker, self._kill_at, reloading = None, None, self._kill_at is not None
            if self._stopping:
                self._exit_code = self._exit_code or (FAILED if code == -signal.SIGKILL else max(code, 0))
            elif reloading:
                self._start_worker()
            else:
                self._lose_worker(code)

    def _lose_worker(self, code: int) -> None:
        """Handle a worker that ended by itself, most likely because of an error in the code."""
        if self._changes is None or not self._is_ready:
            self._stopping, self._exit_code = True, code if code >= 0 else FAILED
            self._stop_beside(COMMAND_SECONDS)
        else:
            how = f"with {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            output.echo(f"the worker ended {how}; it starts again when a file changes", err=True)

    def _reload(self, changed: Sequence[str]) -> None:
        names = ", ".join(os.path.relpath(path) for path in changed[:3]) + (", ..." if len(changed) > 3 else "")
        output.echo(f"{one_log_line(names)} changed, reloading", err=True)
        if self._worker is None:
            self._start_worker()
        elif self._kill_at is None:
            self._stop_worker(signal.SIGTERM, self._grace)

    def _stop_worker(self, number: int, grace: float) -> None:
        """Signal the worker to stop. It is killed if it has not ended `OVERTIME_SECONDS` after `grace`."""
        if self._worker is not None:
            late_at = time.monotonic() + grace + OVERTIME_SECONDS
            self._kill_at = late_at if self._kill_at is None else min(self._kill_at, late_at)
            self._worker.send_signal(number)

    def _kill_worker(self) -> None:
        if self._worker is not None:
            output.echo("the worker did not end within its grace; killing it", err=True)
            self._worker.kill()
            self._kill_at = time.monotonic() + OVERTIME_SECONDS

    def _stop_beside(self, patience: float) -> None:
        """Tell the command to stop, and kill it when it has not ended in `patience` seconds."""
        if self._beside is not None and not self._was_killed:
            late_at = time.monotonic() + patience
            self._kill_beside_at = late_at if self._kill_beside_at is None else min(self._kill_beside_at, late_at)
            self._beside.send_signal(signal.SIGTERM)

    def _kill_beside(self) -> None:
        """Kill the command: it is frozen, or hangs. Leave it behind if even the kernel cannot end it."""
        if self._beside is None:
            return
        name = f"`{shlex.join(self._beside_words)}`"
        if self._was_killed:
            output.echo(f"{name} was killed and is still there, and is left behind (pid {self._beside.pid})", err=True)
            self._beside, self._kill_beside_at = None, None
            return
        output.echo(f"{name} did not end when it was told to; killing it", err=True)
        self._beside.kill()
        self._was_killed, self._kill_beside_at = True, time.monotonic() + KILLED_SECONDS

    def _start_worker(self) -> None:
        ready = {} if self._is_ready else {READY: str(self._ready_end)}
        # In our own process group: a breakpoint() in a task can use the terminal.
        self._worker = subprocess.Popen(
            self._words, env={**os.environ, **ready}, pass_fds=() if self._is_ready else (self._ready_end,)
        )

    def _start_beside(self) -> None:
        if self._beside_words and not self._stopping:
            try:
                self._beside = subprocess.Popen(self._beside_words)
            except OSError as error:
                output.echo(f"cannot run {self._beside_words[0]!r}: {error.strerror}", err=True)
                self._stopping, self._exit_code = True, FAILED
                self._stop_worker(signal.SIGTERM, self._grace)

    def _was_called_ready(self) -> bool:
        os.set_blocking(self._ready, False)
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._ready, 1))
        return False

    def _is_over(self) -> bool:
        return self._stopping and self._worker is None and self._beside is None
