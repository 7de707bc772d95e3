"""Rows 23, 24 and 76 of the fault catalogue: jobs that never end or take all memory; transaction ids that run out."""

import contextlib
import os
from pathlib import Path

import psycopg
import pytest
from servers import server
from support import eventually
from workers import QUICK, Queue, Workers

from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.embedded.system import run_program, server_user
from pgcron_lite.pg.migrate import migrate
from pgcron_lite.pg.url import parse_url

# Where PostgreSQL stops: this many transaction ids before the oldest one comes round again.
WRAP, MARGIN = 1 << 31, 3_000_000
# Transactions per page and per segment of the commit log.
PAGE, SEGMENT = 8192 * 4, 8192 * 4 * 32


# A job that never ends


@pytest.mark.row(23)
@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_a_job_that_never_ends_keeps_one_slot_and_is_handed_back_when_its_worker_stops(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    worker = workers.start(slots=2, gevent=gevent, env={**QUICK, "PGCRON_GRACE": "1s"})
    endless = queue.enqueue("wait_for_ever")
    queue.begun(endless)

    for _ in range(5):
        queue.until(queue.enqueue("nap"), "done")
    # Longer than the lease, several times over: it is never taken away from a worker that lives.
    started = queue.job(endless).claimed_at
    eventually(lambda: queue.rows("select pgcron.clock() - %s > '5 s' as is_over", started)[0].is_over, within=30)
    assert queue.job(endless).state == "running"
    assert len(queue.entries(endless, "begin")) == 1

    assert worker.stop() == 0
    left = queue.job(endless)
    assert (left.state, left.attempt, left.crashes, left.errors) == ("queued", 0, 0, [])


# A job that takes memory until there is none


@pytest.mark.row(24)
def test_a_job_that_takes_all_memory_fails_alone_and_leaves_its_worker_at_work(
    queue: Queue, workers: Workers
) -> None:
    worker = workers.start(env={**QUICK, "FAULTS_ADDRESS_SPACE": str(1 << 30)})
    leak = queue.enqueue("leak", max_attempts=1)

    failed = queue.until(leak, "failed")

    assert "MemoryError" in failed.errors[-1]["error"]
    assert queue.until(queue.enqueue("nap"), "done").attempt == 1
    assert worker.stop() == 0


@pytest.mark.row(24)
def test_a_worker_that_leaks_is_renewed_by_a_bound_on_its_life(queue: Queue, workers: Workers) -> None:
    worker = workers.start(max_seconds=3)
    jobs = [queue.enqueue("nap", seconds=0.2) for _ in range(10)]

    assert worker.exit_code() == 0
    assert "3 s are over" in worker.log
    workers.start()
    assert [queue.until(job, "done").attempt for job in jobs] == [1] * 10


# Transaction ids


@pytest.mark.row(76)
def test_without_transaction_ids_workers_say_so_once_and_go_on_when_there_are_some_again(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with server(tmp_path / "postgres", max_prepared_transactions="1", autovacuum_naptime="1s") as own:
        migrate(parse_url(own.url, application="pgcron tests"))
        with psycopg.connect(own.url) as conn:
            (oldest,) = conn.execute("select min(datfrozenxid::text::bigint) from pg_database").fetchone() or (0,)
            # As long as it is there no vacuum helps.
            conn.execute("create table kept (id int)")
            conn.commit()
            conn.execute("insert into kept values (1)")
            conn.execute("prepare transaction 'old'")
        own.stop()
        _move_next_transaction(own.bin_directory, own.data_directory, oldest + WRAP - MARGIN - 300)
        own.start()
        queue = Queue(own.url, tmp_path / "journal")
        workers = Workers(queue, tmp_path)
        try:
            worker = workers.start(env=QUICK)
            queue.until(queue.enqueue("nap"), "done")
            # Some are due when no transaction can be had: vacuum gives the server a few more now and then.
            queue.rows(
                "select pgcron.enqueue('fault_tasks.nap', execute_after => pgcron.clock() + n * interval '0.5 s')"
                " from generate_series(1, 60) as n"
            )
            _use_up_transactions(own.url)
            eventually(lambda: "the database is not available: database is not accepting commands" in worker.log, 30)

            # What comes after is repeated at distances, and reported once.
            refused = _refusals(own)
            since = queue.rows("select clock_timestamp() as now")[0].now
            eventually(lambda: queue.rows("select clock_timestamp() - %s > '4 s' as ok", since)[0].ok, within=30)
            assert 0 < _refusals(own) - refused < 40
            reported, over = (worker.log.count(f"the database is {words}") for words in ("not available", "back"))
            assert reported == over + 1
            assert worker.is_alive
            assert queue.rows("select id from pgcron.jobs where state = 'queued' and execute_after < pgcron.clock()")

            with psycopg.connect(own.url, autocommit=True) as conn:
                conn.execute("rollback prepared 'old'")
            eventually(lambda: _accepts(own.url), within=60)
            after = queue.enqueue("nap")
            queue.until(after, "done")
            queue.until_all_ended()
            assert worker.log.count("the database is back") == worker.log.count("the database is not available")
            assert worker.stop() == 0
        finally:
            queue.close()
            workers.clean_up()
            request.node.add_report_section("teardown", "worker logs", workers.logs())


def _refusals(own: EmbeddedPostgres) -> int:
    return (own.data_directory / "server.log").read_text().count("not accepting commands")


def _move_next_transaction(programs: Path, data: Path, number: int) -> None:
    """Let the stopped server begin with transaction `number`, as if it had run for years."""
    answer = run_program(programs / "pg_resetwal", "-x", str(number), "-D", data, **server_user())
    assert answer.returncode == 0, answer.stderr
    # The commit log of that time, in which every transaction is still to come.
    segment = data / "pg_xact" / f"{number // SEGMENT:04X}"
    segment.write_bytes(bytes(SEGMENT // 4))
    if user := server_user():
        os.chown(segment, user["user"], user["group"])


def _use_up_transactions(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn, contextlib.suppress(psycopg.OperationalError):
        while True:
            conn.execute("select pg_current_xact_id()")


def _accepts(url: str) -> bool:
    """Whether the server gives a transaction an id."""
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("select pg_current_xact_id()")
    except psycopg.OperationalError:
        return False
    return True
