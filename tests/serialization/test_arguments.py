"""What a function is called with, from `delay()` to the worker, and what other producers may write."""

import dataclasses
import enum
import json
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest

from pgcron_lite.errors import PayloadError
from pgcron_lite.serialization.arguments import Arguments

LIMIT = 256 * 1024


def there_and_back(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What `function` returns when it is called with what is left of a call after storing."""
    arguments = Arguments(function, "task")
    again, named = arguments.loads(arguments.dumps(args, kwargs, LIMIT))
    return function(*again, **named)


def every_kind(a: Any, /, b: Any, c: Any = "c", *rest: Any, d: Any, e: Any = "e", **named: Any) -> Any:
    return a, b, c, rest, d, e, named


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, 2), {"d": 4}),
        ((1,), {"b": 2, "d": 4}),
        ((1, 2, 3), {"d": 4, "e": 5}),
        ((1, 2, 3, 4, 5), {"d": 4}),
        ((1, 2), {"d": 4, "x": 6, "y": 7}),
        ((1, 2), {"d": 4, "a": "a keyword of the name of a positional-only parameter"}),
        ((1, 2), {"d": 4, "rest": 1, "named": 2, "*rest": 3, "**named": 4}),
        ((1, 2, 3, 4), {"c ": 1, "d": None, "ü": "ü"}),
    ],
)
def test_every_kind_of_parameter_comes_back(args, kwargs):
    assert there_and_back(every_kind, *args, **kwargs) == every_kind(*args, **kwargs)


def test_the_order_of_the_parameters_may_change_while_jobs_wait():
    def before(x: int, y: int) -> int:
        return x - y

    def after(y: int, x: int) -> int:
        return x - y

    text = Arguments(before, "task").dumps((9, 4), {}, LIMIT)
    args, kwargs = Arguments(after, "task").loads(text)

    assert after(*args, **kwargs) == 5


def test_a_parameter_with_a_default_may_come_while_jobs_wait():
    def before(x: int) -> int:
        return x

    def after(x: int, y: int = 7) -> int:
        return x + y

    text = Arguments(before, "task").dumps((1,), {}, LIMIT)
    args, kwargs = Arguments(after, "task").loads(text)

    assert after(*args, **kwargs) == 8


def test_defaults_are_not_stored_but_taken_by_the_worker():
    def task(x: int, stamp: Any = object()) -> Any:  # noqa: B008 - what could not be stored
        return x

    assert json.loads(Arguments(task, "task").dumps((1,), {}, LIMIT)) == {"x": 1}
    assert there_and_back(task, 1) == 1


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ('{"y": 1}', "the job has no argument 'x'"),
        ('{"x": 1, "z": 2}', "the job has an argument 'z' that the function does not take"),
        ("[]", r"task\(x, y=2\) cannot be called with this job's array: missing a required argument: 'x'"),
        ("[1, 2, 3]", "too many positional arguments"),
    ],
)
def test_a_job_that_no_longer_fits_is_a_type_error_that_says_what_is_wrong(stored, words):
    def task(x, y=2):  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(TypeError, match=words):
        Arguments(task, "task").loads(stored)


@pytest.mark.parametrize("stored", ["7", '"x"', "null", "{", "[1"])
def test_what_is_no_call_at_all_cannot_be_read(stored):
    with pytest.raises(PayloadError):
        Arguments(every_kind, "task").loads(stored)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ('{"x": 1, "**named": 1}', r"args\.\*\*named: expected an object of further keyword arguments, got int"),
        ('{"x": 1, "**named": [["y", 2]]}', "expected an object of further keyword arguments, got list"),
        ('{"x": 1, "*rest": 1}', r"args\.\*rest: expected an array of further positional arguments, got int"),
        ('{"x": 1, "*rest": "abc"}', "expected an array of further positional arguments, got str"),
        ('{"x": 1, "*rest": {"a": 1}}', "expected an array of further positional arguments, got dict"),
        ('{"x": 1, "**named": {"x": 2}}', "the job has the argument 'x' twice"),
        ('{"x": 1, "y": 1, "**named": {"y": 2}}', "the job has the argument 'y' twice"),
    ],
)
def test_further_arguments_of_another_shape_cannot_be_read(stored: str, words: str) -> None:
    def task(x: int, *rest: int, **named: int) -> Any:
        return x, rest, named

    with pytest.raises(PayloadError, match=words):
        Arguments(task, "task").loads(stored)


def test_a_plain_array_of_another_producer_is_taken_by_position():
    def task(x: int, *rest: int) -> Any:
        return x, rest

    args, kwargs = Arguments(task, "task").loads("[1, 2, 3]")

    assert task(*args, **kwargs) == (1, (2, 3))


def test_names_of_another_producer_are_taken_into_the_keywords():
    def task(x: int, **named: int) -> Any:
        return x, named

    args, kwargs = Arguments(task, "task").loads('{"x": 1, "y": 2, "**named": {"z": 3}}')

    assert task(*args, **kwargs) == (1, {"y": 2, "z": 3})


# Values by annotation. The whole of it is in test_annotations; here is that calls get it.


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Order:
    number: int
    total: Decimal
    colour: Colour


def annotated(
    order: Order, /, when: datetime, days: list[date], *more: Order, colour: Colour = Colour.RED, **by_name: Order
) -> Any:
    return order, when, days, more, colour, by_name


def test_annotations_bring_values_back_wherever_the_parameter_stands():
    order = Order(1, Decimal("9.90"), Colour.RED)
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    back = there_and_back(annotated, order, now, [now.date()], order, colour=Colour.RED, other=order)

    assert back == (order, now, [now.date()], (order,), Colour.RED, {"other": order})


def test_tagged_values_come_back_without_annotations():
    def task(values):  # type: ignore[no-untyped-def]
        return values

    values = [uuid.UUID(int=7), timedelta(days=1, microseconds=1), b"\0\xff", Decimal("1.10"), date(2026, 1, 1)]

    assert there_and_back(task, values) == values


def test_a_forward_reference_may_name_what_comes_later():
    def task(order: "Later") -> Any:
        return order

    arguments = Arguments(task, "task")

    assert there_and_back(task, Later(3)) == Later(3)
    assert arguments.loads('{"order": {"number": 4}}') == ((Later(4),), {})


@dataclasses.dataclass
class Later:
    number: int


def test_an_annotation_that_cannot_be_resolved_costs_the_others_nothing():
    def task(order: Order, other: "Nowhere") -> Any:  # type: ignore[name-defined]  # noqa: F821
        return order, other

    order = Order(1, Decimal(1), Colour.RED)

    assert there_and_back(task, order, 7) == (order, 7)


def test_a_pydantic_model_comes_back():
    user = pydantic.create_model("User", name=(str, ...), age=(int, 3))

    def task(user: user) -> Any:  # type: ignore[valid-type]
        return user

    assert there_and_back(task, user(name="Ada")) == user(name="Ada", age=3)


def test_a_msgspec_struct_comes_back():
    user = msgspec.defstruct("User", [("name", str), ("born", date)])

    def task(user: user) -> Any:  # type: ignore[valid-type]
        return user

    assert there_and_back(task, user("Ada", date(1815, 12, 10))) == user("Ada", date(1815, 12, 10))


def test_a_call_that_is_too_large_is_refused():
    with pytest.raises(PayloadError, match="too large"):
        Arguments(every_kind, "task").dumps(("x" * 300_000, 2), {"d": 1}, LIMIT)
