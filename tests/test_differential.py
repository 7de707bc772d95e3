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
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import tuple_row

from pgcron_lite.errors import PgCronError
from pgcron_lite.job import MAX_ERRORS, Job, NewJob, Outcome, WorkerCard
from pgcron_lite.memory import MemoryStore
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.schedules import ticks
from pgcron_lite.schedules.schedule import Schedule, timing_of
from pgcron_lite.schedules.ticks import Tick

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
        mine = [
            replace(view, jobs=tuple((self.to_database[job_id], task) for job_id, task in view.jobs))
            for view in ours.workers()
        ]
        assert sorted(map(_plain, mine)) == sorted(map(_plain, theirs.workers()))
        assert ours.waiting_tasks() == theirs.waiting_tasks()
        assert ours.waiting_tasks(["a"]) == theirs.waiting_tasks(["a"])
        for queues in (("*",), ("b", "c")):
            assert ours.next_due(queues, TASKS) == pytest.approx(theirs.next_due(queues, TASKS))
            mine, yours = ours.look(queues, TASKS), theirs.look(queues, TASKS)
            assert (mine.due_in, mine.pulses) == (pytest.approx(yours.due_in), yours.pulses)
            for worker in mine.pulses:
                assert ours.look(queues, TASKS, worker).held == theirs.look(queues, TASKS, worker).held
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


NAMES = ["slow", "quick"]
POLICIES = st.fixed_dictionaries({
    "overlap": st.sampled_from(["skip", "queue", "queue", "allow"]),
    "catch_up": st.sampled_from(["latest", "skip", "all"]),
    "start_within": st.sampled_from([None, None, timedelta(seconds=90)]),
    "alert_after": st.sampled_from([None, timedelta(seconds=100)]),
    "after_finish": st.just(False),
})  # fmt: skip
SCHEDULE = st.sampled_from(NAMES)


class Times(RuleBasedStateMachine):
    """Two schedules on both stores, and workers that end, note and release their runs, or die before they do."""

    def __init__(self, clock: Clock, database: PostgresStore, conn: "psycopg.Connection[Any]") -> None:
        super().__init__()
        self.clock = clock
        self.memory = MemoryStore(clock)
        self.database = database
        conn.execute(
            """
            truncate pgcron.jobs, pgcron.history, pgcron.workers, pgcron.queues, pgcron.schedules, pgcron.ticks;
            update pgcron.planner set watched_at = '-infinity'
            """
        )
        self.to_database: dict[int, int] = {}
        self.running: dict[str, list[Job]] = {name: [] for name in NAMES}
        self.token = 1000

    @initialize(slow=POLICIES, quick=POLICIES)
    def declare(self, slow: dict[str, Any], quick: dict[str, Any]) -> None:
        self.schedules = {
            name: Schedule(name, "add", timing_of(when, "UTC", name=name), queue=name, **policies)
            for name, when, policies in (("slow", "*/5 * * * *", slow), ("quick", "* * * * * */3", quick))
        }
        for name, schedule in self.schedules.items():
            self._both("put_schedule", name, "shop", schedule.dumps(), replace=False)
        self.plan()

    @rule()
    def plan(self) -> None:
        for name in NAMES:
            self._both("plan", ticks.decide, name)
        self._pair_jobs()

    @rule(seconds=st.sampled_from([1, 5, 20, 61, 95, 130, 301, 700]))
    def outage(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(turns=st.sampled_from([1, 3, 12]))
    def time_goes_by(self, turns: int) -> None:
        """Schedulers are at work, and nobody else."""
        for _ in range(turns):
            self.clock.advance(20)
            self.plan()

    @rule(name=SCHEDULE, limit=st.sampled_from([1, 2, 5, 200]), releases=st.booleans(), dies=st.booleans())
    def work(self, name: str, limit: int, releases: bool, dies: bool) -> None:
        """Claim some runs, begin those that may, and put the others away. Ask twice, as after a lost reply."""
        self._work(name, name, "add", limit, releases=releases, dies=dies)

    def _work(self, name: str, queue: str, task: str, limit: int, *, releases: bool, dies: bool) -> None:
        self.token += 1
        claim = uuid.UUID(int=self.token)
        held = self.memory.claim(WORKERS[0], claim, [queue], [task], limit)
        theirs = self.database.claim(WORKERS[0], claim, [queue], [task], limit)
        assert [self.to_database[job.id] for job in held] == [job.id for job in theirs]
        answers = self._admitted(held)
        if dies:
            answers |= self._admitted(held)
        for job in held:
            answer = answers[job.id]
            if answer.refusal is not None:
                self._end(job, "cancelled", notes=not dies, releases=releases)
            elif answer.wait is not None:
                self._settle(Outcome(job.id, claim, "queued", delay=answer.wait, gives_back=True))
                if releases:
                    self._on_jobs("release", [job.id])
            else:
                self.running[name].append(job)

    @rule(
        name=SCHEDULE, state=st.sampled_from(["done", "done", "failed", "queued"]), notes=st.booleans(),
        releases=st.booleans(), which=st.integers(0, 3),
    )
    def end(self, name: str, state: str, notes: bool, releases: bool, which: int) -> None:
        if self.running[name]:
            job = self.running[name].pop(which % len(self.running[name]))
            self._end(job, state, notes=notes, releases=releases)

    @rule()
    def watch(self) -> None:
        (ours, our_alarms), (theirs, their_alarms) = self.memory.watch(), self.database.watch()
        assert self._mapped(ours) == sorted(theirs, key=str)
        assert self._mapped(our_alarms) == sorted(their_alarms, key=str)

    @rule(name=SCHEDULE, what=st.sampled_from(["cancel", "retry", "delete"]), which=st.integers(0, 5))
    def by_hand(self, name: str, what: str, which: int) -> None:
        """Somebody cancels, retries or deletes the job of one of the newest ticks."""
        with_jobs = [view.job_id for view in self.memory.ticks(name, limit=12) if view.job_id is not None]
        if with_jobs:
            job_id = with_jobs[which % len(with_jobs)]
            assert getattr(self.memory, what)(job_id) == getattr(self.database, what)(self.to_database[job_id])

    @rule(name=SCHEDULE, kind=st.sampled_from(["manual", "backfill"]))
    def ask_for_a_run(self, name: str, kind: Any) -> None:
        now = self.clock.now
        tick = Tick(now - timedelta(microseconds=7), now, self.schedules[name].job(now, now), now, kind=kind)
        self._both("add_ticks", name, [tick])
        self._pair_jobs()

    @invariant()
    def both_tell_the_same_of_ticks(self) -> None:
        assert [*map(_plain, self.memory.schedules())] == [*map(_plain, self.database.schedules())]
        for name in NAMES:
            assert self._mapped(self.memory.ticks(name, limit=1_000)) == sorted(
                self.database.ticks(name, limit=1_000), key=str
            )
        ours = {self.to_database[job.id]: (job.state, job.execute_after) for job in self.memory.find(limit=10_000)}
        assert ours == {job.id: (job.state, job.execute_after) for job in self.database.find(limit=10_000)}

    # On both

    def _both(self, verb: str, *args: Any, **options: Any) -> None:
        getattr(self.memory, verb)(*args, **options)
        getattr(self.database, verb)(*args, **options)

    def _on_jobs(self, verb: str, job_ids: list[int]) -> None:
        ours = getattr(self.memory, verb)(job_ids)
        theirs = getattr(self.database, verb)([self.to_database[job_id] for job_id in job_ids])
        assert self._mapped(ours) == sorted(theirs, key=str) if verb == "close_ticks" else ours == theirs

    def _pair_jobs(self) -> None:
        for name in NAMES:
            theirs = {view.tick: view.job_id for view in self.database.ticks(name, limit=1_000)}
            for view in self.memory.ticks(name, limit=1_000):
                if view.job_id is not None:
                    self.to_database[view.job_id] = theirs[view.tick]

    def _admitted(self, held: list[Job]) -> dict[int, Any]:
        ours = self.memory.admit([job.id for job in held])
        theirs = self.database.admit([self.to_database[job.id] for job in held])
        assert {self.to_database[job_id]: answer for job_id, answer in ours.items()} == theirs
        return ours

    def _end(self, job: Job, state: Any, *, notes: bool, releases: bool) -> None:
        assert job.claim is not None
        self._settle(Outcome(job.id, job.claim, state, delay=30.0 if state == "queued" else None))
        if notes:
            self._on_jobs("close_ticks", [job.id])
        if releases:
            self._on_jobs("release", [job.id])

    def _settle(self, outcome: Outcome) -> None:
        settled = self.memory.settle([outcome])
        theirs = self.database.settle([replace(outcome, id=self.to_database[outcome.id])])
        assert {self.to_database[job_id] for job_id in settled} == theirs

    def _mapped(self, ours: list[Any]) -> list[Any]:
        """The same with the ids of the database."""
        return sorted((replace(each, job_id=self.to_database.get(each.job_id)) for each in ours), key=str)


class ChangedTimes(Times):
    """The same, while the schedules get other tasks and queues, of which each worker knows one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Schedules whose runs were allowed to overlap once; those that did go on.
        self.overlapped: set[str] = set()

    @rule(name=SCHEDULE, task=st.sampled_from(TASKS), elsewhere=st.booleans(), policies=st.none() | POLICIES)
    def change(self, name: str, task: str, elsewhere: bool, policies: dict[str, Any] | None) -> None:
        queue = f"{name} elsewhere" if elsewhere else name
        self.schedules[name] = replace(self.schedules[name], task=task, queue=queue, **policies or {})
        self._both("put_schedule", name, "shop", self.schedules[name].dumps(), replace=True)
        self.plan()

    @rule(
        name=SCHEDULE, task=st.sampled_from(TASKS), elsewhere=st.booleans(), limit=st.sampled_from([1, 5, 200]),
        releases=st.booleans(), dies=st.booleans(),
    )
    def work_elsewhere(
        self, name: str, task: str, elsewhere: bool, limit: int, releases: bool, dies: bool
    ) -> None:
        queue = f"{name} elsewhere" if elsewhere else name
        self._work(name, queue, task, limit, releases=releases, dies=dies)

    @rule(name=SCHEDULE, which=st.integers(0, 3), knows=st.booleans())
    def hand_back(self, name: str, which: int, knows: bool) -> None:
        """A worker stops in the middle of a run, or before it has asked whether it may begin one."""
        if self.running[name] and knows:
            job = self.running[name].pop(which % len(self.running[name]))
            self._settle(Outcome(job.id, job.claim, "queued", gives_back=True))
            return
        self.token += 1
        claim = uuid.UUID(int=self.token)
        held = self.memory.claim(WORKERS[0], claim, [name], TASKS, 2)
        theirs = self.database.claim(WORKERS[0], claim, [name], TASKS, 2)
        assert [self.to_database[job.id] for job in held] == [job.id for job in theirs]
        for job in held:
            self._settle(Outcome(job.id, claim, "queued", gives_back=True))

    @rule(name=SCHEDULE, verb=st.sampled_from(["pause_schedule", "resume_schedule", "remove_schedule"]))
    def stop_and_go(self, name: str, verb: str) -> None:
        """A schedule that is removed is added again, the same and yet another: the runs of the first may go on."""
        self._both(verb, name)
        self.both_tell_the_same_of_ticks()
        if verb == "remove_schedule":
            self._both("put_schedule", name, "shop", self.schedules[name].dumps(), replace=False)
        self.plan()

    @rule(name=SCHEDULE)
    def ask_after_a_removal(self, name: str) -> None:
        self.token += 1
        claim = uuid.UUID(int=self.token)
        held = self.memory.claim(WORKERS[0], claim, [name], TASKS, 3)
        self.database.claim(WORKERS[0], claim, [name], TASKS, 3)
        self._both("remove_schedule", name)
        answers = self._admitted(held)
        for job in held:
            self._settle(Outcome(job.id, claim, "done" if answers[job.id].refusal is None else "cancelled"))
        self._both("put_schedule", name, "shop", self.schedules[name].dumps(), replace=False)
        self.plan()

    @invariant()
    def runs_that_take_turns_do(self) -> None:
        for name, schedule in self.schedules.items():
            if schedule.overlap == "allow":
                self.overlapped.add(name)
            assert name in self.overlapped or len(self.running[name]) <= 1


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
def side_by_side(pg_url: str, clock: Clock) -> Iterator[Any]:
    """Makes fresh pairs of empty stores under one clock."""
    clock.rule(pg_url)
    database = PostgresStore(parse_url(pg_url, application="pgcron pair"))
    with psycopg.connect(pg_url, autocommit=True, row_factory=tuple_row) as conn:
        yield lambda machine: lambda: machine(clock, database, conn)
    database.close()
    clock.release()


def settings(examples: int, **options: Any) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        **options,
    )


@pytest.mark.timeout(3600 if LONG else 240)
def test_both_stores_live_the_same_life(side_by_side: Any) -> None:
    run_state_machine_as_test(side_by_side(Pair), settings=settings(EXAMPLES))


@pytest.mark.timeout(3600 if LONG else 240)
def test_both_stores_say_the_same_of_schedules_that_change(side_by_side: Any) -> None:
    run_state_machine_as_test(side_by_side(ChangedTimes), settings=settings(1_000 if LONG else 15))


@pytest.mark.timeout(3600 if LONG else 240)
def test_both_stores_say_the_same_of_ticks(side_by_side: Any) -> None:
    run_state_machine_as_test(side_by_side(Times), settings=settings(1_000 if LONG else 15))


# Each of the rules, changed in one store only.
MUTATIONS = {
    "too late": ("due_ticks", "moment > o.due_at + o.start_within", "moment > o.due_at + 2 * o.start_within"),
    "missed": ("due_ticks", "o.catch_up = 'skip' and moment", "o.catch_up = 'all' and moment"),
    "a later tick stands for it": ("due_ticks", "o.tick < o.newest", "o.tick > o.newest"),
    "its turn has come": ("due_ticks", "(o.is_running or ", "("),
    "the bound": ("due_ticks", "c.waiting > c.most", "c.waiting >= c.most"),
    "ready at": ("due_ticks", "t.overlap = 'queue' or", "t.overlap = 'allow' or"),
    "runs by hand take turns": ("admit", "when o.kind <> 'tick' then 'wait'", "when o.kind <> 'tick' then 'skip'"),
    "in order": ("admit", "order by d.reason is not null, d.due_at", "order by d.reason is not null, d.due_at desc"),
}


def declared(times: Times, **policies: Any) -> None:
    """Give the quick schedule these policies."""
    usual = {"overlap": "skip", "catch_up": "latest", "start_within": None, "alert_after": None, "after_finish": False}
    times.declare(usual, usual | policies)


def passes(times: Times, *seconds: int) -> None:
    """Plan before each of these pauses."""
    for pause in seconds:
        times.plan()
        times.outage(pause)


def works(times: Times, limit: int = 200) -> None:
    times.work("quick", limit, releases=True, dies=False)


def too_late(times: Times) -> None:
    declared(times, catch_up="all", start_within=timedelta(seconds=90))
    passes(times, 130)
    works(times)


def missed(times: Times) -> None:
    declared(times, catch_up="skip")
    passes(times, 95)
    works(times)


def a_later_tick_stands_for_it(times: Times) -> None:
    declared(times, overlap="allow")
    passes(times, 3, 3)
    works(times)


def its_turn_has_come(times: Times) -> None:
    declared(times, overlap="queue", catch_up="skip")
    passes(times, 3)
    works(times)
    passes(times, 95)
    works(times)


def the_bound(times: Times) -> None:
    declared(times, overlap="queue")
    passes(times, 3)
    works(times)
    passes(times, *[3] * 102)
    works(times)


def ready_at(times: Times) -> None:
    declared(times, overlap="queue")
    passes(times, 3)
    works(times)
    passes(times, 95)
    times.end("quick", "done", notes=True, releases=True, which=0)
    works(times)


def runs_by_hand_take_turns(times: Times) -> None:
    declared(times)
    passes(times, 3)
    works(times)
    times.ask_for_a_run("quick", "manual")
    works(times)


def in_order(times: Times) -> None:
    declared(times, overlap="queue")
    passes(times, 3, 3)
    works(times)


SCENARIOS = {scenario.__name__.replace("_", " "): scenario for scenario in (
    too_late, missed, a_later_tick_stands_for_it, its_turn_has_come, the_bound, ready_at, runs_by_hand_take_turns,
    in_order,
)}  # fmt: skip


def mutate(pg_url: str, rule: str) -> None:
    function, text, other = MUTATIONS[rule]
    with psycopg.connect(pg_url) as conn:
        [[definition]] = conn.execute(
            "select pg_get_functiondef(p.oid) from pg_proc as p where p.proname = %s", [function]
        ).fetchall()
        assert definition.count(text) == 1
        conn.execute(definition.replace(text, other))


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_rule_that_only_one_store_has_is_found(side_by_side: Any, pg_url: str, rule: str) -> None:
    fresh = side_by_side(Times)

    SCENARIOS[rule](fresh())
    mutate(pg_url, rule)
    with pytest.raises(AssertionError):
        SCENARIOS[rule](fresh())


# Some take minutes to find.
@pytest.mark.timeout(3600 if LONG else 240)
@pytest.mark.parametrize("rule", MUTATIONS if LONG else ["in order"])
def test_random_steps_find_a_rule_that_only_one_store_has(side_by_side: Any, pg_url: str, rule: str) -> None:
    mutate(pg_url, rule)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            side_by_side(Times),
            settings=settings(1_000, derandomize=True, phases=[hypothesis.Phase.generate]),
        )
