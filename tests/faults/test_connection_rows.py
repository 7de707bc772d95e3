"""Rows 40-51, 53, 54, 64 and 65 of the fault catalogue: connections that end, hang, crawl or are not to be had."""

import contextlib
import os
import re
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from proxy import Proxy
from psycopg import sql
from support import eventually, free_port, python
from workers import QUICK, SLOW, TASKS, Audit, Queue, WorkerProcess, Workers

from pgcron_lite import PgCron
from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.job import WorkerCard
from pgcron_lite.worker.loop import Worker

# What we promise about the time after an outage, and what a busy machine may add to it.
BACK_WITHIN, MACHINE = 1.0, 5.0

# A lease with room for a heartbeat whose statement hangs, on a busy machine.
CALM = {"PGCRON_LEASE": "9s", "PGCRON_POLL": "0.5s"}

TROUBLE = "the database is not available"
BACK = "the database is back"


@pytest.fixture
def proxy(pg_url: str) -> Iterator[Proxy]:
    with Proxy(pg_url) as proxy:
        yield proxy


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    return impatient_program(tmp_path)


def impatient_program(folder: Path) -> Path:
    """The fault tests' app in a worker that waits two seconds, not twenty, before it calls a statement hanging."""
    program = folder / "fault_tasks.py"
    program.write_text(
        "import runpy\n"
        "from pgcron_lite.worker import process\n"
        "process.HANG_SECONDS = 2.0\n"
        f"runpy.run_path({str(TASKS)!r}, run_name='__main__')\n"
    )
    return program


@pytest.fixture
def make_role(databases: Any, pg_url: str) -> Iterator[Callable[..., str]]:
    """Makes a role that may run a worker, with options such as CONNECTION LIMIT; returns its URL."""
    made: list[str] = []

    def make(options: str = "") -> str:
        name = f"worker_{uuid.uuid4().hex[:8]}"
        made.append(name)
        create = sql.SQL("create role {} login password 'old secret' ").format(sql.Identifier(name))
        databases.execute(create + sql.SQL(options))
        with psycopg.connect(pg_url) as conn:
            conn.execute("select pgcron.allow(%s, 'worker')", [name])
        parts = urlsplit(pg_url)
        return urlunsplit(parts._replace(netloc=f"{name}:old%20secret@{parts.hostname}:{parts.port}"))

    yield make
    for name in made:
        with psycopg.connect(pg_url) as conn:
            conn.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
        databases.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def backend(queue: Queue, application: str) -> int:
    """The process id of the server's side of a connection."""
    def find() -> list[Any]:
        return queue.rows(
            "select pid from pg_stat_activity where application_name = %s and datname = current_database()", application
        )

    return int(eventually(find)[0].pid)


def end_all_backends(queue: Queue) -> None:
    queue.rows(
        """
        select pg_terminate_backend(pid) from pg_stat_activity
        where application_name like 'pgcron%%' and datname = current_database()
        """
    )


def wait_for_a_blocked_backend(queue: Queue) -> int:
    """One of the worker's that waits for a lock."""
    return int(eventually(lambda: queue.rows(
        """
        select pid from pg_stat_activity
        where application_name = 'pgcron worker' and datname = current_database() and wait_event_type = 'Lock'
        """
    ))[0].pid)


def loud(line: str) -> bool:
    """A warning or an error of ours; the driver remarks once on a batch that it could not end."""
    return bool(re.search("WARNING|ERROR", line)) and "error ignored terminating" not in line


def one_outage(worker: WorkerProcess) -> bool:
    return worker.log.count(TROUBLE) == 1 and worker.log.count(BACK) == 1


# Connections that end


@pytest.mark.row(40)
def test_connections_that_end_while_idle_come_back(queue: Queue, workers: Workers, audit: Audit) -> None:
    worker = workers.start(env=CALM)
    queue.until(queue.enqueue("nap"), "done")
    running = queue.enqueue("nap", seconds=3)
    queue.begun(running)

    end_all_backends(queue)
    new = queue.enqueue("nap")

    # The worker's own time to be back, and not the promise's: nothing has to be waited for here.
    assert queue.until(new, "done", within=2 + MACHINE).attempt == 1
    assert queue.until(running, "done").attempt == 1
    assert len(queue.entries(running, "begin")) == 1
    audit.check()
    assert worker.log.count(TROUBLE) <= 1


@pytest.mark.row(40)
@pytest.mark.row(41)
@pytest.mark.parametrize("how", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_statement_that_is_ended_is_repeated_and_no_job_pays(
    queue: Queue, workers: Workers, audit: Audit, how: Literal["pg_terminate_backend", "pg_cancel_backend"]
) -> None:
    workers.start(env=CALM)
    queue.until(queue.enqueue("nap"), "done")
    with psycopg.connect(queue.url) as blocker:
        blocker.execute("lock table pgcron.jobs in access exclusive mode")
        blocked = wait_for_a_blocked_backend(queue)
        if how == "pg_cancel_backend":
            queue.rows("select pg_cancel_backend(%s)", blocked)
        else:
            queue.rows("select pg_terminate_backend(%s)", blocked)
        blocker.rollback()

    job = queue.enqueue("nap")

    ended = queue.until(job, "done")
    assert (ended.attempt, ended.crashes, ended.errors) == (1, 0, [])
    audit.check()


@pytest.mark.row(42)
def test_the_listener_falls_and_rises_without_the_others_noticing(queue: Queue, workers: Workers) -> None:
    worker = workers.start(env={**SLOW, "PGCRON_DIRECT_URL": queue.url})
    main, heartbeat, listener = (backend(queue, f"pgcron {part}") for part in ("worker", "heartbeat", "listener"))

    queue.rows("select pg_terminate_backend(%s)", listener)

    eventually(lambda: "listening again" in worker.log)
    assert backend(queue, "pgcron listener") != listener
    assert (backend(queue, "pgcron worker"), backend(queue, "pgcron heartbeat")) == (main, heartbeat)
    assert worker.log.count("not listening, polling until that works again: ") == 1
    queue.until(queue.enqueue("nap"), "done")
    assert TROUBLE not in worker.log


@pytest.mark.row(46)
def test_a_reply_cut_off_anywhere_loses_and_doubles_nothing(
    queue: Queue, workers: Workers, audit: Audit, proxy: Proxy
) -> None:
    worker = workers.start(url=proxy.url, env=CALM)
    jobs = []
    for count in (0, 1, 5, 20, 60, 150, 400, 800, 1500, 3000):
        proxy.cut_after(count)
        jobs.append(queue.enqueue("nap"))
        queue.until(jobs[-1], "done")
        # Some are cut while nobody waits for anything; then the next one is.
        eventually(lambda: proxy.bytes_left is None)

    assert [queue.job(job).attempt for job in jobs] == [1] * len(jobs)
    assert [len(queue.entries(job, "begin")) for job in jobs] == [1] * len(jobs)
    audit.check()
    assert worker.stop() == 0


# Connections that hang


@pytest.mark.row(43)
def test_connections_that_were_lost_without_a_word_are_replaced(
    queue: Queue, workers: Workers, proxy: Proxy, audit: Audit, impatient: Path
) -> None:
    worker = workers.start(url=proxy.url, env=CALM, program=impatient)
    queue.until(queue.enqueue("nap"), "done")
    before = backend(queue, "pgcron worker")

    proxy.black_hole()
    job = queue.enqueue("nap")

    assert queue.until(job, "done").attempt == 1
    assert backend(queue, "pgcron worker") != before or len(queue.workers()) == 1
    audit.check()
    assert one_outage(worker)


@pytest.mark.row(45)
@pytest.mark.parametrize("whose", ["worker", "heartbeat"])
def test_a_statement_on_a_frozen_backend_is_ended_by_the_guard(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path, whose: str
) -> None:
    worker = workers.start(env=CALM, program=impatient)
    observer = workers.start(env=CALM, queues=["nothing"])
    job = queue.enqueue("nap", seconds=12)
    queue.begun(job)
    # The first worker's: it was there first.
    (frozen,) = (row.pid for row in queue.rows(
        """
        select pid from pg_stat_activity
        where application_name = %s and datname = current_database()
        order by backend_start
        limit 1
        """,
        f"pgcron {whose}",
    ))

    os.kill(frozen, signal.SIGSTOP)
    try:
        other = queue.enqueue("nap")
        queue.until(other, "done")
        # The observer never finds the worker silent for a lease.
        assert queue.until(job, "done").attempt == 1
    finally:
        os.kill(frozen, signal.SIGCONT)

    assert len(queue.entries(job, "begin")) == 1
    assert "declared dead" not in worker.log
    assert "rescued" not in observer.log
    audit.check()


@pytest.mark.row(47)
def test_a_slow_line_slows_work_down_and_costs_no_lease(
    queue: Queue, workers: Workers, audit: Audit, proxy: Proxy
) -> None:
    slow = workers.start(url=proxy.url, env=CALM)
    observer = workers.start(env=CALM, queues=["nothing"])
    proxy.delay, proxy.rate = 0.3, 4000
    job = queue.enqueue("nap", seconds=12)

    ended = queue.until(job, "done", within=60)

    assert (ended.attempt, len(queue.entries(job, "begin"))) == (1, 1)
    assert "declared dead" not in slow.log
    assert "rescued" not in observer.log
    audit.check()


# Connections that are not to be had


@pytest.mark.row(48)
def test_a_host_name_that_nobody_knows_is_said_without_the_password(workers: Workers, queue: Queue) -> None:
    worker = workers.start(url="postgresql://ada:c4nary@database.invalid:5432/shop", ready=False)
    eventually(lambda: "waiting for the database" in worker.log, within=60)

    worker.terminate()

    assert worker.exit_code() == 0
    assert "database.invalid" in worker.log
    assert "c4nary" not in worker.log
    assert worker.log.count("waiting for the database") == 1


@pytest.mark.row(49)
def test_while_a_name_is_looked_up_other_greenlets_run(pg_url: str) -> None:
    url = pg_url.replace("@127.0.0.1:", "@localhost:")

    said = python(
        """
        from gevent import monkey
        monkey.patch_all()
        import socket, sys, time, gevent
        real = socket.getaddrinfo

        def slow(*given, **named):
            time.sleep(3)
            return real(*given, **named)

        socket.getaddrinfo = slow
        from pgcron_lite.pg.url import parse_url
        from pgcron_lite.pg.store import PostgresStore
        gaps = []

        def tick():
            while True:
                began = time.monotonic()
                time.sleep(0.02)
                gaps.append(time.monotonic() - began)

        ticking = gevent.spawn(tick)
        store = PostgresStore(parse_url(sys.argv[1], application="pgcron test"))
        began = time.monotonic()
        store.now()
        store.close()
        print(time.monotonic() - began, max(gaps))
        """,
        url,
    )

    took, longest_gap = map(float, said.split())
    assert took >= 3
    assert longest_gap < 1.5


@pytest.fixture
def silent() -> Iterator[str]:
    """Hosts that take a connection and say nothing, as they stand in a URL."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(4)]
        yield ",".join(f"127.0.0.1:{port}" for port in ports)


def behind(hosts: str, url: str) -> str:
    """The URL with `hosts` before its own."""
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}@{hosts},{host}"))


# What `docs/guarantees.md` says of hosts that are silent: for all of them, and twice. Half a minute with the machine's.
HOSTS = 10.0


@pytest.mark.row(43)
@pytest.mark.parametrize("count", [1, 300])
def test_enqueueing_gives_up_when_all_of_several_hosts_are_silent(silent: str, count: int) -> None:
    app = PgCron("shop", url=f"postgresql://ada@{silent}/shop")
    add = app.task(name="shop.add")(lambda: None)
    began = time.monotonic()

    with pytest.raises(DatabaseUnavailable, match="timeout expired"):
        add.map([()] * count)

    assert time.monotonic() - began < 2 * HOSTS + MACHINE
    app.close()


@pytest.mark.row(43)
def test_a_host_behind_silent_ones_is_reached_by_producers_and_workers(
    silent: str, queue: Queue, workers: Workers
) -> None:
    url = behind(silent, queue.url)
    began = time.monotonic()
    app = PgCron("shop", url=url)
    app.task(name="nap")(lambda seconds=0.0: None).delay()
    app.close()

    assert time.monotonic() - began < HOSTS + MACHINE

    # The loop, the heartbeat and the listener connect one after the other.
    worker = workers.start(url=url, ready=False)

    eventually(lambda: "listening" in worker.log or queue.workers(), within=4 * HOSTS)
    queue.until(queue.enqueue("nap"), "done", within=4 * HOSTS)
    assert worker.stop() == 0


@pytest.mark.row(50)
def test_a_worker_that_finds_no_database_waits_for_it_and_says_so_once(
    queue: Queue, workers: Workers, proxy: Proxy
) -> None:
    proxy.refuse()
    worker = workers.start(url=proxy.url, ready=False)
    eventually(lambda: "waiting for the database" in worker.log)
    waited_until = time.monotonic() + 4
    eventually(lambda: time.monotonic() > waited_until)

    proxy.accept()
    job = queue.enqueue("nap")

    queue.until(job, "done", within=BACK_WITHIN + MACHINE)
    assert worker.log.count("waiting for the database") == 1
    assert worker.stop() == 0


@pytest.mark.row(50)
def test_told_to_fail_fast_it_does(workers: Workers) -> None:
    worker = workers.start(url=f"postgresql://ada:c4nary@127.0.0.1:{free_port()}/shop", ready=False, fail_fast=True)

    assert worker.exit_code() not in (0, None)
    assert "c4nary" not in worker.log


@pytest.mark.row(51)
def test_too_many_connections_are_waited_out_and_the_message_counts(
    queue: Queue, workers: Workers, make_role: Callable[..., str]
) -> None:
    url = make_role("connection limit 1")
    with psycopg.connect(url):
        worker = workers.start(url=url, ready=False)
        eventually(lambda: "waiting for the database" in worker.log)

    workers.until_ready(worker)

    assert "too many connections for role" in worker.log
    assert "uses up to 4 connections and can do with 2" in worker.log


@pytest.mark.row(51)
def test_a_job_that_finds_no_connection_is_tried_again_and_the_worker_lives(
    queue: Queue, workers: Workers, make_role: Callable[..., str]
) -> None:
    # One for the loop, one for the heartbeat, none for what tasks want.
    worker = workers.start(url=make_role("connection limit 2"), env=CALM)

    for _ in range(3):
        queue.until(queue.enqueue("nap"), "done")

    assert worker.stop() == 0


@pytest.mark.row(65)
def test_with_two_connections_a_worker_polls_and_its_heart_comes_before_its_ears(
    queue: Queue, workers: Workers, make_role: Callable[..., str]
) -> None:
    url = make_role("connection limit 2")
    env = {"PGCRON_LEASE": "4.5s", "PGCRON_POLL": "60s"}
    worker = workers.start(url=url, env=env)
    observer = workers.start(env=env, queues=["nothing"])
    job = queue.enqueue("nap", seconds=12)

    ended = queue.until(job, "done", within=60)

    assert (ended.attempt, len(queue.entries(job, "begin"))) == (1, 1)
    assert "rescued" not in observer.log
    # Whoever of the two came too late has said so; the listener has given way in the end.
    assert "not listening, polling" in worker.log or "the heartbeat cannot reach the database" in worker.log
    assert "declared dead" not in worker.log


@pytest.mark.row(64)
def test_a_worker_whose_password_was_changed_ends_with_a_sentence(
    queue: Queue, workers: Workers, make_role: Callable[..., str], databases: Any
) -> None:
    url = make_role()
    worker = workers.start(url=url)
    role = urlsplit(url).username
    queue.until(queue.enqueue("nap"), "done")

    databases.execute(sql.SQL("alter role {} password 'new'").format(sql.Identifier(str(role))))
    end_all_backends(queue)

    assert worker.exit_code(within=60) == 69
    assert "giving up: the database has refused the login 8 times" in worker.log
    assert "password authentication failed" in worker.log
    assert "old secret" not in worker.log
    assert "old%20secret" not in worker.log


@pytest.mark.row(64)
def test_a_worker_that_is_started_with_a_wrong_password_ends_too(
    workers: Workers, make_role: Callable[..., str]
) -> None:
    worker = workers.start(url=make_role().replace("old%20secret", "c4nary"), ready=False)

    assert worker.exit_code(within=60) == 69
    assert "password authentication failed" in worker.log
    assert "c4nary" not in worker.log


# The server goes and comes


@pytest.mark.row(53)
@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_after_an_outage_work_goes_on_within_a_second_however_long_it_was(
    own_server: EmbeddedPostgres, queue_of_its_own: Queue, workers_of_its_own: Workers,
    mode: Literal["fast", "immediate"], gevent: bool,
) -> None:
    queue = queue_of_its_own
    worker = workers_of_its_own.start(env=QUICK, gevent=gevent)
    through = queue.enqueue("nap", seconds=4)
    waiting = queue.enqueue("nap")
    queue.begun(through)
    queue.until(waiting, "done")

    own_server.stop(mode)
    eventually(lambda: TROUBLE in worker.log)
    # Long enough for every pause to have grown to its longest.
    down_until = time.monotonic() + 8
    eventually(lambda: time.monotonic() > down_until)
    own_server.start()
    job = queue.enqueue("nap")

    queue.until(job, "done", within=BACK_WITHIN + MACHINE)
    assert queue.until(through, "done").attempt == 1
    assert len(queue.entries(through, "begin")) == 1
    eventually(lambda: "listening again" in worker.log, within=BACK_WITHIN + MACHINE)
    assert one_outage(worker)
    assert worker.log.count("not listening") == 1
    assert len([line for line in worker.log.splitlines() if loud(line)]) == 2
    assert worker.stop() == 0


@pytest.mark.row(53)
def test_the_pause_between_attempts_grows_to_a_second_and_no_further(pg_url: str, proxy: Proxy) -> None:
    app, worker = turned_by_hand(proxy.url)
    worker.step()
    proxy.refuse()

    pauses = [attempt(worker) for _ in range(12)]

    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert set(pauses[4:]) == {1.0}
    worker.store.close()
    app.close()


@pytest.mark.row(53)
def test_workers_of_a_fleet_do_not_come_back_in_step(pg_url: str, proxy: Proxy) -> None:
    app, worker = turned_by_hand(proxy.url, spread=lambda low, high: low)
    worker.step()
    proxy.refuse()

    assert [attempt(worker) for _ in range(6)][-1] == 0.5
    worker.store.close()
    app.close()


@pytest.mark.row(64)
def test_refused_logins_are_repeated_at_growing_distances(
    databases: Any, make_role: Callable[..., str]
) -> None:
    url = make_role()
    app, worker = turned_by_hand(url)
    worker.step()
    role = str(urlsplit(url).username)
    databases.execute(sql.SQL("alter role {} password 'new'").format(sql.Identifier(role)))
    worker.store.close()

    pauses = [attempt(worker) for _ in range(8)]

    assert worker.refused_logins == 8
    assert pauses[-1] == 5.0
    assert 10 < sum(pauses[:-1]) < 15
    app.close()


def turned_by_hand(url: str, spread: Any = lambda low, high: high) -> tuple[PgCron, Worker]:
    app = PgCron("faults", url=url)
    app.task(name="faults.nothing")(lambda: None)
    store = app._open_store("pgcron worker", size=1)
    card = WorkerCard(uuid.uuid4(), "here", os.getpid(), ("*",), 1, "threads", "0", generation=None)
    store.register(card)
    return app, Worker(app, store, card, spread=spread)


def attempt(worker: Worker) -> float:
    """One turn in which the worker asks the database; returns how long it then waits."""
    worker.claim_soon()
    return worker.step()


@pytest.mark.row(54)
def test_a_crash_of_the_server_is_an_outage_like_any_other(
    own_server: EmbeddedPostgres, queue_of_its_own: Queue, workers_of_its_own: Workers
) -> None:
    queue = queue_of_its_own
    worker = workers_of_its_own.start(env=QUICK)
    running = queue.enqueue("nap", seconds=3)
    queue.begun(running)

    # A backend that dies takes all the others along: the server starts over.
    os.kill(backend(queue, "pgcron worker"), signal.SIGKILL)
    eventually(lambda: TROUBLE in worker.log)
    job = queue.enqueue("nap")

    queue.until(job, "done")
    assert queue.until(running, "done").attempt == 1
    assert len(queue.entries(running, "begin")) == 1
    assert worker.stop() == 0
