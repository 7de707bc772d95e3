"""Real databases for tests: a PostgreSQL server while the tests run, and a fresh copy of our schema for each test.

The server is the embedded one. It ends with its tests, however they end: a guard process watches them.
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

# Data may be lost when the machine crashes, which ends the tests anyway.
_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "100"}

# Deletes the cluster when our end of its stdin closes. The kernel closes it too if this process is killed.
_GUARD = """
import sys
from pgcron_lite.embedded import EmbeddedPostgres
sys.stdin.read()
EmbeddedPostgres(sys.argv[1]).reset()
"""


@contextlib.contextmanager
def server(home: Path) -> Iterator[EmbeddedPostgres]:
    """Run a server in the folder `home` until the end of the block."""
    embedded = EmbeddedPostgres(home, settings=_FAST)
    package = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))}
    # In another session, so that Ctrl-C reaches only the tests.
    guard = subprocess.Popen(
        [sys.executable, "-c", _GUARD, str(embedded.home)], stdin=subprocess.PIPE, env=env, start_new_session=True
    )
    try:
        embedded.start()
        yield embedded
    finally:
        guard.communicate(timeout=60)


class Databases:
    """A factory for databases on one server."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}
        self._conn: Any = None

    def create(self, schema: str = "pgcron") -> str:
        """Create a database with our tables in `schema`, and return its URL."""
        if schema not in self._templates:
            self._templates[schema] = self._migrated(schema)
        return self._copy(self._templates[schema])

    def drop(self, url: str) -> None:
        """Drop a database, even if clients are still connected to it."""
        from psycopg import sql

        self._execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(_name(url))))

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def _migrated(self, schema: str) -> str:
        from ..pg.migrate import migrate
        from ..pg.url import parse_url

        url = self._copy("template0")
        migrate(parse_url(url, application="pgcron testing"), schema)
        return _name(url)

    def _copy(self, template: str) -> str:
        from psycopg import sql

        name = f"pgcron_test_{next(self._numbers)}"
        statement = sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        if int(self._server.data_directory.name.removeprefix("pg")) >= 15:
            # Copying the files takes 10 ms here, writing every page to the log takes 60.
            statement += sql.SQL(" strategy file_copy")
        self._execute(statement)
        # Without the options of the URL: they are libpq's, and tests may use a driver that does not know them.
        return self._server.url.partition("?")[0].removesuffix("postgres") + name

    def _execute(self, statement: Any) -> None:
        import psycopg

        if self._conn is None:
            self._conn = psycopg.connect(self._server.url, autocommit=True)
        self._conn.execute(statement)


def _name(url: str) -> str:
    return url.rpartition("/")[2]
