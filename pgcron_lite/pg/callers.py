"""Enqueueing in the caller's own transaction, on whatever connection the caller has.

One SQL function is the door; each kind of connection only differs in how a parameter is written. SQLAlchemy is never
imported here: who passes a session has it loaded.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..errors import OptionError
from ..job import NewJob
from .link import in_schema

# The same door in the two ways of writing a parameter. The types are named in full: the caller's search_path is not
# ours to trust.
_DOOR = "select id from pgcron.enqueue_many(cast(%(jobs)s as pg_catalog.json), cast(%(ring)s as boolean)) as id"
_DOOR_TEXT = "select id from pgcron.enqueue_many(cast(:jobs as pg_catalog.json), cast(:ring as boolean)) as id"
_END = "select pgcron.complete(%(id)s, cast(%(claim)s as pg_catalog.uuid), cast(%(result)s as pg_catalog.json))"
_END_TEXT = "select pgcron.complete(:id, cast(:claim as pg_catalog.uuid), cast(:result as pg_catalog.json))"


def enqueue_on(conn: Any, jobs: Sequence[NewJob], *, schema: str, rings: bool) -> list[int]:
    """Insert `jobs` on the caller's connection. They exist when the caller commits, and never if not."""
    if not jobs:
        return []
    rows = _run(conn, _DOOR, _DOOR_TEXT, {"jobs": _document(jobs), "ring": rings}, schema)
    return [row[0] for row in rows]


def complete_on(conn: Any, job_id: int, claim: uuid.UUID, result: str | None, *, schema: str) -> bool:
    """End a running job on the caller's connection, to be committed with the caller's data."""
    rows = _run(conn, _END, _END_TEXT, {"id": job_id, "claim": str(claim), "result": result}, schema)
    return bool(rows[0][0])


def _run(conn: Any, query: str, query_text: str, params: dict[str, Any], schema: str) -> Sequence[Any]:
    if isinstance(conn, (psycopg.Connection, psycopg.Cursor)):
        # A cursor of our own, so that the caller's row factory and pending results stay as they are.
        connection = conn if isinstance(conn, psycopg.Connection) else conn.connection
        with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
            return cursor.execute(in_schema(query, schema), params).fetchall()
    if _is_sqlalchemy(conn):
        from sqlalchemy import text

        _check_dialect(conn)
        rows: Sequence[Any] = conn.execute(text(in_schema(query_text, schema)), params).all()
        return rows
    raise OptionError(f"conn={_kind(conn)}: {_expected(conn)}")


def _is_sqlalchemy(conn: Any) -> bool:
    """A Connection, a Session, or a proxy for one (scoped_session): what executes `text()` here and now."""
    return _comes_from(conn, "sqlalchemy", "flask_sqlalchemy") and hasattr(conn, "execute") and not _is_async(conn)


def _check_dialect(conn: Any) -> None:
    """Refuse a session of another database before it answers with a syntax error."""
    # A session may speak to several databases; the one that it sends plain text to is the one that counts.
    name = conn.dialect.name if hasattr(conn, "dialect") else conn.get_bind().dialect.name
    if name != "postgresql":
        raise OptionError(
            f"conn={_kind(conn)}: it is connected to {name}, and the queue is in PostgreSQL. One transaction cannot"
            " span both: leave conn out, and enqueue after your commit."
        )


def _is_async(conn: Any) -> bool:
    if isinstance(conn, (psycopg.AsyncConnection, psycopg.AsyncCursor)) or _comes_from(conn, "asyncpg"):
        return True
    return any(kind.__module__.startswith("sqlalchemy.ext.asyncio") for kind in type(conn).__mro__)


def _comes_from(conn: Any, *packages: str) -> bool:
    return any(kind.__module__.split(".")[0] in packages for kind in type(conn).__mro__)


def _kind(conn: Any) -> str:
    return f"{type(conn).__module__}.{type(conn).__qualname__}"


def _expected(conn: Any) -> str:
    """What to pass instead, for the things that are passed by mistake."""
    by_hand = " On any other connection, run: select pgcron.enqueue('task', '{\"name\": \"value\"}')."
    if _is_async(conn):
        return (
            "delay() does not await, so it cannot use an async connection. Inside one, run the SQL function on it, or"
            " use `await session.run_sync(lambda s: task.options(conn=s).delay(...))`." + by_hand
        )
    if _comes_from(conn, "psycopg_pool"):
        return "this is a pool; take a connection from it: with pool.connection() as conn: ..."
    if _comes_from(conn, "sqlalchemy", "flask_sqlalchemy"):
        return "this executes nothing; pass the Session or Connection your data goes through (db.session in Flask)"
    return (
        "expected a psycopg 3 connection or cursor, or a SQLAlchemy Connection, Session or scoped_session, so that the"
        " job is committed with your data." + by_hand
    )


def _document(jobs: Sequence[NewJob]) -> str:
    """The jobs as one JSON array. Arguments are spliced in as the text they are, so that nothing is encoded twice."""
    return "[" + ",".join(_entry(job) for job in jobs) + "]"


def _entry(job: NewJob) -> str:
    fields: dict[str, Any] = {
        "task": job.task,
        "queue": job.queue,
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "max_crashes": job.max_crashes,
        "headers": dict(job.headers),
        "tags": list(job.tags),
    }
    if isinstance(job.execute_after, datetime):
        fields["execute_after"] = job.execute_after.isoformat()
    elif isinstance(job.execute_after, timedelta):
        fields["delay"] = job.execute_after.total_seconds()
    return json.dumps(fields, ensure_ascii=False)[:-1] + f',"args":{job.args}}}'
