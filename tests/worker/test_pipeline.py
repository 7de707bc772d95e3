"""Prefetch and pipelines: which jobs a worker holds, when it hands them back, and in how few statements it writes
outcomes. Stepped by the test, on both stores.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from support import eventually

from pgcron_lite import PgCron, current_job
from pgcron_lite.errors import DatabaseRefused, DatabaseUnavailable
from pgcron_lite.job import Job, NewJob, Outcome, PipelineReply, WorkerCard
from pgcron_lite.schedules import api
from pgcron_lite.schedules.ticks import Tick
from pgcron_lite.worker import loop as loop_module
from pgcron_lite.worker import prefetch as prefetch_module
from pgcron_lite.worker.loop import RECHECK_SECONDS, STALE_SECONDS, WRITE_BEHIND_SECONDS, Worker
from pgcron_lite.worker.prefetch import MAX_AHEAD, SLOW_SECONDS, WINDOW
from pgcron_lite.worker.wake import Wake

PATIENCE = 30.0


class Gate(threading.Event):
    """An event that ends the task `wait`."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[int] = []

    def wait_for_it(self) -> None:
        self.entered.append(current_job.id)
        self.wait(PATIENCE)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.set()


@pytest.fixture
def nothing_goes_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep held jobs from becoming stale on machines that pause for a while, in tests of something else."""
    monkeypatch.setattr(loop_module, "STALE_SECONDS", PATIENCE)


@pytest.fixture
def ran() -> list[int]:
    """The jobs of the task `work`, in the order in which they started."""
    return []


@pytest.fixture
def app(gate: Gate, ran: list[int]) -> PgCron:
    app = PgCron("ahead", url="memory://", lease="1h", poll="1h")
    app.task(lambda: ran.append(current_job.id), name="work")
    app.task(gate.wait_for_it, name="wait")
    return app


@pytest.fixture
def make_worker(app: PgCron, store: Any) -> Iterator[Callable[..., Worker]]:
    """A factory of workers. For a `quick` one, the last jobs took 0.1 ms each."""
    workers: list[Worker] = []

    def make_worker(slots: int = 1, *, quick: bool = True, **options: Any) -> Worker:
        card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), slots, "threads", "0")
        store.register(card)
        worker = Worker(app, store, card, **options)
        # Only the test makes the worker claim.
        worker._reap_at = worker._maintenance.prune_at = worker._maintenance.check_at = float("inf")
        if quick:
            worker._prefetch.record([0.0001] * WINDOW)
        workers.append(worker)
        return worker

    yield make_worker
    for worker in workers:
        worker.slots.close()


def enqueue(store: Any, count: int = 1, task: str = "work", **options: Any) -> list[int]:
    ids: list[int] = store.enqueue([NewJob(task, **options) for _ in range(count)])
    return ids


def run_of_a_schedule(app: PgCron, store: Any, name: str) -> int:
    """Enqueue a run of a new schedule of the task `work`."""
    schedule = api.make(name, "@yearly", app.tasks["work"], "UTC", {"overlap": "allow"})
    store.put_schedule(name, app.name, schedule.dumps(), replace=False)
    now = store.now()
    tick = Tick(now, now, schedule.job(now, now), late_at=None, kind="manual")
    job_id: int = store.add_ticks(name, [tick])[now]
    return job_id


def busy_with(worker: Worker, store: Any, gate: Gate, held: int, **options: Any) -> tuple[list[int], list[int]]:
    """Fill all slots of `worker` with waiting jobs, and let it hold `held` jobs more. Return the ids of both."""
    waiting = enqueue(store, worker.slots.count, "wait")
    ids = enqueue(store, held, **options)
    worker.claim_soon()
    worker.step()
    eventually(lambda: len(gate.entered) == len(waiting), PATIENCE)
    assert worker.slots.waiting == held
    assert states(store, [*waiting, *ids]) == {"running"}
    return waiting, ids


def states(store: Any, ids: Sequence[int]) -> set[str]:
    return {store.get(job_id).state for job_id in ids}


def turn_until(worker: Worker, fact: Callable[[], object]) -> None:
    def turned() -> object:
        worker.step()
        return fact()

    eventually(turned, PATIENCE)


def settlements(store: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[Outcome]]:
    """Record the calls of `store.settle` from now on: a list of outcomes for each."""
    settled: list[list[Outcome]] = []
    settle = store.settle

    def noted(outcomes: Sequence[Outcome]) -> Any:
        settled.append(list(outcomes))
        return settle(outcomes)

    monkeypatch.setattr(store, "settle", noted)
    return settled


def assert_unharmed(store: Any, ids: Sequence[int], before: Sequence[Job]) -> None:
    for job_id, was in zip(ids, before, strict=True):
        job = store.get(job_id)
        assert (job.state, job.attempt, job.claim, job.worker) == ("queued", 0, None, None)
        assert (job.errors, job.crashes, job.alone, job.execute_after) == ((), 0, False, was.execute_after)


# Number of claimed jobs


def test_slow_tasks_are_not_claimed_ahead(app: PgCron, store: Any, make_worker: Callable[..., Worker]) -> None:
    app.task(lambda: time.sleep(SLOW_SECONDS), name="slow")
    worker = make_worker(8, quick=False)
    ids = enqueue(store, 72, "slow")
    busy: set[int] = set()

    def turned() -> bool:
        worker.claim_soon()
        worker.step()
        # Not `running`, which includes the jobs that have ended since the step began.
        busy.add(worker.slots.busy)
        return states(store, ids) == {"done"}

    eventually(turned, PATIENCE)

    assert max(busy) == 8


@pytest.mark.usefixtures("nothing_goes_stale")
def test_quick_tasks_are_claimed_ahead_once_that_is_known(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    worker = make_worker(2, quick=False)
    enqueue(store, 100)
    worker.step()
    assert len(worker.running) == 2
    turn_until(worker, lambda: worker.is_idle() and not worker._may_have_more)
    assert worker._prefetch.seconds < SLOW_SECONDS

    waiting = enqueue(store, 2, "wait")
    ids = enqueue(store, 3)
    worker.claim_soon()
    worker.step()

    assert states(store, [*waiting, *ids]) == {"running"}
    gate.set()
    turn_until(worker, lambda: states(store, [*waiting, *ids]) == {"done"})


@pytest.mark.usefixtures("nothing_goes_stale")
def test_no_more_are_claimed_than_may_be_held(store: Any, make_worker: Callable[..., Worker], gate: Gate) -> None:
    worker = make_worker(2)
    # A little less than 5 ms each: for two slots, twenty of them are work for a twentieth of a second.
    worker._prefetch.record([0.0049] * WINDOW)
    ids = enqueue(store, 2, "wait") + enqueue(store, 100)

    for _ in range(3):
        worker.claim_soon()
        worker.step()

    assert len(worker.running) == 2 + worker._prefetch.ahead == 22
    assert [store.get(i).state for i in ids] == ["running"] * 22 + ["queued"] * 80


@pytest.mark.usefixtures("nothing_goes_stale")
def test_prefetch_has_a_maximum(store: Any, make_worker: Callable[..., Worker], gate: Gate) -> None:
    worker = make_worker(2)
    worker._prefetch.record([0.0] * WINDOW)
    waiting = enqueue(store, 2, "wait")
    ids = enqueue(store, MAX_AHEAD + 10)

    for _ in range(3):
        worker.claim_soon()
        worker.step()

    assert len(worker.running) == MAX_AHEAD + 2
    assert states(store, [*waiting, *ids[:MAX_AHEAD]]) == {"running"}
    assert states(store, ids[MAX_AHEAD:]) == {"queued"}


@pytest.mark.usefixtures("nothing_goes_stale")
def test_of_jobs_with_large_arguments_few_are_held(
    app: PgCron, store: Any, make_worker: Callable[..., Worker], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.task(lambda text: None, name="read")
    large = json.dumps({"text": "x" * 1000})
    monkeypatch.setattr(prefetch_module, "AHEAD_SIZE", 10 * len(large))
    worker = make_worker(1)
    known = enqueue(store, WINDOW, "read", args=large)
    worker.claim_soon()
    turn_until(worker, lambda: states(store, known) == {"done"})
    enqueue(store, 1, "wait")
    ids = enqueue(store, 100, "read", args=large)

    for _ in range(3):
        worker.claim_soon()
        worker.step()

    assert [store.get(i).state for i in ids] == ["running"] * 10 + ["queued"] * 90


@pytest.mark.usefixtures("nothing_goes_stale")
def test_of_jobs_with_large_results_few_are_held(
    app: PgCron, store: Any, make_worker: Callable[..., Worker], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.task(lambda: "x" * 998, name="write")
    monkeypatch.setattr(prefetch_module, "AHEAD_SIZE", 10 * 1002)
    worker = make_worker(1)
    known = enqueue(store, WINDOW, "write")
    worker.claim_soon()
    turn_until(worker, lambda: states(store, known) == {"done"})
    worker._prefetch.record([0.0001] * WINDOW)
    enqueue(store, 1, "wait")
    ids = enqueue(store, 100, "write")

    for _ in range(3):
        worker.claim_soon()
        worker.step()

    # They may have ended one by one, and then they weigh a little less in the average.
    assert 10 <= [store.get(i).state for i in ids].count("running") <= 16


@pytest.mark.usefixtures("nothing_goes_stale")
def test_no_more_are_claimed_before_half_of_the_maximum_has_started(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(1)
    worker._prefetch.record([0.0049] * WINDOW)
    limits = []
    claim = store.claim

    def noted(*args: Any) -> Any:
        limits.append(args[-1])
        return claim(*args)

    monkeypatch.setattr(store, "claim", noted)
    busy_with(worker, store, gate, 6)
    enqueue(store, 10)

    # Seven of eleven places are taken: the rest is not worth a round trip.
    worker.claim_soon()
    worker.step()
    assert limits == [11]

    gate.set()
    turn_until(worker, lambda: len(limits) > 1)
    assert min(limits) >= 5


@pytest.mark.usefixtures("nothing_goes_stale")
def test_held_jobs_run_in_the_order_of_the_claim(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, ran: list[int]
) -> None:
    worker = make_worker(1)
    _, ids = busy_with(worker, store, gate, 20)

    gate.set()
    turn_until(worker, worker.is_idle)

    assert ran == ids


@pytest.mark.row(18)
def test_no_jobs_are_held_while_a_suspect_runs(store: Any, make_worker: Callable[..., Worker], gate: Gate) -> None:
    (suspect,) = enqueue(store, task="wait")
    make_suspect(store, "wait")
    others = enqueue(store, 30)
    worker = make_worker(4)

    for _ in range(5):
        worker.claim_soon()
        worker.step()

    assert list(worker.running) == [suspect]
    assert states(store, others) == {"queued"}
    gate.set()
    turn_until(worker, lambda: states(store, [suspect, *others]) == {"done"})


@pytest.mark.row(18)
@pytest.mark.usefixtures("nothing_goes_stale")
def test_a_suspect_waits_until_no_jobs_are_held(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, ran: list[int]
) -> None:
    beside: list[list[int]] = []
    worker = make_worker(1)
    worker.app.task(lambda: beside.append(list(worker.running)), name="suspect")
    worker._tasks.append("suspect")
    (suspect,) = enqueue(store, task="suspect")
    make_suspect(store, "suspect")
    # It is too early to query for suspects, so the worker claims its maximum before it finds this one.
    worker._suspects.next_try = float("inf")
    _, held = busy_with(worker, store, gate, 10)
    worker._suspects.check_now()

    enqueue(store, 50)
    gate.set()
    worker.claim_soon()
    turn_until(worker, lambda: beside)

    assert beside == [[suspect]]
    assert set(ran) >= set(held)
    turn_until(worker, lambda: states(store, [suspect]) == {"done"})


# Handing back


@pytest.mark.row(10)
def test_a_stopping_worker_hands_back_held_jobs(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(2)
    released: list[int] = []
    worker.app.on("job_released")(lambda job: released.append(job.id))
    waiting, held = busy_with(worker, store, gate, 40, max_attempts=1)
    before = [store.get(job_id) for job_id in held]
    settled = settlements(store, monkeypatch)

    worker.stop()
    worker.step()

    assert_unharmed(store, held, before)
    assert states(store, waiting) == {"running"}
    assert sorted(worker.running) == waiting
    assert [len(outcomes) for outcomes in settled] == [40]
    assert sorted(released) == held
    gate.set()
    turn_until(worker, worker.is_idle)
    assert states(store, waiting) == {"done"}
    assert ran == []
    # They are unchanged for the worker that claims them next.
    other = make_worker(2)
    turn_until(other, lambda: states(store, held) == {"done"})
    assert {store.get(i).attempt for i in held} == {1}


def test_a_hand_back_wakes_other_workers(store: Any, make_worker: Callable[..., Worker], gate: Gate) -> None:
    worker = make_worker(1)
    busy_with(worker, store, gate, 3)
    with pytest.MonkeyPatch.context() as patch:
        rung: list[bool] = []
        patch.setattr(store, "ring", lambda: rung.append(True))

        worker.stop()
        worker.step()
        worker.step()

    assert rung == [True]


def test_held_jobs_of_a_paused_queue_are_handed_back_and_stay_queued(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, ran: list[int]
) -> None:
    worker = make_worker(2)
    waiting, held = busy_with(worker, store, gate, 20, max_attempts=1)
    before = [store.get(job_id) for job_id in held]
    store.pause("default")

    turn_until(worker, lambda: states(store, held) == {"queued"})

    gate.set()
    turn_until(worker, lambda: states(store, waiting) == {"done"})
    for _ in range(3):
        worker.claim_soon()
        worker.step()
    assert_unharmed(store, held, before)
    assert worker.is_idle()
    assert ran == []
    store.resume("default")
    worker.claim_soon()
    turn_until(worker, lambda: states(store, held) == {"done"})


def test_a_job_of_a_higher_priority_does_not_wait_for_held_jobs(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, ran: list[int]
) -> None:
    worker = make_worker(1)
    _, held = busy_with(worker, store, gate, 20, max_attempts=1)
    (urgent,) = enqueue(store, priority=10)

    turn_until(worker, lambda: states(store, held) == {"queued"})

    gate.set()
    turn_until(worker, lambda: states(store, [urgent, *held]) == {"done"})
    assert ran == [urgent, *held]
    assert {store.get(i).attempt for i in held} == {1}


def test_held_jobs_that_do_not_start_are_left_to_an_idle_worker(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, ran: list[int]
) -> None:
    stuck, idle = make_worker(2), make_worker(2)
    waiting, held = busy_with(stuck, store, gate, 20)
    turn_until(stuck, lambda: states(store, held) == {"queued"})

    idle.claim_soon()
    turn_until(idle, lambda: states(store, held) == {"done"})

    assert sorted(ran) == held
    assert states(store, waiting) == {"running"}
    stuck.step()
    assert stuck.report.lost == idle.report.lost == 0


def test_after_a_hand_back_no_jobs_are_held_until_tasks_are_quick_again(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    worker = make_worker(1)
    waiting, held = busy_with(worker, store, gate, 20)
    assert worker._prefetch.ahead > 0
    turn_until(worker, lambda: states(store, held) == {"queued"})

    for _ in range(5):
        worker.claim_soon()
        worker.step()

    assert list(worker.running) == waiting
    assert states(store, held) == {"queued"}
    assert worker._prefetch.ahead == 0


@pytest.mark.usefixtures("nothing_goes_stale")
def test_jobs_that_have_waited_briefly_are_kept(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    worker = make_worker(1)
    _, held = busy_with(worker, store, gate, 5)

    eventually(lambda: worker.slots.waited(time.monotonic()) > 0.05, PATIENCE)
    worker.step()

    assert states(store, held) == {"running"}
    assert worker.slots.waiting == 5


def test_a_worker_with_held_jobs_steps_often_enough_to_hand_them_back(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    wake = Wake()
    worker = make_worker(1, wake_loop=wake.ring)
    _, held = busy_with(worker, store, gate, 20)

    # As its process does; the doorbell does not ring.
    waits = []

    def turned() -> bool:
        waits.append(worker.step())
        wake.wait(min(waits[-1], STALE_SECONDS))
        return states(store, held) == {"queued"}

    eventually(turned, PATIENCE)

    assert max(waits[:-1], default=0.0) < STALE_SECONDS
    gate.set()
    eventually(lambda: not worker.slots.busy, PATIENCE)
    wake.close()


@pytest.mark.row(7)
def test_a_job_that_a_slot_takes_too_late_is_not_started_and_is_handed_back(
    app: PgCron, store: Any, make_worker: Callable[..., Worker], ran: list[int]
) -> None:
    worker = make_worker(2)
    # As if the process had been frozen between the claim and here, for half a lease.
    worker.slots._max_age = -1.0
    ids = enqueue(store, 5, max_attempts=1)
    before = [store.get(job_id) for job_id in ids]
    worker.step()
    assert states(store, ids) == {"running"}
    eventually(lambda: worker.slots.has_late and not worker.slots.waiting, PATIENCE)
    store.pause("default")

    turn_until(worker, lambda: states(store, ids) == {"queued"})

    assert_unharmed(store, ids, before)
    assert ran == []
    assert worker.is_idle()


# Writing outcomes


@pytest.mark.usefixtures("nothing_goes_stale")
def test_many_outcomes_are_written_together(
    store: Any, make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = settlements(store, monkeypatch)
    worker = make_worker(4)
    ids = enqueue(store, 200)
    worker.step()
    eventually(lambda: len(worker.slots.ended) == 200, PATIENCE)

    worker.step()

    assert [len(outcomes) for outcomes in settled] == [200]
    assert states(store, ids) == {"done"}


def test_a_worker_is_not_woken_by_each_job_that_ends(store: Any, make_worker: Callable[..., Worker]) -> None:
    bells: list[int] = []
    worker = make_worker(1, wake_loop=lambda: bells.append(len(worker.slots.ended)))
    enqueue(store, 400)
    worker.step()

    eventually(lambda: len(worker.slots.ended) == 400, PATIENCE)

    # Once, when half of the maximum had ended.
    assert (bells, worker.slots.enough) == ([250], 250)


@pytest.mark.usefixtures("nothing_goes_stale")
def test_an_outcome_is_written_soon_even_if_other_jobs_still_wait(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    bells: list[bool] = []
    worker = make_worker(1, wake_loop=lambda: bells.append(True))
    (first,) = enqueue(store)
    (blocker,) = enqueue(store, task="wait")
    rest = enqueue(store, 3)

    wait = worker.step()
    eventually(lambda: gate.entered == [blocker], PATIENCE)

    # No slot wakes the loop: the worker steps because of its deadline.
    assert wait <= WRITE_BEHIND_SECONDS
    assert bells == []
    assert states(store, [first]) == {"running"}
    assert worker.step() <= WRITE_BEHIND_SECONDS
    assert states(store, [first]) == {"done"}
    assert states(store, [blocker, *rest]) == {"running"}


def test_with_no_job_waiting_the_worker_sleeps_longer(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    worker = make_worker(2)
    busy_with(worker, store, gate, 0)

    assert worker.step() > 60


def test_a_stopping_worker_writes_outcomes_before_it_hands_back(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(1)
    (first,) = enqueue(store)
    (blocker,) = enqueue(store, task="wait")
    rest = enqueue(store, 3)
    worker.step()
    eventually(lambda: gate.entered == [blocker], PATIENCE)
    settled = settlements(store, monkeypatch)

    worker.stop()
    worker.step()

    assert [[(o.id, o.state) for o in outcomes] for outcomes in settled] == [
        [(first, "done")], [(job_id, "queued") for job_id in rest],
    ]  # fmt: skip


def test_at_the_end_of_the_grace_outcomes_are_written_and_the_rest_is_released(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    worker = make_worker(1)
    (first,) = enqueue(store)
    (blocker,) = enqueue(store, task="wait")
    rest = enqueue(store, 3)
    worker.step()
    eventually(lambda: gate.entered == [blocker], PATIENCE)

    left = worker.release()

    assert [job.id for job in left] == [blocker, *rest]
    assert states(store, [first]) == {"done"}
    assert {(store.get(i).state, store.get(i).attempt) for i in [blocker, *rest]} == {("queued", 0)}


@pytest.mark.usefixtures("nothing_goes_stale")
def test_a_failure_among_many_successes_is_written_with_them(
    app: PgCron, store: Any, make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError("no")

    app.task(fail, name="fail", max_attempts=2, backoff="1h")
    settled = settlements(store, monkeypatch)
    worker = make_worker(1)
    ids = enqueue(store, 20) + enqueue(store, task="fail", max_attempts=2) + enqueue(store, 20)
    worker.step()
    eventually(lambda: len(worker.slots.ended) == 41, PATIENCE)

    worker.step()

    assert [len(outcomes) for outcomes in settled] == [41]
    failed = store.get(ids[20])
    assert (failed.state, failed.attempt, failed.error) == ("queued", 1, "ValueError: no")
    assert states(store, ids[:20] + ids[21:]) == {"done"}


# Claiming again after the doorbell


def test_a_woken_worker_claims_once_more_after_a_while(store: Any, make_worker: Callable[..., Worker]) -> None:
    class Once:
        """A bell that has rung once and never rings again."""

        is_live = True
        rung = True

        def fileno(self) -> None: ...

        def step(self) -> tuple[bool, float]:
            rung, self.rung = self.rung, False
            return rung, 3600.0

        def rest(self, seconds: float) -> None: ...

        def close(self) -> None: ...

    worker = make_worker(2, bell=Once())

    assert worker.step() <= RECHECK_SECONDS
    # A job committed meanwhile that did not ring, because the bell had just been rung:
    (trailing,) = enqueue(store)
    turn_until(worker, lambda: states(store, [trailing]) == {"done"})

    turn_until(worker, lambda: not worker._may_have_more and worker.is_idle())
    assert worker.step() > 60


def make_suspect(store: Any, task: str) -> None:
    """Make the due job of `task` a suspect, as after the death of its worker."""
    dead = uuid.uuid4()
    store.register(WorkerCard(dead, "host", 1, ("*",), 1, "threads", "0"))
    assert store.claim(dead, uuid.uuid4(), ["*"], [task], 1)
    store.reap([(dead, None)])
    assert store.suspects_due(["*"], [task])


def test_a_failed_hand_back_is_repeated(
    store: Any, make_worker: Callable[..., Worker], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(1)
    _, held = busy_with(worker, store, gate, 3, max_attempts=1)
    settle = store.settle

    def gone(outcomes: Sequence[Outcome]) -> Any:
        monkeypatch.setattr(store, "settle", settle)
        raise DatabaseUnavailable("the server is gone")

    monkeypatch.setattr(store, "settle", gone)
    # Paused, so that they are not claimed again at once.
    store.pause("default")

    turn_until(worker, lambda: states(store, held) == {"queued"})

    gate.set()
    turn_until(worker, worker.is_idle)


# Pipelined claims


def start_pipeline(worker: Worker, store: Any, ran: list[int]) -> list[int]:
    """Let `worker` run the first of many jobs, so that its next claim is pipelined. Return the ids of all."""
    ids = enqueue(store, 2000)
    worker.claim_soon()
    worker.step()
    eventually(lambda: len(worker.slots.ended) == len(ran) > 0 and not worker.slots.busy, PATIENCE)
    return ids


def held(store: Any, worker: Worker) -> list[int]:
    return sorted(job.id for job in store.find(states=["running"], limit=4000) if job.worker == worker.id)


def all_ran_once(worker: Worker, store: Any, ids: Sequence[int], ran: list[int]) -> None:
    __tracebackhide__ = True
    turn_until(worker, lambda: worker.is_idle() and len(ran) >= len(ids))
    assert sorted(ran) == sorted(ids)
    assert states(store, ids) == {"done"}
    assert {store.get(job_id).attempt for job_id in ids} == {1}


@pytest.mark.usefixtures("nothing_goes_stale")
def test_pipelined_outcomes_are_written_with_the_next_claim(
    store: Any, make_worker: Callable[..., Worker], ran: list[int]
) -> None:
    worker = make_worker(1)
    ids = start_pipeline(worker, store, ran)
    first = list(ran)

    assert worker.step() == 0.0

    assert states(store, first) == {"done"}
    ahead = held(store, worker)
    assert len(ahead) == worker.slots.enough
    # They are not processed yet.
    assert (worker.slots.busy, ran) == (0, first)
    assert not set(worker.running) & set(ahead)
    assert not worker.is_idle()
    worker.step()
    eventually(lambda: ran[len(first) :] == ahead, PATIENCE)
    all_ran_once(worker, store, ids, ran)


@pytest.mark.usefixtures("nothing_goes_stale")
def test_pipelined_claims_hold_no_more_jobs_than_others(
    store: Any, make_worker: Callable[..., Worker], gate: Gate
) -> None:
    worker = make_worker(1)
    enqueue(store, 400)
    enqueue(store, 3000, task="wait")
    worker.step()
    eventually(lambda: len(worker.slots.ended) == 400, PATIENCE)

    most = 0
    for _ in range(10):
        before = worker._prefetch.ahead
        worker.step()

        most = max(most, worker.slots.count + before, worker.slots.count + worker._prefetch.ahead)
        assert len(held(store, worker)) <= most <= worker.slots.count + MAX_AHEAD
    # More jobs were due, and there was room for them.
    assert len(held(store, worker)) > most / 2
    worker.stop()
    worker.step()
    assert len(held(store, worker)) == 1


@pytest.mark.row(10)
@pytest.mark.usefixtures("nothing_goes_stale")
@pytest.mark.parametrize("how", ["stop", "release"])
def test_a_worker_that_stops_hands_back_the_jobs_of_an_unprocessed_pipeline(
    store: Any, make_worker: Callable[..., Worker], ran: list[int], how: str
) -> None:
    worker = make_worker(1)
    start_pipeline(worker, store, ran)
    worker.step()
    first, ahead = list(ran), held(store, worker)
    before = [store.get(job_id) for job_id in ahead]

    if how == "stop":
        worker.stop()
        worker.step()
        assert_unharmed(store, ahead, before)
    else:
        assert sorted(job.id for job in worker.release()) == ahead
        assert {(store.get(i).state, store.get(i).attempt) for i in ahead} == {("queued", 0)}

    assert worker.is_idle()
    assert ran == first
    assert held(store, worker) == []


@pytest.mark.row(3)
@pytest.mark.usefixtures("nothing_goes_stale")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_pipeline_without_a_reply_loses_nothing_and_runs_nothing_twice(
    store: Any, make_worker: Callable[..., Worker], ran: list[int], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    worker = make_worker(1)
    ids = start_pipeline(worker, store, ran)
    reply, failures = store.settle_and_claim, iter([moment])

    @contextlib.contextmanager
    def failing(*args: Any) -> Iterator[Any]:
        fails = next(failures, None)
        if fails == "before":
            raise DatabaseUnavailable("the server is gone")
        with reply(*args) as answer:
            yield answer
        if fails == "after":
            raise DatabaseUnavailable("the reply is lost")

    monkeypatch.setattr(store, "settle_and_claim", failing)

    all_ran_once(worker, store, ids, ran)
    assert next(failures, None) is None
    assert worker.report.lost == 0


@pytest.mark.row(53)
@pytest.mark.usefixtures("nothing_goes_stale")
def test_closed_connections_lose_no_jobs_of_an_unprocessed_pipeline(
    store: Any, make_worker: Callable[..., Worker], ran: list[int]
) -> None:
    worker = make_worker(1)
    ids = start_pipeline(worker, store, ran)
    worker.step()

    store.close()

    all_ran_once(worker, store, ids, ran)
    assert worker.report.lost == 0


@pytest.mark.usefixtures("nothing_goes_stale")
def test_an_outcome_that_cannot_be_stored_fails_only_its_job_in_a_pipeline(
    store: Any, make_worker: Callable[..., Worker], ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(1)
    ids = start_pipeline(worker, store, ran)
    unfit, settle = ran[7], store.settle

    def picky(outcomes: Sequence[Outcome], *args: Any) -> Any:
        if any(o.id == unfit and o.state == "done" for o in outcomes):
            raise DatabaseRefused("no such text")
        return settle(outcomes, *args)

    @contextlib.contextmanager
    def reply(outcomes: Sequence[Outcome], *claim: Any) -> Iterator[PipelineReply]:
        answer = PipelineReply()
        yield answer
        jobs = store.claim(*claim)
        answer.count, answer.jobs = len(jobs), lambda: jobs
        answer.settled = picky(outcomes)

    monkeypatch.setattr(store, "settle", picky)
    monkeypatch.setattr(store, "settle_and_claim", reply)

    turn_until(worker, lambda: worker.is_idle() and len(ran) >= len(ids))

    assert sorted(ran) == ids
    assert store.get(unfit).state == "failed"
    assert states(store, [job_id for job_id in ids if job_id != unfit]) == {"done"}


@pytest.mark.row(3)
@pytest.mark.usefixtures("nothing_goes_stale")
def test_jobs_of_a_pipeline_begin_even_if_a_tick_cannot_be_closed(
    store: Any, make_worker: Callable[..., Worker], ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(1)
    # The test does not wait for a poll, which would find them too.
    close_ticks, unbegun = store.close_ticks, set()

    def gone_once(job_ids: Sequence[int]) -> Any:
        claimed = set(held(store, worker)) - set(worker.running)
        if not claimed or unbegun:
            return close_ticks(job_ids)
        unbegun.update(claimed)
        raise DatabaseUnavailable("the server is gone")

    monkeypatch.setattr(store, "close_ticks", gone_once)
    ids = []
    for number in range(20):
        ids += [*enqueue(store, 100), run_of_a_schedule(worker.app, store, f"report {number}")]

    all_ran_once(worker, store, ids, ran)

    assert unbegun
    assert worker.report.lost == 0


@pytest.mark.usefixtures("nothing_goes_stale")
def test_unprocessed_jobs_of_a_pipeline_do_not_count_as_a_late_claim(
    store: Any, make_worker: Callable[..., Worker], ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(1)
    ids = start_pipeline(worker, store, ran)
    queries: list[uuid.UUID] = []
    ask = store.held
    monkeypatch.setattr(store, "held", lambda worker, claim: queries.append(claim) or ask(worker, claim))
    worker.poll_soon()

    worker.step()

    assert worker._pipelined is not None
    assert len(held(store, worker)) == worker._pipelined.count
    assert queries == []
    all_ran_once(worker, store, ids, ran)


@pytest.mark.usefixtures("nothing_goes_stale")
def test_no_statement_is_sent_during_a_pipeline(
    store: Any, make_worker: Callable[..., Worker], ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Jobs of ticks are admitted, and their ticks closed, by separate statements.
    worker = make_worker(1)
    at_it, calls = [False], []
    reply = store.settle_and_claim

    @contextlib.contextmanager
    def noted(*args: Any) -> Iterator[Any]:
        with reply(*args) as answer:
            at_it[0] = True
            yield answer
            at_it[0] = False

    def watched(verb: str) -> Callable[..., Any]:
        do = getattr(store, verb)

        def ask(*args: Any) -> Any:
            calls.append((verb, at_it[0]))
            return do(*args)

        return ask

    monkeypatch.setattr(store, "settle_and_claim", noted)
    for verb in ("admit", "close_ticks"):
        monkeypatch.setattr(store, verb, watched(verb))
    ids = [*enqueue(store, 1200), run_of_a_schedule(worker.app, store, "report"), *enqueue(store, 1200)]

    all_ran_once(worker, store, ids, ran)

    assert ("admit", False) in calls
    assert ("close_ticks", False) in calls
    assert {busy for _, busy in calls} == {False}
