"""Rows 105-107 and 111-113 of the fault catalogue: notices that are lost, refused, or not worth their paper.

What concerns the listener alone is in `tests/pg/test_listen.py`.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from servers import server, wanted_version
from support import eventually
from workers import Queue, Workers

from pgcron_lite import PgCron
from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.job import NewJob
from pgcron_lite.pg.migrate import migrate
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url

LONG_POLL = {"PGCRON_LEASE": "60s", "PGCRON_POLL": "60s"}


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server whose notify queue is soon full."""
    if wanted_version() < 17:
        pytest.skip("the size of the notify queue can be set since PostgreSQL 17")
    # The least that the server allows: half a megabyte for all notices of all databases.
    with server(tmp_path / "postgres", max_notify_queue_pages="64") as small:
        migrate(parse_url(small.url, application="pgcron tests"))
        yield small


class CloggedQueue:
    """A server with a full notify queue: somebody listens in a transaction that does not end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.listener = psycopg.connect(url, autocommit=True)
        self.listener.execute("listen anything")
        self.listener.execute("begin")
        self.listener.execute("select 1")
        with psycopg.connect(url, autocommit=True) as conn:
            for _ in range(200):
                try:
                    conn.execute("select pg_notify('anything', repeat('x', 7000) || random())")
                except psycopg.errors.ProgramLimitExceeded:
                    return
        pytest.fail("the notify queue is not full")

    def clear(self) -> None:
        self.listener.close()


def usage(url: str) -> float:
    """How full the notify queue is. Asking heals a queue whose cause is gone."""
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute("select pg_notification_queue_usage()").fetchone()
    assert row is not None
    return float(row[0])


def can_notify(url: str) -> bool:
    with psycopg.connect(url, autocommit=True) as conn:
        try:
            conn.execute("notify anything")
        except psycopg.errors.ProgramLimitExceeded:
            return False
    return True


@pytest.mark.row(105)
def test_a_job_that_was_enqueued_while_nobody_listened_is_found_on_the_listeners_return(
    queue: Queue, workers: Workers
) -> None:
    worker = workers.start(env={**LONG_POLL, "PGCRON_DIRECT_URL": queue.url})
    queue.until(queue.enqueue("nap"), "done")
    listener = eventually(lambda: queue.rows(
        "select pid from pg_stat_activity where application_name = 'pgcron listener' and datname = current_database()"
    ))[0].pid

    queue.rows("select pg_terminate_backend(%s)", listener)
    job = queue.enqueue("nap")

    queue.until(job, "done", within=15)
    eventually(lambda: "listening again" in worker.log)


@pytest.mark.row(105)
def test_with_notices_switched_off_jobs_are_found_by_looking(queue: Queue, workers: Workers) -> None:
    workers.start(env={"PGCRON_POLL": "1s", "PGCRON_NOTIFY": "off"})
    app = PgCron("silent", url=queue.url, notify=False)
    (job,) = app._enqueue([NewJob("fault_tasks.nap", "{}")])

    queue.until(job, "done")
    app.close()


@pytest.mark.row(106)
def test_a_full_notify_queue_fails_no_enqueue_and_no_transaction_of_a_caller(small_server: EmbeddedPostgres) -> None:
    url = small_server.url
    clogged = CloggedQueue(url)
    assert not can_notify(url)
    app = PgCron("shop", url=url)

    own = app._enqueue([NewJob("a", "{}")])
    with psycopg.connect(url) as conn:
        conn.execute("create table orders (id int)")
        conn.execute("insert into orders values (1)")
        callers = app._enqueue([NewJob("a", "{}")], conn)
        by_sql = conn.execute("select pgcron.enqueue('a')").fetchone()

    assert by_sql is not None
    assert sorted(job.id for job in app.store.find()) == sorted([*own, *callers, by_sql[0]])
    with psycopg.connect(url) as conn:
        assert conn.execute("select * from orders").fetchall() == [(1,)]
    clogged.clear()
    app.close()


@pytest.mark.row(106)
def test_above_a_quarter_full_the_bell_is_left_alone(small_server: EmbeddedPostgres) -> None:
    url = small_server.url
    with psycopg.connect(url, autocommit=True) as listener, psycopg.connect(url, autocommit=True) as conn:
        listener.execute("listen pgcron")
        listener.execute("begin")
        listener.execute("select 1")
        while usage(url) < 0.3:
            conn.execute("select pg_notify('anything', repeat('x', 7000) || random())")
        conn.execute("select pgcron.ring()")
        listener.execute("commit")
        assert "pgcron" not in [notice.channel for notice in listener.notifies(timeout=0.2)]

        assert usage(url) < 0.25
        conn.execute("select pgcron.ring()")

        assert [notice.channel for notice in listener.notifies(timeout=10, stop_after=1)] == ["pgcron"]


@pytest.mark.row(106)
@pytest.mark.row(107)
def test_a_worker_works_through_a_full_notify_queue_and_listens_again_when_it_is_healed(
    small_server: EmbeddedPostgres, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    queue = Queue(small_server.url, tmp_path / "journal")
    workers = Workers(queue, tmp_path)
    try:
        clogged = CloggedQueue(queue.url)
        worker = workers.start(env={**LONG_POLL, "PGCRON_DIRECT_URL": queue.url})
        eventually(lambda: "not listening, polling until that works again" in worker.log)
        queue.until(queue.enqueue("nap"), "done")

        # Its cause is gone, and still nobody can notify, until somebody asks how full the queue is. Workers do.
        clogged.clear()

        eventually(lambda: "listening again" in worker.log, within=30)
        assert can_notify(queue.url)
        queue.until(queue.enqueue("nap"), "done")
        assert worker.log.count("not listening") == 1
        assert worker.stop() == 0
    finally:
        workers.clean_up()
        request.node.add_report_section("call", "worker logs", workers.logs())
        queue.close()


@pytest.mark.row(107)
def test_a_ring_heals_a_queue_that_stayed_full_after_its_cause_was_gone(small_server: EmbeddedPostgres) -> None:
    url = small_server.url
    clogged = CloggedQueue(url)
    clogged.clear()
    store = PostgresStore(parse_url(url, application="pgcron test"))

    store.ring()

    eventually(lambda: can_notify(url))
    store.close()


@pytest.mark.row(106)
def test_a_proof_that_cannot_be_sent_is_no_proof_of_a_pooler(small_server: EmbeddedPostgres) -> None:
    clogged = CloggedQueue(small_server.url)
    store = PostgresStore(parse_url(small_server.url, application="pgcron test"))

    with pytest.raises(DatabaseUnavailable, match="notify queue"):
        store.notify("somebody")

    clogged.clear()
    store.close()


@pytest.mark.row(111)
def test_notices_of_ours_fit_into_what_a_channel_and_a_payload_may_hold(pg_url: str) -> None:
    schema = "a" * 40
    migrate(parse_url(pg_url, application="pgcron tests"), schema)
    store = PostgresStore(parse_url(pg_url, application="pgcron test"), schema)
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(sql.SQL("listen {}").format(sql.Identifier(schema)))

        store.enqueue([NewJob("a", '{"long": "' + "x" * 100_000 + '"}')])

        (notice,) = conn.notifies(timeout=10, stop_after=1)
        assert (notice.channel, notice.payload) == (schema, "")
    store.close()


@pytest.mark.row(112)
@pytest.mark.row(113)
def test_a_stranger_who_rings_all_the_time_makes_a_worker_look_and_nothing_else(
    queue: Queue, workers: Workers, databases: Any
) -> None:
    worker = workers.start(env=LONG_POLL)
    databases.execute("drop role if exists stranger")
    databases.execute("create role stranger")
    with psycopg.connect(queue.url, autocommit=True) as conn:
        conn.execute("set role stranger")
        rung_until = time.monotonic() + 2
        while time.monotonic() < rung_until:
            conn.execute("select pg_notify('pgcron', %s)", ['{"task": "os.system", "id": 1}'])
    databases.execute("drop role stranger")

    queue.until(queue.enqueue("nap"), "done")
    assert "WARNING" not in worker.log
    assert worker.stop() == 0
