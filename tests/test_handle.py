import threading
from dataclasses import dataclass
from datetime import date

import pytest

from pgcron_lite import JobCancelled, JobFailed, PgCron, WaitTimeout
from pgcron_lite.process import run_worker


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


def test_wait_returns_the_result_as_soon_as_there_is_one(app: PgCron) -> None:
    handle = app.tasks["double"].delay(21)
    worker = threading.Thread(target=lambda: run_worker(app, drain=True))
    worker.start()

    assert handle.wait(timeout=10) == 42
    worker.join()


def test_a_failed_job_raises_its_error(app: PgCron) -> None:
    handle = app.tasks["fail"].delay()
    run_worker(app, drain=True)

    with pytest.raises(JobFailed, match="LookupError: nothing there"):
        handle.result()


def test_a_cancelled_job_raises_its_reason(app: PgCron) -> None:
    handle = app.tasks["double"].delay(1)

    assert handle.cancel()
    assert not handle.cancel()

    with pytest.raises(JobCancelled, match="by hand"):
        handle.wait(timeout=1)


def test_a_job_that_has_not_ended_has_no_result(app: PgCron) -> None:
    handle = app.tasks["double"].delay(1)

    with pytest.raises(WaitTimeout, match="is still queued"):
        handle.result()


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

    assert handle.result() == Order(7, date(2026, 3, 1))
