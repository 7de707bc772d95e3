"""The PostgreSQL of a contest, with its defaults: databases to copy and drop, and counters of its work."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import sql

from pgcron_lite.embedded import EmbeddedPostgres

from . import processes
from .requests import Requests, StatementLog

# Everything else is the default: fsync, synchronous_commit and full_page_writes are on.
SETTINGS = {"max_connections": "200", "log_line_prefix": "%d|"}
SHOWN = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers",
         "max_wal_size", "max_connections", "jit")  # fmt: skip


class Server:
    """The PostgreSQL of a contest. Databases are copies of templates and are dropped after use."""

    def __init__(self, home: Path, version: int | None = None, **settings: str) -> None:
        self._embedded = EmbeddedPostgres(home, version=version, settings={**SETTINGS, **settings})
        self._numbers = itertools.count(1)

    def __enter__(self) -> Server:
        self._embedded.start()
        self._conn = psycopg.connect(self._embedded.socket_url, autocommit=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._conn.close()
        self._embedded.reset()

    def settings(self) -> dict[str, str]:
        """Return the settings that affect speed and durability."""
        rows = self._conn.execute(
            "select name, current_setting(name) from unnest(%s::text[]) as shown (name)", [list(SHOWN)]
        )
        return {**dict(rows.fetchall()), "filesystem": _filesystem(self._embedded.data_directory)}

    def create(self, name: str, template: str = "template0") -> str:
        """Create a copy of the database `template`. Return its name, which is `name` with a number."""
        full = f"{name}_{next(self._numbers)}"
        self.execute(sql.SQL("create database {} template {}"), full, template)
        return full

    def drop(self, database: str) -> None:
        self.execute(sql.SQL("drop database if exists {} with (force)"), database)

    def execute(self, statement: sql.SQL, *names: str) -> None:
        self._conn.execute(statement.format(*map(sql.Identifier, names)))

    def address(self, database: str) -> dict[str, Any]:
        """Return the address of a database, as a URL and in parts."""
        parts = urlsplit(self._embedded.socket_url)
        query = parse_qs(parts.query)
        return {
            "url": parts._replace(path=f"/{database}").geturl(),
            "host": query["host"][0],
            "port": int(query["port"][0]),
            "user": parts.username,
            "database": database,
        }

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.address(database)["url"], autocommit=True, application_name="benchmark")

    def settle_down(self, conn: psycopg.Connection[Any]) -> None:
        """Finish the work that the preparation has left: statistics, visibility, a checkpoint."""
        conn.execute("vacuum analyze")
        conn.execute("checkpoint")

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the server so far."""
        pid = self._embedded.pid
        return processes.family_cpu_seconds(pid) if pid is not None else 0.0

    def connections(self, database: str) -> int:
        return self._number(
            """
            select count(*) from pg_stat_activity
            where datname = %s and backend_type = 'client backend' and application_name <> 'benchmark'
            """,
            database,
        )

    @contextlib.contextmanager
    def requests(self, database: str) -> Iterator[Requests]:
        """Log every statement of the connections that are made to `database` from now on, and count it."""
        self.execute(sql.SQL("alter database {} set log_statement = 'all'"), database)
        log = StatementLog(self._embedded.data_directory / "server.log", database)

        def transactions() -> int:
            return self._number(
                "select xact_commit + xact_rollback from pg_stat_database where datname = %s", database
            )

        yield Requests(lambda: {"statements": log.count(), "transactions": transactions()})

    def _number(self, query: Any, database: str) -> int:
        row = self._conn.execute(query, [database]).fetchone()
        return int(row[0]) if row and row[0] is not None else 0


def _filesystem(path: Path) -> str:
    """Return the type of the file system of `path`: on a tmpfs nothing is durable, with any settings."""
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    on = [(len(place), kind) for _, place, kind in mounts if path.is_relative_to(place)]
    return max(on)[1] if on else "unknown"
