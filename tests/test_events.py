"""What can be heard, and that nobody who listens can do harm."""

import re
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from clock import Clock

from pgcron_lite import Cancel, PgCron, Retry, Snooze, current_job
from pgcron_lite.errors import OptionError, SetupFinished
from pgcron_lite.events import EVENTS, Events
from pgcron_lite.job import Job, Outcome, WorkerCard, hand_back
from pgcron_lite.memory import MemoryStore
from pgcron_lite.schedules.schedule import SCHEDULE, Schedule
from pgcron_lite.schedules.timing import Cron
from pgcron_lite.worker import process
from pgcron_lite.worker.execute import Ended
from pgcron_lite.worker.reporting import Reporter
from pgcron_lite.worker.scheduler import Scheduler

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


def drain(app: PgCron, **options: Any) -> None:
    assert process.run_worker(app, drain=True, slots=2, **options) == 0


def test_a_receiver_gets_the_values_it_names(app):
    heard: list[Any] = []

    @app.on("job_done")
    def only_seconds(seconds: float) -> None:
        heard.append(seconds)

    @app.on("job_done")
    def everything(**values: Any) -> None:
        heard.append(sorted(values))

    @app.on("job_done")
    def nothing() -> None:
        heard.append("nothing")

    @app.on("job_done")
    def with_default(job: Job, other: str = "own") -> None:
        heard.append((job.task, other))

    app.events.send("job_done", job=a_job(), seconds=1.5)

    assert heard == [1.5, ["job", "seconds"], "nothing", ("add", "own")]


def test_the_decorated_receiver_is_still_a_function(app):
    @app.on("job_done")
    def receiver(seconds: float) -> float:
        return seconds

    assert receiver(2.0) == 2.0


def test_a_receiver_may_listen_to_several_events(app):
    heard: list[str] = []

    @app.on("worker_started")
    @app.on("worker_stopped")
    def note(worker: WorkerCard) -> None:
        heard.append(worker.mode)

    drain(app)

    assert len(heard) == 2


class Halt(BaseException):
    """As gevent.Timeout is: no Exception."""


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1), Halt("broken")])
def test_a_receiver_that_fails_is_logged_and_forgotten(app, caplog, error):
    heard: list[int] = []

    @app.on("job_done")
    def broken() -> None:
        raise error

    @app.on("job_done")
    def sound(job: Job) -> None:
        heard.append(job.id)

    @app.task(name="work")
    def work() -> None: ...

    handle = work.delay()
    drain(app)

    assert handle.state() == "done"
    assert heard == [handle.id]
    assert [r.exc_info[1] for r in caplog.records if "broken of job_done failed" in r.getMessage()] == [error]


def test_a_receiver_that_fails_when_a_job_starts_does_not_fail_the_job(app):
    @app.on("job_started")
    def broken() -> None:
        raise ValueError

    handle = app.task(name="work")(nothing).delay()
    drain(app)

    assert handle.state() == "done"


def nothing() -> None:
    """A task."""


@pytest.mark.parametrize(
    ("event", "receiver", "words"),
    [
        ("job_dome", lambda: None, r"there is no event 'job_dome'; did you mean 'job_done'\?.*worker_stopped"),
        ("job_done", lambda job, secs: None, "'secs', which 'job_done' does not pass.* It passes: job, seconds"),
        ("job_done", lambda job, /: None, "takes 'job' by position; receivers are called with keywords"),
        ("job_done", lambda *values: None, "takes 'values'"),
        ("job_done", "not callable", "must be callable, got 'not callable'"),
    ],
)
def test_what_cannot_be_a_receiver_is_refused_where_it_is_made(app, event, receiver, words):
    with pytest.raises(OptionError, match=words):
        app.on(event)(receiver)


def test_nothing_is_registered_while_a_worker_runs(app):
    caught: list[SetupFinished] = []

    @app.on("worker_started")
    def late() -> None:
        for register in (lambda: app.on("job_done")(nothing), lambda: app.task(nothing), lambda: app.around(hook)):
            with pytest.raises(SetupFinished, match="its worker is running") as refused:
                register()
            caught.append(refused.value)

    drain(app)

    assert len(caught) == 3
    app.on("job_done")(nothing)  # and afterwards it may be


def hook(job: Job) -> Any:
    yield


def test_events_are_of_one_app_alone(app):
    heard: list[str] = []
    other = PgCron("other", url="memory://")
    app.on("worker_started")(lambda: heard.append("shop"))
    other.on("worker_started")(lambda: heard.append("other"))

    drain(other)

    assert heard == ["other"]


# Headers.


def test_headers_travel_to_the_worker(app):
    @app.on("job_enqueuing")
    def trace(task: str, headers: dict[str, str]) -> None:
        headers["trace"] = f"of {task}"

    @app.task(name="work")
    def work() -> dict[str, str]:
        return dict(current_job.headers)

    handles = [work.options(headers={"own": "1"}).delay(), *work.map([()])]
    drain(app)

    assert [h.result(timeout=0) for h in handles] == [{"own": "1", "trace": "of work"}, {"trace": "of work"}]


def test_headers_of_one_call_do_not_reach_the_next(app):
    @app.on("job_enqueuing")
    def count(headers: dict[str, str]) -> None:
        headers["seen"] = headers.get("seen", "") + "x"

    task = app.task(name="work")(nothing).options(headers={"a": "b"})

    assert [dict(task.delay().job().headers) for _ in range(2)] == [{"a": "b", "seen": "x"}] * 2


@pytest.mark.parametrize("bad", [7, "\0", None])
def test_a_receiver_that_adds_what_is_no_header_costs_no_job(app, caplog, bad):
    @app.on("job_enqueuing")
    def wrong(headers: dict[str, Any]) -> None:
        headers["number"] = bad

    handle = app.task(name="work")(nothing).options(headers={"own": "1"}).delay()

    assert dict(handle.job().headers) == {"own": "1"}
    assert "no added header is stored" in caplog.text


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": "\0"}, ["a"]])
def test_headers_of_a_call_are_checked_where_it_is_made(app, headers):
    with pytest.raises(OptionError, match="headers"):
        app.task(name="work")(nothing).options(headers=headers)


# Every event comes, and brings what the table says.


def test_every_event_brings_what_the_table_says(app):
    heard: dict[str, set[str]] = {}
    for event in EVENTS:
        app.on(event)(lambda event=event, **values: heard.setdefault(event, set()).update(values))

    live_through(app)

    assert heard == {event: set(values) for event, values in EVENTS.items()}


def live_through(app: PgCron) -> None:
    """One job for each thing that may happen to one, on a worker."""

    @app.task(name="end", max_attempts=2)
    def end(how: str) -> None:
        if current_job.attempt == 1 and how != "done":
            raise {
                "retry": Retry("1h"), "snooze": Snooze("1h"), "cancel": Cancel("no need"), "fail": ValueError("no"),
            }[how]

    app.task(name="fail", max_attempts=1)(fail)
    end.map([("done",), ("retry",), ("snooze",), ("cancel",)])
    app.tasks["fail"].delay()
    drain(app)
    reporter, job = Reporter(app.events), a_job()
    reporter.released(job)
    reporter.rescued(job)
    reporter.ended(Ended(job, hand_back(job), 0.1), was_ours=False)
    keep_two_schedules(app)


def keep_two_schedules(app: PgCron) -> None:
    """A tick of one does not begin; a run of the other goes on for too long, and ends well."""
    clock = Clock()
    store, me = MemoryStore(clock), uuid.uuid4()
    scheduler = Scheduler(app, store)
    for name in ("stuck", "slow"):
        store.put_schedule(name, "shop", Schedule(name, "fail", Cron("0 * * * *")).dumps(), replace=False)
    scheduler.step()
    clock.advance(3600)
    [slow] = [job for job in store.claim(me, uuid.uuid4(), ["*"], ["fail"], 2) if job.headers[SCHEDULE] == "slow"]
    scheduler.admit([slow])
    scheduler.step()
    clock.advance(3601)
    scheduler.apply(store.look(["*"], ["fail"]))
    assert slow.claim is not None
    store.settle([Outcome(slow.id, slow.claim, "done")])
    scheduler.written([Ended(slow, Outcome(slow.id, slow.claim, "done"), 0.0)])


def fail() -> None:
    raise ValueError("for good")


def test_an_app_nobody_listens_to_sends_nothing():
    events = Events()

    assert not events.wants("job_done")
    events.send("job_done")  # not even the values are asked for


def test_the_manual_lists_every_event_with_what_it_brings():
    text = (DOCS / "extending.md").read_text("utf-8")

    rows = re.findall(r"^\| `(\w+)` *\| *((?:`\w+`(?:, )?)+) *\|", text, re.MULTILINE)

    assert {event: tuple(re.findall(r"\w+", values)) for event, values in rows} == EVENTS


def a_job() -> Job:
    from datetime import UTC, datetime

    now = datetime(2026, 3, 1, tzinfo=UTC)
    return Job(
        id=1, task="add", queue="default", priority=0, state="running", args="{}", headers={}, tags=(),
        execute_after=now, attempt=1, max_attempts=5, crashes=0, max_crashes=3, alone=False, claim=uuid.uuid4(),
        worker=uuid.uuid4(), created_at=now, claimed_at=now + timedelta(seconds=1),
    )
