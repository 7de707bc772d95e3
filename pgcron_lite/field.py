"""The fields of a cron expression, one by one: what a text such as `9-17/2` stands for, or what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .errors import near_miss
from .pattern import LAST_ONE

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = {name: number for number, name in enumerate(_MONTHS, start=1)}
WEEKDAYS = {name: number for number, name in enumerate(_WEEKDAYS)}

_ITEM = re.compile(r"(?P<low>\*|\?|[0-9]+|[a-z]+)(-(?P<high>[0-9]+|[a-z]+))?(/(?P<step>[0-9]+))?")
_NUMBERED = re.compile(r"(?P<weekday>[0-7]|[a-z]{3})#(?P<number>[1-5])|l(?P<last>[0-7])")


class Wrong(Exception):
    """Why an expression is refused. Who catches it puts the expression in front."""


@dataclass(frozen=True, slots=True)
class Field:
    """One of the places of an expression, and what may stand there."""

    name: str
    low: int
    high: int
    names: Mapping[str, int]

    @property
    def all(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1))

    @property
    def unit(self) -> str:
        """The unit of `every` that this place counts; nothing for what is no fixed length of time."""
        return self.name[0] if self.name in ("second", "minute", "hour") else ""

    def __str__(self) -> str:
        words = list(self.names)
        named = f", or {words[0].upper()} to {words[-1].upper()}" if words else ""
        return f"{self.name.capitalize()}s are {self.low} to {self.high}{named}."


FIELDS = (
    Field("minute", 0, 59, {}), Field("hour", 0, 23, {}), Field("day", 1, 31, {}),
    Field("month", 1, 12, MONTHS), Field("weekday", 0, 6, WEEKDAYS), Field("second", 0, 59, {}),
)  # fmt: skip
MINUTE, HOUR, DAY, MONTH, WEEKDAY, SECOND = FIELDS


def values(text: str, field: Field) -> tuple[int, ...]:
    """What the lower-case `text` stands for in `field`, sorted; `Wrong` if nothing can or should stand for that."""
    items = text.split(",")
    if len(items) > 1 and not {"*", "?"}.isdisjoint(items):
        raise Wrong(f"{text.upper()!r} is every {field.name} and then some; write '*', or leave that out")
    return tuple(sorted({value for item in items for value in _item(item, field)}))


def numbered(text: str) -> tuple[tuple[int, int], ...]:
    """Weekdays with their number in the month, if that is what `text` has: `5#2` is (5, 2), and `L5` (5, LAST_ONE)."""
    found = [_NUMBERED.fullmatch(item) for item in text.split(",")]
    known = [each for each in found if each is not None]
    if known and len(known) < len(found):
        raise Wrong(f"{text.upper()!r} mixes weekdays of every week with numbered ones; make it two schedules")
    return tuple(sorted({_pair(each) for each in known}))


def _pair(found: re.Match[str]) -> tuple[int, int]:
    if found["last"]:
        return _number(found["last"], WEEKDAY), LAST_ONE
    return _number(found["weekday"], WEEKDAY), int(found["number"])


def _item(item: str, field: Field) -> Iterator[int]:
    found = _ITEM.fullmatch(item)
    if found is None:
        raise Wrong(_puzzle(item, field))
    low, high, step = found["low"], found["high"], found["step"]
    if low == "l" and field is DAY:
        if item != "l":
            raise Wrong(_puzzle(item, field))
        return iter((LAST_ONE,))
    if low in ("*", "?"):
        _check_wildcard(item, field)
        first, last = field.low, field.high
    else:
        first = _number(low, field)
        last = _number(high, field) if high else field.high if step else first
    if high:
        _check_range(item, first, last, step, field)
    if step:
        _check_step(item, first, last, _size(step), field)
    if first > last:  # a range that goes round: FRI-MON, 22-2
        return iter((*range(first, field.high + 1), *range(field.low, last + 1)))
    return iter(range(first, last + 1, _size(step or "1")))


def _size(step: str) -> int:
    return int(step[:5])  # longer is no more than too long


def _number(word: str, field: Field) -> int:
    if word.isalpha():
        if word == "l" and field is DAY:
            return field.high
        if word not in field.names:
            raise Wrong(_puzzle(word, field))
        return field.names[word]
    number = int(word[:5])
    if field is WEEKDAY and number == 7:
        return 0
    if not field.low <= number <= field.high:
        near = f"; did you mean {field.low}?" if number == field.high + 1 and field.low == 0 else "."
        raise Wrong(f"there is no {field.name} {word[:5]}{near} {field}")
    return number


def _check_wildcard(item: str, field: Field) -> None:
    if item == "?" and field in (DAY, WEEKDAY):
        return
    if item.startswith("?"):
        raise Wrong("'?' stands alone in the field of the day or of the weekday, where it means '*'")
    if "-" in item:
        raise Wrong(f"{item.upper()!r} is no range; '*' is the whole of it already")


def _check_range(item: str, first: int, last: int, step: str | None, field: Field) -> None:
    if first == last:
        # To croniter, JAN-JAN and 0-7 are the whole of the field.
        raise Wrong(f"{item.upper()!r} begins and ends with one {field.name}; write {str(first)!r}, or '*' for all")
    if first > last and step:
        # Where the steps go on after the turn has differed between versions of croniter.
        raise Wrong(f"{item.upper()!r} steps around the end of its field; write the {field.name}s out, with commas")


def _check_step(item: str, first: int, last: int, size: int, field: Field) -> None:
    if size == 0:
        raise Wrong(f"{item.upper()!r} has a step of 0, which leads nowhere")
    if first + size > last:
        # Among them is 59/15: every quarter of an hour up to croniter 6.2, and minute 59 since.
        hint = f" For an interval, use every('{size}{field.unit}')." if field.unit else ""
        raise Wrong(f"the step of {item.upper()!r} leads to no second {field.name}; write {str(first)!r}.{hint}")


def _puzzle(item: str, field: Field) -> str:
    shown = item.upper()
    if re.match(r"[hr](\(|/|$)", item):
        return f"{shown!r} asks for a hashed or random {field.name}; choose one, and spread runs with jitter"
    if field is DAY and re.fullmatch(r"[0-9]*l?w[0-9]*|l-[0-9]+", item):
        return f"{shown!r} is not supported; a day is a number, or L for the last one of the month"
    if field is WEEKDAY and re.fullmatch(r"([0-7]|[a-z]{3})#?l|l[a-z]*", item):
        return f"{shown!r} is not understood; the last Friday of a month is 'L5'"
    if field is WEEKDAY and "#" in item:
        return f"{shown!r} is not understood; the second Friday of a month is '5#2' or 'FRI#2'"
    if item.startswith(("-", "+")):
        return f"{shown!r} has a sign, and numbers have none here. {field}"
    names = [name.upper() for name in field.names]
    words = [word for word in re.findall("[A-Z]+", shown) if word not in names]
    near = near_miss(words[0], names) if words else ""
    return f"{shown!r} is no {field.name}{near or '.'} {field}"
