"""The places where jobs run: how many at once, what is taken back, and what no job can do to them."""

import threading
import uuid
from collections.abc import Iterator

import pytest
from support import eventually

from pgcron_lite import PgCron, current_job
from pgcron_lite.job import Job, NewJob
from pgcron_lite.memory import MemoryStore
from pgcron_lite.slots import Slots


@pytest.fixture
def app() -> PgCron:
    return PgCron("slots", url="memory://")


@pytest.fixture
def slots(app: PgCron) -> Iterator[Slots]:
    slots = Slots(app, 2, lambda: None, lambda: False)
    yield slots
    slots.close()


def claimed(count: int, task: str = "work") -> list[Job]:
    store = MemoryStore()
    store.enqueue([NewJob(task) for _ in range(count)])
    return store.claim(uuid.uuid4(), uuid.uuid4(), ["*"], [task], count)


def states(slots: Slots, count: int) -> list[str]:
    eventually(lambda: len(slots.ended) == count)
    return [ended.outcome.state for ended in slots.ended]


def test_jobs_run_and_wait_to_be_collected(app: PgCron, slots: Slots) -> None:
    app.task(do_nothing, name="work")

    for job in claimed(5):
        slots.put(job)

    assert states(slots, 5) == ["done"] * 5
    eventually(lambda: slots.free == 2)


def do_nothing() -> None:
    """A task that does nothing."""


def test_no_more_jobs_run_at_once_than_there_are_slots(app: PgCron, slots: Slots) -> None:
    gate, inside = threading.Event(), []

    @app.task(name="work")
    def work() -> None:
        inside.append(current_job.id)
        gate.wait(30)

    for job in claimed(4):
        slots.put(job)
    eventually(lambda: len(inside) == 2)

    assert (slots.busy, slots.free, len(inside)) == (4, 0, 2)
    gate.set()
    assert states(slots, 4) == ["done"] * 4


def test_what_has_not_begun_can_be_taken_back(app: PgCron, slots: Slots) -> None:
    gate, inside = threading.Event(), []

    @app.task(name="work")
    def work() -> None:
        inside.append(current_job.id)
        gate.wait(30)

    jobs = claimed(5)
    for job in jobs:
        slots.put(job)
    eventually(lambda: len(inside) == 2)

    back = slots.take_back()

    assert {job.id for job in back} == {job.id for job in jobs} - set(inside)
    assert slots.busy == 2
    gate.set()
    assert states(slots, 2) == ["done"] * 2


def test_threads_are_started_as_they_are_needed_and_used_again(app: PgCron, slots: Slots) -> None:
    names = []

    @app.task(name="work")
    def work() -> None:
        names.append(threading.current_thread().name)

    for job in claimed(3):
        slots.put(job)
        eventually(lambda: slots.busy == 0)

    assert names == ["pgcron-slot-0"] * 3


@pytest.mark.row(26)
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("all")], ids=repr)
def test_nothing_that_a_task_raises_ends_a_slot(app: PgCron, slots: Slots, error: BaseException) -> None:
    @app.task(name="work", max_attempts=1)
    def work() -> None:
        raise error

    for job in claimed(6):
        slots.put(job)

    assert states(slots, 6) == ["queued"] * 6
    eventually(lambda: slots.free == 2)


def test_what_a_job_sets_in_its_context_does_not_reach_the_next(app: PgCron, slots: Slots) -> None:
    import contextvars

    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen = []

    @app.task(name="work")
    def work() -> None:
        seen.append(user.get())
        user.set("somebody")

    for job in claimed(3):
        slots.put(job)
        eventually(lambda: slots.busy == 0)

    assert seen == ["nobody"] * 3


@pytest.mark.row(26)
def test_an_error_that_can_be_neither_told_nor_measured_ends_no_slot(app: PgCron, slots: Slots) -> None:
    class Ambush(str):
        def __format__(self, how: str) -> str:
            raise SystemExit

        def __len__(self) -> int:
            raise SystemExit

    class Untold(Exception):
        def __str__(self) -> str:
            return Ambush("text")

    @app.task(name="work")
    def work() -> None:
        raise Untold

    for job in claimed(3):
        slots.put(job)

    assert states(slots, 3) == ["queued"] * 3
    assert {ended.outcome.error["error"] for ended in slots.ended if ended.outcome.error} == {"Untold: text"}
