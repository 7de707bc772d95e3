"""How a cron expression is read: croniter's grammar, less what has changed its meaning or is most likely a mistake.

Every expression is read twice, here and by the croniter that is installed, and refused unless both agree. So no
release of croniter can move a schedule. It can only have one refused, where it is made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import OptionError, near_miss
from .field import DAY, FIELDS, HOUR, MINUTE, MONTH, MONTHS, SECOND, WEEKDAY, Field, Wrong, numbered, values
from .pattern import LAST_ONE, LONGEST, Pattern
from .words import describe

MOST_CHARACTERS = 256
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
    """What `expression` means; or `OptionError`, with what is wrong with it and what to type instead."""
    if not isinstance(expression, str):
        raise OptionError(f"expected a cron expression as text, such as '30 2 * * *', got {expression!r}")
    if len(expression) > MOST_CHARACTERS:
        raise OptionError(f"a cron expression of {len(expression)} characters; it may have {MOST_CHARACTERS}")
    return _read(tidy(expression))


def tidy(expression: str) -> str:
    """`expression` with one space between its fields."""
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
        raise Wrong("this is an interval and not a cron expression; use every('90s') for it")
    if text.startswith("@"):
        text = _nickname(text)
    texts = text.split(" ") if text else []
    if len(texts) in (5, 6):
        return texts
    hint = ". There is no field for years; bound the schedule with start and end" if len(texts) == 7 else ""
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
    """Refuse what cron and croniter, or two versions of croniter, take for different days."""
    advice = "leave one of them '*', or make it two schedules"
    if found.nth:
        raise Wrong(f"numbered weekdays ({weekday.upper()!r}) cannot be combined with days ({day!r}); {advice}")
    for text, chosen, field in ((day, found.days, DAY), (weekday, found.weekdays, WEEKDAY)):
        if chosen is None:
            raise Wrong(f"{text!r}, every {field.name}, may stand for all days or for no more of them; write '*'")
        if text.startswith("*"):
            spelt = ",".join("L" if value == LAST_ONE else str(value) for value in chosen)
            raise Wrong(
                f"beside {text!r} in the field of the {field.name}, cron wants a day to fit both fields, and croniter"
                f" either; {advice}. If you mean either, write {spelt!r}"
            )


def _check_days(found: Pattern) -> None:
    numbers = [day for day in found.days or () if day != LAST_ONE]
    if numbers and min(numbers) > max(LONGEST[month] for month in found.months):
        names = [name.capitalize() for name, month in MONTHS.items() if month in found.months]
        raise Wrong(f"it would never run: there is no day {min(numbers)} in {' or '.join(names)}")


# Six fields: is the first one the seconds, as with others?

def _check_order(texts: list[str]) -> None:
    """Refuse six fields that make less sense with the seconds last, as they are here, than with the seconds first.

    Every second of chosen minutes is no schedule: `0 */5 * * * *` would run sixty times in one minute of every fifth
    hour, and then not at all. Several seconds of chosen minutes are one only if the fields cannot be read the other
    way round. And when the first field is 0, the sixth could be a weekday, and the third is given, they are that: for
    `0 15 10 * * 1`, Mondays at 10:15 are likelier than one second past 15:00 on the 10th. Whoever does mean what is
    refused writes 0-59 for every second, and others in two digits: no weekday looks like that.
    """
    here, there = _try(texts), _try([*texts[1:], texts[0]])
    if there is not None and _is_burst(there, texts[0]):
        there = None
    if here is None:
        if there is not None:
            raise Wrong(f"the last of six fields is the seconds here, and {_other_order(texts, there)}.")
        return  # and say what is wrong with it
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
    """Whether it runs several times in a row in minutes that are chosen, and the spelling does not confirm that."""
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


# The other reader.

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
