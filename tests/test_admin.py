"""`app.jobs` and `app.queues`, in memory and in PostgreSQL."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from pgcron_lite import Handle, OptionError, PgCron, UnknownJob
from pgcron_lite.admin import PAGE, PAYLOAD_PAGE
from pgcron_lite.job import NewJob


@pytest.fixture(params=["memory", "postgres"])
def app(request: pytest.FixtureRequest) -> Iterator[PgCron]:
    made = PgCron("shop", url="memory://" if request.param == "memory" else request.getfixturevalue("pg_url"))
    yield made
    made.close()


@pytest.fixture
def jobs(app: PgCron) -> dict[str, Handle[Any]]:
    """A job in each state that one without a worker may have, and one more waiting."""

    @app.task(name="work")
    def work(x: int) -> int:
        return x

    @app.task(name="fail", max_attempts=1)
    def fail() -> None:
        raise ValueError("no")

    made = {"done": work.delay(1), "failed": fail.delay()}
    assert app.run_worker(drain=True, max_seconds=30) == 0
    made["cancelled"] = work.delay(2)
    assert made["cancelled"].cancel()
    made["queued"] = work.options(queue="mail", tags=["x"], execute_after="1h").delay(3)
    made["due"] = work.options(queue="mail").delay(4)
    return made


def ids(found: list[Any]) -> list[int]:
    return [job.id for job in found]


# Jobs


def test_a_job_is_read_by_its_id(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    job = app.jobs.get(jobs["done"].id)

    assert (job.state, job.task, job.args, job.result) == ("done", "work", '{"x":1}', "1")


def test_a_job_that_is_not_there_is_unknown(app: PgCron) -> None:
    with pytest.raises(UnknownJob, match="there is no job #12345"):
        app.jobs.get(12345)
    assert (app.jobs.cancel(12345), app.jobs.retry(12345), app.jobs.delete(12345)) == (False, False, False)


def test_jobs_are_listed_newest_first_by_what_they_have(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    of = {name: handle.id for name, handle in jobs.items()}

    assert ids(app.jobs.list()) == sorted(of.values(), reverse=True)
    assert ids(app.jobs.list(state="failed")) == [of["failed"]]
    assert ids(app.jobs.list(state=["done", "cancelled"])) == [of["cancelled"], of["done"]]
    assert ids(app.jobs.list(task="fail")) == [of["failed"]]
    assert ids(app.jobs.list(queue="mail")) == [of["due"], of["queued"]]
    assert ids(app.jobs.list(tag="x")) == [of["queued"]]
    assert len(app.jobs.list(since="1h")) == len(app.jobs.list(since=timedelta(hours=1))) == 5
    assert app.jobs.list(since=0) == []
    assert ids(app.jobs.list(before=of["cancelled"], limit=1)) == [of["failed"]]
    assert app.jobs.list(limit=1)[0].args == '{"x":4}'


def test_listing_goes_over_the_edges_of_pages(app: PgCron) -> None:
    task = app.task(name="work")(lambda x: x)
    task.map(range(PAGE + 5))

    assert len(app.jobs.list(limit=PAYLOAD_PAGE + 1)) == PAYLOAD_PAGE + 1
    assert len(app.jobs.list(limit=10_000)) == PAGE + 5
    assert len([*app.jobs.find(with_payload=False)]) == PAGE + 5
    assert len({job.id for job in app.jobs.find(with_payload=False)}) == PAGE + 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"state": "finished"}, "state='finished': expected one of queued, running, done, failed, cancelled"),
        ({"state": "canceled"}, "did you mean 'cancelled'"),
        ({"state": ["done", "x"]}, "state='x'"),
        ({"since": "yesterday"}, "since='yesterday'"),
        ({"limit": 0}, "limit=0: expected a whole number of at least 1"),
        ({"limit": True}, "limit=True"),
        ({"state": 5}, "state=5: expected one of queued"),
        ({"task": 5}, "task=5: expected a text"),
        ({"task": b"x"}, "task=b'x': expected a text"),
        ({"task": ["a", "b"]}, "expected a text"),
        ({"queue": True}, "queue=True: expected a text"),
        ({"tag": "a\0"}, "tag=.*: expected a text"),
        ({"tag": "\ud800"}, "tag=.*: expected a text"),
        ({"before": "5"}, "before='5': expected the id of a job"),
        ({"before": True}, "before=True: expected the id"),
    ],
)
def test_a_list_of_nonsense_is_refused(app: PgCron, options: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        app.jobs.list(**options)


@pytest.mark.parametrize("wrong", ["1", 1.0, True, None])
@pytest.mark.parametrize("method", ["get", "cancel", "retry", "delete"])
def test_what_is_no_id_is_refused(app: PgCron, method: str, wrong: Any) -> None:
    with pytest.raises(OptionError, match=rf"app\.jobs\.{method}\(.*expected the job's id as a whole number"):
        getattr(app.jobs, method)(wrong)


def test_only_what_has_not_begun_is_cancelled(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    cancelled = {name: app.jobs.cancel(handle.id) for name, handle in jobs.items()}

    assert cancelled == {"done": False, "failed": False, "cancelled": False, "queued": True, "due": True}
    assert jobs["due"].state() == "cancelled"


def test_what_failed_or_was_cancelled_is_retried_and_workers_are_woken(
    app: PgCron, jobs: dict[str, Handle[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rung = []
    monkeypatch.setattr(app.store, "ring", lambda: rung.append(1))

    retried = {name: app.jobs.retry(handle.id) for name, handle in jobs.items()}

    assert retried == {"done": False, "failed": True, "cancelled": True, "queued": False, "due": False}
    assert len(rung) == 2
    assert jobs["failed"].state() == "queued"


def test_everything_but_a_running_job_is_deleted(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    seen = []

    @app.task(name="try to delete itself")
    def vanish() -> None:
        seen.extend(app.jobs.delete(job.id) for job in app.jobs.list(state="running"))

    vanish.delay()
    assert app.run_worker(queues="default", drain=True, max_seconds=30) == 0

    assert seen == [False]
    assert all(app.jobs.delete(handle.id) for handle in jobs.values())
    assert ids(app.jobs.list(task="work")) == []


def test_all_failed_jobs_of_a_task_are_retried_in_a_loop(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    for job in app.jobs.list(state="failed", task="fail", limit=1000):
        assert app.jobs.retry(job.id)

    assert app.jobs.list(state="failed") == []


# Queues


def test_queues_are_listed_with_their_numbers(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    app.queues.pause("reports")

    assert [(q.name, q.due, q.deferred, q.running, bool(q.paused_at)) for q in app.queues.list()] == [
        ("mail", 1, 1, 0, False),
        ("reports", 0, 0, 0, True),
    ]
    assert app.queues.get("mail").due == 1
    assert app.queues.get("empty") == app.queues.get("empty")
    assert (app.queues.get("empty").name, app.queues.get("empty").due) == ("empty", 0)


def test_no_job_of_a_paused_queue_runs_until_it_is_resumed(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    app.queues.pause("mail")
    assert app.run_worker(drain=True, max_seconds=30) == 0
    assert jobs["due"].state() == "queued"

    assert app.queues.resume("mail")
    assert not app.queues.resume("mail")
    assert app.run_worker(drain=True, max_seconds=30) == 0
    assert jobs["due"].result(0) == 4


def test_clearing_a_queue_cancels_what_waits_in_it(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    other = app.tasks["work"].delay(9)

    assert app.queues.clear("mail") == 2
    assert app.queues.clear("mail") == 0

    assert (jobs["queued"].state(), jobs["due"].state(), other.state()) == ("cancelled", "cancelled", "queued")


def test_a_large_queue_is_cleared_in_parts(app: PgCron, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgcron_lite.admin.CLEARED_AT_ONCE", 10)
    task = app.task(name="work")(lambda x: x)
    task.map(range(35))

    assert app.queues.clear("default") == 35
    assert len(app.jobs.list(state="cancelled", limit=100)) == 35


@pytest.mark.parametrize("method", ["get", "pause", "resume", "clear"])
@pytest.mark.parametrize("wrong", ["", "*", "a,b", " a", None, 3])
def test_what_is_no_name_of_a_queue_is_refused(app: PgCron, method: str, wrong: Any) -> None:
    with pytest.raises(OptionError, match="queue="):
        getattr(app.queues, method)(wrong)


def test_no_state_is_not_any_state(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    assert app.jobs.list(state=[]) == [*app.jobs.find(state=())] == []
    assert len(app.jobs.list(state=None)) == 5


def test_ids_beyond_those_of_the_table_are_bounds_as_well(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    assert len(app.jobs.list(before=2**70)) == 5
    assert app.jobs.list(before=-(2**70)) == []


def test_jobs_can_be_put_into_sets(app: PgCron, jobs: dict[str, Handle[Any]]) -> None:
    assert len({*app.jobs.list(), *app.jobs.list()}) == 5


def test_pages_grow_while_payloads_are_small(app: PgCron, monkeypatch: pytest.MonkeyPatch) -> None:
    task = app.task(name="work")(lambda x: x)
    task.map(range(1000))
    limits, find = [], app.store.find
    monkeypatch.setattr(app.store, "find", lambda **given: limits.append(given["limit"]) or find(**given))

    assert len(app.jobs.list(limit=1000)) == 1000
    assert limits == [20, 40, 80, 160, 320, 380]
    limits.clear()
    monkeypatch.setattr("pgcron_lite.admin.SMALL_PAYLOAD", 0)
    assert len(app.jobs.list(limit=60)) == 60
    assert limits == [20, 20, 20]


@pytest.mark.parametrize("name", ["a,b", " lead"])
def test_a_queue_that_sql_has_made_is_handled_under_its_name(app: PgCron, name: str) -> None:
    app.store.enqueue([NewJob("work", "{}", queue=name)])

    assert app.queues.get(name).due == 1
    app.queues.pause(name)
    assert app.queues.resume(name)
    assert app.queues.clear(name) == 1


def test_a_mock_of_an_app_has_its_parts() -> None:
    app = mock.Mock(spec=PgCron)

    app.jobs.list()
    app.queues.pause("mail")
    app.schedules.list()
