"""Values that are made for every job: never changed, and cheap to make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass with slots, frozen for the type checker alone.

    A dataclass that is frozen at run time sets each field by a call. Of the processor time that a worker spends on a
    job which does nothing, that was a quarter.
    """
    return dataclass(slots=True)(cls)
