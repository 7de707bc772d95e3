"""The scheduler of a worker, stepped by the test, and the schedules of an app. No database, no waiting."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clock import START, Clock
from support import eventually

from pgcron_lite import PgCron, current_job
from pgcron_lite.errors import DatabaseRefused, DatabaseUnavailable, OptionError, SetupFinished, UnknownSchedule
from pgcron_lite.job import Outcome, WorkerCard
from pgcron_lite.memory import MemoryStore
from pgcron_lite.schedules import schedule as schedule_module
from pgcron_lite.schedules.schedule import CAUGHT_UP, PREVIOUS, SCHEDULE, TICK
from pgcron_lite.schedules.ticks import Entry, Move
from pgcron_lite.worker.loop import Worker
from pgcron_lite.worker.scheduler import Scheduler

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
PATIENCE = 30.0


class Seen(list[tuple[Any, ...]]):
    """The properties that the runs of a task saw in their context."""

    def note(self) -> None:
        job = current_job
        self.append((job.schedule, job.tick, job.previous_tick, job.is_caught_up))


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def app(clock: Clock) -> PgCron:
    app = PgCron("shop", url="memory://", lease="1h", poll="1h")
    app._store = MemoryStore(clock)
    return app


@pytest.fixture
def make_worker(app: PgCron) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make_worker(**options: Any) -> Worker:
        generation = schedule_module.generation(app.name, app._definitions)
        card = WorkerCard(uuid.uuid4(), "host", 1, ("*",), 2, "threads", "0", generation)
        app.store.declare(app.name, generation, app._definitions)
        app.store.register(card)
        worker = Worker(app, app.store, card, **options)
        workers.append(worker)
        turn(worker)
        return worker

    yield make_worker
    for worker in workers:
        worker.slots.close()


def turn(worker: Worker) -> None:
    """Step the worker until no job runs and none is due."""

    def is_quiet() -> bool:
        worker._reap_at = 0.0
        worker.claim_soon()
        worker.step()
        return worker.drained()

    eventually(is_quiet, PATIENCE)


def advance(worker: Worker, clock: Clock, span: timedelta, step: timedelta = timedelta(seconds=30)) -> None:
    """Move the clock, and step the worker in between."""
    for _ in range(span // step):
        clock.advance(step.total_seconds())
        turn(worker)


def outcomes(app: PgCron, name: str) -> list[tuple[str | None, str | None]]:
    return [(view.outcome, view.reason) for view in reversed(app.schedules.history(name))]


# Runs


def test_a_function_on_a_schedule_runs_at_its_ticks(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker]
) -> None:
    @app.cron("*/10 * * * *", name="tidy")
    def tidy() -> None:
        seen.note()

    advance(make_worker(), clock, timedelta(minutes=31))

    times = [START + n * 10 * MINUTE for n in (1, 2, 3)]
    assert seen == [("tidy", tick, before, False) for tick, before in zip(times, [None, *times], strict=False)]
    assert [outcome for outcome, _ in outcomes(app, "tidy")] == ["done", "done", "done"]


@pytest.mark.parametrize("headers", [
    {SCHEDULE: "nightly", TICK: "2020-01-01T00:00:00+00:00"},
    {SCHEDULE: "nightly", TICK: "no moment at all", PREVIOUS: "nor this", CAUGHT_UP: "yes"},
    {TICK: "no moment at all", PREVIOUS: "nor this", CAUGHT_UP: "yes"},
])  # fmt: skip
def test_forged_schedule_headers_of_a_job_are_removed(
    app: PgCron, seen: Seen, make_worker: Callable[..., Worker], headers: dict[str, str]
) -> None:
    heard: list[Any] = []

    @app.on("schedule_missed")
    def missed(schedule: str) -> None:
        heard.append(schedule)

    @app.cron("30 2 * * *", name="nightly")
    def nightly() -> None:
        seen.note()
        heard.append(dict(current_job.headers).get("trace"))

    worker = make_worker()
    nightly.options(headers={**headers, "trace": "7"}, execute_after=START - timedelta(hours=1)).delay()
    turn(worker)

    assert seen == [(None, None, None, False)]
    assert heard == ["7"]
    assert [view.outcome for view in app.store.ticks("nightly")] == [None]


def test_a_catch_up_run_can_see_that_it_is_one(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    app.cron("*/10 * * * *", name="tidy")(seen.note)
    missed: list[datetime] = []
    app.on("schedule_missed")(lambda schedule, tick: missed.append(tick))
    worker = make_worker()
    clock.advance(35 * 60)

    turn(worker)

    assert seen == [("tidy", START + 30 * MINUTE, None, True)]
    assert missed == [START + 30 * MINUTE]
    assert outcomes(app, "tidy")[:3] == [
        ("skipped", "missed; a later tick stands for it"), ("skipped", "missed; a later tick stands for it"),
        ("done", None),
    ]  # fmt: skip
    assert "schedule tidy: 1 tick left out: missed; a later tick stands for it" in caplog.text
    [skipped] = [job for job in app.store.find() if job.state == "cancelled"]
    assert skipped.error == "skipped: missed; a later tick stands for it"


@pytest.mark.row(102)
def test_a_run_that_would_overlap_is_skipped_with_a_reason(
    app: PgCron, clock: Clock, make_worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    caplog.set_level(logging.INFO)

    @app.cron("*/10 * * * *", name="slow")
    def slow() -> None:
        gate.wait(PATIENCE)

    worker = make_worker()
    clock.advance(600)
    worker.claim_soon()
    worker._reap_at = 0.0
    worker.step()
    eventually(lambda: worker.running, PATIENCE)
    clock.advance(600)

    def is_turned_away() -> bool:
        worker._reap_at = 0.0
        worker.claim_soon()
        worker.step()
        return len(outcomes(app, "slow")) > 1 and outcomes(app, "slow")[1][0] == "skipped"

    eventually(is_turned_away, PATIENCE)
    gate.set()
    turn(worker)

    assert outcomes(app, "slow")[:2] == [
        ("done", None), ("skipped", "overlap: the run of 2026-03-01 12:10:00 UTC was still going on"),
    ]  # fmt: skip
    assert "was skipped: overlap" in caplog.text


@pytest.mark.row(102)
def test_a_waiting_run_logs_nothing_and_begins_when_the_run_before_it_ends(
    app: PgCron, clock: Clock, make_worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    gate, ran = threading.Event(), []
    snoozed: list[Any] = []
    caplog.set_level(logging.DEBUG, "pgcron_lite.jobs")
    app.on("job_snoozed")(lambda job, **_: snoozed.append(job))

    @app.cron("*/10 * * * *", name="slow", overlap="queue")
    def slow() -> None:
        ran.append(current_job.tick)
        gate.wait(PATIENCE)

    worker = make_worker()

    def look(seconds: float) -> None:
        clock.advance(seconds)
        for _ in range(3):
            worker._reap_at = 0.0
            worker.claim_soon()
            worker.step()

    look(600)
    eventually(lambda: ran, PATIENCE)
    for _ in range(60):
        look(10)
    for _ in range(50):
        look(10)

    gate.set()
    turn(worker)

    assert snoozed == []
    assert [record.levelname for record in caplog.records if "waits for" in record.message] == ["DEBUG"]
    assert [tick.minute for tick in ran] == [10, 20]


def test_an_interval_after_finish_continues(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker]
) -> None:
    app.every("10m", name="lazy", after_finish=True)(seen.note)

    advance(make_worker(), clock, HOUR, MINUTE)

    assert [tick for _, tick, _, _ in seen] == [START + n * 10 * MINUTE for n in range(1, 7)]


def test_run_on_start_runs_a_schedule_when_its_code_starts(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker]
) -> None:
    app.cron("0 0 * * *", name="warm", run_on_start=True)(seen.note)

    make_worker()
    make_worker()

    assert seen == [("warm", START, None, False)]
    assert app.schedules.history("warm")[-1].kind == "start"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_missed_run_on_start_is_planned_by_the_next_scheduler(
    clock: Clock, app: PgCron, seen: Seen, make_worker: Callable[..., Worker], when: str
) -> None:
    store = Lossy(clock)
    app._store = store
    app.cron("0 0 * * *", name="warm", run_on_start=True)(seen.note)
    make_worker(plans_ticks=False)
    store.fails = ("reconcile", "after")
    with pytest.raises(DatabaseUnavailable):
        Scheduler(app, store).step()
    store.fails = ("plan", when)
    with pytest.raises(DatabaseUnavailable):
        Scheduler(app, store).step()

    make_worker()

    assert seen == [("warm", START, None, False)]


def test_an_unchanged_declaration_runs_on_start_and_is_logged_once(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    task = app.cron("0 0 * * *", name="warm", run_on_start=True)(seen.note)
    make_worker()
    clock.advance(60)
    app.cron("@yearly", name="other")(task)

    make_worker()

    assert [tick for _, tick, _, _ in seen] == [START, START + MINUTE]
    said = [record.getMessage() for record in caplog.records if record.name == "pgcron_lite.schedules"]
    assert said == [
        "schedule warm is new", "schedule other is new", "schedule warm runs once now, because its code was started",
    ]  # fmt: skip


def test_a_run_on_start_wakes_the_worker_at_once(app: PgCron, clock: Clock, make_worker: Callable[..., Worker]) -> None:
    task = app.cron("0 0 * * *", name="warm")(nothing)
    make_worker(plans_ticks=False)
    scheduler = Scheduler(app, app.store)
    assert scheduler.step()
    assert scheduler.first_in == timedelta(hours=12).total_seconds()
    app.declared["warm"] = replace(app.declared["warm"], run_on_start=True)
    app.cron("@yearly", name="other")(task)

    make_worker(plans_ticks=False, takes_jobs=False)

    assert scheduler.step()
    assert scheduler.first_in == 0.0


def test_two_workers_fire_each_tick_once(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker]
) -> None:
    app.cron("* * * * *", name="tidy", overlap="allow")(seen.note)
    one, other = make_worker(), make_worker()

    for _ in range(20):
        clock.advance(20)
        turn(one)
        turn(other)

    assert [tick for _, tick, _, _ in seen] == [START + n * MINUTE for n in range(1, 7)]


def test_a_worker_without_a_scheduler_plans_nothing(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker]
) -> None:
    app.cron("* * * * *", name="tidy")(seen.note)

    advance(make_worker(plans_ticks=False), clock, 5 * MINUTE)

    assert app.schedules.list() == []


def test_a_scheduler_alone_plans_and_runs_nothing(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker]
) -> None:
    app.cron("* * * * *", name="tidy")(seen.note)

    advance(make_worker(takes_jobs=False), clock, 5 * MINUTE)

    assert seen == []
    assert len(app.schedules.history("tidy")) > 3


def test_an_alarm_and_its_end_are_each_sent_once(
    app: PgCron, clock: Clock, make_worker: Callable[..., Worker]
) -> None:
    heard: list[tuple[str, str, datetime]] = []
    for event in ("schedule_missed", "schedule_late", "schedule_recovered"):
        app.on(event)(lambda schedule, tick, event=event: heard.append((event, schedule, tick)))

    @app.cron("*/10 * * * *", name="tidy", overlap="allow")
    def tidy() -> None: ...

    worker = make_worker()
    app.store.pause("default")
    advance(worker, clock, timedelta(minutes=14))
    assert heard == [("schedule_missed", "tidy", START + 10 * MINUTE)]

    app.store.resume("default")
    turn(worker)
    assert heard[1:] == [("schedule_recovered", "tidy", START + 10 * MINUTE)]


# Trouble


class Lossy(MemoryStore):
    """A store in which one method fails, before or after its execution."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.fails: tuple[str, str] | None = None

    def admit(self, job_ids: Sequence[int]) -> Any:
        return self._failing("admit", super().admit, job_ids)

    def close_ticks(self, job_ids: Sequence[int]) -> Any:
        return self._failing("close_ticks", super().close_ticks, job_ids)

    def reconcile(self) -> Any:
        return self._failing("reconcile", super().reconcile)

    def plan(self, *args: Any, **options: Any) -> Any:
        return self._failing("plan", super().plan, *args, **options)

    def settle(self, outcomes: Sequence[Outcome]) -> Any:
        return self._failing("settle", super().settle, outcomes)

    def _failing(self, verb: str, do: Callable[..., Any], *args: Any, **options: Any) -> Any:
        fails, self.fails = self.fails, None if self.fails and self.fails[0] == verb else self.fails
        if fails == (verb, "before"):
            raise DatabaseUnavailable("the server is gone")
        answer = do(*args, **options)
        if fails == (verb, "after"):
            raise DatabaseUnavailable("the reply is lost")
        return answer


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ["plan", "admit", "close_ticks", "settle"])
@pytest.mark.parametrize("catch_up", ["latest", "skip"])
def test_a_database_failure_at_any_step_neither_loses_nor_doubles_a_tick(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker], verb: str, when: str, catch_up: Any
) -> None:
    store = Lossy(clock)
    app._store = store
    app.cron("*/10 * * * *", name="tidy", catch_up=catch_up)(seen.note)
    worker = make_worker()

    for minutes in (10, 10, 25, 5, 10):
        clock.advance(minutes * 60)
        store.fails = (verb, when)
        turn(worker)
    store.fails = None
    clock.advance(20)
    turn(worker)

    ran = [10, 20, 40, 50, 60] if catch_up == "latest" else [10, 20, 50, 60]
    assert [tick for _, tick, _, _ in seen] == [START + n * MINUTE for n in ran]
    ended = [outcome for outcome, _ in outcomes(app, "tidy")][:6]
    assert ended == ["done" if n in ran else "skipped" for n in (10, 20, 30, 40, 50, 60)]


@pytest.mark.row(104)
def test_a_schedule_whose_ticks_are_refused_is_set_aside(
    app: PgCron, clock: Clock, seen: Seen, make_worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    class Choosy(MemoryStore):
        """Refuse every plan that includes one schedule, and all that is written with it."""

        def plan(self, decide: Callable[[Entry, datetime], Move], name: str | None = None, **options: Any) -> Any:
            def checked(entry: Entry, now: datetime) -> Move:
                move = decide(entry, now)
                refused.append(entry.name == "bad" and bool(move.ticks))
                return move

            refused: list[bool] = []
            before = {key: (row.last_tick, row.plan_at, row.revision) for key, row in self._schedules.items()}
            jobs, ticks = dict(self._jobs), {name: dict(rows) for name, rows in self._ticks.items()}
            moves = super().plan(checked, name, **options)
            if any(refused):
                self._jobs, self._ticks = jobs, ticks
                for key, (last_tick, plan_at, revision) in before.items():
                    row = self._schedules[key]
                    row.last_tick, row.plan_at, row.revision = last_tick, plan_at, revision
                raise DatabaseRefused("smallint out of range")
            return moves

    app._store = Choosy(clock)
    app.cron("*/10 * * * *", name="bad")(seen.note)
    app.cron("*/10 * * * *", name="good")(app.tasks[next(iter(app.tasks))])

    advance(make_worker(), clock, timedelta(minutes=21))

    assert [name for name, *_ in seen] == ["good", "good"]
    assert app.schedules.get("bad").trouble == "smallint out of range"
    assert caplog.text.count("schedule bad is stuck") == 1


# Declarations in an app


def test_a_task_may_have_several_schedules(app: PgCron) -> None:
    @app.every("90s", name="often", queue="fast")
    @app.cron("30 2 * * *", tz="Europe/Berlin", args=("all",))
    @app.task(queue="slow", max_attempts=2)
    def tidy(what: str = "little") -> str:
        return what

    assert tidy("much") == "much"
    assert {name: (str(s.timing), s.queue, s.args) for name, s in app.declared.items()} == {
        tidy.name: ("30 2 * * *", "slow", '{"what":"all"}'), "often": ("every 1m30s", "fast", "{}"),
    }  # fmt: skip
    assert {s.task for s in app.declared.values()} == {tidy.name}
    assert {s.max_attempts for s in app.declared.values()} == {2}


def test_schedule_accepts_cron_expressions_and_intervals(app: PgCron) -> None:
    app.schedule("*/5 * * * *", name="a")(nothing)
    app.schedule("every 10s", name="b")(app.tasks[next(iter(app.tasks))])
    app.schedule(timedelta(hours=2), name="c")(app.tasks[next(iter(app.tasks))])

    assert [s.timing.words for s in app.declared.values()] == ["every 5 minutes", "every 10s", "every 2h"]


def nothing() -> None: ...


def with_argument(x: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"catchup": "all"}, "did you mean 'catch_up'"),
        ({"name": ""}, "name=''"),
        ({"tz": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ({"backof": "5s"}, "did you mean 'backoff'"),
        ({"queue": "*"}, "queue='*'"),
        ({"args": (1,)}, "cannot be called like this"),
        ({"args": {"y": 1}}, "cannot be called like this"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_options_are_refused_at_decoration(app: PgCron, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        app.cron("30 2 * * *", **options)(nothing)

    assert said in str(refusal.value)


def test_a_task_that_requires_arguments_is_refused_without_them(app: PgCron) -> None:
    with pytest.raises(OptionError, match=r"give them: args="):
        app.every("10s")(with_argument)


def test_a_second_schedule_of_the_same_name_is_refused(app: PgCron) -> None:
    task = app.every("10s")(nothing)
    app.every("10s")(task)  # the same once more, as when a module is imported under two names

    with pytest.raises(OptionError, match="two schedules are named"):
        app.every("20s")(task)


def test_options_of_the_task_are_refused_for_a_schedule_of_it(app: PgCron) -> None:
    task = app.task(nothing)

    with pytest.raises(OptionError, match=r"backoff= is about the task"):
        app.every("10s", backoff="5s")(task)


def test_nothing_is_declared_while_a_worker_runs(app: PgCron) -> None:
    app._freeze("its worker is running")

    with pytest.raises(SetupFinished, match="declare a schedule"):
        app.every("10s")(nothing)


# At run time


@pytest.fixture
def tidy(app: PgCron, seen: Seen) -> Any:
    return app.task(name="tidy")(seen.note)


def test_a_schedule_may_be_added_changed_and_removed(
    app: PgCron, clock: Clock, seen: Seen, tidy: Any, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    view = app.schedules.add("report", "*/10 * * * *", tidy, tz="Europe/Berlin", priority=5)
    assert (view.next_tick, view.origin, view.schedule.priority) == (START + 10 * MINUTE, "hand", 5)
    advance(worker, clock, timedelta(minutes=11))

    assert app.schedules.replace("report", "every 5m", "tidy", start=START).next_tick == START + 15 * MINUTE
    advance(worker, clock, timedelta(minutes=5))
    app.schedules.remove("report")
    advance(worker, clock, timedelta(minutes=30))

    assert [tick for _, tick, _, _ in seen] == [START + 10 * MINUTE, START + 15 * MINUTE]
    assert app.schedules.list() == []


def test_a_removed_run_time_schedule_is_replaced_by_the_declared_one(
    app: PgCron, clock: Clock, seen: Seen, tidy: Any, make_worker: Callable[..., Worker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app.schedules.add("report", "*/10 * * * *", tidy)
    app.cron("*/7 * * * *", name="report", run_on_start=True)(tidy)
    worker = make_worker()
    assert "a schedule created at run time has that name" in caplog.text

    app.schedules.remove("report")

    # Planned at once, not with the next step of a worker.
    assert app.schedules.get("report").next_tick == START + 7 * MINUTE
    advance(worker, clock, timedelta(minutes=11))
    assert [tick for _, tick, _, _ in seen] == [START + 7 * MINUTE]


def test_ticks_during_a_pause_are_skipped_also_after_the_resume(
    app: PgCron, clock: Clock, seen: Seen, tidy: Any, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    app.schedules.add("report", "*/10 * * * *", tidy, catch_up="all")
    app.schedules.pause("report")
    clock.advance(25 * 60)
    app.schedules.resume("report")
    advance(worker, clock, timedelta(minutes=6))

    assert [tick for _, tick, _, _ in seen] == [START + 30 * MINUTE]
    assert outcomes(app, "report")[:2] == [("skipped", "paused"), ("skipped", "paused")]


def test_run_now_also_runs_a_paused_schedule(
    app: PgCron, clock: Clock, seen: Seen, tidy: Any, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    app.schedules.add("report", "@yearly", tidy)
    app.schedules.pause("report")

    handles = [app.schedules.run_now("report") for _ in range(2)]
    advance(worker, clock, MINUTE)

    assert [handle.state() for handle in handles] == ["done", "done"]
    assert [name for name, *_ in seen] == ["report", "report"]


def test_backfill_runs_the_ticks_that_have_not_run(
    app: PgCron, clock: Clock, seen: Seen, tidy: Any, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    app.schedules.add("report", "0 * * * *", tidy)
    advance(worker, clock, timedelta(minutes=61))
    seen.clear()

    handles = app.schedules.backfill("report", START - 3 * HOUR)
    advance(worker, clock, timedelta(minutes=3))

    assert len(handles) == 4
    assert [(tick, caught_up) for _, tick, _, caught_up in seen] == [(START - n * HOUR, True) for n in (3, 2, 1, 0)]
    assert app.schedules.backfill("report", START - 3 * HOUR) == []


@pytest.mark.parametrize(
    ("do", "error", "said"),
    [
        (lambda s, t: s.get("reprot"), UnknownSchedule, "did you mean 'report'"),
        (lambda s, t: s.pause("reprot"), UnknownSchedule, "did you mean 'report'"),
        (lambda s, t: s.resume("reprot"), UnknownSchedule, "did you mean"),
        (lambda s, t: s.remove("reprot"), UnknownSchedule, "did you mean"),
        (lambda s, t: s.run_now("reprot"), UnknownSchedule, "did you mean"),
        (lambda s, t: s.replace("reprot", "@daily", t), UnknownSchedule, "did you mean"),
        (lambda s, t: s.add("report", "@daily", t), OptionError, "replace"),
        (lambda s, t: s.add("x", "@daly", t), OptionError, "did you mean"),
        (lambda s, t: s.add("x", "@daily", "tidi"), LookupError, "did you mean 'tidy'"),
        (lambda s, t: s.add("x", "@daily", t, run_on_start=True), OptionError, "run_now"),
        (lambda s, t: s.add("x", "@daily", t, catchup="all"), OptionError, "did you mean 'catch_up'"),
        (lambda s, t: s.backfill("report", datetime(2026, 1, 1)), OptionError, "time zone"),
        (lambda s, t: s.backfill("report", START, START + HOUR), OptionError, "still to come"),
        (lambda s, t: s.backfill("often", START - timedelta(days=30)), OptionError, "more than 10000"),
    ],
)
def test_refused_actions_name_an_alternative(app: PgCron, tidy: Any, do: Any, error: Any, said: str) -> None:
    app.schedules.add("report", "@hourly", tidy)
    app.schedules.add("often", "every 1s", tidy)

    with pytest.raises(error) as refusal:
        do(app.schedules, tidy)

    assert said in str(refusal.value)


def test_a_declared_schedule_can_only_be_changed_in_code(
    app: PgCron, tidy: Any, make_worker: Callable[..., Worker]
) -> None:
    app.cron("@hourly", name="report")(tidy)
    make_worker()

    with pytest.raises(OptionError, match="declared in code"):
        app.schedules.remove("report")
    with pytest.raises(OptionError, match="declared in code"):
        app.schedules.replace("report", "@daily", tidy)


def test_next_returns_the_coming_times(app: PgCron, tidy: Any) -> None:
    app.schedules.add("report", "30 2 * * *", tidy, tz="Europe/Berlin")

    ahead = app.schedules.next("report", 30)

    assert ahead[:2] == [datetime(2026, 3, 2, 1, 30, tzinfo=UTC), datetime(2026, 3, 3, 1, 30, tzinfo=UTC)]
    assert datetime(2026, 3, 29, 1, tzinfo=UTC) in ahead  # this time does not exist: the clocks are put forward


@pytest.mark.parametrize("what", ["cancel", "delete"])
def test_next_omits_cancelled_and_deleted_ticks(app: PgCron, tidy: Any, what: str) -> None:
    app.schedules.add("report", "30 2 * * *", tidy)
    first, second, *_ = app.schedules.next("report")
    [job] = app.store.find(states=["queued"])

    getattr(app.store, what)(job.id)

    assert app.schedules.next("report", 1) == [second] != [first]
