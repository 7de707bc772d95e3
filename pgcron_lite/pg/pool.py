"""A small pool of connections for callers from any thread, and the statements that run on it."""

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
    """Up to `size` connections, opened when needed, the last used first; nothing runs in the background."""

    def __init__(self, make: Callable[[], Connection], size: int) -> None:
        self.size = size
        self._make = make
        self._all: list[Connection] = []
        self._free: list[Connection] = []
        # Taken when everything was to be closed: closed on their return, for a call must not lose its socket.
        self._retired: list[Connection] = []
        self._returned = threading.Condition()
        _all_pools.add(self)

    @contextmanager
    def take(self, patience: float = 30.0) -> Iterator[Connection]:
        """A connection for the time of the block; waits for one at most `patience` seconds."""
        connection = self._take(monotonic() + patience, patience)
        try:
            yield connection
        finally:
            self._give_back(connection)

    @property
    def generation(self) -> int:
        """Changes whenever a connection was opened: what was watched before was not watched without a break."""
        connections = self._all
        return (
            connections[0].generation
            if len(connections) == 1
            else sum(connection.generation for connection in list(connections))
        )

    def lost(self) -> list[Backend]:
        """Return the last backends whose connections broke."""
        # Left where they are: were they taken, another thread could repeat its insert before this one has ended them.
        return [backend for connection in list(self._all) for backend in connection.lost.copy()]

    @property
    def busy_seconds(self) -> float:
        """How long the longest call that is under way has lasted."""
        # Read once each: other threads begin and end calls meanwhile.
        started = [since for connection in list(self._all) if (since := connection.busy_since) is not None]
        return monotonic() - min(started) if started else 0.0

    def cut(self) -> None:
        """End calls that hang, from another thread."""
        for connection in list(self._all):
            if connection.busy_since is not None:
                connection.cut()

    def close(self) -> None:
        """Close what is free now, and what is in use when it comes back. What is taken later is opened again."""
        with self._returned:
            for connection in self._free:
                connection.close()
            self._retired = [connection for connection in self._all if connection not in self._free]

    def shrink(self, size: int) -> None:
        """Keep at most `size` connections from now on; what is in use beyond that is closed when it comes back."""
        with self._returned:
            self.size = min(size, self.size)
            while self._free and len(self._all) > self.size:
                self._let_go(self._free.pop(0))

    def start_over(self) -> None:
        """In a forked child: whoever held a connection, or the lock, does not exist here."""
        self._free, self._retired = list(self._all), []
        self._returned = threading.Condition()

    def _give_back(self, connection: Connection) -> None:
        with self._returned:
            if len(self._all) > self.size:
                self._let_go(connection)
                return
            if connection in self._retired:
                self._retired.remove(connection)
                connection.close()
            self._free.append(connection)
            self._returned.notify()

    def _let_go(self, connection: Connection) -> None:
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
    """Runs one statement of a transaction and returns its rows."""

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
        """The one clock that counts: the database's."""
        now: datetime = self._rows("select pgcron.clock() as now")[0].now
        return now

    @property
    def generation(self) -> int:
        """Changes whenever a connection had to be opened: what was watched before has a gap."""
        return self.pool.generation

    @property
    def busy_seconds(self) -> float:
        """How long the longest statement under way has taken so far."""
        return self.pool.busy_seconds

    def cut(self) -> None:
        """End statements that hang, from another thread."""
        self.pool.cut()

    def shrink(self, size: int) -> None:
        """Make do with `size` connections from now on."""
        self.pool.shrink(size)

    def close(self) -> None:
        self.pool.close()

    def _rows(self, query: LiteralString, params: Params = None) -> list[Any]:
        with self.pool.take() as connection:
            return connection.rows(query, params)

    def _run(self, query: LiteralString, values: Values) -> int:
        """Run a frequent statement that returns no rows. Return how many rows it has written."""
        with self.pool.take() as connection:
            return connection.run(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[RunStatement]:
        """Several statements that depend on one another: all of them are committed, or none."""
        with self.pool.take() as connection, connection.transaction() as conn:

            def run(query: LiteralString, params: Params = None) -> list[Any]:
                return fetched(conn.execute(in_schema(query, self.schema), params))

            yield run

    def _tuples(self, query: LiteralString, values: Values) -> list[tuple[Any, ...]]:
        """Rows in plenty, by position."""
        with self.pool.take() as connection, connection.asking(query, values) as answer:
            pass
        return answer.rows()
