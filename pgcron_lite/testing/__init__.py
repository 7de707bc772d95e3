"""Testing what an app does with its jobs and schedules: `with app.testing() as t:`, and the pytest plugin.

`stage` is what a test can do in the `block`. There one worker after the other fills a `post`, a `crank` turns it, its
slots run jobs `here`, and `turns` are taken by the threads that may. The `timeline` keeps the time, the `outlook`
knows what happens next, and `passage` goes there. A test asks by `names`, sees each `run`, and is told which job that
it `wanted` is missing and which `obstacle` one has met. `commits` notices the end of your transactions, `databases`
makes real ones. Nothing is loaded before it is asked for: pytest imports the `plugin` in every run, of whatever tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Run as Run
    from .stage import Stage as Stage

_HOMES = {"Run": "run", "Stage": "stage"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
