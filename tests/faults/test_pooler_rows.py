"""Rows 58-62 of the fault catalogue: everything through PgBouncer in transaction mode; and the store's contract there.

The tests at the end are those of `test_store.py`, collected once more with a store whose statements all go through the
pooler.
"""

import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from clock import Clock
from commands import command, environment
from pgbouncer import PgBouncer, pgbouncer
from support import eventually
from test_connection_rows import impatient_program
from test_store import *  # noqa: F403
from workers import QUICK, SLOW, Queue, Workers

from pgcron_lite import PgCron
from pgcron_lite.cli import MISFIT
from pgcron_lite.errors import ConfigError, DatabaseUnavailable
from pgcron_lite.job import NewJob, Outcome, WorkerCard
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url


@pytest.fixture(scope="module")
def session_bouncer(databases: Any) -> Iterator[PgBouncer]:
    """One for the contract tests, which only want to go through it."""
    with pgbouncer(databases.server.url) as bouncer:
        yield bouncer


@pytest.fixture
def bouncer(pg_url: str) -> Iterator[PgBouncer]:
    with pgbouncer(pg_url) as bouncer:
        yield bouncer


@pytest.fixture
def store(session_bouncer: PgBouncer, pg_url: str, clock: Clock) -> Iterator[PostgresStore]:
    """The store of the contract tests."""
    clock.rule(pg_url)
    pooled = pooled_url(session_bouncer, pg_url)
    store = PostgresStore(parse_url(pooled, application="pooled"), direct=parse_url(pg_url, application="direct"))
    yield store
    store.close()
    clock.release()
    session_bouncer.command("KILL " + pg_url.rpartition("/")[2])


def pooled_url(bouncer: PgBouncer, url: str) -> str:
    return bouncer.url.rpartition("/")[0] + "/" + url.rpartition("/")[2]


def pooled_store(bouncer: PgBouncer, **options: Any) -> PostgresStore:
    return PostgresStore(parse_url(bouncer.url, application="pooled"), **options)


@pytest.fixture
def statement_bouncer(pg_url: str) -> Iterator[PgBouncer]:
    """A pooler that gives each statement another connection, and takes no transaction."""
    with pgbouncer(pg_url, mode="statement") as bouncer:
        yield bouncer


@pytest.mark.row(58)
def test_a_worker_behind_a_pooler_of_statements_ends_with_the_mode_that_is_needed(
    workers: Workers, statement_bouncer: PgBouncer
) -> None:
    worker = workers.start(url=statement_bouncer.url, ready=False)

    assert worker.exit_code() != 0
    assert "runs with pool_mode=statement" in worker.log
    assert "Set pool_mode=transaction (or session)" in worker.log


@pytest.mark.row(58)
@pytest.mark.parametrize("words", ["worker", "migrate", "jobs list", "health"])
def test_commands_behind_a_pooler_of_statements_are_a_misconfiguration(
    statement_bouncer: PgBouncer, words: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("from pgcron_lite import PgCron\napp = PgCron()\n")

    answer = subprocess.run(
        command(*words.split()), cwd=tmp_path, env=environment(statement_bouncer.url, PGCRON_SCHEMA="other"),
        capture_output=True, text=True, check=False, timeout=60,
    )

    assert answer.returncode == MISFIT
    assert "runs with pool_mode=statement" in answer.stderr


@pytest.mark.row(58)
@pytest.mark.parametrize("count", [1, 3, 300])
def test_enqueueing_behind_a_pooler_of_statements_is_refused_with_the_mode_that_is_needed(
    statement_bouncer: PgBouncer, count: int
) -> None:
    app = PgCron("shop", url=statement_bouncer.url)
    add = app.task(name="shop.add")(lambda: None)

    with pytest.raises(ConfigError, match=r"pool_mode=statement.*Set pool_mode=transaction"):
        add.map([()] * count)

    app.close()


DEAF = "LISTEN is accepted but nothing arrives"


@pytest.mark.row(58)
@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_a_worker_behind_a_pooler_notices_that_it_cannot_hear_and_polls(
    queue: Queue, workers: Workers, bouncer: PgBouncer, gevent: bool
) -> None:
    worker = workers.start(url=bouncer.url, env={"PGCRON_POLL": "60s"}, gevent=gevent)
    eventually(lambda: DEAF in worker.log)
    assert "PGCRON_DIRECT_URL" in worker.log

    # A poll of a minute becomes one of two seconds for those who hear nothing.
    job = queue.enqueue("nap")
    queue.until(job, "done", within=15)

    assert worker.stop() == 0
    assert worker.log.count(DEAF) == 1
    assert "ERROR" not in worker.log


@pytest.mark.row(58)
def test_with_a_direct_url_the_listener_hears_and_the_rest_goes_through_the_pooler(
    queue: Queue, workers: Workers, bouncer: PgBouncer
) -> None:
    env = {"PGCRON_POLL": "60s", "PGCRON_DIRECT_URL": queue.url}
    worker = workers.start(url=bouncer.url, env=env)

    for _ in range(3):
        queue.until(queue.enqueue("nap"), "done")

    listeners = "select pid from pg_stat_activity where application_name = 'pgcron listener' and datname = %s"
    assert len(queue.rows(listeners, queue.url.rpartition("/")[2])) == 1
    assert worker.stop() == 0
    assert "WARNING" not in worker.log


@pytest.mark.row(58)
def test_the_listener_with_a_direct_url_is_proven_by_a_notice_sent_through_the_pooler(
    bouncer: PgBouncer, pg_url: str
) -> None:
    store = pooled_store(bouncer, direct=parse_url(pg_url, application="direct"))
    bell = store.open_bell(lambda: None)
    try:
        eventually(lambda: bell.step() and bell.is_live)
        bell.step()

        store.enqueue([NewJob("a", "{}")])

        assert eventually(lambda: bell.step()[0])
    finally:
        bell.close()
        store.close()


@pytest.mark.row(58)
@pytest.mark.row(6)
def test_a_killed_workers_jobs_are_rescued_through_the_pooler(
    queue: Queue, workers: Workers, bouncer: PgBouncer
) -> None:
    victim = workers.start(url=bouncer.url, env=QUICK)
    job = queue.enqueue("die_at_first", deaths=1)
    victim.exit_code()

    workers.start(url=bouncer.url, env=QUICK)

    ended = queue.until(job, "done")
    assert (ended.attempt, ended.crashes) == (1, 0)


@pytest.mark.row(59)
def test_statements_are_prepared_only_where_the_server_itself_answers(bouncer: PgBouncer, pg_url: str) -> None:
    pooled, direct = Connection(parse_url(bouncer.url, application="pooled"), "pgcron"), Connection(
        parse_url(pg_url, application="direct"), "pgcron"
    )
    try:
        assert pooled.connection().prepare_threshold is None
        assert direct.connection().prepare_threshold is not None
    finally:
        pooled.close()
        direct.close()


@pytest.mark.row(59)
def test_many_threads_on_few_server_connections_meet_no_error(pg_url: str) -> None:
    with pgbouncer(pg_url, size=2) as bouncer:
        store = pooled_store(bouncer, size=6)
        errors: list[BaseException] = []
        done: set[int] = set()

        def work() -> None:
            try:
                me = uuid.uuid4()
                for _ in range(20):
                    store.enqueue([NewJob("a", "{}")])
                    claim = uuid.uuid4()
                    jobs = store.claim(me, claim, ["*"], ["a"], 3)
                    done.update(store.settle([Outcome(job.id, claim, "done") for job in jobs]))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.close()

    assert errors == []
    assert len(done) == 120


@pytest.mark.row(60)
@pytest.mark.row(61)
def test_nothing_of_ours_stays_behind_in_the_session_that_the_next_client_gets(pg_url: str) -> None:
    # One server connection: what a client leaves in it, the next one finds.
    with pgbouncer(pg_url, size=1) as bouncer:
        before = left_in_session(bouncer)
        store = pooled_store(bouncer, size=2)
        card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 1, "threads", "1")
        store.check_schema()
        store.register(card)
        store.enqueue([NewJob("a", "{}")])
        store.enqueue([NewJob("b", "{}")])
        store._insert_again([], [], 0)
        claim = uuid.uuid4()
        jobs = store.claim(card.id, claim, ["*"], ["a"], 1)
        assert store.settle([Outcome(job.id, claim, "done") for job in jobs])
        store.beat(card.id)
        store.reap([(card.id, None)])
        store.describe()
        listener = store.open_bell(lambda: None)
        eventually(lambda: listener.step() and listener.condition == "deaf")
        listener.close()
        store.close()

        eventually(lambda: left_in_session(bouncer) == before)


def left_in_session(bouncer: PgBouncer) -> list[Any]:
    with psycopg.connect(bouncer.url, autocommit=True, application_name="looking", prepare_threshold=None) as conn:
        return conn.execute(
            """
            select 'setting', name from pg_settings where source = 'session' and name <> 'application_name'
            union all
            select 'prepared', name from pg_prepared_statements
            union all
            select 'lock', locktype from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
            union all
            select 'channel', channel from pg_listening_channels() as channel
            order by 1, 2
            """
        ).fetchall()


@pytest.mark.row(62)
def test_a_server_connection_that_ends_while_idle_is_not_missed(bouncer: PgBouncer, databases: Any) -> None:
    store = pooled_store(bouncer)
    try:
        first = store.enqueue([NewJob("a", "{}")])
        databases.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %(name)s",
            {"name": bouncer.url.rpartition("/")[2]},
        )

        second = store.enqueue([NewJob("a", "{}")])

        assert [job.id for job in store.find()] == [*second, *first]
    finally:
        store.close()


@pytest.mark.row(58)
def test_a_pooler_that_restarts_is_an_outage_like_any_other(queue: Queue, workers: Workers) -> None:
    with pgbouncer(queue.url) as bouncer:
        worker = workers.start(url=bouncer.url, env=SLOW)
        port = int(bouncer.url.rpartition(":")[2].partition("/")[0])
        queue.until(queue.enqueue("nap"), "done")
    eventually(lambda: "the database is not available" in worker.log)

    with pgbouncer(queue.url, port=port):
        job = queue.enqueue("nap")
        queue.until(job, "done", within=20)
        assert worker.stop() == 0


@pytest.mark.row(45)
@pytest.mark.row(16)
def test_a_worker_behind_a_frozen_pooler_still_stops_when_told_to(
    queue: Queue, workers: Workers, bouncer: PgBouncer, tmp_path: Path
) -> None:
    worker = workers.start(url=bouncer.url, env=QUICK, program=impatient_program(tmp_path), grace="3s")
    queue.until(queue.enqueue("nap"), "done")
    bouncer.freeze()
    eventually(lambda: "the database is not available" in worker.log, within=30)

    worker.send(signal.SIGTERM)

    assert worker.exit_code(within=40) == 0


@pytest.mark.row(45)
def test_after_a_pooler_was_frozen_work_goes_on(
    queue: Queue, workers: Workers, bouncer: PgBouncer, tmp_path: Path
) -> None:
    worker = workers.start(url=bouncer.url, env=QUICK, program=impatient_program(tmp_path))
    queue.until(queue.enqueue("nap"), "done")
    bouncer.freeze()
    eventually(lambda: "the database is not available" in worker.log, within=30)
    job = queue.enqueue("nap")

    bouncer.thaw()

    ended = queue.until(job, "done", within=30)
    assert (ended.attempt, ended.crashes) == (1, 0)


@pytest.mark.row(58)
def test_an_enqueue_through_a_pooler_that_lets_nobody_in_ends_with_a_sentence(pg_url: str) -> None:
    with pgbouncer(pg_url) as bouncer:
        store = pooled_store(bouncer)
        store.enqueue([NewJob("a", "{}")])
        bouncer.command("KILL " + bouncer.url.rpartition("/")[2])

        with pytest.raises(DatabaseUnavailable, match=r"cannot connect to 127\.0\.0\.1"):
            store.enqueue([NewJob("a", "{}")])

        bouncer.command("RESUME " + bouncer.url.rpartition("/")[2])
        eventually(lambda: enqueued(store))
        store.close()


def enqueued(store: PostgresStore) -> bool:
    try:
        return bool(store.enqueue([NewJob("a", "{}")]))
    except DatabaseUnavailable:
        return False
