"""Servers and proxies that fall silent while TCP stays alive, seen by producers and by the listener."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from proxy import Proxy
from support import eventually, python
from workers import QUICK, Queue, Workers

from pgcron_lite import PgCron
from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.pg import enqueue
from pgcron_lite.pg.bounded_connection import within
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.listen import Dial, Listener
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The server process `pid` stands still as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def backend(connection: Connection) -> int:
    return int(connection.rows("select pg_backend_pid() as pid")[0].pid)


def ended(call: Callable[[], Any]) -> BaseException | None:
    """What `call` raises, in a thread: one that hangs is a failed test, and no hanging one."""
    errors: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)
        else:
            errors.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    eventually(lambda: errors, within=40)
    thread.join()
    return errors[0]


# One connection

def ask(connection: Connection) -> None:
    with connection.sending("select 1", {}):
        pass


def several(connection: Connection) -> None:
    with connection.transaction() as conn:
        conn.execute("select 1")


WAYS: dict[str, Callable[[Connection], object]] = {
    "rows": lambda connection: connection.rows("select 1 as one"),
    "run": lambda connection: connection.run("select 1", {}),
    "run_then": lambda connection: connection.run_then("select 1", {}, "select 2"),
    "sending": ask,
    "autocommit": lambda connection: connection.autocommit("listen anything"),
    "copy": lambda connection: connection.copy("copy public.things from stdin", lambda encoding: [b"1\n"] * 10),
    "transaction": several,
}


@pytest.mark.row(45)
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
@pytest.mark.parametrize("way", WAYS)
def test_a_statement_on_a_frozen_backend_ends_by_itself(
    pg_url: str, monkeypatch: pytest.MonkeyPatch, way: str, pooled: bool
) -> None:
    if pooled:
        # A pooler answers with a backend's number that is not the one it gave at login.
        monkeypatch.setattr(Connection, "_identify", lambda self, conn: (False, -1, ""))
    connection = Connection(parse_url(pg_url, application="pgcron test"), "pgcron")
    connection.autocommit("create table public.things (id int)")
    # What has been prepared before goes another way than what has not.
    for _ in range(2):
        WAYS[way](connection)

        def call() -> None:
            with within(0.5):
                WAYS[way](connection)

        with frozen(backend(connection)):
            error = ended(call)

        assert isinstance(error, DatabaseUnavailable)
        assert "silent for 0.5 s" in str(error)
        WAYS[way](connection)
    connection.close()


@pytest.mark.row(45)
def test_a_backend_that_freezes_between_the_statements_of_a_transaction_is_left(pg_url: str) -> None:
    connection = Connection(parse_url(pg_url, application="pgcron test"), "pgcron")
    stack = contextlib.ExitStack()

    def call() -> None:
        with within(0.5), connection.transaction() as conn:
            stack.enter_context(frozen(conn.info.backend_pid))
            conn.execute("select 1")

    with stack:
        error = ended(call)

    assert isinstance(error, DatabaseUnavailable)
    assert connection.rows("select 1 as one")[0].one == 1
    connection.close()


@pytest.mark.row(45)
def test_a_server_that_falls_silent_after_the_login_is_left(pg_url: str) -> None:
    with Proxy(pg_url) as proxy:
        proxy.swallow_from = b"pg_is_in_recovery"
        connection = Connection(parse_url(proxy.url, application="pgcron test"), "pgcron")

        error = ended(lambda: connection.rows("select 1"))

        assert isinstance(error, DatabaseUnavailable)
        assert "silent" in str(error)
        connection.close()


@pytest.mark.row(47)
def test_an_answer_that_is_slow_and_still_moves_is_waited_for(pg_url: str) -> None:
    with Proxy(pg_url) as proxy:
        connection = Connection(parse_url(proxy.url, application="pgcron test"), "pgcron")
        connection.rows("select 1")
        # Some two seconds, of which none is silent for a fifth.
        proxy.rate = 200_000

        with within(0.5):
            (row,) = connection.rows("select repeat('x', 400000) as long")

        assert len(row.long) == 400_000
        connection.close()


@pytest.mark.row(45)
def test_under_gevent_a_silent_server_is_left_and_other_greenlets_run_meanwhile(pg_url: str) -> None:
    said = python(
        """
        from gevent import monkey
        monkey.patch_all()
        import os, signal, sys, gevent
        from pgcron_lite.errors import DatabaseUnavailable
        from pgcron_lite.pg.url import parse_url
        from pgcron_lite.pg.connection import Connection
        from pgcron_lite.pg.bounded_connection import within

        link = Connection(parse_url(sys.argv[1], application="pgcron test"), "pgcron")
        pid = link.rows("select pg_backend_pid() as pid")[0].pid
        turns = 0

        def turn():
            global turns
            while True:
                gevent.sleep(0.01)
                turns += 1

        turning = gevent.spawn(turn)
        os.kill(pid, signal.SIGSTOP)
        try:
            with gevent.Timeout(60), within(0.5):
                link.rows("select 1")
        except DatabaseUnavailable as error:
            print("silent" in str(error), turns > 5)
        finally:
            os.kill(pid, signal.SIGCONT)
        print(link.rows("select 1 as one")[0].one)
        link.close()
        """,
        pg_url,
    )

    assert said.split() == ["True", "True", "1"]


@pytest.mark.row(7)
def test_the_time_that_a_process_itself_was_frozen_is_no_silence_of_the_server(pg_url: str) -> None:
    said = python(
        """
        import os, signal, subprocess, sys, time
        from pgcron_lite.pg.url import parse_url
        from pgcron_lite.pg.connection import Connection
        from pgcron_lite.pg.bounded_connection import within

        link = Connection(parse_url(sys.argv[1], application="pgcron test"), "pgcron")
        link.rows("select 1")
        thaw = f"sleep 0.5; kill -STOP {os.getpid()}; sleep 3; kill -CONT {os.getpid()}"
        helper = subprocess.Popen(["sh", "-c", thaw])
        with within(2.0):
            print(link.rows("select pg_sleep(1.5)::text is not null as slept")[0].slept)
        helper.wait()
        link.close()
        """,
        pg_url,
    )

    assert said.split() == ["True"]


# Producers


@pytest.fixture
def app(pg_url: str) -> Iterator[PgCron]:
    app = PgCron("shop", url=pg_url)
    app.task(name="shop.add")(lambda: None)
    yield app
    app.close()


@pytest.fixture
def admin(pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        yield conn


def the_apps_backend(admin: psycopg.Connection[Any]) -> int:
    """The one connection of a producer that has enqueued from one thread."""
    (row,) = admin.execute(
        "select pid from pg_stat_activity where application_name = 'pgcron' and datname = current_database()"
    ).fetchall()
    return int(row[0])


@pytest.mark.row(45)
@pytest.mark.parametrize("count", [1, 3, enqueue.COPIES_FROM], ids=["one", "a few", "by copy"])
def test_enqueueing_on_a_frozen_backend_goes_on_with_another_and_makes_each_job_once(
    app: PgCron, admin: psycopg.Connection[Any], count: int
) -> None:
    add = app.tasks["shop.add"]
    handles: list[Any] = []
    # So that ids are in stock, and the insert is what hangs.
    for _ in range(3):
        add.delay()
    before = admin.execute("select count(*) from pgcron.jobs").fetchall()[0][0]

    with frozen(the_apps_backend(admin)):
        error = ended(lambda: handles.extend(add.map([()] * count) if count > 1 else [add.delay()]))
    # Thawed, the backend reads what was sent to it before its client left.
    eventually(lambda: len(admin.execute(
        "select from pg_stat_activity where application_name = 'pgcron' and datname = current_database()"
    ).fetchall()) == 1)

    assert error is None
    assert len({handle.id for handle in handles}) == count
    assert admin.execute("select count(*) from pgcron.jobs").fetchall()[0][0] == before + count


@pytest.mark.row(43)
def test_enqueueing_over_a_half_open_link_goes_on_with_a_new_one(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    with Proxy(pg_url) as proxy:
        app = PgCron("shop", url=proxy.url)
        add = app.task(name="shop.add")(lambda: None)
        add.delay()
        proxy.black_hole()

        error = ended(add.delay)

        assert error is None
        assert admin.execute("select count(*) from pgcron.jobs").fetchall() == [(2,)]
        app.close()


@pytest.mark.row(45)
def test_enqueueing_through_a_proxy_that_stands_still_for_good_raises(pg_url: str) -> None:
    with Proxy(pg_url) as proxy:
        app = PgCron("shop", url=proxy.url)
        add = app.task(name="shop.add")(lambda: None)
        add.delay()
        proxy.freeze()

        error = ended(add.delay)

        assert isinstance(error, DatabaseUnavailable)
        proxy.thaw()
        add.delay()
        app.close()


@pytest.mark.row(43)
def test_a_task_that_enqueues_on_a_frozen_backend_goes_on(queue: Queue, workers: Workers) -> None:
    workers.start(env=QUICK)
    queue.until(queue.enqueue("pass_on"), "done")
    (pid,) = (row.pid for row in queue.rows(
        "select pid from pg_stat_activity where application_name = 'pgcron' and datname = current_database()"
    ))

    with frozen(pid):
        second = queue.enqueue("pass_on")
        queue.until(second, "done", within=60)

    queue.until_all_ended()
    done = queue.rows("select count(*) as n from pgcron.history where task = 'fault_tasks.nap'")
    assert done[0].n == 2
    assert queue.job(second).attempt == 1


# The listener


@pytest.mark.row(45)
def test_a_dial_whose_backend_freezes_at_listen_ends_by_itself(pg_url: str) -> None:
    connection = Connection(parse_url(pg_url, application="pgcron test"), "pgcron", statement_seconds=0.5, listens=True)

    with frozen(backend(connection)):
        dial = Dial(connection, "pgcron_proof", lambda: None)
        eventually(lambda: dial.is_over, within=30)

    assert isinstance(dial.error, DatabaseUnavailable)
    assert "silent" in str(dial.error)


@pytest.mark.row(45)
def test_a_listener_whose_backend_freezes_listens_again_on_another(queue: Queue, workers: Workers) -> None:
    worker = workers.start(env={**QUICK, "PGCRON_DIRECT_URL": queue.url})

    def listeners() -> list[int]:
        return [row.pid for row in queue.rows(
            "select pid from pg_stat_activity where application_name = 'pgcron listener'"
            " and datname = current_database()"
        )]

    def proven() -> list[int]:
        return [row.pid for row in queue.rows(
            "select pid from pg_stat_activity where application_name = 'pgcron listener'"
            " and datname = current_database() and query like '%%idle_session_timeout%%'"
        )]

    (before,) = eventually(proven)
    with frozen(before):
        # Its own notice is sent every half a minute; meanwhile the worker polls.
        queue.until(queue.enqueue("nap"), "done")
        eventually(lambda: "listening again" in worker.log, within=60)
        assert [pid for pid in listeners() if pid != before]
        queue.until(queue.enqueue("nap"), "done")
    eventually(lambda: before not in listeners())

    assert worker.stop() == 0


@pytest.mark.row(45)
def test_a_listener_whose_backend_freezes_before_its_first_notice_is_not_taken_for_one_behind_a_pooler(
    pg_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    stack = contextlib.ExitStack()

    def freeze_and_notify(channel: str) -> None:
        pid = store._rows("select pid from pg_stat_activity where application_name = 'pgcron listener'")[0].pid
        stack.enter_context(frozen(pid))
        store.notify(channel)

    listener = Listener(parse_url(pg_url, application="pgcron listener"), "pgcron", freeze_and_notify)
    with stack:
        eventually(lambda: listener.step() and listener.condition == "unproven")
        eventually(lambda: listener.step() and listener.condition != "unproven", within=20)

        assert listener.condition == "down"
        assert "pooler" not in caplog.text
    listener._send = store.notify
    eventually(lambda: listener.step() and listener.is_live, within=20)
    listener.close()
    store.close()


@pytest.mark.row(45)
def test_a_listener_behind_a_proxy_that_swallows_its_listen_falls_and_rises(pg_url: str) -> None:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    with Proxy(pg_url) as proxy:
        proxy.swallow_from = b"listen pgcron"
        listener = Listener(parse_url(proxy.url, application="pgcron listener"), "pgcron", store.notify)
        listener.step()
        assert listener.condition == "dialing"

        eventually(lambda: listener.step() and listener.condition == "down", within=40)
        proxy.swallow_from = None

        eventually(lambda: listener.step() and listener.is_live, within=20)
        listener.close()
    store.close()
