"""A small pool of connections for callers from any thread, and the base class of everything that runs statements."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, LiteralString, Protocol

from ..clock import monotonic
from ..errors import DatabaseUnavailable
from .connection import Backend, CheckLabel, Connection, Params, fetched, in_schema
from .prepared import Values
from .url import DatabaseUrl


class Pool:
    """Up to `size` connections, opened when needed and reused last in, first out. Nothing runs in the background."""

    def __init__(self, make: Callable[[], Connection], size: int) -> None:
        self.size = size
        self._make = make
        self._all: list[Connection] = []
        self._free: list[Connection] = []
        # Connections that were in use when `close` was called. They are closed when they are returned, so that no call
        # loses its socket.
        self._retired: list[Connection] = []
        self._returned = threading.Condition()
        _all_pools.add(self)

    @contextmanager
    def take(self, patience: float = 30.0) -> Iterator[Connection]:
        """Take a connection for the duration of the block. Wait for one at most `patience` seconds."""
        connection = self._take(monotonic() + patience, patience)
        try:
            yield connection
        finally:
            self._give_back(connection)

    @property
    def generation(self) -> int:
        """A number that changes with every new connection: observations from before and after it have a gap."""
        connections = self._all
        return (
            connections[0].generation
            if len(connections) == 1
            else sum(connection.generation for connection in list(connections))
        )

    def lost(self) -> list[Backend]:
        """Return the backends of the last connections that broke."""
        # They stay in the list. If they were removed, another thread could repeat its insert before this one has
        # terminated them.
        return [backend for connection in list(self._all) for backend in connection.lost.copy()]

    @property
    def busy_seconds(self) -> float:
        """Seconds that the longest running call has taken so far."""
        # Read each value once: other threads begin and end calls meanwhile.
        started = [since for connection in list(self._all) if (since := connection.busy_since) is not None]
        return monotonic() - min(started) if started else 0.0

    def cut(self) -> None:
        """End calls that hang, from another thread."""
        for connection in list(self._all):
            if connection.busy_since is not None:
                connection.cut()

    def close(self) -> None:
        """Close the free connections now, and those in use when they are returned. Later calls open them again."""
        with self._returned:
            for connection in self._free:
                connection.close()
            self._retired = [connection for connection in self._all if connection not in self._free]

    def shrink(self, size: int) -> None:
        """Keep at most `size` connections from now on. Connections in use beyond that are closed when returned."""
        with self._returned:
            self.size = min(size, self.size)
            while self._free and len(self._all) > self.size:
                self._discard(self._free.pop(0))

    def start_over(self) -> None:
        """Reset the pool in a forked child, where the threads that held a connection or the lock do not exist."""
        self._free, self._retired = list(self._all), []
        self._returned = threading.Condition()

    def _give_back(self, connection: Connection) -> None:
        with self._returned:
            if len(self._all) > self.size:
                self._discard(connection)
                return
            if connection in self._retired:
                self._retired.remove(connection)
                connection.close()
            self._free.append(connection)
            self._returned.notify()

    def _discard(self, connection: Connection) -> None:
        self._all.remove(connection)
        connection.close()

    def _take(self, deadline: float, patience: float) -> Connection:
        with self._returned:
            while True:
                if self._free:
                    return self._free.pop()
                if len(self._all) < self.size:
                    connection = self._make()
                    self._all.append(connection)
                    return connection
                remaining = deadline - monotonic()
                if remaining <= 0:
                    raise DatabaseUnavailable(
                        f"all {self.size} connections of this process have been busy for {patience:g} s;"
                        " PGCRON_CONNECTIONS allows more"
                    )
                self._returned.wait(remaining)


_all_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_all_pools):
        pool.start_over()


os.register_at_fork(after_in_child=_after_fork)


class RunStatement(Protocol):
    """A function that runs one statement of a transaction and returns its rows."""

    def __call__(self, query: LiteralString, params: Params = None) -> list[Any]: ...


class Statements:
    """A database, the schema in it, and a few connections. Connects on first use."""

    def __init__(
        self,
        address: DatabaseUrl,
        schema: str = "pgcron",
        *,
        direct: DatabaseUrl | None = None,
        size: int = 4,
        rings: bool = True,
        check_label: CheckLabel | None = None,
    ) -> None:
        self.address = address
        self.direct = direct or address
        self.schema = schema
        self.rings = rings
        self.pool = Pool(lambda: Connection(address, schema, check_label=check_label), size)

    def now(self) -> datetime:
        """Return the time of the database's clock, which all decisions use."""
        now: datetime = self._rows("select pgcron.clock() as now")[0].now
        return now

    @property
    def generation(self) -> int:
        """A number that changes with every new connection; see `Pool.generation`."""
        return self.pool.generation

    @property
    def busy_seconds(self) -> float:
        """Seconds that the longest running statement has taken so far."""
        return self.pool.busy_seconds

    def cut(self) -> None:
        """End statements that hang, from another thread."""
        self.pool.cut()

    def shrink(self, size: int) -> None:
        """Use at most `size` connections from now on."""
        self.pool.shrink(size)

    def close(self) -> None:
        self.pool.close()

    def _rows(self, query: LiteralString, params: Params = None) -> list[Any]:
        with self.pool.take() as connection:
            return connection.rows(query, params)

    def _run(self, query: LiteralString, values: Values) -> int:
        """Run a frequent statement that returns no rows. Return the number of rows that it has written."""
        with self.pool.take() as connection:
            return connection.run(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[RunStatement]:
        """Run several statements in one transaction: all of them are committed, or none."""
        with self.pool.take() as connection, connection.transaction() as conn:

            def run(query: LiteralString, params: Params = None) -> list[Any]:
                return fetched(conn.execute(in_schema(query, self.schema), params))

            yield run

    def _tuples(self, query: LiteralString, values: Values) -> list[tuple[Any, ...]]:
        """Return many rows, as plain tuples."""
        with self.pool.take() as connection, connection.sending(query, values) as answer:
            pass
        return answer.rows()
