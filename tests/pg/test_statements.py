"""Number of statements and transactions of each operation: counted on the wire, never timed."""

import ctypes
import itertools
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
from psycopg.pq import Trace
from support import eventually

from pgcron_lite import PgCron
from pgcron_lite.job import Job, NewJob, Outcome, WorkerCard, hand_back
from pgcron_lite.pg import connection as connection_module
from pgcron_lite.pg import enqueue as enqueue_module
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.worker.loop import Worker

ME = uuid.UUID(int=1)
FOR_EVER = 3600.0


class Wire:
    """The trace that libpq writes of every message on every connection of a `Connection`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tapped: list[psycopg.Connection[Any]] = []
        # Each file is opened twice: libpq writes to it, and we read it.
        self._files: list[tuple[IO[bytes], IO[bytes]]] = []

    def tap(self, conn: psycopg.Connection[Any]) -> None:
        file = self._folder / f"wire-{len(self._files)}"
        output = file.open("wb")
        self._files.append((output, file.open("rb")))
        self._tapped.append(conn)
        conn.pgconn.trace(output.fileno())
        conn.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)

    def messages(self) -> str:
        """Return the messages since the last call."""
        # A part of it may still be in a buffer of the C library.
        ctypes.CDLL(None).fflush(None)
        return "".join(file.read().decode("utf-8", "replace") for _, file in self._files)

    def close(self) -> None:
        for conn in self._tapped:
            if not conn.closed:
                conn.pgconn.untrace()
        self.messages()
        for file in itertools.chain(*self._files):
            file.close()

    def count(self, do: Callable[[], object]) -> "Count":
        """Return the statements and round trips of `do`."""
        self.messages()
        do()
        return Count(self.messages())


class Count:
    """The statements that the server completed, and the number of its ReadyForQuery messages, one per transaction."""

    def __init__(self, messages: str) -> None:
        self.statements = re.findall(r"^B\t\d+\tCommandComplete\t ?\"(.*)\"", messages, re.MULTILINE)
        self.trips = len(re.findall(r"^B\t\d+\tReadyForQuery\t", messages, re.MULTILINE))
        self.texts = re.findall(r"^F\t\d+\tParse\t(.*?)(?=^[BF]\t\d+\t)", messages, re.MULTILINE | re.DOTALL)

    def __repr__(self) -> str:
        return f"{self.statements} in {self.trips} trips"


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    if sys.platform != "linux":
        pytest.skip("libpq traces on Linux alone")
    wire = Wire(tmp_path)
    opened = Connection._open

    def tapped(self: Connection) -> psycopg.Connection[Any]:
        conn = opened(self)
        wire.tap(conn)
        return conn

    monkeypatch.setattr(Connection, "_open", tapped)
    yield wire
    wire.close()


@pytest.fixture
def make_store(pg_url: str, wire: Wire) -> Iterator[Callable[..., PostgresStore]]:
    made: list[PostgresStore] = []

    def make(**options: Any) -> PostgresStore:
        made.append(PostgresStore(parse_url(pg_url, application="pgcron counted"), **options))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., PostgresStore]) -> PostgresStore:
    """Return a connected store that does not ring."""
    store = make_store(rings=False)
    store.now()
    return store


@pytest.fixture
def ringing(make_store: Callable[..., PostgresStore], monkeypatch: pytest.MonkeyPatch) -> PostgresStore:
    """Return a connected store that rings only once, because its window does not end."""
    monkeypatch.setattr(enqueue_module, "RING_WINDOW", FOR_EVER)
    store = make_store()
    store.now()
    return store


def one(store: PostgresStore) -> None:
    store.enqueue([NewJob("add")])


def many(store: PostgresStore, count: int) -> None:
    for _ in range(count):
        one(store)


def take(store: PostgresStore, count: int) -> list[Job]:
    return store.claim(ME, uuid.uuid4(), ["*"], ["add"], count)


# Enqueueing


def test_a_single_enqueue_is_one_insert_in_one_round_trip(store: PostgresStore, wire: Wire) -> None:
    # After the small batches of ids at the start.
    many(store, 3)

    one(store)  # draws four
    count = wire.count(lambda: one(store))

    assert (count.statements, count.trips) == (["INSERT 0 1"], 1)


def test_ids_are_drawn_at_most_once_for_256_jobs(store: PostgresStore, wire: Wire) -> None:
    # 1 + 2 + 4 + ... + 256: from here on each batch has 256 ids, and the stock is empty.
    many(store, 511)

    count = wire.count(lambda: many(store, 1024))

    assert count.statements.count("INSERT 0 1") == 1024
    assert count.statements.count("SELECT 256") == 4
    assert len(count.statements) == 1028
    assert count.trips == 1028


def test_a_script_that_enqueues_one_job_draws_one_id(store: PostgresStore, wire: Wire) -> None:
    count = wire.count(lambda: one(store))

    assert count.statements == ["SELECT 1", "INSERT 0 1"]


@pytest.mark.row(110)
def test_of_many_jobs_in_a_window_only_the_first_rings(ringing: PostgresStore, wire: Wire) -> None:
    count = wire.count(lambda: many(ringing, 300))

    # The ring is sent with the insert: one more statement and transaction, in the same round trip.
    assert count.statements.count("INSERT 0 1") == 300
    rest = [each for each in count.statements if not re.fullmatch("SELECT (16|32|64|128|256)", each)]
    assert rest.count("SELECT 1") == len(["the first id", "the ring"])
    assert len(rest) == 300 + 1 + len(["SELECT 1", "SELECT 2", "SELECT 4", "SELECT 8"])


@pytest.mark.row(110)
def test_the_listener_receives_one_ring_for_each_window(ringing: PostgresStore, pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("listen pgcron")
        for _ in range(3):
            ringing._ring_again_at = 0.0
            many(ringing, 50)
            ringing.enqueue([NewJob("add")] * 300)
            ringing.ring()
        conn.execute("notify the_end; listen the_end")
        conn.execute("notify the_end")

        received = []
        for notice in conn.notifies(timeout=30):
            received.append(notice.channel)
            if notice.channel == "the_end":
                break

    assert received == ["pgcron"] * 3 + ["the_end"]


def test_a_store_that_does_not_ring_never_does(store: PostgresStore, wire: Wire) -> None:
    many(store, 127)

    count = wire.count(store.ring)

    assert count.statements == []


@pytest.fixture
def task(pg_url: str, wire: Wire) -> Iterator[Any]:
    """Return a task of a connected app that does not ring."""
    app = PgCron("mapped", url=pg_url, notify=False)
    task = app.task(add, name="add")
    task.delay(1)
    yield task
    app.close()


def test_a_map_of_a_hundred_calls_is_one_statement(task: Any, wire: Wire) -> None:
    count = wire.count(lambda: task.map([(n,) for n in range(100)]))

    # And one statement for the ids.
    assert count.statements == ["SELECT 100", "INSERT 0 100"]
    assert count.trips == 2


def test_a_map_of_ten_thousand_calls_is_one_copy(task: Any, wire: Wire) -> None:
    count = wire.count(lambda: task.map([(n,) for n in range(10_000)]))

    # The ids, the database's time, and the one COPY.
    assert count.statements == ["SELECT 10000", "SELECT 1", "BEGIN", "COPY 10000", "COMMIT"]


def add(x: int) -> None:
    """Do nothing, as a task."""


def test_a_bulk_that_rings_does_so_once_and_after_its_commit(ringing: PostgresStore, wire: Wire) -> None:
    count = wire.count(lambda: ringing.enqueue([NewJob("add")] * 1000))
    again = wire.count(lambda: ringing.enqueue([NewJob("add")] * 1000))

    assert count.statements == ["SELECT 1000", "SELECT 1", "BEGIN", "COPY 1000", "COMMIT", "SELECT 1"]
    assert again.statements == ["SELECT 1000", "SELECT 1", "BEGIN", "COPY 1000", "COMMIT"]


def test_behind_a_pooler_a_single_enqueue_is_still_one_round_trip(
    make_store: Callable[..., PostgresStore], wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pooler reports another backend pid than at login.
    monkeypatch.setattr(Connection, "_identify", lambda self, conn: (False, -1, ""))
    store = make_store(rings=False)
    many(store, 3)
    store._stock.take(1, store._draw)

    count = wire.count(lambda: one(store))

    assert count.statements[0::3] == ["BEGIN", "COMMIT"]
    assert count.statements[2] == "INSERT 0 1"
    assert (len(count.statements), count.trips) == (4, 1)


# Working


@pytest.mark.parametrize("size", [1, 50, 500])
def test_a_claim_of_any_size_is_one_statement(store: PostgresStore, wire: Wire, size: int) -> None:
    store.enqueue([NewJob("add")] * size)
    jobs: list[Job] = []

    count = wire.count(lambda: jobs.extend(take(store, size)))

    assert len(jobs) == size
    # And one row with its duration.
    assert (count.statements, count.trips) == ([f"SELECT {size + 1}"], 1)


@pytest.mark.row(109)
def test_a_claim_that_finds_nothing_is_one_statement(store: PostgresStore, wire: Wire) -> None:
    count = wire.count(lambda: take(store, 500))

    assert (count.statements, count.trips) == (["SELECT 1"], 1)


@pytest.mark.parametrize("size", [1, 50, 500])
def test_outcomes_of_any_number_are_one_statement(store: PostgresStore, wire: Wire, size: int) -> None:
    store.enqueue([NewJob("add")] * size)
    jobs = take(store, size)
    states = ("done", "failed", "cancelled")
    outcomes = [Outcome(j.id, j.claim, states[n % 3]) for n, j in enumerate(jobs) if j.claim]
    settled: set[int] = set()

    count = wire.count(lambda: settled.update(store.settle(outcomes)))

    assert settled == {job.id for job in jobs}
    assert (count.statements, count.trips) == ([f"INSERT 0 {size}"], 1)


def test_hand_backs_and_retries_of_any_number_are_one_statement(store: PostgresStore, wire: Wire) -> None:
    store.enqueue([NewJob("add")] * 500)
    jobs = take(store, 500)

    outcomes = [hand_back(j) for j in jobs[:250]]
    outcomes += [Outcome(j.id, j.claim, "queued", delay=1.0) for j in jobs[250:] if j.claim]

    count = wire.count(lambda: store.settle(outcomes))

    assert (count.statements, count.trips) == (["UPDATE 500"], 1)


def test_ends_and_retries_together_are_two_statements(store: PostgresStore, wire: Wire) -> None:
    store.enqueue([NewJob("add")] * 100)
    jobs = take(store, 100)
    ends = [Outcome(j.id, j.claim, "done") for j in jobs[:50] if j.claim]
    retries = [Outcome(j.id, j.claim, "queued", delay=1.0) for j in jobs[50:] if j.claim]

    count = wire.count(lambda: store.settle([*ends, *retries]))

    assert count.statements == ["INSERT 0 50", "UPDATE 50"]


# Workers


@pytest.fixture
def make_worker(pg_url: str, make_store: Callable[..., PostgresStore]) -> Iterator[Callable[..., Worker]]:
    """Return a function that makes workers that have done their first steps, and poll only because of the test."""
    app = PgCron("counted", url=pg_url, poll="1h", lease="1h")
    app.task(add, name="add")
    hired: list[Worker] = []

    def make_worker(store: PostgresStore | None = None, **options: Any) -> Worker:
        store = store or make_store(rings=False, size=1)
        card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 4, "threads", "0")
        store.register(card)
        worker = Worker(app, store, card, **options)
        hired.append(worker)
        worker._maintenance.prune_at = worker._maintenance.check_at = FOR_EVER * 1e6
        worker.step()
        return worker

    yield make_worker
    for worker in hired:
        worker.slots.close()
    app.close()


def test_an_idle_worker_sends_one_statement_on_its_timer(make_worker: Callable[..., Worker], wire: Wire) -> None:
    worker = make_worker()
    for _ in range(5):
        # From the third time on it is a prepared statement, and preparing it takes a round trip.
        worker._poll_at = 0.0
        worker.step()
    nothing = wire.count(worker.step)

    worker._poll_at = 0.0
    polled = wire.count(worker.step)
    worker._reap_at = 0.0
    watched = wire.count(worker.step)

    assert nothing.statements == []
    assert (polled.statements, polled.trips) == (["SELECT 1"], 1)
    assert (watched.statements, watched.trips) == (["SELECT 1"], 1)
    # One poll reset both timers.
    assert worker.step() > 0.0
    assert wire.messages() == ""


def test_the_statement_of_an_idle_worker_is_the_poll(
    make_worker: Callable[..., Worker], wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A statement that is not prepared is sent as text each time.
    monkeypatch.setattr(
        connection_module.Connection, "_configure_session", lambda self, conn: setattr(conn, "prepare_threshold", None)
    )
    worker = make_worker()

    worker._poll_at = worker._reap_at = 0.0
    count = wire.count(worker.step)

    assert len(count.texts) == 1
    assert "due_in" in count.texts[0]
    assert "beats" in count.texts[0]


def test_a_batch_of_jobs_costs_a_worker_a_claim_and_a_settlement(
    make_worker: Callable[..., Worker], wire: Wire
) -> None:
    worker = make_worker()
    # It has just searched for suspects, and its jobs take almost no time.
    worker._suspects.next_try = worker._reap_at = float("inf")
    worker._prefetch.record([0.0001] * 64)
    ids = worker.store.enqueue([NewJob("add", '{"x": 1}')] * 500)

    def run() -> None:
        worker.claim_soon()
        worker.step()
        eventually(lambda: len(worker.slots.ended) == 500, within=30)
        worker.step()

    count = wire.count(run)

    assert worker.store.get(ids[-1]) is not None
    assert count.statements.count("INSERT 0 500") == 1
    assert count.statements.count("SELECT 501") == 1
    # The others: the next due time, twice, and one more query for work.
    assert len(count.statements) <= 6, count


@pytest.mark.row(109)
def test_fifty_workers_woken_for_one_job_send_few_statements(
    make_worker: Callable[..., Worker], store: PostgresStore, wire: Wire
) -> None:
    workers = [make_worker() for _ in range(50)]
    for worker in workers:
        # They have just searched for suspects and read one another's heartbeats, however long it took to make them.
        worker._suspects.next_try = worker._reap_at = float("inf")
    (job_id,) = store.enqueue([NewJob("add", '{"x": 1}')])
    together = threading.Barrier(len(workers), timeout=30)

    def wake(worker: Worker) -> int:
        worker.claim_soon()
        together.wait()
        worker.step()
        return len(worker.running)

    def wake_all() -> None:
        with ThreadPoolExecutor(len(workers)) as pool:
            got.extend(pool.map(wake, workers))

    got: list[int] = []
    count = wire.count(wake_all)

    assert sorted(got) == [0] * 49 + [1]
    # Each claims, and those that get nothing ask for the next due time.
    assert len(count.statements) <= 2 * len(workers)
    (winner,) = (worker for worker, jobs in zip(workers, got, strict=True) if jobs)
    eventually(lambda: winner.slots.ended, within=30)
    winner.step()
    job = store.get(job_id)
    assert job is not None
    assert (job.state, job.attempt) == ("done", 1)
