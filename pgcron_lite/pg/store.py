"""The PostgreSQL store: the operations of a queue, one statement each.

It has the same methods as `memory.MemoryStore`; `tests/test_store.py` is their contract. Every write about a running
job names its id and its claim; a write that changes nothing is an answer and not an error. The statements are in the
module of their operation: `enqueue`, `claim`, `settle`, `pipeline`, `workers`, `schedules_planning` and
`schedules_ticks`, and `admin` and `schedules_admin` for operators.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import SchemaMismatch
from . import migrate
from .admin import Admin
from .enqueue import Enqueueing
from .listen import Listener
from .pipeline import Pipelining
from .schedules_admin import SchedulesAdmin
from .schedules_planning import SchedulesPlanning
from .workers import Workers


class PostgresStore(Enqueueing, Pipelining, Workers, SchedulesPlanning, Admin, SchedulesAdmin):
    """The queue in a PostgreSQL database. Connects on first use; threads may share it."""

    def open_bell(self, tell: Callable[[], None]) -> Listener:
        """Return the listener of one worker, which sleeps on its socket. It calls `tell` when it has connected."""
        self._bell = Listener(self.direct, self.schema, self.notify, tell)
        return self._bell

    def check_schema(self) -> None:
        """Refuse a schema that is missing or does not fit this code. The message names the command to run."""
        refusal = self._schema_state().refusal(self.schema)
        if refusal is not None:
            raise SchemaMismatch(refusal)

    def describe(self) -> str:
        """Return one line about the database, which a worker logs when it starts."""
        server = self.server()
        state = self._schema_state()
        return (
            f"PostgreSQL {server['version'].split()[0]} at {self.address}, schema {self.schema} at"
            f" {state.have}/{state.want}, up to 4 of {server['max_connections']} connections"
        )

    def _schema_state(self) -> migrate.SchemaState:
        # Use a connection of the pool: where connections are scarce, an additional one might be refused.
        try:
            row = self._rows(migrate.STATE)[0]
        except SchemaMismatch:
            return migrate.SchemaState(0, migrate.newest(), 0)
        return migrate.SchemaState(row.have, migrate.newest(), row.code)
