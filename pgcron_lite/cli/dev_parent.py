"""The parent of `pgcron dev`: keeps a worker running the newest code, and a command of yours beside it.

It imports nothing of the app, so a mistake there never ends it: it waits for the next change.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from ..reload import Changes
from ..report import one_log_line
from ..wake import Wake
from . import FAILED, OK

KILL_SECONDS = 10.0
# The child tells by this descriptor that the tables are there and it is about to work.
READY = "PGCRON_DEV_READY"
# What to call this program in what it proposes.
CALLED_AS = "PGCRON_CALLED_AS"


class Dev:
    """Keeps a worker running the newest code, and a command beside it if there is one."""

    def __init__(self, worker: Sequence[str], beside: Sequence[str], folders: Sequence[Path]) -> None:
        self._words = worker
        self._beside_words = beside
        self._wake = Wake()
        self._changes = Changes(folders, self._wake.ring) if folders else None
        self._signals: list[int] = []
        self._worker: subprocess.Popen[bytes] | None = None
        self._beside: subprocess.Popen[bytes] | None = None
        self._kill_at: float | None = None
        self._ready, self._ready_end = os.pipe()
        self._is_ready = False
        self._stopping = False
        self._exit_code = OK

    def run(self) -> int:
        handlers = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
        try:
            if self._changes is not None:
                self._changes.start()
            self._start_worker()
            while not self._is_over():
                self._wake.wait(self.step(), () if self._is_ready else (self._ready,))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._changes is not None:
                self._changes.stop()
            for end in (self._ready, self._ready_end):
                os.close(end)
            self._wake.close()
        return self._exit_code

    def step(self) -> float:
        """Heed signals, ends and changes; returns seconds until something is due."""
        self._heed_signals()
        self._see_who_ended()
        if not self._is_ready and self._was_called_ready():
            self._is_ready = True
            self._start_beside()
        changed = self._changes.take() if self._changes is not None else []
        if changed and not self._stopping:
            self._reload(changed)
        if self._is_over():
            return 0.0
        if self._kill_at is None:
            return 5.0
        if time.monotonic() >= self._kill_at and self._worker is not None:
            self._worker.kill()
        return max(0.1, self._kill_at - time.monotonic())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._wake.ring()

    def _heed_signals(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGCHLD:
                continue
            # Ctrl-C on a terminal has reached the children as well, and a second SIGINT would force them;
            # a SIGTERM more changes nothing. Only when we are asked twice, they are.
            again, self._stopping = self._stopping, True
            _send(self._worker, signal.SIGINT if again and number == signal.SIGINT else signal.SIGTERM)
            _send(self._beside, signal.SIGTERM)

    def _see_who_ended(self) -> None:
        if self._beside is not None and (code := self._beside.poll()) is not None:
            if not self._stopping:
                click.echo(f"`{shlex.join(self._beside_words)}` ended with {code}", err=True)
                self._exit_code = code if code >= 0 else 128 - code
                self._stopping = True
                _send(self._worker, signal.SIGTERM)
            self._beside = None
        if self._worker is not None and (code := self._worker.poll()) is not None:
            self._worker, self._kill_at, reloading = None, None, self._kill_at is not None
            if self._stopping:
                self._exit_code = self._exit_code or max(code, 0)
            elif reloading:
                self._start_worker()
            else:
                self._lose_worker(code)

    def _lose_worker(self, code: int) -> None:
        """The worker ended by itself: a mistake in the code, most likely."""
        if self._changes is None or not self._is_ready:
            self._stopping, self._exit_code = True, code if code >= 0 else FAILED
            _send(self._beside, signal.SIGTERM)
        else:
            how = f"with {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            click.echo(f"the worker ended {how}; it starts again when a file changes", err=True)

    def _reload(self, changed: Sequence[str]) -> None:
        names = ", ".join(os.path.relpath(path) for path in changed[:3]) + (", ..." if len(changed) > 3 else "")
        click.echo(f"{one_log_line(names)} changed, reloading", err=True)
        if self._worker is None:
            self._start_worker()
        elif self._kill_at is None:
            self._kill_at = time.monotonic() + KILL_SECONDS
            _send(self._worker, signal.SIGTERM)

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
                click.echo(f"cannot run {self._beside_words[0]!r}: {error.strerror}", err=True)
                self._stopping, self._exit_code = True, FAILED
                _send(self._worker, signal.SIGTERM)

    def _was_called_ready(self) -> bool:
        os.set_blocking(self._ready, False)
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._ready, 1))
        return False

    def _is_over(self) -> bool:
        return self._stopping and self._worker is None and self._beside is None


def _send(process: subprocess.Popen[bytes] | None, number: int) -> None:
    if process is not None:
        process.send_signal(number)
