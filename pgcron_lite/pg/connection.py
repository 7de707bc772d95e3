"""A connection that reconnects: it is opened on first use, and again after it broke.

Behind a transaction pooler, the next client gets the same server connection, so nothing may remain set in it: each unit
of work is a transaction that sets its own isolation level and limits, sent in one round trip. Only on a connection that
is proven to lead to the server itself are statements prepared and limits set for the session; there each statement is
a transaction and a single message.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, LiteralString, NamedTuple, NoReturn

import psycopg
import psycopg.waiting
from psycopg import errors as pg_errors
from psycopg import sql
from psycopg.rows import namedtuple_row
from psycopg.types.json import set_json_loads

from ..clock import monotonic
from ..errors import ConfigError, DatabaseUnavailable, LatePatch, SchemaMismatch
from . import ownership
from .bounded_connection import ANSWER_MARGIN, LOCK_SECONDS, STATEMENT_SECONDS, BoundedConnection, connect
from .errors import (
    RECONNECT,
    RETRY,
    WRONG_SCHEMA,
    interruption,
    no_schema,
    one_line,
    pooled_by_statement,
    pools_statements,
    refusal,
    unavailable,
    unreachable,
)
from .prepared import Answer, Prepared, Values, encoding_of
from .rows import rows_of
from .url import DatabaseUrl

logger = logging.getLogger(__name__)

Params = Mapping[str, Any] | None
Row = Any

# A connection that was used within this time is not checked before it is used again.
IDLE_SECONDS = 0.05

# The SQLSTATE of the warnings that functions of our schema raise.
OUR_WARNING = "01P0C"

# Set for every statement, whatever defaults the role, the database or the server have. The search path too: otherwise a
# role that may create functions in `public` could have a worker call one, such as a format(text, integer).
_LIMITS: LiteralString = """
    select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', %(local)s) as path,
           pg_catalog.set_config('lock_timeout', %(lock)s, %(local)s) as lock,
           pg_catalog.set_config('statement_timeout', %(statement)s, %(local)s) as statement,
           pg_catalog.set_config('idle_in_transaction_session_timeout', %(idle)s, %(local)s) as idle,
           -- Our statements look rows up by key. A plan made while a table was small, with a sequential scan or a join
           -- of whole tables, would be kept after the table has grown a thousandfold.
           pg_catalog.set_config(name, 'off', %(local)s)
    from (values ('enable_seqscan'), ('enable_hashjoin'), ('enable_mergejoin'), ('jit')) as plans (name)
"""
_LEVEL: LiteralString = """
    select pg_catalog.set_config('default_transaction_isolation', 'read committed', false) as level,
           pg_catalog.set_config('default_transaction_read_only', 'off', false) as read_only
"""

_UNANSWERED = "the server did not answer a statement that was sent"


# The query for the environment label of a database, and the check of its answer.
LABEL: LiteralString = "select f.value as label from pgcron.facts as f where f.name = 'environment'"
CheckLabel = Callable[[str | None], None]
_UNREADABLE: tuple[type[psycopg.Error], ...] = (*WRONG_SCHEMA, pg_errors.InsufficientPrivilege)


@lru_cache(maxsize=512)
def in_schema(query: LiteralString, schema: str) -> LiteralString:
    """Return `query` with `pgcron` replaced by the name of the schema.

    The name is checked to be a plain identifier, so nothing can be injected by it.
    """
    if schema == "pgcron":
        return query
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", schema):
        raise ConfigError(f"schema {schema!r}: expected a plain lower-case name of at most 40 letters, digits and _")
    return re.sub(r"\bpgcron\b", schema, query)  # type: ignore[return-value,unused-ignore]


class Backend(NamedTuple):
    """A process of the server. The time when it began distinguishes it from a later process with the same pid."""

    pid: int
    begun: str


class Connection:
    """One connection for one purpose. Threads may share it; a lock serialises them."""

    def __init__(
        self,
        address: DatabaseUrl,
        schema: str,
        *,
        lock_seconds: float = LOCK_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
        listens: bool = False,
        check_label: CheckLabel | None = None,
    ) -> None:
        self.address = address
        self.schema = schema
        self.lock_seconds = lock_seconds
        self.statement_seconds = statement_seconds
        self._check_label = check_label
        # Incremented with every new connection, so that an observer can tell whether its observation has a gap.
        self.generation = 0
        self.busy_since: float | None = None
        self._conn: psycopg.Connection[Row] | None = None
        self._lock = threading.Lock()
        self._used_at = 0.0
        # The channels of notifications that have arrived and were not fetched yet; None if it does not listen.
        self._received: list[str] | None = [] if listens else None
        # Set if the connection leads to the server itself and not to a pooler: prepared statements and limits persist.
        self._prepared: Prepared | None = None
        self._backend: Backend | None = None
        # The backends of connections that broke. They may still receive what is delayed in the network.
        self.lost: deque[Backend] = deque(maxlen=8)
        self._may_prepare = True
        _all_connections.add(self)

    def rows(self, query: LiteralString, params: Params = None) -> list[Row]:
        """Run one statement in a separate transaction and return its rows."""
        with self._connected() as conn:
            if self._prepared is not None:
                # The statement is a transaction by itself, with the limits of the session.
                return fetched(conn.execute(in_schema(query, self.schema), params))
            return fetched(self._limited(conn, in_schema(query, self.schema), params))

    @contextmanager
    def sending(self, query: LiteralString, values: Values) -> Iterator[Answer]:
        """Send one statement and run the block while the server works on it. The answer is complete after the block.

        For many rows: they are received in the server's binary format, and decoded to plain tuples on demand.
        """
        with self._connected() as conn:
            if self._prepared is not None:
                with self._prepared.sending(in_schema(query, self.schema), values) as answer:
                    yield answer
            else:
                # Run it after the block, as `Prepared` does the first time, so that no error is raised before the
                # block.
                answer = Answer()
                yield answer
                rows = fetched(self._limited(conn, in_schema(query, self.schema), values))
                answer.count, answer.rows = len(rows), lambda: rows

    def run(self, query: LiteralString, values: Values) -> int:
        """Run one statement as `rows` does, but faster: return only the number of rows. Parameters are `Values`."""
        with self._connected() as conn:
            if self._prepared is not None:
                return self._prepared.run(in_schema(query, self.schema), values)
            return self._limited(conn, in_schema(query, self.schema), values).rowcount

    def run_then(
        self, query: LiteralString, values: Values, then: LiteralString
    ) -> tuple[int, psycopg.Error | None]:
        """Run `query` as `run` does and, in the same round trip, `then` in a second transaction after its commit.

        Return the number of rows, and the error of the second transaction, if it failed.
        """
        with self._connected() as conn:
            if self._prepared is not None:
                return self._prepared.run_then(in_schema(query, self.schema), values, in_schema(then, self.schema))
            count = self._limited(conn, in_schema(query, self.schema), values).rowcount
            try:
                self._limited(conn, in_schema(then, self.schema), None)
            except psycopg.Error as error:
                return count, error
            return count, None

    def copy(self, query: LiteralString, blocks: Callable[[str], Iterable[bytes]]) -> None:
        """Run a COPY in a separate transaction. `blocks` gets the encoding of texts and returns the data to send."""
        with self.transaction() as conn, conn.cursor().copy(in_schema(query, self.schema)) as copy:
            for block in blocks(encoding_of(conn)):
                copy.write(block)

    def autocommit(self, query: LiteralString | sql.Composed) -> None:
        """Run one statement without a transaction around it, as needed for session commands such as LISTEN."""
        with self._connected() as conn:
            conn.execute(in_schema(query, self.schema) if isinstance(query, str) else query)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Row]]:
        """Run the block in a transaction, for several statements that depend on one another."""
        with self._connected() as conn, conn.transaction():
            if self._prepared is None:
                conn.execute(_LIMITS, self._limits(local=True))
            yield conn

    @property
    def is_open(self) -> bool:
        return self._conn is not None and not self._conn.closed

    @property
    def is_direct(self) -> bool:
        """True if there is a connection, and it leads to the server itself and not to a pooler."""
        return self.is_open and self._prepared is not None

    def fileno(self) -> int:
        assert self._conn is not None
        return self._conn.fileno()

    def notices(self) -> list[str]:
        """Return the channels of the notifications that have arrived. Does not wait, so it has no timeout."""
        assert self._received is not None
        server = self.connection().pgconn
        server.consume_input()
        while (notice := server.notifies()) is not None:
            self._received.append(notice.relname.decode("utf-8", "replace"))
        channels = self._received[:]
        del self._received[: len(channels)]
        return channels

    def connection(self) -> psycopg.Connection[Row]:
        """Return the psycopg connection; open it if necessary."""
        if self._conn is not None and not self._conn.closed:
            return self._conn
        self.generation += 1
        return self._open()

    def cut(self) -> None:
        """End a call that hangs in another thread, by shutting its socket down.

        Closing the socket would let another file get its descriptor while the other thread still waits on it.
        """
        conn = self._conn
        if conn is None or conn.closed:
            return
        try:
            duplicate = socket.socket(fileno=os.dup(conn.fileno()))
        except (OSError, psycopg.Error):
            return
        with duplicate, suppress(OSError):
            duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Row]]:
        with self._lock:
            self.busy_since = monotonic()
            handled = sys.exc_info()[1]
            try:
                self._replace_if_idle_timeout()
                yield self.connection()
            except psycopg.Error as error:
                self._raise_ours(error, handled)
            except BaseException:
                # A greenlet was killed in the middle of a statement, which still runs on the server.
                self.close()
                raise
            finally:
                self.busy_since, self._used_at = None, monotonic()

    def _raise_ours(self, error: psycopg.Error, handled: BaseException | None) -> NoReturn:
        """Raise our exception for `error`, and close the connection unless it can still be used."""
        if self._backend is not None and (self._conn is None or self._conn.closed):
            self.lost.append(self._backend)
            self._backend = None
        if (thrown_in := interruption(error, handled)) is not None:
            self.close()
            raise thrown_in from None
        if isinstance(error, RECONNECT):
            self._may_prepare = False
            self.close()
            raise DatabaseUnavailable(one_line(error)) from error
        self._recover()
        if pools_statements(error):
            raise pooled_by_statement(self.address) from error
        if isinstance(error, WRONG_SCHEMA):
            raise SchemaMismatch(no_schema(self.schema, error)) from error
        if isinstance(error, RETRY):
            raise unavailable(error) from error
        raise refusal(error) from error

    def _limits(self, *, local: bool) -> dict[str, Any]:
        """Return the parameters of `_LIMITS`, in milliseconds.

        `idle` ends the transaction of a process that was frozen with half of its statements sent.
        """
        seconds = {"lock": self.lock_seconds, "statement": self.statement_seconds, "idle": 10.0}
        return {"local": local, **{name: f"{value * 1000:.0f}" for name, value in seconds.items()}}

    def _limited(self, conn: psycopg.Connection[Row], query: LiteralString, params: Params) -> psycopg.Cursor[Row]:
        """Run one statement in a transaction that sets its own isolation level and limits, in one round trip."""
        answer: psycopg.Cursor[Row] | None = None
        refusal: psycopg.Error | None = None
        try:
            with conn.pipeline():
                try:
                    conn.execute("begin isolation level read committed read write")
                    conn.execute(_LIMITS, self._limits(local=True))
                    answer = conn.execute(query, params)
                    conn.execute("commit")
                except psycopg.Error as error:
                    # Keep it until the pipeline has ended: psycopg logs a warning if it cannot clean up after an error.
                    refusal = error
        except psycopg.Error as error:
            raise refusal or error from None
        if refusal is not None or answer is None:
            raise refusal or pg_errors.InternalError(_UNANSWERED)
        return answer

    def _replace_if_idle_timeout(self) -> None:
        """Open a new connection if the server ended ours because of `idle_session_timeout`.

        This is no outage, so `generation` does not change; otherwise an observer that queries rarely would always see a
        gap.
        """
        conn = self._conn
        if conn is None or conn.closed or monotonic() - self._used_at < IDLE_SECONDS or not _has_unread_input(conn):
            return
        try:
            conn.execute("select")
        except pg_errors.IdleSessionTimeout:
            self.close()
            self._open()

    def _open(self) -> psycopg.Connection[Row]:
        check_patching()
        conn = connect(BoundedConnection, self.address, autocommit=True, row_factory=namedtuple_row)
        # Set before the first statement, so that `cut` can end it: a pooler accepts a client and may keep it waiting
        # for a connection to the server.
        self._conn = conn
        conn.prepare_threshold, self._prepared, self._backend = None, None, None
        _read_json_as_sent(conn)
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        conn.read_only = False
        try:
            standby, backend, begun = self._identify(conn)
            if not standby and backend != conn.info.backend_pid:
                # This is a pooler. One that pools statements refuses the transaction here, and not in the middle of
                # work.
                conn.execute("begin")
                conn.execute("rollback")
        except psycopg.Error as error:
            self.close()
            raise unreachable(self.address, error) from error
        if standby:
            self.close()
            raise DatabaseUnavailable(f"{self.address} is a read-only standby; waiting for the primary")
        self._check_owner(conn)
        if self._may_prepare and backend == conn.info.backend_pid:
            # The server itself answered, and not a pooler, which could send the next statement to another backend.
            conn.prepare_threshold = 2
            self._configure_session(conn)
            self._prepared = Prepared(conn)
            self._backend = Backend(backend, begun)
        conn.add_notice_handler(_log_warning)
        conn.max_silence = self.statement_seconds + ANSWER_MARGIN
        received = self._received
        if received is not None:
            conn.add_notify_handler(lambda notice: received.append(notice.channel))
        else:
            # Behind a pooler we may receive notifications for others, which psycopg would collect without a handler.
            conn.add_notify_handler(lambda notice: None)
        if self._check_label is not None:
            # Check it on each connection: after a restore or a failover it may lead to another database.
            self._check_label(self._label(conn))
        return conn

    def _label(self, conn: psycopg.Connection[Row]) -> str | None:
        """Return the environment label of this database, or None if there is none or it cannot be read."""
        try:
            rows = fetched(self._limited(conn, in_schema(LABEL, self.schema), None))
        except _UNREADABLE:
            # The statement that needs the missing table or right reports it.
            conn.rollback()
            return None
        return rows[0].label if rows else None

    def _identify(self, conn: psycopg.Connection[Row]) -> tuple[bool, int, str]:
        row = conn.execute(
            """
            select pg_is_in_recovery() as standby, pg_backend_pid() as backend,
                   (select a.backend_start::text from pg_stat_activity as a where a.pid = pg_backend_pid()) as begun
            """
        ).fetchall()[0]
        return bool(row.standby), int(row.backend), row.begun

    def _check_owner(self, conn: psycopg.Connection[Row]) -> None:
        """Refuse a schema that an untrusted role has made, before anything in it is read or called."""
        if (self.address.conninfo, self.schema) in _checked:
            return
        try:
            if ownership.check(conn, in_schema(ownership.USE_REFUSAL, self.schema), self.schema):
                _checked.add((self.address.conninfo, self.schema))
        except psycopg.Error as error:
            self.close()
            raise unreachable(self.address, error) from error
        except ConfigError:
            self.close()
            raise

    def _configure_session(self, conn: psycopg.Connection[Row]) -> None:
        """Set the isolation level and limits for the whole session, which no other client shares."""
        try:
            conn.execute(_LIMITS, self._limits(local=False))
            conn.execute(_LEVEL)
        except psycopg.Error as error:
            self.close()
            raise unreachable(self.address, error) from error

    def _recover(self) -> None:
        """Roll back after an error; close the connection if that fails."""
        conn = self._conn
        if conn is None or conn.closed:
            return
        try:
            if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                conn.rollback()
            if conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                return
        except psycopg.Error:
            pass
        self.close()

    def forget_parents_connection(self) -> None:
        """Start without a connection in a forked child. The connection is the parent's, and so may be the lock."""
        if self._conn is not None:
            _parents_connections.append(self._conn)
        self._conn = None
        self._lock = threading.Lock()


_all_connections: weakref.WeakSet[Connection] = weakref.WeakSet()

# The databases and schemas whose owners this process has checked. Not checked again by each connection.
_checked: set[tuple[str, str]] = set()

# References that keep these alive: closing one in the child would end the parent's session.
_parents_connections: list[psycopg.Connection[Row]] = []


def _after_fork() -> None:
    for connection in list(_all_connections):
        connection.forget_parents_connection()


os.register_at_fork(after_in_child=_after_fork)


def check_patching() -> None:
    """Refuse to work if gevent was patched after psycopg was imported: psycopg chooses its wait function on import."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.saved:
        return
    blocks = getattr(psycopg.waiting.wait, "__name__", "") == "wait_c" or not monkey.is_module_patched("select")
    if blocks:
        raise LatePatch(
            "gevent was patched after psycopg had been imported, so every query would stop all greenlets. Start with"
            " `pgcron worker --gevent` or app.run_worker(gevent=True), or call gevent.monkey.patch_all() before any"
            " import that loads psycopg (SQLAlchemy and Flask-SQLAlchemy do)."
        )


def _read_json_as_sent(conn: psycopg.Connection[Row]) -> None:
    """Decode JSON in the encoding of the connection. psycopg would always read it as UTF-8."""
    encoding = encoding_of(conn)
    if encoding != "utf-8":
        set_json_loads(lambda text: json.loads(text if isinstance(text, str) else text.decode(encoding)), conn)


def _log_warning(notice: psycopg.errors.Diagnostic) -> None:
    """Log the warnings that functions of our schema raise. Ignore other notices, which the server logs."""
    if notice.sqlstate == OUR_WARNING:
        logger.error("%s. %s", notice.message_primary, notice.message_hint)


def fetched(cursor: psycopg.Cursor[Row]) -> list[Row]:
    """Return the rows of an answer. `rows_of` describes those that cannot be decoded."""
    result = cursor.pgresult
    if result is None or not cursor.description:
        return []
    return rows_of(cursor.connection, result, namedtuple_row(cursor))()


def _has_unread_input(conn: psycopg.Connection[Row]) -> bool:
    """Return True if the server has sent something that was not requested, such as the end of the session."""
    poller = select.poll()
    poller.register(conn.fileno(), select.POLLIN)
    return bool(poller.poll(0))
