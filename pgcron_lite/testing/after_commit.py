"""Callbacks after the caller's transaction. psycopg has no hook for a commit, but it holds a lock during each one."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

# PQTRANS_IDLE of libpq: no transaction is open.
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
    """A wrapper of a connection's lock that checks at each release whether the transaction has ended."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = connection.lock
        self._to_do: list[Callable[[], None]] = []

    def add(self, do: Callable[[], None]) -> None:
        """Add a callback, once. There may be others: of other apps, and of the next test on this connection."""
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
    """Return the psycopg connection below a cursor, or below an object of SQLAlchemy."""
    if hasattr(conn, "connection") and callable(conn.connection):  # a Session
        conn = conn.connection()
    import psycopg

    while not isinstance(conn, psycopg.Connection):
        # `driver_connection` first: SQLAlchemy's wrapper also has every attribute of the connection itself.
        conn = getattr(conn, "driver_connection", None) or conn.connection
    return conn
