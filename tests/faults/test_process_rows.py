"""Rows 1-8, 17, 20-22 of the fault catalogue: workers that are killed, frozen, or have no time to say they live."""

import signal

import pytest
from support import eventually
from tripwire import Tripwire
from workers import PATIENCE, QUICK, SLOW, Audit, Queue, Workers, recovery_bound

# Two kinds of slots, one set of promises.
both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])

CLAIM = "open_levels as materialized"
CLAIM_OF_SUSPECT = "where s.state = 'queued' and s.alone"
FINISH = "insert into pgcron.history"


@pytest.mark.row(1)
def test_an_idle_worker_that_is_killed_leaves_nothing_but_a_row_which_others_remove(
    queue: Queue, workers: Workers
) -> None:
    victim, _other = workers.start(), workers.start()

    victim.kill()

    eventually(lambda: victim.pid not in queue.workers(), recovery_bound())
    connected = "select pid from pg_stat_activity where application_name ~ '^pgcron' and datname = current_database()"
    eventually(lambda: len(queue.rows(connected)) <= 3)


@pytest.mark.row(2)
@both_kinds
def test_the_job_of_a_killed_worker_runs_again_and_is_done_once(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    victim = workers.start(gevent=gevent)
    job = queue.enqueue("die_at_first", deaths=1)
    victim.exit_code()

    other = workers.start(gevent=gevent)
    ended = queue.until(job, "done", within=PATIENCE)

    first, second = queue.entries(job, "begin")
    assert (first["pid"], second["pid"]) == (victim.pid, other.pid)
    assert (ended.attempt, ended.crashes, ended.errors) == (1, 0, [])
    audit.check()
    assert audit.of(job) == ["queued", "running", "queued", "running", "done"]


@pytest.mark.row(2)
@both_kinds
def test_another_worker_runs_the_job_within_the_published_bound(queue: Queue, workers: Workers, gevent: bool) -> None:
    both = workers.start(gevent=gevent), workers.start(gevent=gevent)
    job = queue.enqueue("nap", seconds=3)
    [entry] = queue.begun(job)
    [victim] = [worker for worker in both if worker.pid == entry["pid"]]

    victim.kill()

    first, second = queue.begun(job, times=2)
    assert second["at"] - first["at"] < recovery_bound()
    queue.until(job, "done")


@pytest.mark.row(3)
def test_a_worker_killed_between_its_claim_and_the_reply_costs_a_rerun_and_no_attempt(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    job = queue.enqueue("nap")

    with Tripwire(queue.url, CLAIM, "after the commit", lambda: victim.send(signal.SIGKILL)) as wire:
        victim = workers.start(url=wire.url, ready=False)
        assert victim.exit_code() == -signal.SIGKILL

    assert queue.state(job) == "running"
    assert queue.entries(job) == []
    workers.start()
    ended = queue.until(job, "done")
    assert (ended.attempt, ended.crashes) == (1, 0)
    assert len(queue.entries(job, "begin")) == 1
    audit.check()


@pytest.mark.row(3)
def test_a_worker_that_lost_the_reply_to_the_claim_of_a_suspect_finds_it_again(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    job = queue.enqueue("nap")
    queue.rows("update pgcron.jobs set alone = true")

    with Tripwire(queue.url, CLAIM_OF_SUSPECT, "after the commit", lambda: None) as wire:
        workers.start(url=wire.url, ready=False, env=SLOW)
        queue.until(job, "done")
        assert wire.has_tripped.is_set()

        assert audit.of(job)[-2:] == ["running", "done"]
    assert len(queue.entries(job, "begin")) == 1


@pytest.mark.row(3)
@both_kinds
def test_a_worker_that_lost_only_the_reply_to_its_claim_finds_its_jobs_again(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    jobs = [queue.enqueue("nap") for _ in range(3)]

    with Tripwire(queue.url, CLAIM, "after the commit", lambda: None) as wire:
        worker = workers.start(url=wire.url, ready=False, env=SLOW, gevent=gevent)
        for job in jobs:
            queue.until(job, "done")
        assert wire.has_tripped.is_set()

        assert worker.stop() == 0

    # One claim each, by one worker, under a lease of a minute: adopted, not rescued.
    assert [audit.of(job) for job in jobs] == [["queued", "running", "done"]] * 3
    assert {len(queue.entries(job, "begin")) for job in jobs} == {1}


@pytest.mark.row(4)
def test_a_worker_killed_between_the_effect_and_the_completion_has_the_effect_twice_and_one_done(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    job = queue.enqueue("nap")

    with Tripwire(queue.url, FINISH, "before the statement", lambda: victim.send(signal.SIGKILL)) as wire:
        victim = workers.start(url=wire.url, ready=False)
        assert victim.exit_code() == -signal.SIGKILL
    workers.start()

    queue.until(job, "done")
    assert len(queue.entries(job, "end")) == 2
    assert audit.of(job).count("done") == 1
    audit.check()


@pytest.mark.row(5)
def test_a_worker_killed_between_its_completion_and_the_reply_leaves_a_done_job_that_never_runs_again(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    job = queue.enqueue("nap")

    with Tripwire(queue.url, FINISH, "after the commit", lambda: victim.send(signal.SIGKILL)) as wire:
        victim = workers.start(url=wire.url, ready=False)
        assert victim.exit_code() == -signal.SIGKILL
    other = workers.start()
    eventually(lambda: victim.pid not in queue.workers(), PATIENCE)

    assert other.stop() == 0
    assert audit.of(job) == ["queued", "running", "done"]
    assert len(queue.entries(job, "begin")) == 1


@pytest.mark.row(5)
def test_a_worker_that_lost_only_the_reply_to_its_completion_knows_that_it_was_its_own(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    job = queue.enqueue("nap")

    with Tripwire(queue.url, FINISH, "after the commit", lambda: None) as wire:
        worker = workers.start(url=wire.url, ready=False, env=SLOW)
        queue.until(job, "done")
        eventually(lambda: f"nap#{job} (attempt 1/5) done" in worker.log, PATIENCE)
        assert worker.stop() == 0

    assert audit.of(job) == ["queued", "running", "done"]
    assert "no longer this worker's" not in worker.log


@pytest.mark.row(7)
@both_kinds
def test_a_frozen_worker_loses_its_jobs_and_its_late_word_counts_for_nothing(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    frozen = workers.start(gevent=gevent)
    job = queue.enqueue("nap", seconds=2)
    queue.begun(job)
    frozen.freeze()
    old_id = queue.workers()[frozen.pid].id
    workers.start(gevent=gevent)
    queue.until(job, "done", within=recovery_bound() + PATIENCE)

    frozen.thaw()

    eventually(lambda: frozen.pid in queue.workers() and queue.workers()[frozen.pid].id != old_id, PATIENCE)
    eventually(lambda: len(queue.entries(job, "end")) == 2, PATIENCE)
    eventually(lambda: "no longer this worker's" in frozen.log, PATIENCE)
    assert frozen.log.count("no longer this worker's") == 1
    assert frozen.log.count("has been declared dead") == 1
    audit.check()
    assert audit.of(job) == ["queued", "running", "queued", "running", "done"]
    # It goes on under its new name.
    late = queue.enqueue("nap")
    queue.until(late, "done")


@pytest.mark.row(8)
def test_others_work_on_while_a_worker_is_frozen_in_the_middle_of_its_claim(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    # A claim is one transaction in one round trip. Here the freeze comes between its update and its commit.
    held = queue.enqueue("nap")

    with Tripwire(queue.url, CLAIM, "within the transaction", lambda: frozen.freeze()) as wire:
        frozen = workers.start(url=wire.url, ready=False, slots=1)
        assert wire.has_tripped.wait(PATIENCE)
        # It has written, and the server waits for what comes behind.
        within = "select 1 from pg_stat_activity where backend_xid is not null and wait_event = 'ClientRead'"
        eventually(lambda: queue.rows(f"{within} and datname = current_database()"))
        workers.start()
        others = [queue.enqueue("nap") for _ in range(5)]
        for job in others:
            queue.until(job, "done")
        assert queue.state(held) == "queued"

    # The connection has ended, and with it the transaction: nothing of the claim was ever there.
    assert queue.until(held, "done").attempt == 1
    audit.check()


@pytest.mark.row(17)
def test_a_worker_killed_for_its_memory_is_like_any_other_death(queue: Queue, workers: Workers) -> None:
    victim = workers.start()
    job = queue.enqueue("die", how="out of memory")
    neighbour = queue.enqueue("nap", seconds=1)
    assert victim.exit_code() == -signal.SIGKILL

    deaths = 0
    while queue.state(job) != "failed":
        worker = workers.start()
        eventually(lambda worker=worker: not worker.is_alive or queue.state(job) == "failed", PATIENCE)
        deaths += not worker.is_alive

    assert deaths == 3
    queue.until(neighbour, "done")


@pytest.mark.row(20)
@both_kinds
def test_a_job_that_computes_for_longer_than_the_lease_is_never_taken_away(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    busy = workers.start(gevent=gevent)
    job = queue.enqueue("spin", seconds=5)
    queue.begun(job)
    watcher = workers.start(gevent=gevent)

    queue.until(job, "done")

    assert audit.of(job) == ["queued", "running", "done"]
    assert [e["pid"] for e in queue.entries(job)] == [busy.pid, busy.pid]
    assert "rescued" not in watcher.log
    assert "declared dead" not in busy.log


@pytest.mark.row(21)
@both_kinds
def test_a_call_that_keeps_the_gil_for_longer_than_the_lease_costs_a_second_run_and_nothing_else(
    queue: Queue, workers: Workers, audit: Audit, gevent: bool
) -> None:
    # No heart inside the process can beat while C code keeps the interpreter. This is what it comes to, where the
    # worker is not to be ended for it.
    busy = workers.start(gevent=gevent, env={**QUICK, "PGCRON_HANG_EXIT": "no"})
    job = queue.enqueue("hold_the_gil", seconds=6)
    queue.begun(job)
    rescuer = workers.start(gevent=gevent, env={**QUICK, "PGCRON_LEASE": "1s"})
    eventually(lambda: f"hold_the_gil#{job}" in rescuer.log and "rescued" in rescuer.log, PATIENCE)

    queue.until(job, "done", "failed", within=2 * PATIENCE)

    eventually(lambda: "no longer this worker's" in busy.log, PATIENCE)
    assert queue.state(job) == "done"
    assert audit.of(job).count("done") == 1
    audit.check()


@pytest.mark.row(22)
def test_a_catastrophic_regular_expression_is_such_a_call_and_shorter_than_the_lease_nobody_notices(
    queue: Queue, workers: Workers, audit: Audit
) -> None:
    workers.start()
    workers.start()

    job = queue.enqueue("backtrack", letters=20)

    queue.until(job, "done")
    assert audit.of(job) == ["queued", "running", "done"]
