import threading
from dataclasses import dataclass
from datetime import date, timedelta

import pytest

from pgcron_lite import JobCancelled, JobEnded, JobFailed, PgCron, PgCronError, WaitTimeout
from pgcron_lite.worker.process import run_worker


@pytest.fixture
def app() -> PgCron:
    app = PgCron("handles", url="memory://")
    app.task(double, name="double")
    app.task(fail, name="fail", max_attempts=1)
    return app


def double(n: int) -> int:
    return 2 * n


def fail() -> None:
    raise LookupError("nothing there")


def test_result_waits_and_returns_the_result_as_soon_as_there_is_one(app: PgCron) -> None:
    handle = app.tasks["double"].delay(21)
    worker = threading.Thread(target=lambda: run_worker(app, drain=True))
    worker.start()

    assert handle.result(timeout=10) == 42
    worker.join()


def test_a_failed_job_raises_its_error(app: PgCron) -> None:
    handle = app.tasks["fail"].delay()
    run_worker(app, drain=True)

    with pytest.raises(JobFailed, match="LookupError: nothing there"):
        handle.result(timeout=0)


def test_a_cancelled_job_raises_its_reason(app: PgCron) -> None:
    handle = app.tasks["double"].delay(1)

    assert handle.cancel()
    assert not handle.cancel()

    with pytest.raises(JobCancelled, match="by hand"):
        handle.result(timeout=1)


def test_a_job_that_has_not_ended_has_no_result(app: PgCron) -> None:
    handle = app.tasks["double"].delay(1)

    with pytest.raises(WaitTimeout, match="is still queued"):
        handle.result(timeout=0)


def test_a_timeout_is_an_error_of_its_own_and_does_not_say_that_the_job_has_ended(app: PgCron) -> None:
    handle = app.tasks["double"].delay(1)

    with pytest.raises(TimeoutError) as caught:
        handle.result(timeout=timedelta(milliseconds=1))

    assert isinstance(caught.value, PgCronError)
    assert not isinstance(caught.value, JobEnded)
    assert not handle.done()


@pytest.mark.parametrize(("name", "state"), [("double", "done"), ("fail", "failed")])
def test_a_job_is_done_once_it_has_ended_however_it_did(app: PgCron, name: str, state: str) -> None:
    handle = app.tasks[name].delay(*(1,) * (name == "double"))
    before = (handle.state(), handle.done())
    run_worker(app, drain=True)

    assert (*before, handle.state(), handle.done()) == ("queued", False, state, True)


def test_a_cancelled_job_is_done(app: PgCron) -> None:
    handle = app.tasks["double"].delay(1)
    handle.cancel()

    assert (handle.state(), handle.done()) == ("cancelled", True)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("get", r"result\(timeout='10s'\)"), ("wait", r"result\(timeout='10s'\)"), ("status", r"state\(\)"),
        ("ready", r"done\(\)"), ("revoke", r"cancel\(\)"),
    ],
)
def test_a_method_of_other_queues_is_translated(app: PgCron, name: str, call: str) -> None:
    with pytest.raises(AttributeError, match=rf"'{name}'; here it is handle\.{call}"):
        getattr(app.handle(1), name)

    with pytest.raises(AttributeError, match=r"a handle has no attribute 'other'$"):
        getattr(app.handle(1), "other")  # noqa: B009


def test_handles_of_one_job_are_equal(app: PgCron) -> None:
    handle = app.tasks["double"].delay(1)

    assert app.handle(handle.id) == handle
    assert len({app.handle(handle.id), handle}) == 1
    assert app.handle(handle.id + 1) != handle


@dataclass
class Order:
    number: int
    due: date


def place(number: int) -> Order:
    return Order(number, date(2026, 3, 1))


def test_a_result_comes_back_as_its_annotation_says(app: PgCron) -> None:
    handle = app.task(name="place")(place).delay(7)
    run_worker(app, drain=True)

    assert handle.result(timeout=0) == Order(7, date(2026, 3, 1))
