"""Doing something after the caller's transaction: psycopg tells nobody of a commit, but it holds a lock during it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

# As libpq counts: no transaction is open.
_IDLE = 0


def after(conn: Any, do: Callable[[], None]) -> None:
    """Call `do` once the transaction on `conn` has ended: now, if there is none."""
    connection = _below(conn)
    if _is_idle(connection):
        return do()
    if not isinstance(connection.lock, _Watched):
        connection.lock = _Watched(connection)
    connection.lock.add(do)


class _Watched:
    """A connection's lock that looks, each time it is free again, whether the transaction is over."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = connection.lock
        self._to_do: list[Callable[[], None]] = []

    def add(self, do: Callable[[], None]) -> None:
        """Once, however often it is asked for. Others may ask as well: apps, and the next test on this connection."""
        if do not in self._to_do:
            self._to_do.append(do)

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)
        if self._connection.lock is self and _is_idle(self._connection):
            self._connection.lock = self._lock
            if error is None:
                for do in self._to_do:
                    do()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def _is_idle(connection: Any) -> bool:
    return bool(connection.closed or connection.info.transaction_status == _IDLE)


def _below(conn: Any) -> Any:
    """The psycopg connection under a cursor, or under what SQLAlchemy makes of it."""
    if hasattr(conn, "connection") and callable(conn.connection):  # a Session
        conn = conn.connection()
    import psycopg

    while not isinstance(conn, psycopg.Connection):
        # `driver_connection` first: what SQLAlchemy puts around it pretends to have all that the connection has.
        conn = getattr(conn, "driver_connection", None) or conn.connection
    return conn
