"""Test support for apps with jobs and schedules: `with app.testing() as t:`, and the pytest plugin.

Tests use the `harness`; a `session` is one block of it. The `driver` steps the worker and moves the `clock`;
`inline_slots` run jobs in the calling thread. A `run_record` is one attempt as tests see it; `explain` writes the
messages of failed assertions. `after_commit` detects the end of the caller's transactions, `databases` creates real
databases. Modules are imported on first use, as pytest imports the `plugin` in every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .harness import Harness as Harness
    from .run_record import RunRecord as RunRecord

_HOMES = {"Harness": "harness", "RunRecord": "run_record"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
