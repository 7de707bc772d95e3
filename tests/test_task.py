"""Calls: here and now, later, with other options, and many at once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgcron_lite import PgCron
from pgcron_lite.calls import GivenOptions
from pgcron_lite.errors import OptionError, PayloadError
from pgcron_lite.serialization.arguments import CALL_OPTIONS
from pgcron_lite.worker import process


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


@pytest.fixture
def add(app: PgCron) -> Any:
    @app.task(name="add", queue="sums", priority=2, max_attempts=4)
    def add(x: int, y: int = 1) -> int:
        return x + y

    return add


def test_a_plain_call_runs_here_and_now(app, add):
    assert add(1, y=2) == 3
    assert app.store.next_due(["*"], ["add"]) is None


def test_delay_has_a_worker_run_it(app, add):
    handle = add.delay(1, y=2)

    assert handle.state() == "queued"
    process.run_worker(app, drain=True)
    assert handle.result(timeout=0) == 3


def test_a_task_calls_another_one(app, add):
    @app.task(name="twice")
    def twice(x: int) -> int:
        add.delay(x)
        return int(add(x, x))

    handle = twice.delay(4)
    process.run_worker(app, drain=True)

    assert (handle.result(timeout=0), app.handle(handle.id + 1).result(timeout=0)) == (8, 5)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, r"add\(x: int, y: int = 1\) -> int cannot be called like this: missing a required argument: 'x'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"z": 2}, "got an unexpected keyword argument 'z'"),
        ((1,), {"x": 2}, "multiple values for argument 'x'"),
    ],
)
def test_a_call_the_function_would_refuse_is_refused_at_delay(app, add, args, kwargs, words):
    with pytest.raises(TypeError, match=words):
        add.delay(*args, **kwargs)


def test_a_value_that_cannot_be_stored_is_refused_with_its_path(app):
    @app.task(name="order")
    def order(order: Any) -> None: ...

    with pytest.raises(PayloadError, match=r"args\.order\.lines\[1\]\.total"):
        order.delay({"lines": [{"total": 1}, {"total": object()}]})


def test_options_hold_for_the_calls_made_from_them_and_no_others(add):
    urgent = add.options(priority=9, queue="now", max_attempts=1, tags=["a"], headers={"h": "1"})

    plain, special = add.delay(1).job(), urgent.delay(1).job()

    assert (plain.queue, plain.priority, plain.max_attempts, plain.tags, dict(plain.headers)) == ("sums", 2, 4, (), {})
    assert (special.queue, special.priority, special.max_attempts) == ("now", 9, 1)
    assert (special.tags, dict(special.headers)) == (("a",), {"h": "1"})


def test_options_add_up_and_the_later_wins(add):
    job = add.options(priority=9, tags=["a"]).options(priority=0, tags=["b"]).delay(1).job()

    assert (job.priority, job.tags, job.queue) == (0, ("a", "b"), "sums")


def test_a_task_with_options_is_still_that_task(app, add):
    urgent = add.options(priority=9)

    assert (urgent(1), urgent.name, urgent.__name__, app.tasks["add"] is add) == (2, "add", "add", True)


@pytest.mark.parametrize("due", ["10m", timedelta(minutes=10), 600, 600.0])
def test_execute_after_counts_from_now(add, due):
    before = datetime.now(UTC)

    job = add.options(execute_after=due).delay(1).job()

    assert timedelta(0) <= job.execute_after - before - timedelta(minutes=10) < timedelta(minutes=1)


def test_execute_after_takes_a_moment(add):
    moment = datetime(2040, 1, 1, tzinfo=UTC)

    assert add.options(execute_after=moment).delay(1).job().execute_after == moment


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"execute_after": datetime(2040, 1, 1)}, "naive|time zone"),
        ({"execute_after": "soon"}, "execute_after"),
        ({"execute_after": object()}, "execute_after"),
        ({"priority": "high"}, "priority='high'"),
        ({"queue": "*"}, "queue="),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"tags": "import"}, r"tags='import': expected a list of words"),
        ({"tags": [""]}, "tags="),
        ({"tags": [7]}, "tags="),
        ({"tags": ["a\0"]}, "tags="),
        ({"headers": {"a": 1}}, "headers"),
    ],
)
def test_an_option_of_a_call_that_cannot_be_right_is_refused_where_it_is_made(add, options, words):
    with pytest.raises((OptionError, ValueError), match=words):
        add.options(**options)


def test_an_option_that_is_not_there_is_refused(add):
    with pytest.raises(OptionError, match="no option 'prority'; did you mean 'priority'"):
        add.options(prority=1)


def test_map_takes_tuples_and_dicts(app, add):
    handles = add.map([(1,), (1, 2), {"x": 5}, {"x": 5, "y": 5}])
    process.run_worker(app, drain=True)

    assert [handle.result(timeout=0) for handle in handles] == [2, 3, 6, 10]


def test_map_takes_the_values_of_a_single_parameter(app):
    @app.task(name="double")
    def double(value, /):
        return value * 2

    handles = double.map([1, "ab", [3], 0, (4,)])
    process.run_worker(app, drain=True)

    assert [handle.result(timeout=0) for handle in handles] == [2, "abab", [3, 3], 0, 8]


@pytest.mark.parametrize("calls", ["ab", b"ab", {"x": 1}])
def test_map_refuses_what_would_be_taken_apart(add, calls):
    with pytest.raises(TypeError, match=r"map\(.*expected a list of calls"):
        add.map(calls)


@pytest.mark.parametrize("call", [1, "ab", [1, 2]])
def test_map_refuses_a_value_for_a_task_with_several_parameters(add, call):
    with pytest.raises(TypeError, match=r"map\(\): item 1 is .*expected a tuple of arguments"):
        add.map([(1,), call])


def test_map_takes_a_generator_and_nothing_at_all(add):
    assert len(add.map((n,) for n in range(3))) == 3
    assert add.map([]) == []


def test_map_keeps_the_options(add):
    assert {handle.job().priority for handle in add.options(priority=7).map([(1,), (2,)])} == {7}


@pytest.mark.parametrize("calls", [[1, 2], ["ab"], [[1, 2]], [None]])
def test_an_item_that_is_no_call_is_refused_with_its_place(add, calls):
    with pytest.raises(TypeError, match=r"map\(\): item 0 is .*; expected a tuple of arguments"):
        add.map(calls)


def test_one_bad_call_in_a_map_enqueues_none(app, add):
    with pytest.raises(TypeError, match="missing a required argument"):
        add.map([(1,), ()])

    assert app.store.get(1) is None


def test_the_options_that_delay_recognises_as_misplaced_are_those_of_a_call():
    assert set(CALL_OPTIONS) == set(GivenOptions.__annotations__)
