"""What every verb of the store needs: a link to run its statement on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, LiteralString, Protocol

from .address import Address
from .link import Link, Params, in_schema
from .links import Links
from .prepared import Values


class Run(Protocol):
    """Runs one statement of a transaction and returns its rows."""

    def __call__(self, query: LiteralString, params: Params = None) -> list[Any]: ...


class Statements:
    """A database, the schema in it, and a few links. Connects on first use."""

    def __init__(
        self,
        address: Address,
        schema: str = "pgcron",
        *,
        direct: Address | None = None,
        size: int = 4,
        rings: bool = True,
    ) -> None:
        self.address = address
        self.direct = direct or address
        self.schema = schema
        self.rings = rings
        self.links = Links(lambda: Link(address, schema), size)

    def now(self) -> datetime:
        """The one clock that counts: the database's."""
        now: datetime = self._rows("select pgcron.clock() as now")[0].now
        return now

    @property
    def generation(self) -> int:
        """Changes whenever a connection had to be opened: what was watched before has a gap."""
        return self.links.generation

    @property
    def busy_seconds(self) -> float:
        """How long the longest statement under way has taken so far."""
        return self.links.busy_seconds

    def cut(self) -> None:
        """End statements that hang, from another thread."""
        self.links.cut()

    def shrink(self, size: int) -> None:
        """Make do with `size` connections from now on."""
        self.links.shrink(size)

    def close(self) -> None:
        self.links.close()

    def _rows(self, query: LiteralString, params: Params = None) -> list[Any]:
        with self.links.take() as link:
            return link.rows(query, params)

    def _run(self, query: LiteralString, values: Values) -> None:
        """What is sent all the time, and brings no rows."""
        with self.links.take() as link:
            link.run(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[Run]:
        """Several statements that depend on one another: all of them are committed, or none."""
        with self.links.take() as link, link.transaction() as conn:

            def run(query: LiteralString, params: Params = None) -> list[Any]:
                cursor = conn.execute(in_schema(query, self.schema), params)
                return cursor.fetchall() if cursor.description else []

            yield run

    def _tuples(self, query: LiteralString, values: Values) -> list[tuple[Any, ...]]:
        """Rows in plenty, by position."""
        with self.links.take() as link, link.asking(query, values) as answer:
            pass
        return answer.rows()
