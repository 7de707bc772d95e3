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
    LEAVE,
    TRY_AGAIN,
    WRONG_SCHEMA,
    interruption,
    no_schema,
    pooled_by_statement,
    pools_statements,
    refusal,
    trouble,
    unreachable,
    worded,
)
from .prepared import Answer, Prepared, Values, encoding_of
from .rows import rows_of
from .url import DatabaseUrl

logger = logging.getLogger(__name__)

Params = Mapping[str, Any] | None
Row = Any

# Long enough that a connection in use is not asked every time whether it still lives.
IDLE_SECONDS = 0.05

# The code of the warnings that functions of our schema raise.
OUR_WARNING = "01P0C"

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
_LEVEL: LiteralString = """
    select pg_catalog.set_config('default_transaction_isolation', 'read committed', false) as level,
           pg_catalog.set_config('default_transaction_read_only', 'off', false) as read_only
"""

_UNANSWERED = "a statement was sent and not answered"


# The query for the environment label of a database, and the check of its answer.
LABEL: LiteralString = "select f.value as label from pgcron.facts as f where f.name = 'environment'"
CheckLabel = Callable[[str | None], None]
_UNREADABLE: tuple[type[psycopg.Error], ...] = (*WRONG_SCHEMA, pg_errors.InsufficientPrivilege)


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


class Backend(NamedTuple):
    """A process of the server, told from a later one of the same number by when it began."""

    pid: int
    begun: str


class Connection:
    """One connection for one purpose. Threads may share it; they take turns."""

    def __init__(
        self,
        address: DatabaseUrl,
        schema: str,
        *,
        lock_seconds: float = LOCK_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
        hears: bool = False,
        check_label: CheckLabel | None = None,
    ) -> None:
        self.address = address
        self.schema = schema
        self.lock_seconds = lock_seconds
        self.statement_seconds = statement_seconds
        self._check_label = check_label
        # Counts connections, so that an observer can tell whether its watch was broken.
        self.generation = 0
        self.busy_since: float | None = None
        self._conn: psycopg.Connection[Row] | None = None
        self._turn = threading.Lock()
        self._used_at = 0.0
        # The channels of notices that have arrived and were not asked for yet; None for a connection that does not
        # listen.
        self._heard: list[str] | None = [] if hears else None
        # Is the server itself at the other end, and no pooler? Then the session is ours: plans and limits stay.
        self._prepared: Prepared | None = None
        self._backend: Backend | None = None
        # Of connections that broke: these processes of the server may still be sent what is on its way to them.
        self.lost: deque[Backend] = deque(maxlen=8)
        self._trusts_plans = True
        _all_connections.add(self)

    def rows(self, query: LiteralString, params: Params = None) -> list[Row]:
        """Run one statement in a transaction of its own and return its rows."""
        with self._connected() as conn:
            if self._prepared is not None:
                # One statement is a transaction, and its limits are those of the session.
                return fetched(conn.execute(in_schema(query, self.schema), params))
            return fetched(self._limited(conn, in_schema(query, self.schema), params))

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
                # Behind the block, as the first time above, so that an error is never raised before it.
                answer = Answer()
                yield answer
                rows = fetched(self._limited(conn, in_schema(query, self.schema), values))
                answer.count, answer.rows = len(rows), lambda: rows

    def run(self, query: LiteralString, values: Values) -> int:
        """Like `rows`, the shortest way: no rows come back but their number, and parameters are `Values`."""
        with self._connected() as conn:
            if self._prepared is not None:
                return self._prepared.run(in_schema(query, self.schema), values)
            return self._limited(conn, in_schema(query, self.schema), values).rowcount

    def run_then(
        self, query: LiteralString, values: Values, then: LiteralString
    ) -> tuple[int, psycopg.Error | None]:
        """`run`, and with the same trip a second transaction behind its commit: what went wrong there is returned."""
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
        """True if there is a connection, and it leads to the server itself and not to a pooler."""
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
        if self._backend is not None and (self._conn is None or self._conn.closed):
            self.lost.append(self._backend)
            self._backend = None
        if (thrown_in := interruption(error, handled)) is not None:
            self.close()
            raise thrown_in from None
        if isinstance(error, LEAVE):
            self._trusts_plans = False
            self.close()
            raise DatabaseUnavailable(worded(error)) from error
        self._recover()
        if pools_statements(error):
            raise pooled_by_statement(self.address) from error
        if isinstance(error, WRONG_SCHEMA):
            raise SchemaMismatch(no_schema(self.schema, error)) from error
        if isinstance(error, TRY_AGAIN):
            raise trouble(error) from error
        raise refusal(error) from error

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
                    conn.execute("begin isolation level read committed read write")
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
        conn = connect(BoundedConnection, self.address, autocommit=True, row_factory=namedtuple_row)
        # Ours from here on, so that `cut` reaches it: a pooler lets us in and keeps us waiting for the server.
        self._conn = conn
        conn.prepare_threshold, self._prepared, self._backend = None, None, None
        _read_json_as_sent(conn)
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        conn.read_only = False
        try:
            standby, backend, begun = self._introduce(conn)
            if not standby and backend != conn.info.backend_pid:
                # A pooler. If it pools statements it says so now, and not in the middle of a transaction.
                conn.execute("begin")
                conn.execute("rollback")
        except psycopg.Error as error:
            self.close()
            raise unreachable(self.address, error) from error
        if standby:
            self.close()
            raise DatabaseUnavailable(f"{self.address} is a read-only standby; waiting for the primary")
        self._check_owner(conn)
        if self._trusts_plans and backend == conn.info.backend_pid:
            # The server itself answered, not a pooler that would send the next statement elsewhere.
            conn.prepare_threshold = 2
            self._settle_in(conn)
            self._prepared = Prepared(conn)
            self._backend = Backend(backend, begun)
        conn.add_notice_handler(_pass_on)
        conn.max_silence = self.statement_seconds + ANSWER_MARGIN
        heard = self._heard
        if heard is not None:
            conn.add_notify_handler(lambda notice: heard.append(notice.channel))
        else:
            # Behind a pooler we may be sent what others listen to, and psycopg would keep it all.
            conn.add_notify_handler(lambda notice: None)
        if self._check_label is not None:
            # With each connection: the next one may lead to another database, as after a restore or a failover.
            self._check_label(self._label(conn))
        return conn

    def _label(self, conn: psycopg.Connection[Row]) -> str | None:
        """The environment that this database belongs to, if that is written down and can be read."""
        try:
            rows = fetched(self._limited(conn, in_schema(LABEL, self.schema), None))
        except _UNREADABLE:
            # What is missing is said by the statement that needs it.
            conn.rollback()
            return None
        return rows[0].label if rows else None

    def _introduce(self, conn: psycopg.Connection[Row]) -> tuple[bool, int, str]:
        row = conn.execute(
            """
            select pg_is_in_recovery() as standby, pg_backend_pid() as backend,
                   (select a.backend_start::text from pg_stat_activity as a where a.pid = pg_backend_pid()) as begun
            """
        ).fetchall()[0]
        return bool(row.standby), int(row.backend), row.begun

    def _check_owner(self, conn: psycopg.Connection[Row]) -> None:
        """Refuse a schema that another has made for us to fall into, before anything in it is called."""
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


_all_connections: weakref.WeakSet[Connection] = weakref.WeakSet()

# Databases and schemas whose owner this process has found to be right: asked once, not by each connection.
_checked: set[tuple[str, str]] = set()

# Kept alive on purpose: closing one of these in the child would end the parent's session.
_parents_connections: list[psycopg.Connection[Row]] = []


def _after_fork() -> None:
    for connection in list(_all_connections):
        connection.forget_parents_connection()


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


def _pass_on(notice: psycopg.errors.Diagnostic) -> None:
    """Log the warnings that functions of our schema raise. Other notices are left to the server's own log."""
    if notice.sqlstate == OUR_WARNING:
        logger.error("%s. %s", notice.message_primary, notice.message_hint)


def fetched(cursor: psycopg.Cursor[Row]) -> list[Row]:
    """The rows of an answer; see `rows_of` about those that cannot be decoded."""
    result = cursor.pgresult
    if result is None or not cursor.description:
        return []
    return rows_of(cursor.connection, result, namedtuple_row(cursor))()


def _has_said_more(conn: psycopg.Connection[Row]) -> bool:
    """Return True if the server has sent something without a statement."""
    poller = select.poll()
    poller.register(conn.fileno(), select.POLLIN)
    return bool(poller.poll(0))
