"""Rows 9-16 of the fault catalogue and the deploy: a worker that is told to stop loses nothing and costs nothing."""

import json
import os
import signal
import time
from pathlib import Path

import psycopg
import pytest
from support import eventually
from workers import PATIENCE, SLOW, Audit, Queue, Workers

from pgcron_lite.embedded import EmbeddedPostgres

SHELL = Path(__file__).with_name("shell.py")

both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])


@pytest.mark.row(9)
@both_kinds
def test_an_idle_worker_ends_when_the_signal_comes_and_not_at_its_next_poll(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent, env={"PGCRON_POLL": "60s"})
    asked_at = time.monotonic()

    assert worker.stop() == 0

    # Less than a second on a quiet machine, and the poll would have taken a minute.
    assert time.monotonic() - asked_at < 5
    assert queue.workers() == {}


@pytest.mark.row(10)
@both_kinds
def test_a_job_shorter_than_the_grace_is_finished_and_what_has_not_begun_goes_back(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent, slots=1)
    running = queue.enqueue("nap", seconds=3)
    queue.begun(running)
    waiting = queue.enqueue("nap")

    assert worker.stop() == 0

    assert queue.job(running).state == "done"
    left = queue.job(waiting)
    assert (left.state, left.attempt, left.errors) == ("queued", 0, [])
    assert queue.workers() == {}
    audit.check()


@pytest.mark.row(11)
@both_kinds
def test_a_job_longer_than_the_grace_is_handed_back_unharmed_and_runs_again_soon(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent, grace="1s", env=SLOW)
    job = queue.enqueue("once", seconds=4, max_attempts=1)
    queue.begun(job)

    assert worker.stop() == 0

    left = queue.job(job)
    assert (left.state, left.attempt, left.crashes, left.errors) == ("queued", 0, 0, [])
    # Not before the process is surely gone, so that the two runs do not overlap.
    assert left.execute_after > audit.moves()[-1].at
    assert f"once#{job} (attempt 1/1) did not end within the grace" in worker.log
    workers.start(gevent=gevent, env=SLOW)
    queue.begun(job, times=2)
    assert queue.until(job, "done").attempt == 1
    assert len(queue.entries(job, "end")) == 1
    audit.check()


@pytest.mark.row(11)
def test_a_living_worker_takes_over_what_was_handed_back_within_two_seconds(queue: Queue, workers: Workers) -> None:
    old = workers.start(grace="0.5s", env=SLOW)
    job = queue.enqueue("nap", seconds=60)
    queue.begun(job)
    new = workers.start(env=SLOW)

    assert old.stop() == 0
    ended_at = time.monotonic()

    _, again = queue.begun(job, times=2)
    assert again["pid"] == new.pid
    # Two seconds are published; the rest is this machine's.
    assert again["at"] - ended_at < 2 + 3


@pytest.mark.row(12)
@both_kinds
def test_three_sigterms_in_a_row_are_one(queue: Queue, workers: Workers, audit: Audit, gevent: bool) -> None:
    worker = workers.start(gevent=gevent)
    job = queue.enqueue("nap", seconds=3)
    queue.begun(job)

    for _ in range(3):
        worker.terminate()
        time.sleep(0.03)

    assert worker.exit_code() == 0
    assert audit.of(job) == ["queued", "running", "done"]
    assert worker.log.count("stopping (SIGTERM)") == 1


@pytest.mark.row(14)
def test_a_second_ctrl_c_hands_back_at_once(queue: Queue, workers: Workers) -> None:
    worker = workers.start(env=SLOW)
    job = queue.enqueue("once", seconds=60, max_attempts=1)
    queue.begun(job)

    worker.send(signal.SIGINT)
    eventually(lambda: "Ctrl-C again hands it back now" in worker.log, PATIENCE)
    worker.send(signal.SIGINT)

    assert worker.exit_code() == 130
    left = queue.job(job)
    assert (left.state, left.attempt, left.errors) == ("queued", 0, [])


@pytest.mark.row(15)
def test_a_signal_before_the_database_answers_ends_the_start(queue: Queue, workers: Workers) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/postgres"
    worker = workers.start(url=nowhere, ready=False)
    eventually(lambda: "waiting for the database" in worker.log, PATIENCE)

    assert worker.stop() == 0

    assert "stopped before the database was available" in worker.log


@pytest.mark.row(15)
def test_a_signal_at_any_moment_of_the_start_leaves_no_half_registered_worker(queue: Queue, workers: Workers) -> None:
    # From the first line of Python to the first claim: wherever it hits, nothing stays behind.
    starts = [workers.start(ready=False) for _ in range(6)]
    for place, worker in enumerate(starts):
        time.sleep(0.1 * (place > 0))
        worker.terminate()

    codes = [worker.exit_code() for worker in starts]

    # Before Python has our handler the signal kills, and nothing had begun.
    assert set(codes) <= {0, -signal.SIGTERM}
    assert queue.workers() == {}


@pytest.mark.row(16)
def test_a_signal_while_the_database_is_down_still_ends_the_worker_within_its_grace(
    queue_of_its_own: Queue, workers_of_its_own: Workers, own_server: EmbeddedPostgres
) -> None:
    worker = workers_of_its_own.start(grace="2s")
    job = queue_of_its_own.enqueue("nap", seconds=60)
    queue_of_its_own.begun(job)
    own_server.stop("immediate")
    asked_at = time.monotonic()

    worker.terminate()

    assert worker.exit_code() == 0
    assert time.monotonic() - asked_at < 2 + 10
    assert "could not hand back" in worker.log
    own_server.start()
    assert queue_of_its_own.state(job) == "running"
    workers_of_its_own.start()
    queue_of_its_own.begun(job, times=2)


def test_a_deploy_with_jobs_in_flight_loses_nothing_and_spends_nothing(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    old = [workers.start(), workers.start(gevent=True)]
    short = [queue.enqueue("nap", seconds=0.3) for _ in range(30)]
    long = [queue.enqueue("once", seconds=1, max_attempts=1) for _ in range(4)]
    foreign = queue.rows("select pgcron.enqueue('of_a_newer_version') as id")[0].id
    queue.begun(long[0])

    new = [workers.start(ready=False), workers.start(ready=False, gevent=True)]
    for worker in old:
        worker.terminate()
        worker.terminate()
    late = [queue.enqueue("nap") for _ in range(10)]

    assert [worker.exit_code() for worker in old] == [0, 0]
    for job in [*short, *long, *late]:
        ended = queue.until(job, "done", "failed")
        assert (ended.state, ended.attempt, ended.crashes, ended.errors) == ("done", 1, 0, [])
    audit.check()
    assert queue.state(foreign) == "queued"
    assert [worker.stop() for worker in new] == [0, 0]
    assert "of_a_newer_version" in "".join(w.log for w in [*old, *new])


def test_a_release_by_a_supervisor_with_many_processes_is_as_quiet(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    old = workers.start(processes=2)
    jobs = [queue.enqueue("nap", seconds=0.5) for _ in range(24)]
    queue.begun(jobs[0])
    new = workers.start(processes=2, ready=False)

    assert old.stop() == 0

    for job in jobs:
        assert queue.until(job, "done").errors == []
    audit.check()
    assert new.stop() == 0


def test_a_worker_outlives_the_shell_that_started_it(queue: Queue, workers: Workers) -> None:
    # `nohup`, a daemon tool, a container's first shell: only a supervisor is a parent to die with.
    shell = workers.start(program=SHELL, ready=False)
    pid = eventually(lambda: next(iter(queue.workers()), None), PATIENCE)
    try:
        shell.kill()
        after = queue.workers()[pid].beat + 3

        eventually(lambda: queue.workers()[pid].beat > after, PATIENCE)

        assert not queue.workers()[pid].stopping
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not queue.workers(), PATIENCE)


def test_a_stop_is_not_delayed_by_a_database_that_holds_a_lock(queue: Queue, workers: Workers) -> None:
    worker = workers.start(grace="1s")
    with psycopg.connect(queue.url) as admin:
        admin.execute("lock table pgcron.jobs in access exclusive mode")

        assert worker.stop() == 0


@pytest.mark.row(28)
def test_a_command_does_not_outlive_the_worker_that_handed_its_job_back(
    queue: Queue, workers: Workers, tmp_path: Path
) -> None:
    noted = tmp_path / "pid"
    worker = workers.start(grace="0.2s", env=SLOW)
    args = json.dumps({"command": f"sleep 300 & echo $! > {noted}; wait"})
    job_id = queue.rows("select pgcron.enqueue('pgcron.shell', %s) as id", args)[0].id
    eventually(lambda: noted.exists() and noted.read_text().strip())

    assert worker.stop() == 0

    assert queue.state(job_id) == "queued"
    eventually(lambda: not Path(f"/proc/{noted.read_text().strip()}").exists())
