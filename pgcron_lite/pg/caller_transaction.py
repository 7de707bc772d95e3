"""Enqueueing in the caller's own transaction, on whatever connection the caller has.

One SQL function is the door; each kind of connection only differs in how a statement is run. SQLAlchemy, Django and
psycopg2 are imported only when a connection of theirs is passed, so they are loaded already.
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

# Under this name a session keeps how many jobs were enqueued in its transaction.
UNSENT = "pgcron_unsent_jobs"

# The same door in the two ways of writing a parameter. The types are named in full: the caller's search_path is not
# ours to trust.
_DOOR = "select id from pgcron.enqueue_many(cast(%(jobs)s as pg_catalog.json), cast(%(ring)s as boolean)) as id"
_DOOR_TEXT = "select id from pgcron.enqueue_many(cast(:jobs as pg_catalog.json), cast(:ring as boolean)) as id"
_END = "select pgcron.complete(%(id)s, cast(%(claim)s as pg_catalog.uuid), cast(%(result)s as pg_catalog.json))"
_END_TEXT = "select pgcron.complete(:id, cast(:claim as pg_catalog.uuid), cast(:result as pg_catalog.json))"

_MAY_READ_LABEL = "select has_table_privilege(to_regclass('pgcron.facts'), 'select')"


def check_database(conn: Any, checked: set[str], check_label: CheckLabel, *, schema: str) -> None:
    """Refuse a connection to a database of another environment. A database that is in `checked` is not asked again."""
    database = _database(conn)
    if database is None or database in checked:
        return
    # An error would end the caller's transaction, so what may not be read, or is not there, is left alone.
    [[may_read]] = _run(conn, _MAY_READ_LABEL, _MAY_READ_LABEL, {}, schema)
    rows = _run(conn, LABEL, LABEL, {}, schema) if may_read else []
    check_label(rows[0][0] if rows else None)
    checked.add(database)


def _database(conn: Any) -> str | None:
    """The key of the database that `conn` leads to, found without a statement; None if `conn` is no connection."""
    if isinstance(conn, (psycopg.Connection, psycopg.Cursor)):
        info = (conn if isinstance(conn, psycopg.Connection) else conn.connection).info
        return f"{info.host}:{info.port}/{info.dbname}"
    if _comes_from(conn, "psycopg2"):
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
    """Insert `jobs` on the caller's connection. They exist when the caller commits, and never if not."""
    if not jobs:
        return []
    with _explained(schema):
        rows = _run(conn, _DOOR, _DOOR_TEXT, {"jobs": _document(jobs), "ring": rings}, schema)
    if _is_sqlalchemy(conn):
        _watch_session(conn, len(rows))
    return [row[0] for row in rows]


def complete_on(conn: Any, job_id: int, claim: uuid.UUID, result: str | None, *, schema: str) -> bool:
    """End a running job on the caller's connection, to be committed with the caller's data."""
    with _explained(schema):
        rows = _run(conn, _END, _END_TEXT, {"id": job_id, "claim": str(claim), "result": result}, schema)
    return bool(rows[0][0])


@contextmanager
def _explained(schema: str) -> Iterator[None]:
    """Say what to do where our functions are missing. Every other error is the caller's, and stays as it is."""
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
        # A cursor of our own, so that the caller's row factory and pending results stay as they are.
        connection = conn if isinstance(conn, psycopg.Connection) else conn.connection
        with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
            return cursor.execute(in_schema(query, schema), params).fetchall()
    if _comes_from(conn, "psycopg2"):
        # The plain class of cursors, so that rows are tuples whatever the caller's factory makes of them.
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
    """A Connection, a Session, or a proxy for one (scoped_session): what executes `text()` here and now."""
    return _comes_from(conn, "sqlalchemy", "flask_sqlalchemy") and hasattr(conn, "execute") and not _is_async(conn)


def _watch_session(conn: Any, count: int) -> None:
    """Log a warning if the session ends its transaction with neither a commit nor a rollback of the caller's."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    session = conn if isinstance(conn, Session) else conn.registry() if hasattr(conn, "registry") else None
    if session is None:
        return
    if UNSENT not in session.info:
        event.listen(session, "after_commit", _decided)
        event.listen(session, "after_rollback", _decided)
        event.listen(session, "after_transaction_end", _transaction_ended)
    session.info[UNSENT] = session.info.get(UNSENT, 0) + count


def _decided(session: Any) -> None:
    session.info[UNSENT] = 0


def _transaction_ended(session: Any, transaction: Any) -> None:
    if transaction.parent is None and session.info.get(UNSENT):
        logger.warning(
            "%d job(s) enqueued on a session were discarded: it was closed without session.commit()",
            session.info[UNSENT],
        )
        session.info[UNSENT] = 0


def _is_django(conn: Any) -> bool:
    """Return whether it is `django.db.connection`, or one of `django.db.connections`."""
    return _comes_from(conn, "django") and hasattr(conn, "vendor") and hasattr(conn, "cursor")


def _check_vendor(conn: Any) -> None:
    """Refuse a Django connection to another database."""
    if conn.vendor != "postgresql":
        raise OptionError(f"conn={_kind(conn)}: {_elsewhere(conn.vendor)}")


def _elsewhere(name: str) -> str:
    return (
        f"it is connected to {name}, and the queue is in PostgreSQL. One transaction cannot span both: leave conn out,"
        " and enqueue after your commit."
    )


def _check_dialect(conn: Any) -> None:
    """Refuse a session of another database before it answers with a syntax error."""
    # A session may speak to several databases; the one that it sends plain text to is the one that counts.
    name = conn.dialect.name if hasattr(conn, "dialect") else conn.get_bind().dialect.name
    if name != "postgresql":
        raise OptionError(f"conn={_kind(conn)}: {_elsewhere(name)}")


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
        "expected a psycopg 3 or psycopg2 connection or cursor, a SQLAlchemy Connection, Session or scoped_session, or"
        " Django's connection, so that the job is committed with your data." + by_hand
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
