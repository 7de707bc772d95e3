"""Rows 18 and 19 of the fault catalogue: a job that kills its worker stops, and its neighbours do not pay for it."""

import json

import psycopg
import pytest
from support import eventually
from workers import PATIENCE, SLOW, Audit, Queue, Workers

both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])


@pytest.mark.row(18)
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("how", "gevent"), [("exit", False), ("segfault", False), ("abort", True)], ids=["exit", "segfault", "abort-gevent"]
)
def test_a_poison_pill_fails_after_three_deaths_alone_and_its_neighbours_are_done(
    queue: Queue, workers: Workers, audit: Audit, how: str, gevent: bool
) -> None:
    # Under a lease of a minute, so that all of this is the supervisor's doing.
    workers.start(processes=2, gevent=gevent, env=SLOW)
    neighbours = [queue.enqueue("nap", seconds=0.5) for _ in range(3)]
    poison = queue.enqueue("die", how=how)
    neighbours += [queue.enqueue("nap", seconds=0.5) for _ in range(3)]

    ended = queue.until(poison, "failed", within=90)

    assert ended.errors[-1]["error"] == "the worker died 3 times while running this job alone"
    assert ended.crashes == 3
    # The first death may have had neighbours, and then says nothing.
    assert len(queue.entries(poison, "begin")) in (3, 4)
    for job in neighbours:
        innocent = queue.until(job, "done")
        assert (innocent.attempt, innocent.crashes, innocent.errors) == (1, 0, [])
    audit.check()


@pytest.mark.row(18)
def test_a_job_that_killed_its_worker_twice_and_then_went_well_is_done(queue: Queue, workers: Workers) -> None:
    workers.start(processes=2, env=SLOW)

    job = queue.enqueue("die_at_first", deaths=2)

    ended = queue.until(job, "done", within=60)
    assert ended.attempt == 1
    assert ended.crashes in (1, 2)


@pytest.mark.row(19)
@both_kinds
@pytest.mark.parametrize(
    "args",
    [
        '{"seconds": {"$datetime": "yesterday"}}',
        '{"nobody_knows_this": 1}',
        '{"seconds": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"seconds": ' + "9" * 5000 + "}",
        "[1, 2, 3]",
    ],
    ids=["date", "name", "deep", "digits", "count"],
)
def test_arguments_that_cannot_be_read_fail_their_job_alone(
    queue: Queue, workers: Workers, audit: Audit, args: str, gevent: bool
) -> None:
    before = queue.enqueue("nap")
    bad = queue.rows("select pgcron.enqueue('fault_tasks.nap', %s, max_attempts => 1) as id", args)[0].id
    after = queue.enqueue("nap")

    worker = workers.start(gevent=gevent, env=SLOW)

    assert queue.until(bad, "failed").crashes == 0
    assert [queue.until(job, "done").attempt for job in (before, after)] == [1, 1]
    assert worker.is_alive
    audit.check()


@pytest.mark.row(19)
@pytest.mark.parametrize(
    "value",
    ["[" * 4000 + "]" * 4000, "9" * 5000, '{"a": 1}', '["a"]', "null"],
    ids=["deep", "digits", "object", "list", "null"],
)
def test_headers_that_are_no_texts_are_refused_at_the_door(
    queue: Queue, workers: Workers, value: str
) -> None:
    # A batch is read as a whole, so what cannot be read must not get in.
    worker = workers.start(env=SLOW)
    headers = '{"trace": ' + value + "}"
    with pytest.raises(psycopg.errors.CheckViolation):
        queue.rows("select pgcron.enqueue('fault_tasks.nap', headers => %s)", headers)

    assert queue.until(queue.enqueue("nap"), "done").attempt == 1
    assert worker.is_alive


@pytest.mark.row(19)
def test_a_result_too_large_for_the_database_fails_its_job_alone(queue: Queue, workers: Workers) -> None:
    worker = workers.start(env=SLOW)
    jobs = [queue.enqueue("answer", what=what) for what in ("huge", "nan", "object", "nul", "surrogate")]

    ended = [queue.until(job, "failed") for job in jobs]

    # The effect has happened, so it is not repeated.
    assert [len(queue.entries(job, "begin")) for job in jobs] == [1] * 5
    for job in ended:
        assert "the task ran, but its result cannot be stored" in json.dumps(job.errors)
    eventually(lambda: worker.is_alive and queue.rows("select 1 where not exists (select from pgcron.jobs)"), PATIENCE)
