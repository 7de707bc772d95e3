"""Conversion by annotation: Enum members, dataclasses, models, tuples and sets, to JSON values and back.

`encode` runs when a job is enqueued, `revive` when it runs, both with the annotation of the parameter (or of the
result). The class always comes from the annotation, never from the payload. The name in the payload only
distinguishes the members of a union, so a class may be renamed or moved while jobs wait. Supported are Enum,
dataclass, NamedTuple, pydantic models and msgspec Structs, also inside list, tuple, set, dict, Optional and unions of
them. A value with any other annotation, or with none, is unchanged in both directions.

A value that could not be restored is refused when the job is enqueued: a subclass of the annotated class, a model
that its own `model_validate` would not read, an "amber" for an Enum of red and green. None is always accepted,
because ``x: Colour = None`` is common.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NoReturn
from uuid import UUID

from ..errors import PayloadError
from .json_codec import Named, as_set, short


def encode(value: Any, annotation: Any, path: str) -> Any:
    """Return `value` in the form for `json_codec.dumps` and `revive` if the annotation needs one, else unchanged."""
    shape = shape_of(annotation)
    if shape is None:
        return value
    try:
        return shape.encode(value, path)
    except RecursionError:
        raise PayloadError(f"{path}: nested too deeply, or contains itself. Pass a flatter value, or an id.") from None


def revive(value: Any, annotation: Any, *, path: str) -> Any:
    """Return the value that `encode` received. Plain JSON of other producers is accepted, or refused with its path."""
    shape = shape_of(annotation)
    return value if shape is None else shape.revive(value, path)


def shape_of(annotation: Any) -> Shape | None:
    """Return the converter of values with `annotation`, from a cache; None if they need no conversion."""
    try:
        return _shape(annotation)
    except RecursionError:  # `type Json = dict[str, Json] | None` has no end
        return None
    except TypeError:  # cannot be hashed, such as Annotated[int, []]
        return _shape.__wrapped__(annotation)


def hints_of(thing: Any) -> dict[str, Any]:
    """Return the resolved annotations of a function or a class, without those that cannot be resolved."""
    try:
        return typing.get_type_hints(thing)
    except Exception:  # user code: a name that only the type checker sees must not affect the other annotations
        return _resolvable(inspect.unwrap(thing))


def _resolvable(thing: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for owner in reversed(thing.__mro__) if isinstance(thing, type) else [thing]:
        names = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        for name, annotation in inspect.get_annotations(owner).items():
            one = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= typing.get_type_hints(one, names)
            except Exception:  # as above
                continue
    return found


# From an annotation to a shape.


@functools.lru_cache(maxsize=4096)
def _shape(annotation: Any) -> Shape | None:
    for alias in ("__supertype__", "__value__"):  # NewType, and `type X = ...`
        if not isinstance(annotation, type) and hasattr(annotation, alias):
            return shape_of(getattr(annotation, alias))
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shape_of(parts[0])
    if origin is typing.Literal:
        return _one_of([type(part) for part in parts if isinstance(part, Enum)] + [object])
    if origin in (typing.Union, types.UnionType):
        return _one_of([part for part in parts if part is not type(None)])
    return _class_shape(origin or annotation, parts)


def _one_of(parts: list[Any]) -> Shape | None:
    shapes = [shape for part in dict.fromkeys(parts) if (shape := shape_of(part))]
    if not shapes:
        return None
    if len(parts) == 1:  # Optional: None passes anyway
        return shapes[0]
    names = [shape.name for shape in shapes if isinstance(shape, Known)]
    for name in names:
        if names.count(name) > 1:
            raise PayloadError(f"a union of two classes named {name} cannot be distinguished; rename one of them")
    return Choice(tuple(shapes))


def _class_shape(cls: Any, parts: tuple[Any, ...]) -> Shape | None:
    if cls is tuple:
        if len(parts) == 2 and parts[1] is ...:
            return Items(tuple, shape_of(parts[0]))
        return Places(tuple(map(shape_of, parts))) if parts else Items(tuple, None)
    if cls in _SETS:
        return Items(_SETS[cls], shape_of(parts[0]) if parts else None)
    if cls in _LISTS:
        return Items(list, inner) if parts and (inner := shape_of(parts[0])) else None
    if cls in _DICTS:
        return Values(inner) if len(parts) == 2 and (inner := shape_of(parts[1])) else None
    return _own_shape(cls) if isinstance(cls, type) else None


def _own_shape(cls: type) -> Known | None:
    if issubclass(cls, Enum):
        return Known(cls, "$enum", lambda member, path: member.value, _member)
    if hasattr(cls, "model_validate") and hasattr(cls, "model_dump"):
        return Known(cls, "$object", _model_apart, _model)
    if hasattr(cls, "__struct_fields__"):
        return Known(cls, "$object", _struct_apart, _struct)
    if dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        return Known(cls, "$object", _record_apart, _record)
    return None


_abc = collections.abc
_SETS: dict[Any, type] = {set: set, _abc.MutableSet: set, _abc.Set: frozenset, frozenset: frozenset}
_LISTS = {list, _abc.MutableSequence, _abc.Sequence, _abc.Collection, _abc.Iterable}
_DICTS = {dict, _abc.MutableMapping, _abc.Mapping}


# The shapes. A container leaves a value of another type unchanged: the call ignored the task's annotation, and `dumps`
# refuses what JSON cannot represent.


@dataclass(frozen=True, slots=True)
class Items:
    """A list, set or tuple of any length, each item of one shape, or of none."""

    kind: type
    item: Shape | None

    def encode(self, value: Any, path: str) -> Any:
        if not _is_several(value):
            return value
        if self.kind in _SETS_BY_NAME.values():
            _made(as_set, path, value)  # refuse a set that is too large now, not in the worker
        if self.item is None:
            return value
        encoded = [self.item.encode(item, f"{path}[{n}]") for n, item in enumerate(value)]
        # Not the form in which `dumps` writes a set: before they are revived, the items cannot be hashed.
        return Named("$object", type(value).__name__, encoded) if isinstance(value, set | frozenset) else encoded

    def revive(self, value: Any, path: str) -> Any:
        named = _named(value)
        stored = named[1] if named and named[0] in _names(self) else value
        if not _is_several(stored):
            return value
        item = self.item
        revived = stored if item is None else [item.revive(v, f"{path}[{n}]") for n, v in enumerate(stored)]
        kind = _SETS_BY_NAME[named[0]] if named else type(value) if isinstance(value, set | frozenset) else self.kind
        if kind in _SETS_BY_NAME.values():
            return _made(as_set, path, revived, kind=kind)
        return _made(kind, path, revived)

    def holds(self, value: Any) -> bool:
        return isinstance(value, set | frozenset if self.kind in _SETS_BY_NAME.values() else list | tuple)


_SETS_BY_NAME: dict[str, type] = {"set": set, "frozenset": frozenset}


@dataclass(frozen=True, slots=True)
class Places:
    """A tuple of a fixed length, each place with its own shape, or none."""

    places: tuple[Shape | None, ...]

    def encode(self, value: Any, path: str) -> Any:
        return [p.encode(v, at) if p else v for p, v, at in self._each(value, path)] if self.holds(value) else value

    def revive(self, value: Any, path: str) -> Any:
        if not self.holds(value):
            return value
        return tuple(p.revive(v, at) if p else v for p, v, at in self._each(value, path))

    def holds(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == len(self.places)

    def _each(self, value: Any, path: str) -> Iterable[tuple[Shape | None, Any, str]]:
        return ((place, item, f"{path}[{n}]") for n, (place, item) in enumerate(zip(self.places, value, strict=True)))


@dataclass(frozen=True, slots=True)
class Values:
    """A dict whose values have one shape."""

    item: Shape

    def encode(self, value: Any, path: str) -> Any:
        return {k: self.item.encode(v, f"{path}.{k}") for k, v in value.items()} if self.holds(value) else value

    def revive(self, value: Any, path: str) -> Any:
        return {k: self.item.revive(v, f"{path}.{k}") for k, v in value.items()} if self.holds(value) else value

    def holds(self, value: Any) -> bool:
        return isinstance(value, dict) and _named(value) is None


@dataclass(frozen=True, slots=True)
class Choice:
    """A union. A value that no shape matches is one of its plain members, or `dumps` refuses it."""

    shapes: tuple[Shape, ...]

    def encode(self, value: Any, path: str) -> Any:
        return next((shape.encode(value, path) for shape in self.shapes if shape.holds(value)), value)

    def revive(self, value: Any, path: str) -> Any:
        if (named := _named(value)) is None:
            return next((shape.revive(value, path) for shape in self.shapes if shape.holds(value)), value)
        names = {name: shape for shape in self.shapes for name in _names(shape)}
        if named[0] in names:
            return names[named[0]].revive(value, path)
        _refuse(path, f"the payload holds a {named[0]}; expected {' or '.join(names)}")

    def holds(self, value: Any) -> bool:
        return any(shape.holds(value) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class Known:
    """A class that the annotation names, with functions that convert its instances to JSON values and back."""

    cls: type
    tag: Literal["$enum", "$object"]
    apart: Callable[[Any, str], Any]
    together: Callable[[type, Any, str], Any]

    @property
    def name(self) -> str:
        return self.cls.__qualname__

    def encode(self, value: Any, path: str) -> Any:
        if self.holds(value):
            return Named(self.tag, self.name, self.apart(value, path))
        if isinstance(value, self.cls):
            kind = type(value).__qualname__
            _refuse(path, f"a {kind} would come back as {self.name}. Annotate the parameter with {kind}")
        self.revive(value, path)  # a plain value in its place: refuse an invalid one now, not in the worker
        return value

    def revive(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, self.cls):
            return value
        named = _named(value)
        return self.together(self.cls, value if named is None else named[1], path)

    def holds(self, value: Any) -> bool:
        return type(value) is self.cls


Shape = Items | Places | Values | Choice | Known


def _names(shape: Shape) -> list[str]:
    """Return the names with which `Named` values of this shape are written."""
    if isinstance(shape, Known):
        return [shape.name]
    if isinstance(shape, Choice):
        return [name for inner in shape.shapes for name in _names(inner)]
    return list(_SETS_BY_NAME) if isinstance(shape, Items) and shape.kind in _SETS_BY_NAME.values() else []


# Taking apart and putting together.


def _member(cls: Any, body: Any, path: str) -> Any:
    try:
        return cls(tuple(body) if isinstance(body, list) else body)
    except Exception as error:  # `_missing_` is user code
        members = ", ".join(short(member.value) for member in list(cls)[:10])
        _refuse(path, f"{short(body)} is no {cls.__qualname__}; expected one of {members}", error)


def _record_apart(value: Any, path: str) -> dict[str, Any]:
    cls: Any = type(value)
    fields = _fields(cls)
    if fields.unfilled:
        what = f"{cls.__qualname__}({fields.unfilled[0]}=...) is not kept in a field, so it cannot be made again"
        _refuse(path, f"{what}. Give that parameter a default, or make it a field")
    parts = ((name, shape, getattr(value, name)) for name, shape in fields.shapes.items())
    return {name: shape.encode(part, f"{path}.{name}") if shape else part for name, shape, part in parts}


def _record(cls: type, body: Any, path: str) -> Any:
    fields = _fields(cls)
    if not isinstance(body, dict):
        _refuse(path, f"{short(body)} is no {cls.__qualname__}; expected an object of {', '.join(fields.shapes)}")
    if unknown := [name for name in body if name not in fields.shapes]:
        _refuse(path, f"{cls.__qualname__} has no field {unknown[0]!r}; the job may come from another version")
    parts = {n: shape.revive(v, f"{path}.{n}") if (shape := fields.shapes[n]) else v for n, v in body.items()}
    made = _made(cls, path, **{name: part for name, part in parts.items() if name not in fields.late})
    for name in fields.late & parts.keys():
        object.__setattr__(made, name, parts[name])  # this also works for a frozen dataclass
    return made


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a dataclass or NamedTuple."""

    shapes: dict[str, Shape | None]
    late: frozenset[str]  # set after the constructor: field(init=False)
    unfilled: list[str]  # required by the constructor and kept in no field, such as an InitVar


@functools.lru_cache(maxsize=4096)
def _fields(cls: Any) -> Fields:
    found = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    names = [field.name for field in found] or list(getattr(cls, "_fields", ()))
    wanted = inspect.signature(cls).parameters.values()
    hints = hints_of(cls)
    return Fields(
        shapes={name: shape_of(hints.get(name)) for name in names},
        late=frozenset(field.name for field in found if not field.init),
        unfilled=[p.name for p in wanted if p.default is p.empty and p.name not in names and p.kind not in _REST],
    )


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _model_apart(value: Any, path: str) -> Any:
    # The model decides which names `model_validate` reads and what it ignores: try, and compare.
    problem: Any = "its fields would not be the same"
    for by_alias in (True, False):
        try:
            body = _plain(value.model_dump(mode="python", round_trip=True, by_alias=by_alias))
            again = type(value).model_validate(body)
            if all(getattr(again, name) == getattr(value, name) for name in type(value).model_fields):
                return body
        except Exception as error:  # validators and serialisers are user code
            problem = error
    _refuse(path, f"{type(value).__qualname__} is not restored by model_dump and model_validate: {problem}")


def _plain(body: Any) -> Any:
    """Return a dumped model's fields as plain values, which `model_validate` converts back."""
    if isinstance(body, Enum):
        return _plain(body.value)
    if isinstance(body, dict):
        return {str(_plain(key)): _plain(item) for key, item in body.items()}
    if isinstance(body, list | tuple):
        return [_plain(item) for item in body]
    if isinstance(body, set | frozenset):
        return type(body)(item if isinstance(item, tuple) else _plain(item) for item in body)
    return str(body) if type(body).__module__ in _WRITTEN_AS_TEXT else body


_WRITTEN_AS_TEXT = {"ipaddress", "pathlib", "pathlib._local", "pydantic.networks", "pydantic_core._pydantic_core"}


def _model(cls: Any, body: Any, path: str) -> Any:
    return _made(cls.model_validate, path, body)


# msgspec leaves these as they are, and `json_codec` tags them.
_NATIVE = (datetime, date, time, timedelta, UUID, Decimal, bytes)


def _struct_apart(value: Any, path: str) -> Any:
    return _made(sys.modules["msgspec"].to_builtins, path, value, builtin_types=_NATIVE, str_keys=True)


def _struct(cls: type, body: Any, path: str) -> Any:
    return _made(sys.modules["msgspec"].convert, path, body, type=cls, builtin_types=_NATIVE, str_keys=True)


def _made(make: Callable[..., Any], path: str, *args: Any, **named: Any) -> Any:
    try:
        return make(*args, **named)
    except Exception as error:  # a constructor is user code
        owner = getattr(named.get("type", make), "__qualname__", "value")
        _refuse(path, f"the payload does not fit {owner}: {error}", error)


def _named(value: Any) -> tuple[str, Any] | None:
    """Return the name and the body of a value that was written as `Named`; None for anything else."""
    if isinstance(value, dict) and len(value) == 1:
        ((tag, body),) = value.items()
        if tag in ("$enum", "$object") and isinstance(body, list) and len(body) == 2 and isinstance(body[0], str):
            return body[0], body[1]
    return None


def _is_several(value: Any) -> bool:
    return type(value) in (list, tuple, set, frozenset)


def _refuse(path: str, what: str, cause: Exception | None = None) -> NoReturn:
    raise PayloadError(f"{path}: {what}.") from cause
