"""Enqueueing in the caller's own transaction: the job and the data are committed together, or not at all."""

import asyncio
import contextlib
import json
import queue
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import psycopg2
import psycopg2.extensions
import psycopg_pool
import pytest
import sqlalchemy
from psycopg import sql
from psycopg.rows import dict_row, namedtuple_row, scalar_row
from sqlalchemy import orm
from support import eventually

from pgcron_lite import PgCron
from pgcron_lite.errors import OptionError, PgCronError, SchemaMismatch


@pytest.fixture
def app(pg_url: str) -> Iterator[PgCron]:
    app = PgCron("shop", url=pg_url)

    @app.task(name="add", queue="sums", priority=3, max_attempts=7)
    def add(x: int, y: int = 2, *more: int, **named: int) -> int:
        return x + y

    yield app
    app.close()


@pytest.fixture
def observer(pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Return another connection, which sees what is committed. It also creates a table for the caller's data."""
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("create table orders (number int)")
        yield conn


@pytest.fixture
def jobs(observer: psycopg.Connection[Any]) -> Callable[[], list[int]]:
    return lambda: [row[0] for row in observer.execute("select id from pgcron.jobs order by id")]


@pytest.fixture
def orders(observer: psycopg.Connection[Any]) -> Callable[[], int]:
    return lambda: observer.execute("select count(*) from orders").fetchone()[0]


# Each kind of caller: a context manager that yields the object to pass as `conn`. `run` and `end` work on all of them.


@contextlib.contextmanager
def psycopg_connection(url: str) -> Iterator[Any]:
    with contextlib.closing(psycopg.connect(url)) as conn:
        yield conn


@contextlib.contextmanager
def psycopg_cursor(url: str) -> Iterator[Any]:
    with contextlib.closing(psycopg.connect(url)) as conn:
        yield conn.cursor()


@contextlib.contextmanager
def alchemy(url: str, driver: str, wrap: Callable[[Any], Any]) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
    caller = wrap(engine)
    try:
        yield caller
    finally:
        getattr(caller, "remove", caller.close)()
        engine.dispose()


def engine_connection(url: str) -> Any:
    return alchemy(url, "psycopg", lambda engine: engine.connect())


def orm_session(url: str) -> Any:
    return alchemy(url, "psycopg", orm.Session)


def scoped(url: str) -> Any:
    return alchemy(url, "psycopg", lambda engine: orm.scoped_session(orm.sessionmaker(engine)))


def session_on_psycopg2(url: str) -> Any:
    return alchemy(url, "psycopg2", orm.Session)


@contextlib.contextmanager
def psycopg2_connection(url: str) -> Iterator[Any]:
    with contextlib.closing(psycopg2.connect(url)) as conn:
        yield conn


@contextlib.contextmanager
def psycopg2_cursor(url: str) -> Iterator[Any]:
    with contextlib.closing(psycopg2.connect(url)) as conn:
        yield conn.cursor()


def django_wrapper(engine: str, **settings: Any) -> Any:
    """Return a connection as Django makes them for each thread."""
    import django
    from django.conf import settings as django_settings
    from django.db.utils import ConnectionHandler

    if not django_settings.configured:
        django_settings.configure()
        django.setup()
    handler = ConnectionHandler({"default": {"ENGINE": f"django.db.backends.{engine}", **settings}})
    return handler["default"]


@contextlib.contextmanager
def django_connection(url: str) -> Iterator[Any]:
    parts = urlsplit(url)
    wrapper = django_wrapper(
        "postgresql", HOST=parts.hostname, PORT=parts.port, USER=parts.username, PASSWORD=parts.password or "",
        NAME=parts.path[1:],
    )
    wrapper.set_autocommit(False)
    with contextlib.closing(wrapper):
        yield wrapper


CALLERS = [
    psycopg_connection, psycopg_cursor, psycopg2_connection, psycopg2_cursor, engine_connection, orm_session, scoped,
    session_on_psycopg2, django_connection,
]  # fmt: skip

every_caller = pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.__name__)


def run(conn: Any, statement: str) -> Any:
    """Run SQL of the caller."""
    is_psycopg = isinstance(conn, (psycopg.Connection, psycopg.Cursor))
    if type(conn).__module__.startswith(("psycopg2", "django")):
        owner = conn.connection if isinstance(conn, psycopg2.extensions.cursor) else conn
        with owner.cursor() as cursor:
            return cursor.execute(statement)
    return conn.execute(statement if is_psycopg else sqlalchemy.text(statement))


def end(conn: Any, how: str) -> None:
    is_cursor = isinstance(conn, (psycopg.Cursor, psycopg2.extensions.cursor))
    getattr(conn.connection if is_cursor else conn, how)()


@every_caller
def test_a_commit_stores_the_job_and_the_data(app, pg_url, caller, jobs, orders):
    with caller(pg_url) as conn:
        run(conn, "insert into orders values (1)")
        handle = app.tasks["add"].options(conn=conn).delay(1)
        seen_before = jobs()
        end(conn, "commit")

    assert seen_before == []
    assert jobs() == [handle.id]
    assert orders() == 1


@every_caller
def test_a_rollback_discards_the_job(app, pg_url, caller, jobs, orders):
    with caller(pg_url) as conn:
        run(conn, "insert into orders values (1)")
        app.tasks["add"].options(conn=conn).delay(1)
        end(conn, "rollback")

    assert (jobs(), orders()) == ([], 0)


@every_caller
def test_a_rollback_to_a_savepoint_discards_only_later_jobs(app, pg_url, caller, jobs):
    with caller(pg_url) as conn:
        kept = app.tasks["add"].options(conn=conn).delay(1)
        run(conn, "savepoint here")
        app.tasks["add"].options(conn=conn).delay(2)
        run(conn, "rollback to savepoint here")
        end(conn, "commit")

    assert jobs() == [kept.id]


@pytest.mark.parametrize("caller", [engine_connection, orm_session, scoped], ids=lambda caller: caller.__name__)
def test_a_nested_block_of_sqlalchemy_is_a_savepoint_too(app, pg_url, caller, jobs):
    with caller(pg_url) as conn:
        kept = app.tasks["add"].options(conn=conn).delay(1)
        with contextlib.suppress(ZeroDivisionError), conn.begin_nested():
            app.tasks["add"].options(conn=conn).delay(2)
            raise ZeroDivisionError
        conn.commit()

    assert jobs() == [kept.id]


@every_caller
def test_map_is_one_statement_and_keeps_the_order(app, pg_url, caller, observer):
    with caller(pg_url) as conn:
        handles = app.tasks["add"].options(conn=conn).map([(n,) for n in range(300)])
        end(conn, "commit")

    rows = observer.execute("select id, args ->> 'x' from pgcron.jobs").fetchall()
    assert dict(rows) == {handle.id: str(n) for n, handle in enumerate(handles)}


@every_caller
def test_an_empty_map_does_nothing(app, pg_url, caller, jobs):
    with caller(pg_url) as conn:
        assert app.tasks["add"].options(conn=conn).map([]) == []
        end(conn, "commit")

    assert jobs() == []


@every_caller
def test_the_job_is_the_same_as_one_enqueued_without_conn(app, pg_url, caller):
    due = datetime(2040, 2, 29, 12, 30, tzinfo=UTC)
    task = app.tasks["add"].options(
        execute_after=due, priority=-4, queue="später", headers={"trace": 'a"b\\'}, tags=["x", "y z"], max_attempts=2
    )
    with caller(pg_url) as conn:
        ours = task.options(conn=conn).delay(1, 2, 3, k="%s :x \N{SNOWMAN} {'")
        end(conn, "commit")

    own = task.delay(1, 2, 3, k="%s :x \N{SNOWMAN} {'")

    for field in ("task", "args", "queue", "priority", "execute_after", "headers", "tags", "max_attempts", "state",
                  "max_crashes", "attempt"):
        assert getattr(ours.job(), field) == getattr(own.job(), field), field


def test_a_delay_counts_from_the_statement_by_the_clock_of_the_database(app, pg_url, observer):
    with psycopg.connect(pg_url) as conn:
        handle = app.tasks["add"].options(conn=conn, execute_after=timedelta(minutes=10)).delay(1)

    wait, = observer.execute(
        "select extract(epoch from execute_after - created_at)::float8 from pgcron.jobs where id = %s", [handle.id]
    ).fetchone()
    assert wait == pytest.approx(600, abs=0.01)


def test_the_bell_rings_at_commit_and_not_before(app, pg_url, observer):
    observer.execute("listen pgcron")
    with psycopg.connect(pg_url) as conn:
        app.tasks["add"].options(conn=conn).delay(1)
        conn.execute("select pg_sleep(0.05)")
        early = list(observer.notifies(timeout=0))
        conn.commit()
        late = list(observer.notifies(timeout=10, stop_after=1))

    assert early == []
    assert [notice.payload for notice in late] == [""]


def test_the_bell_does_not_ring_for_what_was_rolled_back_or_when_it_is_switched_off(app, pg_url, observer):
    silent = PgCron("silent", url=pg_url, notify=False)
    task = silent.task(name="quiet")(lambda_like)
    observer.execute("listen pgcron")
    with psycopg.connect(pg_url) as conn:
        app.tasks["add"].options(conn=conn).delay(1)
        conn.rollback()
        task.options(conn=conn).delay()
        conn.commit()
        conn.execute("select pg_notify('pgcron', 'the only one')")

    received = list(observer.notifies(timeout=10, stop_after=1))
    assert [notice.payload for notice in received] == ["the only one"]


def lambda_like() -> None:
    """Do nothing, as a task."""


def test_the_data_is_there_when_the_job_runs(app, pg_url, observer):
    """A worker cannot run the job before the commit that stores it: the usual race is not possible."""
    seen: queue.Queue[int] = queue.Queue()

    @app.task(name="count")
    def count() -> None:
        with psycopg.connect(pg_url) as conn:
            seen.put(conn.execute("select count(*) from orders").fetchone()[0])

    with worker_of(app), psycopg.connect(pg_url) as conn:
        count.options(conn=conn).delay()
        conn.execute("select pg_sleep(0.3)")
        conn.execute("insert into orders values (1)")
        conn.commit()

        assert seen.get(timeout=20) == 1


@contextlib.contextmanager
def worker_of(app: PgCron) -> Iterator[None]:
    """Run a worker in a thread until the block ends."""
    import threading

    from pgcron_lite.worker.process import Process, WorkerOptions

    process = Process(app, WorkerOptions(queues=("*",), slots=2, grace=timedelta(seconds=5)))
    thread = threading.Thread(target=process.run, name="pgcron-test-worker")
    thread.start()
    try:
        eventually(lambda: process._worker is not None)
        yield
    finally:
        process._worker.stop()
        process._wake.ring()
        thread.join(20)
        assert not thread.is_alive()


# The caller's connection is not changed.


@pytest.mark.parametrize("factory", [dict_row, namedtuple_row, scalar_row, lambda cursor: lambda row: "odd"])
def test_the_row_factory_of_the_caller_has_no_effect_and_is_kept(app, pg_url, factory, jobs):
    with psycopg.connect(pg_url, row_factory=factory) as conn:
        handles = app.tasks["add"].options(conn=conn).map([(1,), (2,)])
        conn.commit()

        assert [handle.id for handle in handles] == jobs()
        assert conn.row_factory is factory


@pytest.mark.parametrize("make", [psycopg.ClientCursor, psycopg.RawCursor, psycopg.Cursor])
def test_a_cursor_factory_of_the_caller_has_no_effect(app, pg_url, make, jobs):
    with psycopg.connect(pg_url, cursor_factory=make) as conn:
        handle = app.tasks["add"].options(conn=conn).delay(1)
        other = app.tasks["add"].options(conn=conn.cursor()).delay(1)
        conn.commit()

    assert jobs() == [handle.id, other.id]


def test_pending_results_of_the_callers_cursor_are_kept(app, pg_url):
    with psycopg.connect(pg_url) as conn:
        cursor = conn.cursor()
        cursor.execute("select generate_series(1, 5)")
        first = cursor.fetchone()

        app.tasks["add"].options(conn=cursor).delay(1)

        assert [first, *cursor.fetchall()] == [(n,) for n in range(1, 6)]


def test_a_server_side_cursor_continues_where_it_was(app, pg_url, jobs):
    with psycopg.connect(pg_url) as conn:
        with conn.cursor(name="big") as cursor:
            cursor.execute("select generate_series(1, 500)")
            first = cursor.fetchmany(10)
            handle = app.tasks["add"].options(conn=cursor).delay(1)
            rest = cursor.fetchall()
        conn.commit()

    assert [n for (n,) in first + rest] == list(range(1, 501))
    assert jobs() == [handle.id]


def test_autocommit_commits_the_job_at_once(app, pg_url, jobs):
    with psycopg.connect(pg_url, autocommit=True) as conn:
        handle = app.tasks["add"].options(conn=conn).delay(1)

        assert jobs() == [handle.id]
        assert conn.autocommit


def test_in_pipeline_mode_the_job_is_part_of_the_pipeline(app, pg_url, jobs, orders):
    with psycopg.connect(pg_url) as conn, conn.pipeline():
        conn.execute("insert into orders values (1)")
        handle = app.tasks["add"].options(conn=conn).delay(1)
        conn.execute("insert into orders values (2)")
        conn.commit()

    assert jobs() == [handle.id]
    assert orders() == 2


def test_an_isolation_level_of_the_caller_is_kept(app, pg_url, observer):
    with psycopg.connect(pg_url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.execute("select 1")
        app.tasks["add"].options(conn=conn).delay(1)

        assert conn.execute("show transaction_isolation").fetchone() == ("serializable",)
        assert conn.isolation_level is psycopg.IsolationLevel.SERIALIZABLE


def test_settings_of_the_callers_session_are_kept(app, pg_url):
    settings = {"search_path": "pg_temp", "statement_timeout": "7s", "TimeZone": "Asia/Tokyo"}
    with psycopg.connect(pg_url) as conn:
        for name, value in settings.items():
            conn.execute("select set_config(%s, %s, true)", [name, value])
        app.tasks["add"].options(conn=conn, execute_after="1h").delay(1)

        for name, value in settings.items():
            assert conn.execute("select current_setting(%s)", [name]).fetchone() == (value,)


def test_pending_objects_of_a_session_are_committed_with_the_job(app, pg_url, jobs, orders):
    base = orm.declarative_base()

    class Order(base):
        __tablename__ = "orders"
        number = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)

    with orm_session(pg_url) as session:
        session.add(Order(number=1))
        app.tasks["add"].options(conn=session).delay(1)
        session.commit()

    assert (len(jobs()), orders()) == (1, 1)


def test_a_failed_transaction_of_the_caller_raises_the_drivers_exception(app, pg_url, jobs):
    """Connection and error are the caller's, so the driver's exception is raised and not one of ours."""
    with psycopg.connect(pg_url) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1/0")

        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            app.tasks["add"].options(conn=conn).delay(1)
        conn.rollback()

    assert jobs() == []


def test_invalid_options_are_refused_before_the_callers_transaction_is_used(app, pg_url):
    with psycopg.connect(pg_url) as conn:
        conn.execute("select 1")

        with pytest.raises(PgCronError):
            app.tasks["add"].options(conn=conn).delay(object())
        with pytest.raises(TypeError):
            app.tasks["add"].options(conn=conn).delay()

        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


# Objects that are no connection.


class Stranger:
    """An object that has nothing to do with a database."""


@contextlib.contextmanager
def made(thing: Any) -> Iterator[Any]:
    yield thing
    for close in ("dispose", "close"):
        if hasattr(thing, close) and not isinstance(thing, type):
            getattr(thing, close)()
            break
    if engine := getattr(thing, "engine", getattr(thing, "bind", None)):
        engine.dispose()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda url: Stranger(), "test_caller_transaction.Stranger: expected a psycopg 3 or psycopg2 connection"),
        (lambda url: url, "builtins.str: expected a psycopg 3 or psycopg2 connection"),
        (lambda url: alchemy_engine(url), "this cannot execute statements; pass the Session or Connection"),
        (lambda url: orm.sessionmaker(alchemy_engine(url)), "cannot execute statements; pass the Session"),
        (lambda url: alchemy_engine("sqlite://").connect(), "connected to sqlite, and the queue is in PostgreSQL"),
        (lambda url: orm.Session(alchemy_engine("sqlite://")), "connected to sqlite, and the queue is in PostgreSQL"),
        (lambda url: django_wrapper("sqlite3", NAME=":memory:"), "connected to sqlite, and the queue is in PostgreSQL"),
    ],
)
def test_an_object_that_is_no_connection_is_refused_with_the_alternative(app, pg_url, make, words):
    with made(make(pg_url)) as thing, pytest.raises(OptionError, match=words):
        app.tasks["add"].options(conn=thing).delay(1)


def alchemy_engine(url: str) -> Any:
    return sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def test_a_pool_is_refused_and_its_connections_are_not(app, pg_url, jobs):
    with psycopg_pool.ConnectionPool(pg_url, min_size=1, max_size=1, open=True) as connections:
        with pytest.raises(OptionError, match=r"this is a pool; take a connection from it"):
            app.tasks["add"].options(conn=connections).delay(1)
        with connections.connection() as conn:
            handle = app.tasks["add"].options(conn=conn).delay(1)

    assert jobs() == [handle.id]


def test_djangos_connection_proxy_is_accepted(app, pg_url, jobs):
    from django.utils.connection import ConnectionProxy

    with django_connection(pg_url) as wrapper:
        # What `from django.db import connection` returns: a proxy that finds the thread's wrapper each time.
        proxy = ConnectionProxy({"default": wrapper}, "default")
        handle = app.tasks["add"].options(conn=proxy).delay(1)
        before = jobs()
        wrapper.commit()

    assert (before, jobs()) == ([], [handle.id])


def test_a_cursor_class_of_the_caller_has_no_effect_on_psycopg2(app, pg_url, jobs):
    from psycopg2.extras import RealDictCursor

    with contextlib.closing(psycopg2.connect(pg_url, cursor_factory=RealDictCursor)) as conn:
        handle = app.tasks["add"].options(conn=conn).delay(1)
        conn.commit()

    assert jobs() == [handle.id]


def test_jobs_on_a_session_closed_without_a_commit_are_logged_once(app, pg_url, caplog):
    with orm_session(pg_url) as session:
        app.tasks["add"].options(conn=session).map([(1,), (2,)])
        app.tasks["add"].options(conn=session).delay(3)
        session.close()

    warned = [r.getMessage() for r in caplog.records if r.name == "pgcron_lite.pg.caller_transaction"]
    assert warned == ["3 job(s) enqueued on a session were discarded: it was closed without session.commit()"]


@pytest.mark.parametrize("make", [orm_session, scoped], ids=lambda make: make.__name__)
@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_a_session_that_is_committed_or_rolled_back_is_not_logged(app, pg_url, caplog, make, how):
    with make(pg_url) as session:
        for _ in range(2):
            app.tasks["add"].options(conn=session).delay(1)
            getattr(session, how)()

    assert [r for r in caplog.records if r.name == "pgcron_lite.pg.caller_transaction"] == []


def test_async_connections_and_sessions_are_refused_with_the_alternative(app, pg_url, jobs):
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def main() -> int:
        engine = create_async_engine(pg_url.replace("postgresql://", "postgresql+psycopg://"))
        async with await psycopg.AsyncConnection.connect(pg_url) as conn, AsyncSession(engine) as session:
            for foreign in (conn, conn.cursor(), session, engine):
                with pytest.raises(OptionError, match=r"cannot use an async connection.*run_sync"):
                    app.tasks["add"].options(conn=foreign).delay(1)
            handle = await session.run_sync(lambda sync: app.tasks["add"].options(conn=sync).delay(1))
            await session.commit()
        await engine.dispose()
        return handle.id

    job_id = asyncio.run(main())

    assert jobs() == [job_id]


def test_the_memory_store_refuses_a_connection(pg_url):
    app = PgCron(url="memory://")
    task = app.task(lambda_like)

    with psycopg.connect(pg_url) as conn, pytest.raises(OptionError, match="the memory store has no transactions"):
        task.options(conn=conn).delay()


# The SQL functions.


def test_plain_sql_enqueues_and_a_worker_reads_it(app, observer):
    job_id, = observer.execute("""select pgcron.enqueue('add', '{"x": 40}')""").fetchone()

    job = app.handle(job_id).job()
    assert (job.task, job.queue, job.priority, job.max_attempts, job.state) == ("add", "default", 0, 5, "queued")
    assert app.tasks["add"].arguments.loads(job.args) == ((40,), {})


def test_every_argument_of_the_function_has_a_name(app, observer):
    job_id, = observer.execute(
        """
        select pgcron.enqueue(
            'add', '[1, 2]',
            queue => 'mail', priority => 9, execute_after => '2040-01-01 00:00+00', max_attempts => 2,
            headers => '{"trace": "7"}', tags => array['a', 'b'], max_crashes => 1, ring => false
        )
        """
    ).fetchone()

    job = app.handle(job_id).job()
    assert (job.queue, job.priority, job.max_attempts, job.max_crashes) == ("mail", 9, 2, 1)
    assert job.execute_after == datetime(2040, 1, 1, tzinfo=UTC)
    assert (dict(job.headers), job.tags) == ({"trace": "7"}, ("a", "b"))
    assert app.tasks["add"].arguments.loads(job.args) == ((1, 2), {})


def test_a_trigger_enqueues_in_the_transaction_of_the_row(app, observer, jobs):
    observer.execute(
        """
        create function welcome() returns trigger language plpgsql as $$
        begin
            perform pgcron.enqueue('add', json_build_object('x', new.number));
            return null;
        end $$;
        create trigger welcome after insert on orders for each row execute function welcome()
        """
    )

    with observer.transaction(force_rollback=True):
        observer.execute("insert into orders values (1)")
    observer.execute("insert into orders values (2), (3)")

    assert [json.loads(app.handle(job_id).job().args) for job_id in jobs()] == [{"x": 2}, {"x": 3}]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("''", psycopg.errors.CheckViolation),
        ("null", psycopg.errors.CheckViolation),
        ("repeat('x', 201)", psycopg.errors.CheckViolation),
        ("'add', '7'", psycopg.errors.CheckViolation),
        ("'add', '{'", psycopg.errors.InvalidTextRepresentation),
        ("'add', max_attempts => 0", psycopg.errors.CheckViolation),
        ("'add', priority => 40000", psycopg.errors.CheckViolation),
        ("'add', execute_after => 'infinity'", psycopg.errors.CheckViolation),
        ("'add', headers => '[]'", psycopg.errors.CheckViolation),
    ],
)
def test_the_function_refuses_invalid_jobs(observer, arguments, error, jobs):
    with pytest.raises(error):
        observer.execute(f"select pgcron.enqueue({arguments})")

    assert jobs() == []


# Malicious callers.

LOOKALIKES = """
create schema evil;
create table evil.loot (what text);
grant usage on schema evil to public;
grant insert on evil.loot to public;
create domain evil.json as pg_catalog.text check (false);
create domain evil.uuid as pg_catalog.text check (false);
create domain evil.int4 as pg_catalog.text check (false);
create domain evil.bool as pg_catalog.text check (false);
create function evil.stolen(what text) returns text language sql
    as $$ insert into evil.loot values (what) returning what $$;
create function evil.pg_notify(text, text) returns void language sql as $$ select evil.stolen('pg_notify') $$;
create function evil.pg_notification_queue_usage() returns float8 language sql
    as $$ select evil.stolen('usage'); select 0::float8 $$;
create function evil.clock_timestamp() returns timestamptz language sql
    as $$ select evil.stolen('clock'); select '2001-01-01'::timestamptz $$;
create function evil.json_array_elements(pg_catalog.json) returns setof pg_catalog.json language sql
    as $$ select evil.stolen('elements'); select $1 $$;
create function evil.make_interval(secs float8) returns interval language sql
    as $$ select evil.stolen('interval'); select '0'::interval $$;
create function evil.arrow(pg_catalog.json, text) returns text language sql
    as $$ select evil.stolen('->>'); select 'evil'::text $$;
create operator evil.->> (leftarg = pg_catalog.json, rightarg = text, function = evil.arrow);
create function evil.same(pg_catalog.uuid, pg_catalog.uuid) returns bool language sql
    as $$ select evil.stolen('='); select true $$;
create operator evil.= (leftarg = pg_catalog.uuid, rightarg = pg_catalog.uuid, function = evil.same);
"""


@pytest.fixture
def producer(observer: psycopg.Connection[Any], pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Return the connection of a malicious role that may only enqueue."""
    role = f"mallory_{uuid.uuid4().hex[:8]}"
    name = sql.Identifier(role)
    observer.execute(sql.SQL("create role {} login password 'x'").format(name))
    observer.execute("select pgcron.allow(%s, 'producer')", [role])
    database = sql.Identifier(pg_url.rpartition("/")[2])
    observer.execute(sql.SQL("grant create, temporary on database {} to {}").format(database, name))
    _, _, place = pg_url.rpartition("@")
    try:
        with psycopg.connect(f"postgresql://{role}:x@{place}") as conn:
            yield conn
    finally:
        observer.execute(sql.SQL("drop owned by {} cascade").format(name))
        observer.execute(sql.SQL("drop role {}").format(name))


@pytest.mark.row("S18")
@pytest.mark.parametrize("caller", [psycopg_connection, orm_session, scoped], ids=lambda caller: caller.__name__)
def test_functions_with_our_names_on_the_search_path_are_not_called(app, pg_url, caller, observer, jobs):
    observer.execute(LOOKALIKES)
    with caller(pg_url) as conn:
        run(conn, "set local search_path = evil, pg_catalog, pgcron")
        handle = app.tasks["add"].options(conn=conn, execute_after="1h").delay(1)
        run(conn, """select pgcron.enqueue('add', '{"x": 2}')""")
        end(conn, "commit")

    assert len(jobs()) == 2
    assert (handle.job().task, json.loads(handle.job().args)) == ("add", {"x": 1})
    assert handle.job().execute_after > datetime.now(UTC) + timedelta(minutes=50)
    assert observer.execute("select what from evil.loot").fetchall() == []


@pytest.mark.row("S17")
def test_a_producer_gains_no_rights_by_its_own_tables_and_functions(producer, observer, jobs):
    producer.execute(
        """
        create temp table jobs (id bigint, task text, queue text, args json);
        create temp table loot (who text);
        create function pg_temp.pg_notify(text, text) returns void language sql
            as $$ insert into loot values (current_user) $$;
        create function pg_temp.clock() returns timestamptz language sql
            as $$ insert into loot values (current_user); select now() $$;
        create schema mine;
        create function mine.pg_notify(text, text) returns void language sql
            as $$ insert into loot values (current_user) $$;
        set search_path = pg_temp, mine, pg_catalog;
        """
    )

    producer.execute("""select pgcron.enqueue('add', '{"x": 1}'), pgcron.ring()""")

    assert producer.execute("select who from loot").fetchall() == []
    assert producer.execute("select from pg_temp.jobs").fetchall() == []
    producer.commit()
    assert len(jobs()) == 1


@pytest.mark.row("S17")
@pytest.mark.parametrize(
    "statement",
    [
        "select args from pgcron.jobs",
        "update pgcron.jobs set priority = 1",
        "delete from pgcron.jobs",
        "insert into pgcron.jobs (task, state) values ('x', 'running')",
        "insert into pgcron.history select 1",
        "select pgcron.complete(1, gen_random_uuid())",
        "select pgcron.allow(current_user, 'admin')",
        "truncate pgcron.jobs",
        "create table pgcron.mine ()",
        "create or replace function pgcron.ring() returns void language sql as ''",
    ],
)
def test_a_producer_may_do_nothing_but_enqueue(producer, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        producer.execute(statement)


@pytest.mark.row("S17")
def test_no_function_runs_as_its_owner_or_uses_the_callers_search_path(observer):
    rows = observer.execute(
        """
        select p.proname, p.prosecdef, p.proconfig,
               exists (select from aclexplode(p.proacl) as a where a.grantee = 0) or p.proacl is null as is_public
        from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname = 'pgcron'
        """
    ).fetchall()

    assert rows
    for name, runs_as_owner, settings, is_public in rows:
        assert not runs_as_owner, name
        # `clock` is inlined, and qualifies the names it calls. `refusal` is inlined into functions that set a path.
        inlined = name in ("clock", "refusal")
        assert settings == (None if inlined else ["search_path=pg_catalog, pg_temp"]), name
        assert not is_public, name


# Without our schema


@pytest.mark.row(79)
@pytest.mark.parametrize("kind", ["psycopg", "sqlalchemy", "psycopg2", "none"])
def test_a_missing_schema_is_reported_with_the_command_that_creates_it(
    empty_pg_url: str, kind: str
) -> None:
    app = PgCron("shop", url=empty_pg_url)
    add = app.task(name="add")(lambda: None)

    with contextlib.ExitStack() as stack:
        if kind == "psycopg":
            conn: Any = stack.enter_context(psycopg.connect(empty_pg_url))
        elif kind == "none":
            conn = None
        else:
            driver = {"sqlalchemy": "psycopg", "psycopg2": "psycopg2"}[kind]
            engine = sqlalchemy.create_engine(empty_pg_url.replace("postgresql", f"postgresql+{driver}", 1))
            stack.callback(engine.dispose)
            conn = stack.enter_context(engine.connect())
        with pytest.raises(SchemaMismatch) as caught:
            (add.options(conn=conn) if conn is not None else add).delay()

    message = str(caught.value)
    assert message.startswith("the schema 'pgcron' is not in this database")
    assert message.endswith("Run: pgcron migrate")
    assert "LINE 1" not in message
    assert "\n" not in message
    app.close()


def test_an_error_of_the_caller_is_not_changed(pg_url: str, app: PgCron) -> None:
    with psycopg.connect(pg_url) as conn:
        with pytest.raises(psycopg.errors.UndefinedTable):
            conn.execute("select from nothing_of_that_name")

        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            app.tasks["add"].options(conn=conn).delay(1)
        conn.rollback()
