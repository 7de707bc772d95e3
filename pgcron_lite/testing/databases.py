"""Real databases for tests: a PostgreSQL server for as long as the tests run, and a fresh copy of our schema for each.

The server is the embedded one. It ends with its tests however they end, for a process beside them watches.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..embedded import EmbeddedPostgres

# Data may be lost when the machine dies, and then the tests are over as well.
_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "100"}

# Deletes the cluster when our end of its input closes, which the system does for us if we are killed.
_GUARD = """
import sys
from pgcron_lite.embedded import EmbeddedPostgres
sys.stdin.read()
EmbeddedPostgres(sys.argv[1]).reset()
"""


@contextlib.contextmanager
def server(home: Path) -> Iterator[EmbeddedPostgres]:
    """A running server in the folder `home`, until the end of the block."""
    embedded = EmbeddedPostgres(home, settings=_FAST)
    package = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))}
    # A session of its own: Ctrl-C is for the tests.
    guard = subprocess.Popen(
        [sys.executable, "-c", _GUARD, str(embedded.home)], stdin=subprocess.PIPE, env=env, start_new_session=True
    )
    try:
        embedded.start()
        yield embedded
    finally:
        guard.communicate(timeout=60)


class Databases:
    """Makes databases on one server, and drops them."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}
        self._conn: Any = None

    def create(self, schema: str = "pgcron") -> str:
        """The URL of a fresh database with our tables in `schema`."""
        if schema not in self._templates:
            self._templates[schema] = self._migrated(schema)
        return self._copy(self._templates[schema])

    def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected to it."""
        from psycopg import sql

        self._execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(_name(url))))

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def _migrated(self, schema: str) -> str:
        from ..pg.address import address
        from ..pg.migrate import migrate

        url = self._copy("template0")
        migrate(address(url, application="pgcron testing"), schema)
        return _name(url)

    def _copy(self, template: str) -> str:
        from psycopg import sql

        name = f"pgcron_test_{next(self._numbers)}"
        statement = sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        if int(self._server.data_directory.name.removeprefix("pg")) >= 15:
            # Copying the files takes 10 ms here, writing every page to the log takes 60.
            statement += sql.SQL(" strategy file_copy")
        self._execute(statement)
        return self._server.url.removesuffix("postgres") + name

    def _execute(self, statement: Any) -> None:
        import psycopg

        if self._conn is None:
            self._conn = psycopg.connect(self._server.url, autocommit=True)
        self._conn.execute(statement)


def _name(url: str) -> str:
    return url.rpartition("/")[2]
