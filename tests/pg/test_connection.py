"""A connection: reconnecting, its errors, and what it leaves in the session."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from faults.proxy import Proxy
from support import eventually

from pgcron_lite.errors import DatabaseRefused, DatabaseUnavailable, LoginRefused, SchemaMismatch
from pgcron_lite.pg import connection as connection_module
from pgcron_lite.pg.connection import Connection, in_schema
from pgcron_lite.pg.url import LIVELINESS, parse_url


@pytest.fixture
def make_connection(pg_url: str) -> Iterator[Callable[..., Connection]]:
    made: list[Connection] = []

    def make(url: str = pg_url, **options: Any) -> Connection:
        made.append(Connection(parse_url(url, application="pgcron test"), "pgcron", **options))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


@pytest.fixture
def connection(make_connection: Callable[..., Connection]) -> Connection:
    return make_connection()


@pytest.fixture
def admin(pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        yield conn


def backend(connection: Connection) -> int:
    return int(connection.rows("select pg_backend_pid() as pid")[0].pid)


def end(admin: psycopg.Connection[Any], pid: int) -> None:
    admin.execute("select pg_terminate_backend(%s)", [pid])
    eventually(lambda: not admin.execute("select from pg_stat_activity where pid = %s", [pid]).rowcount)


def works_again(connection: Connection) -> bool:
    try:
        return bool(connection.rows("select 1"))
    except DatabaseUnavailable:
        return False


# What it sends


def test_nothing_is_opened_before_the_first_use(make_connection: Callable[..., Connection]) -> None:
    connection = make_connection()

    assert not connection.is_open
    assert connection.generation == 0


def test_a_failing_second_transaction_does_not_undo_the_first(
    connection: Connection, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("create table public.things (id int primary key)")

    trouble = connection.run_then("insert into public.things values (1)", {}, "select 1 / 0")

    assert "division by zero" in str(trouble)
    assert [row.id for row in connection.rows("select id from public.things")] == [1]


def test_a_second_transaction_does_not_hide_an_error_of_the_first(
    connection: Connection, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("create table public.things (id int primary key)")
    connection.rows("insert into public.things values (1)")

    with pytest.raises(DatabaseRefused, match="duplicate key"):
        connection.run_then("insert into public.things values (1)", {}, "select 1 / 0")

    assert connection.run_then("insert into public.things values (2)", {}, "select 1") == (1, None)


@pytest.mark.row(66)
@pytest.mark.row(73)
def test_each_transaction_sets_its_own_isolation_level_and_limits(
    make_connection: Callable[..., Connection], admin: Any
) -> None:
    for setting in ("default_transaction_isolation = 'serializable'", "statement_timeout = 77", "lock_timeout = 77"):
        admin.execute(
            f"do $$ begin execute format('alter database %I set {setting.replace(chr(39), chr(39) * 2)}',"
            " current_database()); end $$"
        )
    connection = make_connection(lock_seconds=3, statement_seconds=4)

    (row,) = connection.rows(
        """
        select current_setting('transaction_isolation') as level, current_setting('lock_timeout') as lock,
               current_setting('statement_timeout') as statement
        """
    )
    with connection.transaction() as conn:
        inside = conn.execute(
            "select current_setting('transaction_isolation') as level, current_setting('lock_timeout') as lock"
        ).fetchone()

    assert (row.level, row.lock, row.statement) == ("read committed", "3s", "4s")
    assert inside == ("read committed", "3s")


@pytest.mark.row(66)
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
def test_a_default_of_read_only_transactions_is_overruled(
    make_connection: Callable[..., Connection], admin: Any, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    admin.execute("create table public.things (id int)")
    admin.execute(
        "do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database());"
        " end $$"
    )
    if pooled:
        monkeypatch.setattr(Connection, "_identify", lambda self, conn: (False, -1, ""))
    connection = make_connection()

    connection.rows("insert into public.things values (1)")
    connection.run("insert into public.things values (2)", {})
    connection.run_then("insert into public.things values (3)", {}, "insert into public.things values (4)")
    connection.copy("copy public.things from stdin", lambda encoding: [b"5\n"])
    with connection.transaction() as conn:
        conn.execute("insert into public.things values (6)")

    assert [row.id for row in connection.rows("select id from public.things order by id")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.row(61)
def test_nothing_is_set_for_a_session_that_may_be_shared(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pooler reports another backend pid than at login.
    monkeypatch.setattr(Connection, "_identify", lambda self, conn: (False, -1, ""))
    connection.rows("select 1")
    with connection.transaction() as conn:
        conn.execute("select 1")

    assert connection.connection().execute("select name from pg_settings where source = 'session'").fetchall() == []


def test_statements_are_prepared_on_a_connection_proven_direct(connection: Connection) -> None:
    for _ in range(5):
        connection.rows("select %(n)s::int as n", {"n": 1})

    assert connection.connection().execute("select count(*) as n from pg_prepared_statements").fetchall()[0].n > 0


def test_only_the_word_pgcron_is_replaced_by_another_schema() -> None:
    query = "select pgcron.clock() from pgcron.jobs where task = 'pgcron_lite' -- pgcronic"

    assert in_schema(query, "other") == "select other.clock() from other.jobs where task = 'pgcron_lite' -- pgcronic"
    assert in_schema(query, "pgcron") is query


@pytest.mark.row(43)
def test_keepalives_detect_a_peer_that_is_gone(connection: Connection) -> None:
    connection.rows("select 1")
    with socket.socket(fileno=socket.dup(connection.fileno())) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            idle, count, interval, user = (
                sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPCNT", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT")
            )
            assert [idle, count, interval] == [
                int(LIVELINESS[f"keepalives_{name}"]) for name in ("idle", "count", "interval")
            ]
            assert user == int(LIVELINESS["tcp_user_timeout"])


# Errors


@pytest.mark.row(40)
def test_a_connection_that_was_ended_fails_once_and_is_replaced(
    connection: Connection, admin: psycopg.Connection[Any]
) -> None:
    before = backend(connection)
    end(admin, before)

    with pytest.raises(DatabaseUnavailable):
        connection.rows("select 1")

    assert backend(connection) != before
    assert connection.generation == 2


@pytest.mark.row(41)
@pytest.mark.row(68)
@pytest.mark.parametrize(
    ("statement", "reason"),
    [("select pg_sleep(60)", "statement timeout"), ("delete from pgcron.jobs", "lock timeout")],
)
def test_a_statement_that_takes_too_long_is_cancelled_and_the_connection_kept(
    make_connection: Callable[..., Connection], pg_url: str, statement: Any, reason: str
) -> None:
    connection = make_connection(lock_seconds=0.2, statement_seconds=0.6)
    before = backend(connection)
    with psycopg.connect(pg_url) as blocker:
        blocker.execute("lock table pgcron.jobs")

        with pytest.raises(DatabaseUnavailable, match=reason):
            connection.rows(statement)

    assert backend(connection) == before


def test_a_missing_table_is_a_schema_mismatch(connection: Connection, admin: psycopg.Connection[Any]) -> None:
    admin.execute("drop schema pgcron cascade")

    with pytest.raises(SchemaMismatch, match=r"does not exist.*Run: pgcron migrate"):
        connection.rows("select * from pgcron.jobs")

    assert connection.rows("select 1 as one")[0].one == 1


def test_a_statement_that_always_fails_is_refused(connection: Connection) -> None:
    before = backend(connection)

    with pytest.raises(DatabaseRefused):
        connection.rows("insert into pgcron.jobs (task) values ('')")

    assert backend(connection) == before


@pytest.mark.row(80)
def test_an_outdated_plan_raises_once_and_closes_the_connection(
    connection: Connection, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("create table public.things (id int)")
    for _ in range(5):
        connection.rows("select * from public.things where id = %(id)s", {"id": 1})
    before = backend(connection)
    admin.execute("alter table public.things add column name text")

    with pytest.raises(DatabaseUnavailable, match="cached plan must not change result type"):
        connection.rows("select * from public.things where id = %(id)s", {"id": 1})

    for _ in range(5):
        connection.rows("select * from public.things where id = %(id)s", {"id": 1})
    assert backend(connection) != before
    admin.execute("alter table public.things add column more text")
    # From here on it prepares no statements.
    assert connection.rows("select * from public.things where id = %(id)s", {"id": 1}) == []


@pytest.mark.row(36)
def test_an_exception_in_the_middle_closes_the_connection(
    connection: Connection, admin: psycopg.Connection[Any]
) -> None:
    before = backend(connection)

    class Killed(BaseException):
        pass

    with pytest.raises(Killed), connection.transaction():
        raise Killed

    assert backend(connection) != before


@pytest.mark.row(64)
def test_a_refused_login_and_a_missing_server_raise_different_errors(
    make_connection: Callable[..., Connection], pg_url: str
) -> None:
    host = pg_url.partition("@")[2]

    for user in ("postgres:wrong", "nobody_i_know:wrong"):
        with pytest.raises(LoginRefused, match=r"authentication failed|does not exist"):
            make_connection(f"postgresql://{user}@{host}").rows("select 1")
    with pytest.raises(DatabaseUnavailable) as caught:
        make_connection(pg_url + "_that_is_not_there").rows("select 1")
    assert not isinstance(caught.value, LoginRefused)


# Idle timeouts of the operator


@pytest.mark.row(74)
def test_a_connection_that_idled_out_is_replaced_without_an_error_or_a_gap(
    make_connection: Callable[..., Connection], admin: psycopg.Connection[Any]
) -> None:
    if admin.info.server_version < 140000:
        pytest.skip("the timeout exists since PostgreSQL 14")
    admin.execute(
        """
        do $$ begin
            execute format('alter database %I set idle_session_timeout = 100', current_database());
        end $$
        """
    )
    connection = make_connection()
    for _ in range(3):
        # Not in a pipeline: the driver ends one with a message after which PostgreSQL no longer measures idle time.
        with connection.transaction() as conn:
            before = conn.info.backend_pid
        eventually(lambda pid=before: not admin.execute(
            "select from pg_stat_activity where pid = %s", [pid]
        ).rowcount)

        assert backend(connection) != before

    assert connection.generation == 1


def test_a_connection_with_other_unread_input_is_kept(
    connection: Connection, admin: psycopg.Connection[Any]
) -> None:
    before = backend(connection)
    connection.connection().execute("listen anything")
    admin.execute("notify anything")
    eventually(
        lambda: (
            time.monotonic() - connection._used_at > 0.1
            and connection_module._has_unread_input(connection.connection())
        )
    )

    assert backend(connection) == before
    assert connection.generation == 1


# Hanging


@pytest.mark.row(45)
@pytest.mark.parametrize("when", ["in a statement", "while it connects"])
def test_a_call_that_hangs_can_be_cut_by_another_thread(
    make_connection: Callable[..., Connection], pg_url: str, when: str
) -> None:
    with Proxy(pg_url) as proxy:
        connection = make_connection(proxy.url)
        if when == "in a statement":
            connection.rows("select 1")
            proxy.freeze()
        else:
            # The login succeeds, and then nothing is answered, as with a pooler that waits for its server.
            proxy.swallow_from = b"pg_is_in_recovery"
        errors: list[BaseException] = []

        def call() -> None:
            try:
                connection.rows("select 1")
            except DatabaseUnavailable as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: connection.busy_since is not None and time.monotonic() - connection.busy_since > 0.5)

        connection.cut()
        thread.join(10)

        assert not thread.is_alive()
        assert len(errors) == 1
        proxy.swallow_from = None
        proxy.thaw()
        assert eventually(lambda: works_again(connection))


def test_cutting_a_closed_connection_does_nothing(connection: Connection) -> None:
    connection.cut()
    connection.rows("select 1")
    connection.close()
    connection.cut()

    assert works_again(connection)


@pytest.mark.row(46)
@pytest.mark.parametrize("count", [0, 1, 4, 5, 9, 30, 100, 200])
def test_a_reply_that_breaks_off_raises_and_the_next_call_succeeds(
    make_connection: Callable[..., Connection], pg_url: str, count: int
) -> None:
    with Proxy(pg_url) as proxy:
        connection = make_connection(proxy.url)
        connection.rows("select 1")
        proxy.cut_after(count)

        with pytest.raises(DatabaseUnavailable):
            connection.rows("select repeat('x', 1000) as long")

        assert len(connection.rows("select repeat('x', 1000) as long")[0].long) == 1000


def test_notifications_for_others_are_not_kept(connection: Connection, admin: psycopg.Connection[Any]) -> None:
    connection.rows("select 1")
    # As behind a pooler, which may assign a session in which another client ran LISTEN.
    connection.connection().execute("listen anything")
    for _ in range(20):
        admin.execute("notify anything")
    connection.rows("select 1")

    assert not connection.connection()._notifies_backlog
