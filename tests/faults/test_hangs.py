"""Jobs that keep the interpreter lock (GIL): their worker ends with tracebacks, and after a few deaths they fail."""

import signal
import time

import pytest
from support import eventually
from workers import PATIENCE, QUICK, Audit, Queue, Workers

from pgcron_lite.embedded import EmbeddedPostgres

both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])

# Far above the time after which a worker with the lease of QUICK is ended.
ENDLESS = 600


@pytest.mark.row(22)
@pytest.mark.timeout(240)
@both_kinds
def test_a_catastrophic_regular_expression_fails_in_the_end_and_all_other_jobs_are_done(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    parent = workers.start(processes=2, gevent=gevent)
    quick = [queue.enqueue("nap", seconds=0.1) for _ in range(8)]
    bad = queue.enqueue("backtrack", letters=60)
    quick += [queue.enqueue("nap", seconds=0.1) for _ in range(8)]

    ended = queue.until(bad, "failed", within=180)

    assert ended.crashes == 3
    assert ended.errors[-1]["error"] == "the worker died 3 times while running this job alone"
    for job in quick:
        innocent = queue.until(job, "done")
        assert (innocent.crashes, innocent.errors) == (0, [])
    assert "could run no Python" in parent.log
    assert "in backtrack" in parent.log
    # Once among others and three times alone. The last one may still hang when its job has been rescued from it.
    eventually(lambda: parent.log.count("died (SIGABRT)") == 1 + 3, PATIENCE)
    audit.check()
    assert parent.stop() == 0


@pytest.mark.row(21)
@both_kinds
def test_a_call_that_keeps_the_lock_without_computing_ends_its_worker_too(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    worker = workers.start(gevent=gevent)
    job = queue.enqueue("hold_the_gil", seconds=ENDLESS)

    assert worker.exit_code() == -signal.SIGABRT

    assert "in hold_the_gil" in worker.log
    # The next worker finds it in the hands of a dead one and runs it alone, which makes it quick.
    workers.start(gevent=gevent)
    queue.until(job, "done")


@pytest.mark.row(7)
@both_kinds
def test_a_worker_that_was_frozen_for_longer_than_a_hang_may_last_goes_on(
    queue: Queue, workers: Workers, gevent: bool
) -> None:
    frozen, other = workers.start(gevent=gevent), workers.start()
    frozen.freeze()

    # A beat every 0.5 s: ten seconds.
    first = queue.workers()[other.pid].beat
    eventually(lambda: queue.workers()[other.pid].beat >= first + 20, PATIENCE)
    frozen.thaw()

    eventually(lambda: frozen.pid in queue.workers(), PATIENCE)
    assert "could run no Python" not in frozen.log
    assert frozen.stop() == 0


def test_a_database_that_is_away_ends_no_worker(
    workers_of_its_own: Workers, own_server: EmbeddedPostgres
) -> None:
    worker = workers_of_its_own.start()
    own_server.stop("immediate")
    stopped_at = time.monotonic()

    eventually(lambda: not worker.is_alive or time.monotonic() - stopped_at > 8, PATIENCE)

    assert worker.is_alive
    assert "could run no Python" not in worker.log
    own_server.start()
    assert worker.stop() == 0


@both_kinds
def test_a_worker_that_is_told_not_to_be_ended_is_not(queue: Queue, workers: Workers, gevent: bool) -> None:
    worker = workers.start(gevent=gevent, env={**QUICK, "PGCRON_HANG_EXIT": "no"})
    job = queue.enqueue("hold_the_gil", seconds=8)

    queue.until(job, "done")

    assert worker.is_alive
    assert "could run no Python" not in worker.log
