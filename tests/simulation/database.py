"""The simulated server: the memory store with additional properties of PostgreSQL.

It adds primary keys, atomic statements, row locks of uncommitted transactions, and a sequence that a failover can move
back.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pgcron_lite.errors import DatabaseRefused
from pgcron_lite.job import Job, NewJob
from pgcron_lite.memory import MemoryStore
from pgcron_lite.memory.tables import Tables, _fresh

# Methods that change the schedule tables in place. They are undone from a copy.
OF_TIME = {"plan", "add_ticks", "reconcile", "close_ticks", "watch"}
# Methods that change workers' rows.
OF_WORKERS = {"beat", "register", "forget", "reap"}
TABLES_OF_TIME = (
    "_schedules", "_ticks", "_open_ticks", "_tick_of", "_done", "_planning", "_by_age", "_unbegun", "_begun", "_gone",
    "_watched_at", "_overdue", "_in_force", "_generations",
)  # fmt: skip
# Methods that skip locked rows (`for update skip locked`).
SKIPPING = {"claim", "claim_suspect", "reap"}

Key = tuple[str, int | uuid.UUID]


class Blocked(Exception):
    """Raised when a statement has to wait for a row that another transaction has locked."""


@dataclass(slots=True)
class Change:
    """The row of a job before and after a statement. A final state means that the row is in history."""

    job_id: int
    before: Job | None
    after: Job | None


@dataclass(slots=True)
class Effects:
    """All changes by one statement."""

    method: str
    actor: str
    args: tuple[Any, ...]
    jobs: list[Change] = field(default_factory=list)
    workers: dict[uuid.UUID, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def can_wait(self) -> bool:
        """True if they can be committed later. Not if a job got a new id: its tick already refers to that id."""
        return bool(self.keys) and all(c.after is None or c.after.id == c.job_id for c in self.jobs)

    @property
    def keys(self) -> set[Key]:
        return {("job", change.job_id) for change in self.jobs} | {("worker", worker) for worker in self.workers}


class Sequence_:
    """`pgcron.jobs_id_seq`. A failover moves it back."""

    def __init__(self) -> None:
        self.last = 0

    def __next__(self) -> int:
        self.last += 1
        return self.last


class Database(MemoryStore):
    """The server of a world. Connections call `execute`."""

    def __init__(self, clock: Callable[[], datetime], ring: Callable[[], None]) -> None:
        super().__init__(clock)
        self.sequence = Sequence_()
        self._ids = self.sequence  # type: ignore[assignment]
        self.locked: set[Key] = set()
        self._ring = ring
        self._method = ""
        self._changes: list[Change] = []
        self._nested = False

    # Statements

    def execute(self, method: str, actor: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Effects]:
        """Run one statement as a transaction: apply all of its effects, or raise and apply none."""
        self._method, self._changes = method, []
        workers = None
        if method in OF_WORKERS:
            workers = {key: copy.copy(pulse) for key, pulse in self._workers.items()}
        times = self._copy_of_time() if method in OF_TIME and self._may_be_refused() else None
        try:
            answer = getattr(self, method)(*args, **options)
            effects = Effects(method, actor, args, self._changes)
            if workers is not None:
                effects.workers = self._changed_workers(workers)
            if effects.workers and any(("worker", key) in self.locked for key in effects.workers):
                raise Blocked
        except BaseException:
            self._undo(self._changes)
            if workers is not None:
                self._workers = workers
            if times is not None:
                self.__dict__.update(times)
            raise
        finally:
            self._method, self._changes = "", []
        return answer, effects

    def hold(self, effects: Effects) -> None:
        """Undo effects until `commit`, and lock their rows: the transaction is not committed yet."""
        self._undo(effects.jobs)
        for key, (before, _) in effects.workers.items():
            self._put_worker(key, before)
        self.locked |= effects.keys

    def commit(self, effects: Effects) -> None:
        """Make held effects visible."""
        self.roll_back(effects)
        for change in effects.jobs:
            if change.after is None:
                super()._drop(change.job_id)
            elif change.after.is_final:
                super()._end(change.after)
            else:
                super()._keep(change.after)
        for key, (_, after) in effects.workers.items():
            self._put_worker(key, after)

    def roll_back(self, effects: Effects) -> None:
        """Discard held effects: the server has crashed, or their commit is about to be applied."""
        self.locked -= effects.keys

    # Statements of producers, as in `pg.enqueue`

    def draw(self, count: int) -> list[int]:
        return [next(self.sequence) for _ in range(count)]

    def insert(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> None:
        """Insert with ids that the producer has drawn."""
        self._store_all(ids, jobs)

    def insert_unless_ended(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> bool:
        """Insert unless an id is in history. Return True if the rows were inserted."""
        if any(job_id in self._history for job_id in ids):
            return False
        self._store_all(ids, jobs)
        return True

    def insert_again(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> bool:
        """Insert after a lost reply. Return True if the stored rows are those of `jobs`."""
        self._wait_for(ids)
        if not any(job_id in self._jobs or job_id in self._history for job_id in ids):
            self._store_all(ids, jobs)
            return True
        # Here the arguments of each call are unique, as its nonce is in PostgreSQL.
        ours = {job.args for job in jobs}
        there = (self._jobs.get(job_id) or self._history.get(job_id) for job_id in ids)
        return any(job is not None and job.args in ours for job in there)

    def insert_where_free(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> None:
        """Insert after a lost reply. Assume that existing rows with these ids are from the first attempt."""
        self._wait_for(ids)
        if any(job_id in self._history for job_id in ids):
            return
        for job_id, new in zip(ids, jobs, strict=True):
            if job_id not in self._jobs:
                self._store_all([job_id], [new])

    def draw_anew(self, count: int) -> list[int]:
        """Draw ids that are not in use."""
        return [self._next_id() for _ in range(count)]

    def mend_sequence(self) -> int:
        """Advance the sequence. Return by how much it was behind."""
        newest = max([self.sequence.last, *self._jobs, *self._history])
        behind, self.sequence.last = newest - self.sequence.last, newest
        return behind

    def settle(self, outcomes: Sequence[Any]) -> set[int]:
        """Settle after locking all rows."""
        for outcome in outcomes:
            job = self._jobs.get(outcome.id)
            if job is not None and job.claim == outcome.claim:
                self._wait_for([outcome.id])
        return super().settle(outcomes)

    def ring(self) -> None:
        self._ring()

    # Rows

    def _store_new(self, job_id: int, new: NewJob, now: datetime) -> Job:
        if job_id in self._jobs:
            raise DatabaseRefused('duplicate key value violates unique constraint "jobs_pkey"')
        return self._keep(_fresh(job_id, new, now))

    def _store_all(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> None:
        now = self.now()
        for job_id, new in zip(ids, jobs, strict=True):
            self._store_new(job_id, new, now)

    def _wait_for(self, ids: Sequence[int]) -> None:
        if self.locked and any(("job", job_id) in self.locked for job_id in ids):
            raise Blocked

    def _add(self, jobs: Sequence[NewJob]) -> list[int]:
        # After a failover the sequence issues ids that are in use.
        ids = [self._next_id() for _ in jobs]
        self._store_all(ids, jobs)
        return ids

    def _keep(self, job: Job) -> Job:
        kept: Job = self._record(job.id, job, super()._keep)
        return kept

    def _end(self, job: Job) -> Job:
        ended: Job = self._record(job.id, job, super()._end)
        return ended

    def _drop(self, job_id: int) -> Job | None:
        if self._nested:
            return super()._drop(job_id)
        before = self._jobs.get(job_id)
        self._record(job_id, None, lambda _: super(Database, self)._drop(job_id))
        return before

    def _record(self, job_id: int, after: Job | None, write: Callable[[Any], Any]) -> Any:
        self._wait_for([job_id])
        before = self._jobs.get(job_id)
        self._nested = True
        try:
            written = write(after)
        finally:
            self._nested = False
        if before is not None or after is not None:
            # A job may end under a different id.
            self._changes.append(Change(job_id, before, None if after is None else written))
        return written

    def _undo(self, changes: Sequence[Change]) -> None:
        self._nested = True
        for change in reversed(changes):
            if change.after is not None and change.after.is_final:
                Tables._erase(self, change.after.id)
            elif change.after is not None:
                Tables._drop(self, change.job_id)
            if change.before is not None:
                Tables._keep(self, change.before)
        self._nested = False

    def _claimable(self, queues: Sequence[str], tasks: Sequence[str], until: datetime | None = None) -> Iterator[Job]:
        for job in super()._claimable(queues, tasks, until):
            if self._is_seen(job):
                yield job

    def _running(self) -> list[Job]:
        return [job for job in super()._running() if self._is_seen(job)]

    def _is_seen(self, job: Job) -> bool:
        return not self.locked or self._method not in SKIPPING or ("job", job.id) not in self.locked

    def _put_worker(self, key: uuid.UUID, pulse: Any) -> None:
        if pulse is None:
            self._workers.pop(key, None)
        else:
            self._workers[key] = pulse

    def _changed_workers(self, before: dict[uuid.UUID, Any]) -> dict[uuid.UUID, tuple[Any, Any]]:
        return {
            key: (before.get(key), copy.copy(self._workers.get(key)))
            for key in before.keys() | self._workers.keys()
            if before.get(key) != self._workers.get(key)
        }

    def _next_id(self) -> int:
        base = getattr(super(), "_next_id", None)
        return next(self.sequence) if base is None else base()

    # Schedules

    def _may_be_refused(self) -> bool:
        """Return True if an insert may use an id that is taken, or a write may need a row that is locked."""
        if max(self._jobs, default=0) > self.sequence.last:
            return True
        jobs = [key for _, key in self.locked if isinstance(key, int)]
        return any(job_id in self._tick_of or job_id > self.sequence.last for job_id in jobs)

    def _copy_of_time(self) -> dict[str, Any]:
        tables = {name: self.__dict__[name] for name in TABLES_OF_TIME}
        kept: dict[int, Any] = {id(self): self}
        for name in ("_planning", "_by_age", "_unbegun", "_begun"):
            # Counters cannot be copied, and their next number does not matter.
            kept[id(tables[name]._numbers)] = tables[name]._numbers
        return copy.deepcopy(tables, kept)


class PlainKeys(Database):
    """A server that refuses duplicate ids, without anything that avoids them."""

    def _end(self, job: Job) -> Job:
        if job.id in self._history:
            raise DatabaseRefused('duplicate key value violates unique constraint "history_pkey"')
        return super()._end(job)

    def _next_id(self) -> int:
        return next(self.sequence)

    def mend_sequence(self) -> int:
        return 0
