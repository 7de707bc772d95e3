"""Rows 25-39 of the fault catalogue: tasks that do what tasks should not, in processes that must go on.

Rows 23 and 24, a task that hangs for ever and one that leaks memory, are the matter of `timeout` and of a limit of
jobs per process, which this version does not have.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import eventually
from workers import PATIENCE, QUICK, SLOW, Audit, Queue, Workers

both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])


@pytest.mark.row(25)
@both_kinds
def test_a_job_that_closes_every_descriptor_hurts_nobody_for_long(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    # Sockets, pipes, the event loop's own: the process recovers, or dies of it and its supervisor starts another.
    workers.start(processes=2, gevent=gevent)
    vandal = queue.enqueue("close_descriptors")
    queue.begun(vandal)

    others = [queue.enqueue("nap") for _ in range(8)]

    for job in others:
        assert queue.until(job, "done", within=60).errors == []
    queue.until(vandal, "done", "failed", within=60)
    audit.check()


@pytest.mark.row(25)
@both_kinds
def test_a_job_that_changes_the_process_cannot_keep_it_from_working_and_stopping(
    queue: Queue, workers: Workers, tmp_path: Path, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent)
    queue.until(queue.enqueue("change_the_process", folder=str(tmp_path)), "done")
    after = queue.enqueue("nap", seconds=0.5)
    queue.until(after, "done")

    assert worker.stop() == 0

    assert queue.workers() == {}


@pytest.mark.row(26)
@both_kinds
@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt", "BaseException", "GeneratorExit", "GreenletExit"])
def test_whatever_a_task_raises_is_a_failure_of_its_job_and_of_nothing_else(
    queue: Queue, workers: Workers, gevent: bool, what: str
) -> None:
    worker = workers.start(gevent=gevent, slots=1)

    job = queue.enqueue("throw", what=what, max_attempts=1)

    assert what in queue.until(job, "failed").errors[-1]["error"]
    assert queue.until(queue.enqueue("nap"), "done").attempt == 1
    assert worker.stop() == 0


@pytest.mark.row(26)
def test_a_timeout_of_gevent_that_a_task_forgot_hits_no_other_job_and_no_slot(queue: Queue, workers: Workers) -> None:
    worker = workers.start(gevent=True, slots=1)
    queue.until(queue.enqueue("forget_a_timeout", seconds=0.3), "done")
    # It goes off while the slot waits for its next job.
    eventually(lambda: queue.workers()[worker.pid].beat >= 3, PATIENCE)

    assert queue.until(queue.enqueue("nap"), "done").errors == []


@pytest.mark.row(26)
def test_a_task_that_kills_every_greenlet_kills_no_slot(queue: Queue, workers: Workers) -> None:
    workers.start(gevent=True, slots=3)
    # All three slots exist and wait.
    for job in [queue.enqueue("nap", seconds=0.3) for _ in range(3)]:
        queue.until(job, "done")

    queue.enqueue("kill_greenlets")

    for job in [queue.enqueue("nap", seconds=0.1) for _ in range(6)]:
        queue.until(job, "done")
    # All three are there still: three jobs begin before one of them has ended.
    together = [queue.enqueue("nap", seconds=3) for _ in range(3)]
    for job in together:
        queue.begun(job)
    assert [queue.entries(job, "end") for job in together] == [[], [], []]


@pytest.mark.row(27)
@pytest.mark.parametrize(
    ("how", "gevent"),
    [(how, gevent) for how in ("os._exit", "close", "sys.exit", "raise") for gevent in (False, True)]
    # A forked child that waits under gevent runs its parent's other greenlets as well: a job there starts a new
    # program (subprocess, multiprocessing's spawn) and does not fork.
    + [("wait for SIGTERM", False)],
)
def test_a_job_that_forks_leaves_its_parent_and_the_parents_connections_alone(
    queue: Queue, workers: Workers, audit: Audit, how: str, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent, env=SLOW)
    before = worker.children()

    job = queue.enqueue("fork", how=how)

    ended = queue.until(job, "done")
    expected = {"sys.exit": 3 << 8, "raise": 1 << 8, "wait for SIGTERM": int(signal.SIGTERM)}
    assert int(ended.result.strip('"')) == expected.get(how, 0)
    assert audit.of(job) == ["queued", "running", "done"]
    assert worker.children() == before
    queue.until(queue.enqueue("nap"), "done")
    assert "not available" not in worker.log
    assert worker.stop() == 0


@pytest.mark.row(28)
@both_kinds
def test_a_thread_that_a_task_left_behind_does_not_hold_up_the_end(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent)
    queue.until(queue.enqueue("leave_a_thread_behind"), "done")
    asked_at = time.monotonic()

    assert worker.stop() == 0

    assert time.monotonic() - asked_at < 10
    assert "tasks left threads running that do not end: left-behind" in worker.log


@pytest.mark.row(29)
@pytest.mark.row(30)
@pytest.mark.row(31)
@pytest.mark.parametrize(
    "what",
    ["nul", "surrogate", "huge text", "deep chain", "deep recursion", "str raises", "str exits", "str lies", "loop"],
)
def test_an_error_that_cannot_be_told_is_told_as_well_as_it_can_be(queue: Queue, workers: Workers, what: str) -> None:
    worker = workers.start(slots=1, env=SLOW)

    job = queue.enqueue("err", what=what, max_attempts=1)

    ended = queue.until(job, "failed")
    (error,) = ended.errors
    assert error["error"]
    assert len(error["error"]) + len(error.get("traceback", "")) < 64_000
    assert queue.until(queue.enqueue("nap"), "done").attempt == 1
    assert worker.is_alive


@pytest.mark.row(33)
def test_a_process_that_may_start_no_threads_ends_with_a_sentence_and_harms_no_job(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    job = queue.enqueue("nap")

    worker = workers.start(env={**SLOW, "FAULTS_THREADS": "slots"}, ready=False)

    assert worker.exit_code() == 1
    assert "may not start a single thread for its jobs" in worker.log
    left = queue.job(job)
    assert (left.state, left.attempt, left.errors) == ("queued", 0, [])
    assert queue.workers() == {}
    audit.check()


@pytest.mark.row(33)
def test_a_process_that_cannot_even_start_its_heart_says_so_and_leaves_the_table(
    queue: Queue, workers: Workers
) -> None:
    worker = workers.start(env={**SLOW, "FAULTS_THREADS": "none"}, ready=False)

    assert worker.exit_code() == 1
    assert "can't start new thread" in worker.log
    assert queue.workers() == {}


@pytest.mark.row(34)
@both_kinds
def test_descriptors_beyond_a_thousand_are_as_good_as_any(queue: Queue, workers: Workers, gevent: bool) -> None:
    worker = workers.start(gevent=gevent, env={**QUICK, "FAULTS_OPEN_FILES": "1200"})

    job = queue.enqueue("nap", seconds=0.2)

    assert queue.until(job, "done").attempt == 1
    assert "not available" not in worker.log
    assert worker.stop() == 0


GEVENT_WAITS = """
import json, logging, sys, time
{imports}
from pgcron_lite import PgCron

app = PgCron("green")

@app.task
def ask(seconds):
    import psycopg, os
    with psycopg.connect(os.environ["PGCRON_DATABASE_URL"], autocommit=True) as conn:
        conn.execute("select pg_sleep(%s)", [seconds])

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    app.run_worker(**json.loads(sys.argv[1]))
"""


def green_script(folder: Path, imports: str) -> Path:
    script = folder / "green_script.py"
    script.write_text(GEVENT_WAITS.format(imports=imports))
    return script


@pytest.mark.row(35)
@pytest.mark.parametrize("imports", ["import psycopg", "import sqlalchemy.dialects.postgresql.psycopg"])
def test_run_worker_with_gevent_starts_over_patched_although_psycopg_was_imported_first(
    queue: Queue, workers: Workers, tmp_path: Path, imports: str
) -> None:
    workers.start(program=green_script(tmp_path, imports), gevent=True, slots=20, env=SLOW)
    queue.rows("select pgcron.enqueue('green_script.ask', '[0]')")
    queue.until_all_ended()

    # In one transaction, so that all of them are there when the first is claimed.
    queue.rows("select pgcron.enqueue('green_script.ask', '[0.2]') from generate_series(1, 20)")
    queue.until_all_ended()

    lasted = queue.rows(
        "select extract(epoch from max(finished_at) - min(claimed_at)) as s"
        " from pgcron.history where args::text = '[0.2]'"
    )[0].s
    # One after the other they would take 4 s.
    assert lasted < 1.5


@pytest.mark.row(35)
def test_a_half_patched_process_refuses_to_work(queue: Queue, workers: Workers, tmp_path: Path) -> None:
    late = "import psycopg, gevent.monkey; gevent.monkey.patch_all()"

    worker = workers.start(program=green_script(tmp_path, late), ready=False, env=SLOW)

    assert worker.exit_code() == 1
    assert "gevent was patched after psycopg had been imported" in worker.log
    assert "--gevent" in worker.log
    assert queue.workers() == {}


@pytest.mark.row(35)
def test_a_program_without_a_file_cannot_start_over_and_says_what_to_type(queue: Queue, workers: Workers) -> None:
    program = "from pgcron_lite import PgCron; PgCron().run_worker(gevent=True)"

    answer = subprocess.run(
        [sys.executable, "-c", program], env=workers.environment(), capture_output=True, text=True, check=False
    )

    assert answer.returncode == 1
    assert "pgcron worker --gevent" in answer.stderr


@pytest.mark.row(36)
@pytest.mark.row(37)
def test_a_greenlet_killed_in_a_statement_leaves_no_stuck_connection_to_others(queue: Queue, workers: Workers) -> None:
    program = textwrap.dedent(
        """
        import gevent.monkey; gevent.monkey.patch_all()
        import os, time
        import gevent
        from pgcron_lite.errors import DatabaseUnavailable
        from pgcron_lite.pg.url import parse_url
        from pgcron_lite.pg.connection import Connection

        link = Connection(parse_url(os.environ["PGCRON_DATABASE_URL"], application="killed"), "pgcron")
        before = link.rows("select pg_backend_pid() as pid")[0].pid

        # Killed in the middle of a statement: the connection is not used again.
        asking = gevent.spawn(link.rows, "select pg_sleep(30)")
        gevent.sleep(0.3)
        asking.kill()
        assert link.rows("select pg_backend_pid() as pid")[0].pid != before

        # A deadline in the middle of a statement.
        try:
            with gevent.Timeout(0.3):
                link.rows("select pg_sleep(30)")
        except gevent.Timeout:
            pass
        assert link.rows("select 1 as one")[0].one == 1

        # Two greenlets on one connection take turns.
        began = time.monotonic()
        for job in gevent.joinall([gevent.spawn(link.rows, "select pg_sleep(0.2), 7 as seven") for _ in range(5)]):
            assert job.get()[0].seven == 7
        assert time.monotonic() - began >= 1.0
        link.close()
        print("well")
        """
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], env=workers.environment(), capture_output=True, text=True, check=False,
        timeout=60,
    )

    assert answer.stdout.strip() == "well", answer.stderr
    queue.rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'killed'")


@pytest.mark.row(38)
def test_a_worker_whose_heart_dies_finishes_what_it_has_and_ends_with_1(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    worker = workers.start(env={"PGCRON_LEASE": "6s", "PGCRON_POLL": "0.5s"})

    job = queue.enqueue("stop_the_heart")

    assert worker.exit_code() == 1
    assert "the heartbeat stopped" in worker.log
    assert audit.of(job) == ["queued", "running", "done"]
    assert queue.workers() == {}


@pytest.mark.row(38)
@both_kinds
def test_an_exception_thrown_into_every_thread_ends_a_worker_in_order(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    # The grace is longer than the time after which the watchdog ends a process without a pulse.
    worker = workers.start(gevent=gevent, grace="20s")
    long = queue.enqueue("nap", seconds=10)
    queue.begun(long)

    job = queue.enqueue("throw_into_all_threads")
    queue.until(job, "done")

    def has_hit() -> bool:
        if "the heartbeat stopped" in worker.log and "the guard of this worker's statements failed" in worker.log:
            return True
        # One that is thrown into a callback of gevent's hub ends there, and the thread goes on.
        queue.until(queue.enqueue("throw_into_all_threads"), "done", "queued")
        return False

    eventually(has_hit, PATIENCE)
    assert worker.exit_code() == 1
    assert "the heartbeat stopped" in worker.log
    assert "the guard of this worker's statements failed and continues" in worker.log
    assert "could run no Python" not in worker.log
    assert queue.state(job) == "done"
    assert queue.workers() == {}


@pytest.mark.row(39)
@both_kinds
def test_a_loop_that_is_stuck_shows_in_the_table_while_the_heart_beats(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent, env={"PGCRON_LEASE": "3s", "PGCRON_POLL": "0.5s"})

    queue.enqueue("nap", headers={"dawdle": "8"})

    stuck = eventually(lambda: (row := queue.workers()[worker.pid]).idle_loop > 2 and row, PATIENCE)
    assert stuck.beat > 0
    eventually(lambda: queue.workers()[worker.pid].beat > stuck.beat, PATIENCE)
    # It recovers when whatever held it up is over.
    eventually(lambda: queue.workers()[worker.pid].idle_loop < 2, PATIENCE)
    assert worker.stop() == 0


def test_the_environment_of_a_worker_is_not_that_of_the_test_run(workers: Workers) -> None:
    assert "PGCRON_TEST_PG" not in workers.environment()
    assert workers.environment()["PATH"] == os.environ["PATH"]
