"""Rows 55-57 of the fault catalogue: a primary dies under load, its standby is promoted, and everybody finds it."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from standby import Pair, pair
from support import eventually
from test_frozen_backends import ended
from workers import QUICK, Queue, WorkerProcess, Workers

from pgcron_lite import PgCron
from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.pg.migrate import migrate
from pgcron_lite.pg.url import parse_url

PROGRAM = Path(__file__).with_name("time_tasks.py")
SCHEDULES = [{"when": "every 1s", "name": "tick", "args": ["tick"]}]
ENV = {**QUICK, "FAULT_SCHEDULES": json.dumps(SCHEDULES)}


class Producer:
    """A thread that enqueues one job after the other, as a web process would; it keeps the ids it was given."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[int] = []
        self.error: BaseException | None = None
        self.app = PgCron("time", url=url)
        self._note = self.app.task(name="time_tasks.note")(lambda word="": word)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def more(self, count: int) -> list[int]:
        """The ids acknowledged until now, once `count` have been added to those there are."""
        __tracebackhide__ = True
        wanted = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= wanted or self.error, within=60)
        assert self.error is None, repr(self.error)
        return self.acknowledged[:]

    def enqueue(self, word: str, **options: Any) -> int:
        return self._note.options(**options).delay(word).id

    def stop(self) -> list[int]:
        self._stopping.set()
        self._thread.join(60)
        self.app.close()
        return self.acknowledged

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.acknowledged.append(self.enqueue("load"))
            except DatabaseUnavailable:
                # Not acknowledged: it may have been stored, and may not.
                self._stopping.wait(0.05)
            except BaseException as error:
                self.error = error
                return
            self._stopping.wait(0.002)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Pair]:
    with pair(tmp_path) as servers:
        migrate(parse_url(servers.primary.url, application="pgcron tests"))
        servers.catch_up()
        yield servers


@pytest.fixture
def queue(servers: Pair, tmp_path: Path) -> Iterator[Queue]:
    """The queue on whichever of the two servers is the primary."""
    queue = Queue(f"{servers.url}?target_session_attrs=primary", tmp_path / "journal")
    yield queue
    queue.close()


@pytest.fixture
def producer(servers: Pair) -> Iterator[Producer]:
    producer = Producer(servers.url)
    yield producer
    producer.stop()


@pytest.fixture
def fleet(servers: Pair, workers: Workers) -> list[WorkerProcess]:
    return [workers.start(url=servers.url, env=ENV, program=PROGRAM) for _ in range(2)]


def ticks(queue: Queue) -> dict[str, set[int]]:
    """The jobs that have run for each tick."""
    jobs: dict[str, set[int]] = defaultdict(set)
    for entry in queue.entries(what="tick"):
        jobs[entry["tick"]].add(entry["job"])
    return jobs


def until_ended(queue: Queue, ids: list[int]) -> None:
    __tracebackhide__ = True
    missing = "select i as id from unnest(%s::bigint[]) as i where not exists (select from pgcron.history where id = i)"
    eventually(lambda: not queue.rows(missing, ids), within=60)


@pytest.mark.row(55)
@pytest.mark.row(56)
def test_a_synchronous_failover_under_load_loses_no_acknowledged_job_and_runs_no_tick_twice(
    servers: Pair, queue: Queue, fleet: list[WorkerProcess], producer: Producer
) -> None:
    servers.make_synchronous()
    producer.more(200)
    eventually(lambda: ticks(queue))
    before = set(ticks(queue))

    servers.primary.stop("immediate")
    # For a while there is only a standby.
    eventually(lambda: all("the database is not available" in worker.log for worker in fleet), within=30)
    servers.promote()

    producer.more(200)
    eventually(lambda: set(ticks(queue)) - before, within=30)
    acknowledged = producer.stop()
    until_ended(queue, acknowledged)
    assert len(set(acknowledged)) == len(acknowledged)
    assert {tick: jobs for tick, jobs in ticks(queue).items() if len(jobs) != 1} == {}
    assert queue.rows("select from pgcron.history where state <> 'done'") == []
    assert [worker.is_alive for worker in fleet] == [True, True]
    assert [worker.stop() for worker in fleet] == [0, 0]


@pytest.mark.row(55)
@pytest.mark.row(57)
def test_an_asynchronous_failover_under_load_goes_on_from_what_the_standby_has(
    servers: Pair, queue: Queue, fleet: list[WorkerProcess], producer: Producer
) -> None:
    producer.more(200)
    eventually(lambda: ticks(queue))
    repeated = producer.enqueue("repeated", execute_after="2s")
    replicated = producer.more(1)
    servers.catch_up()

    servers.detach()
    # What is committed from here on is lost: ids that were given out, runs, ticks.
    eventually(lambda: queue.entries(repeated, "repeated"), within=30)
    queue.until(repeated, "done")
    producer.more(300)
    seen = set(ticks(queue))
    servers.primary.stop("immediate")
    servers.promote()

    known = len(producer.more(500))
    # A job whose end was lost runs again.
    eventually(lambda: len(queue.entries(repeated, "repeated")) == 2, within=60)
    after = producer.stop()[known:]
    eventually(lambda: set(ticks(queue)) - seen, within=30)
    until_ended(queue, [*replicated, repeated, *after])
    assert queue.rows("select from pgcron.ticks group by schedule, tick, kind having count(*) > 1") == []
    assert [worker.is_alive for worker in fleet] == [True, True]
    assert [worker.stop() for worker in fleet] == [0, 0]


@pytest.mark.row(56)
def test_a_worker_that_reaches_only_a_standby_waits_for_a_primary(
    servers: Pair, queue: Queue, workers: Workers
) -> None:
    worker = workers.start(url=servers.standby.url, env=ENV, program=PROGRAM, ready=False)
    eventually(lambda: "waiting for the database" in worker.log)
    assert "is a read-only standby; waiting for the primary" in worker.log

    servers.primary.stop("immediate")
    servers.promote()

    workers.until_ready(worker)
    assert worker.log.count("waiting for the database") == 1
    assert worker.stop() == 0


@pytest.mark.row(56)
def test_enqueueing_on_a_standby_says_what_it_is(servers: Pair) -> None:
    app = PgCron("time", url=servers.standby.url)

    with pytest.raises(DatabaseUnavailable, match="is a read-only standby; waiting for the primary"):
        app.task(name="time_tasks.note")(lambda: None).delay()

    app.close()


@pytest.mark.row(55)
def test_of_two_hosts_the_primary_is_found_wherever_it_stands_in_the_url(servers: Pair) -> None:
    first, second = servers.primary.url, servers.standby.url
    ports = [url.rpartition(":")[2].partition("/")[0] for url in (second, first)]
    head = first.rpartition("@")[0]
    app = PgCron("time", url=f"{head}@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/postgres")

    app.task(name="time_tasks.note")(lambda: None).delay()

    with psycopg.connect(first) as conn:
        assert conn.execute("select count(*) from pgcron.jobs").fetchall() == [(1,)]
    app.close()


@pytest.mark.row(55)
def test_a_stalled_synchronous_standby_delays_an_enqueue_and_makes_no_second_job(servers: Pair) -> None:
    servers.make_synchronous()
    app = PgCron("time", url=servers.url)
    note = app.task(name="time_tasks.note")(lambda: None)
    note.delay()

    with servers.stalled():
        error = ended(note.delay)

    assert isinstance(error, DatabaseUnavailable)
    # The commit that waited for the standby becomes visible: in doubt is not undone.
    eventually(lambda: servers.on_primary("select count(*) from pgcron.jobs") == [(2,)])
    app.close()
