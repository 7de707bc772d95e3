"""Parser of cron expressions: croniter's grammar without forms that changed their meaning or are probably mistakes.

The first part reads whole expressions, the second their fields.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import OptionError
from ...hints import crontab_of, near_miss
from .calendar import LAST_ONE, MONTH_LENGTHS, Pattern
from .describe import describe

MAX_CHARACTERS = 256
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_FORM = "minute, hour, day, month and weekday, as in '30 2 * * 1-5', or six, with the seconds last"


def read(expression: str) -> Pattern:
    """Return the pattern of `expression`, or raise `OptionError` with the problem and what to type instead."""
    if not isinstance(expression, str):
        raise OptionError(
            f"expected a cron expression as text, such as '30 2 * * *', got {expression!r}{crontab_of(expression)}"
        )
    if len(expression) > MAX_CHARACTERS:
        raise OptionError(f"a cron expression of {len(expression)} characters; it may have {MAX_CHARACTERS}")
    return _read(tidy(expression))


def tidy(expression: str) -> str:
    """Return `expression` with one space between its fields."""
    return " ".join(re.findall(r"[^ \t\r\n]+", expression))


@functools.lru_cache(maxsize=1024)
def _read(expression: str) -> Pattern:
    try:
        texts = _fields(expression.lower())
        if len(texts) == 6:
            _check_order(texts)
        pattern = _pattern(texts)
        _compare(" ".join(texts), pattern)
    except Wrong as wrong:
        raise OptionError(f"{expression!r}: {wrong}") from None
    return pattern


def _fields(text: str) -> list[str]:
    if not text.isprintable() or not text.isascii():
        stranger = next(c for c in text if not (c.isprintable() and c.isascii()))
        raise Wrong(f"the character {stranger!r} has no meaning in a cron expression")
    if text.startswith(("every", "@every")):
        interval = text.partition("every")[2].strip() or "90s"
        raise Wrong(
            f"this is an interval and not a cron expression; write @app.every({interval!r}), or 'every {interval}'"
            " where both are read"
        )
    if text.startswith("@"):
        text = _nickname(text)
    texts = text.split(" ") if text else []
    if len(texts) in (5, 6):
        return texts
    hint = ". There is no field for years; bound the schedule with start and end" if len(texts) == 7 else ""
    if len(texts) == 1 and re.fullmatch(r"(\d+(\.\d+)?(ms|[wdhms]))+", text):
        hint = f"; an interval is written 'every {text}', or @app.every({text!r})"
    raise Wrong(f"it has {len(texts)} field{'s' * (len(texts) != 1)}; expected five, {_FORM}{hint}")


def _nickname(text: str) -> str:
    if text not in NICKNAMES:
        no_moment = "'@reboot' names no moment" if text == "@reboot" else "there is no such nickname"
        raise Wrong(f"{no_moment}{near_miss(text, NICKNAMES) or '.'} The nicknames are {', '.join(NICKNAMES)}.")
    return NICKNAMES[text]


def _pattern(texts: list[str]) -> Pattern:
    minute, hour, day, month, weekday = texts[:5]
    nth = numbered(weekday)
    days = values(day, DAY)
    weekdays = WEEKDAY.all if nth else values(weekday, WEEKDAY)
    found = Pattern(
        seconds=values(texts[5], SECOND) if len(texts) == 6 else (0,),
        minutes=values(minute, MINUTE),
        hours=values(hour, HOUR),
        days=None if days == DAY.all else days,
        months=values(month, MONTH),
        weekdays=None if weekdays == WEEKDAY.all else weekdays,
        nth=nth,
        fixed=not ("*" in hour or "/" in hour or values(hour, HOUR) == HOUR.all),
    )
    if day not in ("*", "?") and weekday not in ("*", "?"):
        _check_pair(found, day, weekday)
    _check_days(found)
    return found


def _check_pair(found: Pattern, day: str, weekday: str) -> None:
    """Refuse a combination that cron and croniter, or two versions of croniter, read as different days."""
    advice = "leave one of them '*', or make it two schedules"
    if found.nth:
        raise Wrong(f"numbered weekdays ({weekday.upper()!r}) cannot be combined with days ({day!r}); {advice}")
    for text, chosen, field in ((day, found.days, DAY), (weekday, found.weekdays, WEEKDAY)):
        if chosen is None:
            raise Wrong(f"{text!r}, every {field.name}, could mean every day or no restriction; write '*'")
        if text.startswith("*"):
            spelt = ",".join("L" if value == LAST_ONE else str(value) for value in chosen)
            raise Wrong(
                f"beside {text!r} in the field of the {field.name}, cron requires a day to match both fields, and"
                f" croniter either; {advice}. If you mean either, write {spelt!r}"
            )


def _check_days(found: Pattern) -> None:
    numbers = [day for day in found.days or () if day != LAST_ONE]
    if numbers and min(numbers) > max(MONTH_LENGTHS[month] for month in found.months):
        names = [name.capitalize() for name, month in MONTHS.items() if month in found.months]
        raise Wrong(f"it would never run: there is no day {min(numbers)} in {' or '.join(names)}")


# Six fields: other parsers expect the seconds first.

def _check_order(texts: list[str]) -> None:
    """Refuse six fields that were probably meant to have the seconds first. Here the seconds come last.

    - Every second of chosen minutes is refused: `0 */5 * * * *` would run sixty times in one minute of every fifth
      hour, and then not at all.
    - Several seconds of chosen minutes are refused if the fields can also be read in the other order.
    - A first field of 0, a given third field, and a sixth that could be a weekday are refused: for `0 15 10 * * 1`,
      Mondays at 10:15 are likelier than one second past 15:00 on the 10th.

    To confirm such an expression, write 0-59 for every second, and other seconds with two digits, which cannot be a
    weekday.
    """
    here, there = _try(texts), _try([*texts[1:], texts[0]])
    if there is not None and _is_burst(there, texts[0]):
        there = None
    if here is None:
        if there is not None:
            raise Wrong(f"the last of six fields is the seconds here, and {_other_order(texts, there)}.")
        return  # the caller reports what is wrong with it
    last = texts[5]
    is_every = last == "*" and len(here.minutes) < 60
    if is_every or (there is not None and (_is_burst(here, last) or _is_weekday(texts))):
        means = "0-59" if last == "*" else re.sub(r"\b(\d)\b", r"0\1", last)
        raise Wrong(
            f"the last of six fields is the seconds here, so it would run {describe(here)};"
            f" {_other_order(texts, there)}. If it is meant as it stands, write {_typed([*texts[:5], means])}"
        )


def _other_order(texts: list[str], there: Pattern | None) -> str:
    if there is None:
        return f"with five fields, {_typed(texts[:5])}, it would run {describe(_pattern(texts[:5]))}"
    meant = texts[1:] if texts[0] in ("0", "00") else [*texts[1:], texts[0]]
    return f"it looks as if they came first, {describe(there)}: write {_typed(meant)}"


def _is_burst(pattern: Pattern, seconds: str) -> bool:
    """Return True if it runs several times in a row in chosen minutes, and the spelling does not confirm that."""
    is_meant = re.fullmatch(r"0-59|\d\d([,-]\d\d)*", seconds) is not None
    return len(pattern.seconds) > 1 and len(pattern.minutes) < 60 and not is_meant


def _is_weekday(texts: list[str]) -> bool:
    return texts[0] in ("0", "00") and texts[2] not in ("*", "?") and re.fullmatch("[0-7]", texts[5]) is not None


def _try(texts: list[str]) -> Pattern | None:
    try:
        return _pattern(texts)
    except Wrong:
        return None


def _typed(texts: list[str]) -> str:
    return repr(" ".join(texts).upper())


# The comparison with croniter.

def _compare(text: str, pattern: Pattern) -> None:
    # Imported here: loading it takes 100 ms, and most commands read no expression.
    from croniter import croniter

    try:
        expanded, nth = croniter.expand(text, strict=True)
    except ValueError as error:
        raise Wrong(f"the installed croniter {_version()} refuses it: {error}") from error
    if _theirs(expanded, nth) != _ours(pattern, len(expanded)):
        raise Wrong(
            f"the installed croniter {_version()} reads it differently, so its meaning is not settled;"
            " spell its values out, with commas"
        )


def _theirs(expanded: Iterable[Iterable[object]], nth: Mapping[Any, Iterable[object]]) -> list[set[object]]:
    pairs = [(day, LAST_ONE if number == "l" else number) for day, numbers in nth.items() for number in numbers]
    return [{*pairs}, *({*_plain(found, field)} for found, field in zip(expanded, FIELDS, strict=False))]


def _plain(found: Iterable[object], field: Field) -> Iterable[object]:
    found = [*found]
    return field.all if found == ["*"] else [LAST_ONE if value == "l" else value for value in found]


def _ours(pattern: Pattern, count: int) -> list[set[object]]:
    weekdays = [day for day, _ in pattern.nth] or pattern.weekdays or WEEKDAY.all
    days = pattern.days or DAY.all
    found = (pattern.minutes, pattern.hours, days, pattern.months, weekdays, pattern.seconds)
    return [{*pattern.nth}, *({*each} for each in found[:count])]


def _version() -> str:
    from importlib import metadata

    return metadata.version("croniter")


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = {name: number for number, name in enumerate(_MONTHS, start=1)}
WEEKDAYS = {name: number for number, name in enumerate(_WEEKDAYS)}

_ITEM = re.compile(r"(?P<low>\*|\?|[0-9]+|[a-z]+)(-(?P<high>[0-9]+|[a-z]+))?(/(?P<step>[0-9]+))?")
_NUMBERED = re.compile(r"(?P<weekday>[0-7]|[a-z]{3})#(?P<number>[1-5])|l(?P<last>[0-7])")


class Wrong(Exception):
    """The reason why an expression is refused. The handler prefixes it with the expression."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an expression, and its valid values."""

    name: str
    low: int
    high: int
    names: Mapping[str, int]

    @property
    def all(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1))

    @property
    def unit(self) -> str:
        """The unit of this field for `every`; "" for a unit without a fixed length of time."""
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
    """Return the sorted values of the lower-case `text` in `field`, or raise `Wrong` if it is invalid or a mistake."""
    items = text.split(",")
    if len(items) > 1 and not {"*", "?"}.isdisjoint(items):
        raise Wrong(f"{text.upper()!r} is every {field.name} and other values; write '*', or leave that out")
    return tuple(sorted({value for item in items for value in _item(item, field)}))


def numbered(text: str) -> tuple[tuple[int, int], ...]:
    """Return the weekdays with a number in the month, if any: `5#2` is (5, 2), and `L5` is (5, LAST_ONE)."""
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
    if first > last:  # a range that wraps around: FRI-MON, 22-2
        return iter((*range(first, field.high + 1), *range(field.low, last + 1)))
    return iter(range(first, last + 1, _size(step or "1")))


def _size(step: str) -> int:
    return int(step[:5])  # five digits are already too large for every field


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
        raise Wrong(f"{item.upper()!r} is no range; '*' already is the whole field")


def _check_range(item: str, first: int, last: int, step: str | None, field: Field) -> None:
    if first == last:
        # croniter reads JAN-JAN and 0-7 as the whole field.
        raise Wrong(f"{item.upper()!r} begins and ends with one {field.name}; write {str(first)!r}, or '*' for all")
    if first > last and step:
        # Versions of croniter differ in where the steps continue after the wrap.
        raise Wrong(f"{item.upper()!r} steps around the end of its field; write the {field.name}s out, with commas")


def _check_step(item: str, first: int, last: int, size: int, field: Field) -> None:
    if size == 0:
        raise Wrong(f"{item.upper()!r} has a step of 0; expected at least 1")
    if first + size > last:
        # One such step is 59/15: every 15 minutes up to croniter 6.2, and only minute 59 in later versions.
        hint = f" For an interval, use every('{size}{field.unit}')." if field.unit else ""
        raise Wrong(f"the step of {item.upper()!r} reaches no second {field.name}; write {str(first)!r}.{hint}")


def _puzzle(item: str, field: Field) -> str:
    shown = item.upper()
    if re.match(r"[hr](\(|/|$)", item):
        return f"{shown!r} is a hashed or random {field.name}; choose one, and spread runs with jitter"
    if field is DAY and re.fullmatch(r"[0-9]*l?w[0-9]*|l-[0-9]+", item):
        return f"{shown!r} is not supported; a day is a number, or L for the last one of the month"
    if field is WEEKDAY and re.fullmatch(r"([0-7]|[a-z]{3})#?l|l[a-z]*", item):
        return f"{shown!r} is not understood; the last Friday of a month is 'L5'"
    if field is WEEKDAY and "#" in item:
        return f"{shown!r} is not understood; the second Friday of a month is '5#2' or 'FRI#2'"
    if item.startswith(("-", "+")):
        return f"{shown!r} has a sign, which is not allowed here. {field}"
    names = [name.upper() for name in field.names]
    words = [word for word in re.findall("[A-Z]+", shown) if word not in names]
    near = near_miss(words[0], names) if words else ""
    return f"{shown!r} is no {field.name}{near or '.'} {field}"
