"""Virtual time: events in their order, and greenlets that wait for them. Nothing sleeps and nothing is a thread."""

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
# The machines take a stopwatch that shows 0 for one that was never read.
FIRST_SECOND = 1_000_000.0

# Faults of one statement, and faults of processes and of the server.
OF_STATEMENTS = (
    "refused",    # the statement never arrives, and the connection breaks
    "lost",       # it is committed, and the connection breaks before the reply
    "silent",     # nothing comes back, and nothing breaks until the guard cuts the connection
    "late",       # its bytes arrive when the connection has been given up
    "commits_late",  # it is evaluated, holds its locks, and is committed when the connection has been given up
    "twice",      # its bytes arrive a second time
    "stall",      # it takes long, and the reply arrives
)  # fmt: skip
STRIKES = (
    "outage",     # the server is gone for a while
    "failover",   # the same, and the sequence of ids is behind afterwards
    "kill",       # a process is killed
    "freeze",     # a process stands still
    "stop",       # a process gets SIGTERM
    "reset",      # the sequence is moved back with no outage at all
)  # fmt: skip
# And a job may kill whoever runs it.
FAULTS = (*OF_STATEMENTS, *STRIKES, "poison")

# When, in which order, and what; None if it was called off.
Event = list[Any]


class Freezable(Protocol):
    """What may stand still for a while, or be gone for ever."""

    is_dead: bool
    frozen_until: float


@dataclass(slots=True)
class Storm:
    """How bad it is: how often a statement goes wrong."""

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
        # When anything last went wrong, and until when the server is away.
        self.troubled_at = 0.0
        self.away_until = -1.0
        # Counts crashes of the server: what was on its way then is gone.
        self.era = 0
        # Statements that will be evaluated or committed some time after their caller has given up.
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
        """The clock of the database."""
        return START + timedelta(seconds=self.now)

    def seconds(self) -> float:
        """The stopwatch of the machines."""
        return FIRST_SECOND + self.now

    # Events

    def after(self, seconds: float, do: Callable[[], None]) -> Event:
        """Have something happen then. The event is called off by taking its deed away."""
        event: Event = [self.now + max(0.0, seconds), next(self._numbers), do]
        heapq.heappush(self._events, event)
        return event

    def step(self) -> None:
        """The next event happens."""
        while (event := heapq.heappop(self._events))[2] is None:
            pass
        self.now, _, do = event
        self.steps += 1
        do()

    def start(self, run: Callable[[], None]) -> greenlet:
        """Run something that waits, in a greenlet of its own, from the next event on."""
        task = greenlet(run, parent=self.hub)
        self.after(0.0, lambda: self.resume(task))
        return task

    def resume(self, task: greenlet) -> None:
        if not task.dead:
            task.parent = self.hub
            task.switch()

    def wait(self, seconds: float | None, who: Freezable, pause: Pause | None = None) -> bool:
        """Wait here until `pause` is ended, at most `seconds`. Returns False if the time is up."""
        pause = Pause() if pause is None else pause
        if pause.is_over:
            return True
        pause.begin(self, getcurrent(), who)
        timer = None if seconds is None else self.after(seconds, pause.wake)
        self.hub.switch()
        if timer is not None:
            timer[2] = None
        return pause.is_over

    # Words

    def name(self, thing: Any, kind: str) -> str:
        """A short name for a token, the same in each run of a seed."""
        if thing not in self._names:
            self._names[thing] = f"{kind}{sum(name.startswith(kind) for name in self._names.values()) + 1}"
        return self._names[thing]

    def say(self, who: str, what: str, *args: Any) -> None:
        """A line of the trace. Costs nothing when there is none."""
        if self.trace is not None:
            self.trace.append(f"{self.now:9.3f}  {who:<12} {what % args if args else what}")

    # Faults

    def has(self, fault: str) -> bool:
        return fault in self.faults

    def trouble(self, lasts: float = 0.0) -> None:
        """Something goes wrong now, and its effect is there for so many seconds."""
        self.troubled_at = max(self.troubled_at, self.now + lasts)

    @property
    def is_stormy(self) -> bool:
        return self.now < self.storm.until

    def _ring(self) -> None:
        for bell in list(self.bells):
            bell()


class Pause:
    """A wait that somebody may end before its time, once."""

    def __init__(self) -> None:
        self.is_over = False
        self._task: greenlet | None = None
        self._world: World | None = None
        self._who: Freezable | None = None

    def begin(self, world: World, task: greenlet, who: Freezable) -> None:
        self._world, self._task, self._who = world, task, who

    def end(self) -> None:
        """What was waited for is there."""
        if not self.is_over:
            self.is_over = True
            self.wake()

    def wake(self) -> None:
        """Resume who waits, whether or not it has come."""
        world, who, task = self._world, self._who, self._task
        if task is None or world is None or who is None or who.is_dead:
            return
        if who.frozen_until > world.now:
            # The process gets no processor until then.
            world.after(who.frozen_until - world.now, self.wake)
            return
        self._task = None
        if getcurrent() is world.hub:
            task.switch()
        else:
            world.after(0.0, lambda: None if who.is_dead else world.resume(task))
