"""Enqueueing: special characters in a COPY, lost replies, and the rate limit of the doorbell."""

import contextlib
import json
import select
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from faults.tripwire import Tripwire
from psycopg import conninfo, sql
from support import eventually

from pgcron_lite import PgCron
from pgcron_lite.errors import DatabaseRefused
from pgcron_lite.job import Job, NewJob, Outcome, WorkerCard
from pgcron_lite.pg import enqueue as enqueue_module
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.enqueue import COPIES_FROM, RING_WINDOW
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.worker.loop import RECHECK_SECONDS, Worker

PATIENCE = 30.0
FOR_EVER = 3600.0

ODD = [
    "\\", "\\\\", "\\N", "\\.", "\\n", "\\t", "\\x41", "\\", "N", "\\\\N", ".", "a\\", "\\b\\f\\v\\0",
    "\t", "\n", "\r", "\r\n", "\n\\.\n", "\\\n", "\\\t\\", "a\tb\nc\rd", " ", "  a  ", "\x0b\x0c\x1b\x7f\x85",
    "'", '"', '""', "'\"`", "{", "}", "{}", "{{}}", "{NULL}", "{a,b}", "[1]", ",", ",,", ";", "--", "/*", "%", "%s",
    "%(id)s", "$1", ":x", "NULL", "null", "Null", '"NULL"', "true", "0", "-0", "1e22",
    "\N{GRINNING FACE}", "\u2028\u2029",
    "\ufeff", "\u200b\u202e", "e\u0301", "\u00e4\u00df", "\U0010ffff", "\x01\x02\x1f", "x" * 190,
]  # fmt: skip


@pytest.fixture
def store(pg_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"), rings=False)
    yield store
    store.close()


def enough(jobs: list[NewJob]) -> list[NewJob]:
    """Return `jobs` repeated until there are enough for a COPY."""
    return jobs + [NewJob("filler")] * max(0, COPIES_FROM - len(jobs))


def read(store: PostgresStore, ids: list[int]) -> list[Job]:
    found = [store.get(job_id) for job_id in ids]
    return [job for job in found if job is not None]


def content(job: Job) -> tuple[Any, ...]:
    """Return all values that the producer has set."""
    return (
        job.task, job.args, job.queue, job.priority, job.headers, job.tags, job.max_attempts, job.max_crashes,
        job.state, job.attempt, job.crashes, job.alone, job.errors,
    )  # fmt: skip


def both_ways(store: PostgresStore, jobs: list[NewJob]) -> tuple[list[Job], list[Job]]:
    """Return `jobs` as they are read back, enqueued by one COPY and enqueued one by one."""
    ids = store.enqueue(enough(jobs))
    together = read(store, ids[: len(jobs)])
    singly = read(store, [store.enqueue([job])[0] for job in jobs])
    assert len(together) == len(singly) == len(jobs)
    return together, singly


# COPY


@pytest.mark.parametrize("number", [1, 2, COPIES_FROM - 1, COPIES_FROM, COPIES_FROM + 1, 1000, 1001, 2500])
def test_any_number_of_jobs_is_enqueued_in_their_order(store: PostgresStore, number: int) -> None:
    ids = store.enqueue([NewJob("add", f"[{n}]", priority=n % 7) for n in range(number)])

    with psycopg.connect(store.address.conninfo) as conn:
        rows = conn.execute("select id, args::text, priority from pgcron.jobs order by id").fetchall()
    assert ids == sorted(set(ids))
    assert rows == [(job_id, f"[{n}]", n % 7) for n, job_id in enumerate(ids)]


def test_special_characters_in_names_of_tasks_and_queues_are_kept(store: PostgresStore) -> None:
    jobs = [NewJob(text, queue=text[:100]) for text in ODD]

    together, singly = both_ways(store, jobs)

    assert [(job.task, job.queue) for job in together] == [(text, text[:100]) for text in ODD]
    assert list(map(content, together)) == list(map(content, singly))


def test_special_characters_in_arguments_are_kept(store: PostgresStore) -> None:
    # Both escaped and as plain JSON text: a COPY may have to escape characters that JSON does not.
    texts = [*map(escaped, ODD), *map(bare, ODD)]
    jobs = [NewJob("add", text) for text in texts]

    together, singly = both_ways(store, jobs)

    assert [job.args for job in together] == texts
    assert list(map(content, together)) == list(map(content, singly))


def escaped(text: str) -> str:
    return json.dumps({"text": text, text: [text, ""]}, ensure_ascii=True)


def bare(text: str) -> str:
    return json.dumps([text, {text: "", "": text}], ensure_ascii=False)


def test_the_white_space_of_json_is_kept(store: PostgresStore) -> None:
    texts = ["{\n\t\"a\":\r\n 1 }", "[ ]", " {}", "[\n]", "\t[\"\\\\\"]\n", "[1e22, -0.0, 1.10]", '{"a":1,"a":2}']
    jobs = [NewJob("add", text) for text in texts]

    together, singly = both_ways(store, jobs)

    assert [job.args for job in together] == texts
    assert list(map(content, together)) == list(map(content, singly))


def test_special_characters_in_tags_and_headers_are_kept(store: PostgresStore) -> None:
    jobs = [NewJob("add", tags=(text,), headers={text: text}) for text in ["", *ODD]]
    jobs += [
        NewJob("add", tags=("", *ODD, "")),
        NewJob("add", headers={text: "" for text in ["", *ODD]}),
        NewJob("add", tags=("", "")),
        NewJob("add", tags=("same", "same")),
        NewJob("add"),
    ]

    together, singly = both_ways(store, jobs)

    assert [job.tags for job in together] == [new.tags for new in jobs]
    assert [job.headers for job in together] == [new.headers for new in jobs]
    assert list(map(content, together)) == list(map(content, singly))


def latin(pg_url: str) -> PostgresStore:
    """Return a store whose connections use another encoding than UTF-8, as in an old database."""
    return PostgresStore(
        parse_url(conninfo.make_conninfo(pg_url, client_encoding="latin1"), application="pgcron test"), rings=False
    )


UMLAUTS = NewJob("\u00e4", '{"\u00df": "\u00e9"}', "\u00fc", headers={"\u00f1": "\u00b5"}, tags=("\u00e5",))


@pytest.mark.parametrize("is_copied", [False, True])
def test_texts_are_sent_in_the_encoding_of_the_connection(store: PostgresStore, pg_url: str, is_copied: bool) -> None:
    producer = latin(pg_url)
    ids = producer.enqueue(enough([UMLAUTS]) if is_copied else [UMLAUTS])
    producer.close()

    job, *_ = read(store, ids)

    new = UMLAUTS
    assert (job.task, job.args, job.queue, job.headers, job.tags) == (
        new.task, new.args, new.queue, new.headers, new.tags
    )  # fmt: skip


def test_texts_are_read_in_the_encoding_of_the_connection(store: PostgresStore, pg_url: str) -> None:
    (job_id,) = store.enqueue([UMLAUTS])
    worker, claim = uuid.uuid4(), uuid.uuid4()
    reader = latin(pg_url)

    (claimed,) = reader.claim(worker, claim, ["*"], [UMLAUTS.task], 5)
    reader.settle([Outcome(job_id, claim, "failed", error={"attempt": 1, "error": "\u00f6"})])
    found = reader.get(job_id)
    reader.close()

    assert (claimed.task, claimed.args, claimed.headers) == (UMLAUTS.task, UMLAUTS.args, UMLAUTS.headers)
    assert found is not None
    assert [error["error"] for error in found.errors] == ["\u00f6"]
    assert found == store.get(job_id)


def test_a_job_with_special_characters_everywhere_does_not_change_the_others(store: PostgresStore) -> None:
    jobs = [
        NewJob(text, bare(text), text[:100], n, None, n + 1, n + 2, {text: text}, (text, ""))
        for n, text in enumerate(ODD)
    ]
    jobs = [each for pair in zip(jobs, [NewJob("plain")] * len(jobs), strict=True) for each in pair] * 3

    together, singly = both_ways(store, jobs)

    assert list(map(content, together)) == list(map(content, singly))


def test_due_times_are_the_same_in_a_copy(store: PostgresStore) -> None:
    away = [timedelta(0), timedelta(microseconds=1), timedelta(days=400, seconds=1.000001), timedelta(hours=-3)]
    moments = [
        datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC),
        datetime(2000, 1, 1, tzinfo=UTC),
        datetime(8999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime.fromisoformat("2031-07-01T12:00:00+05:45"),
        datetime.fromisoformat("2031-07-01T12:00:00-11:30"),
    ]

    spans, singly_spans = both_ways(store, [NewJob("add", execute_after=due) for due in [*away, None]])
    fixed, singly_fixed = both_ways(store, [NewJob("add", execute_after=due) for due in moments])

    assert [job.execute_after for job in fixed] == [job.execute_after for job in singly_fixed] == moments
    assert [job.execute_after - job.created_at for job in singly_spans] == [*away, timedelta(0)]
    # A COPY counts delays from the statement before it, because no producer may write the creation time of a job.
    [made_at] = {job.created_at for job in spans}
    [counted_from] = {job.execute_after - due for job, due in zip(spans, [*away, timedelta(0)], strict=True)}
    assert timedelta(0) <= made_at - counted_from < timedelta(minutes=1)


@pytest.mark.parametrize(
    "wrong",
    [
        NewJob("a\0b"),
        NewJob("add", '{"x": '),
        NewJob("add", '"text"'),
        NewJob("add", ""),
        NewJob("add", "{}\n{}"),
        NewJob(""),
        NewJob("add", queue=""),
        NewJob("add", priority=40_000),
        NewJob("add", max_attempts=0),
        NewJob("add", execute_after=datetime(1999, 1, 1, tzinfo=UTC)),
    ],
    ids=["nul", "half", "a text", "nothing", "two", "no task", "no queue", "priority", "attempts", "long ago"],
)
def test_one_invalid_job_refuses_the_whole_bulk(store: PostgresStore, wrong: NewJob) -> None:
    with pytest.raises(DatabaseRefused):
        store.enqueue([*[NewJob("add")] * COPIES_FROM, wrong])

    assert store.find() == []
    assert len(store.enqueue([NewJob("add")] * COPIES_FROM)) == COPIES_FROM


def test_arguments_from_python_survive_a_bulk(pg_url: str) -> None:
    app = PgCron("bulk", url=pg_url, notify=False)
    task = app.task(note, name="note")

    handles = task.map([(text,) for text in ODD * 5])

    got = [task.arguments.loads(handle.job().args) for handle in handles]
    app.close()
    assert len(handles) >= COPIES_FROM
    assert got == [((), {"text": text}) for text in ODD * 5]


def note(text: str) -> None:
    """Do nothing, as a task."""


# Replies that are lost


@pytest.fixture
def cut(pg_url: str) -> Iterator[Callable[[str], tuple[Tripwire, PostgresStore]]]:
    """Return a function for a store whose connection is cut once, when the server has committed a given statement."""
    with contextlib.ExitStack() as stack:

        def make(words: str, moment: Any = "after the commit", trip: Callable[[], None] = lambda: None) -> Any:
            wire = stack.enter_context(Tripwire(pg_url, words, moment, trip))
            store = PostgresStore(parse_url(wire.url, application="pgcron cut"), rings=False)
            stack.callback(store.close)
            return wire, store

        yield make


@pytest.mark.row(123)
@pytest.mark.parametrize("number", [COPIES_FROM, 2500])
def test_a_bulk_whose_reply_is_lost_stores_each_job_once(store: PostgresStore, cut: Any, number: int) -> None:
    committed: list[int] = []
    # The statement that commits the COPY.
    wire, producer = cut("COMMIT\0", trip=lambda: committed.append(count(store)))

    ids = producer.enqueue([NewJob("add", f"[{n}]") for n in range(number)])

    assert wire.has_tripped.is_set()
    assert committed == [number], "the first try had not been committed: the test has tested nothing"
    with psycopg.connect(store.address.conninfo) as conn:
        rows = conn.execute("select id, args::text from pgcron.jobs order by id").fetchall()
    assert rows == [(job_id, f"[{n}]") for n, job_id in enumerate(ids)]


@pytest.mark.row(123)
def test_a_bulk_that_did_not_reach_the_server_is_sent_again(store: PostgresStore, cut: Any) -> None:
    before: list[int] = []
    wire, producer = cut("copy pgcron.jobs", "before the statement", lambda: before.append(count(store)))
    jobs = [NewJob(text, tags=(text, ""), headers={"h": text}) for text in ODD]

    ids = producer.enqueue(enough(jobs))

    assert wire.has_tripped.is_set()
    assert before == [0]
    assert count(store) == len(ids)
    # The second try is another statement with the same result.
    assert [content(j) for j in read(store, ids[: len(jobs)])] == [
        content(j) for j in read(store, [store.enqueue([job])[0] for job in jobs])
    ]


@pytest.mark.row(123)
def test_a_bulk_whose_reply_is_lost_stores_no_ended_job_again(store: PostgresStore, cut: Any) -> None:
    ended: list[int] = []

    def run_some() -> None:
        jobs = store.claim(uuid.UUID(int=1), token := uuid.uuid4(), ["*"], ["add"], 70)
        ended.extend(store.settle([Outcome(job.id, token, "done") for job in jobs]))

    wire, producer = cut("COMMIT\0", trip=run_some)

    ids = producer.enqueue([NewJob("add")] * 300)

    assert wire.has_tripped.is_set()
    assert len(ended) == 70
    with psycopg.connect(store.address.conninfo) as conn:
        rows = conn.execute("select id, state from pgcron.all_jobs order by id").fetchall()
    assert rows == [(job_id, "done" if job_id in ended else "queued") for job_id in ids]


def count(store: PostgresStore) -> int:
    with psycopg.connect(store.address.conninfo) as conn:
        row = conn.execute("select count(*) from pgcron.all_jobs").fetchone()
    assert row is not None
    return int(row[0])


# The doorbell


@pytest.fixture
def ringing(pg_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    yield store
    store.close()


# The first is the error of a full notification queue. The second is one after which no statement is retried.
REFUSALS = ["program_limit_exceeded", "insufficient_privilege"]


@pytest.mark.row(106)
@pytest.mark.parametrize("size", [1, 5, COPIES_FROM])
@pytest.mark.parametrize("when", ["at once", "at the commit"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_ring_that_fails_does_not_affect_enqueued_jobs(
    ringing: PostgresStore, pg_url: str, size: int, when: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue_module, "RING_PAUSE", FOR_EVER)
    with psycopg.connect(pg_url, autocommit=True) as conn:
        break_the_bell(conn, when, refusal)

    ids = ringing.enqueue([NewJob("add")] * size)

    assert len(read(ringing, ids)) == size
    # It is not tried again for a while, and the connection is kept.
    assert ringing._ring_again_at > time.monotonic()
    more = [job_id for _ in range(5) for job_id in ringing.enqueue([NewJob("add")])]
    assert len(read(ringing, more)) == 5
    assert ringing.generation == 1


@pytest.mark.row(106)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_ring_never_raises(ringing: PostgresStore, pg_url: str, refusal: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        break_the_bell(conn, "at once", refusal)

    ringing.ring()

    ringing._ring_again_at = 0.0
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("drop function pgcron.ring()")
    ringing.ring()


def break_the_bell(conn: psycopg.Connection[Any], when: str, refusal: str) -> None:
    """Make every ring fail, with the statement or with its commit, as a full notification queue does."""
    conn.execute(
        """
        create table public.rings (n int);
        create table public.refusals (code text);
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            raise exception using errcode = (select r.code from public.refusals as r), message = 'no';
        end $$;
        """
    )
    conn.execute("insert into public.refusals values (%s)", [refusal])
    if when == "at the commit":
        conn.execute(
            """
            create constraint trigger refuse after insert on public.rings
                deferrable initially deferred for each row execute function public.refuse()
            """
        )
    else:
        conn.execute("create trigger refuse after insert on public.rings execute function public.refuse()")
    conn.execute(
        """
        create or replace function pgcron.ring() returns void language sql set search_path = pg_catalog, pg_temp
            as 'insert into public.rings values (1)'
        """
    )


@pytest.mark.row(106)
def test_a_ring_sets_its_own_limits_and_does_not_change_others(
    ringing: PostgresStore, pg_url: str
) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            """
            create table public.rings (lock text, commit text);
            create or replace function pgcron.ring() returns void language sql set search_path = pg_catalog, pg_temp
                as $$ insert into public.rings
                      values (current_setting('lock_timeout'), current_setting('synchronous_commit')) $$;
            """
        )

        ringing.enqueue([NewJob("add")])
        ringing._ring_again_at = 0.0
        ringing.enqueue([NewJob("add")] * COPIES_FROM)
        ringing._ring_again_at = 0.0
        ringing.ring()

        # A ring waits neither for its lock nor for the disk.
        assert conn.execute("select lock, commit from public.rings").fetchall() == [("250ms", "off")] * 3
    with ringing.pool.take() as connection:
        rows = connection.rows(
            "select current_setting('lock_timeout') as lock, current_setting('synchronous_commit') as commit"
        )
    assert [tuple(row) for row in rows] == [("2s", "on")]


@pytest.mark.row(106)
def test_a_ring_does_not_wait_for_the_lock_of_notifications(ringing: PostgresStore, pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            """
            create table public.rings (n int);
            create or replace function pgcron.ring() returns void language sql set search_path = pg_catalog, pg_temp
                as 'lock table public.rings in exclusive mode; insert into public.rings values (1)'
            """
        )
    with psycopg.connect(pg_url) as holder:
        holder.execute("lock table public.rings in exclusive mode")

        # It returns although the lock is still held. Without its own timeout it would wait for half a minute.
        (job_id,) = ringing.enqueue([NewJob("add")])
        assert ringing.enqueue([NewJob("add")])

        job = ringing.get(job_id)
        assert job is not None
        holder.rollback()
    with psycopg.connect(pg_url) as conn:
        assert conn.execute("select count(*) from public.rings").fetchall() == [(0,)]


def test_a_worker_polls_again_later_than_a_producer_pauses_its_rings() -> None:
    assert RING_WINDOW < RECHECK_SECONDS <= 0.05


class Hands:
    """A worker on PostgreSQL that is stepped by the test, with a live listener."""

    def __init__(self, url: str, application: str = "pgcron worker") -> None:
        self.app = PgCron("hands", url=url, poll="1h", lease="1h")
        self.gate = threading.Event()
        self.entered: list[int] = []
        self.app.task(self._wait, name="wait")
        self.app.task(note, name="add", max_attempts=1)
        self.store = PostgresStore(parse_url(url, application=application), rings=False)
        card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 2, "threads", "0")
        self.store.register(card)
        self.bell = self.store.open_bell(lambda: None)
        self.worker = Worker(self.app, self.store, card, bell=self.bell)
        self.worker._maintenance.prune_at = self.worker._maintenance.check_at = float("inf")

    def _wait(self) -> None:
        self.entered.append(1)
        self.gate.wait(PATIENCE)

    def turn(self) -> float:
        # Keep the periodic poll away: it would find jobs that have not rung.
        self.worker._reap_at = float("inf")
        return self.worker.step()

    def turn_until(self, fact: Callable[[], object]) -> None:
        """Step until `fact` is true. Sleep as a process does: as long as the step returned, unless the bell rings."""

        def turned() -> object:
            wait = self.turn()
            if found := fact():
                return found
            poller = select.poll()
            if (descriptor := self.bell.fileno()) is not None:
                poller.register(descriptor, select.POLLIN)
            # A finished job would end this sleep as well.
            poller.poll(min(wait, 0.02 if self.worker.running else 1.0) * 1000)
            return None

        eventually(turned, PATIENCE)

    def settle_down(self) -> None:
        """Step until the listener is live, and nothing is left to receive or to poll for."""
        self.turn_until(lambda: self.bell.is_live)
        self.turn_until(lambda: self.worker._claim_at == float("inf") and self.worker.is_idle())

    def state(self, job_id: int) -> str:
        job = self.store.get(job_id)
        assert job is not None
        return job.state

    def close(self) -> None:
        self.gate.set()
        self.worker.slots.close()
        self.bell.close()
        self.store.close()
        self.app.close()


@pytest.fixture
def hands(pg_url: str) -> Iterator[Hands]:
    hands = Hands(pg_url)
    yield hands
    hands.close()


@pytest.mark.row(110)
def test_a_job_within_the_ring_window_is_found_by_a_second_poll(
    hands: Hands, ringing: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue_module, "RING_WINDOW", FOR_EVER)
    hands.settle_down()
    (first,) = ringing.enqueue([NewJob("add", '{"text": ""}')])
    hands.turn_until(lambda: hands.worker.running)

    # It will never ring: the window does not end.
    (trailing,) = ringing.enqueue([NewJob("add", '{"text": ""}')])

    assert hands.worker._claim_at <= time.monotonic() + RECHECK_SECONDS
    hands.turn_until(lambda: hands.state(trailing) == "done")
    hands.turn_until(lambda: hands.state(first) == "done")


@pytest.mark.row(110)
def test_a_job_whose_commit_outlasts_the_window_rings(
    hands: Hands, ringing: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands.settle_down()
    (first,) = ringing.enqueue([NewJob("add", '{"text": ""}')])
    hands.turn_until(lambda: hands.state(first) == "done")
    hands.settle_down()
    run = Connection.run

    def slowly(connection: Connection, *args: Any) -> int:
        count = run(connection, *args)
        # As a commit that waits for its disk: by now, woken workers have polled again.
        if "insert" in args[0]:
            ringing._ring_again_at = time.monotonic()
        return count

    monkeypatch.setattr(ringing, "_ring_again_at", time.monotonic() + FOR_EVER)
    monkeypatch.setattr(Connection, "run", slowly)

    (late,) = ringing.enqueue([NewJob("add", '{"text": ""}')])

    # Nothing else wakes it: the worker polls once in an hour.
    hands.turn_until(lambda: hands.state(late) == "done")


def test_an_invalid_date_is_refused_for_any_number_of_jobs(store: PostgresStore) -> None:
    never = NewJob("add", execute_after=timedelta(days=3_000_000))

    for jobs in ([never], enough([never])):
        with pytest.raises(DatabaseRefused):
            store.enqueue(jobs)


@pytest.mark.row(110)
def test_a_bulk_within_the_ring_window_is_found_by_a_second_poll(
    hands: Hands, ringing: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue_module, "RING_WINDOW", FOR_EVER)
    hands.settle_down()
    ringing.ring()
    hands.turn_until(lambda: hands.worker._claim_at != float("inf"))

    ids = ringing.enqueue([NewJob("add", '{"text": ""}')] * COPIES_FROM)

    hands.turn_until(lambda: {hands.state(job_id) for job_id in ids} == {"done"})


@pytest.mark.row(108)
def test_notifications_are_read_while_every_slot_is_busy(hands: Hands, pg_url: str) -> None:
    hands.settle_down()
    ids = hands.store.enqueue([NewJob("wait")] * 2)
    hands.worker.claim_soon()
    hands.turn_until(lambda: len(hands.entered) == 2)

    with psycopg.connect(pg_url, autocommit=True) as conn:
        # More than fits into the buffers of the connection.
        conn.execute("select pg_notify('pgcron', n || repeat('x', 7000)) from generate_series(1, 1500) as n")
        assert usage(conn) > 0
        eventually(lambda: waits_for_its_reader(conn), PATIENCE)

        # A step reads what has arrived, and does not wait.
        eventually(lambda: [hands.turn() for _ in range(50)] and usage(conn) == 0, PATIENCE)

        assert not waits_for_its_reader(conn)
    assert [hands.state(job_id) for job_id in ids] == ["running"] * 2
    assert hands.bell.is_live


def usage(conn: psycopg.Connection[Any]) -> float:
    """Return the usage of the server's notification queue: the part that the slowest listener has not read."""
    (row,) = conn.execute("select pg_notification_queue_usage()").fetchall()
    return float(row[0])


def waits_for_its_reader(conn: psycopg.Connection[Any]) -> bool:
    found = conn.execute(
        "select from pg_stat_activity where wait_event = 'ClientWrite' and datname = current_database()"
    )
    return bool(found.rowcount)


# Ids


def test_two_producers_never_use_the_same_id(pg_url: str) -> None:
    stores = [PostgresStore(parse_url(pg_url, application=f"producer {n}"), rings=False) for n in range(3)]

    ids = [
        job_id
        for _ in range(20)
        for size, store in zip((1, 7, COPIES_FROM), stores, strict=True)
        for job_id in store.enqueue([NewJob("add")] * size)
    ]

    assert len(set(ids)) == len(ids) == 20 * (8 + COPIES_FROM)
    for store in stores:
        store.close()


def test_a_bulk_works_in_a_schema_of_another_name(empty_pg_url: str) -> None:
    from pgcron_lite.pg.migrate import migrate

    where = parse_url(empty_pg_url, application="pgcron test")
    migrate(where, "elsewhere")
    store = PostgresStore(where, "elsewhere", rings=False)

    ids = store.enqueue([NewJob("pgcron", '["pgcron.jobs"]')] * COPIES_FROM)

    with psycopg.connect(empty_pg_url) as conn:
        query = sql.SQL("select count(*), min(task), min(args::text) from {}.jobs").format(sql.Identifier("elsewhere"))
        assert conn.execute(query).fetchall() == [(len(ids), "pgcron", '["pgcron.jobs"]')]
    store.close()
