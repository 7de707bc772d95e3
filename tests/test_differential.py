"""Both stores driven side by side through random histories, and compared after every step.

A short run belongs to the suite; `PGCRON_TEST_LONG=1` makes it long. Hypothesis prints the steps of a failure, made as
short as it can, with the line that repeats them.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

import hypothesis
import psycopg
import pytest
from clock import Clock
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import tuple_row

from pgcron_lite.errors import PgCronError
from pgcron_lite.job import MAX_ERRORS, Job, NewJob, Outcome, WorkerCard
from pgcron_lite.memory import MemoryStore
from pgcron_lite.pg.address import address
from pgcron_lite.pg.store import PostgresStore

LONG = bool(os.environ.get("PGCRON_TEST_LONG"))
EXAMPLES, STEPS = (1_000, 80) if LONG else (30, 40)

# Few of everything, so that steps meet.
WORKERS = [uuid.UUID(int=n) for n in (1, 2, 3)]
QUEUES = ["a", "b", "c"]
TASKS = ["add", "mail"]
NEW_JOBS = st.builds(
    NewJob,
    task=st.sampled_from([*TASKS, "unheard_of"]),
    queue=st.sampled_from(QUEUES),
    priority=st.sampled_from([-1, 0, 0, 7]),
    execute_after=st.sampled_from([None, None, timedelta(seconds=5), timedelta(seconds=50), timedelta(seconds=-5)]),
    max_attempts=st.integers(1, 3),
    max_crashes=st.integers(1, 2),
    tags=st.sampled_from([(), ("t",)]),
)
WRONG_JOBS = st.sampled_from([NewJob(""), NewJob("add", queue=""), NewJob("add", priority=99_999)])
BEATS = st.sampled_from(["right", "wrong", "certain", "orphan"])
ENDINGS = st.sampled_from(["done", "failed", "cancelled", "retry", "snooze", "hand back", "late hand back"])

LEGAL = {
    (None, "queued"), ("queued", "running"), ("queued", "cancelled"), ("queued", None),
    ("running", "queued"), ("running", "done"), ("running", "failed"), ("running", "cancelled"),
    ("failed", "queued"), ("cancelled", "queued"), ("done", None), ("failed", None), ("cancelled", None),
}


@dataclass(frozen=True)
class Hold:
    """A job as it was claimed, by its memory id: what its owner knows about it for ever after."""

    job: Job


class Pair(RuleBasedStateMachine):
    """The model and the real thing. Ids differ between them; everything else is the same or it is a bug."""

    jobs = Bundle("jobs")
    holds = Bundle("holds")
    tokens = Bundle("tokens")

    def __init__(self, clock: Clock, database: PostgresStore, conn: "psycopg.Connection[Any]") -> None:
        super().__init__()
        self.clock = clock
        self.memory = MemoryStore(clock)
        self.database = database
        self.conn = conn
        self.conn.execute("truncate pgcron.jobs, pgcron.history, pgcron.workers, pgcron.queues")
        self.to_database: dict[int, int] = {}
        self.states: dict[int, str] = {}
        self.token = 1000

    # Producers

    @rule(target=jobs, new=st.lists(NEW_JOBS, min_size=1, max_size=4))
    def enqueue(self, new: list[NewJob]) -> Any:
        ours, theirs = self.memory.enqueue(new), self.database.enqueue(new)
        assert theirs == sorted(theirs)
        self.to_database.update(zip(ours, theirs, strict=True))
        return multiple(*ours)

    @rule(new=NEW_JOBS, wrong=WRONG_JOBS)
    def enqueue_what_is_refused(self, new: NewJob, wrong: NewJob) -> None:
        for store in (self.memory, self.database):
            with pytest.raises(PgCronError):
                store.enqueue([new, wrong])

    # Workers

    @rule(
        target=holds, worker=st.sampled_from(WORKERS), limit=st.integers(1, 5),
        queues=st.sampled_from([("*",), ("*",), ("a", "b"), ("c",)]), tasks=st.sampled_from([TASKS, TASKS, ["mail"]]),
    )
    def claim(self, worker: uuid.UUID, limit: int, queues: tuple[str, ...], tasks: list[str]) -> Any:
        return multiple(*self._claimed(worker, limit, queues, tasks))

    @rule(target=holds, worker=st.sampled_from(WORKERS), queues=st.sampled_from([("*",), ("a", "b")]))
    def claim_suspect(self, worker: uuid.UUID, queues: tuple[str, ...]) -> Any:
        return multiple(*self._suspects(worker, queues, TASKS))

    @rule(endings=st.lists(st.tuples(holds, ENDINGS), min_size=1, max_size=4))
    def settle(self, endings: list[tuple[Hold, str]]) -> None:
        outcomes = [self._outcome(hold.job, ending) for hold, ending in endings]
        current = {o.id for o in outcomes if self._is_current(o)}
        before = {o.id: self.memory.get(o.id) for o in outcomes}

        settled = self.memory.settle(outcomes)

        assert {self.to_database[i] for i in settled} == self.database.settle([self._translated(o) for o in outcomes])
        assert current <= settled
        for job_id in before.keys() - current:
            assert self.memory.get(job_id) == before[job_id], "an old claim has changed something"

    @rule(hold=consumes(holds))
    def settle_once_and_let_go(self, hold: Hold) -> None:
        self.settle([(hold, "done")])

    # Living and dying

    @rule(worker=st.sampled_from(WORKERS))
    def register(self, worker: uuid.UUID) -> None:
        card = WorkerCard(worker, "box", 7, ("*",), 3, "threads", "1")
        self.memory.register(card)
        self.database.register(card)

    @rule(worker=st.sampled_from(WORKERS), before=st.sampled_from(WORKERS))
    def register_under_a_new_name(self, worker: uuid.UUID, before: uuid.UUID) -> None:
        card = WorkerCard(worker, "box", 7, ("*",), 3, "threads", "1")
        self.memory.register(card, instead_of=before)
        self.database.register(card, instead_of=before)

    @rule(worker=st.sampled_from(WORKERS), running=st.integers(0, 3), stopping=st.booleans())
    def beat(self, worker: uuid.UUID, running: int, stopping: bool) -> None:
        how = {"running": running, "idle_loop": 0.5, "stopping": stopping}
        assert self.memory.beat(worker, **how) == self.database.beat(worker, **how)

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: uuid.UUID) -> None:
        self.memory.forget(worker)
        self.database.forget(worker)

    @rule(suspected=st.lists(st.tuples(st.sampled_from(WORKERS), BEATS), max_size=3))
    def reap(self, suspected: list[tuple[uuid.UUID, str]]) -> None:
        pulses = self.memory.look(["*"], []).pulses
        silent = [(worker, _beat(pulses.get(worker, 0), beat)) for worker, beat in suspected]
        self._same_jobs(self.memory.reap(silent), self.database.reap(silent))

    # Operators

    @rule(job=jobs)
    def cancel(self, job: int) -> None:
        assert self.memory.cancel(job, "why") == self.database.cancel(self.to_database[job], "why")

    @rule(job=jobs)
    def retry_by_hand(self, job: int) -> None:
        assert self.memory.retry(job) == self.database.retry(self.to_database[job])

    @rule(job=jobs)
    def delete(self, job: int) -> None:
        assert self.memory.delete(job) == self.database.delete(self.to_database[job])

    @rule(queue=st.sampled_from(QUEUES), limit=st.integers(1, 3))
    def clear(self, queue: str, limit: int) -> None:
        assert self.memory.clear(queue, limit) == self.database.clear(queue, limit)

    @rule(queue=st.sampled_from(QUEUES))
    def pause(self, queue: str) -> None:
        self.memory.pause(queue)
        self.database.pause(queue)

    @rule(queue=st.sampled_from(QUEUES))
    def resume(self, queue: str) -> None:
        assert self.memory.resume(queue) == self.database.resume(queue)

    @rule(done=st.sampled_from([0, 20, 100]), failed=st.sampled_from([0, 20, 100]))
    def prune(self, done: int, failed: int) -> None:
        kept = timedelta(seconds=done), timedelta(seconds=failed)
        assert self.memory.prune(*kept) == self.database.prune(*kept)

    @rule(seconds=st.sampled_from([0.001, 1, 6, 60, -1, -60]))
    def move_the_clock(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # What holds after every step

    @invariant()
    def both_tell_the_same(self) -> None:
        ours, theirs = self.memory, self.database
        jobs = ours.find(limit=10_000)
        self._same_jobs(jobs, theirs.find(limit=10_000))
        assert ours.queues() == theirs.queues()
        assert sorted(map(_plain, ours.workers())) == sorted(map(_plain, theirs.workers()))
        assert ours.waiting_tasks() == theirs.waiting_tasks()
        assert ours.waiting_tasks(["a"]) == theirs.waiting_tasks(["a"])
        for queues in (("*",), ("b", "c")):
            assert ours.next_due(queues, TASKS) == pytest.approx(theirs.next_due(queues, TASKS))
            mine, yours = ours.look(queues, TASKS), theirs.look(queues, TASKS)
            assert (mine.due_in, mine.pulses) == (pytest.approx(yours.due_in), yours.pulses)
            assert ours.suspects_due(queues, TASKS) == theirs.suspects_due(queues, TASKS)

    @invariant()
    def every_move_was_legal(self) -> None:
        now = {job.id: job.state for job in self.memory.find(limit=10_000)}
        for job_id in now.keys() | self.states.keys():
            before, after = self.states.get(job_id), now.get(job_id)
            assert before == after or (before, after) in LEGAL, f"{job_id}: {before} -> {after}"
        self.states = dict(now)

    @invariant()
    def the_rows_are_what_rows_may_be(self) -> None:
        """The invariants, asked of the tables themselves."""
        wrong = self.conn.execute(
            """
            select 'live and ended', id from pgcron.jobs join pgcron.history using (id)
            union all
            select 'a claim without a run', id from pgcron.jobs
            where (state = 'running') <> (num_nulls(claim, worker, claimed_at) = 0)
               or (state = 'queued' and num_nonnulls(claim, worker, claimed_at) > 0)
            union all
            select 'attempts', id from pgcron.all_jobs where attempt not between 0 and max_attempts
            union all
            select 'crashes', id from pgcron.all_jobs
            where crashes not between 0 and max_crashes or (state in ('queued', 'running') and crashes = max_crashes)
            union all
            select 'errors', id from pgcron.jobs where jsonb_array_length(errors) > %(most)s
            """,
            {"most": MAX_ERRORS + 1},
        ).fetchall()
        assert wrong == []

    def teardown(self) -> None:
        """Let everything come to its end: nothing may be stuck."""
        for queue in QUEUES:
            self.resume(queue)
        # Beyond whatever was due before the clock went back, however often it did.
        self.clock.advance(1_000_000)
        for worker in WORKERS:
            self.reap([(worker, "certain")])
        everything = ("*",), [*TASKS, "unheard_of"]
        while held := self._claimed(WORKERS[0], 50, *everything) + self._suspects(WORKERS[0], *everything):
            self.settle([(hold, "done") for hold in held])
        self.both_tell_the_same()
        assert self.memory.find(states=["queued", "running"]) == []

    # Between the two

    def _claimed(self, worker: uuid.UUID, limit: int, queues: tuple[str, ...], tasks: list[str]) -> list[Hold]:
        token = self._token()
        taken = self.memory.claim(worker, token, queues, tasks, limit)
        self._same_jobs(taken, self.database.claim(worker, token, queues, tasks, limit))
        self._same_jobs(self.memory.held(worker, token), self.database.held(worker, token))
        assert len(taken) <= limit
        return [*map(Hold, taken)]

    def _suspects(self, worker: uuid.UUID, queues: tuple[str, ...], tasks: list[str]) -> list[Hold]:
        token = self._token()
        ours = self.memory.claim_suspect(worker, token, queues, tasks)
        theirs = self.database.claim_suspect(worker, token, queues, tasks)
        self._same_jobs([ours] if ours else [], [theirs] if theirs else [])
        return [Hold(ours)] if ours else []

    def _token(self) -> uuid.UUID:
        self.token += 1
        return uuid.UUID(int=self.token)

    def _is_current(self, outcome: Outcome) -> bool:
        job = self.memory.get(outcome.id)
        return job is not None and job.state == "running" and job.claim == outcome.claim

    def _translated(self, outcome: Outcome) -> Outcome:
        return replace(outcome, id=self.to_database[outcome.id])

    def _outcome(self, job: Job, ending: str) -> Outcome:
        assert job.claim is not None
        error = {"attempt": job.attempt, "at": self.clock.now.isoformat(), "error": ending}
        if ending == "retry" and job.attempt == job.max_attempts:
            ending = "failed"
        match ending:
            case "done":
                return Outcome(job.id, job.claim, "done", result="[1]")
            case "failed" | "cancelled":
                return Outcome(job.id, job.claim, ending, error=error)
            case "retry":
                return Outcome(job.id, job.claim, "queued", error=error, delay=5.0)
            case "snooze":
                return Outcome(job.id, job.claim, "queued", delay=50.0, gives_back=True)
            case "late hand back":
                return Outcome(job.id, job.claim, "queued", delay=1.0, gives_back=True)
        return Outcome(job.id, job.claim, "queued", gives_back=True)

    def _same_jobs(self, ours: list[Job], theirs: list[Job]) -> None:
        assert [_shown(j, self.to_database[j.id]) for j in ours] == [_shown(j, j.id) for j in theirs]


def _beat(right: int, kind: str) -> int | None:
    return {"right": right, "wrong": right + 1, "certain": None, "orphan": -1}[kind]


def _plain(view: Any) -> tuple[Any, ...]:
    return tuple(getattr(view, field.name) for field in fields(view))


def _shown(job: Job, job_id: int) -> dict[str, Any]:
    """Everything about a job, with the moments in its errors as moments: they are written in two ways."""
    shown = {field.name: getattr(job, field.name) for field in fields(job)}
    errors = [{**error, "at": datetime.fromisoformat(error["at"])} for error in job.errors]
    return {**shown, "id": job_id, "headers": dict(job.headers), "errors": errors}


@pytest.fixture
def pair(pg_url: str, clock: Clock) -> Iterator[Any]:
    """Makes a fresh pair of empty stores under one clock."""
    clock.rule(pg_url)
    database = PostgresStore(address(pg_url, application="pgcron pair"))
    with psycopg.connect(pg_url, autocommit=True, row_factory=tuple_row) as conn:
        yield lambda: Pair(clock, database, conn)
    database.close()
    clock.release()


@pytest.mark.timeout(3600 if LONG else 240)
def test_both_stores_live_the_same_life(pair: Any) -> None:
    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    run_state_machine_as_test(pair, settings=settings)
