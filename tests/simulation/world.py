"""Virtual time: events in order, and greenlets that wait for them, without sleeping and without threads."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from greenlet import getcurrent, greenlet

from .database import Database

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Not 0: in the production code a monotonic time of 0 means "never".
FIRST_SECOND = 1_000_000.0

# Faults of one statement, and faults of processes and of the server.
OF_STATEMENTS = (
    "refused",    # the statement never arrives, and the connection breaks
    "lost",       # it is committed, and the connection breaks before the reply
    "silent",     # there is no reply, and the connection stays open until the guard cuts it
    "late",       # its bytes arrive after the caller has abandoned the connection
    "commits_late",  # it is evaluated, holds its locks, and is committed after the caller has abandoned the connection
    "twice",      # its bytes arrive a second time
    "stall",      # it takes long, and the reply arrives
)  # fmt: skip
STRIKES = (
    "outage",     # the server is unavailable for a while
    "failover",   # the same, and the sequence of ids is behind afterwards
    "kill",       # a process is killed
    "freeze",     # a process is frozen
    "stop",       # a process gets SIGTERM
    "reset",      # the sequence is moved back without an outage
)  # fmt: skip
# In addition, a job may kill the worker that runs it.
FAULTS = (*OF_STATEMENTS, *STRIKES, "poison")

# Time, number and action; the action is None if the event was cancelled.
Event = list[Any]


class Freezable(Protocol):
    """A process that may be frozen for a while, or be dead."""

    is_dead: bool
    frozen_until: float


@dataclass(slots=True)
class Storm:
    """A period in which statements fail with the probability `chance`."""

    until: float = 0.0
    chance: float = 0.0


class World:
    """One run: its clock, its server, its random numbers and its trace."""

    def __init__(
        self, seed: int, faults: frozenset[str], *, database: type[Database] = Database, traces: bool = False
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.of_statements = [name for name in OF_STATEMENTS if name in faults]
        self.strikes = [name for name in STRIKES if name in faults]
        self.storm = Storm()
        # The time of the last fault, including its effects, and the end of the server's outage.
        self.troubled_at = 0.0
        self.away_until = -1.0
        # Number of crashes of the server. A crash discards all statements in transit.
        self.era = 0
        # Number of statements in transit: not yet evaluated, or not yet committed.
        self.on_their_way = 0
        self.trace: list[str] | None = [] if traces else None
        self.bells: list[Callable[[], None]] = []
        self.database = database(self.datetime, self._ring)
        self.steps = 0
        self._events: list[Event] = []
        self._numbers = itertools.count()
        self._names: dict[Any, str] = {}
        self.hub = getcurrent()

    # Clocks

    def datetime(self) -> datetime:
        """Return the time of the database's clock."""
        return START + timedelta(seconds=self.now)

    def seconds(self) -> float:
        """Return the time of the processes' monotonic clock."""
        return FIRST_SECOND + self.now

    # Events

    def after(self, seconds: float, do: Callable[[], None]) -> Event:
        """Schedule `do`. To cancel the event, set its third item to None."""
        event: Event = [self.now + max(0.0, seconds), next(self._numbers), do]
        heapq.heappush(self._events, event)
        return event

    def step(self) -> None:
        """Advance to the next event and run it."""
        while (event := heapq.heappop(self._events))[2] is None:
            pass
        self.now, _, do = event
        self.steps += 1
        do()

    def start(self, run: Callable[[], None]) -> greenlet:
        """Run a function that waits, in a new greenlet, from the next event on."""
        task = greenlet(run, parent=self.hub)
        self.after(0.0, lambda: self.resume(task))
        return task

    def resume(self, task: greenlet) -> None:
        if not task.dead:
            task.parent = self.hub
            task.switch()

    def wait(self, seconds: float | None, process: Freezable, pause: Pause | None = None) -> bool:
        """Wait until `pause` is ended, at most for `seconds`. Return False if it was not."""
        pause = Pause() if pause is None else pause
        if pause.is_over:
            return True
        pause.begin(self, getcurrent(), process)
        timer = None if seconds is None else self.after(seconds, pause.wake)
        self.hub.switch()
        if timer is not None:
            timer[2] = None
        return pause.is_over

    # Trace

    def name(self, thing: Any, kind: str) -> str:
        """Return a short name for a token, the same in each run of a seed."""
        if thing not in self._names:
            self._names[thing] = f"{kind}{sum(name.startswith(kind) for name in self._names.values()) + 1}"
        return self._names[thing]

    def say(self, actor: str, what: str, *args: Any) -> None:
        """Add a line to the trace, if there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.now:9.3f}  {actor:<12} {what % args if args else what}")

    # Faults

    def has(self, fault: str) -> bool:
        return fault in self.faults

    def trouble(self, lasts: float = 0.0) -> None:
        """Record a fault now, whose effects last for `lasts` seconds."""
        self.troubled_at = max(self.troubled_at, self.now + lasts)

    @property
    def is_stormy(self) -> bool:
        return self.now < self.storm.until

    def _ring(self) -> None:
        for bell in list(self.bells):
            bell()


class Pause:
    """A wait that can be ended early, once."""

    def __init__(self) -> None:
        self.is_over = False
        self._task: greenlet | None = None
        self._world: World | None = None
        self._process: Freezable | None = None

    def begin(self, world: World, task: greenlet, process: Freezable) -> None:
        self._world, self._task, self._process = world, task, process

    def end(self) -> None:
        """End the wait."""
        if not self.is_over:
            self.is_over = True
            self.wake()

    def wake(self) -> None:
        """Resume the waiting greenlet, even if the wait was not ended."""
        world, process, task = self._world, self._process, self._task
        if task is None or world is None or process is None or process.is_dead:
            return
        if process.frozen_until > world.now:
            # The process is frozen until then.
            world.after(process.frozen_until - world.now, self.wake)
            return
        self._task = None
        if getcurrent() is world.hub:
            task.switch()
        else:
            world.after(0.0, lambda: None if process.is_dead else world.resume(task))
