"""Enqueueing and completing jobs in the caller's transaction, on the caller's connection.

All kinds of connections call the same SQL functions and differ only in how a statement is run. SQLAlchemy, Django and
psycopg2 are used only if a connection of theirs is passed, so they are imported already.
"""

from __future__ import annotations

import json
import logging
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..errors import OptionError, SchemaMismatch
from ..job import NewJob
from .connection import LABEL, CheckLabel, in_schema
from .errors import WRONG_SCHEMA, no_schema

logger = logging.getLogger(__name__)

# The key in `session.info` for the number of jobs enqueued in its transaction.
UNSENT = "pgcron_unsent_jobs"

# The enqueue on the caller's connection, `pgcron.enqueue_many` (migration 0007), in the two styles of parameters.
#
# The jobs must exist if the caller commits, and not otherwise. So this is one statement in the transaction that the
# caller has, and nothing else: it opens no transaction, sets no limits, and is not repeated after an error, which is
# the caller's. The function draws the ids, checks the values and rings the doorbell, so it does the same for every
# driver and language. The jobs are one JSON array, because that is a parameter which all drivers can send.
#
# The types are written with their schema, because the caller's search_path cannot be trusted.
_ENQUEUE = "select id from pgcron.enqueue_many(cast(%(jobs)s as pg_catalog.json), cast(%(ring)s as boolean)) as id"
_ENQUEUE_TEXT = "select id from pgcron.enqueue_many(cast(:jobs as pg_catalog.json), cast(:ring as boolean)) as id"
_COMPLETE = "select pgcron.complete(%(id)s, cast(%(claim)s as pg_catalog.uuid), cast(%(result)s as pg_catalog.json))"
_COMPLETE_TEXT = "select pgcron.complete(:id, cast(:claim as pg_catalog.uuid), cast(:result as pg_catalog.json))"

_MAY_READ_LABEL = "select has_table_privilege(to_regclass('pgcron.facts'), 'select')"


def check_database(conn: Any, checked: set[str], check_label: CheckLabel, *, schema: str) -> None:
    """Refuse a connection to a database of another environment. A database in `checked` is not queried again."""
    database = _database(conn)
    if database is None or database in checked:
        return
    # An error would abort the caller's transaction, so do not read a table that is missing or that the role cannot
    # read.
    [[may_read]] = _run(conn, _MAY_READ_LABEL, _MAY_READ_LABEL, {}, schema)
    rows = _run(conn, LABEL, LABEL, {}, schema) if may_read else []
    check_label(rows[0][0] if rows else None)
    checked.add(database)


def _database(conn: Any) -> str | None:
    """Return a key for the database of `conn`, without running a statement; None if `conn` is no connection."""
    if isinstance(conn, (psycopg.Connection, psycopg.Cursor)):
        info = (conn if isinstance(conn, psycopg.Connection) else conn.connection).info
        return f"{info.host}:{info.port}/{info.dbname}"
    if _is_from(conn, "psycopg2"):
        info = getattr(conn, "connection", conn).info
        return f"{info.host}:{info.port}/{info.dbname}"
    if _is_django(conn):
        _check_vendor(conn)
        given = conn.settings_dict
        return f"{given.get('HOST')}:{given.get('PORT')}/{given.get('NAME')}?{given.get('OPTIONS')}"
    if _is_sqlalchemy(conn):
        _check_dialect(conn)
        bind = conn if hasattr(conn, "dialect") else conn.get_bind()
        url = bind.engine.url
        return f"{url.host}:{url.port}/{url.database}?{sorted(url.query.items())}"
    return None


def enqueue_on(conn: Any, jobs: Sequence[NewJob], *, schema: str, rings: bool) -> list[int]:
    """Insert `jobs` on the caller's connection and return their ids. They exist once the caller commits."""
    if not jobs:
        return []
    with _schema_errors(schema):
        rows = _run(conn, _ENQUEUE, _ENQUEUE_TEXT, {"jobs": _document(jobs), "ring": rings}, schema)
    if _is_sqlalchemy(conn):
        _watch_session(conn, len(rows))
    return [row[0] for row in rows]


def complete_on(conn: Any, job_id: int, claim: uuid.UUID, result: str | None, *, schema: str) -> bool:
    """End a running job on the caller's connection, to be committed with the caller's data.

    Return False if the claim is no longer ours.
    """
    with _schema_errors(schema):
        rows = _run(conn, _COMPLETE, _COMPLETE_TEXT, {"id": job_id, "claim": str(claim), "result": result}, schema)
    return bool(rows[0][0])


@contextmanager
def _schema_errors(schema: str) -> Iterator[None]:
    """Raise `SchemaMismatch` if our functions are missing. Every other error is the caller's and is not changed."""
    try:
        yield
    except Exception as error:
        # SQLAlchemy keeps the driver's error in `orig`. psycopg2 calls the code `pgcode`.
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if code in {kind.sqlstate for kind in WRONG_SCHEMA}:
            raise SchemaMismatch(no_schema(schema, cause)) from error
        raise


def _run(conn: Any, query: str, query_text: str, params: dict[str, Any], schema: str) -> Sequence[Any]:
    if isinstance(conn, (psycopg.Connection, psycopg.Cursor)):
        # A new cursor, so that the caller's row factory and pending results do not change.
        connection = conn if isinstance(conn, psycopg.Connection) else conn.connection
        with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
            return cursor.execute(in_schema(query, schema), params).fetchall()
    if _is_from(conn, "psycopg2"):
        # The standard cursor class, so that rows are tuples whatever cursor factory the caller uses.
        plain = sys.modules["psycopg2.extensions"].cursor
        with getattr(conn, "connection", conn).cursor(cursor_factory=plain) as cursor:
            cursor.execute(in_schema(query, schema), params)
            return list(cursor.fetchall())
    if _is_django(conn):
        _check_vendor(conn)
        with conn.cursor() as cursor:
            cursor.execute(in_schema(query, schema), params)
            return list(cursor.fetchall())
    if _is_sqlalchemy(conn):
        from sqlalchemy import text

        _check_dialect(conn)
        rows: Sequence[Any] = conn.execute(text(in_schema(query_text, schema)), params).all()
        return rows
    raise OptionError(f"conn={_kind(conn)}: {_expected(conn)}")


def _is_sqlalchemy(conn: Any) -> bool:
    """Return True for a synchronous Connection or Session, or a proxy for one, such as a scoped_session."""
    return _is_from(conn, "sqlalchemy", "flask_sqlalchemy") and hasattr(conn, "execute") and not _is_async(conn)


def _watch_session(conn: Any, count: int) -> None:
    """Log a warning if the session ends its transaction although the caller neither committed nor rolled it back."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    session = conn if isinstance(conn, Session) else conn.registry() if hasattr(conn, "registry") else None
    if session is None:
        return
    if UNSENT not in session.info:
        event.listen(session, "after_commit", _transaction_decided)
        event.listen(session, "after_rollback", _transaction_decided)
        event.listen(session, "after_transaction_end", _transaction_ended)
    session.info[UNSENT] = session.info.get(UNSENT, 0) + count


def _transaction_decided(session: Any) -> None:
    session.info[UNSENT] = 0


def _transaction_ended(session: Any, transaction: Any) -> None:
    if transaction.parent is None and session.info.get(UNSENT):
        logger.warning(
            "%d job(s) enqueued on a session were discarded: it was closed without session.commit()",
            session.info[UNSENT],
        )
        session.info[UNSENT] = 0


def _is_django(conn: Any) -> bool:
    """Return True for `django.db.connection` and for those in `django.db.connections`."""
    return _is_from(conn, "django") and hasattr(conn, "vendor") and hasattr(conn, "cursor")


def _check_vendor(conn: Any) -> None:
    """Refuse a Django connection to another kind of database."""
    if conn.vendor != "postgresql":
        raise OptionError(f"conn={_kind(conn)}: {_other_database(conn.vendor)}")


def _other_database(name: str) -> str:
    return (
        f"it is connected to {name}, and the queue is in PostgreSQL. One transaction cannot span both: leave conn out,"
        " and enqueue after your commit."
    )


def _check_dialect(conn: Any) -> None:
    """Refuse a session on another kind of database, which would answer with a syntax error."""
    # A session may use several databases. Our statement is plain text, so its default bind is the one that counts.
    name = conn.dialect.name if hasattr(conn, "dialect") else conn.get_bind().dialect.name
    if name != "postgresql":
        raise OptionError(f"conn={_kind(conn)}: {_other_database(name)}")


def _is_async(conn: Any) -> bool:
    if isinstance(conn, (psycopg.AsyncConnection, psycopg.AsyncCursor)) or _is_from(conn, "asyncpg"):
        return True
    return any(kind.__module__.startswith("sqlalchemy.ext.asyncio") for kind in type(conn).__mro__)


def _is_from(conn: Any, *packages: str) -> bool:
    return any(kind.__module__.split(".")[0] in packages for kind in type(conn).__mro__)


def _kind(conn: Any) -> str:
    return f"{type(conn).__module__}.{type(conn).__qualname__}"


def _expected(conn: Any) -> str:
    """Return what to pass instead of `conn`, for objects that are often passed by mistake."""
    by_hand = " On any other connection, run: select pgcron.enqueue('task', '{\"name\": \"value\"}')."
    if _is_async(conn):
        return (
            "delay() does not await, so it cannot use an async connection. Run the SQL function on the connection, or"
            " use `await session.run_sync(lambda s: task.options(conn=s).delay(...))`." + by_hand
        )
    if _is_from(conn, "psycopg_pool"):
        return "this is a pool; take a connection from it: with pool.connection() as conn: ..."
    if _is_from(conn, "sqlalchemy", "flask_sqlalchemy"):
        return "this cannot execute statements; pass the Session or Connection that you use (db.session in Flask)"
    return (
        "expected a psycopg 3 or psycopg2 connection or cursor, a SQLAlchemy Connection, Session or scoped_session, or"
        " Django's connection, so that the job is committed with your data." + by_hand
    )


def _document(jobs: Sequence[NewJob]) -> str:
    """Return the jobs as one JSON array. Arguments are JSON text already and are inserted unchanged."""
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
