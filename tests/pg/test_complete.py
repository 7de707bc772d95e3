"""Jobs completed in their task's transaction: the effect and the completion are committed together (P3)."""

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session
from support import eventually, running

from pgcron_lite import PgCron, PgCronError, current_job
from pgcron_lite.job import Job, WorkerCard
from pgcron_lite.worker.execute import run
from pgcron_lite.worker.loop import Worker

CARD = {"host": "here", "pid": 1, "queues": ("*",), "slots": 4, "mode": "threads", "version": "test"}


@pytest.fixture
def app(pg_url: str) -> Iterator[PgCron]:
    app = PgCron("shop", url=pg_url)
    yield app
    app.close()


@pytest.fixture
def outcomes(pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("create table ledger (job bigint, amount int)")
        yield conn


def card() -> WorkerCard:
    return WorkerCard(id=uuid.uuid4(), **CARD)


def claimed(app: PgCron, worker: WorkerCard) -> Job:
    """Claim the next job for `worker`."""
    app.store.register(worker)
    (job,) = app.store.claim(worker.id, uuid.uuid4(), ("*",), list(app.tasks), 1)
    return job


def booked(outcomes: psycopg.Connection[Any]) -> list[tuple[int, int]]:
    return outcomes.execute("select job, amount from ledger order by job").fetchall()


def booking(app: PgCron, pg_url: str, then: Any = lambda: None) -> Any:
    """Return a task that writes a row and completes its job in the same transaction."""

    @app.task(name="book", max_attempts=3, backoff="1ms")
    def book(amount: int) -> None:
        with psycopg.connect(pg_url) as conn:
            conn.execute("insert into ledger values (%s, %s)", [current_job.id, amount])
            current_job.complete(conn, result={"booked": amount})
        then()

    return book


def test_the_effect_and_the_completion_are_committed_together(app, pg_url, outcomes):
    handle = booking(app, pg_url).delay(5)

    ended = run(app, claimed(app, card()))

    # The worker has written nothing yet.
    assert handle.result(timeout=0) == {"booked": 5}
    assert booked(outcomes) == [(handle.id, 5)]
    assert ended.outcome.state == "done"


def test_the_workers_later_write_recognises_the_completion(app, pg_url, outcomes, caplog):
    caplog.set_level("INFO", "pgcron_lite.jobs")
    handle = booking(app, pg_url).delay(5)

    turn_until_ended(app, handle)

    assert handle.job().attempt == 1
    assert handle.result(timeout=0) == {"booked": 5}
    assert [record.getMessage().split(" in ")[0] for record in caplog.records] == [f"{handle.job()} done"]


def test_a_rollback_undoes_the_completion_and_the_job_runs_again(app, pg_url, outcomes):
    tries = []

    @app.task(name="book", backoff="1ms")
    def book(amount: int) -> None:
        tries.append(current_job.attempt)
        with psycopg.connect(pg_url) as conn:
            conn.execute("insert into ledger values (%s, %s)", [current_job.id, amount])
            current_job.complete(conn)
            if len(tries) == 1:
                raise ConnectionError("before the commit")

    handle = book.delay(5)

    turn_until_ended(app, handle)

    assert tries == [1, 2]
    assert booked(outcomes) == [(handle.id, 5)]


def test_a_worker_that_was_declared_dead_can_commit_nothing(app, pg_url, outcomes):
    """The rescued job runs under a new claim. Its first worker resumes, and must not commit its transaction."""
    handle = booking(app, pg_url).delay(5)
    dead = card()
    stale = claimed(app, dead)
    app.store.reap([(dead.id, None)])
    second = take_suspect(app)

    late = run(app, stale)
    first = run(app, second)

    assert isinstance(late.error, PgCronError)
    assert "is no longer this worker's" in str(late.error)
    assert first.outcome.state == "done"
    assert booked(outcomes) == [(handle.id, 5)]


def test_a_worker_that_stalls_before_the_commit_still_books_once(app, pg_url, outcomes):
    """The row lock of the open transaction keeps the reaper from taking a job that is being completed."""
    inside, go_on = threading.Event(), threading.Event()

    @app.task(name="book")
    def book(amount: int) -> None:
        with psycopg.connect(pg_url) as conn:
            conn.execute("insert into ledger values (%s, %s)", [current_job.id, amount])
            current_job.complete(conn)
            inside.set()
            assert go_on.wait(20)

    handle = book.delay(5)
    dead = card()
    job = claimed(app, dead)
    thread = threading.Thread(target=run, args=(app, job))
    thread.start()
    assert inside.wait(20)
    rescued = reaped(app, dead)
    go_on.set()
    thread.join(20)

    assert rescued == []
    assert handle.state() == "done"
    assert booked(outcomes) == [(handle.id, 5)]


def reaped(app: PgCron, dead: WorkerCard) -> list[Job]:
    try:
        return list(app.store.reap([(dead.id, None)]))
    except PgCronError:  # the lock timeout: the next call finds it
        return []


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_process_killed_around_the_commit_books_exactly_once(app, pg_url, outcomes, moment):
    handle = booking(app, pg_url).delay(5)
    where = "before" if moment == "before the commit" else "after"

    with running(KILLED, pg_url, where) as first:
        assert first.wait(60) == -9
    with running(KILLED, pg_url, "never") as second:
        eventually(lambda: handle.job().is_final, within=60)
        second.terminate()
        second.wait(60)

    assert handle.state() == "done"
    assert booked(outcomes) == [(handle.id, 5)]


KILLED = """
import os, signal, sys
import psycopg
from pgcron_lite import PgCron, current_job

url, where = sys.argv[1:]
app = PgCron(url=url, lease="1.5s", poll="0.5s", grace="1s")

def die(): os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="book", max_attempts=3)
def book(amount):
    with psycopg.connect(url) as conn:
        conn.execute("insert into ledger values (%s, %s)", [current_job.id, amount])
        current_job.complete(conn)
        if where == "before": die()
    if where == "after": die()

app.run_worker(slots=2)
"""


def test_a_task_that_fails_after_its_commit_stays_done(app, pg_url, outcomes):
    """The data is committed, so the job is done; running it again would book twice."""

    def fail() -> None:
        raise RuntimeError("after the commit")

    handle = booking(app, pg_url, then=fail).delay(5)

    turn_until_ended(app, handle)

    assert handle.state() == "done"
    assert booked(outcomes) == [(handle.id, 5)]


def test_a_completion_without_a_result_gives_none(app, pg_url, outcomes):
    @app.task(name="book")
    def book() -> None:
        with psycopg.connect(pg_url) as conn:
            current_job.complete(conn)

    handle = book.delay()

    run(app, claimed(app, card()))

    assert handle.result(timeout=0) is None


def test_a_session_of_sqlalchemy_completes_a_job(app, pg_url, outcomes):
    engine = sqlalchemy.create_engine(pg_url.replace("postgresql://", "postgresql+psycopg://"))

    @app.task(name="book")
    def book(amount: int) -> None:
        with Session(engine) as session, session.begin():
            session.execute(
                sqlalchemy.text("insert into ledger values (:job, :amount)"), {"job": current_job.id, "amount": amount}
            )
            current_job.complete(session, result="ok")

    handle = book.delay(7)

    run(app, claimed(app, card()))
    engine.dispose()

    assert handle.result(timeout=0) == "ok"
    assert booked(outcomes) == [(handle.id, 7)]


def test_completing_twice_is_refused(app, pg_url, outcomes):
    @app.task(name="book")
    def book() -> None:
        with psycopg.connect(pg_url) as conn:
            current_job.complete(conn)
            current_job.complete(conn)

    book.delay()

    ended = run(app, claimed(app, card()))

    assert "is no longer this worker's" in str(ended.error)
    assert app.handle(ended.job.id).state() == "running"


def test_completing_outside_a_job_is_refused(pg_url):
    with psycopg.connect(pg_url) as conn, pytest.raises(PgCronError, match="there is no current job here"):
        current_job.complete(conn)


def turn_until_ended(app: PgCron, handle: Any) -> None:
    worker = Worker(app, app._open_store("pgcron worker", size=1), card())
    worker.store.register(worker.card)

    def is_over() -> bool:
        worker.claim_soon()
        worker.step()
        return handle.job().is_final and worker.is_idle()

    try:
        eventually(is_over, within=20)
    finally:
        worker.slots.close()
        worker.store.close()


def take_suspect(app: PgCron) -> Job:
    second = card()
    app.store.register(second)
    job = app.store.claim_suspect(second.id, uuid.uuid4(), ("*",), list(app.tasks))
    assert job is not None
    return job
