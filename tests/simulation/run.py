"""One run of the simulation: one or two periods of faults (storms), and a quiet period after them."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from greenlet import GreenletExit

import pgcron_lite.worker.loop
from pgcron_lite.schedules import schedule
from pgcron_lite.worker.loop import Worker

from .app import LEASE_SECONDS
from .database import Database
from .invariants import STRANDED_SECONDS, Ledger, Violation
from .processes import Process
from .producers import DEFAULT, Enqueuer, Producer
from .world import FAULTS, World

# Maximum seconds from the last fault to the end of all jobs.
PATIENCE = 900.0
# A simulation has dozens of jobs. A lower threshold makes workers do what they do with hundreds in production.
SERIES = 3


@dataclass(frozen=True, slots=True)
class Options:
    """The classes that run, and the faults that occur. Tests use classes without a safeguard."""

    faults: frozenset[str] = frozenset(FAULTS)
    worker: type[Worker] = Worker
    enqueuer: type[Enqueuer] = DEFAULT
    database: type[Database] = Database


@dataclass(slots=True)
class Result:
    """The result of a run."""

    seed: int
    violation: Violation | None = None
    trace: list[str] = field(default_factory=list)
    steps: int = 0
    jobs: int = 0
    seconds: float = 0.0


def run(seed: int, options: Options = Options(), *, traces: bool = False) -> Result:
    """Run one seed to its end, or to the first violation."""
    world = World(seed, options.faults, database=options.database, traces=traces)
    result = Result(seed)
    with _deterministic(world), _logged(world):
        drive = Drive(world, options)
        try:
            drive.until_quiet()
        except Violation as violation:
            world.say("VIOLATION", "%s", violation)
            result.violation = violation
        finally:
            drive.close()
    result.trace, result.steps, result.seconds = world.trace or [], world.steps, world.now
    result.jobs = len(drive.ledger.acknowledged)
    return result


class Drive:
    """The processes of a world, and the faults that are injected."""

    def __init__(self, world: World, options: Options) -> None:
        self.world = world
        self.ledger = Ledger(world, LEASE_SECONDS)
        self._options = options
        self._count = 0
        self._is_quick = world.random.random() < 0.4
        self._is_over = False
        for _ in range(world.random.choice((1, 2, 2, 3))):
            self._start()
        calls = 28 if self._is_quick else 12
        pause = world.random.choice((0.05, 2.0) if self._is_quick else (1.0, 6.0))
        self.producers = [
            Producer(world, self.ledger, number, calls=calls // 2, pause=pause, make=options.enqueuer)
            for number in (1, 2)
        ]
        self._storms = world.random.choice((1, 1, 2))
        world.after(1.0, self._begin_storm)

    def until_quiet(self) -> None:
        world, ledger = self.world, self.ledger
        while not self._is_over or not self._is_quiet():
            world.step()
            ledger.check()
            if world.steps > 200_000:
                raise Violation("livelock", "not ended after 200,000 events")
            if self._is_over and world.now - world.troubled_at > PATIENCE:
                ledger.check_end()
                raise Violation("not ended", f"{PATIENCE:g} s after the last fault there are still events")
        ledger.check_end()

    def close(self) -> None:
        for process in self.ledger.processes:
            if not process.is_dead:
                process._on_end = lambda _: None
                process.kill()
        for producer in self.producers:
            if not producer.task.dead:
                producer.task.throw(GreenletExit)

    def _is_quiet(self) -> bool:
        world = self.world
        if world.now - world.troubled_at < STRANDED_SECONDS + 10.0 or world.on_their_way:
            return False
        if not all(producer.is_done for producer in self.producers):
            return False
        jobs = world.database._jobs
        return all(schedule.SCHEDULE in job.headers for job in jobs.values())

    # Faults

    def _begin_storm(self) -> None:
        """Begin a storm, in which statements fail at random."""
        world = self.world
        self._storms -= 1
        lasts = world.random.uniform(10.0, 60.0)
        world.storm.until, world.storm.chance = world.now + lasts, world.random.choice((0.02, 0.08, 0.2))
        world.say("WORLD", "a storm of %.0f s: one statement in %.0f goes wrong", lasts, 1 / world.storm.chance)
        world.trouble(lasts)
        for _ in range(world.random.choice((0, 2, 4, 8))):
            world.after(world.random.uniform(0.0, lasts), self._inject_fault)
        world.after(lasts, self._end_storm)

    def _end_storm(self) -> None:
        world = self.world
        world.say("WORLD", "the storm is over")
        if self._storms > 0:
            # Either too short or long enough for stranded jobs to be found.
            world.after(world.random.choice((5.0, 150.0)), self._begin_storm)
        else:
            self._is_over = True

    def _inject_fault(self) -> None:
        world, random = self.world, self.world.random
        if not world.strikes:
            return
        fault = random.choice(world.strikes)
        if fault in ("outage", "failover"):
            return self._outage(random.choice((0.5, 5.0, 40.0)), fails_over=fault == "failover")
        if fault == "reset":
            return self._rewind_sequence()
        live = [process for process in self.ledger.processes if not process.is_dead]
        if not live:
            return
        victim = random.choice(live)
        if fault == "kill":
            world.trouble()
            victim.kill()
        elif fault == "freeze":
            span = random.choice((3.0, random.uniform(10.0, 35.0), random.uniform(35.0, 80.0)))
            world.trouble(span)
            victim.freeze(span)
        else:
            world.trouble(30.0)
            victim.stop()

    def _outage(self, lasts: float, *, fails_over: bool) -> None:
        world = self.world
        world.say("WORLD", "the server is unavailable for %.1f s", lasts)
        world.away_until = world.now + lasts
        world.era += 1
        world.trouble(lasts + 40.0)
        if fails_over:
            self._rewind_sequence()

    def _rewind_sequence(self) -> None:
        sequence = self.world.database.sequence
        behind = self.world.random.randint(1, 40)
        sequence.last = max(0, sequence.last - behind)
        self.world.say("WORLD", "the sequence of ids goes back by %d, to %d", behind, sequence.last)

    # Processes

    def _start(self) -> None:
        self._count += 1
        Process(
            self.world, self.ledger, f"worker {self._count}", slots=self.world.random.choice((1, 2, 4)),
            is_quick=self._is_quick, make=self._options.worker, on_end=self._restart,
        )  # fmt: skip

    def _restart(self, _: Process) -> None:
        """Start the next worker, as a platform does."""
        pause = self.world.random.choice((0.5, 5.0))
        self.world.trouble(pause)
        self.world.after(pause, self._start)


@contextlib.contextmanager
def _deterministic(world: World) -> Iterator[None]:
    """Draw tokens from the seed, so that a run can be repeated, and let workers pipeline with a few jobs."""
    uuid4, series = uuid.uuid4, pgcron_lite.worker.loop.SERIES
    uuid.uuid4 = lambda: uuid.UUID(int=world.random.getrandbits(128), version=4)
    pgcron_lite.worker.loop.SERIES = SERIES
    try:
        yield
    finally:
        uuid.uuid4, pgcron_lite.worker.loop.SERIES = uuid4, series


@contextlib.contextmanager
def _logged(world: World) -> Iterator[None]:
    """Write the log to the trace, if there is one."""
    logger = logging.getLogger("pgcron_lite")
    level, propagates = logger.level, logger.propagate
    handler = _IntoTrace(world)
    logger.setLevel(logging.CRITICAL if world.trace is None else logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


class _IntoTrace(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.say("log", "%s", record.getMessage().split("\n")[0][:200])
