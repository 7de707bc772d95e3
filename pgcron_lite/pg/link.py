"""One connection that comes back: opened on first use, and again after it broke.

Behind a transaction pooler another client gets the same server connection next, so nothing may be left behind in it:
each unit of work is a transaction that brings its own isolation level and limits, sent in one round trip. Only where
the server itself is proven to be at the other end are statements prepared and limits set for the session, and a
statement goes without any ceremony.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, LiteralString, NoReturn

import psycopg
import psycopg.waiting
from psycopg import errors as pg_errors
from psycopg import sql
from psycopg.rows import namedtuple_row
from psycopg.types.json import set_json_loads

from ..clock import monotonic
from ..errors import ConfigError, DatabaseRefused, DatabaseUnavailable, LatePatch, SchemaMismatch
from .address import Address
from .prepared import Answer, Prepared, Values, encoding_of
from .refusals import LEAVE, TRY_AGAIN, WRONG_SCHEMA, interruption, unreachable, worded

logger = logging.getLogger(__name__)

Params = Mapping[str, Any] | None
Row = Any

# Long enough that a connection in use is not asked every time whether it still lives.
IDLE_SECONDS = 0.05

# Ours, whatever the role, the database or the server have as defaults. The search path too: a
# role that may create a function in `public` would otherwise get a worker to call it, as format(text, integer) say.
_LIMITS: LiteralString = """
    select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', %(local)s) as path,
           pg_catalog.set_config('lock_timeout', %(lock)s, %(local)s) as lock,
           pg_catalog.set_config('statement_timeout', %(statement)s, %(local)s) as statement,
           pg_catalog.set_config('idle_in_transaction_session_timeout', %(idle)s, %(local)s) as idle,
           -- Our statements go from key to key. Planned for a table that was small, a join of whole sets or a scan
           -- would be kept when it has grown a thousandfold.
           pg_catalog.set_config(name, 'off', %(local)s)
    from (values ('enable_seqscan'), ('enable_hashjoin'), ('enable_mergejoin'), ('jit')) as plans (name)
"""
_LEVEL: LiteralString = "select pg_catalog.set_config('default_transaction_isolation', 'read committed', false)"

_UNANSWERED = "a statement was sent and not answered"


@lru_cache(maxsize=512)
def in_schema(query: LiteralString, schema: str) -> LiteralString:
    """`query` as it is sent. Statements say `pgcron`; a schema of another name takes its place.

    The name is a plain identifier, so the statement is as literal as it was.
    """
    if schema == "pgcron":
        return query
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", schema):
        raise ConfigError(f"schema {schema!r}: expected a plain lower-case name of at most 40 letters, digits and _")
    return re.sub(r"\bpgcron\b", schema, query)  # type: ignore[return-value,unused-ignore]


class Link:
    """One connection for one purpose. Threads may share it; they take turns."""

    def __init__(
        self,
        address: Address,
        schema: str,
        *,
        lock_seconds: float = 2.0,
        statement_seconds: float = 30.0,
        hears: bool = False,
    ) -> None:
        self.address = address
        self.schema = schema
        self.lock_seconds = lock_seconds
        self.statement_seconds = statement_seconds
        # Counts connections, so that an observer can tell whether its watch was broken.
        self.generation = 0
        self.busy_since: float | None = None
        self._conn: psycopg.Connection[Row] | None = None
        self._turn = threading.Lock()
        self._used_at = 0.0
        # The channels of notices that have arrived and were not asked for yet; None for a link that does not listen.
        self._heard: list[str] | None = [] if hears else None
        # Is the server itself at the other end, and no pooler? Then the session is ours: plans and limits stay.
        self._prepared: Prepared | None = None
        self._trusts_plans = True
        _links.add(self)

    def rows(self, query: LiteralString, params: Params = None) -> list[Row]:
        """Run one statement in a transaction of its own and return its rows."""
        with self._connected() as conn:
            if self._prepared is not None:
                # One statement is a transaction, and its limits are those of the session.
                return _fetched(conn.execute(in_schema(query, self.schema), params))
            return _fetched(self._limited(conn, in_schema(query, self.schema), params))

    @contextmanager
    def asking(self, query: LiteralString, values: Values) -> Iterator[Answer]:
        """Send one statement. The server works on it during the block, and the answer is there when it is over.

        For many rows: they come as plain tuples in the server's own format, and are decoded on demand.
        """
        with self._connected() as conn:
            if self._prepared is not None:
                with self._prepared.asking(in_schema(query, self.schema), values) as answer:
                    yield answer
            else:
                rows = [tuple(row) for row in _fetched(self._limited(conn, in_schema(query, self.schema), values))]
                yield Answer(len(rows), lambda: rows)

    def run(self, query: LiteralString, values: Values) -> None:
        """Like `rows`, the shortest way: no rows come back, and parameters are `Values`."""
        with self._connected() as conn:
            if self._prepared is not None:
                self._prepared.run(in_schema(query, self.schema), values)
            else:
                self._limited(conn, in_schema(query, self.schema), values)

    def run_then(self, query: LiteralString, values: Values, then: LiteralString) -> psycopg.Error | None:
        """`run`, and with the same trip a second transaction behind its commit: what went wrong there is returned."""
        with self._connected() as conn:
            if self._prepared is not None:
                return self._prepared.run_then(in_schema(query, self.schema), values, in_schema(then, self.schema))
            self._limited(conn, in_schema(query, self.schema), values)
            try:
                self._limited(conn, in_schema(then, self.schema), None)
            except psycopg.Error as error:
                return error
            return None

    def copy(self, query: LiteralString, blocks: Callable[[str], Iterable[bytes]]) -> None:
        """Send rows as COPY reads them, in a transaction of its own. `blocks` is told the encoding of texts."""
        with self.transaction() as conn, conn.cursor().copy(in_schema(query, self.schema)) as copy:
            for block in blocks(encoding_of(conn)):
                copy.write(block)

    def alone(self, query: LiteralString | sql.Composed) -> None:
        """Run one statement with no transaction around it: for what belongs to the session, as LISTEN does."""
        with self._connected() as conn:
            conn.execute(in_schema(query, self.schema) if isinstance(query, str) else query)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Row]]:
        """A transaction for several statements that depend on one another."""
        with self._connected() as conn, conn.transaction():
            if self._prepared is None:
                conn.execute(_LIMITS, self._limits(local=True))
            yield conn

    @property
    def is_open(self) -> bool:
        return self._conn is not None and not self._conn.closed

    @property
    def is_ours(self) -> bool:
        """Is there a connection, and the server itself at the other end of it?"""
        return self.is_open and self._prepared is not None

    def fileno(self) -> int:
        assert self._conn is not None
        return self._conn.fileno()

    def notices(self) -> list[str]:
        """The channels of the notices that have arrived. Waits for nothing, so it goes by no clock."""
        assert self._heard is not None
        server = self.connection().pgconn
        server.consume_input()
        while (notice := server.notifies()) is not None:
            self._heard.append(notice.relname.decode("utf-8", "replace"))
        channels = self._heard[:]
        del self._heard[: len(channels)]
        return channels

    def connection(self) -> psycopg.Connection[Row]:
        """The connection itself, opened if need be; for the listener."""
        if self._conn is not None and not self._conn.closed:
            return self._conn
        self.generation += 1
        return self._open()

    def cut(self) -> None:
        """End a call that hangs in another thread, by shutting its socket down.

        Closing would free the descriptor for somebody else while the other thread still waits on it.
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
        with self._turn:
            self.busy_since = monotonic()
            handled = sys.exc_info()[1]
            try:
                self._replace_if_idled_out()
                yield self.connection()
            except psycopg.Error as error:
                self._refuse(error, handled)
            except BaseException:
                # A greenlet killed in the middle of a statement leaves it running on the server.
                self.close()
                raise
            finally:
                self.busy_since, self._used_at = None, monotonic()

    def _refuse(self, error: psycopg.Error, handled: BaseException | None) -> NoReturn:
        """Raise what `error` means, and keep the connection only if it is worth keeping."""
        if (thrown_in := interruption(error, handled)) is not None:
            self.close()
            raise thrown_in from None
        if isinstance(error, LEAVE):
            self._trusts_plans = False
            self.close()
            raise DatabaseUnavailable(worded(error)) from error
        self._recover()
        if isinstance(error, WRONG_SCHEMA):
            raise SchemaMismatch(f"{worded(error)}. Run: pgcron migrate") from error
        if isinstance(error, TRY_AGAIN):
            raise DatabaseUnavailable(worded(error)) from error
        raise DatabaseRefused(worded(error)) from error

    def _limits(self, *, local: bool) -> dict[str, Any]:
        """In milliseconds. The last one is for a process that is frozen with half of its statements sent."""
        seconds = {"lock": self.lock_seconds, "statement": self.statement_seconds, "idle": 10.0}
        return {"local": local, **{name: f"{value * 1000:.0f}" for name, value in seconds.items()}}

    def _limited(self, conn: psycopg.Connection[Row], query: LiteralString, params: Params) -> psycopg.Cursor[Row]:
        """Run one statement in a transaction that brings its own level and limits, in one round trip."""
        answer: psycopg.Cursor[Row] | None = None
        refusal: psycopg.Error | None = None
        try:
            with conn.pipeline():
                try:
                    conn.execute("begin isolation level read committed")
                    conn.execute(_LIMITS, self._limits(local=True))
                    answer = conn.execute(query, params)
                    conn.execute("commit")
                except psycopg.Error as error:
                    # Held until the pipeline is over: psycopg logs what it cannot tidy up after an error.
                    refusal = error
        except psycopg.Error as error:
            raise refusal or error from None
        if refusal is not None or answer is None:
            raise refusal or pg_errors.InternalError(_UNANSWERED)
        return answer

    def _replace_if_idled_out(self) -> None:
        """Open a new connection if the server ended ours for being idle: the operator's wish, and no outage.

        So it is not counted either; an observer that looks seldom could never watch without a break.
        """
        conn = self._conn
        if conn is None or conn.closed or monotonic() - self._used_at < IDLE_SECONDS or not _has_said_more(conn):
            return
        try:
            conn.execute("select")
        except pg_errors.IdleSessionTimeout:
            self.close()
            self._open()

    def _open(self) -> psycopg.Connection[Row]:
        check_patching()
        try:
            conn = psycopg.connect(self.address.conninfo, autocommit=True, row_factory=namedtuple_row)
        except psycopg.Error as error:
            raise unreachable(self.address, error) from error
        # Ours from here on, so that `cut` reaches it: a pooler lets us in and keeps us waiting for the server.
        self._conn = conn
        conn.prepare_threshold, self._prepared = None, None
        _read_json_as_sent(conn)
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        try:
            standby, backend = self._introduce(conn)
        except psycopg.Error as error:
            self.close()
            raise unreachable(self.address, error) from error
        if standby:
            self.close()
            raise DatabaseUnavailable(f"{self.address} is a read-only standby; waiting for the primary")
        if self._trusts_plans and backend == conn.info.backend_pid:
            # The server itself answered, not a pooler that would send the next statement elsewhere.
            conn.prepare_threshold = 2
            self._settle_in(conn)
            self._prepared = Prepared(conn)
        heard = self._heard
        if heard is not None:
            conn.add_notify_handler(lambda notice: heard.append(notice.channel))
        else:
            # Behind a pooler we may be sent what others listen to, and psycopg would keep it all.
            conn.add_notify_handler(lambda notice: None)
        return conn

    def _introduce(self, conn: psycopg.Connection[Row]) -> tuple[bool, int]:
        row = conn.execute("select pg_is_in_recovery() as standby, pg_backend_pid() as backend").fetchall()[0]
        return bool(row.standby), int(row.backend)

    def _settle_in(self, conn: psycopg.Connection[Row]) -> None:
        """Level and limits for the whole session, which is ours alone."""
        try:
            conn.execute(_LIMITS, self._limits(local=False))
            conn.execute(_LEVEL)
        except psycopg.Error as error:
            self.close()
            raise unreachable(self.address, error) from error

    def _recover(self) -> None:
        """After an error: keep the connection only if it is clean."""
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
        """In a forked child: the connection is the parent's, and so may be whoever holds the turn."""
        if self._conn is not None:
            _parents_connections.append(self._conn)
        self._conn = None
        self._turn = threading.Lock()


_links: weakref.WeakSet[Link] = weakref.WeakSet()

# Kept alive on purpose: closing one of these in the child would end the parent's session.
_parents_connections: list[psycopg.Connection[Row]] = []


def _after_fork() -> None:
    for link in list(_links):
        link.forget_parents_connection()


os.register_at_fork(after_in_child=_after_fork)


def check_patching() -> None:
    """Refuse to go on half-patched. psycopg chose how to wait when it was imported, and cannot be told again."""
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
    """JSON comes in the encoding of the connection, and psycopg reads all of it as UTF-8."""
    encoding = encoding_of(conn)
    if encoding != "utf-8":
        set_json_loads(lambda text: json.loads(text if isinstance(text, str) else text.decode(encoding)), conn)


def _fetched(cursor: psycopg.Cursor[Row]) -> list[Row]:
    return cursor.fetchall() if cursor.description else []


def _has_said_more(conn: psycopg.Connection[Row]) -> bool:
    """Has the server sent something that nobody asked for?"""
    poller = select.poll()
    poller.register(conn.fileno(), select.POLLIN)
    return bool(poller.poll(0))
