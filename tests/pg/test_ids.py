"""Ids that are drawn twice: producers, workers, operators and `migrate` when the sequence is behind.

A sequence is behind after a failover to a standby that lacked the last commits, after a restore, on a logical replica,
or after a setval(). Here it is set back, or rows are inserted with chosen ids.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from faults.proxy import Proxy
from faults.tripwire import Tripwire
from psycopg import conninfo, sql
from support import eventually, python

from pgcron_lite import PgCron
from pgcron_lite.errors import DatabaseRefused, DatabaseUnavailable
from pgcron_lite.job import EARLIER_ID, NewJob, Outcome, WorkerCard
from pgcron_lite.pg.caller_transaction import complete_on, enqueue_on
from pgcron_lite.pg.enqueue import COPIES_FROM, IdStock
from pgcron_lite.pg.migrate import migrate
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.worker.loop import LOG_AGAIN_SECONDS, Worker
from pgcron_lite.worker.outcomes import JUST_NOW_SECONDS, MAX_REFUSED, REFUSED_SECONDS
from pgcron_lite.worker.process import run_worker

ME = uuid.UUID(int=1)
PATIENCE = 30.0
SIZES = [1, 3, COPIES_FROM + 50]


@pytest.fixture
def store(pg_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"), rings=False)
    yield store
    store.close()


@pytest.fixture
def conn(pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        yield conn


@pytest.fixture
def app(pg_url: str) -> Iterator[PgCron]:
    app = PgCron("ids", url=pg_url, poll="0.2s")
    app.task(note, name="note", max_attempts=1)
    app.task(note, name="bad", max_attempts=1)
    yield app
    app.close()


def note(text: str = "") -> None:
    """Do nothing, as a task."""


def ended(store: PostgresStore, count: int = 3) -> list[int]:
    """Enqueue and end jobs, and return their ids, which are the first of the sequence."""
    ids = store.enqueue([NewJob("note", '["older"]')] * count)
    jobs = store.claim(ME, uuid.uuid4(), ["*"], ["note"], count)
    assert store.settle([Outcome(job.id, job.claim or ME, "done") for job in jobs]) == set(ids)
    return ids


def set_back(conn: psycopg.Connection[Any], to: int = 1) -> None:
    conn.execute("select setval('pgcron.jobs_id_seq', %s, false)", [to])


def insert(conn: psycopg.Connection[Any], job_id: int, task: str = "note", args: str = '["younger"]') -> None:
    """Insert a job without any check of its id, as the previous release does, or a restore."""
    conn.execute("insert into pgcron.jobs (id, task, args) values (%s, %s, %s)", [job_id, task, args])


def everything(conn: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return conn.execute("select id, state, args::text from pgcron.all_jobs order by id, finished_at").fetchall()


# Workers


@pytest.mark.row(151)
def test_a_worker_survives_a_job_whose_id_is_in_history(
    app: PgCron, store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = ended(store)
    insert(conn, old[0])
    insert(conn, 1000)

    assert run_worker(app, drain=True, slots=2) == 0

    younger = store.find(task="note")[0]
    assert everything(conn)[:3] == [(job_id, "done", '["older"]') for job_id in old]
    assert (younger.id, younger.state, younger.args) == (1001, "done", '["younger"]')
    assert younger.headers[EARLIER_ID] == str(old[0])
    assert f"job {old[0]} has ended, and history has another job of that id: it is stored under the id 1001" in (
        caplog.text
    )


@pytest.mark.row(151)
def test_a_job_whose_id_is_in_history_ends_behind_a_pooler_as_well(store: PostgresStore, conn: Any) -> None:
    [old] = ended(store, 1)
    insert(conn, old)
    with store.pool.take() as connection:
        # As behind a pooler, where no statement is prepared.
        connection.close()
        connection._may_prepare = False
    [job] = store.claim(ME, uuid.uuid4(), ["*"], ["note"], 1)

    settled = store.settle([Outcome(job.id, job.claim or ME, "done")])

    assert not connection.is_direct
    assert settled == {old}
    assert [row[1:] for row in everything(conn)] == [("done", '["older"]'), ("done", '["younger"]')]


@pytest.mark.row(151)
def test_a_worker_that_starts_moves_the_sequence_forward(
    app: PgCron, store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = ended(store, 5)
    set_back(conn)

    assert run_worker(app, drain=True, slots=2) == 0

    assert "the sequence of job ids was 4 behind the ids in use" in caplog.text
    assert conn.execute("select nextval('pgcron.jobs_id_seq')").fetchone()[0] > max(old)


def test_a_run_whose_jobs_id_is_in_history_is_recorded_with_its_tick(
    store: PostgresStore, conn: Any
) -> None:
    [old] = ended(store, 1)
    conn.execute("insert into pgcron.schedules (name, origin, app, definition) values ('s', 'hand', 'ids', '{}')")
    conn.execute(
        "insert into pgcron.jobs (id, task, headers) values (%s, 'note', '{\"pgcron-schedule\": \"s\"}')", [old]
    )
    conn.execute("insert into pgcron.ticks (schedule, tick, due_at, job_id) values ('s', now(), now(), %s)", [old])
    [job] = store.claim(ME, uuid.uuid4(), ["*"], ["note"], 1)

    store.settle([Outcome(job.id, job.claim or ME, "failed")])
    [closing], _ = store.watch()

    assert closing.outcome == "failed"
    assert store.get(closing.job_id).headers[EARLIER_ID] == str(old)  # type: ignore[union-attr]


@pytest.mark.row(151)
@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_an_outcome_under_a_new_id_whose_reply_was_lost_is_found(
    pg_url: str, store: PostgresStore, conn: Any, state: Any
) -> None:
    old = ended(store, 2)
    for job_id in old:
        insert(conn, job_id)
    insert(conn, 1000)
    worker_id = uuid.uuid4()
    # The first statement fails because ids are taken. These words are in the second one.
    with Tripwire(pg_url, "h.history_headers, m.tags", "after the commit", lambda: None) as wire:
        worker = PostgresStore(parse_url(wire.url, application="pgcron cut"), rings=False)
        jobs = worker.claim(worker_id, uuid.uuid4(), ["*"], ["note"], 3)
        outcomes = [Outcome(job.id, job.claim or ME, state) for job in jobs]

        with pytest.raises(DatabaseUnavailable):
            worker.settle(outcomes)
        settled = worker.settle(outcomes)
        strangers = worker.settle([Outcome(job.id, ME, state) for job in jobs])
        worker.close()

    assert wire.has_tripped.is_set()
    assert (settled, strangers) == ({*old, 1000}, set())
    assert len(everything(conn)) == 5


def test_a_job_whose_id_is_in_history_is_completed_with_the_callers_data(store: PostgresStore, conn: Any) -> None:
    [old] = ended(store, 1)
    insert(conn, old)
    [job] = store.claim(ME, uuid.uuid4(), ["*"], ["note"], 1)

    with conn.transaction():
        conn.execute("create table public.effect ()")
        assert complete_on(conn, job.id, job.claim or ME, '"x"', schema="pgcron")

    [younger, older] = store.find()
    assert (older.id, older.args) == (old, '["older"]')
    assert (younger.state, younger.result, younger.headers[EARLIER_ID]) == ("done", '"x"', str(old))


def test_the_nonce_is_kept_in_history_and_by_a_retry(store: PostgresStore, conn: Any) -> None:
    def nonces(table: str) -> list[Any]:
        return conn.execute(sql.SQL("select nonce from pgcron.{} order by id").format(sql.Identifier(table))).fetchall()

    ids = store.enqueue([NewJob("note", max_crashes=1)] * 6)
    before = nonces("jobs")
    assert len({*before}) == 1
    assert before[0][0] is not None
    jobs = store.claim(ME, uuid.uuid4(), ["*"], ["note"], 4)
    store.settle([Outcome(ids[0], jobs[0].claim or ME, "failed")])
    assert complete_on(conn, ids[1], jobs[1].claim or ME, None, schema="pgcron")
    store.settle([Outcome(ids[2], jobs[2].claim or ME, "queued", delay=3600.0)])
    store.cancel(ids[2])
    store.reap([(ME, None)])
    store.claim_suspect(ME, uuid.uuid4(), ["*"], ["note"])
    store.reap([(ME, None)])
    store.clear("default")

    assert nonces("history") == before
    assert nonces("jobs") == []

    assert store.retry(ids[0])

    assert nonces("jobs") == before[:1]


# Statements that the database refuses

# Functions and triggers that are made to refuse, as a bad row would, with the part of a step that uses them.
REFUSALS = {
    "claim": "create or replace function pgcron.levels() returns table (queue text, priority smallint)"
    " language plpgsql as 'begin raise exception using errcode = ''22000'', message = ''bad row''; end'",
    "look around": "create function public.refuse() returns bigint language plpgsql as"
    " 'begin raise exception using errcode = ''22000'', message = ''bad row''; end';"
    " alter table pgcron.workers rename to workers_;"
    " create view pgcron.workers as"
    " select w.id, public.refuse() as beat, w.generation, w.beat_at from pgcron.workers_ as w",
    "sequence": "create or replace function pgcron.mend_sequence() returns bigint"
    " language plpgsql as 'begin raise exception using errcode = ''22000'', message = ''bad row''; end'",
    "reconcile": "create or replace function pgcron.reconcile(schedule_name text default null)"
    " returns table (name text, what text)"
    " language plpgsql as 'begin raise exception using errcode = ''22000'', message = ''bad row''; end'",
    "prune": "create function public.refuse() returns trigger language plpgsql as"
    " 'begin raise exception using errcode = ''22000'', message = ''bad row''; end';"
    " create trigger refuse before delete on pgcron.history for each statement execute function public.refuse()",
}


class Hands:
    """A worker on PostgreSQL that is stepped by the test, and its clock."""

    def __init__(self, app: PgCron, url: str) -> None:
        self.ahead = 0.0
        self.store = PostgresStore(parse_url(url, application="pgcron worker"), rings=False)
        card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 2, "threads", "0")
        self.store.register(card)
        self.worker = Worker(app, self.store, card, clock=lambda: time.monotonic() + self.ahead)

    def turn_until(self, fact: Callable[[], Any]) -> Any:
        def turned() -> Any:
            self.worker.step()
            return fact()

        return eventually(turned, PATIENCE)

    def close(self) -> None:
        self.worker.slots.close()
        self.store.close()


@pytest.fixture
def hands(app: PgCron, pg_url: str) -> Iterator[Hands]:
    hands = Hands(app, pg_url)
    yield hands
    hands.close()


@pytest.mark.row(152)
@pytest.mark.parametrize("what", REFUSALS)
def test_no_refused_statement_ends_a_step_with_an_error(
    hands: Hands, store: PostgresStore, conn: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The owner and the kinds of the tables are checked before one of them is changed.
    store.now()
    conn.execute(REFUSALS[what])
    # There is something to do for each part of a step.
    conn.execute("update pgcron.planner set generations = '{another}'")
    hands.worker._maintenance.prune_at = 0.0
    [job_id] = store.enqueue([NewJob("note")])

    hands.turn_until(lambda: "bad row" in caplog.text)

    if what != "claim":
        # The other parts of the step have done their work.
        hands.turn_until(lambda: state(conn, job_id) == "done")
    assert "the database refused a statement" in caplog.text


@pytest.mark.row(152)
def test_a_claim_that_is_refused_for_good_is_logged_once_a_minute(
    hands: Hands, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    conn.execute(REFUSALS["claim"])
    hands.turn_until(lambda: hands.worker.refusals > 5)
    assert caplog.text.count("bad row") == 1

    hands.ahead += LOG_AGAIN_SECONDS + 1
    hands.worker.step()

    assert caplog.text.count("bad row") == 2


@pytest.mark.row(151)
def test_a_sequence_that_falls_behind_during_a_connection_is_moved_forward(
    hands: Hands, store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler keeps its connections to clients open when the server is replaced."""
    newest = store.enqueue([NewJob("unknown")] * 9)[-1]
    hands.turn_until(lambda: hands.store.generation)
    generation = hands.store.generation
    set_back(conn)

    hands.ahead += 80
    hands.turn_until(lambda: "behind the ids in use" in caplog.text)

    assert hands.store.generation == generation
    assert conn.execute("select nextval('pgcron.jobs_id_seq')").fetchone()[0] > newest


def test_checking_the_sequence_reads_no_deleted_jobs(store: PostgresStore, conn: Any) -> None:
    store.enqueue([NewJob("note")])
    conn.execute("insert into pgcron.jobs (task) select 'note' from generate_series(1, 5000)")
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as reader:
        # Its snapshot keeps the index entries of deleted rows.
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("select from pgcron.jobs limit 1")
        conn.execute("delete from pgcron.jobs where id > 1")
        # A session reads the catalogue with its first statement.
        conn.execute("select pgcron.mend_sequence()")

        assert blocks_read(conn, "select pgcron.mend_sequence()") < 50


def blocks_read(conn: Any, query: str) -> int:
    plan = conn.execute(f"explain (analyze, buffers, format json) {query}".encode()).fetchone()[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def state(conn: Any, job_id: int) -> str:
    return str(conn.execute("select state from pgcron.all_jobs where id = %s", [job_id]).fetchone()[0])


def refuse_all_about(conn: Any, task: str) -> None:
    conn.execute(
        sql.SQL(
            """
            create function public.refuse() returns trigger language plpgsql as $$
            begin
                if new.task = {} then
                    raise exception using errcode = '22000', message = 'not this one';
                end if;
                return new;
            end $$;
            create trigger refuse before insert on pgcron.history for each row execute function public.refuse();
            """
        ).format(task)
    )


@pytest.mark.row(152)
def test_an_outcome_that_cannot_be_stored_does_not_block_the_others(
    hands: Hands, store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_all_about(conn, "bad")
    [bad] = store.enqueue([NewJob("bad")])
    good = store.enqueue([NewJob("note")] * 5)

    hands.turn_until(lambda: "refuses every outcome of bad" in caplog.text)
    hands.turn_until(lambda: {state(conn, job_id) for job_id in good} == {"done"})
    more = store.enqueue([NewJob("note")] * 5)
    hands.worker.claim_soon()
    hands.turn_until(lambda: {state(conn, job_id) for job_id in more} == {"done"})

    # The job is still running, is not run again, and does not delay the stop of its worker.
    assert (state(conn, bad), [*hands.worker.running]) == ("running", [bad])
    assert caplog.text.count("refuses every outcome of bad") == 1
    hands.turn_until(hands.worker.is_idle)

    conn.execute("drop trigger refuse on pgcron.history")
    hands.ahead += REFUSED_SECONDS + 1

    hands.turn_until(lambda: state(conn, bad) == "done")
    assert not hands.worker.running


@pytest.mark.row(152)
def test_as_many_refused_outcomes_as_slots_do_not_block_a_worker(
    hands: Hands, store: PostgresStore, conn: Any
) -> None:
    refuse_all_about(conn, "bad")
    bad = store.enqueue([NewJob("bad")] * 5)
    hands.turn_until(lambda: len(hands.worker.unstorable) == 5 > hands.worker.slots.count)

    good = store.enqueue([NewJob("note")] * 5)
    hands.worker.claim_soon()
    hands.turn_until(lambda: {state(conn, job_id) for job_id in good} == {"done"})

    assert {state(conn, job_id) for job_id in bad} == {"running"}


@pytest.mark.row(152)
def test_a_task_whose_outcomes_are_refused_is_not_claimed_until_one_is_stored(
    hands: Hands, store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_all_about(conn, "bad")
    bad = store.enqueue([NewJob("bad")] * 300)
    hands.turn_until(lambda: hands.worker.blocked_tasks == ["bad"])
    # The jobs that had begun.
    hands.turn_until(hands.worker.is_idle)
    refused = len(hands.worker.unstorable)

    good = store.enqueue([NewJob("note")] * 5)
    hands.worker.claim_soon()
    hands.turn_until(lambda: {state(conn, job_id) for job_id in good} == {"done"})
    for _ in range(20):
        hands.worker.claim_soon()
        hands.worker.step()

    assert MAX_REFUSED <= refused == len(hands.worker.unstorable) < len(bad)
    assert sorted(state(conn, job_id) for job_id in bad) == ["queued"] * (300 - refused) + ["running"] * refused
    assert "this worker claims no more of them until an outcome is stored" in caplog.text

    conn.execute("drop trigger refuse on pgcron.history")
    hands.ahead += REFUSED_SECONDS + 1
    hands.turn_until(lambda: {state(conn, job_id) for job_id in bad} == {"done"})

    assert conn.execute("select max(attempt) from pgcron.history").fetchone() == (1,)
    assert hands.worker.blocked_tasks == []


@pytest.mark.row(152)
def test_refused_outcomes_are_tried_once_more_when_their_worker_stops(
    hands: Hands, store: PostgresStore, conn: Any
) -> None:
    refuse_all_about(conn, "bad")
    [bad] = store.enqueue([NewJob("bad")])
    hands.turn_until(lambda: hands.worker.unstorable)
    conn.execute("drop trigger refuse on pgcron.history")
    hands.ahead += JUST_NOW_SECONDS + 1

    assert hands.worker.release() == []

    assert state(conn, bad) == "done"


@pytest.mark.row(152)
def test_a_suspect_whose_outcome_cannot_be_stored_does_not_block_its_worker(
    hands: Hands, store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_all_about(conn, "bad")
    [bad] = store.enqueue([NewJob("bad")])
    conn.execute("update pgcron.jobs set alone = true where id = %s", [bad])
    hands.turn_until(lambda: "refuses every outcome of bad" in caplog.text)

    [good] = store.enqueue([NewJob("note")])
    hands.ahead += 10
    hands.turn_until(lambda: state(conn, good) == "done")

    assert state(conn, bad) == "running"


def test_a_job_that_cannot_be_handed_back_fails_alone(
    hands: Hands, store: PostgresStore, conn: Any
) -> None:
    conn.execute(
        """
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            if new.task = 'bad' and new.state = 'queued' then
                raise exception using errcode = '22000', message = 'not this one';
            end if;
            return new;
        end $$;
        create trigger refuse before update on pgcron.jobs for each row execute function public.refuse();
        """
    )
    [bad, good] = store.enqueue([NewJob("bad"), NewJob("good")])
    jobs = store.claim(hands.worker.id, uuid.uuid4(), ["*"], ["bad", "good"], 2)
    hands.worker.running.update((job.id, job) for job in jobs)

    hands.worker.release()

    assert (state(conn, bad), state(conn, good)) == ("failed", "queued")
    assert not hands.worker.running


# Producers


def by_function(conn: Any, count: int) -> list[int]:
    return [conn.execute("select pgcron.enqueue('note', '[\"new\"]')").fetchone()[0] for _ in range(count)]


def by_connection(conn: Any, count: int) -> list[int]:
    return enqueue_on(conn, [NewJob("note", '["new"]')] * count, schema="pgcron", rings=False)


@pytest.mark.row(151)
@pytest.mark.parametrize("enqueue", [by_function, by_connection])
@pytest.mark.parametrize("count", [1, 7])
def test_a_callers_transaction_skips_ids_in_use(
    store: PostgresStore, conn: Any, enqueue: Callable[[Any, int], list[int]], count: int
) -> None:
    old = ended(store)
    waiting = store.enqueue([NewJob("note", '["waiting"]')] * 3)
    set_back(conn)

    with conn.transaction():
        conn.execute("create table public.orders ()")
        ids = enqueue(conn, count)

    assert len({*ids, *old, *waiting}) == 6 + count
    assert ids == sorted(ids)
    rows = everything(conn)
    assert [row for row in rows if row[0] in ids] == [(job_id, "queued", '["new"]') for job_id in ids]


def test_jobs_of_ticks_get_ids_that_are_not_in_use(app: PgCron, store: PostgresStore, conn: Any) -> None:
    old = ended(store)
    waiting = store.enqueue([NewJob("note")])
    set_back(conn)

    app.schedules.add("s", "every 1h", "note")
    run = app.schedules.run_now("s")

    assert run.id not in [*old, *waiting]
    assert len({row[0] for row in everything(conn)}) == len(everything(conn))


@pytest.mark.row(151)
@pytest.mark.parametrize("count", SIZES)
def test_a_repeat_after_a_lost_connection_does_not_mistake_others_rows_for_its_own(
    pg_url: str, store: PostgresStore, conn: Any, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The first try did not reach the server, and meanwhile another producer has stored jobs under its ids."""
    taken: list[int] = []

    def another_comes() -> None:
        taken.append(conn.execute("select last_value from pgcron.jobs_id_seq").fetchone()[0])
        insert(conn, taken[0], args='["other"]')

    with Tripwire(pg_url, words_of(count), "before the statement", another_comes) as wire:
        producer = PostgresStore(parse_url(wire.url, application="pgcron cut"), rings=False)
        ids = producer.enqueue([NewJob("note", '["mine"]')] * count)
        producer.close()

    assert wire.has_tripped.is_set()
    assert taken[0] not in ids
    assert {store.get(job_id).args for job_id in ids} == {'["mine"]'}  # type: ignore[union-attr]
    assert len(everything(conn)) == count + 1
    assert "in use by other jobs" in caplog.text


def words_of(count: int) -> str:
    """Return words that are only in the statement that enqueues `count` jobs."""
    return "copy pgcron.jobs" if count >= COPIES_FROM else "insert into pgcron.jobs"


@pytest.mark.row(151)
def test_ids_in_stock_are_discarded_with_their_connection(store: PostgresStore, conn: Any) -> None:
    store.enqueue([NewJob("note")])
    drawn = max(store.enqueue([NewJob("note")])[0] for _ in range(10))
    assert store._stock._ids
    store.pool.close()

    [job_id] = store.enqueue([NewJob("note")])

    last = conn.execute("select last_value from pgcron.jobs_id_seq").fetchone()[0]
    assert drawn < job_id <= last
    assert min([job_id, *store._stock._ids]) > last - IdStock.MOST - 1
    assert job_id == last - len(store._stock._ids)


@pytest.mark.row(27)
def test_a_forked_child_uses_no_ids_and_no_nonce_of_its_parent(pg_url: str, conn: Any) -> None:
    output = python(
        """
        import os, sys
        from pgcron_lite.job import NewJob
        from pgcron_lite.pg.url import parse_url
        from pgcron_lite.pg.store import PostgresStore
        store = PostgresStore(parse_url(sys.argv[1], application="pgcron test"))
        for _ in range(10):
            store.enqueue([NewJob("note")])
        assert store._stock._ids
        # Forked while another thread draws ids.
        with store._stock._lock:
            child = os.fork()
        if child == 0:
            store.enqueue([NewJob("note")])
            store.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        store.enqueue([NewJob("note")])
        store.close()
        print(status)
        """,
        pg_url,
    )

    assert output.split() == ["0"]
    counts = conn.execute("select count(*), count(distinct id), count(distinct nonce) from pgcron.jobs").fetchone()
    assert counts == (12, 12, 12)


@pytest.mark.row(153)
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("has_ended", [True, False])
def test_a_first_try_that_arrives_late_stores_no_second_job(
    pg_url: str, store: PostgresStore, conn: Any, count: int, has_ended: bool
) -> None:
    with Proxy(pg_url) as proxy, contextlib.ExitStack() as stack:
        producer = PostgresStore(parse_url(proxy.url, application="pgcron late"), rings=False)
        stack.callback(producer.close)
        producer.now()
        proxy.hold_from = words_of(count).encode()
        guard = threading.Thread(target=lambda: (proxy.is_holding.wait(PATIENCE), producer.cut()))
        guard.start()

        ids = producer.enqueue([NewJob("note", '["once"]')] * count)
        guard.join()
        if has_ended:
            jobs = store.claim(ME, uuid.uuid4(), ["*"], ["note"], count)
            store.settle([Outcome(job.id, job.claim or ME, "done") for job in jobs])
        proxy.let_go()
        producer.close()
        eventually(lambda: not visitors(conn, "pgcron late"), PATIENCE)

    assert [row[0] for row in everything(conn)] == ids
    assert {row[1] for row in everything(conn)} == {"done" if has_ended else "queued"}


def visitors(conn: Any, application: str) -> list[Any]:
    return list(conn.execute("select pid from pg_stat_activity where application_name = %s", [application]).fetchall())


@pytest.mark.row(151)
@pytest.mark.parametrize("count", SIZES)
def test_ids_that_an_open_transaction_holds_are_skipped(
    pg_url: str, store: PostgresStore, conn: Any, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(pg_url) as holder:
        holder.execute(
            "insert into pgcron.jobs (id, task) select n, 'held' from generate_series(1, %s::int) as n", [count + 1]
        )

        ids = store.enqueue([NewJob("note", '["mine"]')] * count)

        assert [row[0] for row in everything(conn)] == ids
        assert not {*ids} & {*range(1, count + 2)}
        assert "a transaction has inserted which has not ended" in caplog.text
        assert "so the sequence of ids is behind" not in caplog.text


def test_ids_in_stock_that_a_producers_open_transaction_holds_cost_one_wait(
    roles: Callable[[str], str], store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    while len(store._stock._ids) < 10:
        store.enqueue([NewJob("note")])
    with psycopg.connect(roles("producer")) as holder:
        for job_id in store._stock._ids:
            holder.execute("insert into pgcron.jobs (id, task) values (%s, 'held')", [job_id])

        ids = [store.enqueue([NewJob("note")])[0] for _ in range(20)]

        assert {*ids} <= {row[0] for row in everything(conn)}
        assert caplog.text.count("a transaction has inserted which has not ended") == 1


def test_a_repeat_does_not_take_another_id_while_its_own_may_be_stored(
    pg_url: str, store: PostgresStore, conn: Any
) -> None:
    """The transaction that holds the id may be the first try, which would commit a second job later."""
    with psycopg.connect(pg_url) as holder:

        def another_holds_it() -> None:
            [last] = conn.execute("select last_value from pgcron.jobs_id_seq").fetchone()
            holder.execute("insert into pgcron.jobs (id, task) values (%s, 'held')", [last])

        with Tripwire(pg_url, words_of(1), "before the statement", another_holds_it) as wire:
            producer = PostgresStore(parse_url(wire.url, application="pgcron cut"), rings=False)

            with pytest.raises(DatabaseUnavailable):
                producer.enqueue([NewJob("note")])
            producer.close()

    assert [row[0] for row in conn.execute("select task from pgcron.jobs").fetchall()] == ["held"]


def test_a_producer_gives_up_if_every_drawn_id_is_taken(
    store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    conn.execute(
        """
        create function public.take() returns trigger language plpgsql as $$
        begin
            raise exception using errcode = 'unique_violation', constraint = 'jobs_pkey', message = 'taken';
        end $$;
        create trigger take before insert on pgcron.jobs for each row execute function public.take();
        """
    )

    with pytest.raises(DatabaseRefused, match="ids that were free were taken 10 times"):
        store.enqueue([NewJob("note")])


# The sequence


def test_no_id_is_drawn_twice_while_two_workers_move_the_sequence(pg_url: str, conn: Any) -> None:
    for portion in (50_000, 1_500_000):
        conn.execute("insert into pgcron.jobs (id, task) values (%s, 'note')", [portion])
        set_back(conn)
        stop = threading.Event()
        drawn: list[int] = []

        def draw(stop: threading.Event = stop, drawn: list[int] = drawn) -> None:
            with psycopg.connect(pg_url, autocommit=True) as mine:
                while not stop.is_set():
                    drawn += [row[0] for row in mine.execute(
                        "select nextval('pgcron.jobs_id_seq') from generate_series(1, 20)"
                    )]  # fmt: skip

        stores = [PostgresStore(parse_url(pg_url, application="pgcron mender"), rings=False) for _ in range(2)]
        menders = [threading.Thread(target=mend_fully, args=[store]) for store in stores]
        drawer = threading.Thread(target=draw)
        drawer.start()
        for mender in menders:
            mender.start()
        for mender in menders:
            mender.join()
        stop.set()
        drawer.join()
        for store in stores:
            store.close()

        assert len({*drawn}) == len(drawn)
        assert drawn == sorted(drawn)
        assert conn.execute("select nextval('pgcron.jobs_id_seq')").fetchone()[0] > portion


def mend_fully(store: PostgresStore) -> None:
    while store.mend_sequence():
        pass


def test_a_high_id_chosen_by_hand_does_not_exhaust_the_sequence(store: PostgresStore, conn: Any) -> None:
    insert(conn, 2**63 - 1)
    insert(conn, 2**53)

    assert store.mend_sequence() == 0

    assert store.enqueue([NewJob("note")]) == [1]


@pytest.mark.row(151)
def test_migrating_moves_a_sequence_that_is_behind_and_logs_it(
    pg_url: str, store: PostgresStore, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ended(store)
    set_back(conn)

    with caplog.at_level(logging.WARNING):
        assert migrate(parse_url(pg_url, application="pgcron test")) == []

    assert "the sequence of job ids was 2 behind" in caplog.text
    assert conn.execute("select nextval('pgcron.jobs_id_seq')").fetchone()[0] == 4


@pytest.fixture
def roles(pg_url: str, conn: Any) -> Iterator[Callable[[str], str]]:
    """Return a function that creates a role with a part and returns its URL."""
    made: list[sql.Identifier] = []

    def make(part: str) -> str:
        name = f"{conn.info.dbname} {part}"
        made.append(sql.Identifier(name))
        conn.execute(sql.SQL("create role {} login password 'secret'").format(made[-1]))
        conn.execute("select pgcron.allow(%s, %s)", [name, part])
        return conninfo.make_conninfo(pg_url, user=name, password="secret")

    yield make
    for role in made:
        conn.execute(sql.SQL("drop owned by {}; drop role {}").format(role, role))


def test_a_worker_moves_the_sequence_without_the_right_to_set_it(
    roles: Callable[[str], str], store: PostgresStore, conn: Any
) -> None:
    insert(conn, 2_500_000)
    worker = PostgresStore(parse_url(roles("worker"), application="pgcron role"), rings=False)

    behind = [worker.mend_sequence() for _ in range(4)]
    worker.close()

    assert behind[0] > behind[1] > behind[2] > behind[3] == 0
    assert store.enqueue([NewJob("note")])[0] == 2_500_001


def test_a_producer_skips_ids_in_use(roles: Callable[[str], str], store: PostgresStore, conn: Any) -> None:
    old = ended(store)
    set_back(conn)
    producer = PostgresStore(parse_url(roles("producer"), application="pgcron role"), rings=False)

    ids = [job_id for count in SIZES for job_id in producer.enqueue([NewJob("note")] * count)]
    producer.close()

    assert len({*old, *ids}) == 3 + sum(SIZES)
    assert {row[0] for row in everything(conn)} == {*old, *ids}


@pytest.mark.parametrize("count", [1, 3])
def test_a_producer_discards_stocked_ids_that_are_ahead_of_the_sequence(
    roles: Callable[[str], str], conn: Any, count: int
) -> None:
    producer = PostgresStore(parse_url(roles("producer"), application="pgcron role"), rings=False)
    while len(producer._stock._ids) < count:
        producer.enqueue([NewJob("note")])
    conn.execute("delete from pgcron.jobs")
    set_back(conn)

    ids = producer.enqueue([NewJob("note")] * count)
    producer.close()

    assert [row[0] for row in everything(conn)] == ids


def test_a_repeat_after_a_failover_discards_ids_that_the_new_server_has_not_drawn(
    roles: Callable[[str], str], conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = PostgresStore(parse_url(roles("producer"), application="pgcron role"), rings=False)
    lost = producer.enqueue([NewJob("note")] * 9)
    conn.execute("delete from pgcron.jobs")

    def fail_over(*given: Any) -> bool:
        monkeypatch.undo()
        # The new primary lacks the last ids that were drawn.
        set_back(conn)
        raise DatabaseUnavailable("the server is gone")

    monkeypatch.setattr(producer, "_insert", fail_over)

    [job_id] = producer.enqueue([NewJob("note")])
    producer.close()

    assert [row[0] for row in everything(conn)] == [job_id]
    assert job_id <= lost[-1]


def test_roles_allowed_before_the_migration_keep_working(empty_pg_url: str) -> None:
    where = parse_url(empty_pg_url, application="pgcron test")
    migrate(where, to=4)
    with psycopg.connect(empty_pg_url, autocommit=True) as conn:
        role = sql.Identifier(f"{conn.info.dbname} old producer")
        conn.execute(sql.SQL("create role {} login password 'secret'").format(role))
        try:
            conn.execute("select pgcron.allow(%s, 'producer')", [f"{conn.info.dbname} old producer"])
            migrate(where)
            url = conninfo.make_conninfo(empty_pg_url, user=f"{conn.info.dbname} old producer", password="secret")
            producer = PostgresStore(parse_url(url, application="pgcron role"), rings=False)

            ids = [job_id for count in SIZES for job_id in producer.enqueue([NewJob("note")] * count)]
            with psycopg.connect(url) as callers:
                ids += enqueue_on(callers, [NewJob("note")], schema="pgcron", rings=False)
            producer.close()

            assert len(ids) == sum(SIZES) + 1
        finally:
            conn.execute(sql.SQL("drop owned by {}; drop role {}").format(role, role))
