"""Repair of the sequence of job ids: it is moved forward when it is behind the ids in use, and never back.

It is behind after a failover that lost the last commits, after a restore, on a logical replica, or after a setval().
Migration 0005 explains the details.
"""

from __future__ import annotations

import logging
from typing import LiteralString

from .connection import Connection
from .pool import Statements

logger = logging.getLogger(__name__)

MEND: LiteralString = "select pgcron.mend_sequence() as behind"


class Sequencing(Statements):
    """The method of workers that keeps new ids different from those in use."""

    def mend_sequence(self) -> int:
        """Move the sequence of ids forward if it is behind. Return by how much it was; call again until that is 0."""
        with self.pool.take() as connection:
            return self._mend_on(connection)

    def _mend_on(self, connection: Connection) -> int:
        behind: int = connection.rows(MEND)[0].behind
        warn(behind)
        return behind


def warn(behind: int) -> None:
    """Log that the sequence was `behind` by this many ids, if it was."""
    if behind:
        logger.warning(
            "the sequence of job ids was %d behind the ids in use, as after a failover, a restore or a setval(); it is"
            " moved forward. Jobs that got an id twice meanwhile run, and end under a new one",
            behind,
        )
