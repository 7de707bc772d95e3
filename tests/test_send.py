"""`app.send`: tasks that are enqueued by their name."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgcron_lite import OptionError, PayloadError, PgCron


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


@pytest.fixture
def producer(app: PgCron) -> PgCron:
    """An app on the same queue that knows no task."""
    other = PgCron("web", url="memory://")
    other._store = app.store
    return other


def test_a_registered_task_gets_its_own_options_and_checks(app: PgCron) -> None:
    @app.task(name="add", queue="sums", max_attempts=2)
    def add(x: int, y: int) -> int:
        return x + y

    job = app.send("add", args=[1], kwargs={"y": 2}, priority=7).job()

    assert (job.queue, job.max_attempts, job.priority, json.loads(job.args)) == ("sums", 2, 7, {"x": 1, "y": 2})
    with pytest.raises(TypeError, match=r"add\(.*cannot be called like this"):
        app.send("add", args=[1, 2, 3])


@pytest.mark.parametrize(
    ("call", "stored"),
    [
        ({"args": [1, 2]}, [1, 2]),
        ({"args": (1, 2)}, [1, 2]),
        ({"kwargs": {"x": 1, "y": 2}}, {"x": 1, "y": 2}),
    ],
)
def test_a_task_that_this_process_does_not_know_runs_where_it_is_known(
    app: PgCron, producer: PgCron, call: dict[str, Any], stored: Any
) -> None:
    @app.task(name="shop.add")
    def add(x: int, y: int) -> int:
        return x + y

    handle = producer.send("shop.add", **call)

    assert json.loads(handle.job().args) == stored
    assert app.run_worker(drain=True) == 0
    assert handle.result(0) == 3


def test_a_call_without_arguments_is_an_empty_object(producer: PgCron) -> None:
    assert producer.send("sweep").job().args == "{}"


def test_values_are_converted_as_the_worker_reads_them(app: PgCron, producer: PgCron) -> None:
    seen = []

    @app.task(name="note")
    def note(at: datetime, parts: tuple[int, ...], *rest: timedelta) -> None:
        seen.append((at, parts, rest))

    at = datetime(2026, 3, 1, tzinfo=UTC)
    producer.send("note", args=[at, (1, 2), timedelta(1), timedelta(2)])
    assert app.run_worker(drain=True) == 0

    assert seen == [(at, (1, 2), (timedelta(1), timedelta(2)))]


def test_options_are_those_of_any_call(producer: PgCron) -> None:
    job = producer.send(
        "add", [1, 2], queue="sums", priority=3, max_attempts=9, tags=["x"], headers={"a": "b"}, execute_after="1h"
    ).job()

    assert (job.queue, job.priority, job.max_attempts, job.tags, job.headers) == ("sums", 3, 9, ("x",), {"a": "b"})
    assert job.execute_after - job.created_at == timedelta(hours=1)


def test_a_default_job_is_one_of_a_task_without_options(app: PgCron, producer: PgCron) -> None:
    app.task(name="add")(lambda x: x)
    known, unknown = app.tasks["add"].delay(1).job(), producer.send("add", kwargs={"x": 1}).job()

    for name in ("args", "queue", "priority", "max_attempts", "max_crashes", "headers", "tags"):
        assert getattr(known, name) == getattr(unknown, name)


def test_hooks_see_the_job(producer: PgCron) -> None:
    seen = []

    @producer.on("job_enqueuing")
    def stamp(task: str, headers: dict[str, str]) -> None:
        headers["by"] = task

    @producer.on("job_enqueued")
    def note(task: str, job_id: int) -> None:
        seen.append((task, job_id))

    handle = producer.send("add", [1])

    assert seen == [("add", handle.id)]
    assert handle.job().headers == {"by": "add"}


def test_arguments_by_position_and_by_name_need_the_parameters(producer: PgCron) -> None:
    with pytest.raises(OptionError, match=r"send\('add', \.\.\.\): .*either by position.* or by name"):
        producer.send("add", [1], {"y": 2})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"args": "text"}, r"send\(args='text'\): expected a list"),
        ({"args": {"x": 1}}, r"expected a list, as in args=\[1, 2\]; names go to kwargs"),
        ({"args": 3}, "expected a list"),
        ({"kwargs": [1]}, "expected a dict of names"),
        ({"kwargs": {1: 2}}, "expected a dict of names"),
        ({"conn": None}, r"send\(conn=None\): expected your connection"),
        ({"eta": 3}, r"send\(\) has no option 'eta'; here it is execute_after"),
        ({"countdown": 3}, r"send\(\) has no option 'countdown'; here it is execute_after"),
        ({"queue": "a,b"}, "a queue's name has no comma"),
        ({"args": {3, 1}}, "expected a list"),
        ({"args": bytearray(b"ab")}, "expected a list"),
        ({"tags": None}, "tags=None: expected a list of words"),
        ({"headers": {"a": "\ud800"}}, "expected text for both"),
        ({"order_id": 7}, r"no option 'order_id'\. Arguments of the task go to args=\[\.\.\.\] or kwargs"),
    ],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_wrong_call_is_refused_alike(app: PgCron, producer: PgCron, is_known: bool, call: Any, says: str) -> None:
    app.task(name="add")(lambda x: x)

    with pytest.raises(OptionError, match=says):
        (app if is_known else producer).send("add", **call)


@pytest.mark.parametrize("name", ["", " add", None, 3, "__main__.add", "a\nb", ["add"]])
def test_what_is_no_name_of_a_task_is_refused(producer: PgCron, name: Any) -> None:
    with pytest.raises(OptionError, match="task="):
        producer.send(name)


def test_a_task_is_no_name_of_one(app: PgCron) -> None:
    add = app.task(name="add")(lambda x: x)

    with pytest.raises(OptionError, match=r"send\(<Task add>\): expected a task's name, here 'add'; or call its delay"):
        app.send(add, [1])  # type: ignore[arg-type]


def test_values_that_cannot_be_stored_are_refused_with_their_path(producer: PgCron) -> None:
    with pytest.raises(PayloadError, match=r"args\[1\]"):
        producer.send("add", [1, object()])
    with pytest.raises(PayloadError, match=r"args\.x"):
        producer.send("add", kwargs={"x": object()})
    with pytest.raises(PayloadError, match="too large"):
        producer.send("add", ["x" * 300_000])
