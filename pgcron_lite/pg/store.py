"""The PostgreSQL store: the verbs of a queue, one statement each.

The same verbs as `memory.MemoryStore`; `tests/test_store.py` is their contract. Every write about a running job
names its id and its claim; nothing changed is an answer, not an error. The statements live in the room of their
verb: `enqueue`, `claim`, `settle`, `pipeline`, `workers`, `schedules_planning` and `schedules_ticks`, and `admin` and
`schedules_admin` for what people ask.
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
        """The doorbell as one worker hears it. Its socket ends the worker's sleep; `tell`, when it has one."""
        self._bell = Listener(self.direct, self.schema, self.notify, tell)
        return self._bell

    def check_schema(self) -> None:
        """Refuse a schema that is missing or does not fit this code, with the command that helps."""
        refusal = self._schema_state().refusal(self.schema)
        if refusal is not None:
            raise SchemaMismatch(refusal)

    def describe(self) -> str:
        """The database in a line, for the start of a worker."""
        server = self.server()
        state = self._schema_state()
        return (
            f"PostgreSQL {server['version'].split()[0]} at {self.address}, schema {self.schema} at"
            f" {state.have}/{state.want}, up to 4 of {server['max_connections']} connections"
        )

    def _schema_state(self) -> migrate.SchemaState:
        # On a connection we have: where connections are scarce, one more just to look may be one too many.
        try:
            row = self._rows(migrate.STATE)[0]
        except SchemaMismatch:
            return migrate.SchemaState(0, migrate.newest(), 0)
        return migrate.SchemaState(row.have, migrate.newest(), row.code)
