"""Testing what an app does with its jobs and schedules: `with app.testing() as t:`, and the pytest plugin.

`stage` is the block and what can be done in it, `timeline` its clock, `here` its slots, `asked` finds jobs, `commits`
notices the end of your transactions, `databases` makes real ones. Nothing is loaded before it is asked for: pytest
imports the plugin in every run, of whatever tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .here import Run as Run
    from .stage import Stage as Stage

_HOMES = {"Run": "here", "Stage": "stage"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
