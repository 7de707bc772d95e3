"""Whatever `dumps` accepts comes back equal, and of the same type; whatever it does not is refused with its path."""

from __future__ import annotations

import contextlib
import json
import math
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from pgcron_lite.errors import PayloadError
from pgcron_lite.serialization import json_codec
from pgcron_lite.serialization.json_codec import MAX_DEPTH, MAX_DIGITS, dumps, loads


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Word(StrEnum):
    YES = "yes"


@dataclass
class Order:
    id: int


class Point(NamedTuple):
    x: int


class Row:
    __table__ = "orders"


class Proxy:
    """Claims another class, as Flask's proxies do, and raises at the touch, as they do outside a request."""

    @property
    def __class__(self):
        return str

    def __getattr__(self, name):
        raise RuntimeError("working outside of request context")


def nested(levels, innermost=1):
    value = innermost
    for _ in range(levels):
        value = [value]
    return value


def same(left, right):
    """Equal, also in the types inside, the sign of zero and the order of keys."""
    return type(left) is type(right) and repr(left) == repr(right)


# The round trip.

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
keys = texts | st.sampled_from(["$", "$$", "$date", "$$date", "$set", "$enum", "$object"])
atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.dates()
    | st.times().map(lambda time: time.replace(fold=0))
    | st.timedeltas()
    | st.uuids()
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.datetimes(timezones=st.integers(-80_000, 80_000).map(lambda s: timezone(timedelta(seconds=s)))).map(
        lambda moment: moment.replace(fold=0)
    )
)
members = st.recursive(
    st.integers() | texts | st.dates() | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2),
    max_leaves=4,
)
values = st.recursive(
    atoms | st.sets(members, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.row(114)
@given(values)
def test_what_is_written_is_read_back_equal(value):
    found = loads(dumps(value))

    assert found == value
    assert dumps(found) == dumps(value)


@given(st.recursive(atoms, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=12))
def test_types_the_sign_of_zero_and_the_order_of_keys_are_kept(value):
    assert same(loads(dumps(value)), value)


@given(values)
def test_the_quick_way_and_the_walk_write_the_same(value):
    quick = json_codec._quick(value)

    assert quick is None or quick == json_codec._walked(value, "args")


@pytest.mark.row(117)
@pytest.mark.parametrize(
    "value", [2**53 + 1, -(10**4299), 1e22, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 1.0, True, "ü\u2028😀", ""]
)
def test_numbers_and_texts_come_back_exactly(value):
    assert same(loads(dumps([value])), [value])
    assert same(loads(json_codec._walked([value], "args")), [value])


@pytest.mark.row(114)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 3, 1, 9, 30, tzinfo=UTC), '{"$datetime":"2026-03-01T09:30:00+00:00"}'),
        (date(2026, 3, 1), '{"$date":"2026-03-01"}'),
        (time(9, 30), '{"$time":"09:30:00"}'),
        (timedelta(days=-1, microseconds=1), '{"$timedelta":[-1,0,1]}'),
        (UUID(int=1), '{"$uuid":"00000000-0000-0000-0000-000000000001"}'),
        (Decimal("1.10"), '{"$decimal":"1.10"}'),
        (Decimal("1E+1000000"), '{"$decimal":"1E+1000000"}'),
        (b"\0\xff", '{"$bytes":"AP8="}'),
        ({3, 1}, '{"$set":[1,3]}'),
        (frozenset({("a", 1)}), '{"$frozenset":[{"$tuple":["a",1]}]}'),
        ({"$date": "mine"}, '{"$$date":"mine"}'),
        ({"$date": "mine", "b": 1}, '{"$date":"mine","b":1}'),
    ],
)
def test_what_json_has_no_word_for_is_written_under_a_tag(value, text):
    assert dumps(value) == text
    assert same(loads(text), value)


def test_a_tuple_comes_back_as_a_list_and_a_subclass_as_its_base():
    class Shout(str):
        def __str__(self):
            return self.upper()

    value = {"t": (1, (2,)), Shout("k"): OrderedDict(a=Shout("quiet"))}

    assert same(loads(dumps(value)), {"t": [1, [2]], "k": {"a": "quiet"}})


def test_a_moment_keeps_its_instant_and_offset_but_not_the_name_of_its_zone():
    moment = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))

    found = loads(dumps(moment))

    assert found.astimezone(UTC) == moment.astimezone(UTC)
    assert found.utcoffset() == moment.utcoffset()
    assert found.tzinfo == timezone(timedelta(hours=1))


def test_frozen_time_is_time():
    with freeze_time("2026-03-01 12:00"):
        now, today = datetime.now(UTC), date.today()

        assert loads(dumps([now, today])) == [now, today]
    assert loads(dumps([now, today])) == [datetime(2026, 3, 1, 12, tzinfo=UTC), date(2026, 3, 1)]


# What is refused when it is written.

REFUSED = {
    "an unknown object": (object(), "type object has no JSON form", "annotate the parameter"),
    "a proxy": (Proxy(), "type Proxy has no JSON form", "Pass its id"),
    "a row of an ORM": (Row(), "type", "Pass its id and load the row"),
    "a generator": ((n for n in "ab"), "type generator", "pass list(...)"),
    "a path": (Path("a"), "Path", "Pass str(...)"),
    "a bytearray": (bytearray(b"a"), "bytearray", "Pass bytes(...)"),
    "a function": (len, "builtin_function_or_method", "Pass its name"),
    "an Enum member": (Colour.RED, "annotated with Colour", "its .value"),
    "an IntEnum member": (Size.SMALL, "annotated with Size", "its .value"),
    "a StrEnum member": (Word.YES, "annotated with Word", "its .value"),
    "a dataclass": (Order(1), "annotated with Order", "dataclasses.asdict"),
    "a NamedTuple": (Point(1), "annotated with Point", "its ._asdict()"),
    "a naive datetime": (datetime(2026, 3, 1), "has no time zone", "datetime.now(UTC)"),
    "a time in a named zone": (time(9, tzinfo=ZoneInfo("Europe/Berlin")), "lose its zone", "without tzinfo"),
    "an offset no zone has": (time(9, tzinfo=timezone(timedelta(microseconds=1))), "cannot be read back", "UTC"),
    "NaN in a Decimal": (Decimal("sNaN"), "not a finite number", "Pass None"),
    "an infinite Decimal": (Decimal("-Infinity"), "not a finite number", "Pass None"),
    "a list in a set's tuple": ({(1, frozenset({Colour.RED}))}, "annotated with Colour", "its .value"),
    "a complex number": (1j, "type complex", "expected plain JSON values"),
}


@pytest.mark.row(114)
@pytest.mark.parametrize(("value", "what", "way_out"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_could_not_come_back_is_refused_with_its_path(value, what, way_out):
    with pytest.raises(PayloadError) as refused:
        dumps({"order": {"lines": [1, {"total": value}]}})

    assert str(refused.value).startswith("args.order.lines[1].total: ")
    assert what in str(refused.value)
    assert way_out in str(refused.value)


@pytest.mark.row(114)
def test_a_coroutine_is_refused():
    async def later(): ...

    coroutine = later()

    with pytest.raises(PayloadError, match=r"^args: .*coroutine.* Await it"):
        dumps(coroutine)
    coroutine.close()


@pytest.mark.row(115)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(value):
    with pytest.raises(PayloadError, match=r"^args\['unit price'\]: .* not a finite number"):
        dumps({"unit price": value})


@pytest.mark.row(116)
@pytest.mark.parametrize(
    ("text", "what"), [("a\0b", "a NUL character at position 1"), ("ab\ud800", "a lone surrogate at position 2")]
)
def test_a_text_that_postgres_cannot_store_is_refused_as_value_and_as_key(text, what):
    with pytest.raises(PayloadError, match=rf"^args\.note: {what}"):
        dumps({"note": text})
    with pytest.raises(PayloadError, match=rf"^args\.note: {what}"):
        dumps({"note": {text: 1}})


def test_a_text_that_only_spells_an_escape_is_fine():
    assert loads(dumps("\\u0000")) == "\\u0000"


@pytest.mark.row(117)
@pytest.mark.parametrize("key", [1, None, True, 1.5, (1, 2), b"a", Word.YES, date(2026, 3, 1)])
def test_a_key_that_is_no_text_is_refused(key):
    with pytest.raises(PayloadError, match=r"^args\.prices: the key .* JSON has only str keys"):
        dumps({"prices": {key: 1}})


@pytest.mark.row(119)
def test_a_number_of_too_many_digits_is_refused():
    dumps(10**MAX_DIGITS - 1)

    with pytest.raises(PayloadError, match=r"^args\.n: an int of more than 4300 digits"):
        dumps({"n": -(10**MAX_DIGITS)})
    with pytest.raises(PayloadError, match=r"^args\.n: the key <int>"):
        dumps({"n": {10**MAX_DIGITS: 1}})


def test_of_a_value_that_contains_itself_little_is_written_before_it_is_refused():
    ring = ["x" * 100_000]
    ring.append(ring)

    tracemalloc.start()
    with pytest.raises(PayloadError, match="contains itself"):
        dumps(ring)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # Followed as deep as Python goes, it would be hundreds of megabytes.
    assert peak < 20_000_000


def test_a_value_that_contains_itself_is_refused():
    ring: list[object] = []
    ring.append({"ring": ring})

    with pytest.raises(PayloadError, match=r"^args\[0\]\.ring\[0\].* \.\.\. .*contains itself"):
        dumps(ring)


@pytest.mark.row(119)
@pytest.mark.parametrize("innermost", [1, date(2026, 3, 1), timedelta(1), frozenset({(1, 2)})])
def test_what_is_too_deep_to_be_read_is_refused_when_it_is_written(innermost):
    deepest = 0
    for levels in range(MAX_DEPTH - 8, MAX_DEPTH + 2):
        try:
            text = dumps(nested(levels, innermost))
        except PayloadError as error:
            assert "nested deeper than 100 levels" in str(error)  # noqa: PT017
        else:
            assert loads(text) == nested(levels, innermost)
            deepest = levels

    assert MAX_DEPTH - 5 <= deepest <= MAX_DEPTH


def test_depth_is_refused_and_not_a_recursion_error():
    for levels in (101, 5_000, 100_000):
        with pytest.raises(PayloadError, match="nested"):
            dumps(nested(levels))


@pytest.mark.row(118)
def test_a_payload_that_is_too_large_is_refused_with_its_size_and_the_way_out():
    with pytest.raises(PayloadError, match=r"^args: 300\.0 kB .* up to 256\.0 kB .* pass its id"):
        dumps("x" * (300 * 1024 - 2))


@pytest.mark.row(118)
def test_the_limit_counts_bytes_and_may_be_lifted():
    assert dumps("ü", limit=4) == '"ü"'
    with pytest.raises(PayloadError):
        dumps("ü", limit=3)
    assert len(dumps("x" * 1_000_000, limit=None)) == 1_000_002


# Text of other producers.

HOSTILE = {
    "10 000 levels of arrays": "[" * 10_000 + "]" * 10_000,
    "10 000 levels of objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "100 000 opening brackets": "[" * 100_000,
    "10 000 levels with a bracket too many": "[" * 10_000 + "]" * 9_999,
    "10 000 levels between texts": '["a]\\\\", "\\"]", ' * 10_000 + "1" + "]" * 10_000,
    "5 000 digits": "9" * 5_000,
    "NaN": "[NaN]",
    "Infinity": "-Infinity",
    "a float beyond all floats": "1e999",
    "no JSON": "{'a': 1}",
    "nothing": "",
    "half a text": '"abc',
    "a backslash at the end": '"' + "[" * 200 + "\\",
    "two values": "1 2",
}


@pytest.mark.row(119)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_one_error_and_no_other(text):
    with pytest.raises(PayloadError, match="cannot read this payload"):
        loads(text)


WRONG_BODIES = [
    5, None, True, "x", "", "\0",
    [], [1], [[]], {}, {"a": 1}, [{}], 1e300, "9" * 5_000, [10**400, 0, 0], ["a", "b", "c"],
    "2026-13-01", "NaN", "-Infinity", "ü", [1e300, 1e300, 1e300], "2026-03-01T09:00:00",
]  # fmt: skip


@pytest.mark.row(119)
@pytest.mark.parametrize("tag", sorted(json_codec._READERS))
@pytest.mark.parametrize("body", WRONG_BODIES, ids=lambda body: repr(body)[:20])
def test_a_tag_with_a_wrong_body_is_a_payload_error_or_a_value(tag, body):
    try:
        found = loads(json.dumps({tag: body}))
    except PayloadError as error:
        assert tag in str(error)  # noqa: PT017
    else:
        assert type(found).__name__.lower() in tag


@given(st.recursive(
    st.none() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*json_codec._READERS, "$$x", "$x", "a"]), inner),
))
def test_any_json_gives_a_value_or_a_payload_error(value):
    with contextlib.suppress(PayloadError):
        loads(json.dumps(value))


@given(st.text(st.sampled_from('[]{}",:\\$u0024date 19e-nul')))
def test_any_text_gives_a_value_or_a_payload_error(text):
    with contextlib.suppress(PayloadError):
        loads(text)


@pytest.mark.row("S10")
def test_an_unknown_tag_stays_a_plain_dict():
    assert loads('{"$money": [5, "EUR"]}') == {"$money": [5, "EUR"]}
    assert loads('{"$enum": ["os.system", "ls"]}') == {"$enum": ["os.system", "ls"]}


def test_a_tag_may_be_spelled_with_an_escape():
    assert loads('{"\\u0024date": "2026-03-01"}') == date(2026, 3, 1)


def test_brackets_inside_a_text_are_not_depth():
    value = ["[{" * 500 + '\\"', "]" * 9]

    assert loads(dumps(value)) == value


def test_many_brackets_side_by_side_are_not_depth():
    value = [{"a": []}] * 1_000

    assert loads(dumps(value)) == value


# Limits before decoding


COLLIDING = [n * (2**61 - 1) for n in range(1, 12_001)]  # all of them hash to 0


@pytest.mark.parametrize("tag", ["$set", "$frozenset"])
def test_a_set_of_numbers_that_could_be_made_to_collide_is_not_read(tag: str) -> None:
    with pytest.raises(PayloadError, match="a set of 12,000 items that are not all texts is too large"):
        json_codec.loads(json.dumps({"n": {tag: COLLIDING}}))


def test_a_set_that_could_not_be_read_is_not_written_either() -> None:
    with pytest.raises(PayloadError, match=r"args\.n: a set of 1,001 items .* Pass a list"):
        json_codec.dumps({"n": set(range(1_001))})

    assert json_codec.loads(json_codec.dumps({"n": set(range(1_000))})) == {"n": set(range(1_000))}


def test_a_set_of_texts_may_be_of_any_size() -> None:
    texts = {f"text {n}" for n in range(5_000)}

    assert json_codec.loads(json_codec.dumps(texts, path="args")) == texts


def test_text_longer_than_the_table_takes_is_refused_unread() -> None:
    with pytest.raises(PayloadError, match="up to 1,048,576 bytes are stored"):
        json_codec.loads('["' + "x" * json_codec.MAX_SIZE + '"')
