"""Store in memory, for tests and experiments: the methods of the PostgreSQL store, on dictionaries and a lock.

Its contents are lost when the process ends. `tests/test_store.py` is the contract of both stores, and a differential
test compares them. Each method is in the module that has the same name as in `pg/`. Two modules exist only here:
`schedules_declarations`, the schedules that the code of live workers declares, and `upcoming`, queries of the test
harness.
"""

from __future__ import annotations

from .admin import Admin
from .jobs import Enqueueing, Pipelining
from .schedules_admin import SchedulesAdmin
from .schedules_declarations import Declarations
from .schedules_planning import SchedulesPlanning
from .upcoming import Upcoming
from .workers import Workers


class MemoryStore(
    Enqueueing, Pipelining, Workers, SchedulesPlanning, Admin, SchedulesAdmin, Declarations, Upcoming
):
    """A queue in this process's memory."""

    schema = "memory"
    rings = True
    # There is no connection that could break or hang.
    generation = 1
    busy_seconds = 0.0

    def cut(self) -> None:
        """Do nothing: no statement can hang."""

    def check_schema(self) -> None:
        """Do nothing: no schema can be missing."""

    def describe(self) -> str:
        return "in memory; nothing is kept when this process ends"

    def shrink(self, size: int) -> None:
        """Do nothing: there are no connections."""

    def close(self) -> None:
        """Do nothing: jobs are kept until the process ends."""
