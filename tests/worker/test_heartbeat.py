"""The reaper: which workers are declared dead, and after how long. The test moves the reaper's clock."""

import uuid
from typing import Any

import pytest

from pgcron_lite.job import NewJob, WorkerCard
from pgcron_lite.worker.heartbeat import Reaper

ME, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
LEASE = 30.0


class Watch:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def watch() -> Watch:
    return Watch()


def holding(store: Any, worker: uuid.UUID) -> int:
    """Register a worker that runs a job. Return the job's id."""
    store.register(WorkerCard(worker, "box", 7, ("*",), 1, "threads", "1"))
    [job_id] = store.enqueue([NewJob("add")])
    store.claim(worker, uuid.uuid4(), ["*"], ["add"], 1)
    return int(job_id)


def look(reaping: Reaper, watch: Watch, after: float) -> list[int]:
    """Step the reaper `seconds` after its last step. Return the rescued jobs."""
    watch.seconds += after
    return [job.id for job in reaping.step(ME, reaping._store.look(["*"], []).pulses)]


def test_a_worker_is_dead_when_its_heartbeat_was_unchanged_for_an_observed_lease(store: Any, watch: Watch) -> None:
    job_id = holding(store, OTHER)
    reaping = Reaper(store, LEASE, watch)

    assert [look(reaping, watch, after) for after in (0, 29.9, 0.1)] == [[], [], [job_id]]


def test_silence_before_the_first_observation_does_not_count(store: Any, clock: Any, watch: Watch) -> None:
    """As after an outage without heartbeats, or a jump of the database's clock."""
    holding(store, OTHER)
    clock.advance(86_400)

    assert look(Reaper(store, LEASE, watch), watch, 86_400) == []
    assert store.look(["*"], []).pulses == {OTHER: 0}


def test_a_heartbeat_restarts_the_observation(store: Any, watch: Watch) -> None:
    job_id = holding(store, OTHER)
    reaping = Reaper(store, LEASE, watch)
    look(reaping, watch, 0)
    look(reaping, watch, 29)
    store.beat(OTHER)

    assert [look(reaping, watch, after) for after in (1, 29, 1)] == [[], [], [job_id]]


@pytest.mark.parametrize("silence", [1.0, 500.0])
def test_a_new_connection_restarts_the_observation(store: Any, watch: Watch, silence: float) -> None:
    """However long the reconnect took: while the database was away there were no heartbeats."""
    job_id = holding(store, OTHER)
    reaping = Reaper(store, LEASE, watch)
    look(reaping, watch, 0)
    look(reaping, watch, 29)
    store.close()
    if store.schema == "memory":
        store.generation += 1

    assert [look(reaping, watch, after) for after in (silence, 29, 1)] == [[], [], [job_id]]


def test_jobs_of_a_worker_without_a_row_are_rescued_after_the_same_time(store: Any, watch: Watch) -> None:
    job_id = holding(store, OTHER)
    store.forget(OTHER)
    reaping = Reaper(store, LEASE, watch)

    assert [look(reaping, watch, after) for after in (0, 29.9, 0.1)] == [[], [], [job_id]]


def test_a_worker_never_reaps_itself(store: Any, watch: Watch) -> None:
    holding(store, ME)
    reaping = Reaper(store, LEASE, watch)

    assert [look(reaping, watch, after) for after in (0, 1000, 1000)] == [[], [], []]


def test_of_two_reapers_one_rescues(store: Any, watch: Watch) -> None:
    job_id = holding(store, OTHER)
    one, other = Reaper(store, LEASE, watch), Reaper(store, LEASE, watch)
    look(one, watch, 0)
    look(other, watch, 0)

    assert look(one, watch, 30) == [job_id]
    assert look(other, watch, 0) == []
