"""Rows 114-126 and 134-140 of the fault catalogue: what is put in, read back, waited for and deleted."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgcron_lite import JobFailed, PgCron, WaitTimeout
from pgcron_lite.errors import OptionError, PayloadError, UnknownJob
from pgcron_lite.worker.process import run_worker


@pytest.fixture
def app(pg_url: str) -> Iterator[PgCron]:
    app = PgCron("data", url=pg_url, poll="0.2s")
    app.task(echo, name="echo")
    app.task(explode, name="explode", max_attempts=1)
    app.task(greet, name="greet", max_attempts=2, backoff="0s")
    yield app
    app.close()


def echo(value: Any) -> Any:
    return value


def explode() -> None:
    raise ValueError("boom")


def greet(name: str, greeting: str) -> str:
    return f"{greeting}, {name}"


def drain(app: PgCron) -> None:
    assert run_worker(app, drain=True, slots=4) == 0


def sql(app: PgCron, query: str, *values: object) -> list[Any]:
    with psycopg.connect(app.settings.url(), autocommit=True) as conn:
        cursor = conn.execute(query, values)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.row(114)
@pytest.mark.parametrize(
    "value", [object(), lambda: None, (n for n in "x"), {1: "int key"}], ids=["object", "lambda", "generator", "key"]
)
def test_what_is_not_json_is_refused_at_delay_with_its_name(app: PgCron, value: object) -> None:
    with pytest.raises(PayloadError, match=r"args\.value"):
        app.tasks["echo"].delay(value)

    assert app.store.find() == []


@pytest.mark.row(115)
@pytest.mark.row(116)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "a\0b", "\ud800"], ids=repr)
def test_what_postgres_would_refuse_is_refused_before_it_is_sent(app: PgCron, value: object) -> None:
    with pytest.raises(PayloadError, match=r"args\.value\.deep\[0\]"):
        app.tasks["echo"].delay({"deep": [value]})


@pytest.mark.row(117)
@pytest.mark.parametrize("url", ["memory://", None], ids=["memory", "postgres"])
def test_numbers_come_back_as_they_were(app: PgCron, url: str | None) -> None:
    here = app if url is None else PgCron("memory", url=url)
    task = app.tasks["echo"] if url is None else here.task(name="echo")(echo)
    values = [2**53 + 1, 10**30, 1e22, -0.0, 0.1, 1e-320]

    handle = task.delay(values)
    drain(here)

    assert repr(handle.result(timeout=1)) == repr(values)


@pytest.mark.row(118)
def test_a_megabyte_is_refused_with_its_size_and_the_way_out(app: PgCron) -> None:
    with pytest.raises(PayloadError, match="pass its id"):
        app.tasks["echo"].delay("x" * 1_000_000)


@pytest.mark.row(119)
@pytest.mark.row(19)
@pytest.mark.parametrize(
    "args",
    ['{"value": ' + "[" * 5000 + "]" * 5000 + "}", '{"value": ' + "9" * 5000 + "}", '{"value": {"$datetime": 5}}'],
    ids=["deep", "digits", "tag"],
)
def test_an_undecodable_payload_fails_alone(app: PgCron, args: str) -> None:
    [(bad,)] = sql(app, "select pgcron.enqueue('echo', %s::json)", args)
    good = app.tasks["echo"].map([(n,) for n in range(5)])

    drain(app)

    assert [handle.result(timeout=1) for handle in good] == [0, 1, 2, 3, 4]
    job = app.handle(bad).job()
    assert (job.state, job.attempt) == ("failed", 1)
    assert "payload" in (job.error or "")


@pytest.mark.row(120)
@pytest.mark.parametrize("due", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_a_due_time_that_python_cannot_hold_is_refused_by_the_table(app: PgCron, due: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        sql(app, "select pgcron.enqueue('echo', '[1]', execute_after => %s::timestamptz)", due)


@pytest.mark.row(121)
def test_a_naive_datetime_is_refused(app: PgCron) -> None:
    with pytest.raises(OptionError, match="no time zone"):
        app.tasks["echo"].options(execute_after=datetime(2030, 1, 1))


@pytest.mark.row(122)
def test_a_job_of_a_transaction_that_rolls_back_never_was(app: PgCron) -> None:
    with psycopg.connect(app.settings.url()) as conn:
        handle = app.tasks["echo"].options(conn=conn).delay(1)
        conn.rollback()

    with pytest.raises(UnknownJob):
        handle.job()


@pytest.mark.row(124)
def test_a_task_this_worker_does_not_know_is_left_and_reported(app: PgCron, caplog: pytest.LogCaptureFixture) -> None:
    [(newer,)] = sql(app, "select pgcron.enqueue('echoes', '[1]')")

    drain(app)

    assert app.handle(newer).job().state == "queued"
    assert app.handle(newer).job().attempt == 0
    assert "did you mean 'echo'?" in caplog.text


@pytest.mark.row(125)
def test_a_job_that_no_longer_fits_its_function_fails_with_a_sentence_and_is_retried(app: PgCron) -> None:
    [(old,)] = sql(app, """select pgcron.enqueue('greet', '{"name": "Ada"}', max_attempts => 2)""")

    drain(app)
    drain(app)

    job = app.handle(old).job()
    assert (job.state, job.attempt) == ("failed", 2)
    assert "the job has no argument 'greeting'" in (job.error or "")


@pytest.mark.row(126)
def test_two_generations_side_by_side_each_run_what_they_know(app: PgCron) -> None:
    newer = PgCron("newer", url=app.settings.url())
    shout = newer.task(name="shout")(upper)
    old_job, new_job = app.tasks["echo"].delay("old"), shout.delay("new")

    drain(app)
    states = old_job.state(), new_job.state()
    drain(newer)

    assert states == ("done", "queued")
    assert new_job.result(timeout=1) == "NEW"
    newer.close()


def upper(text: str) -> str:
    return text.upper()


@pytest.mark.row(134)
def test_waiting_for_a_job_that_is_not_kept_does_not_hang(app: PgCron) -> None:
    with pytest.raises(UnknownJob, match="#4711"):
        app.handle(4711).result(timeout=5)


@pytest.mark.row(134)
def test_waiting_gives_up_and_the_job_goes_on(app: PgCron) -> None:
    handle = app.tasks["echo"].options(execute_after="1h").delay(1)

    with pytest.raises(WaitTimeout):
        handle.result(timeout=0.05)

    assert handle.state() == "queued"


@pytest.mark.row(135)
def test_retention_under_a_waiting_caller_is_an_answer_and_no_crash(app: PgCron) -> None:
    handle = app.tasks["echo"].options(execute_after="1h").delay(1)
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result(timeout=10)
        except BaseException as error:
            seen.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert app.store.delete(handle.id)
    waiting.join(timeout=10)

    assert isinstance(seen[0], UnknownJob)


@pytest.mark.row(136)
def test_retention_goes_in_bounded_batches_by_age_and_state(app: PgCron) -> None:
    done = app.tasks["echo"].map([(n,) for n in range(25)])
    failed = app.tasks["explode"].delay()
    drain(app)
    sql(app, "update pgcron.history set finished_at = finished_at - interval '8 days'")

    batches = [app.store.prune(timedelta(days=7), timedelta(days=30), limit=10) for _ in range(4)]

    assert batches == [10, 10, 5, 0]
    assert failed.state() == "failed"
    with pytest.raises(UnknownJob):
        done[0].job()


@pytest.mark.row(137)
def test_fifty_enqueues_at_once_are_fifty_jobs_with_ids_of_their_own(app: PgCron) -> None:
    ids: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: ids.append(app.tasks["echo"].delay(n).id)) for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(ids)) == 50
    assert len(app.store.find(limit=100)) == 50


@pytest.mark.row(138)
def test_cancel_races_with_claim_and_exactly_one_wins(app: PgCron) -> None:
    handles = app.tasks["echo"].map([(n,) for n in range(60)])
    cancelled: list[bool] = []
    racing = threading.Thread(target=lambda: cancelled.extend(h.cancel() for h in reversed(handles)))

    racing.start()
    drain(app)
    racing.join()

    states = [h.state() for h in reversed(handles)]
    assert [state == "cancelled" for state in states] == cancelled
    assert set(states) <= {"done", "cancelled"}


@pytest.mark.row(139)
def test_a_delay_in_a_long_transaction_counts_from_the_call(app: PgCron) -> None:
    with psycopg.connect(app.settings.url()) as conn:
        [begun] = conn.execute("select now()").fetchone() or ()
        conn.execute("select pg_sleep(0.3)")
        handle = app.tasks["echo"].options(conn=conn, execute_after="10s").delay(1)
        conn.commit()

    assert handle.job().execute_after >= begun + timedelta(seconds=10.3)


def test_a_failed_job_is_retried_by_hand_under_its_own_id(app: PgCron) -> None:
    handle = app.tasks["explode"].delay()
    drain(app)
    with pytest.raises(JobFailed, match="ValueError: boom"):
        handle.result(timeout=1)

    assert handle.retry()
    again = handle.job()
    drain(app)

    assert (again.state, again.attempt) == ("queued", 0)
    assert len(handle.job().errors) == 2


def test_a_deferred_job_waits_until_it_is_due(app: PgCron) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.5)
    handle = app.tasks["echo"].options(execute_after=due).delay(1)

    assert run_worker(app, max_seconds=2, slots=1) == 0

    job = handle.job()
    assert job.state == "done"
    assert job.claimed_at is not None
    assert job.claimed_at >= due
