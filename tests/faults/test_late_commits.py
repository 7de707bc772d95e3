"""Rows 3, 5 and 45 of the fault catalogue: statements that are committed after their worker has given them up.

A backend is stopped, a synchronous standby stalls, or a network delivers late. Afterwards nothing is lost, nothing is
`running` that no worker runs, attempts are right, and no worker has ended.
"""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from late import How, Late
from servers import server
from support import eventually
from test_connection_rows import BACK, CALM, TROUBLE, backend, impatient_program
from test_time_rows import EACH_SECOND, assert_each_second_once, until_running
from workers import PATIENCE, QUICK, TASKS, Audit, Move, Queue, WorkerProcess, Workers

from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.pg.migrate import migrate
from pgcron_lite.pg.url import parse_url

CLAIM = "open_levels as materialized"
CLAIM_OF_SUSPECT = "where s.state = 'queued' and s.alone"
SETTLE = "insert into pgcron.history"
# The server shows the beginning of a statement only.
SETTLE_BEGINS = "with ended as materialized"
PUT_BACK = "with again as materialized"

SLOTS = 4


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    return impatient_program(tmp_path)


def enqueue(queue: Queue, count: int, seconds: float = 0.0) -> list[int]:
    """In one transaction, so that the first claim finds all of them."""
    return [row.id for row in queue.rows(
        "select pgcron.enqueue('fault_tasks.nap', json_build_object('seconds', %s::float8)) as id"
        " from generate_series(1, %s)",
        seconds, count,
    )]


def running(queue: Queue) -> int:
    return int(queue.rows("select count(*) from pgcron.jobs where state = 'running'")[0].count)


def each_was_done_once(queue: Queue, jobs: Sequence[int], worker: WorkerProcess) -> None:
    __tracebackhide__ = True
    queue.until_all_ended(within=2 * PATIENCE)
    rows = queue.rows("select id, state, attempt, crashes, errors from pgcron.history where id = any(%s)", list(jobs))
    assert len(rows) == len(jobs)
    assert [row for row in rows if (row.state, row.attempt, row.crashes, row.errors) != ("done", 1, 0, [])] == []
    begun = Counter(entry["job"] for entry in queue.entries(what="begin"))
    assert {begun[job] for job in jobs} == {1}
    assert "the outcome is dropped" not in worker.log
    assert "declared dead" not in worker.log
    assert worker.stop() == 0


def most_running(moves: Sequence[Move]) -> int:
    """How many jobs were running at the same time."""
    counts = [0]
    for move in sorted(moves, key=lambda move: move.at):
        counts.append(counts[-1] + (move.after == "running") - (move.before == "running"))
    return max(counts)


# The claim


@pytest.mark.row(3)
@pytest.mark.row(45)
def test_jobs_that_a_frozen_backend_claims_late_are_run(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path
) -> None:
    worker = workers.start(env=CALM, program=impatient, slots=SLOTS)
    queue.until(queue.enqueue("nap"), "done")
    frozen = backend(queue, "pgcron worker")
    os.kill(frozen, signal.SIGSTOP)
    try:
        jobs = enqueue(queue, 4 * SLOTS, seconds=2.0)
        # By another connection, after the guard has cut the first.
        eventually(lambda: running(queue) == SLOTS, PATIENCE)
    finally:
        os.kill(frozen, signal.SIGCONT)

    each_was_done_once(queue, jobs, worker)
    # The late claim has taken jobs beside those that ran.
    assert most_running(audit.check()) > SLOTS


@pytest.mark.row(3)
@pytest.mark.parametrize("how", ["held", "open"])
def test_jobs_of_a_claim_that_the_network_delivers_late_are_run(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path, how: How
) -> None:
    jobs = enqueue(queue, 4 * SLOTS, seconds=2.0)
    with Late(queue.url, CLAIM, how, queue.rows) as late:
        worker = workers.start(url=late.url, env=CALM, program=impatient, slots=SLOTS)
        eventually(lambda: running(queue) == SLOTS, PATIENCE)
        assert late.has_tripped.is_set()

        late.go_on()

        each_was_done_once(queue, jobs, worker)
    assert most_running(audit.check()) > SLOTS


@pytest.mark.row(3)
def test_a_suspect_whose_claim_is_committed_late_is_run_and_blamed_for_nothing(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path
) -> None:
    jobs = enqueue(queue, 1)
    queue.rows("update pgcron.jobs set alone = true")
    with Late(queue.url, CLAIM_OF_SUSPECT, "open", queue.rows) as late:
        worker = workers.start(url=late.url, env=CALM, program=impatient, slots=SLOTS)
        # Others are run meanwhile, and its jobs were asked for in vain.
        eventually(late.is_given_up.is_set, PATIENCE)
        others = enqueue(queue, 1)
        queue.until(others[0], "done")

        late.go_on()

        each_was_done_once(queue, jobs + others, worker)
    audit.check()


@pytest.fixture
def synchronous_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server whose commits wait for a standby, but for those of the migration."""
    with server(tmp_path / "postgres", max_connections="50", wal_level="replica", max_wal_senders="4") as own:
        migrate(parse_url(own.url, application="pgcron tests"))
        yield own


@pytest.fixture
def standby(synchronous_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[int]:
    """The process id of a synchronous standby: a program of PostgreSQL that receives and confirms the log."""
    received = tmp_path / "log"
    received.mkdir()
    program = synchronous_server.bin_directory / "pg_receivewal"
    target = f"{synchronous_server.url}?application_name=standby"
    with (tmp_path / "pg_receivewal.log").open("wb") as output, subprocess.Popen(
        [program, "-D", received, "-d", target, "--synchronous", "--no-loop"], stdout=output, stderr=output
    ) as receiver:
        try:
            with psycopg.connect(synchronous_server.url, autocommit=True) as conn:
                conn.execute("alter system set synchronous_standby_names = 'standby'")
                conn.execute("select pg_reload_conf()")
                asked = "select from pg_stat_replication where sync_state = 'sync'"
                eventually(lambda: conn.execute(asked).fetchall(), PATIENCE)
            yield receiver.pid
        finally:
            receiver.kill()


@pytest.mark.row(3)
def test_jobs_whose_claims_wait_for_a_standby_that_stalls_are_run(
    synchronous_server: EmbeddedPostgres, standby: int, queue_of_its_own: Queue, workers_of_its_own: Workers,
    impatient: Path,
) -> None:
    queue = queue_of_its_own
    worker = workers_of_its_own.start(env=CALM, program=impatient, slots=SLOTS)
    queue.until(queue.enqueue("nap"), "done")
    # Ours alone wait for nobody.
    queue.rows("set synchronous_commit = local")
    os.kill(standby, signal.SIGSTOP)
    try:
        jobs = enqueue(queue, 4 * SLOTS, seconds=0.5)
        # It has been given up, and a turn has gone well after that, which begins with the question for its jobs.
        eventually(lambda: BACK in worker.log, PATIENCE)
        waiting = "select pid from pg_stat_activity where application_name ~ '^pgcron' and wait_event = 'SyncRep'"
        assert queue.rows(waiting)
        assert running(queue) == 0
    finally:
        os.kill(standby, signal.SIGCONT)

    each_was_done_once(queue, jobs, worker)


@pytest.fixture
def own_server(synchronous_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """That of `queue_of_its_own`."""
    return synchronous_server


# Every other statement


@pytest.mark.row(5)
@pytest.mark.row(45)
@pytest.mark.parametrize("how", ["frozen", "open"])
@pytest.mark.parametrize("statement", [SETTLE, "ticks_want_watching", "set beat = beat + 1"], ids=[
    "settle", "look", "beat",
])
def test_a_statement_that_is_committed_late_loses_and_doubles_nothing(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path, statement: str, how: How
) -> None:
    jobs = enqueue(queue, SLOTS)
    with Late(queue.url, statement, how, queue.rows) as late:
        worker = workers.start(url=late.url, env=CALM, program=impatient, slots=SLOTS)
        eventually(late.has_tripped.is_set, PATIENCE)
        eventually(late.is_given_up.is_set, PATIENCE)
        jobs += enqueue(queue, SLOTS)
        late.go_on()

        each_was_done_once(queue, jobs, worker)
    audit.check()


@pytest.mark.row(5)
@pytest.mark.row(45)
@pytest.mark.parametrize("how", ["frozen", "open"])
def test_a_retry_that_is_committed_late_is_one_retry(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path, how: How
) -> None:
    job = queue.enqueue("err", what="huge text", max_attempts=2)
    with Late(queue.url, PUT_BACK, how, queue.rows) as late:
        worker = workers.start(url=late.url, env=CALM, program=impatient, slots=SLOTS)
        eventually(late.has_tripped.is_set, PATIENCE)
        eventually(lambda: TROUBLE in worker.log, PATIENCE)
        late.go_on()

        ended = queue.until(job, "failed", within=2 * PATIENCE)

        assert (ended.attempt, ended.crashes) == (2, 0)
        assert [error["attempt"] for error in ended.errors] == [1, 2]
        assert "the outcome is dropped" not in worker.log
        assert worker.stop() == 0
    audit.check()


def pipelining(queue: Queue) -> list[Any]:
    """Return the worker's two connections, in the order of their age, once the second has written outcomes."""
    found = queue.rows(
        """
        select pid, query from pg_stat_activity
        where application_name = 'pgcron worker' and datname = current_database()
        order by backend_start
        """
    )
    return found if len(found) == 2 and found[1].query.strip().startswith(SETTLE_BEGINS) else []


@pytest.mark.row(3)
@pytest.mark.row(45)
@pytest.mark.parametrize("whose", ["the claim's", "the outcomes'"])
def test_a_backend_that_is_frozen_in_full_swing_loses_and_doubles_nothing(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path, whose: str
) -> None:
    worker = workers.start(env=CALM, program=impatient, slots=SLOTS)
    queue.until(queue.enqueue("nap"), "done")
    # Outcomes are written on the listener's connection, the second, when the worker has found many at one look. That
    # depends on the machine, so there is work until it does.
    jobs, ends = enqueue(queue, 8000), time.monotonic() + PATIENCE
    while not (both := pipelining(queue)):
        if time.monotonic() > ends:
            pytest.fail("the worker never wrote outcomes and claimed at the same time")
        if queue.rows("select count(*) from pgcron.jobs")[0].count < 3000:
            jobs += enqueue(queue, 8000)
    frozen = both[0 if whose == "the claim's" else 1].pid

    os.kill(frozen, signal.SIGSTOP)
    try:
        eventually(lambda: TROUBLE in worker.log, PATIENCE)
    finally:
        os.kill(frozen, signal.SIGCONT)

    each_was_done_once(queue, jobs, worker)
    audit.check()


@pytest.mark.row(2)
@pytest.mark.row(45)
@pytest.mark.parametrize("how", ["frozen", "open"])
def test_a_rescue_that_is_committed_late_rescues_once(
    queue: Queue, workers: Workers, audit: Audit, impatient: Path, how: How
) -> None:
    victim = workers.start(env=CALM)
    job = queue.enqueue("nap", seconds=60)
    queue.begun(job)
    with Late(queue.url, "with silent as (", how, queue.rows) as late:
        reaper = workers.start(url=late.url, env=CALM, program=impatient, queues=["nothing"])
        victim.kill()
        eventually(late.has_tripped.is_set, PATIENCE)
        eventually(lambda: TROUBLE in reaper.log, PATIENCE)
        late.go_on()

        ended = queue.until(job, "queued")
        eventually(lambda: victim.pid not in queue.workers(), PATIENCE)

        assert (ended.attempt, ended.crashes, ended.alone) == (0, 0, True)
        assert audit.of(job) == ["queued", "running", "queued"]
        assert reaper.stop() == 0


@pytest.mark.row(45)
def test_a_beat_that_hangs_within_its_transaction_keeps_no_other_worker_from_being_rescued(
    queue: Queue, workers: Workers, impatient: Path
) -> None:
    victim = workers.start(env=CALM)
    job = queue.enqueue("nap", seconds=60)
    queue.begun(job)
    with psycopg.connect(queue.url) as hanging:
        # As the backend of another dead worker that is frozen in the middle of its beat.
        other = workers.start(env=CALM, queues=["nothing"])
        hanging.execute("update pgcron.workers set beat = beat where pid = %s", [other.pid])
        other.kill()
        victim.kill()
        reaper = workers.start(env=CALM, queues=["nothing"])

        queue.until(job, "queued")

        assert TROUBLE not in reaper.log
        assert other.pid in queue.workers()
    eventually(lambda: other.pid not in queue.workers(), PATIENCE)


@pytest.mark.row(7)
@pytest.mark.row(45)
@pytest.mark.parametrize("how", ["frozen", "open"])
def test_a_new_identity_that_is_registered_late_is_the_one_its_worker_goes_on_under(
    queue: Queue, workers: Workers, impatient: Path, how: How
) -> None:
    with Late(queue.url, "with moved as", how, queue.rows, is_armed=False) as late:
        worker = workers.start(url=late.url, env=QUICK, program=impatient)
        # It has started for good, and would not register once more by itself.
        queue.until(queue.enqueue("nap"), "done")
        worker.freeze()
        reaper = workers.start(env=QUICK, queues=["nothing"])
        eventually(lambda: worker.pid not in queue.workers(), PATIENCE)
        assert reaper.stop() == 0
        late.is_armed = True
        worker.thaw()
        eventually(late.has_tripped.is_set, PATIENCE)
        eventually(late.is_given_up.is_set, PATIENCE)
        if how == "frozen":
            eventually(lambda: worker.pid in queue.workers(), PATIENCE)
        held_up = late.backend

        late.go_on()
        # It has run the statement, and heard that its client is gone.
        eventually(lambda: not queue.rows("select from pg_stat_activity where pid = %s", held_up), PATIENCE)
        eventually(lambda: worker.pid in queue.workers(), PATIENCE)
        job = queue.enqueue("nap")

        assert queue.until(job, "done").attempt == 1
        assert len(queue.rows("select from pgcron.workers where pid = %s", worker.pid)) == 1
        assert worker.log.count("has been declared dead") == 1
        assert worker.stop() == 0


@pytest.mark.row(45)
@pytest.mark.parametrize(("statement", "how"), [
    *((statement, how) for how in ("frozen", "open")
      for statement in ("where s.plan_at <=", "from pgcron.admit(", "with over as materialized")),
    # It has nothing behind it that would commit it.
    ("COMMIT", "frozen"), ("COMMIT", "held"),
])
def test_a_statement_about_ticks_that_is_committed_late_loses_and_doubles_none(
    queue: Queue, workers: Workers, tmp_path: Path, statement: str, how: How
) -> None:
    program = tmp_path / "time_tasks.py"
    program.write_text(
        "import runpy\n"
        "from pgcron_lite.worker import process\n"
        "process.HANG_SECONDS = 2.0\n"
        f"runpy.run_path({str(TASKS.with_name('time_tasks.py'))!r}, run_name='__main__')\n"
    )
    with Late(queue.url, statement, how, queue.rows) as late:
        env = {**CALM, "FAULT_SCHEDULES": json.dumps([EACH_SECOND])}
        worker = workers.start(url=late.url, env=env, program=program, ready=False)
        eventually(late.has_tripped.is_set, PATIENCE)
        eventually(lambda: TROUBLE in worker.log, PATIENCE)
        late.go_on()
        until_running(queue, 2)

        assert_each_second_once(queue)

        assert worker.stop() == 0
    assert queue.rows("select from pgcron.jobs where state = 'running'") == []
