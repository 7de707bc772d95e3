"""Lossless conversion of arguments and results to JSON text and back. Any other value is refused, with its path.

str, int, float, bool, None, list and dict are written as themselves. datetime, date, time, timedelta, UUID,
Decimal, bytes, set and frozenset become an object whose one key starts with "$": ``{"$date": "2026-03-01"}``.
A dict that looks like such an object gets a second "$", which `loads` removes; an unknown tag stays a dict.

Three things change, by design: a tuple becomes a list (`revive` makes it a tuple again if the annotation is one), a
subclass of these types becomes the type itself, and a time zone becomes its offset at that moment (so `fold` is not
needed, and is 0). `revive` restores Enum members, dataclasses and models if an annotation names their class: nothing
named in a payload is ever imported.
"""

from __future__ import annotations

import base64
import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, NoReturn
from uuid import UUID

from ..errors import PayloadError

LIMIT = 256 * 1024
# The table stores no larger arguments, even if a producer's limit is higher; longer text is refused unparsed.
MAX_SIZE = 1024 * 1024
MAX_DEPTH = 100
# Python's hashes of numbers are predictable. Numbers that collide fill a set in quadratic time: 12,000 of them took
# 1.5 s, during which no other thread runs.
MAX_SET = 1000
MAX_DIGITS = 4300  # what Python reads by default; a longer int would fail in the worker

# The path of a value: (the trail of the parent, the step from there). Formatted only when a value is refused.
_Trail = tuple[Any, str | int]


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, so that it can be in a set
class Named:
    """A value whose class the reader must know. Made by `annotations.encode`, written as ``{tag: [name, body]}``."""

    tag: Literal["$enum", "$object"]
    name: str
    body: Any


def dumps(value: Any, *, path: str = "args", limit: int | None = LIMIT) -> str:
    """Return compact JSON text that `loads` turns into an equal value, or raise `PayloadError`. `limit` is in bytes."""
    text = _quick(value) or _walked(value, path)
    # A character takes at most four bytes, so most texts need not be encoded to check their size.
    if limit is not None and len(text) * 4 > limit and (size := len(text.encode())) > limit:
        raise PayloadError(
            f"{path}: {size / 1024:,.1f} kB of JSON is too large; up to {limit / 1024:,.1f} kB are stored with"
            " a job. Keep the data elsewhere (a table, a bucket) and pass its id."
        )
    if _is_too_deep(text):
        raise PayloadError(f"{path}: nested deeper than {MAX_DEPTH} levels. Pass a flatter value, or an id.")
    return text


def loads(text: str) -> Any:
    """Return the value that `dumps` received. Any other text gives a value or `PayloadError`, no other exception."""
    if len(text) > MAX_SIZE:
        raise PayloadError(
            f"cannot read this payload: it has {len(text):,} characters, and up to {MAX_SIZE:,} bytes are stored with"
            " a job. Keep the data in a table or a bucket and pass its id."
        )
    if _is_too_deep(text):
        raise PayloadError(f"cannot read this payload: it is nested deeper than {MAX_DEPTH} levels")
    # The hook costs a call per object, and most payloads do not need it.
    read = _read_tagged if "$" in text or "\\u0024" in text else _read
    try:
        return read(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"cannot read this payload: {error}; expected one JSON value") from error


def short(value: object) -> str:
    """Return the repr of `value` for a message, cut to a few words. Never raises."""
    try:
        return reprlib.repr(value)
    except Exception:  # user code; and an int of thousands of digits, which Python refuses to write
        return f"<{type(value).__name__}>"


# Writing. json.dumps also accepts values that are read back as something else (int keys, Enum members) and text that
# makes PostgreSQL abort the caller's transaction (NUL, lone surrogates). So the text is written at C speed, and used
# if a check of the types and of the text finds none of these and no tag. Otherwise the value is converted recursively.

_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_SCALARS = frozenset({str, int, float, bool, type(None)})


def _quick(value: Any) -> str | None:
    try:
        text = _write(value)
        if not text.isascii():
            text.encode()
    except (TypeError, ValueError, RecursionError):
        return None
    in_doubt = '{"$' in text or "\\u0000" in text or not _is_plain(value)
    return None if in_doubt else text


def _is_plain(value: Any) -> bool:
    """Return True if all types are exactly JSON's own (or tuple). Only for a value without cycles."""
    pending = [value]
    for item in pending:
        kind = type(item)
        if kind is dict:
            for key in item:
                if type(key) is not str:
                    return False
            pending += item.values()
        elif kind is list or kind is tuple:
            pending += item
        elif kind not in _SCALARS:
            return False
    return True


def _walked(value: Any, path: str) -> str:
    try:
        return _write(_wire(value, (None, path), 0))
    except (RecursionError, ValueError) as error:  # the caller's own stack or digit limit is nearly used up
        raise PayloadError(f"{path}: {error}. Pass a smaller or flatter value, or an id.") from None


def _wire(value: Any, at: _Trail, depth: int) -> Any:
    """Return `value` in plain JSON types, with tags, or raise `PayloadError`."""
    kind = type(value)
    if kind is str:
        return _text(value, at)
    if kind is bool or value is None:
        return value
    if kind is int or kind is float:
        return _number(value, at)
    if depth >= MAX_DEPTH:
        _refuse(at, f"nested deeper than {MAX_DEPTH} levels, or contains itself", "Pass a flatter value.")
    if kind is dict:
        return _object(value, at, depth)
    if kind is list or kind is tuple:
        return [_wire(item, (at, index), depth + 1) for index, item in enumerate(value)]
    if kind is Named:
        return {value.tag: [value.name, _wire(value.body, at, depth + 2)]}
    return _special(value, at, depth)


def _object(value: dict[Any, Any], at: _Trail, depth: int) -> dict[str, Any]:
    wired = {_key(key, at): _wire(item, (at, key), depth + 1) for key, item in value.items()}
    return {"$" + key: item for key, item in wired.items()} if _is_tag(wired) else wired


def _is_tag(found: dict[str, Any]) -> bool:
    return len(found) == 1 and next(iter(found)).startswith("$")


def _key(key: Any, at: _Trail) -> str:
    if not isinstance(key, str) or isinstance(key, Enum):
        what = f"the key {short(key)} is of type {type(key).__name__}, and JSON has only str keys"
        _refuse(at, what, "Use str(key) or key.value, or pass a list of pairs.")
    return str.__str__(_text(key, at))


_UNSTORABLE = re.compile("[\0\ud800-\udfff]").search


def _text(value: str, at: _Trail) -> str:
    if found := _UNSTORABLE(value):
        what = "a NUL character" if found[0] == "\0" else "a lone surrogate"
        what = f"{what} at position {found.start()}, which PostgreSQL cannot store in a text"
        _refuse(at, what, "Remove it, or pass bytes.")
    return value


def _number(value: Any, at: _Trail) -> Any:
    if isinstance(value, int):
        if abs(value) >= _HUGE:
            _refuse(at, f"an int of more than {MAX_DIGITS} digits could not be read back", "Pass it as hex text.")
    elif not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
        _refuse(at, f"{value!r} is not a finite number, and JSON has no others", "Pass None or a str.")
    return value


_HUGE = 10**MAX_DIGITS


def _special(value: Any, at: _Trail, depth: int) -> Any:
    kind = type(value)  # not isinstance: a proxy, such as Flask's, passes for an instance of another class
    if needs_annotation(value):
        _refuse_unannotated(value, at)
    if issubclass(kind, set | frozenset):
        if (problem := _set_problem(value)) is not None:
            _refuse(at, problem, "Pass a list, and make it a set in the task.")
        items = [_hashable(item, at, depth + 2) for item in value]
        # The order of a set differs between processes; its text should not.
        return {"$set" if issubclass(kind, set) else "$frozenset": sorted(items, key=_write)}
    for tagged, tag, write, _ in _TAGGED:
        if issubclass(kind, tagged):
            return {tag: write(value, at)}
    for base, plain in _SUBCLASSED.items():
        if issubclass(kind, base):
            return _wire(plain(value), at, depth)
    # Without its repr, which may contain a secret or query a database.
    _refuse(at, f"a value of type {kind.__qualname__} has no JSON form; expected {_EXPECTED}", _way_out(value))


def _hashable(item: Any, at: _Trail, depth: int) -> Any:
    # A list cannot be in a set, so a tuple in a set has to stay a tuple.
    if type(item) is tuple and depth < MAX_DEPTH:
        return {"$tuple": [_hashable(part, at, depth + 2) for part in item]}
    return _wire(item, at, depth)


def as_set(items: Collection[Any], kind: type = set) -> Any:
    """Return `items` of a payload as a set, or raise ValueError for too many of a type with predictable hashes."""
    if (problem := _set_problem(items)) is not None:
        raise ValueError(problem)
    return kind(items)


def _set_problem(items: Collection[Any]) -> str | None:
    # The hashes of texts and bytes differ in each process, so that an attacker cannot make them collide.
    if len(items) <= MAX_SET or all(type(item) is str or type(item) is bytes for item in items):
        return None
    return f"a set of {len(items):,} items that are not all texts is too large; up to {MAX_SET:,} are taken"


def _datetime(value: datetime, at: _Trail) -> str:
    offset = datetime.utcoffset(value)
    if offset is None:
        what = f"{short(value)} has no time zone, so the worker could only guess which moment is meant"
        _refuse(at, what, "Write datetime.now(UTC), or .replace(tzinfo=ZoneInfo('Europe/Berlin')).")
    _check_offset(offset, at)
    return datetime.isoformat(value)


def _check_offset(offset: timedelta | None, at: _Trail) -> None:
    # No real zone has such an offset, and Python 3.11 reads +00:00:00.000001 as UTC.
    if offset is not None and offset.microseconds:
        _refuse(at, f"an offset of {offset} from UTC cannot be read back", "Pass it .astimezone(UTC).")


def _aware(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("it has no time zone; add Z or an offset such as +02:00")
    return found


def _time(value: time, at: _Trail) -> str:
    # A time without a zone is a complete wall clock time. A time with a named zone would lose the name.
    if value.tzinfo is not None and value.utcoffset() is None:
        _refuse(at, f"{short(value)} would lose its zone", "Pass the time without tzinfo, and the zone's name.")
    _check_offset(value.utcoffset(), at)
    return value.isoformat()


def _decimal(text: str) -> Decimal:
    return Decimal(_number(Decimal(text), (None, "$decimal")))


# The writer and the reader of each type. A datetime is also a date, so it comes first.
_TAGGED: tuple[tuple[type, str, Callable[[Any, _Trail], Any], Callable[[Any], Any]], ...] = (
    (datetime, "$datetime", _datetime, _aware),
    (date, "$date", lambda value, at: date.isoformat(value), date.fromisoformat),
    (time, "$time", _time, time.fromisoformat),
    (UUID, "$uuid", lambda value, at: str(value), UUID),
    (Decimal, "$decimal", lambda value, at: str(_number(value, at)), _decimal),
    (bytes, "$bytes", lambda value, at: base64.b64encode(value).decode(), lambda t: base64.b64decode(t, validate=True)),
    (timedelta, "$timedelta", lambda value, at: [value.days, value.seconds, value.microseconds],
     lambda parts: timedelta(days=parts[0], seconds=parts[1], microseconds=parts[2])),
)
_SUBCLASSED: dict[type, Callable[[Any], Any]] = {
    str: str.__str__, int: int.__pos__, float: float.__pos__, dict: lambda value: dict(value.items()), list: list,
}


# Refusing.


def needs_annotation(value: Any) -> bool:
    """Return True for an instance of a user's class, which `revive` can restore only if an annotation names it."""
    kind = type(value)
    return (
        issubclass(kind, Enum)
        or is_dataclass(kind)
        or hasattr(kind, "model_validate")
        or hasattr(kind, "__struct_fields__")
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def _refuse_unannotated(value: Any, at: _Trail) -> NoReturn:
    name = type(value).__qualname__
    plainer = next((plainer for attribute, plainer in _PLAINER.items() if hasattr(value, attribute)), "its fields")
    what = f"only a parameter annotated with {name} gets a value of that class back"
    _refuse(at, what, f"Annotate the parameter (`x: {name}`, a class of the module's top level), or give {plainer}.")


_PLAINER = {
    "_value_": "its .value",
    "__dataclass_fields__": "dataclasses.asdict(...)",
    "model_dump": "its .model_dump()",
    "__struct_fields__": "msgspec.to_builtins(...)",
    "_asdict": "its ._asdict()",
}
_EXPECTED = "plain JSON values, datetime, date, time, timedelta, UUID, Decimal, bytes or a set"


def _way_out(value: Any) -> str:
    kind = type(value)
    if issubclass(kind, Coroutine):
        return "Await it, and pass the result."
    if issubclass(kind, Iterator):
        return "It can be read only once: pass list(...)."
    if issubclass(kind, bytearray | memoryview):
        return "Pass bytes(...)."
    if issubclass(kind, PurePath):
        return "Pass str(...)."
    if hasattr(kind, "__table__") or hasattr(kind, "_meta"):
        return "Pass its id and load the row in the task; it may have changed by then."
    if hasattr(kind, "dtype"):
        return "Pass .item() of a number, .tolist() of an array."
    if callable(value):
        return "Pass its name and look it up in the task."
    return "Pass its id, pass a dict of what the task needs, or make it a dataclass and annotate the parameter."


def _refuse(at: _Trail, what: str, way_out: str) -> NoReturn:
    raise PayloadError(f"{_spelled(at)}: {what}. {way_out}")


def _spelled(at: _Trail) -> str:
    """Return the trail as Python code: args.order['unit price'][3].total."""
    parent, step = at
    steps: list[str] = []
    while parent is not None:
        is_name = isinstance(step, str) and step.isidentifier()
        steps.insert(0, f".{step}" if is_name else f"[{short(step)}]")
        parent, step = parent
    if len(steps) > 12:
        steps[6:-3] = [" ... "]
    return "".join([str(step), *steps])


# Reading.

def _is_too_deep(text: str) -> bool:
    """Return True if this JSON is nested deeper than `MAX_DEPTH`. Checks the text, because a parser may crash on it."""
    # The depth is at most the number of brackets: two counts suffice for nearly every payload.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    outside_texts = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    pairs = outside_texts.encode("ascii", "ignore").translate(_TO_PAIRS, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        pairs = pairs.replace(b"()", b"")  # each pass removes the innermost level, at C speed
    # Brackets without a partner are invalid JSON, which the parser refuses.
    return b"()" in pairs


_TO_PAIRS = bytes.maketrans(b"[{]}", b"(())")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def _finite(text: str) -> float:
    if math.isinf(found := float(text)):
        raise ValueError(f"the number {short(text)} is too large for a float")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _untag(found: dict[str, Any]) -> Any:
    if not _is_tag(found):
        return found
    ((tag, body),) = found.items()
    if tag.startswith("$$"):
        return {tag[1:]: body}
    if tag not in _READERS:
        return found
    expected, read = _READERS[tag]
    try:
        if isinstance(body, expected):
            return read(body)
        problem = f"expected a {expected.__name__}, got {type(body).__name__}"
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        problem = str(error) or type(error).__name__
    raise PayloadError(f"cannot read {tag} {short(body)} in this payload: {problem}")


_READERS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    **{tag: (list if tag == "$timedelta" else str, read) for _, tag, _, read in _TAGGED},
    "$set": (list, as_set),
    "$frozenset": (list, lambda items: as_set(items, frozenset)),
    "$tuple": (list, tuple),
}
_read = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number).decode
_read_tagged = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number, object_hook=_untag).decode
