"""Worker processes: the production worker with models of its loop, heartbeat, doorbell and slots."""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from greenlet import GreenletExit, greenlet

from pgcron_lite.errors import DatabaseUnavailable, PgCronError, SchemaMismatch
from pgcron_lite.job import Job, WorkerCard
from pgcron_lite.schedules import schedule
from pgcron_lite.worker import execute
from pgcron_lite.worker import process as production
from pgcron_lite.worker.execute import Ended
from pgcron_lite.worker.loop import Worker
from pgcron_lite.worker.slots import Slots

from .app import LEASE_SECONDS, Script, app
from .connection import Connection
from .invariants import Ledger, Violation
from .world import Pause, World

HANG_SECONDS = 20.0
GRACE_SECONDS = 25.0
HEART_SECONDS = LEASE_SECONDS / 3
ENDS = ("done",) * 14 + ("error",) * 3 + ("retry", "snooze", "cancel")


class Process:
    """One worker process from its start to its end. A model of `pgcron_lite.worker.process.Process`."""

    def __init__(
        self, world: World, ledger: Ledger, name: str, *, slots: int, is_quick: bool, make: type[Worker] = Worker,
        on_end: Callable[[Process], None],
    ) -> None:
        self.name = name
        self.is_dead = False
        self.frozen_until = 0.0
        self.is_stopping = False
        self.worker: Worker | None = None
        self.is_quick = is_quick
        self.world = world
        self.ledger = ledger
        self.id = uuid.uuid4()
        self._count = slots
        self._make = make
        self._on_end = on_end
        self._deadline = 0.0
        self._is_refused = False
        # No supervisor has to be informed about a new identity.
        self.options = SimpleNamespace(status=None)
        # Kept until the new identity is confirmed, as in production.
        self._next_card: WorkerCard | None = None
        self._pause: Pause | None = None
        self._is_woken = False
        self._connection = Connection(world, name, self, patience=HANG_SECONDS, on_effects=ledger.record)
        self._heartbeat_connection = Connection(
            world, f"{name} heartbeat", self, patience=HEART_SECONDS / 2, on_effects=ledger.record
        )
        self._bell = Bell(world, self)
        self._heartbeat: greenlet | None = None
        ledger.owners[self.id] = self
        ledger.processes.append(self)
        self._main = world.start(self._run)

    def runs(self, job: Job) -> bool:
        """Return True if the worker of this process counts this job as running."""
        if self.is_dead or self.worker is None:
            return False
        running = self.worker.running.get(job.id)
        return running is not None and running.claim == job.claim

    # Faults

    def kill(self) -> None:
        """Kill the process, as `kill -9` does. Statements that it has sent are still delivered."""
        self.world.say(self.name, "is killed")
        self._end()
        for task in (self._main, self._heartbeat):
            if task is not None:
                task.parent = self.world.hub
                task.throw(GreenletExit)

    def freeze(self, seconds: float) -> None:
        """Freeze the process for `seconds`, as SIGSTOP does. Its monotonic clock continues."""
        self.world.say(self.name, "is frozen for %.1f s", seconds)
        self.frozen_until = self.world.now + seconds

    def stop(self) -> None:
        """Stop the process, as SIGTERM does."""
        self.world.say(self.name, "gets SIGTERM")
        self.is_stopping = True
        self.tell()

    def tell(self) -> None:
        """End the sleep of the loop."""
        self._is_woken = True
        if self._pause is not None:
            self._pause.end()

    def _end(self) -> None:
        self.is_dead = True
        self._bell.close()
        self._on_end(self)

    # The loop

    def _run(self) -> None:
        try:
            self._work()
        except GreenletExit:
            raise
        except Violation:
            raise
        except Exception as error:
            self._end()
            raise Violation("worker ended", f"{self.name} ends with {type(error).__name__}: {error}") from error
        self._end()

    def _work(self) -> None:
        card = WorkerCard(
            self.id, "box", 1, ("*",), self._count, "simulated", "0", schedule.generation(app.name, app._definitions)
        )
        if not self._ready(card):
            return
        world = self.world
        worker = self.worker = self._make(
            app, cast(Any, self._connection), card, bell=self._bell, wake_loop=self.tell, slots=self._slots,
            clock=world.seconds, spread=world.random.uniform,
        )  # fmt: skip
        self._heartbeat = world.start(self._beat)
        while True:
            wait = worker.step()
            if self._is_refused:
                production.Process._register_again(cast(Any, self), worker, cast(Any, self))
            if self.is_stopping and not worker.stopping:
                worker.stop()
                self._deadline = world.seconds() + GRACE_SECONDS
            if worker.stopping:
                if worker.is_idle() or world.seconds() >= self._deadline:
                    break
                wait = min(wait, 1.0, max(0.0, self._deadline - world.seconds()))
            self._sleep(wait)
        self._leave(worker)

    def _slots(self, *args: Any, **options: Any) -> SimulatedSlots:
        return SimulatedSlots(self, *args, **options)

    def _ready(self, card: WorkerCard) -> bool:
        pause = 0.2
        while not self.is_stopping:
            try:
                self._connection.declare(app.name, card.generation or "", app._definitions)
                self._connection.register(card)
            except DatabaseUnavailable:
                self._sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                return True
        return False

    def _sleep(self, seconds: float) -> None:
        if not self._is_woken:
            self._pause = Pause()
            # A wait of 0 s would never let time pass.
            self.world.wait(max(seconds, 0.0001), self, self._pause)
        self._pause, self._is_woken = None, False

    def continue_as(self, worker: uuid.UUID) -> None:
        """Send heartbeats for a new identity, after the old one was declared dead."""
        self.world.say(self.name, "was declared dead and continues under a new identity")
        self.id = worker
        self._is_refused = False

    def _leave(self, worker: Worker) -> None:
        try:
            worker.release()
            worker.store.forget(worker.id)
        except PgCronError as error:
            self.world.say(self.name, "could not return its jobs: %s", error)
        self.world.say(self.name, "has stopped")

    # Heartbeat

    def _beat(self) -> None:
        while not self.is_dead:
            self.world.wait(self._beat_once(), self)

    def _beat_once(self) -> float:
        me, worker = self.id, self.worker
        assert worker is not None
        try:
            if not self._heartbeat_connection.beat(me, worker.slots.busy, 0.0, worker.stopping) and me == self.id:
                self._is_refused = True
                self.tell()
        except (DatabaseUnavailable, SchemaMismatch):
            return 1.0
        return HEART_SECONDS


class Bell:
    """A doorbell whose notifications arrive after a moment, and during a storm are sometimes lost."""

    is_live = True
    busy_seconds = 0.0

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._rung = True
        world.bells.append(self._ring)

    def fileno(self) -> int | None:
        return None

    def step(self) -> tuple[bool, float]:
        rung, self._rung = self._rung, False
        return rung, 3600.0

    def cut(self) -> None:
        """Do nothing: it never hangs."""

    def rest(self, seconds: float) -> None:
        """Do nothing: it has no connection."""

    def close(self) -> None:
        if self._ring in self._world.bells:
            self._world.bells.remove(self._ring)

    def _ring(self) -> None:
        if self._rung or (self._world.is_stormy and self._world.random.random() < 0.3):
            return
        self._world.after(0.001, self._hear)

    def _hear(self) -> None:
        if not self._process.is_dead:
            self._rung = True
            self._process.tell()


class SimulatedSlots(Slots):
    """Slots in virtual time. The duration of a job is random and independent of the loop."""

    def __init__(self, process: Process, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._process = process
        self._serving = 0

    def put(self, *jobs: Job, since: float | None = None) -> None:
        now = self._clock()
        self._given += len(jobs)
        self._waiting.extend([(job, now if since is None else since, now) for job in jobs])
        self._fill()

    def close(self, *args: Any, **options: Any) -> None:
        """Do nothing: there are no threads."""

    def _fill(self) -> None:
        while self._waiting and self._serving < self.count and not self._process.is_dead:
            job, since, at = self._waiting.popleft()
            if self._clock() - since > self._max_age:
                self._late.append((job, since, at))
                self._wake_loop_once()
            else:
                self._begin(job)

    def _begin(self, job: Job) -> None:
        process, random = self._process, self._process.world.random
        process.ledger.begins(process, job)
        self._serving += 1
        if process.is_quick:
            seconds = random.choice((0.001, 0.001, 0.002, 0.02))
        else:
            seconds = random.choice((0.001, 0.01, random.uniform(0.1, 2.0), random.uniform(2.0, 12.0)))
        if process.world.is_stormy and random.random() < 0.02:
            seconds = random.uniform(20.0, 50.0)
        process.world.say(process.name, "begins %s, for %.3f s", job, seconds)
        if job.task == "poison":
            process.world.after(seconds, self._kill)
        else:
            process.world.after(seconds, lambda: self._finish(job, seconds))

    def _kill(self) -> None:
        if not self._process.is_dead:
            self._process.world.trouble()
            self._process.kill()

    def _finish(self, job: Job, seconds: float) -> None:
        process = self._process
        world = process.world
        if process.is_dead:
            return
        if process.frozen_until > world.now:
            world.after(process.frozen_until - world.now, lambda: self._finish(job, seconds))
            return
        Script.draw = lambda: world.random.choice(ENDS)
        ended = contextvars.Context().run(execute.run, self._app, job, self._is_stopping, world.random.random)
        world.say(process.name, "has executed %s: %s", job, ended.outcome.state)
        process.ledger.ends(job)
        self._serving -= 1
        self.ended.append(Ended(ended.job, ended.outcome, seconds, ended.error))
        self._fill()
        if not self._waiting or len(self.ended) >= self.enough:
            self._wake_loop_once()
