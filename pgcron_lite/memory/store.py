"""The memory store: the same verbs as PostgreSQL's, on dictionaries and a lock. For tests and for trying things out.

It keeps nothing when the process ends. `tests/test_store.py` holds it to the contract, and a differential test drives
it beside the real one. What the verbs do is in the room of the same name as in `pg/`; two rooms are only here:
`schedules_declarations`, what living code declares, and `upcoming`, what tests ask that move the clock.
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
    """The queue in this process's memory."""

    schema = "memory"
    rings = True
    # There is no connection that could break or hang.
    generation = 1
    busy_seconds = 0.0

    def cut(self) -> None:
        """Nothing hangs here."""

    def check_schema(self) -> None:
        """There is none that could be missing."""

    def describe(self) -> str:
        return "in memory; nothing is kept when this process ends"

    def shrink(self, size: int) -> None:
        """It has no connections to save."""

    def close(self) -> None:
        """Nothing to close; what was enqueued stays until the process ends."""
