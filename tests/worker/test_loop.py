"""The worker, stepped by the test: claims, outcomes, rescues, shutdown and outages."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support import eventually

from pgcron_lite import PgCron, current_job
from pgcron_lite.errors import DatabaseUnavailable, PgCronError
from pgcron_lite.job import Job, NewJob, Outcome, WorkerCard
from pgcron_lite.memory import MemoryStore
from pgcron_lite.worker import loop as loop_module
from pgcron_lite.worker.loop import MAX_PAUSE, SERIES, Worker
from pgcron_lite.worker.prefetch import WINDOW
from pgcron_lite.worker.slots import check_slots


class Flaky(MemoryStore):
    """A store whose replies can be lost: `before` raises without executing, `after` executes and then raises."""

    def __init__(self) -> None:
        super().__init__()
        self.before: set[str] = set()
        self.after: set[str] = set()

    def claim(self, *args: Any) -> list[Job]:
        return self._lossy("claim", super().claim, *args)

    def claim_suspect(self, *args: Any) -> Job | None:
        return self._lossy("claim_suspect", super().claim_suspect, *args)

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        return self._lossy("settle", super().settle, outcomes)

    def _lossy(self, name: str, do: Callable[..., Any], *args: Any) -> Any:
        if name in self.before:
            raise DatabaseUnavailable("the server is gone")
        answer = do(*args)
        if name in self.after:
            raise DatabaseUnavailable("the reply is lost")
        return answer


class Late(MemoryStore):
    """A store that commits some statements late: a call of a method in `held_up` is executed only when `go_on` is
    called, and its reply is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.held_up: set[str] = set()
        self._late: list[Callable[[], Any]] = []

    def claim(self, *args: Any) -> list[Job]:
        return self._do("claim", super().claim, *args)

    def claim_suspect(self, *args: Any) -> Job | None:
        return self._do("claim_suspect", super().claim_suspect, *args)

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        return self._do("settle", super().settle, outcomes)

    def close_ticks(self, job_ids: Sequence[int], **options: Any) -> Any:
        return self._do("close_ticks", lambda ids: MemoryStore.close_ticks(self, ids, **options), job_ids)

    def go_on(self) -> None:
        """Execute the calls that were held up."""
        self.held_up = set()
        while self._late:
            self._late.pop(0)()

    def _do(self, verb: str, do: Callable[..., Any], *args: Any) -> Any:
        if verb not in self.held_up:
            return do(*args)
        self._late.append(lambda: do(*args))
        raise DatabaseUnavailable("the backend is frozen")


class Gate(threading.Event):
    """An event that ends the task `wait`."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[int] = []


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.set()


@pytest.fixture
def app(gate: Gate) -> PgCron:
    app = PgCron("worker", url="memory://", lease="0.5s")
    app.task(do_nothing, name="work")
    app.task(waiting_for(gate), name="wait")
    return app


def do_nothing() -> None:
    """A task."""


@pytest.fixture
def store() -> Flaky:
    return Flaky()


@pytest.fixture
def worker(app: PgCron, store: Flaky) -> Iterator[Worker]:
    worker = make_worker(app, store)
    yield worker
    worker.slots.close()


def make_worker(app: PgCron, store: MemoryStore) -> Worker:
    card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 2, "threads", "0")
    store.register(card)
    return Worker(app, store, card)


def enqueue(store: MemoryStore, count: int = 1, **options: Any) -> list[int]:
    return store.enqueue([NewJob("work", **options) for _ in range(count)])


def turn_until(worker: Worker, fact: Callable[[], object]) -> None:
    def turned() -> object:
        worker.claim_soon()
        worker.step()
        return fact()

    eventually(turned)


def states(store: MemoryStore, ids: Sequence[int]) -> list[str]:
    found = [store.get(job_id) for job_id in ids]
    return [job.state for job in found if job is not None]


def waiting_for(gate: Gate) -> Callable[[], None]:
    def wait() -> None:
        gate.entered.append(current_job.id)
        gate.wait(30)

    return wait


def test_a_due_job_is_run_and_its_outcome_written(worker: Worker, store: Flaky) -> None:
    ids = enqueue(store, 7)

    turn_until(worker, worker.is_idle)
    turn_until(worker, lambda: states(store, ids) == ["done"] * 7)

    assert worker.running == {}


def test_no_more_is_claimed_than_there_are_free_slots(
    worker: Worker, store: Flaky, gate: Gate
) -> None:
    ids = store.enqueue([NewJob("wait") for _ in range(5)])

    for _ in range(3):
        worker.claim_soon()
        worker.step()

    assert states(store, ids).count("running") == 2


def test_a_turn_returns_the_time_to_the_next_deferred_job(worker: Worker, store: Flaky) -> None:
    enqueue(store, execute_after=timedelta(seconds=0.05))

    assert worker.step() <= 0.05


def test_a_retried_job_is_claimed_when_it_is_due(app: PgCron, store: Flaky) -> None:
    app.task(fail, name="fail", backoff="30ms", max_attempts=2)
    app.configure(poll="1h")
    worker = make_worker(app, store)
    # Far away, so that only the retry itself makes the worker claim.
    worker._reap_at = worker._maintenance.prune_at = float("inf")
    store.enqueue([NewJob("fail", max_attempts=2)])
    worker.step()
    eventually(lambda: worker.slots.ended)

    wait = worker.step()

    assert wait <= 0.03
    worker.slots.close()


def fail() -> None:
    raise ValueError("no")


def test_a_job_of_an_unknown_task_stays_queued(worker: Worker, store: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    (foreign,) = store.enqueue([NewJob("works")])

    worker.step()

    assert states(store, [foreign]) == ["queued"]
    assert "1 due job of 'works': this worker does not know that task; did you mean 'work'?" in caplog.text


@pytest.mark.row(10)
def test_a_stopping_worker_claims_nothing_and_hands_back_jobs_that_have_not_started(
    worker: Worker, store: Flaky, gate: Gate
) -> None:
    running = store.enqueue([NewJob("wait") for _ in range(2)])
    worker.step()
    eventually(lambda: len(gate.entered) == 2)
    worker.stop()
    late = enqueue(store)

    worker.step()

    assert states(store, [*running, *late]) == ["running", "running", "queued"]
    gate.set()
    turn_until(worker, worker.is_idle)
    assert states(store, running) == ["done", "done"]


@pytest.mark.row(11)
def test_a_released_job_loses_no_attempt_and_its_late_outcome_is_dropped(
    worker: Worker, store: Flaky, gate: Gate
) -> None:
    (job_id,) = store.enqueue([NewJob("wait", max_attempts=1)])
    worker.step()

    (left,) = worker.release()

    job = store.get(job_id)
    assert left.id == job_id
    assert job is not None
    assert (job.state, job.attempt, job.errors, job.crashes) == ("queued", 0, (), 0)
    assert worker.running == {}
    gate.set()
    turn_until(worker, lambda: worker.report.lost == 1)
    assert states(store, [job_id]) == ["queued"]


@pytest.mark.row(3)
@pytest.mark.parametrize("verb", ["claim", "claim_suspect"])
def test_jobs_of_a_claim_without_a_reply_are_found_by_its_token(worker: Worker, store: Flaky, verb: str) -> None:
    (job_id,) = enqueue(store)
    if verb == "claim_suspect":
        make_suspect(store, job_id)
    store.after = {verb}
    worker.step()
    assert states(store, [job_id]) == ["running"]
    assert worker.is_idle()

    store.after = set()

    turn_until(worker, lambda: states(store, [job_id]) == ["done"])
    job = store.get(job_id)
    assert job is not None
    assert job.attempt == 1


@pytest.fixture
def late() -> Late:
    return Late()


@pytest.fixture
def reconciler(app: PgCron, late: Late) -> Iterator[Worker]:
    """A worker on `late` that polls only when a test makes it."""
    app.configure(poll="1h", lease="1h")
    worker = make_worker(app, late)
    yield worker
    worker.slots.close()


def hold_up_a_claim(worker: Worker, store: Late, verb: str = "claim") -> None:
    """Lose the reply of a claim, and let the worker look up its jobs without a result."""
    store.held_up = {verb}
    worker.claim_soon()
    worker.step()
    store.held_up = {"claim", "claim_suspect"}
    for _ in range(2):
        worker.claim_soon()
        worker.step()


def look_around(worker: Worker) -> None:
    worker.poll_soon()
    worker.step()


@pytest.mark.row(3)
@pytest.mark.parametrize("verb", ["claim", "claim_suspect"])
def test_jobs_of_a_claim_that_is_committed_after_it_was_looked_up_are_run(
    reconciler: Worker, late: Late, verb: str
) -> None:
    (job_id,) = enqueue(late)
    if verb == "claim_suspect":
        make_suspect(late, job_id)
    hold_up_a_claim(reconciler, late, verb)
    late.go_on()
    assert states(late, [job_id]) == ["running"]
    assert reconciler.running == {}

    look_around(reconciler)
    turn_until(reconciler, reconciler.is_idle)

    job = late.get(job_id)
    assert job is not None
    assert (job.state, job.attempt, job.crashes, job.errors) == ("done", 1, 0, ())


@pytest.mark.row(3)
def test_a_suspect_whose_claim_is_committed_late_runs_isolated(
    reconciler: Worker, late: Late, gate: Gate
) -> None:
    (suspect,) = enqueue(late)
    make_suspect(late, suspect)
    hold_up_a_claim(reconciler, late, "claim_suspect")
    late.held_up = set()
    (busy,) = late.enqueue([NewJob("wait")])
    # Not due yet: it would be claimed before the others.
    reconciler._suspects.next_try = float("inf")
    turn_until(reconciler, lambda: gate.entered)
    late.go_on()
    assert states(late, [suspect, busy]) == ["running", "running"]

    look_around(reconciler)

    job = late.get(suspect)
    assert job is not None
    assert (job.state, job.attempt, job.crashes, job.alone, job.errors) == ("queued", 0, 0, True, ())
    gate.set()
    turn_until(reconciler, lambda: states(late, [suspect, busy]) == ["done", "done"])


@pytest.mark.row(3)
def test_running_held_and_unwritten_jobs_do_not_count_as_a_late_claim(
    reconciler: Worker, late: Late, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[uuid.UUID] = []
    monkeypatch.setattr(late, "held", lambda worker, claim: queries.append(claim) or [])
    ended = enqueue(late)
    running = late.enqueue([NewJob("wait")])
    reconciler.step()
    eventually(lambda: gate.entered and reconciler.slots.ended)
    # One job runs, and the outcome of the other waits to be written. A whole turn would write it before it polls.
    late.held_up = {"settle"}
    reconciler.step()

    reconciler._reconcile(late.look(["*"], [], reconciler.id).held)

    assert queries == []
    assert states(late, [*ended, *running]) == ["running", "running"]


@pytest.mark.row(3)
def test_a_part_of_a_claim_that_is_committed_later_than_the_rest_is_found_too(
    reconciler: Worker, late: Late, gate: Gate
) -> None:
    (first,) = late.enqueue([NewJob("wait")])
    reconciler.step()
    eventually(lambda: gate.entered)
    (token,) = {job.claim for job in reconciler.running.values()}
    assert token is not None
    (second,) = enqueue(late)
    MemoryStore.claim(late, reconciler.id, token, ["*"], ["work"], 1)

    look_around(reconciler)

    assert {first, second} == set(reconciler.running)
    turn_until(reconciler, lambda: states(late, [second]) == ["done"])


@pytest.mark.row(10)
def test_a_stopping_worker_hands_back_the_jobs_of_an_uncertain_claim(reconciler: Worker, late: Late) -> None:
    (job_id,) = enqueue(late)
    hold_up_a_claim(reconciler, late)
    reconciler.stop()
    late.go_on()

    assert reconciler.release() == []

    job = late.get(job_id)
    assert job is not None
    assert (job.state, job.attempt, job.alone, job.errors) == ("queued", 0, False, ())


@pytest.mark.row(3)
def test_a_draining_worker_waits_for_an_uncertain_claim(reconciler: Worker, late: Late) -> None:
    (job_id,) = enqueue(late)
    hold_up_a_claim(reconciler, late)
    late.held_up = set()
    MemoryStore.cancel(late, job_id)

    assert not reconciler.drained()


@pytest.mark.row(3)
def test_jobs_of_a_claim_committed_after_its_worker_has_ended_are_rescued_without_a_crash(
    reconciler: Worker, late: Late, app: PgCron
) -> None:
    (job_id,) = enqueue(late)
    hold_up_a_claim(reconciler, late)
    reconciler.release()
    late.forget(reconciler.id)
    late.go_on()
    assert states(late, [job_id]) == ["running"]
    app.configure(poll="1h", lease="0.5s")
    other = make_worker(app, late)

    turn_until(other, lambda: look_around(other) or states(late, [job_id]) == ["done"])
    other.slots.close()

    job = late.get(job_id)
    assert job is not None
    assert (job.attempt, job.crashes, job.errors) == (1, 0, ())


@pytest.mark.row(7)
def test_jobs_of_a_claim_under_a_former_id_of_its_worker_are_rescued(
    late: Late, app: PgCron
) -> None:
    worker = make_worker(app, late)
    (job_id,) = enqueue(late)
    hold_up_a_claim(worker, late)
    late.reap([(worker.id, None)])
    worker.register_as(replace(worker.card, id=uuid.uuid4()))
    late.go_on()
    assert states(late, [job_id]) == ["running"]

    turn_until(worker, lambda: look_around(worker) or states(late, [job_id]) == ["done"])
    worker.slots.close()

    job = late.get(job_id)
    assert job is not None
    assert (job.attempt, job.crashes, job.errors) == (1, 0, ())


@pytest.mark.row(5)
@pytest.mark.parametrize("task", ["work", "fail"])
def test_an_outcome_that_is_committed_late_is_reported_once_and_as_ours(
    reconciler: Worker, late: Late, app: PgCron, task: str
) -> None:
    heard: list[str] = []
    app.task(fail, name="fail", backoff="1h")
    for event in ("job_done", "job_retrying", "job_lost"):
        app.on(event)(lambda job, event=event: heard.append(event))
    worker = make_worker(app, late)
    (job_id,) = late.enqueue([NewJob(task)])
    worker.step()
    eventually(lambda: worker.slots.ended)
    late.held_up = {"settle"}
    worker.step()
    late.go_on()

    turn_until(worker, worker.is_idle)
    worker.slots.close()

    assert heard == ["job_done" if task == "work" else "job_retrying"]
    job = late.get(job_id)
    assert job is not None
    assert (job.attempt, len(job.errors)) == (1, int(task == "fail"))


@pytest.mark.row(7)
def test_jobs_whose_claim_is_old_when_its_reply_is_read_are_handed_back(
    worker: Worker, store: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, released = store.claim, []

    def frozen_before_the_reply(*args: Any) -> list[Job]:
        jobs = claim(*args)
        monkeypatch.setattr(store, "claim", claim)
        # Longer than half a lease.
        time.sleep(0.3)
        return jobs

    worker.app.on("job_released")(lambda job: released.append(job.attempt))
    ids = enqueue(store, 2)
    monkeypatch.setattr(store, "claim", frozen_before_the_reply)

    turn_until(worker, lambda: states(store, ids) == ["done"] * 2)

    assert released == [1, 1]
    assert [job.attempt for job in map(store.get, ids) if job is not None] == [1, 1]


@pytest.mark.row(5)
def test_an_outcome_without_a_reply_is_recognized_as_ours(worker: Worker, store: Flaky) -> None:
    (job_id,) = enqueue(store)
    store.after = {"settle"}
    turn_until(worker, lambda: states(store, [job_id]) == ["done"])

    store.after = set()
    turn_until(worker, worker.is_idle)

    assert worker.report.lost == 0


@pytest.mark.row(16)
def test_outcomes_are_kept_during_an_outage(worker: Worker, store: Flaky) -> None:
    (job_id,) = enqueue(store)
    worker.step()
    store.before = {"claim", "claim_suspect", "settle"}
    worker._spread = lambda low, high: high
    eventually(lambda: worker.slots.ended)

    waits = [worker.step() for _ in range(12)]

    assert not worker.is_idle()
    assert max(waits) == MAX_PAUSE
    assert waits == sorted(waits)
    store.before = set()
    turn_until(worker, worker.is_idle)
    assert states(store, [job_id]) == ["done"]


@pytest.mark.row(7)
def test_the_outcome_of_a_job_that_another_worker_has_is_dropped_and_counted_once(
    worker: Worker, store: Flaky, gate: Gate
) -> None:
    lost = []
    worker.app.on("job_lost")(lambda job: lost.append(job.id))
    (job_id,) = store.enqueue([NewJob("wait")])
    worker.step()
    store.reap([(worker.id, None)])

    gate.set()
    turn_until(worker, lambda: worker.report.lost)

    assert lost == [job_id]
    job = store.get(job_id)
    assert job is not None
    assert (job.crashes, job.errors) == (0, ())


@pytest.mark.row(7)
def test_jobs_that_a_worker_claimed_after_it_was_declared_dead_move_to_its_new_id(
    worker: Worker, store: Flaky, gate: Gate
) -> None:
    store.reap([(worker.id, None)])
    (job_id,) = store.enqueue([NewJob("wait")])
    worker.step()
    old = worker.id
    card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 2, "threads", "0")

    worker.register_as(card)

    assert old not in store.look(["*"], []).pulses
    assert store.look(["*"], []).pulses == {card.id: 0}
    assert store.reap([(old, -1)]) == []
    gate.set()
    turn_until(worker, worker.is_idle)
    assert states(store, [job_id]) == ["done"]


@pytest.mark.row(7)
def test_a_worker_may_claim_a_job_again_that_it_still_runs_under_a_lost_claim(app: PgCron, store: Flaky) -> None:
    # After a freeze in which the worker was reaped: its job is due again, and only this worker has a free slot.
    gates = [threading.Event(), threading.Event()]
    entered: list[int] = []

    @app.task(name="twice")
    def twice() -> None:
        entered.append(1)
        gates[len(entered) - 1].wait(30)

    worker = make_worker(app, store)
    (job_id,) = store.enqueue([NewJob("twice")])
    worker.step()
    eventually(lambda: len(entered) == 1)
    store.reap([(worker.id, None)])
    worker.register_as(WorkerCard(uuid.uuid4(), "host", 1, ("*",), 2, "threads", "0"))
    clear_of_suspicion(store, job_id, "twice")
    turn_until(worker, lambda: len(entered) == 2)

    gates[0].set()
    turn_until(worker, lambda: worker.report.lost == 1)

    # The old run has ended and changed nothing; the new run is still ours.
    assert states(store, [job_id]) == ["running"]
    assert list(worker.running) == [job_id]
    assert [job.id for job in worker.release()] == [job_id]
    gates[1].set()
    eventually(lambda: worker.slots.busy == 0)
    worker.slots.close()


class Watching(MemoryStore):
    """Record, at each claim that returned jobs, how many outcomes were not written yet.

    While claims are pipelined, make the worker find a suspect, as after a rescue."""

    worker: Worker

    def __init__(self) -> None:
        super().__init__()
        self.unwritten: dict[str, list[int]] = {"claim": [], "claim_suspect": []}

    def claim(self, *args: Any) -> list[Job]:
        jobs = super().claim(*args)
        if jobs:
            self._note("claim")
        return jobs

    def claim_suspect(self, *args: Any) -> Job | None:
        job = super().claim_suspect(*args)
        if job is not None:
            self._note("claim_suspect")
        return job

    def _note(self, verb: str) -> None:
        self.unwritten[verb].append(len(self.worker.running))
        if len(self.worker.running) >= SERIES and not self.unwritten["claim_suspect"]:
            last = max(self._jobs)
            self._keep(replace(self._jobs[last], alone=True))
            self.worker._suspects.check_now()


def test_slots_get_jobs_before_outcomes_are_written_and_a_suspect_after(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not tested here: on a machine that pauses for a while, held jobs become stale, and with a short lease the worker
    # queries for suspects again, before which it writes all outcomes.
    monkeypatch.setattr(loop_module, "STALE_SECONDS", 60.0)
    app = PgCron("worker", url="memory://", lease="1h")
    app.task(do_nothing, name="work")
    store = Watching()
    store.worker = worker = make_worker(app, store)
    worker._prefetch.record([0.0] * WINDOW)
    enqueue(store, 6000)

    turn_until(worker, lambda: store.unwritten["claim_suspect"] and worker.is_idle())
    worker.slots.close()

    assert max(store.unwritten["claim"]) >= SERIES
    assert set(store.unwritten["claim_suspect"]) == {0}


@pytest.mark.row(18)
def test_a_suspect_runs_isolated(worker: Worker, store: Flaky, gate: Gate) -> None:
    (suspect,) = store.enqueue([NewJob("wait")])
    make_suspect(store, suspect)
    others = enqueue(store, 3)

    for _ in range(3):
        worker.claim_soon()
        worker.step()

    assert states(store, [suspect, *others]) == ["running", "queued", "queued", "queued"]
    gate.set()
    turn_until(worker, lambda: states(store, others) == ["done"] * 3)
    assert states(store, [suspect]) == ["done"]


@pytest.mark.row(18)
def test_many_suspects_run_in_sequence_without_a_pause(worker: Worker, store: Flaky) -> None:
    # All jobs of a killed worker become suspects.
    suspects = enqueue(store, 30)
    for suspect in suspects:
        make_suspect(store, suspect)
    naps = []

    def turned() -> bool:
        nap = worker.step()
        if not worker.running:
            naps.append(nap)
        return states(store, suspects) == ["done"] * 30

    eventually(turned)
    # It claims the next one without being woken: it expects more suspects.
    assert set(naps[:-1]) == {0.0}


@pytest.mark.row(18)
def test_a_busy_worker_stops_claiming_for_a_suspect(worker: Worker, store: Flaky, gate: Gate) -> None:
    (busy,) = store.enqueue([NewJob("wait")])
    worker.step()
    (suspect,) = enqueue(store)
    make_suspect(store, suspect)

    def holds_back() -> int | None:
        (late,) = enqueue(store)
        worker.claim_soon()
        worker.step()
        return late if states(store, [late]) == ["queued"] else None

    # It queries for suspects at intervals only. When there is one, it keeps its free slot free.
    late = eventually(holds_back)

    assert states(store, [busy, suspect, late]) == ["running", "queued", "queued"]
    gate.set()
    turn_until(worker, lambda: states(store, [late]) == ["done"])
    assert states(store, [suspect]) == ["done"]


def test_a_receiver_is_called_after_the_row_was_written(worker: Worker, store: Flaky) -> None:
    heard = []
    worker.app.on("job_done")(lambda job: heard.append(states(store, [job.id])))
    enqueue(store)

    turn_until(worker, lambda: heard)

    assert heard == [["done"]]


@pytest.mark.row(39)
def test_each_turn_records_its_time_so_that_a_hanging_loop_is_visible(worker: Worker) -> None:
    before = worker.turned_at
    eventually(lambda: time.monotonic() > before)

    worker.step()

    assert worker.turned_at > before


@pytest.mark.parametrize("count", [0, -1, 10_001, 2.5, "four", True, None])
def test_an_invalid_number_of_slots_is_refused(count: object) -> None:
    with pytest.raises(PgCronError, match="expected a whole number from 1 to 10000"):
        check_slots(count)


def make_suspect(store: MemoryStore, job_id: int) -> None:
    """Make the job a suspect: its worker has died while it ran another job too."""
    dead = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 1, "threads", "0")
    store.register(dead)
    task = store.get(job_id)
    assert task is not None
    MemoryStore.claim(store, dead.id, uuid.uuid4(), ["*"], [task.task], 1)
    store.reap([(dead.id, None)])
    assert store.suspects_due(["*"], [task.task])


def clear_of_suspicion(store: MemoryStore, job_id: int, task: str) -> None:
    """Let the suspect fail as an isolated run, so that it is claimed like any other job."""
    job = MemoryStore.claim_suspect(store, uuid.uuid4(), token := uuid.uuid4(), ["*"], [task])
    assert job is not None
    assert job.id == job_id
    assert MemoryStore.settle(store, [Outcome(job_id, token, "queued", delay=0.0)]) == {job_id}
