"""Rows 66, 68-71, 73-75, 77-80 and 82-84 of the fault catalogue: hostile settings, locks, storage and schemas."""

import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from support import eventually
from workers import QUICK, SLOW, Audit, Queue, Workers

from pgcron_lite import PgCron
from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.errors import ConfigError, DatabaseUnavailable, SchemaMismatch
from pgcron_lite.job import NewJob, Outcome, WorkerCard
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.worker import maintenance
from pgcron_lite.worker.loop import Worker
from pgcron_lite.worker.maintenance import check_start


@pytest.fixture
def store(pg_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    yield store
    store.close()


@pytest.fixture
def impose(databases: Any, pg_url: str) -> Callable[..., None]:
    """Gives the database a setting, as an operator does; connections opened from now on have it."""

    def impose(name: str, value: str) -> None:
        database = sql.Identifier(pg_url.rpartition("/")[2])
        databases.execute(
            sql.SQL("alter database {} set {} = {}").format(database, sql.Identifier(name), sql.Literal(value))
        )

    return impose


@pytest.fixture
def app(pg_url: str) -> Iterator[PgCron]:
    app = PgCron("shop", url=pg_url, lease="1.5s", poll="0.5s")

    @app.task(name="a")
    def a() -> None: ...

    yield app
    app.close()


def worker_of(app: PgCron, store: PostgresStore) -> Worker:
    """A worker that the test turns by hand."""
    card = WorkerCard(uuid.uuid4(), "host", os.getpid(), ("*",), 2, "threads", "1")
    store.register(card)
    return Worker(app, store, card)


def turn_until(worker: Worker, fact: Callable[[], object], within: float = 20.0) -> None:
    def turned() -> object:
        worker.step()
        return fact()

    eventually(turned, within)


def run_a_life(store: PostgresStore) -> None:
    """Every verb of a job's and a worker's life, once; fails when one of them does."""
    card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 1, "threads", "1")
    store.register(card)
    for state in ("done", "failed", "cancelled", "queued"):
        (job_id,) = store.enqueue([NewJob("a", "{}")])
        claim = uuid.uuid4()
        assert [job.id for job in store.claim(card.id, claim, ["*"], ["a"], 5)] == [job_id]
        assert store.beat(card.id)
        assert store.settle([Outcome(job_id, claim, state, delay=0.0 if state == "queued" else None)]) == {job_id}
        if state != "queued":
            assert store.find(limit=1)[0].state == state
    assert store.claim(card.id, uuid.uuid4(), ["*"], ["a"], 5)
    assert len(store.reap([(card.id, None)])) == 1
    assert store.claim_suspect(card.id, uuid.uuid4(), ["*"], ["a"]) is not None
    store.next_due(["*"], ["a"])
    store.prune(timedelta(0), timedelta(0))


# Settings that an operator chose


@pytest.mark.row(66)
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_two_claims_under_a_strict_default_isolation_meet_no_serialization_failure(
    pg_url: str, impose: Callable[..., None], level: str
) -> None:
    impose("default_transaction_isolation", level)
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    errors: list[BaseException] = []
    taken: list[int] = []

    def work() -> None:
        try:
            me = uuid.uuid4()
            for _ in range(25):
                claim = uuid.uuid4()
                jobs = store.claim(me, claim, ["*"], ["a"], 2)
                taken.extend(job.id for job in jobs)
                store.settle([Outcome(job.id, claim, "done") for job in jobs])
        except BaseException as error:
            errors.append(error)

    ids = store.enqueue([NewJob("a", "{}")] * 100)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert sorted(taken) == ids
    run_a_life(store)
    store.close()


@pytest.mark.row(73)
def test_a_short_statement_timeout_of_the_role_is_not_ours(
    queue: Queue, workers: Workers, impose: Callable[..., None]
) -> None:
    impose("statement_timeout", "300ms")
    impose("lock_timeout", "50ms")
    worker = workers.start()

    with psycopg.connect(queue.url) as blocker:
        # Longer than both of the operator's limits, shorter than ours.
        blocker.execute("lock table pgcron.jobs in access exclusive mode")
        held_until = time.monotonic() + 1.0
        eventually(lambda: time.monotonic() > held_until)
        row = blocker.execute("select pgcron.enqueue('fault_tasks.nap')").fetchone()
        assert row is not None
        job = int(row[0])

    queue.until(job, "done")
    assert "WARNING" not in worker.log


@pytest.mark.row(73)
@pytest.mark.row(74)
@pytest.mark.parametrize(
    ("name", "value", "since"),
    [
        ("statement_timeout", "100ms", 13),
        ("idle_in_transaction_session_timeout", "50ms", 13),
        ("idle_session_timeout", "100ms", 14),
        ("transaction_timeout", "200ms", 17),
    ],
)
def test_with_small_timeouts_everything_works_and_the_log_is_quiet(
    queue: Queue, workers: Workers, impose: Callable[..., None], name: str, value: str, since: int
) -> None:
    if not queue.rows("select name from pg_settings where name = %s", name):
        pytest.skip(f"PostgreSQL {since} brought {name}")
    impose(name, value)
    victim = workers.start(env=QUICK)
    job = queue.enqueue("die_at_first", deaths=1)
    victim.exit_code()

    worker = workers.start(env=QUICK)

    # A connection that is renewed all the time still finds the dead.
    assert queue.until(job, "done").crashes == 0
    for _ in range(5):
        queue.until(queue.enqueue("nap", seconds=0.3), "done")
    assert worker.stop() == 0
    assert len(re.findall("not available|not listening", worker.log)) <= 3


# Locks and transactions of others


@pytest.mark.row(68)
def test_while_the_table_is_locked_the_claim_gives_up_in_time_and_the_heart_beats(
    queue: Queue, workers: Workers
) -> None:
    worker = workers.start(env=QUICK)
    observer = workers.start(env=QUICK, queues=["nothing"])
    with psycopg.connect(queue.url) as blocker:
        blocker.execute("lock table pgcron.jobs in access exclusive mode")
        eventually(lambda: "canceling statement due to lock timeout" in worker.log)
        before = queue.workers()[worker.pid].beat

        eventually(lambda: queue.workers()[worker.pid].beat > before + 4)

    job = queue.enqueue("nap")
    queue.until(job, "done", within=15)
    assert worker.log.count("the database is not available") == 1
    assert "declared dead" not in worker.log + observer.log


@pytest.mark.row(68)
def test_an_enqueue_into_a_locked_table_ends_with_an_error_and_makes_no_job(store: PostgresStore, pg_url: str) -> None:
    store.enqueue([NewJob("a", "{}")])
    with psycopg.connect(pg_url) as blocker:
        blocker.execute("lock table pgcron.jobs in access exclusive mode")
        began = time.monotonic()

        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            store.enqueue([NewJob("a", "{}")])

        assert time.monotonic() - began < 15
    assert len(store.find()) == 1


@pytest.mark.row(69)
@pytest.mark.row(70)
def test_rows_that_cannot_be_vacuumed_away_keep_nobody_from_working(store: PostgresStore, pg_url: str) -> None:
    with psycopg.connect(pg_url) as conn:
        conn.execute("alter table pgcron.jobs set (autovacuum_enabled = off)")
    with psycopg.connect(pg_url) as idle:
        idle.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        idle.execute("select count(*) from pgcron.jobs")
        me = uuid.uuid4()
        done: list[int] = []
        for _ in range(20):
            store.enqueue([NewJob("a", "{}")] * 200)
            claim = uuid.uuid4()
            jobs = store.claim(me, claim, ["*"], ["a"], 200)
            done += store.settle([Outcome(job.id, claim, "done") for job in jobs])
        last = store.enqueue([NewJob("a", "{}", priority=1)])

        assert [job.id for job in store.claim(me, uuid.uuid4(), ["*"], ["a"], 5)] == last

    assert len(set(done)) == 4000


# Storage


@pytest.mark.row(71)
def test_a_full_disk_fails_the_enqueue_and_the_worker_waits_for_room(
    own_server: EmbeddedPostgres, queue_of_its_own: Queue, workers_of_its_own: Workers
) -> None:
    queue = queue_of_its_own
    with a_small_disk(own_server, megabytes=16) as folder:
        queue.rows(f"create tablespace small location '{folder}'")
        for table in ("jobs", "history"):
            queue.rows(f"alter table pgcron.{table} set tablespace small")
        worker = workers_of_its_own.start(env=QUICK)
        job = queue.enqueue("nap", seconds=2)
        queue.begun(job)
        filler = fill(folder.parent)
        store = PostgresStore(parse_url(queue.url, application="pgcron test"))

        with pytest.raises(DatabaseUnavailable, match="No space left on device"):
            enqueue_until_it_fails(store)

        filler.unlink()
        assert store.enqueue([NewJob("unheard of", json.dumps({"text": noise(100_000)}))])
        store.close()
        assert queue.until(job, "done").attempt == 1
        queue.until(queue.enqueue("nap"), "done")
        assert worker.stop() == 0


def enqueue_until_it_fails(store: PostgresStore) -> None:
    for _ in range(1000):
        store.enqueue([NewJob("unheard of", json.dumps({"text": noise(100_000)}))])


def fill(folder: Path) -> Path:
    """A file that leaves no room for others."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def noise(length: int) -> str:
    """Text that does not get smaller."""
    return os.urandom(length // 2).hex()


class a_small_disk:
    """A file system of a few megabytes that the server of a test may write to; skips where none can be made."""

    def __init__(self, server: EmbeddedPostgres, megabytes: int) -> None:
        self._server, self._megabytes = server, megabytes
        self._folder = tempfile.mkdtemp(prefix="pgcron-disk-", dir="/tmp")

    def __enter__(self) -> Path:
        if os.geteuid() != 0:
            pytest.skip("mounting a small disk needs root")
        options = f"size={self._megabytes}m,mode=0777"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._folder], capture_output=True, text=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
        inner = Path(self._folder, "space")
        inner.mkdir(mode=0o700)
        owner = self._server.data_directory.stat()
        os.chown(inner, owner.st_uid, owner.st_gid)
        return inner

    def __exit__(self, *exception: object) -> None:
        self._server.stop("immediate")
        subprocess.run(["umount", "-l", self._folder], check=False)
        Path(self._folder).rmdir()


@pytest.mark.row(75)
@pytest.mark.parametrize("past", [2**31 - 2, 2**53 - 2], ids=["int4", "float8"])
def test_job_ids_pass_the_limits_of_smaller_numbers(app: PgCron, pg_url: str, past: int) -> None:
    with psycopg.connect(pg_url) as conn:
        conn.execute(sql.SQL("alter sequence pgcron.jobs_id_seq restart with {}").format(sql.Literal(past)))
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))

    ids = store.enqueue([NewJob("a", "{}")] * 5)

    assert ids == list(range(past, past + 5))
    assert [job.id for job in store.find()] == ids[::-1]
    worker = worker_of(app, store)
    turn_until(worker, lambda: all(job.state == "done" for job in store.find()))
    worker.slots.close()
    store.forget(worker.id)
    with psycopg.connect(pg_url) as conn:
        row = conn.execute("select pgcron.enqueue('a')").fetchone()
    assert row is not None
    assert row[0] > past + 4
    store.close()


@pytest.mark.row(77)
def test_where_no_triggers_fire_jobs_run_all_the_same(
    queue: Queue, workers: Workers, impose: Callable[..., None]
) -> None:
    impose("session_replication_role", "replica")
    workers.start(env={"PGCRON_POLL": "1s"})
    store = PostgresStore(parse_url(queue.url, application="pgcron test"))

    (job,) = store.enqueue([NewJob("fault_tasks.nap", "{}")])

    queue.until(job, "done")
    store.close()


@pytest.mark.row(78)
def test_a_commit_that_waits_for_a_missing_standby_holds_no_enqueue_up_by_its_notice(
    own_server: EmbeddedPostgres, queue_of_its_own: Queue, workers_of_its_own: Workers
) -> None:
    queue = queue_of_its_own
    queue.rows("alter system set synchronous_standby_names = 'ghost'")
    queue.rows("alter system set synchronous_commit = 'local'")
    queue.rows("select pg_reload_conf()")
    eventually(lambda: queue.rows("select current_setting('synchronous_standby_names') as names")[0].names == "ghost")
    # Commits wait once the checkpointer has read it too, which it does before any checkpoint.
    queue.rows("checkpoint")
    with a_stuck_commit(queue.url) as stuck:
        # It holds the lock that every commit with a notice takes, on the whole server.
        eventually(lambda: queue.rows("select pid from pg_stat_activity where wait_event = 'SyncRep'"))
        worker = workers_of_its_own.start(env={**SLOW, "PGCRON_POLL": "1s"})
        store = PostgresStore(parse_url(queue.url, application="pgcron test"))
        began = time.monotonic()

        ids = [*store.enqueue([NewJob("fault_tasks.nap", "{}")]), *store.enqueue([NewJob("fault_tasks.nap", "{}")])]

        assert time.monotonic() - began < 5
        for job in ids:
            queue.until(job, "done")
        assert stuck.is_alive()
        store.close()
        assert worker.stop() == 0


class a_stuck_commit:
    """A transaction with a notice that insists on the standby, in a thread of its own, until the block ends."""

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True)
        self._thread = threading.Thread(target=self._commit)
        self._url = url

    def __enter__(self) -> threading.Thread:
        self._thread.start()
        return self._thread

    def __exit__(self, *exception: object) -> None:
        with psycopg.connect(self._url, autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(%s)", [self._conn.info.backend_pid])
        self._thread.join()
        self._conn.close()

    def _commit(self) -> None:
        try:
            with self._conn.transaction():
                self._conn.execute("set local synchronous_commit = on")
                self._conn.execute("create table if not exists stuck (id int)")
                self._conn.execute("notify something")
        except psycopg.Error:
            pass


# Schemas


@pytest.mark.row(79)
def test_a_worker_refuses_a_database_without_the_schema_and_says_what_to_type(
    empty_pg_url: str, workers: Workers
) -> None:
    worker = workers.start(url=empty_pg_url, ready=False)

    assert worker.exit_code() != 0
    assert "the schema 'pgcron' is not there yet. Run: pgcron migrate" in worker.log


@pytest.mark.row(79)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("delete from pgcron.migrations where number > 1", "Run: pgcron migrate"),
        ("insert into pgcron.migrations values (999, 'far_future', 999)", "Run: pip install --upgrade pgcron_lite"),
    ],
    ids=["older", "newer"],
)
def test_a_schema_that_no_longer_fits_stops_the_claiming_until_it_fits_again(
    app: PgCron, store: PostgresStore, pg_url: str, change: str, says: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(maintenance, "EVERY_SECONDS", 0.0)
    worker = worker_of(app, store)
    worker.step()
    with psycopg.connect(pg_url) as conn:
        saved = conn.execute("select number, name, oldest_code from pgcron.migrations").fetchall()
        conn.execute(change)
    (job,) = store.enqueue([NewJob("a", "{}")])

    turn_until(worker, lambda: says in caplog.text)
    for _ in range(5):
        worker.step()

    assert state_of(store, job) == "queued"
    assert caplog.text.count("the schema does not fit this version, not claiming: ") == 1
    with psycopg.connect(pg_url) as conn:
        conn.execute("delete from pgcron.migrations")
        for row in saved:
            conn.execute("insert into pgcron.migrations (number, name, oldest_code) values (%s, %s, %s)", row)
    turn_until(worker, lambda: state_of(store, job) == "done")
    worker.slots.close()


@pytest.mark.row(79)
def test_a_schema_that_is_dropped_under_a_worker_is_missed_and_found_again(
    queue: Queue, workers: Workers
) -> None:
    worker = workers.start()
    queue.rows("alter schema pgcron rename to elsewhere")
    eventually(lambda: "the schema" in worker.log and "Run: pgcron migrate" in worker.log)

    queue.rows("alter schema elsewhere rename to pgcron")

    queue.until(queue.enqueue("nap"), "done")
    assert worker.stop() == 0


@pytest.mark.row(79)
def test_an_enqueue_without_a_schema_says_what_to_type(empty_pg_url: str) -> None:
    store = PostgresStore(parse_url(empty_pg_url, application="pgcron test"))

    with pytest.raises(SchemaMismatch, match="Run: pgcron migrate"):
        store.enqueue([NewJob("a", "{}")])

    store.close()


@pytest.mark.row(80)
def test_tables_may_be_altered_while_statements_on_them_are_prepared(
    store: PostgresStore, pg_url: str
) -> None:
    # Each several times, so that the plans are kept on the server.
    for _ in range(4):
        run_a_life(store)
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("alter table pgcron.jobs add column note text")
        conn.execute("alter table pgcron.history add column note text")
        conn.execute("alter table pgcron.workers add column note text")

    again: list[bool] = []
    for _ in range(20):
        try:
            run_a_life(store)
        except DatabaseUnavailable:
            # "Cached plan must not change result type": said once, and the connection is left.
            again.append(False)
        else:
            again.append(True)

    assert again.count(False) <= 4
    assert again[-5:] == [True] * 5


@pytest.mark.row(80)
def test_a_worker_lives_through_a_change_of_its_tables(queue: Queue, workers: Workers, audit: Audit) -> None:
    worker = workers.start()
    for _ in range(5):
        queue.until(queue.enqueue("nap"), "done")

    queue.rows("alter table pgcron.jobs add column note text")
    queue.rows("alter table pgcron.workers alter column host type varchar(300)")

    for _ in range(5):
        ended = queue.until(queue.enqueue("nap"), "done")
        assert (ended.attempt, ended.errors) == (1, [])
    audit.check()
    assert worker.stop() == 0


@pytest.mark.row(82)
def test_without_its_indexes_everything_is_slower_and_still_right(store: PostgresStore, pg_url: str) -> None:
    with psycopg.connect(pg_url) as conn:
        for index in ("jobs_waiting", "jobs_suspect", "jobs_held", "history_age"):
            conn.execute(sql.SQL("drop index pgcron.{}").format(sql.Identifier(index)))

    low, high, later = store.enqueue([
        NewJob("a", "{}"),
        NewJob("a", "{}", priority=9),
        NewJob("a", "{}", priority=9, execute_after=timedelta(hours=1)),
    ])

    claimed = store.claim(uuid.uuid4(), uuid.uuid4(), ["*"], ["a"], 10)
    assert [job.id for job in claimed] == [high, low]
    assert state_of(store, later) == "queued"
    store.settle([Outcome(job.id, job.claim, "done") for job in claimed if job.claim])
    run_a_life(store)


@pytest.mark.row(83)
def test_a_running_job_that_a_user_deletes_is_reported_lost_once(queue: Queue, workers: Workers) -> None:
    worker = workers.start()
    job = queue.enqueue("nap", seconds=2)
    queue.begun(job)

    queue.rows("delete from pgcron.jobs where id = %s", job)

    eventually(lambda: "but was no longer this worker's; the outcome is dropped" in worker.log)
    assert worker.log.count("no longer this worker's") == 1
    queue.until(queue.enqueue("nap"), "done")
    assert worker.stop() == 0


@pytest.mark.row(83)
def test_a_worker_whose_row_is_truncated_away_goes_on_under_a_new_name(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    worker = workers.start()
    job = queue.enqueue("nap", seconds=1)
    queue.begun(job)
    before = queue.workers()[worker.pid].id

    queue.rows("truncate pgcron.workers")

    eventually(lambda: (row := queue.workers().get(worker.pid)) and row.id != before)
    queue.until(job, "done")
    queue.until(queue.enqueue("nap"), "done")
    audit.check()
    assert worker.stop() == 0


# A copy of somebody else's database


@pytest.mark.row(84)
@pytest.mark.parametrize(
    ("label", "environment", "is_welcome"),
    [
        (None, None, True),
        (None, "staging", True),
        ("production", "production", True),
        ("production", "staging", False),
        ("production", None, False),
    ],
)
def test_a_worker_starts_only_where_the_label_is_its_own(
    pg_url: str, label: str | None, environment: str | None, is_welcome: bool
) -> None:
    app = PgCron("shop", url=pg_url, environment=environment)
    if label is not None:
        with psycopg.connect(pg_url) as conn:
            conn.execute("insert into pgcron.facts values ('environment', %s)", [label])
    try:
        if is_welcome:
            check_start(app, app.store)
        else:
            with pytest.raises(ConfigError, match=r"belongs to the environment 'production'.*Is it a copy\?"):
                check_start(app, app.store)
    finally:
        app.close()


@pytest.mark.row(84)
def test_a_worker_on_a_clone_of_production_runs_none_of_its_jobs(
    queue: Queue, workers: Workers, databases: Any
) -> None:
    queue.rows("insert into pgcron.facts values ('environment', 'production')")
    queue.enqueue("nap")
    queue.close()
    clone = databases.create(template=queue.url.rpartition("/")[2])
    try:
        worker = workers.start(url=clone, env={"PGCRON_ENVIRONMENT": "staging"}, ready=False)

        assert worker.exit_code() != 0
        assert "pgcron migrate --environment staging" in worker.log
        assert queue.entries() == []
        with psycopg.connect(clone) as conn:
            assert conn.execute("select state from pgcron.jobs").fetchall() == [("queued",)]
    finally:
        databases.drop(clone)


def state_of(store: PostgresStore, job_id: int) -> str | None:
    job = store.get(job_id)
    return None if job is None else job.state
