"""Log lines about jobs: their content, and the traceback of a failure."""

import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pgcron_lite import PgCron, RetryOn
from pgcron_lite.worker.logs import formatter


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The records that reach a handler of the root logger."""
    seen: list[logging.LogRecord] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = seen.append  # type: ignore[method-assign]
    root, logger = logging.getLogger(), logging.getLogger("pgcron_lite.jobs")
    level = logger.level
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield seen
    root.removeHandler(handler)
    logger.setLevel(level)


def ended(records: list[logging.LogRecord]) -> list[logging.LogRecord]:
    return [record for record in records if record.name == "pgcron_lite.jobs"]


def test_a_failure_is_logged_with_the_exception_and_its_traceback(app: PgCron, records: Any) -> None:
    error = ValueError("bad input")

    @app.task(name="work", max_attempts=2, backoff=0)
    def work() -> None:
        raise error

    with app.testing() as t:
        work.delay()
        t.drain()
        t.advance("1s")

    again, failed = ended(records)
    assert (again.levelname, failed.levelname) == ("WARNING", "ERROR")
    for record in (again, failed):
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert record.exc_text.endswith("ValueError: bad input")
        assert "in work" in record.exc_text


def test_an_exception_that_cannot_be_formatted_is_still_reported(app: PgCron, records: Any) -> None:
    class Ambush(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    @app.task(name="work", max_attempts=1)
    def work() -> None:
        raise Ambush

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter("text"))
    logging.getLogger("pgcron_lite.jobs").addHandler(handler)
    try:
        with app.testing() as t:
            work.delay()
            t.drain()
    finally:
        logging.getLogger("pgcron_lite.jobs").removeHandler(handler)

    assert "failed for good" in stream.getvalue()
    assert [record.levelname for record in ended(records)] == ["ERROR"]


def test_the_log_line_shows_the_limit_of_a_rule_that_allows_fewer_attempts(app: PgCron, records: Any) -> None:
    @app.task(
        name="work", max_attempts=2,
        retry=[RetryOn(KeyError, max_attempts=3, backoff=0), RetryOn(OSError, max_attempts=6, backoff=0)],
    )
    def work() -> None:
        raise KeyError("gone")

    with app.testing() as t:
        work.delay()
        for _ in range(4):
            t.drain()
            t.advance("1s")

    said = [record.getMessage() for record in ended(records)]
    assert [line.split(")")[0].split("#")[1].split(" ", 1)[1] for line in said] == [
        "(attempt 1/3", "(attempt 2/3", "(attempt 3/3"
    ]


def test_a_run_of_a_schedule_names_it_where_the_task_serves_several(app: PgCron, records: Any) -> None:
    @app.task(name="work")
    def work(x: int = 0) -> None:
        pass

    app.every("10s", name="nightly", args=(1,))(work)

    with app.testing(at="2026-03-01 12:00") as t:
        t.advance("11s")

    assert "work#" in ended(records)[0].getMessage()
    assert " of nightly (attempt 1/5) done" in ended(records)[0].getMessage()


def test_a_waiting_run_is_not_logged_every_second(app: PgCron, records: Any) -> None:
    @app.every("2s", name="sync", overlap="queue")
    def sync() -> None:
        pass

    with app.testing(at="2026-03-01 12:00") as t:
        t.takes(sync, "7s")
        t.advance("30s")

    assert ended(records)
    assert {record.outcome for record in ended(records)} == {"done"}  # type: ignore[attr-defined]
