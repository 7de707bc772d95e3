"""What the annotation of a parameter adds: classes come back, or are refused when the job is made."""

import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, Union
from uuid import UUID

import msgspec
import pydantic
import pytest

from pgcron_lite.errors import PayloadError
from pgcron_lite.serialization.annotations import encode, hints_of, revive, shape_of
from pgcron_lite.serialization.json_codec import dumps, loads


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Size(IntEnum):
    SMALL = 1


class Word(StrEnum):
    YES = "yes"


class Planet(Enum):
    EARTH = (5.9, 6371)


class Right(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


@dataclass
class Order:
    id: UUID
    placed: datetime
    lines: list[Line]
    colour: Colour | None = None
    notes: dict[str, Line] = field(default_factory=dict)
    box: tuple[int, int] = (0, 0)


@dataclass
class Priority(Order):
    rank: int = 0


@dataclass
class Node:
    value: int
    after: "Node | None" = None


@dataclass
class Seconds:
    minutes: int
    seconds: int = field(init=False, default=0)


@dataclass
class Secret:
    salt: InitVar[int]
    value: int = 0


@dataclass
class Even:
    value: int

    def __post_init__(self):
        if self.value % 2:
            raise LookupError("odd")


class Address(pydantic.BaseModel):
    city: str
    colour: Colour = Colour.RED
    url: pydantic.HttpUrl | None = None
    ip: IPv4Address | None = None
    moved: datetime | None = None
    tags: set[str] = set()
    by_number: dict[int, str] = {}
    street: str = pydantic.Field(default="", alias="streetName")


class Person(pydantic.BaseModel):
    address: Address


class Login(pydantic.BaseModel):
    password: pydantic.SecretStr


class Halved(pydantic.BaseModel):
    name: str = ""
    hidden: str = pydantic.Field(default="", exclude=True)


class Event(msgspec.Struct):
    at: datetime
    colour: Colour
    numbers: set[int] = set()
    names: dict[int, str] = {}
    raw: bytes = b""
    span: timedelta = timedelta(0)


UserId = NewType("UserId", int)
Painted = NewType("Painted", Colour)
NOW = datetime(2026, 3, 1, 9, tzinfo=UTC)
ORDER = Order(UUID(int=1), NOW, [Line("a", Decimal("1.10"))], Colour.GREEN, {"x": Line("b", Decimal(2))}, (1, 2))


def sent(value, annotation):
    """`value` as the worker gets it."""
    text = dumps({"x": encode(value, annotation, "args.x")})
    return revive(loads(text)["x"], annotation, path="args.x")


@pytest.mark.row(114)
@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Colour.RED, Colour),
        (Colour.RED, Colour | None),
        (None, Optional[Colour]),  # noqa: UP045
        (None, Colour),
        (Size.SMALL, Size),
        (Word.YES, Word),
        (Planet.EARTH, Planet),
        (Right.READ | Right.WRITE, Right),
        (Colour.RED, Painted),
        (Colour.RED, Annotated[Colour, []]),
        (Colour.RED, Literal[Colour.RED, "red"]),
        ("red", Literal[Colour.RED, "red"]),
        (Colour.RED, Colour | str),
        ("red", Colour | str),
        ("red", Union[str, Colour]),  # noqa: UP007
        (5, Colour | int),
        ([Colour.RED, Colour.GREEN], list[Colour]),
        ([Colour.RED, None, "plain"], list[Colour | str | None]),
        ([Colour.RED], Sequence[Colour]),
        ([[Colour.RED]], typing.List[typing.List[Colour]]),  # noqa: UP006
        ([Colour.RED], Colour | list[Colour]),
        (Colour.RED, Colour | list[Colour]),
        ({"a": Colour.RED}, dict[str, Colour]),
        ({"a": [Colour.RED]}, Mapping[str, Sequence[Colour]]),
        ({"a": Point(1)}, dict[str, Point] | Point),
        (Point(1), dict[str, Point] | Point),
        ({Colour.RED}, set[Colour]),
        (frozenset({Line("a", Decimal(1))}), frozenset[Line]),
        ({Colour.RED}, set[Colour] | list[Colour]),
        ([Colour.RED], set[Colour] | list[Colour]),
        ({Colour.RED}, typing.AbstractSet[Colour] | None),
        (frozenset({Colour.RED}), set[Colour] | frozenset[Colour] | str),
        ({frozenset({Colour.RED})}, set[frozenset[Colour]]),
        ({(1, Colour.RED)}, set[tuple[int, Colour]]),
        ({1, 2}, set[int]),
        ({1, 2}, set[int] | Colour),
        ((1, Colour.RED), tuple[int, Colour]),
        ((1, 2, 3), tuple[int, ...]),
        ((1, "a"), tuple),
        ((), tuple[Colour, ...]),
        (((1, 2), (3, 4)), tuple[tuple[int, int], ...]),
        (Point(1, Colour.GREEN), Point),
        (ORDER, Order),
        ([ORDER], list[Order] | None),
        (ORDER, Order | Line | Colour),
        (Line("a", Decimal(1)), Order | Line | Colour),
        (Node(1, Node(2, Node(3))), Node),
        (Person(address=Address(city="Bonn", streetName="Markt")), Person),
        (
            Address(
                city="Bonn", colour="green", url="https://example.com/a", ip="10.0.0.1", moved=NOW, tags={"a"},
                by_number={1: "one"},
            ),
            Address,
        ),
        (Person(address=Address(city="Bonn")), Person | Order),
        (Event(NOW, Colour.RED, {1, 2}, {1: "one"}, b"\0\xff", timedelta(days=1)), Event),
        ([Event(NOW, Colour.RED)], list[Event] | None),
    ],
)  # fmt: skip
def test_what_the_annotation_names_comes_back(value, annotation):
    found = sent(value, annotation)

    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "annotation", [None, Any, int, str, object, "Later", UserId, list, list[int], dict[str, Any], int | None, Iterable,
                   datetime, typing.TypeVar("T"), type[Colour], typing.Callable[[Colour], int], Literal["a"]],
)  # fmt: skip
def test_a_plain_annotation_costs_nothing_and_changes_nothing(annotation):
    value = {"a": [1, (2,)]}

    assert shape_of(annotation) is None
    assert encode(value, annotation, "args.x") is value
    assert revive(value, annotation, path="args.x") is value


def test_on_the_wire_a_class_is_named_by_its_tag():
    assert dumps(encode(Colour.RED, Colour, "x")) == '{"$enum":["Colour","red"]}'
    assert dumps(encode(Line("a", Decimal(1)), Line, "x")) == (
        '{"$object":["Line",{"sku":"a","price":{"$decimal":"1"}}]}'
    )


def test_a_field_that_the_constructor_does_not_take_is_kept():
    value = Seconds(2)
    value.seconds = 120

    assert sent(value, Seconds) == value


def test_a_class_may_be_renamed_while_jobs_wait():
    assert revive({"$enum": ["Color", "red"]}, Colour, path="args.x") is Colour.RED


def test_other_producers_write_plain_values():
    order = {
        "id": {"$uuid": str(UUID(int=1))}, "placed": {"$datetime": "2026-03-01T09:00:00Z"}, "colour": "green",
        "lines": [{"sku": "a", "price": {"$decimal": "1.10"}}],
        "notes": {"x": {"sku": "b", "price": {"$decimal": "2"}}},
        "box": [1, 2],
    }  # fmt: skip

    assert revive(loads(json.dumps(order)), Order, path="args.order") == ORDER
    assert revive("red", Colour, path="args.x") is Colour.RED
    assert revive([1, 1, 2], set[int], path="args.x") == {1, 2}
    assert revive({"city": "Bonn"}, Address, path="args.x") == Address(city="Bonn")


def test_a_plain_value_for_an_annotated_parameter_is_checked_when_the_job_is_made():
    assert sent("red", Colour) is Colour.RED
    with pytest.raises(PayloadError, match=r"^args\.x: 'amber' is no Colour; expected one of 'red', 'green'\.$"):
        encode("amber", Colour, "args.x")
    with pytest.raises(PayloadError, match=r"^args\.x\[0\]: .* is no Colour"):
        encode([10**5_000], list[Colour], "args.x")


@pytest.mark.row(114)
@pytest.mark.parametrize(
    "value", [Colour.RED, Line("a", Decimal(1)), Point(1), Address(city="a"), Event(NOW, Colour.RED)]
)
@pytest.mark.parametrize("annotation", [None, Any, list[Any], "Later", str | int])
def test_a_class_that_no_annotation_names_is_refused(value, annotation):
    with pytest.raises(PayloadError, match=rf"^args\.x: .*annotated with {type(value).__name__} .*Annotate"):
        sent(value, annotation)


@pytest.mark.parametrize("annotation", [Order, Order | None, list[Order] | Order])
def test_a_subclass_would_come_back_as_its_base_and_is_refused(annotation):
    with pytest.raises(PayloadError, match=r"args\.x.*Priority"):
        sent(Priority(UUID(int=1), NOW, []), annotation)


def test_a_naive_datetime_deep_in_a_dataclass_is_refused_with_its_path():
    with pytest.raises(PayloadError, match=r"^args\.x\.placed: .* has no time zone"):
        sent(Order(UUID(int=1), datetime(2026, 3, 1), []), Order)


def test_what_the_constructor_wants_and_no_field_keeps_is_refused_early():
    with pytest.raises(PayloadError, match=r"^args\.x: Secret\(salt=\.\.\.\) is not kept in a field"):
        encode(Secret(1), Secret, "args.x")


def test_a_dataclass_that_contains_itself_is_refused():
    ring = Node(1)
    ring.after = ring

    with pytest.raises(PayloadError, match=r"^args\.x: .*contains itself"):
        encode(ring, Node, "args.x")


@pytest.mark.parametrize("model", [Login(password="a"), Halved(name="a", hidden="b")])
def test_a_model_that_would_lose_a_field_is_refused(model):
    with pytest.raises(PayloadError, match=r"^args\.x"):
        sent(model, type(model))


def test_a_model_that_hides_nothing_yet_is_accepted():
    assert sent(Halved(name="a"), Halved) == Halved(name="a")


WRONG = {
    "a missing field": (Line, {"sku": "a"}, "price"),
    "an unknown field": (Line, {"sku": "a", "price": 1, "tax": 2}, "no field 'tax'"),
    "no object": (Line, [1, 2], "expected an object of sku, price"),
    "a refusing constructor": (Even, {"value": 1}, "odd"),
    "no member": (Colour, "amber", "expected one of 'red', 'green'"),
    "an object for a member": (Colour, {"a": 1}, "is no Colour"),
    "a nested wrong member": (Order, {"id": 1, "placed": 1, "lines": [], "colour": 5}, "is no Colour"),
    "a model that does not validate": (Person, {"address": {"city": None}}, "address.city"),
    "a struct that does not convert": (Event, {"at": "yesterday"}, "Event"),
    "an unknown name in a union": (Line | Colour, {"$object": ["os.system", {}]}, "expected Line or Colour"),
    "a list in a set": (set[int], [[1]], "unhashable"),
    "a namedtuple of too much": (Point, {"x": 1, "y": 2}, "no field 'y'"),
}


@pytest.mark.row(119)
@pytest.mark.parametrize(("annotation", "stored", "what"), WRONG.values(), ids=WRONG)
def test_a_payload_that_does_not_fit_is_a_payload_error_with_its_path(annotation, stored, what):
    with pytest.raises(PayloadError) as refused:
        revive(stored, annotation, path="args.x")

    assert str(refused.value).startswith("args.x")
    assert what in str(refused.value)


@pytest.mark.row(119)
@pytest.mark.parametrize("annotation", [Colour, Order, Point, Address, Event, set[Colour], tuple[int, Colour],
                                        dict[str, Colour], Colour | Order | None, list[Order], Node])  # fmt: skip
@pytest.mark.parametrize("stored", [
    {"$enum": 5}, {"$enum": []}, {"$enum": [5, 5]}, {"$enum": ["Colour", []]}, {"$enum": ["Colour", {"a": 1}]},
    {"$object": ["set", 5]}, {"$object": ["set", [[]]]}, {"$object": ["Order", None]}, {"$object": ["Order", [1]]},
    {"$object": {}}, [{"$object": ["Node", {"after": 1}]}],
    5, "", [], {}, [[]], [[], 5], {"x": {}}, {"": None}, True, {1, 2}, date(2026, 3, 1), b"",
], ids=repr)  # fmt: skip
def test_any_stored_value_is_revived_passed_on_or_a_payload_error(annotation, stored):
    try:
        revive(stored, annotation, path="args.x")
    except PayloadError as error:
        assert str(error).startswith("args.x")  # noqa: PT017


def test_two_classes_of_one_name_in_a_union_are_refused():
    def another():
        return Enum("Colour", {"BLUE": "blue"})

    with pytest.raises(PayloadError, match="two classes named Colour"):
        encode(Colour.RED, Union[Colour, another()], "args.x")  # noqa: UP007


def test_an_annotation_only_the_type_checker_can_see_does_not_cost_the_others_theirs():
    def paint(colour: "Colour", shade: "OnlyForTyping", order: Order) -> "Colour": ...  # noqa: F821

    @dataclass
    class Job:
        colour: "Colour"
        shade: "OnlyForTyping" = None  # noqa: F821

    assert hints_of(paint) == {"colour": Colour, "order": Order, "return": Colour}
    assert sent(Job(Colour.RED), Job) == Job(Colour.RED)


@pytest.mark.parametrize("annotation", [set[int], frozenset[int], set[int] | None, set])
def test_a_list_of_too_many_numbers_becomes_no_set(annotation: Any) -> None:
    with pytest.raises(PayloadError, match="a set of 12,000 items"):
        revive([n * (2**61 - 1) for n in range(1, 12_001)], annotation, path="args.n")
    with pytest.raises(PayloadError, match="a set of 12,000 items"):
        encode(list(range(12_000)), annotation, "args.n")
