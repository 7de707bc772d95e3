"""Invariants of the simulation, checked after each event.

`Ledger` records each change of a row and each execution, and raises `Violation` at the first wrong one.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from pgcron_lite.job import Job
from pgcron_lite.schedules import schedule

from .app import TICK_SECONDS
from .database import Change, Effects
from .world import World

if TYPE_CHECKING:
    from .processes import Process

# Maximum time for which a job is `running` while no worker runs it, counted from the last fault of any kind.
STRANDED_SECONDS = 60.0

LEGAL = {
    (None, "queued"), ("queued", "running"), ("queued", "cancelled"), ("queued", None),
    ("running", "queued"), ("running", "done"), ("running", "failed"), ("running", "cancelled"),
}  # fmt: skip


class Violation(AssertionError):
    """The violation of an invariant. `kind` is the invariant's short name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str]]:
        return Violation, (self.kind, self.text)


class Ledger:
    """Acknowledged jobs, executions and changes of rows, and the invariants between them."""

    def __init__(self, world: World, lease: float) -> None:
        self.world = world
        self.lease = lease
        self.acknowledged: dict[int, int] = {}
        self.processes: list[Process] = []
        # The process of each identity that a worker has had.
        self.owners: dict[uuid.UUID, Process] = {}
        self._nonces = 0
        self._ids_of: dict[int, int] = {}
        self._ticks: dict[tuple[str, str], int] = {}
        self._attempts: dict[int, int] = defaultdict(int)
        self._begun: set[tuple[int, uuid.UUID]] = set()
        self._executed: dict[int, int] = defaultdict(int)
        self._stranded: dict[tuple[int, uuid.UUID | None], float] = {}
        self._fresh: list[Effects] = []

    # Recording

    def new_nonce(self) -> int:
        self._nonces += 1
        return self._nonces

    def acknowledge(self, producer: str, ids: Sequence[int], nonces: Sequence[int]) -> None:
        """Record that `delay()` returned these ids to a producer. The jobs must be stored."""
        for job_id, nonce in zip(ids, nonces, strict=True):
            job = self.world.database.get(job_id)
            if job is None or _nonce(job) != nonce:
                raise Violation(
                    "not stored", f"{producer} got the id #{job_id} from delay(); that row is {_describe(job)}"
                )
            self.acknowledged[nonce] = job_id

    def record(self, effects: Effects) -> None:
        """Record the effects of a committed statement."""
        self._fresh.append(effects)
        if effects.method == "register":
            self.owners[effects.args[0].id] = next(p for p in self.processes if p.name == effects.actor)

    def begins(self, process: Process, job: Job) -> None:
        """Record that a worker starts to execute a claimed job."""
        assert job.claim is not None
        if (job.id, job.claim) in self._begun:
            raise Violation("run twice", f"{process.name} runs {job} twice under one claim")
        self._begun.add((job.id, job.claim))
        row = self.world.database._jobs.get(job.id)
        is_ours = row is not None and row.state == "running" and row.claim == job.claim
        # A worker that was declared dead may not know that yet, nor that it no longer owns the job.
        if not is_ours and job.worker in self.world.database._workers and job.worker == process.id:
            text = f"{process.name}, which is alive, starts {job}; the row is {_describe(row)}"
            raise Violation("not the owner", text)

    def ends(self, job: Job) -> None:
        """Record that a worker has executed a job to its end."""
        self._executed[job.id] += 1

    # Checks

    def check(self) -> None:
        """Check all invariants, after each event."""
        if self._fresh:
            for effects in self._fresh:
                for change in effects.jobs:
                    self._check_change(effects, change)
                if effects.method == "reap":
                    self._check_reap(effects)
            self._fresh.clear()
        if self._stranded or self.world.database._held:
            self._check_running()

    def _check_change(self, effects: Effects, change: Change) -> None:
        before, after = change.before, change.after
        states = (before and before.state, after and after.state)
        if before is not None and after is not None and before.state == after.state:
            self._check_same_state(effects, before, after)
        elif states not in LEGAL:
            raise Violation("illegal move", f"{effects.method} of {effects.actor} moves #{change.job_id} {states}")
        if before is None and after is not None:
            self._check_new(effects, after)
        elif after is None:
            if before is not None and schedule.SCHEDULE not in before.headers:
                raise Violation("lost", f"{effects.method} of {effects.actor} deletes {before}")
        elif before is not None and before.state == "running":
            self._check_owned(effects, before, after)
        if after is not None:
            self._check_attempts(effects, change.job_id, before, after)
            if after.is_final:
                self._check_executions(change.job_id, after)

    def _check_same_state(self, effects: Effects, before: Job, after: Job) -> None:
        """Check that a running row changes within its state only if its worker continues under a new identity."""
        if before.state == "running" and (before.claim != after.claim or effects.method != "register"):
            raise Violation("two owners", f"{effects.method} of {effects.actor} takes {before} from its owner")

    def _check_new(self, effects: Effects, job: Job) -> None:
        if schedule.SCHEDULE in job.headers:
            tick = job.headers[schedule.SCHEDULE], job.headers[schedule.TICK]
            if tick in self._ticks:
                raise Violation("tick twice", f"{effects.actor} makes a second job of the tick {tick}")
            self._ticks[tick] = job.id
            return
        nonce = _nonce(job) or 0
        if nonce in self._ids_of:
            raise Violation("stored twice", f"{effects.actor} stores one call of delay() as #{self._ids_of[nonce]} and"
                                            f" as #{job.id}")  # fmt: skip
        self._ids_of[nonce] = job.id

    def _check_owned(self, effects: Effects, before: Job, after: Job) -> None:
        """Check that a running job is written only by its owner, or by a reaper that has declared the owner dead."""
        if effects.method == "settle":
            outcomes = [o for o in effects.args[0] if o.id == before.id and o.claim == before.claim]
            if not outcomes:
                raise Violation("fence", f"{effects.actor} changes {before} with an outcome of another claim")
        elif effects.method == "complete":
            if effects.args[1] != before.claim:
                raise Violation("fence", f"{effects.actor} completes {before} under another claim")
        elif effects.method not in ("reap", "register"):
            self._check_other_method(effects, before, after)
        if after.state == "queued" and before.claim is not None:
            # Bytes of a claim that arrive twice may take it again under the same token.
            self._begun.discard((before.id, before.claim))
        if effects.method == "reap" and after.crashes > before.crashes:
            self._check_blame(before)

    def _check_other_method(self, effects: Effects, before: Job, after: Job) -> None:
        """Check a method that this class does not know: a worker may change only its own jobs."""
        owner = self.owners.get(before.worker) if before.worker is not None else None
        if owner is None or not effects.actor.startswith(owner.name):
            raise Violation("fence", f"{effects.method} of {effects.actor} changes {before}, which it does not own")

    def _check_blame(self, before: Job) -> None:
        held = [job for job in self.world.database._running() if job.worker == before.worker and job.id != before.id]
        if not before.alone or held:
            raise Violation("wrong blame", f"{before} is blamed for a death while it was not alone")

    def _check_attempts(self, effects: Effects, job_id: int, before: Job | None, after: Job) -> None:
        if before is None:
            # Ids may be reused.
            self._attempts[job_id] = self._executed[job_id] = 0
        expected = self._attempts[job_id]
        if before is not None and (before.state, after.state) == ("queued", "running"):
            expected += 1
        elif before is not None and before.state == "running" and after.state == "queued":
            if effects.method == "settle":
                expected -= any(o.gives_back for o in effects.args[0] if o.id == job_id and o.claim == before.claim)
            else:
                expected -= 1
        if after.attempt != expected:
            raise Violation("attempts", f"{effects.method} of {effects.actor}: {after}, expected attempt {expected}")
        if after.attempt > after.max_attempts:
            raise Violation("attempts", f"{after} has more attempts than it may have")
        self._attempts[job_id] = expected

    def _check_executions(self, job_id: int, job: Job) -> None:
        """Check that an ended job was executed as often as its attempts say."""
        executed = self._executed[job_id]
        if job.state == "done" and not executed:
            raise Violation("attempts", f"{job} is done and was never executed")
        if job.state == "failed" and job.crashes < job.max_crashes and executed < job.attempt:
            raise Violation("attempts", f"{job} failed and was executed {executed} times")
        if job.task == "poison" and job.state != "failed":
            raise Violation("attempts", f"{job} kills each worker and is {job.state}")

    def _check_reap(self, effects: Effects) -> None:
        """Check that no worker with a heartbeat within the lease is declared dead."""
        now = self.world.datetime()
        for worker, (before, after) in effects.workers.items():
            if before is not None and after is None and now - before.beat_at < timedelta(seconds=self.lease):
                raise Violation(
                    "live worker reaped", f"{effects.actor} declares {self._name(worker)} dead, whose last heartbeat"
                    f" was {(now - before.beat_at).total_seconds():.1f} s ago"
                )  # fmt: skip

    def _check_running(self) -> None:
        """Check that the owner of each running job runs it, or will do so soon."""
        database, world = self.world.database, self.world
        stranded: dict[tuple[int, uuid.UUID | None], float] = {}
        for job_id in database._held:
            job = database._jobs[job_id]
            owner = self.owners.get(job.worker) if job.worker is not None else None
            if owner is not None and owner.runs(job):
                continue
            key = job_id, job.claim
            since = stranded[key] = self._stranded.get(key, world.now)
            if world.now - max(since, world.troubled_at) > STRANDED_SECONDS:
                whose = f"{owner.name}, which is alive," if owner and not owner.is_dead else "a dead worker"
                raise Violation(
                    "stranded", f"{job} has been running for {world.now - since:.0f} s under {whose} and is not run"
                )
        self._stranded = stranded

    def check_end(self) -> None:
        """Check that all jobs have ended, when nothing happens any more."""
        database = self.world.database
        ended = {_nonce(job): job for job in database._history.values()}
        for nonce, job_id in self.acknowledged.items():
            job = ended.get(nonce)
            if job is None:
                row = _describe(database.get(job_id))
                raise Violation("lost", f"the acknowledged job #{job_id} has no end; its row is {row}")
            if job.id != job_id and str(job_id) not in job.headers.values():
                raise Violation("lost", f"the acknowledged job #{job_id} has ended as {job}, without a reference to it")
        for live in database._jobs.values():
            if schedule.SCHEDULE not in live.headers:
                raise Violation("not ended", f"nothing happens any more, and {live} is {_describe(live)}")
        self._check_ticks()

    def _check_ticks(self) -> None:
        """Check that each tick was decided exactly once, and has ended if it has a job that was due a while ago."""
        database, now = self.world.database, self.world.datetime()
        every = timedelta(seconds=TICK_SECONDS)
        for name in database._schedules:
            found = sorted(tick.tick for tick in database._ticks.get(name, {}).values())
            for earlier, later in itertools.pairwise(found):
                if later - earlier != every:
                    raise Violation("tick missing", f"schedule {name}: nothing between {earlier} and {later}")
            if not found or found[-1] < now:
                raise Violation("tick missing", f"schedule {name}: nothing is planned after {found[-1:]}")
            for tick in database._ticks[name].values():
                job = database._jobs.get(tick.job_id or 0)
                is_retried = job is not None and job.attempt > 0
                if tick.outcome is None and tick.due_at < now - timedelta(seconds=STRANDED_SECONDS) and not is_retried:
                    raise Violation("tick open", f"schedule {name}: the tick of {tick.tick} has not ended")

    def _name(self, worker: uuid.UUID) -> str:
        owner = self.owners.get(worker)
        return "a worker" if owner is None else owner.name


def _nonce(job: Job) -> int | None:
    nonce = json.loads(job.args).get("nonce")
    return None if nonce is None else int(nonce)


def _describe(job: Job | None) -> str:
    return "missing" if job is None else f"{job.state}, args {job.args}, worker {str(job.worker)[:8]}"
