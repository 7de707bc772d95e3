"""Several worker processes under one: the death of a child, of the parent, and the end of both."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import pytest
from support import eventually
from workers import PATIENCE, SLOW, Audit, Queue, Workers

both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])


@both_kinds
def test_the_jobs_of_a_child_that_is_killed_run_again_at_once_and_a_new_child_starts(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    parent = workers.start(processes=2, gevent=gevent, env=SLOW)
    children = parent.children()
    job = queue.enqueue("nap", seconds=2)
    (first,) = queue.begun(job)

    os.kill(first["pid"], signal.SIGKILL)

    second = queue.begun(job, times=2)[1]
    # A second is published, the lease is a minute.
    assert second["at"] - first["at"] < 15
    assert queue.until(job, "done").attempt == 1
    audit.check()
    eventually(lambda: len([c for c in parent.children() if c in queue.workers()]) == 2, PATIENCE)
    assert set(parent.children()) != set(children)
    assert "died (SIGKILL)" in parent.log
    assert parent.stop() == 0


@pytest.mark.row(13)
@both_kinds
def test_sigterm_to_the_parent_ends_everybody_once_and_well(queue: Queue, workers: Workers, gevent: bool) -> None:
    parent = workers.start(processes=2, gevent=gevent, env=SLOW)
    jobs = [queue.enqueue("nap", seconds=1) for _ in range(4)]
    queue.begun(jobs[0])

    assert parent.stop() == 0

    assert queue.workers() == {}
    assert parent.children() == []
    assert queue.until(jobs[0], "done").errors == []
    assert "died" not in parent.log


@pytest.mark.row(13)
def test_sigterm_to_every_process_at_once_is_the_same(queue: Queue, workers: Workers, audit: Audit) -> None:
    parent = workers.start(processes=2, env=SLOW)
    job = queue.enqueue("nap", seconds=1)
    queue.begun(job)

    for pid in [*parent.children(), parent.pid, *parent.children()]:
        os.kill(pid, signal.SIGTERM)

    assert parent.exit_code() == 0
    assert audit.of(job) == ["queued", "running", "done"]
    assert queue.workers() == {}
    assert "died" not in parent.log
    # One start per child: nobody was restarted on the way out.
    assert parent.log.count("queues:") == 2


@pytest.mark.row(15)
def test_sigterm_while_the_children_start_ends_everybody_well(queue: Queue, workers: Workers) -> None:
    parent = workers.start(processes=2, env=SLOW, ready=False)
    eventually(lambda: len(parent.children()) == 2, PATIENCE)

    assert parent.stop() == 0

    assert parent.children() == []
    assert queue.workers() == {}


def test_children_whose_parent_is_killed_finish_and_go(queue: Queue, workers: Workers, audit: Audit) -> None:
    parent = workers.start(processes=2, env=SLOW)
    job = queue.enqueue("nap", seconds=2)
    queue.begun(job)

    parent.kill()

    eventually(lambda: queue.workers() == {}, PATIENCE)
    assert audit.of(job) == ["queued", "running", "done"]


def test_children_that_have_just_begun_to_start_go_with_a_parent_that_is_killed(
    queue: Queue, workers: Workers
) -> None:
    parent = workers.start(processes=2, env=SLOW, ready=False)
    children = eventually(lambda: len(found := parent.children()) == 2 and found, PATIENCE)

    parent.kill()

    eventually(lambda: not any(map(is_running, children)), PATIENCE)


def test_a_child_that_dies_again_and_again_is_started_ever_more_slowly(queue: Queue, workers: Workers) -> None:
    parent = workers.start(processes=2, env=SLOW)

    poison = queue.enqueue("die")

    queue.until(poison, "failed", within=60)
    assert "the next one starts in 1 s" in parent.log
    assert parent.log.count("the next one starts in") >= 3
    assert parent.stop() == 0


@both_kinds
def test_a_child_that_a_task_ends_with_exit_code_0_has_crashed(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    parent = workers.start(processes=2, gevent=gevent, env=SLOW)

    poison = queue.enqueue("leave_quietly")

    ended = queue.until(poison, "failed", within=90)
    assert ended.errors[-1]["error"] == "the worker died 3 times while running this job alone"
    assert queue.until(queue.enqueue("nap"), "done").attempt == 1
    assert "died (exit code 0 without stopping)" in parent.log
    assert f"and held 1 job: fault_tasks.leave_quietly#{poison}; the next one starts in" in parent.log
    audit.check()
    assert parent.stop() == 0


def test_a_task_that_ends_its_child_while_all_stop_has_its_job_handed_back(queue: Queue, workers: Workers) -> None:
    parent = workers.start(processes=2, env=SLOW)
    job = queue.enqueue("nap_and_leave", seconds=1)
    queue.begun(job)

    assert parent.stop() == 0

    assert queue.state(job) == "queued"


@pytest.mark.parametrize("how", [{"drain": True}, {"max_seconds": 2}], ids=["drain", "max_seconds"])
def test_a_supervisor_whose_children_have_ended_by_themselves_ends_with_0(
    queue: Queue, workers: Workers, how: dict[str, object]
) -> None:
    jobs = [queue.enqueue("nap") for _ in range(6)]

    parent = workers.start(processes=2, env=SLOW, ready=False, **how)

    assert parent.exit_code() == 0
    assert {queue.state(job) for job in jobs} == {"done"}
    assert "died" not in parent.log


def test_children_that_cannot_start_make_a_supervisor_that_fails_and_goes_on_trying(
    empty_pg_url: str, workers: Workers
) -> None:
    parent = workers.start(processes=1 + 1, url=empty_pg_url, env=SLOW, ready=False)
    eventually(lambda: "died (exit code 1)" in parent.log and "that was starting" in parent.log, PATIENCE)

    assert parent.stop() in (0, 1)


@pytest.mark.usefixtures("sighup_stops_children")
def test_sighup_to_the_parent_ends_everybody_well(queue: Queue, workers: Workers) -> None:
    parent = workers.start(processes=2, env=SLOW)
    job = queue.enqueue("nap", seconds=1)
    queue.begun(job)

    parent.send(signal.SIGHUP)

    assert parent.exit_code() == 0
    assert queue.state(job) == "done"
    assert queue.workers() == {}


def test_a_second_ctrl_c_to_the_parent_hands_back_at_once(queue: Queue, workers: Workers) -> None:
    parent = workers.start(processes=2, env=SLOW)
    job = queue.enqueue("nap", seconds=60)
    queue.begun(job)

    parent.send(signal.SIGINT)
    eventually(lambda: "Ctrl-C again hands it back now" in parent.log, PATIENCE)
    parent.send(signal.SIGINT)

    assert parent.exit_code() == 130
    assert queue.state(job) == "queued"
    assert "did not end within the grace" not in parent.log.replace("nap", "").partition("killing it")[2]


@both_kinds
def test_a_child_that_is_frozen_when_all_stop_is_killed_after_the_grace(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    parent = workers.start(processes=2, env=SLOW, grace="0.5s", gevent=gevent)
    job = queue.enqueue("nap", seconds=60)
    (begun,) = queue.begun(job)
    os.kill(begun["pid"], signal.SIGSTOP)

    parent.terminate()

    assert parent.exit_code() == 1
    assert f"(pid {begun['pid']}) did not end within the grace of 0.5 s; killing it" in parent.log
    assert f"fault_tasks.nap#{job}" in parent.log
    assert not is_running(begun["pid"])
    assert queue.state(job) == "queued"
    assert queue.workers() == {}


@pytest.mark.skipif(sys.platform != "linux", reason="ptrace as Linux has it")
def test_a_child_that_even_the_kernel_cannot_end_holds_nobody_up(queue: Queue, workers: Workers) -> None:
    parent = workers.start(processes=2, env=SLOW, grace="0.5s")
    job = queue.enqueue("nap", seconds=60)
    (begun,) = queue.begun(job)
    os.kill(begun["pid"], signal.SIGSTOP)
    # As long as a tracer has not seen the end of a process, its parent does not.
    if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_SEIZE, begun["pid"], None, None) != 0:
        pytest.skip(f"may not trace: {os.strerror(ctypes.get_errno())}")

    try:
        parent.terminate()

        assert parent.exit_code() == 1
        assert f"worker process (pid {begun['pid']}) was killed and has not ended" in parent.log
        assert queue.state(job) == "queued"
        assert queue.workers() == {}
    finally:
        os.kill(begun["pid"], signal.SIGKILL)
        os.waitpid(begun["pid"], WAIT_FOR_TRACED)


PTRACE_SEIZE, WAIT_FOR_TRACED = 0x4206, 0x40000000


def test_the_death_of_a_child_that_works_under_a_new_name_is_seen_as_well(queue: Queue, workers: Workers) -> None:
    parent = workers.start(processes=2, slots=1)
    frozen = parent.children()[0]
    os.kill(frozen, signal.SIGSTOP)
    eventually(lambda: frozen not in queue.workers(), PATIENCE)
    os.kill(frozen, signal.SIGCONT)
    eventually(lambda: frozen in queue.workers(), PATIENCE)
    jobs = [queue.enqueue("nap", seconds=60) for _ in range(2)]
    begun = {e["pid"]: job for job in jobs for e in queue.begun(job)}

    os.kill(frozen, signal.SIGKILL)

    eventually(lambda: f"and held 1 job: fault_tasks.nap#{begun[frozen]}" in parent.log, PATIENCE)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@both_kinds
def test_a_child_that_a_task_replaces_by_another_program_is_replaced_by_a_worker(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    parent = workers.start(processes=2, gevent=gevent, env=SLOW)

    job = queue.enqueue("become_another_program")

    assert queue.until(job, "done", within=PATIENCE).attempt == 1
    assert "so a task has replaced it by another program; killing it" in parent.log
    eventually(lambda: len([c for c in parent.children() if c in queue.workers()]) == 2, PATIENCE)
    assert parent.stop() == 0


TWICE = """
import os, sys
from pgcron_lite import PgCron

app = PgCron("twice")
with open(os.environ["FAULTS_JOURNAL"], "a") as journal:
    print("begun", file=journal)
app.run_worker(drain=True)
app.run_worker(drain=True, processes=2)
"""


def test_a_program_that_runs_a_worker_twice_starts_no_processes_without_end(
    queue: Queue, workers: Workers, tmp_path: Path
) -> None:
    program = tmp_path / "twice.py"
    program.write_text(TWICE)

    twice = workers.start(program=program, ready=False)

    assert twice.exit_code() == 0
    # The program, and each of its two processes once.
    assert (tmp_path / "journal").read_text().count("begun") == 3
