"""Slots: how many jobs run at once, which are taken back, and how slots survive what jobs do."""

import sys
import threading
import time
import uuid
from collections.abc import Iterator
from types import FrameType, FunctionType
from typing import Any

import pytest
from support import eventually

from pgcron_lite import PgCron, current_job
from pgcron_lite.job import Job, NewJob
from pgcron_lite.memory import MemoryStore
from pgcron_lite.worker.slots import Slots, SlotThread


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


def test_jobs_that_have_not_started_can_be_taken_back(app: PgCron, slots: Slots) -> None:
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


def test_threads_are_started_when_needed_and_reused(app: PgCron, slots: Slots) -> None:
    names = []

    @app.task(name="work")
    def work() -> None:
        names.append(threading.current_thread().name)

    for job in claimed(3):
        slots.put(job)
        eventually(lambda: slots.busy == 0)

    assert names == ["pgcron-slot-0"] * 3


# Waiting jobs, late jobs, and when the loop is woken


@pytest.fixture
def wakes() -> list[int]:
    """The number of ended jobs at each wake-up of the loop."""
    return []


@pytest.fixture
def single(app: PgCron, wakes: list[int]) -> Iterator[Slots]:
    """One slot, so that the order is fixed."""
    slots = Slots(app, 1, lambda: wakes.append(len(slots.ended)), lambda: False)
    yield slots
    slots.close()


@pytest.fixture
def gate(app: PgCron) -> Iterator[threading.Event]:
    """An event that the task `wait` waits for; `work` does nothing."""
    gate = threading.Event()
    app.task(lambda: gate.wait(30), name="wait")
    app.task(do_nothing, name="work")
    yield gate
    gate.set()


def test_the_loop_is_not_woken_before_enough_have_ended(single: Slots, wakes: list[int], gate: threading.Event) -> None:
    single.enough = 4
    single.put(*claimed(3), *claimed(1, "wait"), *claimed(1))
    eventually(lambda: single.waiting == 1 and len(single.ended) == 3)

    assert wakes == []
    gate.set()
    eventually(lambda: len(single.ended) == 5)

    # Once, when enough had ended. The loop collects the last one too when it comes.
    assert wakes == [4]


def test_with_no_job_waiting_each_end_wakes_the_loop(
    single: Slots, wakes: list[int], gate: threading.Event
) -> None:
    single.enough = 100

    for number in range(3):
        single.put(*claimed(1))
        eventually(lambda number=number: len(wakes) == number + 1)
        assert [ended.outcome.state for ended in single.collect()] == ["done"]

    assert wakes == [1, 1, 1]


def test_the_loop_is_woken_once_until_it_collects(single: Slots, wakes: list[int], gate: threading.Event) -> None:
    for number in range(4):
        single.put(*claimed(1))
        eventually(lambda number=number: len(single.ended) == number + 1)
    assert wakes == [1]

    assert len(single.collect()) == 4

    single.put(*claimed(1))
    eventually(lambda: len(wakes) == 2)
    assert wakes == [1, 1]


def test_finished_jobs_are_collected_once_and_in_order(single: Slots, gate: threading.Event) -> None:
    jobs = claimed(5)
    single.put(*jobs)
    eventually(lambda: len(single.ended) == 5)

    assert [ended.job for ended in single.collect()] == jobs
    assert single.collect() == []
    assert (single.busy, single.waiting, single.free) == (0, 0, 1)


def test_how_long_the_next_one_has_waited(single: Slots, gate: threading.Event) -> None:
    single.put(*claimed(1, "wait"))
    eventually(lambda: single.waiting == 0)
    now = time.monotonic()
    assert single.waited(now + 100) == 0.0

    single.put(*claimed(2))

    assert single.waited(now + 100) <= 100
    assert single.waited(time.monotonic() + 100) >= 100
    single.take_back()
    assert single.waited(time.monotonic() + 100) == 0.0
    # A claim over a slow connection takes long, but that time is not a wait for a slot.
    single.put(*claimed(1), since=now - 1000)
    assert single.waited(time.monotonic()) < 500


@pytest.mark.row(7)
def test_a_job_older_than_the_maximum_age_is_not_started(
    app: PgCron, wakes: list[int], gate: threading.Event
) -> None:
    slots = Slots(app, 2, lambda: wakes.append(0), lambda: False, max_age=-1.0)
    jobs = claimed(3)
    assert not slots.has_late

    slots.put(*jobs)
    eventually(lambda: slots.waiting == 0 and len(wakes) == 1)

    assert slots.has_late
    assert not slots.ended
    assert slots.busy == 3
    eventually(lambda: len(slots._late) == 3)
    assert sorted(job.id for job in slots.take_back()) == [job.id for job in jobs]
    assert (slots.busy, slots.has_late, slots.take_back()) == (0, False, [])
    slots.close()


def test_a_job_within_the_maximum_age_is_started(app: PgCron, gate: threading.Event) -> None:
    slots = Slots(app, 2, lambda: None, lambda: False, max_age=60.0)

    slots.put(*claimed(10))

    assert states(slots, 10) == ["done"] * 10
    assert not slots.has_late
    slots.close()


# Robustness against jobs


@pytest.mark.row(26)
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("all")], ids=repr)
def test_no_exception_of_a_task_ends_a_slot(app: PgCron, slots: Slots, error: BaseException) -> None:
    @app.task(name="work", max_attempts=1)
    def work() -> None:
        raise error

    for job in claimed(6):
        slots.put(job)

    assert states(slots, 6) == ["queued"] * 6
    eventually(lambda: slots.free == 2)


def test_context_variables_of_one_job_do_not_reach_the_next(app: PgCron, slots: Slots) -> None:
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
def test_an_error_that_cannot_be_described_does_not_end_a_slot(app: PgCron, slots: Slots) -> None:
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


class Late(BaseException):
    """An exception that another thread throws into a slot, for a job that has already ended."""


# The code of a slot's thread without `_run`: exceptions within `execute` belong to the task.
OWN_CODE = [f.__code__ for name, f in vars(Slots).items() if isinstance(f, FunctionType) and name != "_run"]


class Throws:
    """Raise `Late` once, before instruction `number` of the slots' own code.

    This covers every place where an exception thrown in by another thread can be raised.
    """

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> None:
        if sys.version_info < (3, 12):
            self.before = sys.gettrace()
            threading.settrace(self.trace)
            return
        # Since 3.12 a trace function misses instructions of code that is running when it asks for them.
        sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, "Throws")
        sys.monitoring.register_callback(
            sys.monitoring.DEBUGGER_ID, sys.monitoring.events.INSTRUCTION, lambda code, offset: self.count()
        )
        self.observe(sys.monitoring.events.INSTRUCTION)

    def __exit__(self, *error: object) -> None:
        if sys.version_info < (3, 12):
            threading.settrace(None)
            # All greenlets of a thread share one trace function.
            sys.settrace(self.before)
            return
        self.observe(sys.monitoring.events.NO_EVENTS)
        sys.monitoring.free_tool_id(sys.monitoring.DEBUGGER_ID)

    def observe(self, events: int) -> None:
        for code in OWN_CODE:
            sys.monitoring.set_local_events(sys.monitoring.DEBUGGER_ID, code, events)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code not in OWN_CODE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count()
        return self.trace

    def count(self) -> None:
        # The thread of the test is traced too.
        if self.left and isinstance(threading.current_thread(), SlotThread):
            self.left -= 1
            if not self.left:
                raise Late


# At the end of the thread nothing catches it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.row(26)
def test_an_exception_thrown_in_at_any_instruction_loses_neither_a_job_nor_a_slot(app: PgCron) -> None:
    app.task(do_nothing, name="work")
    number, came = 0, True

    while came:
        number += 1
        throws, jobs = Throws(number), claimed(3)
        seen = run_under(throws, app, jobs)

        assert sorted(job.id for job in seen) == [job.id for job in jobs], number
        came = not throws.left
    assert number > 100


def run_under(throws: Throws, app: PgCron, jobs: list[Job]) -> list[Job]:
    """Give jobs to a slot, the first one too late. Return those that ended or were handed back."""
    now, seen = [0.0], []
    slots = Slots(app, 1, lambda: None, lambda: False, max_age=50.0, clock=lambda: now[0])

    def are_all_there() -> bool:
        now[0] += 1.0
        seen.extend(ended.job for ended in slots.collect())
        seen.extend(slots.take_back() if slots.has_late else [])
        return len(seen) >= len(jobs)

    # Until the end: a thread reads the trace function some time after it has started.
    with throws:
        slots.put(jobs[0], since=-100.0)
        slots.put(*jobs[1:])
        eventually(are_all_there)
    slots.close()
    return seen
