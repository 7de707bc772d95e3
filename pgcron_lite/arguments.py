"""The arguments of a call: bound to the function's parameters when the job is made, and again when it is run.
What the function returns goes the same way back.

Stored as an object of parameter names, so that reordering parameters does no harm; further positional arguments lie
under ``*name``, further keywords under ``**name``. Jobs made in SQL may also hold a plain array of positional ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from . import payload, revive
from .errors import PayloadError, near_miss

POSITIONAL = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


class Arguments:
    """How one function is called."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        self._function = function
        self._signature = inspect.signature(function)
        self._parameters = self._signature.parameters
        self._hints: dict[str, Any] | None = None
        # The parameters' names if every call can be told by them alone and no value needs help to travel.
        self._plain: tuple[str, ...] | None = None
        self._names: frozenset[str] = frozenset()

    def dumps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], limit: int) -> str:
        """The call as JSON text. A call the function would refuse is refused here, as a TypeError."""
        hints = self._annotations()
        if self._plain is not None and len(args) == len(self._plain) and not kwargs:
            if not args:
                return "{}"
            return payload.dumps(dict(zip(self._plain, args, strict=True)), path="args", limit=limit)
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}{self._signature} cannot be called like this: {error}") from None
        plain: dict[str, Any] = {}
        for name, value in bound.items():
            kind = self._parameters[name].kind
            hint = hints.get(name)
            if kind is inspect.Parameter.VAR_POSITIONAL:
                plain[f"*{name}"] = [revive.encode(v, hint, f"args.{name}[{i}]") for i, v in enumerate(value)]
            elif kind is inspect.Parameter.VAR_KEYWORD:
                plain[f"**{name}"] = {k: revive.encode(v, hint, f"args.{k}") for k, v in value.items()}
            else:
                plain[name] = revive.encode(value, hint, f"args.{name}")
        return payload.dumps(plain, path="args", limit=limit)

    def loads(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call a job holds. `PayloadError` when it cannot be read, TypeError when it fits this function no more."""
        stored = payload.loads(text)
        if isinstance(stored, list):
            return self._positional(stored)
        if isinstance(stored, dict):
            return self._named(stored)
        raise PayloadError(f"args: expected an object of arguments or an array, got {type(stored).__name__}")

    def dumps_result(self, value: Any, limit: int) -> str:
        """What the function returned, as JSON text."""
        encoded = revive.encode(value, self._annotations().get("return"), "result")
        return payload.dumps(encoded, path="result", limit=limit)

    def loads_result(self, text: str) -> Any:
        """What the function returned, as its annotation says."""
        return revive.revive(payload.loads(text), self._annotations().get("return"), path="result")

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
                args += [revive.revive(v, hint, path=f"args.{name}[{i}]") for i, v in enumerate(rest)]
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                own = left.pop(f"**{name}", {})
                kwargs |= {k: revive.revive(v, hint, path=f"args.{k}") for k, v in (left | own).items()}
                left = {}
            elif name in left:
                value = revive.revive(left.pop(name), hint, path=f"args.{name}")
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

    def _positional(self, stored: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self._signature.bind(*stored).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}{self._signature} cannot be called with this job's array: {error}") from None
        hints = self._annotations()
        args: list[Any] = []
        for name, value in bound.items():
            if self._parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                args += [revive.revive(v, hints.get(name), path=f"args.{name}[{i}]") for i, v in enumerate(value)]
            else:
                args.append(revive.revive(value, hints.get(name), path=f"args.{name}"))
        return tuple(args), {}

    def _position(self, name: str) -> int:
        return list(self._parameters).index(name)

    def _annotations(self) -> dict[str, Any]:
        """The parameters' types, resolved at the first call: a forward reference may name what comes later."""
        if self._hints is None:
            self._hints = revive.hints_of(self._function)
            self._plain = self._told_by_name()
            self._names = frozenset(self._plain or ())
        return self._hints

    def _told_by_name(self) -> tuple[str, ...] | None:
        usual = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if any(p.kind is not usual for p in self._parameters.values()):
            return None
        assert self._hints is not None
        if any(revive.shape_of(self._hints.get(name)) is not None for name in self._parameters):
            return None
        return tuple(self._parameters)
