"""The type of a store: a queue in PostgreSQL or in memory, as apps, workers and commands use it.

Both have the same methods; `tests/test_store.py` is their contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .memory import MemoryStore
    from .pg.store import PostgresStore

    Store: TypeAlias = MemoryStore | PostgresStore
