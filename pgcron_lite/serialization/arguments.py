"""The arguments of a call: bound to the function's parameters when the job is enqueued, and again when it runs.
The function's result is stored and read in the same way.

They are stored as an object of parameter names, so that parameters can be reordered. Further positional arguments are
stored as ``*name``, further keywords as ``**name``. Jobs enqueued in SQL may also have a plain array of positional
arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import PayloadError
from ..hints import foreign_option, near_miss
from . import json_codec
from .annotations import encode, hints_of, revive, shape_of

POSITIONAL = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


# Options of `Task.options` that are given to `delay` by mistake.
CALL_OPTIONS = ("queue", "priority", "execute_after", "max_attempts", "conn", "headers", "tags")


class Arguments:
    """The signature of one function, and the conversion of its arguments and results."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        self._function = function
        self._signature = inspect.signature(function)
        self._parameters = self._signature.parameters
        self._hints: dict[str, Any] | None = None
        # The parameters' names if every argument can be passed by name and no value needs conversion.
        self._plain: tuple[str, ...] | None = None
        self._names: frozenset[str] = frozenset()

    @property
    def takes_one(self) -> bool:
        """Return True if the function has one parameter, which can be given by position."""
        return [p.kind in POSITIONAL for p in self._parameters.values()] == [True]

    def dumps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], limit: int) -> str:
        """Return the call as JSON text. Arguments that the function would not accept raise TypeError."""
        hints = self._annotations()
        if self._plain is not None and len(args) == len(self._plain) and not kwargs:
            if not args:
                return "{}"
            return json_codec.dumps(dict(zip(self._plain, args, strict=True)), path="args", limit=limit)
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            meant = "".join(
                f". If {option} is meant as an option of the call: task.options({option}=...).delay(...)"
                for option in CALL_OPTIONS
                if option in kwargs and option not in self._parameters
            )
            meant += "".join(
                f"{translated}: task.options({known}=...).delay(...)"
                for option in kwargs
                if option not in self._parameters and option not in CALL_OPTIONS
                for known, translated in [foreign_option(option, CALL_OPTIONS)]
                if known
            )
            raise TypeError(f"{self.name}{self._signature} cannot be called like this: {error}{meant}") from None
        plain: dict[str, Any] = {}
        for name, value in bound.items():
            kind = self._parameters[name].kind
            hint = hints.get(name)
            if kind is inspect.Parameter.VAR_POSITIONAL:
                plain[f"*{name}"] = [encode(v, hint, f"args.{name}[{i}]") for i, v in enumerate(value)]
            elif kind is inspect.Parameter.VAR_KEYWORD:
                plain[f"**{name}"] = {k: encode(v, hint, f"args.{k}") for k, v in value.items()}
            else:
                plain[name] = encode(value, hint, f"args.{name}")
        return json_codec.dumps(plain, path="args", limit=limit)

    def loads(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call in a job. Raise `PayloadError` if it is unreadable, TypeError if the function changed."""
        stored = json_codec.loads(text)
        if isinstance(stored, list):
            return self._positional(stored)
        if isinstance(stored, dict):
            return self._named(stored)
        raise PayloadError(f"args: expected an object of arguments or an array, got {type(stored).__name__}")

    def dumps_result(self, value: Any, limit: int) -> str:
        """Return a result of the function as JSON text."""
        encoded = encode(value, self._annotations().get("return"), "result")
        return json_codec.dumps(encoded, path="result", limit=limit)

    def loads_result(self, text: str) -> Any:
        """Return a result of the function, converted by its annotation."""
        return revive(json_codec.loads(text), self._annotations().get("return"), path="result")

    def _named(self, stored: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hints = self._annotations()
        if self._plain is not None and stored.keys() == self._names:
            return (), stored
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        left = dict(stored)
        for name, parameter in self._parameters.items():
            hint = hints.get(name)
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                rest = left.pop(f"*{name}", [])
                if not isinstance(rest, list):
                    raise self._misshapen(f"*{name}", "an array of further positional arguments", rest)
                args += [revive(v, hint, path=f"args.{name}[{i}]") for i, v in enumerate(rest)]
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                own = left.pop(f"**{name}", {})
                if not isinstance(own, dict):
                    raise self._misshapen(f"**{name}", "an object of further keyword arguments", own)
                # A keyword may have the name of a parameter that only a position can fill.
                by_name = [n for n, p in self._parameters.items() if n in stored and p.kind in BY_NAME]
                self._check_given_once(own, [*left, *by_name])
                kwargs |= {k: revive(v, hint, path=f"args.{k}") for k, v in (left | own).items()}
                left = {}
            elif name in left:
                value = revive(left.pop(name), hint, path=f"args.{name}")
                if parameter.kind in POSITIONAL and len(args) == self._position(name):
                    args.append(value)
                else:
                    kwargs[name] = value
            elif parameter.default is parameter.empty:
                raise TypeError(f"{self.name}{self._signature}: the job has no argument {name!r}")
        if left:
            extra = next(iter(left))
            raise TypeError(
                f"{self.name}{self._signature}: the job has an argument {extra!r} that the function does not take"
                f"{near_miss(extra, self._parameters)}"
            )
        return tuple(args), kwargs

    def _misshapen(self, key: str, expected: str, got: object) -> PayloadError:
        return PayloadError(f"{self.name}{self._signature}: args.{key}: expected {expected}, got {type(got).__name__}")

    def _check_given_once(self, further: Mapping[str, Any], others: Sequence[str]) -> None:
        """Refuse further keyword arguments that the job also has in another place."""
        twice = next((name for name in further if name in others), None)
        if twice is not None:
            raise PayloadError(f"{self.name}{self._signature}: the job has the argument {twice!r} twice")

    def _positional(self, stored: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self._signature.bind(*stored).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}{self._signature} cannot be called with this job's array: {error}") from None
        hints = self._annotations()
        args: list[Any] = []
        for name, value in bound.items():
            if self._parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                args += [revive(v, hints.get(name), path=f"args.{name}[{i}]") for i, v in enumerate(value)]
            else:
                args.append(revive(value, hints.get(name), path=f"args.{name}"))
        return tuple(args), {}

    def _position(self, name: str) -> int:
        return list(self._parameters).index(name)

    def _annotations(self) -> dict[str, Any]:
        """Return the parameters' types, resolved at the first call: a forward reference may name a later definition."""
        if self._hints is None:
            self._hints = hints_of(self._function)
            self._plain = self._told_by_name()
            self._names = frozenset(self._plain or ())
        return self._hints

    def _told_by_name(self) -> tuple[str, ...] | None:
        usual = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if any(p.kind is not usual for p in self._parameters.values()):
            return None
        assert self._hints is not None
        if any(shape_of(self._hints.get(name)) is not None for name in self._parameters):
            return None
        return tuple(self._parameters)
