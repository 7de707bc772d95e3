"""Several worker processes under one: starts them, restarts the dead, hands their jobs back at once, passes signals on.

The children are the same command once more; the environment tells them their identity. So the parent knows which
worker died and need not wait for anybody's lease.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from .clock import monotonic
from .errors import OptionError, PgCronError
from .wake import Wake

if TYPE_CHECKING:
    from .app import PgCron

logger = logging.getLogger("pgcron_lite")

CHILD, PARENT = "PGCRON_WORKER_ID", "PGCRON_SUPERVISOR_PID"
FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS = 0.5, 30.0, 60.0


def is_child() -> bool:
    return CHILD in os.environ


def take_id() -> uuid.UUID | None:
    """The identity the parent drew for this process. Taken once: what this process starts is nobody's worker."""
    given = os.environ.pop(CHILD, None)
    return None if given is None else uuid.UUID(given)


def take_parent() -> int | None:
    """The process that supervises this one, if any. Its own word, because it may be gone by the time we ask."""
    given = os.environ.pop(PARENT, None)
    return None if given is None else int(given)


def run(app: PgCron, processes: int) -> int:
    """Keep `processes` workers running until told to stop. Returns the exit code."""
    if not isinstance(processes, int) or not 1 <= processes <= 256:
        raise OptionError(f"processes={processes!r}: expected a whole number from 1 to 256")
    return Supervisor(app, processes).run()


@dataclass(slots=True)
class Child:
    """One place for a process, and what happened in it."""

    process: subprocess.Popen[bytes] | None = None
    id: uuid.UUID | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause: float = FIRST_PAUSE


class Supervisor:
    """The parent. It runs no jobs and holds no connection while nothing happens."""

    def __init__(self, app: PgCron, processes: int) -> None:
        self._app = app
        self._children = [Child() for _ in range(processes)]
        self._wake = Wake()
        self._signals: list[int] = []
        self._stopping = False
        self._exit_code = 0

    def run(self) -> int:
        handlers = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
        logger.info("pgcron_lite: %d worker processes under pid %d", len(self._children), os.getpid())
        try:
            while not self._stopping or any(c.process for c in self._children):
                self._wake.wait(self.step())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._wake.close()
        return self._exit_code

    def step(self) -> float:
        """Pass signals on, bury the dead, start who is missing; returns seconds until the next start is due."""
        self._pass_signals_on()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._bury(child)
        if self._stopping:
            # The last one's end is ours: a deploy waits for this process.
            return 1.0 if any(c.process for c in self._children) else 0.0
        now = monotonic()
        for child in self._children:
            if child.process is None and now >= child.start_at:
                self._start(child)
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
            for child in self._children:
                if child.process is not None:
                    child.process.send_signal(number)

    def _start(self, child: Child) -> None:
        child.id = uuid.uuid4()
        child.started_at = monotonic()
        # A session of its own: Ctrl-C on the terminal reaches the parent alone, which passes it on once.
        child.process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, CHILD: str(child.id), PARENT: str(os.getpid())},
            start_new_session=True,
        )

    def _bury(self, child: Child) -> None:
        assert child.process is not None
        code, child.process = child.process.returncode, None
        lived = monotonic() - child.started_at
        if self._stopping and code in (-signal.SIGTERM, -signal.SIGINT):
            # Our signal came before it had a handler for it, so it had not begun.
            code = 0
        if self._stopping:
            self._exit_code = max(self._exit_code, code if code >= 0 else 1)
        elif code == 0:
            # It ended by itself: drained, or out of time. There is nothing to restart it for.
            self._children = [c for c in self._children if c is not child]
            self._stopping = not self._children
            return
        if code != 0:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            child.pause = FIRST_PAUSE if lived > STEADY_SECONDS else min(child.pause * 2, LONGEST_PAUSE)
            child.start_at = monotonic() + child.pause
            again = "" if self._stopping else f"; the next one starts in {child.pause:g} s"
            logger.error("worker process %s died (%s) after %.0f s%s", str(child.id)[:8], how, lived, again)
            self._hand_back(child)

    def _hand_back(self, child: Child) -> None:
        """What the dead process held goes back now: we have seen it die, nobody has to wait for its lease."""
        assert child.id is not None
        try:
            store = self._app.open_store("pgcron supervisor", size=1)
            try:
                rescued = store.reap([(child.id, None)])
                if rescued:
                    store.ring()
                    logger.warning("%d of its jobs went back to the queue", len(rescued))
            finally:
                store.close()
        except PgCronError as error:
            logger.warning("could not hand back its jobs, a living worker will: %s", error)
