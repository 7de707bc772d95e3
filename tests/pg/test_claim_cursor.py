"""Cursor of the claims: when a claim may continue from it, and that no job is claimed twice or missed because of it."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import tuple_row
from support import eventually
from test_plans import ExplainingStore, indexes, pages, shown

from pgcron_lite import PgCron
from pgcron_lite.job import Job, NewJob, Outcome, WorkerCard, hand_back
from pgcron_lite.memory import MemoryStore
from pgcron_lite.pg import claim_cursor as claim_cursor_module
from pgcron_lite.pg.claim_cursor import BUSY_SHARE, IDLE_SHARE, MAX_SECONDS, ROW_SECONDS, SERIES, ClaimCursor
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.pool import Pool
from pgcron_lite.pg.prepared import Answer, Values
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.worker.loop import Worker

ME = uuid.UUID(int=1)
EXPENSIVE = 0.02


class Moment:
    """A clock for the module `claim_cursor` only."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Moment:
    moment = Moment()
    monkeypatch.setattr(claim_cursor_module, "monotonic", moment.monotonic)
    monkeypatch.setattr(claim_cursor_module, "EXPENSIVE_SECONDS", EXPENSIVE)
    return moment


def some_jobs(count: int, **options: Any) -> list[Job]:
    store = MemoryStore()
    store.enqueue([NewJob("add", **options)] * count)
    return store.claim(ME, uuid.uuid4(), ["*"], ["add"], count)


def scanned(seconds: float, count: int = 1, generation: int = 1) -> ClaimCursor:
    """Return a cursor after a full scan that took the server `seconds`, without the time for its rows."""
    claim_cursor = ClaimCursor()
    claim_cursor.restart(some_jobs(count), seconds + count * ROW_SECONDS, generation)
    return claim_cursor


# The cursor itself


def test_the_first_claim_is_a_full_scan(moment: Moment) -> None:
    claim_cursor = ClaimCursor()

    assert not claim_cursor.may_continue(1000, 1)
    assert not claim_cursor.may_continue(1000, -1)
    assert claim_cursor.pause == 0.0


def test_a_first_full_scan_that_claims_nothing_sets_no_cursor(moment: Moment) -> None:
    claim_cursor = ClaimCursor()
    claim_cursor.restart([], 5.0, 1)

    assert not claim_cursor.may_continue(1000, 1)


def test_after_a_cheap_full_scan_only_a_series_of_large_claims_continues_from_the_cursor(moment: Moment) -> None:
    claim_cursor = scanned(EXPENSIVE / 2)

    assert claim_cursor.may_continue(SERIES, 1)
    assert not claim_cursor.may_continue(SERIES - 1, 1)
    assert claim_cursor.pause == 0.0


def test_after_an_expensive_full_scan_any_claim_continues_from_the_cursor(moment: Moment) -> None:
    claim_cursor = scanned(EXPENSIVE * 2)

    assert claim_cursor.may_continue(1, 1)
    assert claim_cursor.pause > 0.0


def test_the_time_for_many_rows_does_not_make_a_full_scan_expensive(moment: Moment) -> None:
    claim_cursor = ClaimCursor()
    claim_cursor.restart(some_jobs(500), 500 * ROW_SECONDS + EXPENSIVE / 2, 1)

    assert not claim_cursor.is_expensive


def test_a_cursor_is_not_used_on_another_connection(moment: Moment) -> None:
    claim_cursor = scanned(EXPENSIVE * 2, generation=1)

    assert claim_cursor.may_continue(1000, 1)
    assert not claim_cursor.may_continue(1000, 2)


@pytest.mark.parametrize("cost", [0.001, EXPENSIVE * 2, 0.5, 60.0])
def test_a_more_expensive_full_scan_delays_the_next_one_up_to_a_second(moment: Moment, cost: float) -> None:
    claim_cursor = scanned(cost)
    window = min(cost * BUSY_SHARE, MAX_SECONDS)

    moment.now += window * 0.99
    assert claim_cursor.may_continue(1000, 1)
    moment.now += window * 0.02
    assert not claim_cursor.may_continue(1000, 1)

    assert window <= 1.0


@pytest.mark.parametrize("cost", [EXPENSIVE * 2, 0.1, 60.0])
def test_an_idle_worker_repeats_a_full_scan_sooner(moment: Moment, cost: float) -> None:
    claim_cursor = scanned(cost)

    assert claim_cursor.pause == pytest.approx(min(cost * IDLE_SHARE, MAX_SECONDS))
    moment.now += MAX_SECONDS
    assert claim_cursor.pause == 0.0


def test_a_cheap_full_scan_ends_the_delays_of_an_expensive_one(moment: Moment) -> None:
    claim_cursor = scanned(1.0)

    claim_cursor.restart([], 0.001, 1)

    assert not claim_cursor.is_expensive
    assert claim_cursor.pause == 0.0


def test_the_cursor_is_the_last_job_of_each_level(moment: Moment) -> None:
    claim_cursor = ClaimCursor()
    low, high, mail = some_jobs(3), some_jobs(2, priority=9), some_jobs(1, queue="mail")

    claim_cursor.advance([*high, *low, *mail])

    assert claim_cursor.last == {
        ("default", 9): (high[-1].execute_after, high[-1].id),
        ("default", 0): (low[-1].execute_after, low[-1].id),
        ("mail", 0): (mail[-1].execute_after, mail[-1].id),
    }


def test_a_full_scan_that_claims_jobs_discards_the_cursor_of_other_levels(moment: Moment) -> None:
    claim_cursor = ClaimCursor()
    claim_cursor.advance(some_jobs(1, queue="mail"))

    claim_cursor.restart(some_jobs(1), 0.001, 1)

    assert list(claim_cursor.last) == [("default", 0)]


def test_a_full_scan_that_claims_nothing_keeps_the_cursor(moment: Moment) -> None:
    claim_cursor = scanned(1.0)
    before = dict(claim_cursor.last)

    claim_cursor.restart([], 1.0, 1)

    assert claim_cursor.last == before
    assert before


# On PostgreSQL, where every full scan is expensive until the test ends that


class Watched(PostgresStore):
    """A store that records where its claims start."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.starts: list[str] = []

    def _claim(self, *args: Any) -> Any:
        self.starts.append("cursor" if args[-1] else "full scan")
        return super()._claim(*args)


@pytest.fixture
def full_scans_are_expensive(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make claims continue from the cursor once there is one. Return a function that ends that, as time does."""
    monkeypatch.setattr(claim_cursor_module, "EXPENSIVE_SECONDS", -1.0)
    monkeypatch.setattr(claim_cursor_module, "ROW_SECONDS", 0.0)
    for name, value in {"BUSY_SHARE": 1e9, "IDLE_SHARE": 1e9, "MAX_SECONDS": 3600.0}.items():
        monkeypatch.setattr(claim_cursor_module, name, value)
    return lambda: monkeypatch.setattr(claim_cursor_module, "MAX_SECONDS", 0.0)


@pytest.fixture
def make_store(pg_url: str) -> Iterator[Callable[[], Watched]]:
    made: list[Watched] = []

    def make() -> Watched:
        made.append(Watched(parse_url(pg_url, application="pgcron cursor"), rings=False))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: Callable[[], Watched], full_scans_are_expensive: Callable[[], None]) -> Watched:
    return make_store()


@pytest.fixture
def other(make_store: Callable[[], Watched]) -> Watched:
    """Return a second store for everything but claims."""
    return make_store()


def enqueue(store: PostgresStore, count: int = 1, **options: Any) -> list[int]:
    return store.enqueue([NewJob("add", **options)] * count)


def claim(store: PostgresStore, limit: int = 100, queues: Sequence[str] = ("*",)) -> list[int]:
    return [job.id for job in claimed(store, limit, queues)]


def claimed(store: PostgresStore, limit: int = 100, queues: Sequence[str] = ("*",)) -> list[Job]:
    return store.claim(ME, uuid.uuid4(), queues, ["add"], limit)


def test_claims_from_the_cursor_take_each_job_once_and_in_order(store: Watched) -> None:
    urgent = enqueue(store, 30, priority=5)
    ids = [*enqueue(store, 400), *enqueue(store, 100)]

    taken = []
    while batch := claim(store, 37):
        taken += batch

    assert taken == urgent + ids
    # The first is a full scan, all others start where the previous one ended.
    assert store.starts[:2] == ["full scan", "cursor"]
    assert store.starts.count("full scan") <= 3


def test_jobs_due_at_the_same_time_are_ordered_by_id(store: Watched) -> None:
    moment = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    ids = enqueue(store, 50, execute_after=moment)

    taken = [job_id for _ in range(10) for job_id in claim(store, 5)]

    assert taken == ids
    assert store.starts == ["full scan"] + ["cursor"] * 9


def test_claimers_with_separate_cursors_share_the_jobs(
    full_scans_are_expensive: Callable[[], None], make_store: Callable[[], Watched]
) -> None:
    stores = [make_store() for _ in range(3)]
    ids = enqueue(stores[0], 900)
    taken: list[list[int]] = [[] for _ in stores]

    def work(store: Watched, into: list[int]) -> None:
        while batch := claim(store, 11):
            into += batch

    threads = [threading.Thread(target=work, args=pair) for pair in zip(stores, taken, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(job_id for each in taken for job_id in each) == ids
    assert all(each == sorted(each) for each in taken)
    assert any("cursor" in store.starts for store in stores)


def test_a_job_handed_back_is_claimed_again_under_a_new_claim(
    store: Watched, full_scans_are_expensive: Callable[[], None]
) -> None:
    ids = enqueue(store, 20)
    first = claimed(store, 10)
    store.settle([hand_back(job) for job in first])

    # They are before the cursor.
    assert claim(store, 20) == ids[10:]
    assert claim(store, 20) == []
    full_scans_are_expensive()
    again = claimed(store, 20)

    assert [job.id for job in again] == ids[:10]
    assert {job.attempt for job in again} == {1}
    assert {job.claim for job in again}.isdisjoint({job.claim for job in first})


def test_a_job_that_commits_late_is_found_by_a_full_scan(
    store: Watched, other: Watched, full_scans_are_expensive: Callable[[], None]
) -> None:
    with psycopg.connect(other.address.conninfo) as conn:
        row = conn.execute("select pgcron.enqueue('add', ring => false)").fetchone()
        assert row is not None
        ids = enqueue(other, 3)
        assert claim(store) == ids
        conn.commit()

    # It was due before the position of the cursor.
    assert claim(store) == []
    assert store.starts == ["full scan", "cursor"]
    full_scans_are_expensive()
    assert claim(store) == [row[0]]


@pytest.mark.parametrize(
    "options",
    [
        {"execute_after": datetime(2026, 1, 1, tzinfo=UTC)},
        {"priority": 7},
        {"priority": -7},
        {"queue": "mail"},
    ],
    ids=["due long ago", "more urgent", "less urgent", "another queue"],
)
def test_a_job_before_the_cursor_is_found_by_a_full_scan(
    store: Watched, full_scans_are_expensive: Callable[[], None], options: Any
) -> None:
    enqueue(store, 5)
    claim(store)
    late = enqueue(store, **options)
    behind = enqueue(store)

    assert claim(store) == behind
    assert claim(store) == []
    full_scans_are_expensive()

    assert claim(store) == late


def test_a_job_made_due_by_hand_is_found(
    store: Watched, other: Watched, full_scans_are_expensive: Callable[[], None]
) -> None:
    ids = enqueue(store, 3)
    deferred = enqueue(store, execute_after=timedelta(hours=1))
    assert claim(store) == ids
    with psycopg.connect(other.address.conninfo, autocommit=True) as conn:
        conn.execute("update pgcron.jobs set execute_after = created_at - interval '1 min' where state = 'queued'")

    assert claim(store) == []
    full_scans_are_expensive()
    assert claim(store) == deferred


def test_next_due_returns_when_the_owed_full_scan_may_run(
    store: Watched, full_scans_are_expensive: Callable[[], None]
) -> None:
    enqueue(store, 3)
    enqueue(store, execute_after=timedelta(days=3))
    claim(store)
    assert claim(store) == []

    # Not in three days: there may be a job before the cursor.
    due = store.next_due(["*"], ["add"])
    assert due is not None
    assert 0 < due <= 3600
    full_scans_are_expensive()
    assert store.next_due(["*"], ["add"]) == 0
    assert claim(store) == []
    assert store.starts == ["full scan", "cursor", "full scan"]
    assert_due_in_days(store)


def test_an_expensive_full_scan_that_found_everything_is_not_repeated(
    store: Watched,
) -> None:
    enqueue(store, execute_after=timedelta(days=3))

    # No full scan is owed: new jobs ring the doorbell, or are found by the poll.
    assert claim(store) == []
    assert_due_in_days(store)
    ids = enqueue(store, 3)
    assert claim(store) == ids
    assert store.starts == ["full scan", "full scan"]
    assert_due_in_days(store)


@pytest.mark.usefixtures("full_scans_are_expensive")
def test_a_claim_from_the_cursor_does_not_count_a_queue_as_drained(store: Watched, pg_url: str) -> None:
    app = PgCron("cursor", url=pg_url)
    app.task(lambda: None, name="add")
    card = WorkerCard(ME, "host", 1, ("*",), 2, "threads", "0")
    store.register(card)
    worker = Worker(app, store, card)
    enqueue(store, 3)
    eventually(lambda: worker.drained() or worker.step() < 0)
    # On a level that the cursor does not contain.
    (urgent,) = enqueue(store, priority=7)

    is_drained = worker.drained()
    eventually(lambda: worker.drained() or worker.step() < 0)
    worker.slots.close()
    app.close()

    assert not is_drained
    ended = store.get(urgent)
    assert ended is not None
    assert ended.state == "done"


def assert_due_in_days(store: PostgresStore) -> None:
    __tracebackhide__ = True
    due = store.next_due(["*"], ["add"])
    assert due is not None
    assert due > 24 * 3600


def test_a_full_scan_is_delayed_by_a_second_at_most() -> None:
    assert MAX_SECONDS <= 1.0


def test_a_claim_that_finds_too_little_is_completed_by_a_cheap_full_scan(
    make_store: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Full scans are cheap here (`nothing_is_expensive`); the window lasts longer than this test.
    monkeypatch.setattr(claim_cursor_module, "ROW_SECONDS", 0.0)
    for name, value in {"BUSY_SHARE": 1e9, "MAX_SECONDS": 3600.0}.items():
        monkeypatch.setattr(claim_cursor_module, name, value)
    store = make_store()
    enqueue(store, SERIES)
    claim(store, SERIES)
    early = enqueue(store, execute_after=datetime(2026, 1, 1, tzinfo=UTC))
    behind = enqueue(store, 3)

    assert sorted(claim(store, SERIES)) == sorted(early + behind)
    assert store.starts == ["full scan", "cursor", "full scan"]


def test_a_claim_that_finds_too_little_is_completed_by_a_full_scan_after_the_idle_pause(
    store: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(store, 3)
    claim(store)
    early = enqueue(store, execute_after=datetime(2026, 1, 1, tzinfo=UTC))
    behind = enqueue(store, 4)

    # A full scan is still expensive, but a worker that found too little has nothing else to do. One whose claim is full
    # has, and makes none.
    monkeypatch.setattr(claim_cursor_module, "IDLE_SHARE", 0.0)

    assert claim(store, 2) == behind[:2]
    assert store.starts == ["full scan", "cursor"]
    assert sorted(claim(store)) == sorted(early + behind[2:])
    assert store.starts == ["full scan", "cursor", "cursor", "full scan"]


def test_a_claim_from_the_cursor_takes_nothing_from_a_paused_queue(
    store: Watched, full_scans_are_expensive: Callable[[], None]
) -> None:
    ids = enqueue(store, 20)
    assert claim(store, 10) == ids[:10]
    store.pause("default")

    assert claim(store, 10) == []

    store.resume("default")
    assert claim(store, 10) == ids[10:]
    assert store.starts == ["full scan", "cursor", "cursor"]


def test_a_claim_from_the_cursor_takes_nothing_from_other_queues(store: Watched) -> None:
    enqueue(store, 2)
    mail = enqueue(store, 4, queue="mail")
    enqueue(store, 2)
    assert len(claim(store, 3)) == 3

    taken = claim(store, queues=["mail"])

    assert set(taken) <= set(mail)
    assert "cursor" in store.starts


def test_a_claim_from_the_cursor_takes_no_deferred_job(store: Watched) -> None:
    enqueue(store, 3)
    claim(store)
    enqueue(store, execute_after=timedelta(hours=1))

    assert claim(store) == []
    assert store.starts == ["full scan", "cursor"]


def test_a_new_connection_begins_with_a_full_scan(store: Watched, other: Watched) -> None:
    ids = enqueue(other, 20)
    assert claim(store, 5) == ids[:5]
    assert claim(store, 5) == ids[5:10]

    store.close()

    assert claim(store, 5) == ids[10:15]
    # The generation of the connection is known only after the claim has taken it: this one still used the cursor.
    assert claim(store, 5) == ids[15:]
    assert store.starts == ["full scan", "cursor", "cursor", "full scan"]


def take_ten(store: PostgresStore, claim_cursor: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a claim of ten jobs that starts at `claim_cursor`: one for each job, and one more."""
    with store._claim(ME, uuid.uuid4(), ["*"], ["add"], 10, claim_cursor) as answer:
        pass
    return answer.rows()


def ids_taken(store: PostgresStore, claim_cursor: Any) -> list[int]:
    return sorted(row[0] for row in take_ten(store, claim_cursor)[:-1])


class CountingConnection(Connection):
    """A connection that counts the entries of the index of waiting jobs that a statement reads, live and dead."""

    entries = 0

    @contextmanager
    def sending(self, query: LiteralString, values: Values) -> Iterator[Answer]:
        answer = Answer()
        yield answer
        with self.transaction() as conn:
            rows = conn.cursor(row_factory=tuple_row).execute(query, values).fetchall()
            (met,) = conn.execute("select pg_stat_get_xact_tuples_returned('pgcron.jobs_waiting'::regclass)").fetchall()
        self.entries = met[0]
        answer.count, answer.rows = len(rows), lambda: rows


@pytest.mark.row(69)
def test_a_claim_from_the_cursor_reads_no_dead_entries_while_an_old_snapshot_is_held(
    store: Watched, other: Watched, pg_url: str
) -> None:
    passing, batch = 3000, 500
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("alter table pgcron.jobs set (autovacuum_enabled = off)")
    with psycopg.connect(pg_url) as dump:
        dump.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        dump.execute("select count(*) from pgcron.jobs")
        enqueue(other, passing)
        for _ in range(passing // batch):
            jobs = claimed(store, batch)
            assert len(store.settle([Outcome(j.id, j.claim, "done") for j in jobs if j.claim])) == batch
        ids = enqueue(other, 30)
        counting = PostgresStore(parse_url(pg_url, application="pgcron counting"), rings=False)
        connection = CountingConnection(counting.address, counting.schema)
        counting.pool = Pool(lambda: connection, 1)

        from_cursor = ids_taken(counting, store._claim_cursor.last)
        few = connection.entries
        from_start = ids_taken(counting, {})
        many = connection.entries
        counting.close()

        # Each entry of a finished job costs a read of its row while the snapshot might still see it.
        assert many > passing
        assert few <= 30
        # Both found the jobs that were next, and a later claim finds the rest.
        assert from_cursor + from_start == ids[:20]
        assert claim(store, 100) == ids[20:]


@pytest.mark.row(69)
def test_a_claim_from_the_cursor_reads_few_pages_while_an_old_snapshot_is_held(
    store: Watched, other: Watched, pg_url: str
) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("alter table pgcron.jobs set (autovacuum_enabled = off)")
    with psycopg.connect(pg_url) as dump:
        dump.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        dump.execute("select count(*) from pgcron.jobs")
        for _ in range(6):
            # Long rows, so that a page holds few of them.
            enqueue(other, 250, args=json.dumps({"text": "x" * 1500}))
            jobs = claimed(store, 250)
            store.settle([Outcome(j.id, j.claim, "done") for j in jobs if j.claim])
        enqueue(other, 30)
        explaining = ExplainingStore(parse_url(pg_url, application="pgcron plans"), rings=False)

        take_ten(explaining, store._claim_cursor.last)
        from_cursor = explaining.plan
        take_ten(explaining, {})
        from_start = explaining.plan
        explaining.close()

        assert "jobs_waiting" in indexes(from_cursor), shown(from_cursor)
        assert pages(from_cursor) < 300, shown(from_cursor)
        assert pages(from_start) > pages(from_cursor) + 250, shown(from_start)


def test_a_late_commit_is_found_although_full_scans_are_expensive(
    make_store: Callable[[], Watched], other: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_cursor_module, "EXPENSIVE_SECONDS", -1.0)
    monkeypatch.setattr(claim_cursor_module, "ROW_SECONDS", 0.0)
    store = make_store()
    with psycopg.connect(other.address.conninfo) as conn:
        row = conn.execute("select pgcron.enqueue('add', ring => false)").fetchone()
        assert row is not None
        enqueue(other, 5)
        assert len(claim(store, 5)) == 5
        conn.commit()

    # With the default shares. The test does not check when it is found, only that it is.
    assert eventually(lambda: claim(store, 5), within=30) == [row[0]]
