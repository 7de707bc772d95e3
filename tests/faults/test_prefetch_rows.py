"""Rows 2, 4, 7, 10 and 53 once more, for workers that hold many jobs ahead and write many outcomes at once."""

import collections
import signal
import time
from collections.abc import Sequence

import pytest
from support import eventually
from tripwire import Tripwire
from workers import PATIENCE, QUICK, SLOW, Audit, Queue, WorkerProcess, Workers

from pgcron_lite.embedded import EmbeddedPostgres

both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])

FINISH = "insert into pgcron.history"
SLOTS = 4


def enqueue_many(queue: Queue, count: int, seconds: float = 0.0) -> list[int]:
    return [row.id for row in queue.rows(
        "select pgcron.enqueue('fault_tasks.nap', json_build_object('seconds', %s::float8)) as id"
        " from generate_series(1, %s)",
        seconds, count,
    )]


def times_begun(queue: Queue, jobs: Sequence[int]) -> collections.Counter[int]:
    """How often each job has been entered."""
    begun = collections.Counter(entry["job"] for entry in queue.entries(what="begin"))
    return collections.Counter({job: begun[job] for job in jobs})


def all_done(queue: Queue, jobs: Sequence[int]) -> None:
    """Each has ended well, with its first attempt, and blamed for nothing."""
    __tracebackhide__ = True
    queue.until_all_ended(within=2 * PATIENCE)
    rows = queue.rows("select id, state, attempt, crashes, errors from pgcron.history where id = any(%s)", list(jobs))
    assert len(rows) == len(jobs)
    assert [row for row in rows if (row.state, row.attempt, row.crashes, row.errors) != ("done", 1, 0, [])] == []


def holds_more_than_it_runs(queue: Queue) -> bool:
    [held] = queue.rows("select count(*) from pgcron.jobs where state = 'running'")
    return bool(held.count > 2 * SLOTS)


def stop_and_have_others_finish(
    queue: Queue, workers: Workers, first: WorkerProcess, jobs: Sequence[int], gevent: bool
) -> None:
    """What `first` held goes back unharmed, and nothing runs twice."""
    __tracebackhide__ = True
    assert first.stop() == 0
    assert queue.rows("select from pgcron.jobs where state = 'running'") == []
    [left] = queue.rows("select count(*) from pgcron.jobs where state = 'queued' and attempt = 0 and not alone")
    assert left.count > 0
    workers.start(slots=SLOTS, gevent=gevent, env=SLOW)
    all_done(queue, jobs)
    assert set(times_begun(queue, jobs).values()) == {1}


@pytest.mark.row(2)
@both_kinds
def test_a_worker_killed_with_many_jobs_in_hand_loses_none_and_blames_none(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    before, killer, after = enqueue_many(queue, 600), queue.enqueue("die_at_first", deaths=1), enqueue_many(queue, 600)
    victim = workers.start(slots=SLOTS, gevent=gevent, ready=False)
    victim.exit_code()

    [held] = queue.rows("select count(*) from pgcron.jobs where state = 'running'")
    assert held.count > SLOTS
    workers.start(slots=SLOTS, gevent=gevent)

    all_done(queue, [*before, killer, *after])
    # What had begun and was not written runs again; what had not begun runs for the first time.
    assert set(times_begun(queue, after).values()) <= {1, 2}
    audit.check()


@pytest.mark.row(4)
@both_kinds
def test_a_worker_killed_between_many_bodies_and_their_completion_leaves_each_done_once(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    with Tripwire(queue.url, FINISH, "before the statement", lambda: victim.send(signal.SIGKILL)) as wire:
        victim = workers.start(url=wire.url, slots=SLOTS, gevent=gevent)
        # In one transaction, so that the first claim finds as many as it can take.
        jobs = enqueue_many(queue, 200)
        assert victim.exit_code() == -signal.SIGKILL
    ended_unwritten = {entry["job"] for entry in queue.entries(what="end")}
    assert ended_unwritten

    workers.start(slots=SLOTS, gevent=gevent)

    all_done(queue, jobs)
    assert {times_begun(queue, [job])[job] for job in ended_unwritten} == {2}
    moves = audit.check()
    assert collections.Counter(move.job for move in moves if move.after == "done") == dict.fromkeys(jobs, 1)


@pytest.mark.row(10)
@both_kinds
def test_a_worker_told_to_stop_hands_back_what_it_holds_and_nothing_runs_twice(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    jobs = enqueue_many(queue, 4000, seconds=0.002)
    first = workers.start(slots=SLOTS, gevent=gevent, env=SLOW)
    eventually(lambda: holds_more_than_it_runs(queue), PATIENCE)

    stop_and_have_others_finish(queue, workers, first, jobs, gevent)
    audit.check()


def is_in_full_swing(queue: Queue) -> bool:
    """Hundreds have passed, and hundreds are on their way: outcomes are written while the next are claimed."""
    [passed] = queue.rows("select count(*) from pgcron.history")
    return bool(passed.count > 2000)


@pytest.mark.row(4)
@both_kinds
def test_a_worker_killed_in_full_swing_loses_nothing_and_leaves_each_done_once(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    jobs = enqueue_many(queue, 12_000)
    victim = workers.start(slots=SLOTS, gevent=gevent, ready=False)
    eventually(lambda: is_in_full_swing(queue), PATIENCE)
    victim.send(signal.SIGKILL)
    assert victim.exit_code() == -signal.SIGKILL
    [unfinished] = queue.rows("select count(*) from pgcron.jobs")
    assert unfinished.count > 0

    workers.start(slots=SLOTS, gevent=gevent)

    all_done(queue, jobs)
    assert set(times_begun(queue, jobs).values()) <= {1, 2}
    moves = audit.check()
    assert collections.Counter(move.job for move in moves if move.after == "done") == dict.fromkeys(jobs, 1)


@pytest.mark.row(10)
@both_kinds
def test_a_worker_told_to_stop_in_full_swing_runs_nothing_twice(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    jobs = enqueue_many(queue, 12_000)
    first = workers.start(slots=SLOTS, gevent=gevent, env=SLOW, ready=False)
    eventually(lambda: is_in_full_swing(queue), PATIENCE)

    stop_and_have_others_finish(queue, workers, first, jobs, gevent)
    audit.check()


@pytest.mark.row(7)
@both_kinds
def test_a_worker_that_was_frozen_with_many_jobs_in_hand_begins_none_that_others_have_run(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    jobs = enqueue_many(queue, 1500, seconds=0.005)
    frozen = workers.start(slots=SLOTS, gevent=gevent, env=QUICK)
    eventually(lambda: holds_more_than_it_runs(queue), PATIENCE)
    frozen.freeze()
    workers.start(slots=SLOTS, gevent=gevent, env=QUICK)
    queue.until_all_ended(within=2 * PATIENCE)

    thawed_at = time.clock_gettime(time.CLOCK_MONOTONIC)
    frozen.thaw()
    queue.until(queue.enqueue("nap"), "done")
    assert frozen.stop() == 0

    all_done(queue, jobs)
    # Each slot may have been frozen on the threshold of one.
    late = [entry for entry in queue.entries(what="begin") if entry["pid"] == frozen.pid and entry["at"] > thawed_at]
    assert len({entry["job"] for entry in late} & set(jobs)) <= SLOTS
    assert max(times_begun(queue, jobs).values()) <= 2
    audit.check()


@pytest.mark.row(53)
def test_a_server_that_restarts_in_the_middle_of_many_jobs_costs_none_of_them(
    queue_of_its_own: Queue, workers_of_its_own: Workers, own_server: EmbeddedPostgres
) -> None:
    queue = queue_of_its_own
    jobs = enqueue_many(queue, 8000, seconds=0.001)
    workers_of_its_own.start(slots=SLOTS, env=SLOW)

    for mode in ("immediate", "fast"):
        eventually(lambda: holds_more_than_it_runs(queue), PATIENCE)
        own_server.restart(mode)

    # Under a lease of a minute: the worker finds its own jobs again, nobody rescues them.
    all_done(queue, jobs)
    assert set(times_begun(queue, jobs).values()) == {1}
