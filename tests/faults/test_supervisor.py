"""Several worker processes under one: the death of a child, of the parent, and the end of both."""

import os
import signal

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


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
