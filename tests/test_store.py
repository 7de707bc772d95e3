"""Contract of the stores: every method, in memory and on PostgreSQL. Only tested behaviour is promised."""

import itertools
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clock import START, Clock
from support import eventually

from pgcron_lite.errors import DatabaseRefused, PgCronError
from pgcron_lite.job import (
    EARLIER_ID,
    MAX_ERRORS,
    RUNNING_SHOWN,
    Job,
    Look,
    NewJob,
    Outcome,
    State,
    WorkerCard,
    hand_back,
)
from pgcron_lite.memory import MemoryStore

ME, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
EVERY_QUEUE = ("*",)
TASKS = ("add", "mail")
# Length of a header "trace" that fills the 64 kB for headers: jsonb has 8 bytes of its own, and 8 for each pair.
LARGEST_TRACE = 64 * 1024 - 8 - 8 - len("trace")


def enqueue(store: Any, count: int = 1, **fields: Any) -> list[int]:
    ids: list[int] = store.enqueue([NewJob(**{"task": "add", **fields})] * count)
    return ids


def claim(
    store: Any, limit: int = 100, *, worker: uuid.UUID = ME, queues: Sequence[str] = EVERY_QUEUE,
    tasks: Sequence[str] = TASKS,
) -> list[Job]:
    jobs: list[Job] = store.claim(worker, uuid.uuid4(), queues, tasks, limit)
    return jobs


def take(store: Any, worker: uuid.UUID = ME, **fields: Any) -> Job:
    """Return a job that has been enqueued and claimed."""
    enqueue(store, **fields)
    [job] = claim(store, 1, worker=worker)
    return job


def take_suspect(store: Any, worker: uuid.UUID = ME, **fields: Any) -> Job:
    """Return a job whose worker died once, claimed again to run alone."""
    take(store, OTHER, **fields)
    store.reap([(OTHER, None)])
    suspect: Job | None = store.claim_suspect(worker, uuid.uuid4(), EVERY_QUEUE, TASKS)
    assert suspect is not None
    return suspect


def outcome(job: Job, state: State, **fields: Any) -> Outcome:
    assert job.claim is not None
    return Outcome(job.id, job.claim, state, **fields)


def end(store: Any, job: Job, state: State = "done", **fields: Any) -> bool:
    return store.settle([outcome(job, state, **fields)]) == {job.id}


def register(store: Any, worker: uuid.UUID = ME, **fields: Any) -> None:
    card = {"host": "box", "pid": 7, "queues": ("*",), "slots": 10, "mode": "threads", "version": "1", **fields}
    store.register(WorkerCard(id=worker, **card))


def an_error(text: str = "ValueError: no", attempt: int = 1) -> dict[str, Any]:
    return {"attempt": attempt, "at": START.isoformat(), "error": text}


# Enqueueing


def test_a_job_comes_back_as_it_was_enqueued(store: Any) -> None:
    new = NewJob(
        "add", '{"x": 1e22, "y": -0.0, "ä": "😀"}', "mail", -3, timedelta(seconds=90), 7, 2,
        {"trace": "00-ab", "q": "'\"%s"}, ("red", "x,y", "ä"),
    )

    [job_id] = store.enqueue([new])

    assert store.get(job_id) == Job(
        id=job_id, task="add", queue="mail", priority=-3, state="queued", args='{"x": 1e22, "y": -0.0, "ä": "😀"}',
        headers={"trace": "00-ab", "q": "'\"%s"}, tags=("red", "x,y", "ä"), execute_after=START + timedelta(seconds=90),
        attempt=0, max_attempts=7, crashes=0, max_crashes=2, alone=False, claim=None, worker=None, created_at=START,
        claimed_at=None,
    )


def test_headers_up_to_their_limit_come_back(store: Any) -> None:
    headers = [{"trace": "x" * LARGEST_TRACE}, {"trace": "ä" * (LARGEST_TRACE // 2)},
               {f"{n:05}": "" for n in range(5_040)}]

    ids = store.enqueue([NewJob("add", headers=each) for each in headers])

    assert [store.get(i).headers for i in ids] == headers


def test_a_job_is_due_now_by_default(store: Any) -> None:
    [job_id] = enqueue(store)

    assert store.get(job_id).execute_after == START


def test_a_job_may_be_due_in_the_past(store: Any) -> None:
    [job_id] = enqueue(store, execute_after=datetime(2020, 2, 29, tzinfo=UTC))

    assert [j.id for j in claim(store)] == [job_id]


def test_ids_are_in_the_order_of_the_jobs(store: Any) -> None:
    ids = store.enqueue([NewJob("add", f"[{n}]") for n in range(200)])

    assert ids == sorted(set(ids))
    assert [store.get(i).args for i in ids] == [f"[{n}]" for n in range(200)]


def test_enqueueing_no_jobs_does_nothing(store: Any) -> None:
    assert store.enqueue([]) == []
    assert store.find() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": ""},
        {"task": "x" * 201},
        {"queue": ""},
        {"queue": "x" * 101},
        {"priority": 40_000},
        {"priority": -40_000},
        {"max_attempts": 0},
        {"max_attempts": 40_000},
        {"max_crashes": 0},
        {"args": "7"},
        {"args": "null"},
        {"headers": {"trace": "x" * (LARGEST_TRACE + 1)}},
        {"headers": {f"{n:05}": "" for n in range(5_041)}},
        {"execute_after": datetime(1999, 1, 1, tzinfo=UTC)},
        {"execute_after": datetime(9500, 1, 1, tzinfo=UTC)},
        {"execute_after": timedelta(days=365 * 7500)},
    ],
    ids=lambda wrong: re.sub(r"\W+", "-", str(wrong))[:40],
)
def test_an_invalid_job_is_refused_with_its_whole_batch(store: Any, wrong: dict[str, Any]) -> None:
    bad = NewJob(**{"task": "add", **wrong})

    with pytest.raises(PgCronError):
        store.enqueue([NewJob("add"), bad])

    assert store.find() == []


def test_an_enqueue_rings_the_bell(store: Any) -> None:
    rings: list[int] = []
    bell = store.open_bell(lambda: rings.append(1))
    try:
        eventually(lambda: bell.step() and bell.is_live)
        enqueue(store)

        eventually(lambda: bell.step()[0])
    finally:
        bell.close()


# Claiming


def test_a_claim_makes_jobs_running_under_its_token(store: Any, clock: Clock) -> None:
    [job_id] = enqueue(store)
    clock.advance(3)
    token = uuid.uuid4()

    [job] = store.claim(ME, token, EVERY_QUEUE, TASKS, 5)

    assert (job.id, job.state, job.claim, job.worker) == (job_id, "running", token, ME)
    assert (job.attempt, job.claimed_at) == (1, START + timedelta(seconds=3))
    assert store.get(job_id) == job


def test_the_order_is_priority_then_due_time_then_id(store: Any, clock: Clock) -> None:
    late, early = timedelta(seconds=20), timedelta(seconds=10)
    queues = ["b", "a", "c", "a", "b", "c"]
    low = [enqueue(store, priority=-1, queue=q, execute_after=early)[0] for q in queues]
    high_late = [enqueue(store, priority=9, queue=q, execute_after=late)[0] for q in queues]
    high_early = [enqueue(store, priority=9, queue=q, execute_after=early)[0] for q in queues]
    clock.advance(60)

    order = [j.id for batch in (claim(store, 4) for _ in range(5)) for j in batch]

    assert order == high_early + high_late + low


def test_a_claim_takes_no_more_than_its_limit(store: Any) -> None:
    for queue in "abc":
        enqueue(store, 10, queue=queue)

    assert [len(claim(store, 7)) for _ in range(6)] == [7, 7, 7, 7, 2, 0]
    assert claim(store, 0) == []


def test_a_future_job_blocks_no_other_job(store: Any, clock: Clock) -> None:
    [later] = enqueue(store, priority=10, execute_after=timedelta(seconds=60))
    [now] = enqueue(store)

    assert [j.id for j in claim(store, 1)] == [now]
    clock.advance(59.999)
    assert claim(store) == []
    clock.advance(0.001)
    assert [j.id for j in claim(store)] == [later]


def test_a_worker_claims_only_from_its_queues_and_only_known_tasks(store: Any) -> None:
    [mine] = enqueue(store, queue="mine")
    [foreign] = enqueue(store, queue="foreign", priority=5)
    [unknown] = enqueue(store, queue="mine", task="unheard_of", priority=5)

    taken = claim(store, queues=("mine", "elsewhere"))

    assert [j.id for j in taken] == [mine]
    assert [j.id for j in claim(store, tasks=(*TASKS, "unheard_of"))] == [foreign, unknown]


def test_a_worker_without_tasks_or_queues_claims_nothing(store: Any) -> None:
    enqueue(store)

    assert claim(store, tasks=()) == []
    assert claim(store, queues=()) == []


def test_a_job_is_claimed_once(store: Any) -> None:
    enqueue(store)

    assert len(claim(store)) == 1
    assert claim(store, worker=OTHER) == []


def test_held_returns_the_jobs_of_one_claim(store: Any) -> None:
    enqueue(store, 3)
    first, second = uuid.uuid4(), uuid.uuid4()
    taken = store.claim(ME, first, EVERY_QUEUE, TASKS, 2)
    store.claim(ME, second, EVERY_QUEUE, TASKS, 2)

    assert store.held(ME, first) == taken
    assert store.held(OTHER, first) == []
    end(store, taken[0])
    assert store.held(ME, first) == taken[1:]


def test_next_due_is_the_time_until_the_next_deferred_job_of_this_worker(store: Any, clock: Clock) -> None:
    enqueue(store, execute_after=timedelta(seconds=30), priority=-5)
    enqueue(store, execute_after=timedelta(seconds=40), priority=5)
    enqueue(store, execute_after=timedelta(seconds=10), queue="foreign")
    enqueue(store, execute_after=timedelta(seconds=10), task="unheard_of")
    enqueue(store)

    clock.advance(5)

    assert store.next_due(("default",), TASKS) == pytest.approx(25)
    assert store.next_due(("foreign",), TASKS) == pytest.approx(5)
    assert store.next_due(("empty",), TASKS) is None


def test_next_due_includes_suspects(store: Any, clock: Clock) -> None:
    suspect = take_suspect(store)
    end(store, suspect, "queued", delay=50.0)
    store.reap([(ME, None)])

    assert store.next_due(EVERY_QUEUE, TASKS) == pytest.approx(50)


def test_look_returns_the_time_until_a_job_can_be_claimed(store: Any, clock: Clock) -> None:
    assert store.look(EVERY_QUEUE, TASKS) == Look(None, {})
    enqueue(store, execute_after=timedelta(seconds=30))
    enqueue(store, execute_after=timedelta(seconds=10), queue="foreign")
    enqueue(store, task="unheard_of")

    assert store.look(("default",), TASKS).due_in == pytest.approx(30)
    assert store.look(EVERY_QUEUE, TASKS).due_in == pytest.approx(10)
    clock.advance(12)
    assert store.look(EVERY_QUEUE, TASKS).due_in == pytest.approx(-2)
    store.pause("foreign")
    assert store.look(EVERY_QUEUE, TASKS).due_in == pytest.approx(18)


def test_look_counts_the_jobs_of_a_worker_for_each_claim(store: Any) -> None:
    first, second, another = (uuid.UUID(int=n) for n in (11, 12, 13))
    enqueue(store, 6)
    taken = store.claim(ME, first, EVERY_QUEUE, TASKS, 3)
    store.claim(ME, second, EVERY_QUEUE, TASKS, 1)
    store.claim(OTHER, another, EVERY_QUEUE, TASKS, 1)

    assert store.look(EVERY_QUEUE, TASKS, ME).held == {first: 3, second: 1}
    assert store.look(EVERY_QUEUE, TASKS, OTHER).held == {another: 1}
    assert store.look(EVERY_QUEUE, TASKS, uuid.UUID(int=99)).held == {}
    assert store.look(EVERY_QUEUE, TASKS).held == {}
    store.settle([Outcome(job.id, first, "done") for job in taken])
    assert store.look(EVERY_QUEUE, TASKS, ME).held == {second: 1}


def test_a_retry_that_is_already_stored_is_recognised(store: Any) -> None:
    job = take(store)
    error = {"attempt": 1, "at": "2026-01-01T00:00:00.000001+00:00", "error": "ValueError: no"}
    outcome = Outcome(job.id, job.claim, "queued", error=error, delay=0.0)
    assert store.settle([outcome]) == {job.id}

    assert store.settle([outcome]) == {job.id}
    [again] = claim(store)
    assert store.settle([outcome]) == {job.id}
    end(store, again)
    assert store.settle([outcome]) == {job.id}

    assert len(store.get(job.id).errors) == 1
    other = Outcome(job.id, job.claim, "queued", error={**error, "at": "2026-01-01T00:00:01+00:00"}, delay=0.0)
    assert store.settle([other]) == set()


def test_look_includes_suspects(store: Any) -> None:
    take_suspect(store)
    assert store.look(EVERY_QUEUE, TASKS).due_in is None
    store.reap([(ME, None)])

    assert store.look(EVERY_QUEUE, TASKS).due_in == pytest.approx(0)
    assert store.look(("elsewhere",), TASKS).due_in is None


# Suspects


def test_a_suspect_is_claimed_only_by_claim_suspect(store: Any) -> None:
    job = take(store, OTHER)
    store.reap([(OTHER, None)])

    assert claim(store) == []
    assert store.suspects_due(EVERY_QUEUE, TASKS)
    again = store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS)
    assert (again.id, again.alone, again.attempt, again.worker) == (job.id, True, 1, ME)
    assert store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS) is None
    assert not store.suspects_due(EVERY_QUEUE, TASKS)


def test_suspects_are_claimed_one_at_a_time_in_the_order_of_due_times(store: Any, clock: Clock) -> None:
    second, first = enqueue(store, execute_after=timedelta(seconds=2)) + enqueue(store, priority=-7)
    clock.advance(5)
    claim(store, worker=OTHER)
    store.reap([(OTHER, None)])

    taken = [store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS).id for _ in range(2)]

    assert taken == [first, second]


def test_a_suspect_is_claimed_only_by_workers_of_its_queue_and_task(store: Any) -> None:
    take(store, OTHER, queue="q")
    store.reap([(OTHER, None)])

    assert store.claim_suspect(ME, uuid.uuid4(), ("p",), TASKS) is None
    assert store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, ("mail",)) is None
    assert not store.suspects_due(("p",), TASKS)
    store.pause("q")
    assert store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS) is None
    assert not store.suspects_due(EVERY_QUEUE, TASKS)


def test_a_suspect_whose_attempt_ended_is_no_suspect_any_more(store: Any) -> None:
    suspect = take_suspect(store)

    end(store, suspect, "queued", error=an_error(), delay=0.0)

    assert [(j.id, j.alone) for j in claim(store)] == [(suspect.id, False)]


def test_a_suspect_that_is_returned_stays_a_suspect(store: Any) -> None:
    suspect = take_suspect(store)

    store.settle([hand_back(suspect)])

    assert claim(store) == []
    assert store.get(suspect.id).alone


# Settling


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_an_ended_job_keeps_its_fields_and_has_the_time_of_its_end(store: Any, clock: Clock, state: State) -> None:
    job = take(store, headers={"a": "b"}, tags=("t",))
    clock.advance(9)

    assert end(store, job, state, result='{"sum": 3}' if state == "done" else None, error=an_error())

    ended = store.get(job.id)
    assert (ended.state, ended.finished_at, ended.errors) == (state, START + timedelta(seconds=9), (an_error(),))
    assert ended.result == ('{"sum": 3}' if state == "done" else None)
    for name in ("task", "queue", "headers", "tags", "attempt", "claim", "worker", "claimed_at", "created_at"):
        assert getattr(ended, name) == getattr(job, name)
    assert claim(store) == []


def test_a_retry_waits_and_keeps_its_error(store: Any, clock: Clock) -> None:
    job = take(store)
    clock.advance(2)

    assert end(store, job, "queued", error=an_error(), delay=10.0)

    waiting = store.get(job.id)
    assert (waiting.state, waiting.attempt, waiting.errors) == ("queued", 1, (an_error(),))
    assert waiting.execute_after == START + timedelta(seconds=12)
    assert (waiting.claim, waiting.worker, waiting.claimed_at) == (None, None, None)


def test_a_snooze_restores_the_attempt(store: Any) -> None:
    job = take(store, max_attempts=1)

    assert end(store, job, "queued", delay=60.0, gives_back=True)

    assert (store.get(job.id).attempt, store.get(job.id).errors) == (0, ())


def test_a_returned_job_is_as_before_its_claim(store: Any, clock: Clock) -> None:
    [job_id] = enqueue(store, max_attempts=1)
    before = store.get(job_id)
    clock.advance(7)
    [job] = claim(store)

    assert store.settle([hand_back(job)]) == {job_id}

    assert store.get(job_id) == before


def test_a_very_long_delay_is_limited_to_the_year_9000(store: Any) -> None:
    for delay in (4e11, 1e15):
        job = take(store)

        assert end(store, job, "queued", delay=delay)

        assert store.get(job.id).execute_after == datetime(9000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("state", ["done", "failed", "cancelled", "queued"])
def test_an_outcome_of_an_old_claim_changes_nothing(store: Any, state: State) -> None:
    old = take(store, OTHER)
    store.settle([hand_back(old)])
    [new] = claim(store)

    assert not end(store, old, state, error=an_error(), result="1", delay=0.0)

    assert store.get(old.id) == new


@pytest.mark.parametrize("state", ["done", "queued"])
def test_an_outcome_of_a_job_that_waits_again_changes_nothing(store: Any, state: State) -> None:
    job = take(store)
    store.settle([hand_back(job)])
    before = store.get(job.id)

    assert not end(store, job, state, delay=5.0)

    assert store.get(job.id) == before


def test_an_outcome_of_a_deleted_job_is_refused(store: Any) -> None:
    job = take(store)
    end(store, job)
    store.delete(job.id)

    assert not end(store, job)


def test_an_end_that_is_written_twice_succeeds_twice(store: Any, clock: Clock) -> None:
    job = take(store)
    end(store, job, "done", result="1")
    before = store.get(job.id)
    clock.advance(5)

    assert end(store, job, "done", result="1")

    assert store.get(job.id) == before


def test_an_end_that_another_process_wrote_is_not_recognised(store: Any) -> None:
    """A crash while alone fails the job, under its last claim; then the frozen worker resumes and writes a result."""
    suspect = take_suspect(store, max_crashes=1)
    store.reap([(ME, None)])
    assert store.get(suspect.id).state == "failed"

    assert not end(store, suspect, "done", result="1")


def test_the_outcomes_of_a_batch_are_independent(store: Any) -> None:
    enqueue(store, 4)
    a, b, c, d = claim(store)
    end(store, b)
    store.delete(b.id)

    settled = store.settle(
        [
            outcome(d, "failed", error=an_error("d")),
            outcome(b, "done"),
            outcome(c, "queued", delay=1.0, error=an_error("c")),
            outcome(a, "done", result="1"),
        ]
    )

    assert settled == {a.id, c.id, d.id}
    assert [store.get(j.id).state for j in (a, c, d)] == ["done", "queued", "failed"]
    assert [store.get(j.id).error for j in (a, c, d)] == [None, "c", "d"]


def test_of_two_outcomes_for_one_claim_the_first_counts(store: Any) -> None:
    first, second = take(store), take(store)

    settled = store.settle(
        [
            outcome(first, "failed", error=an_error("first")),
            outcome(first, "done", result="2"),
            outcome(second, "queued", delay=3.0),
            outcome(second, "done"),
        ]
    )

    assert settled == {first.id, second.id}
    assert (store.get(first.id).state, store.get(first.id).error) == ("failed", "first")
    assert store.get(second.id).state == "queued"


def test_an_old_and_a_new_outcome_of_one_job_may_come_in_one_batch(store: Any) -> None:
    old = take(store, OTHER)
    store.reap([(OTHER, None)])
    new = store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS)

    store.settle([outcome(old, "failed", error=an_error("old")), outcome(new, "done", result="2")])

    ended = store.get(old.id)
    assert (ended.state, ended.result, ended.errors) == ("done", "2", ())


def test_settling_no_outcomes_does_nothing(store: Any) -> None:
    assert store.settle([]) == set()


def test_the_last_errors_are_kept(store: Any) -> None:
    [job_id] = enqueue(store, max_attempts=100)

    for n in range(MAX_ERRORS + 3):
        [job] = claim(store)
        end(store, job, "queued", error=an_error(f"{n}", n), delay=0.0)
    [job] = claim(store)
    end(store, job, "failed", error=an_error("last"))

    assert [e["error"] for e in store.get(job_id).errors] == [f"{n}" for n in range(4, MAX_ERRORS + 3)] + ["last"]


# Settling and claiming in one pipeline


def test_settle_and_claim_does_both(store: Any) -> None:
    ours, lost = take(store), take(store, OTHER)
    store.reap([(OTHER, None)])
    ids, token = enqueue(store, 3), uuid.uuid4()

    outcomes = [outcome(ours, "done", result="7"), outcome(lost, "done")]
    with store.settle_and_claim(outcomes, ME, token, EVERY_QUEUE, TASKS, 2) as reply:
        pass

    jobs = reply.jobs()
    assert reply.settled == {ours.id}
    assert (store.get(ours.id).state, store.get(ours.id).result) == ("done", "7")
    assert store.get(lost.id).state == "queued"
    assert reply.count == 2
    assert [(job.id, job.state, job.claim, job.worker, job.attempt) for job in jobs] == [
        (job_id, "running", token, ME, 1) for job_id in ids[:2]
    ]
    assert [store.get(job_id) for job_id in ids[:2]] == jobs
    assert store.get(ids[2]).state == "queued"


def test_settle_and_claim_without_outcomes_and_jobs_succeeds(store: Any) -> None:
    with store.settle_and_claim([], ME, uuid.uuid4(), EVERY_QUEUE, TASKS, 10) as reply:
        pass

    assert (reply.settled, reply.count, reply.jobs()) == (set(), 0, [])


# Heartbeats and reaping


def test_a_worker_sends_heartbeats_until_its_row_is_removed(store: Any) -> None:
    register(store)

    assert store.look(["*"], []).pulses == {ME: 0}
    assert store.beat(ME)
    assert store.beat(ME)
    assert store.look(["*"], []).pulses == {ME: 2}
    store.forget(ME)
    assert not store.beat(ME)
    assert store.look(["*"], []).pulses == {}


def test_registering_again_keeps_the_heartbeat_count(store: Any) -> None:
    register(store)
    store.beat(ME)

    register(store, host="elsewhere")

    assert store.look(["*"], []).pulses == {ME: 1}
    assert [w.host for w in store.workers()] == ["box"]


def test_a_worker_with_a_new_identity_keeps_its_running_jobs(store: Any) -> None:
    mine, others = take(store, OTHER), take(store, uuid.UUID(int=3))

    store.register(WorkerCard(ME, "box", 7, ("*",), 1, "threads", "1"), instead_of=OTHER)

    assert store.look(["*"], []).pulses == {ME: 0, uuid.UUID(int=3): -1}
    assert (store.get(mine.id).worker, store.get(mine.id).claim) == (ME, mine.claim)
    assert store.get(others.id) == others
    assert store.reap([(OTHER, None)]) == []
    assert end(store, mine)


def test_a_worker_with_jobs_but_without_a_row_has_the_count_minus_one(store: Any) -> None:
    take(store, OTHER)
    register(store)

    assert store.look(["*"], []).pulses == {ME: 0, OTHER: -1}


def test_workers_shows_registration_and_heartbeat(store: Any, clock: Clock) -> None:
    register(store, queues=("mail", "*"), slots=3)
    clock.advance(2)
    store.beat(ME, running=2, idle_loop=0.5, stopping=True)
    clock.advance(3)

    [view] = store.workers()

    assert (view.id, view.host, view.pid, view.version, view.queues) == (ME, "box", 7, "1", ("mail", "*"))
    assert (view.slots, view.mode, view.running, view.idle_loop, view.stopping) == (3, "threads", 2, 0.5, True)
    assert (view.started_at, view.silent_seconds) == (START, 3.0)


def test_workers_shows_the_longest_running_jobs(store: Any, clock: Clock) -> None:
    register(store)
    register(store, OTHER)
    enqueue(store, RUNNING_SHOWN + 1)
    first = claim(store, 1)
    clock.advance(1)
    others = claim(store, RUNNING_SHOWN)

    [mine, idle] = store.workers()

    assert mine.jobs == tuple((job.id, job.task) for job in [*first, *others][:RUNNING_SHOWN])
    assert idle.jobs == ()


def test_the_jobs_of_a_silent_worker_become_suspects_with_their_attempt_restored(store: Any) -> None:
    register(store, OTHER)
    enqueue(store, 3, max_attempts=1)
    held = claim(store, 2, worker=OTHER)

    rescued = store.reap([(OTHER, 0)])

    assert [j.id for j in rescued] == [j.id for j in held]
    for job in rescued:
        assert job == store.get(job.id)
        assert (job.state, job.attempt, job.crashes, job.alone, job.errors) == ("queued", 0, 0, True, ())
        assert (job.claim, job.worker, job.claimed_at) == (None, None, None)
    assert store.look(["*"], []).pulses == {}
    assert len(claim(store)) == 1


def test_a_worker_with_a_newer_heartbeat_is_not_reaped(store: Any) -> None:
    register(store, OTHER)
    job = take(store, OTHER)
    store.beat(OTHER)

    assert store.reap([(OTHER, 0)]) == []
    assert store.reap([(OTHER, -1)]) == []

    assert store.get(job.id) == job
    assert store.look(["*"], []).pulses == {OTHER: 1}


def test_jobs_of_a_missing_worker_are_rescued_only_for_the_count_minus_one(store: Any) -> None:
    take(store, OTHER)

    assert store.reap([(OTHER, 0)]) == []
    assert len(store.reap([(OTHER, -1)])) == 1


def test_a_worker_known_to_be_dead_is_reaped_whatever_its_heartbeat_count(store: Any) -> None:
    register(store, OTHER)
    take(store, OTHER)
    store.beat(OTHER)

    assert len(store.reap([(OTHER, None)])) == 1
    assert not store.beat(OTHER)


def test_several_dead_workers_are_reaped_together_and_live_ones_keep_their_jobs(store: Any) -> None:
    workers = [uuid.UUID(int=n) for n in range(1, 6)]
    jobs = []
    for worker in workers:
        register(store, worker)
        jobs.append(take(store, worker))
    store.beat(workers[1])
    store.forget(workers[3])

    rescued = store.reap([(workers[4], 0), (workers[0], None), (workers[1], 0), (workers[3], -1), (workers[4], 0)])

    assert [j.id for j in rescued] == [jobs[n].id for n in (0, 3, 4)]
    assert [store.get(j.id).state for j in jobs] == ["queued", "running", "running", "queued", "queued"]
    assert store.look(["*"], []).pulses == {workers[1]: 1, workers[2]: 0}


def test_reaping_no_worker_does_nothing(store: Any) -> None:
    assert store.reap([]) == []
    assert store.reap([(ME, None), (OTHER, 0)]) == []


def test_a_late_outcome_of_a_reaped_worker_changes_nothing(store: Any) -> None:
    job = take(store, OTHER)
    store.reap([(OTHER, None)])
    before = store.get(job.id)

    assert not end(store, job)
    assert not end(store, job, "queued", delay=0.0)

    assert store.get(job.id) == before


def test_only_a_crash_while_alone_counts(store: Any) -> None:
    suspect = take_suspect(store)
    assert suspect.crashes == 0

    [rescued] = store.reap([(ME, None)])

    assert (rescued.crashes, rescued.state, rescued.attempt) == (1, "queued", 0)
    assert rescued.error == "the worker died while running this job"
    assert rescued.errors[0]["attempt"] == 1


def test_a_crash_with_other_jobs_running_does_not_count(store: Any) -> None:
    suspect = take_suspect(store)
    neighbour = take(store)

    rescued = store.reap([(ME, None)])

    assert [(j.id, j.crashes, j.errors) for j in rescued] == [(suspect.id, 0, ()), (neighbour.id, 0, ())]


def test_a_poison_pill_fails_with_the_reason_and_other_jobs_are_unaffected(store: Any, clock: Clock) -> None:
    pill, neighbour = enqueue(store, max_crashes=3, max_attempts=1) + enqueue(store)
    claim(store, worker=OTHER)
    store.reap([(OTHER, None)])
    deaths = 0

    while suspect := store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS):
        clock.advance(1)
        if suspect.id == neighbour:
            end(store, suspect)
            continue
        rescued, died_at = store.reap([(ME, None)]), clock.now
        deaths += 1

    ended = store.get(pill)
    assert rescued == [ended]
    assert (deaths, ended.state, ended.crashes, ended.finished_at) == (3, "failed", 3, died_at)
    assert [e["error"] for e in ended.errors] == [
        "the worker died while running this job",
        "the worker died while running this job",
        "the worker died 3 times while running this job alone",
    ]
    assert store.get(neighbour).state == "done"
    assert (store.get(neighbour).crashes, store.get(neighbour).errors) == (0, ())


def test_the_errors_of_crashes_are_limited_too(store: Any) -> None:
    suspect = take_suspect(store, max_crashes=MAX_ERRORS + 3)

    for _ in range(MAX_ERRORS + 2):
        store.reap([(ME, None)])
        assert len(store.get(suspect.id).errors) <= MAX_ERRORS
        store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS)
    store.reap([(ME, None)])

    errors = store.get(suspect.id).errors
    assert len(errors) == MAX_ERRORS
    assert errors[-1]["error"] == f"the worker died {MAX_ERRORS + 3} times while running this job alone"


def test_rescue_ignores_pauses(store: Any) -> None:
    take(store, OTHER, queue="q")
    store.pause("q")

    assert len(store.reap([(OTHER, None)])) == 1


# Admin


def test_operations_on_an_unknown_job_return_none_or_false(store: Any) -> None:
    assert store.get(10**15) is None
    assert not store.cancel(10**15)
    assert not store.retry(10**15)
    assert not store.delete(10**15)


def test_find_filters_and_pages_from_the_newest(store: Any, clock: Clock) -> None:
    [old] = enqueue(store, tags=("red", "blue"))
    clock.advance(100)
    [mail] = enqueue(store, task="mail", queue="mail", tags=("red",))
    [done] = enqueue(store, queue="mail")
    end(store, next(j for j in claim(store, queues=("mail",)) if j.id == done))

    def found(**filters: Any) -> list[int]:
        return [j.id for j in store.find(**filters)]

    assert found() == [done, mail, old]
    assert found(states=["queued"]) == [old]
    assert found(states=["done", "running"]) == [done, mail]
    assert found(task="mail") == [mail]
    assert found(queue="mail") == [done, mail]
    assert found(tag="red") == [mail, old]
    assert found(tag="red", queue="mail") == [mail]
    assert found(since=timedelta(seconds=99)) == [done, mail]
    assert found(limit=1) == [done]
    assert found(before=mail) == [old]
    assert found(queue="none") == []


def test_cancelling_ends_a_waiting_job_with_the_reason(store: Any, clock: Clock) -> None:
    [job_id] = enqueue(store)
    clock.advance(5)

    assert store.cancel(job_id, "not wanted: '%s'")

    ended = store.get(job_id)
    assert (ended.state, ended.finished_at, ended.error) == ("cancelled", clock.now, "not wanted: '%s'")
    assert datetime.fromisoformat(ended.errors[-1]["at"]) == clock.now
    assert not store.cancel(job_id)
    assert claim(store) == []


def test_a_running_job_is_not_cancelled(store: Any) -> None:
    job = take(store)

    assert not store.cancel(job.id)

    assert store.get(job.id) == job


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_retrying_queues_an_ended_job_under_its_id_with_all_its_attempts(
    store: Any, clock: Clock, state: State
) -> None:
    suspect = take_suspect(store, max_attempts=2, headers={"a": "b"}, tags=("t",), priority=3)
    end(store, suspect, state, error=an_error())
    clock.advance(5)

    assert store.retry(suspect.id)

    job = store.get(suspect.id)
    assert (job.state, job.attempt, job.crashes, job.alone, job.errors) == ("queued", 0, 0, False, (an_error(),))
    assert (job.execute_after, job.created_at, job.finished_at, job.claim) == (clock.now, START, None, None)
    assert (job.headers, job.tags, job.priority, job.max_attempts) == ({"a": "b"}, ("t",), 3, 2)
    assert [j.id for j in claim(store)] == [suspect.id]


def test_only_failed_and_cancelled_jobs_are_retried(store: Any) -> None:
    done = take(store)
    end(store, done)
    running = take(store)
    [waiting] = enqueue(store)

    assert [store.retry(i) for i in (done.id, running.id, waiting)] == [False, False, False]


def test_an_outcome_from_before_a_retry_by_hand_changes_nothing(store: Any) -> None:
    job = take(store)
    end(store, job, "failed", error=an_error())
    store.retry(job.id)
    before = store.get(job.id)

    assert not end(store, job, "failed", error=an_error())

    assert store.get(job.id) == before


def test_deleting_removes_anything_but_a_running_job(store: Any) -> None:
    [waiting] = enqueue(store, execute_after=timedelta(seconds=60))
    ended, running = take(store), take(store)
    end(store, ended)

    assert [store.delete(i) for i in (waiting, ended.id, running.id)] == [True, True, False]

    assert [j.id for j in store.find()] == [running.id]


def test_clear_cancels_the_waiting_jobs_of_a_queue_in_batches(store: Any) -> None:
    take(store, queue="q")
    ids = enqueue(store, 5, queue="q", execute_after=timedelta(seconds=5))
    enqueue(store, queue="other")

    assert [store.clear("q", limit=3) for _ in range(3)] == [3, 2, 0]

    assert {store.get(i).state for i in ids} == {"cancelled"}
    assert {store.get(i).error for i in ids} == {"queue cleared"}
    assert len(store.find(states=["queued", "running"])) == 2


def test_a_paused_queue_is_not_claimed_from_until_it_is_resumed(store: Any) -> None:
    [paused], [free] = enqueue(store, queue="p"), enqueue(store, queue="f")
    store.pause("p")

    assert [j.id for j in claim(store)] == [free]
    assert store.resume("p")
    assert [j.id for j in claim(store)] == [paused]
    assert not store.resume("p")


def test_a_second_pause_keeps_the_time_of_the_first(store: Any, clock: Clock) -> None:
    store.pause("p")
    clock.advance(60)
    store.pause("p")

    [view] = store.queues()

    assert (view.name, view.paused_at) == ("p", START)


def test_queues_are_counted(store: Any, clock: Clock) -> None:
    take(store, queue="b")
    enqueue(store, 2, queue="b")
    enqueue(store, 3, queue="b", execute_after=timedelta(seconds=60))
    enqueue(store, queue="a", execute_after=timedelta(seconds=60))
    store.pause("z")
    clock.advance(12)

    views = store.queues()

    assert [(v.name, v.due, v.deferred, v.running, v.oldest_seconds) for v in views] == [
        ("a", 0, 1, 0, 0.0), ("b", 2, 3, 1, 12.0), ("z", 0, 0, 0, 0.0),
    ]


def test_due_jobs_are_counted_by_task(store: Any) -> None:
    enqueue(store, 2, task="unheard_of", queue="q")
    enqueue(store, task="unheard_of", execute_after=timedelta(seconds=5))
    enqueue(store)

    assert store.waiting_tasks() == {"unheard_of": 2, "add": 1}
    assert store.waiting_tasks(("q",)) == {"unheard_of": 2}


def test_facts_are_stored_and_overwritten(store: Any) -> None:
    store.note_fact("environment", "staging")
    store.note_fact("environment", "production")

    assert store.facts() == {"environment": "production"}


# Retention


def test_prune_deletes_jobs_older_than_the_retention_of_their_state(store: Any, clock: Clock) -> None:
    states: list[State] = ["done", "failed", "cancelled"]
    old = {state: take(store) for state in states}
    for state, job in old.items():
        end(store, job, state)
    clock.advance(100)
    young = take(store)
    end(store, young)
    [waiting] = enqueue(store)
    clock.advance(1)

    assert store.prune(timedelta(seconds=50), timedelta(seconds=200)) == 1
    assert {j.id for j in store.find()} == {old["failed"].id, old["cancelled"].id, young.id, waiting}
    assert store.prune(timedelta(seconds=200), timedelta(seconds=50)) == 2
    assert {j.id for j in store.find()} == {young.id, waiting}
    assert store.prune(timedelta(seconds=200), timedelta(seconds=200)) == 0


@pytest.mark.row(136)
def test_prune_deletes_in_batches_the_oldest_of_a_state_first(store: Any, clock: Clock) -> None:
    jobs: dict[State, list[Job]] = {"done": [], "failed": []}
    for _ in range(4):
        for state, ended in jobs.items():
            ended.append(take(store))
            end(store, ended[-1], state)
        clock.advance(10)
    everything = timedelta(0)

    assert store.prune(everything, everything, limit=3) == 3
    assert {j.id for j in store.find(states=["done"])} == {jobs["done"][3].id}
    assert [store.prune(everything, everything, limit=3) for _ in range(3)] == [3, 2, 0]


# Other methods that workers rely on


def test_a_store_has_the_methods_that_workers_rely_on(store: Any) -> None:
    store.check_schema()
    store.cut()

    assert store.describe()
    assert store.generation >= 0
    assert store.busy_seconds == 0.0
    store.close()
    assert store.find() == []


@pytest.mark.parametrize("move", [-3600.0, 0.0, 86_400.0])
def test_a_clock_jump_declares_no_worker_dead(store: Any, clock: Clock, move: float) -> None:
    register(store)
    job = take(store)

    clock.advance(move)

    assert store.look(["*"], []).pulses == {ME: 0}
    assert store.get(job.id) == job
    assert store.beat(ME)


def test_now_is_the_clock_of_the_store(store: Any, clock: Clock) -> None:
    clock.advance(42)

    assert store.now() == START + timedelta(seconds=42)


def test_threads_may_share_a_store(store: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    enqueue(store, 120)
    with ThreadPoolExecutor(4) as pool:
        takers: list[Callable[[], list[Job]]] = [lambda: claim(store, 5)] * 30
        batches = list(pool.map(lambda take_some: take_some(), takers))

    ids = [j.id for batch in batches for j in batch]
    assert len(ids) == len(set(ids))
    assert max(map(len, batches)) <= 5


# Ids that are in use twice, because the sequence was behind after a failover or a restore


def rewind_sequence(store: Any, last: int = 0) -> None:
    """Let the sequence of ids continue after `last`."""
    if isinstance(store, MemoryStore):
        store._ids = itertools.count(last + 1)
    else:
        store._rows("select setval('pgcron.jobs_id_seq', %(next)s, false)", {"next": last + 1})


def plant(store: Any, job: Job) -> Job:
    """Store `job` among the live jobs, whatever its id."""
    if isinstance(store, MemoryStore):
        return store._keep(job)
    store._rows(
        """
        insert into pgcron.jobs (id, task, queue, state, args, attempt, crashes, alone, claim, worker, claimed_at)
        values (%(id)s, %(task)s, %(queue)s, %(state)s, %(args)s, %(attempt)s, %(crashes)s, %(alone)s, %(claim)s,
                %(worker)s, %(claimed_at)s)
        """,
        {name: getattr(job, name) for name in (
            "id", "task", "queue", "state", "args", "attempt", "crashes", "alone", "claim", "worker", "claimed_at",
        )},
    )  # fmt: skip
    return job


def older(store: Any, state: State = "failed") -> Job:
    """Return a job that has ended."""
    job = take(store, args='["older"]')
    assert end(store, job, state)
    found: Job = store.get(job.id)
    return found


def waiting_twin(store: Any, of: Job, **fields: Any) -> Job:
    """Return another job with the same id, which waits."""
    return plant(store, of.changed(
        state="queued", args='["younger"]', attempt=0, claim=None, worker=None, claimed_at=None, errors=(),
        finished_at=None, **fields,
    ))  # fmt: skip


def running_twin(store: Any, of: Job, **fields: Any) -> Job:
    """Return another job with the same id, which runs."""
    waiting_twin(store, of, **fields)
    if fields.get("alone"):
        [job] = [store.claim_suspect(ME, uuid.uuid4(), EVERY_QUEUE, TASKS)]
    else:
        [job] = claim(store)
    assert job.id == of.id
    return job


def newer_in_history(store: Any, state: State, old: Job) -> Job:
    """Return the newer job from history, after checking that history also has the older one unchanged, and no other."""
    jobs = store.find()
    assert [j for j in jobs if j.id == old.id] == [old]
    [other] = [j for j in jobs if j.id != old.id]
    assert (other.state, other.args, other.headers[EARLIER_ID]) == (state, '["younger"]', str(old.id))
    return other


@pytest.mark.row(151)
@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_a_job_whose_id_is_in_history_ends_under_another(store: Any, state: State) -> None:
    old = older(store)
    job = running_twin(store, old)

    assert end(store, job, state, result='"x"', error=an_error())

    kept = newer_in_history(store, state, old)
    assert (kept.claim, kept.result, kept.errors) == (job.claim, '"x"', (an_error(),))


def test_a_batch_with_a_job_whose_id_is_in_history_is_settled_completely(store: Any) -> None:
    old = older(store)
    twin = running_twin(store, old)
    others = [take(store), take(store)]

    settled = store.settle([outcome(twin, "done"), *(outcome(job, "done") for job in others)])

    assert settled == {twin.id, *(job.id for job in others)}
    assert {store.get(job.id).state for job in others} == {"done"}
    assert len(store.find(states=["done"])) == 3


def test_settle_and_claim_settles_a_job_whose_id_is_in_history(store: Any) -> None:
    old = older(store)
    twin = running_twin(store, old)
    [waiting] = enqueue(store)

    with store.settle_and_claim([outcome(twin, "done")], ME, uuid.uuid4(), EVERY_QUEUE, TASKS, 10) as reply:
        pass

    assert reply.settled == {twin.id}
    assert [job.id for job in reply.jobs()] == [waiting]


def test_an_outcome_of_an_old_claim_does_not_change_a_job_whose_id_is_in_history(store: Any) -> None:
    old = older(store)
    twin = running_twin(store, old)

    assert not end(store, twin.changed(claim=uuid.uuid4()), "done")

    assert store.get(old.id) == twin


def test_an_end_that_is_in_history_already_is_not_written_again(store: Any) -> None:
    job = take(store)
    end(store, job, "done")
    plant(store, job)

    assert end(store, job, "done")

    assert [j.id for j in store.find()] == [job.id]
    assert store.get(job.id).state == "done"


def test_a_job_whose_id_is_in_history_is_retried_and_returned_like_any_other(store: Any) -> None:
    old = older(store)

    assert end(store, running_twin(store, old), "queued", delay=0.0, error=an_error())
    [job] = claim(store)
    assert store.settle([hand_back(job)]) == {job.id}

    assert store.get(old.id).state == "queued"
    assert len(store.find()) == 2


def test_cancelling_a_job_whose_id_is_in_history_keeps_both(store: Any) -> None:
    old = older(store)
    waiting_twin(store, old)

    assert store.cancel(old.id, "why not")

    assert newer_in_history(store, "cancelled", old).error == "why not"


def test_clearing_a_queue_with_a_job_whose_id_is_in_history_keeps_both(store: Any) -> None:
    old = older(store)
    waiting_twin(store, old, queue="full")
    enqueue(store, 2, queue="full")

    assert store.clear("full") == 3

    assert len(store.find(states=["cancelled"])) == 3
    assert store.get(old.id) == old


def test_a_poison_pill_whose_id_is_in_history_fails_and_both_are_kept(store: Any) -> None:
    old = older(store)
    running_twin(store, old, alone=True, crashes=2)
    neighbour = take(store, OTHER)

    rescued = store.reap([(ME, None), (OTHER, None)])

    assert [(job.state, job.id == neighbour.id) for job in rescued if job.id != neighbour.id] == [("failed", False)]
    assert store.get(neighbour.id).state == "queued"
    assert store.delete(neighbour.id)
    assert "died 3 times" in str(newer_in_history(store, "failed", old).error)


def test_a_suspect_whose_id_is_in_history_is_rescued(store: Any) -> None:
    old = older(store)
    running_twin(store, old)

    [rescued] = store.reap([(ME, None)])

    assert (rescued.id, rescued.state, rescued.alone) == (old.id, "queued", True)


def test_a_job_is_not_retried_while_another_of_its_id_has_not_ended(store: Any) -> None:
    old = older(store)
    twin = waiting_twin(store, old)

    with pytest.raises(DatabaseRefused, match=f"job {old.id} cannot be retried now: another job"):
        store.retry(old.id)

    assert store.get(old.id).args == twin.args
    assert sorted(job.state for job in store.find()) == ["failed", "queued"]


def test_of_two_jobs_with_one_id_methods_use_the_one_that_has_not_ended(store: Any) -> None:
    old = older(store)
    twin = running_twin(store, old)

    assert store.get(old.id).state == "running"
    assert not store.delete(old.id)
    assert store.settle([hand_back(twin)]) == {old.id}
    assert store.delete(old.id)
    assert store.get(old.id) == old
    assert store.delete(old.id)
    assert store.find() == []


@pytest.mark.row(151)
@pytest.mark.parametrize("count", [1, 3, 250])
def test_ids_that_are_issued_again_are_skipped(store: Any, count: int) -> None:
    ended = [older(store).id for _ in range(2)]
    waiting = enqueue(store, 3)
    rewind_sequence(store)

    ids = [job_id for _ in range(2) for job_id in enqueue(store, count, args='["new"]')]

    assert len({*waiting, *ended, *ids}) == 5 + 2 * count
    assert {store.get(job_id).args for job_id in ids} == {'["new"]'}


@pytest.mark.parametrize("last", [0, 2, 7])
def test_a_sequence_that_is_behind_is_advanced(store: Any, last: int) -> None:
    ids = [older(store).id, *enqueue(store, 5)]
    rewind_sequence(store, last)

    behind = store.mend_sequence()

    assert (behind > 0, store.mend_sequence()) == (last < 6, 0)
    assert min(enqueue(store, 3)) > max(ids)


def test_an_unused_sequence_is_not_behind(store: Any) -> None:
    assert store.mend_sequence() == 0
    assert store.mend_sequence() == 0
