"""The testing toolkit: an app under test, in memory with a time of its own, and on a real database."""

import contextlib
import datetime as calendar
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import flask
import psycopg
import pytest
import sqlalchemy
import time_machine
from freezegun import freeze_time
from sqlalchemy.orm import Session
from support import eventually

import pgcron_lite
from pgcron_lite import Backoff, Cancel, PgCron, Retry, Snooze, current_job
from pgcron_lite.errors import (
    ConfigError,
    JobFailed,
    OptionError,
    PgCronError,
    SetupFinished,
    UnknownJob,
    UnknownSchedule,
    UnknownTask,
    WaitTimeout,
)
from pgcron_lite.memory import MemoryStore
from pgcron_lite.testing import RunRecord
from pgcron_lite.testing.driver import MAX_AT_ONCE
from pgcron_lite.worker.process import run_worker

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
AT = "2026-03-01 12:00"
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Shop:
    """An app as its module has it, with what its tasks have done."""

    def __init__(self, url: str = "postgresql://db.invalid/shop") -> None:
        self.app = app = PgCron("shop", url=url)
        self.did: list[Any] = []
        self.fails = 0

        @app.task(name="send", queue="mail")
        def send(to: str, urgent: bool = False) -> str:
            self.did.append(to)
            return f"sent to {to}"

        @app.task(name="flaky", max_attempts=4)
        def flaky() -> None:
            self.did.append(current_job.attempt)
            if self.fails > 0:
                self.fails -= 1
                raise ConnectionError("the other side is away")

        @app.task(name="chain")
        def chain(left: int) -> None:
            self.did.append(left)
            if left:
                chain.delay(left - 1)

        self.send, self.flaky, self.chain = send, flaky, chain

    def noted(self, name: str = "nightly", **options: Any) -> Any:
        """Declares a schedule whose runs note their ticks."""

        def note() -> None:
            self.did.append(current_job.tick)

        when = options.pop("when", "30 2 * * *")
        return self.app.schedule(when, name=name, **options)(self.app.task(name=name)(note))


@pytest.fixture
def shop() -> Shop:
    return Shop()


def moments(runs: list[RunRecord], since: datetime = START) -> list[timedelta]:
    return [run.at - since for run in runs]


def states(runs: list[RunRecord]) -> list[str]:
    return [run.state for run in runs]


# The block


def test_an_app_is_under_test_in_memory_and_afterwards_as_it_was(shop: Shop) -> None:
    with shop.app.testing() as t:
        handle = shop.send.delay("a@b.c")
        [run] = t.drain()

        assert shop.app.settings.is_memory
        assert handle.result() == "sent to a@b.c"
        assert (run.task, run.state, run.attempt, run.error) == ("send", "done", 1, None)
    assert shop.app.settings.database_url == "postgresql://db.invalid/shop"
    assert shop.app._store is None
    assert shop.app._harness is None


def test_an_app_that_was_used_before_gets_its_store_and_settings_back() -> None:
    shop = Shop("memory://")
    kept = shop.send.delay("first")
    store, settings = shop.app.store, shop.app.settings

    with shop.app.testing() as t:
        assert t.enqueued() == []
        shop.send.delay("second")
        with pytest.raises(UnknownJob):
            shop.app.handle(99).job()

    assert shop.app.store is store
    assert shop.app.settings is settings
    assert kept.state() == "queued"
    assert [job.id for job in store.find()] == [kept.id]


def test_nothing_leaks_from_one_block_to_the_next(shop: Shop) -> None:
    with shop.app.testing(lease="5s") as t:
        assert shop.app.settings.lease == 5 * SECOND
        shop.send.delay("x")
        t.takes(shop.send, "1h")
        shop.app.store.pause("mail")

    with shop.app.testing() as t:
        assert shop.app.settings.lease == 30 * SECOND
        assert (t.enqueued(), t.runs(), t.drain()) == ([], [], [])
        shop.send.delay("y")
        assert states(t.drain()) == ["done"]


def test_an_error_in_the_block_comes_out_and_the_app_is_as_it_was(shop: Shop) -> None:
    with contextlib.suppress(ZeroDivisionError), shop.app.testing():
        shop.send.delay("x")
        raise ZeroDivisionError

    assert shop.app._harness is None
    assert shop.app._store is None


def test_a_block_that_cannot_begin_leaves_the_app_as_it_was(shop: Shop) -> None:
    for options in ({"lease": "soon"}, {"leese": "5s"}, {"url": "postgresql://127.0.0.1:1/none"}):
        with pytest.raises(PgCronError):
            shop.app.testing(**options).__enter__()
        assert (shop.app._harness, shop.app._store, shop.app._overruling) == (None, None, ("", {}))


def test_one_block_of_an_app_does_not_stand_in_another(shop: Shop) -> None:
    with shop.app.testing() as t:
        shop.send.delay("x")
        with pytest.raises(PgCronError, match="under test already"), shop.app.testing():
            pytest.fail("the block has begun")
        assert len(t.drain()) == 1


def test_two_apps_are_under_test_side_by_side() -> None:
    one, other = Shop(), Shop()

    with one.app.testing(at=AT) as t, other.app.testing(at="2026-04-01") as u:
        one.send.delay("one")
        other.send.options(execute_after="1h").delay("other")
        t.drain()
        u.advance("2h")

        assert (one.did, other.did) == (["one"], ["other"])
        assert (t.now, u.now) == (START, datetime(2026, 4, 1, 2, tzinfo=UTC))


def test_a_block_that_has_ended_says_so(shop: Shop) -> None:
    with shop.app.testing() as t:
        shop.send.delay("x")
        t.drain()

    assert states(t.runs()) == states(t.runs("send")) == ["done"]
    for ask in (t.drain, t.enqueued, t.stop_worker, lambda: t.advance("1d"), lambda: t.runs("sent")):
        with pytest.raises(PgCronError, match="has ended"):
            ask()


def test_a_block_that_has_not_begun_says_so(shop: Shop) -> None:
    t = shop.app.testing()

    for ask in (t.drain, t.enqueued, t.stop_worker, t.start_worker, t.crash_worker, lambda: t.takes(shop.send, "1h")):
        with pytest.raises(PgCronError, match=r"not begun: write with app\.testing"):
            ask()


def test_a_block_begins_once(shop: Shop) -> None:
    block = shop.app.testing()
    with block as t:
        shop.send.delay("x")
        t.drain()

    with pytest.raises(PgCronError, match=r"call app\.testing\(\) again"), block:
        pytest.fail("what has run before is in it")
    assert shop.app._harness is None


@pytest.mark.parametrize("settings", [{"url": None}, {"url": ""}, {"database_url": None}])
def test_a_url_that_is_missing_is_not_taken_for_that_of_the_app(shop: Shop, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected the URL of a database for tests"):
        shop.app.testing(**settings)


def test_a_block_whose_test_has_left_a_thread_behind_ends_and_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgcron_lite.testing.session.LEAVE_SECONDS", 0.05)
    begun, go = threading.Event(), threading.Event()

    @shop.app.task(name="stuck")
    def stuck() -> None:
        begun.set()
        go.wait(30)

    def fail(error: Exception | None) -> None:
        with shop.app.testing() as t:
            stuck.delay()
            shop.send.delay("after")
            thread = threading.Thread(target=t.drain)
            threads.append(thread)
            thread.start()
            assert begun.wait(30)
            if error is not None:
                raise error

    threads: list[threading.Thread] = []
    try:
        with pytest.raises(PgCronError, match=r"another thread runs stuck#1 .*: join the threads"):
            fail(None)
        begun.clear()
        with pytest.raises(ZeroDivisionError):
            fail(ZeroDivisionError())
        assert (shop.app._harness, shop.app._store) == (None, None)
    finally:
        go.set()
        for thread in threads:
            thread.join(30)
    assert shop.did == []  # their worker is gone


def test_the_settings_of_a_flask_app_come_in_the_block_as_well(shop: Shop) -> None:
    for _ in range(2):
        with shop.app.testing() as t:
            web = flask.Flask("shop")
            web.config["PGCRON_LEASE"] = "10s"
            shop.app.init_app(web)
            shop.send.delay("x")
            assert len(t.drain()) == 1
            assert shop.app.settings.lease == 10 * SECOND


def test_a_worker_of_the_app_in_this_process_is_not_robbed(shop: Shop) -> None:
    shop.app._freeze("its worker is running")

    with pytest.raises(PgCronError, match="a worker running"), shop.app.testing():
        pytest.fail("the block has begun")


def test_what_is_registered_in_the_block_is_known_to_the_worker(shop: Shop) -> None:
    with shop.app.testing(at=AT) as t:
        t.drain()
        late = shop.app.task(name="late")(lambda: shop.did.append("late"))
        late.delay()
        shop.noted(when="0 * * * *", name="hourly")

        t.advance("1h")

    assert shop.did == ["late", START + HOUR]


# Draining


def test_drain_runs_what_that_enqueues_and_leaves_what_is_not_due(shop: Shop) -> None:
    with shop.app.testing() as t:
        shop.chain.delay(3)
        later = shop.send.options(execute_after="1s").delay("later")

        runs = t.drain()

        assert shop.did == [3, 2, 1, 0]
        assert [run.task for run in runs] == ["chain"] * 4
        assert (later.state(), t.drain(), len(t.runs())) == ("queued", [], 4)


def test_jobs_run_in_the_calling_thread_by_priority_and_due_time(shop: Shop) -> None:
    threads: list[threading.Thread] = []
    shop.app.on("job_started")(lambda job: threads.append(threading.current_thread()))

    with shop.app.testing() as t:
        shop.send.delay("usual")
        shop.send.options(priority=5).delay("urgent")
        shop.send.options(priority=-5).delay("idle")
        t.drain()

    assert shop.did == ["urgent", "usual", "idle"]
    assert set(threads) == {threading.current_thread()}


def test_a_task_sees_nothing_of_the_tests_context_and_everything_of_its_job(shop: Shop) -> None:
    import contextvars

    user = contextvars.ContextVar("user", default="nobody")
    user.set("me")
    seen: list[Any] = []
    look = shop.app.task(name="look")(lambda: seen.append((user.get(), bool(current_job), current_job.stopping)))

    with shop.app.testing() as t:
        look.delay()
        t.drain()

    assert seen == [("nobody", True, False)]
    assert not current_job


def test_an_error_is_dealt_with_as_in_production_and_comes_out_if_asked_for(shop: Shop) -> None:
    shop.fails = 2
    with shop.app.testing(at=AT) as t:
        handle = shop.flaky.delay()
        with pytest.raises(ConnectionError, match="the other side is away"):
            t.drain(raises=True)
        assert (handle.state(), handle.job().error) == ("queued", "ConnectionError: the other side is away")

        assert states(t.advance("1m")) == ["retrying", "done"]
        assert [str(run.error) for run in t.runs() if run.error] == ["the other side is away"] * 2


def test_errors_come_out_of_every_call_of_a_block_that_says_so(shop: Shop) -> None:
    shop.fails = 2
    with shop.app.testing(raises=True) as t:
        shop.flaky.delay()
        with pytest.raises(ConnectionError):
            t.drain()
        with pytest.raises(ConnectionError):
            t.advance("1m")
        assert states(t.drain(raises=False)) == []
        assert states(t.advance("1m")) == ["done"]


def test_the_error_of_a_run_that_lasts_comes_out_when_it_is_over(shop: Shop) -> None:
    shop.fails = 1
    with shop.app.testing(at=AT, raises=True) as t:
        t.takes(shop.flaky, "5m")
        handle = shop.flaky.delay()
        t.advance("4m")
        assert [(run.state, run.error) for run in t.runs()] == [("running", None)]

        with pytest.raises(ConnectionError):
            t.advance("1h")

        assert (t.now, handle.state()) == (START + 5 * MINUTE, "queued")
        assert [(run.state, str(run.error)) for run in t.runs()] == [("retrying", "the other side is away")]


def test_a_run_that_is_cut_off_has_no_error_of_its_task(shop: Shop) -> None:
    shop.fails = 1
    with shop.app.testing(at=AT) as t:
        t.takes(shop.flaky, "5m")
        shop.flaky.delay()
        t.advance("1m")
        t.stop_worker()

        assert [(run.state, run.error) for run in t.runs()] == [("released", None)]


@pytest.mark.parametrize("end", [KeyboardInterrupt, pytest.fail.Exception, pytest.skip.Exception])
def test_what_is_meant_for_the_test_comes_out_of_a_task(shop: Shop, end: type[BaseException]) -> None:
    def interrupted() -> None:
        raise end("here")

    task = shop.app.task(name="interrupted")(interrupted)
    with shop.app.testing() as t:
        handle = task.delay()
        with pytest.raises(end):
            t.drain()
        assert handle.state() == "queued"


def test_a_task_that_wants_to_end_its_process_has_failed_as_in_production(shop: Shop) -> None:
    leaves = shop.app.task(name="leaves")(lambda: sys.exit(3))
    with shop.app.testing() as t:
        leaves.delay()
        assert states(t.drain()) == ["retrying"]


def test_what_steers_a_job_is_no_error(shop: Shop) -> None:
    steps: Iterator[Exception] = iter([Retry(after="5s"), Snooze("1h"), Cancel("enough")])

    @shop.app.task(name="steered")
    def steered() -> None:
        raise next(steps)

    with shop.app.testing(at=AT, raises=True) as t:
        steered.delay()
        runs = t.advance("1d")

    assert states(runs) == ["retrying", "snoozed", "cancelled"]
    assert moments(runs) == [0 * SECOND, 5 * SECOND, HOUR + 5 * SECOND]


def test_a_circle_that_takes_no_time_is_found(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgcron_lite.testing.driver.MAX_AT_ONCE", 50)
    assert MAX_AT_ONCE > 10_000

    @shop.app.task(name="again")
    def again() -> None:
        raise Snooze(0)

    with shop.app.testing() as t:
        again.delay()
        with pytest.raises(PgCronError, match="no time has passed"):
            t.drain()


def test_waiting_for_a_job_runs_it(shop: Shop) -> None:
    shop.fails = 9
    with shop.app.testing() as t:
        assert shop.send.delay("x").result() == "sent to x"
        handle = shop.flaky.options(max_attempts=1).delay()
        with pytest.raises(JobFailed, match="the other side is away"):
            handle.result(timeout=60)
        assert len(t.runs()) == 2


def test_waiting_for_what_does_not_end_says_why(shop: Shop) -> None:
    ask: list[Callable[[], Any]] = []
    nested = shop.app.task(name="nested")(lambda: ask[0]())
    with shop.app.testing(at=AT) as t:
        later = shop.send.options(execute_after="1h").delay("x")
        with pytest.raises(WaitTimeout, match=r"due at 2026-03-01 13:00:00 UTC; t\.advance"):
            later.result(timeout=60)
        ask.append(lambda: shop.send.delay("y").result())
        nested.delay()
        with pytest.raises(WaitTimeout, match=r"nested#.* waits for it"):
            t.drain(raises=True)
        shop.app.store.pause("mail")
        with pytest.raises(WaitTimeout, match="its queue 'mail' is paused"):
            shop.send.delay("z").result()


def test_what_a_job_waits_for_is_named(shop: Shop) -> None:
    gone = shop.app.task(name="gone")(lambda: None)
    with shop.app.testing(at=AT, slots=1) as t:
        left = gone.delay()
        del shop.app.tasks["gone"]
        with pytest.raises(WaitTimeout, match="no task named 'gone' is registered on <PgCron 'shop'>"):
            left.result()
        t.takes(shop.send, "1h")
        first, second = shop.send.map([("a",), ("b",)])
        with pytest.raises(WaitTimeout, match="it lasts for longer"):
            first.result()
        with pytest.raises(WaitTimeout, match="every slot has a run that lasts"):
            second.result()
        t.crash_worker()
        with pytest.raises(WaitTimeout, match="has died, and it is rescued after a lease"):
            first.result()
        t.stop_worker()
        with pytest.raises(WaitTimeout, match=r"stopped; t\.start_worker"):
            second.result()


def test_a_task_cannot_turn_its_own_worker(shop: Shop) -> None:
    with shop.app.testing() as t:
        inner = shop.app.task(name="inner")(lambda: t.advance("1h"))
        inner.delay()
        with pytest.raises(PgCronError, match=r"advance\(\) within a task \(inner#1.*t\.takes"):
            t.drain(raises=True)


def test_a_thread_of_the_test_takes_its_turn_after_another(shop: Shop) -> None:
    begun, go = threading.Event(), threading.Event()

    @shop.app.task(name="slow")
    def slow() -> None:
        begun.set()
        go.wait(30)
        shop.did.append("slow")

    with shop.app.testing() as t:
        slow.delay()
        thread = threading.Thread(target=t.drain)
        thread.start()
        assert begun.wait(30)
        after = shop.send.delay("after")
        with pytest.raises(WaitTimeout, match=r"another thread runs slow#1 "):
            after.result()
        threading.Timer(0.05, go.set).start()
        t.drain()
        thread.join(30)

    assert shop.did == ["slow", "after"]


# What waits


def test_what_is_enqueued_is_listed_and_asserted(shop: Shop) -> None:
    with shop.app.testing(at=AT) as t:
        shop.send.delay("a")
        shop.send.options(execute_after="1h", queue="bulk").delay(to="b", urgent=True)
        shop.chain.delay(1)

        assert [job.args for job in t.enqueued(shop.send)] == ['{"to":"a"}', '{"to":"b","urgent":true}']
        assert len(t.enqueued()) == 3
        assert [job.task for job in t.enqueued(queue="mail")] == ["send"]
        assert t.assert_enqueued(shop.send, "a").id == 1
        assert t.assert_enqueued(shop.send, to="a", urgent=False).id == 1
        assert t.assert_enqueued("send", "b", urgent=True, queue="bulk", execute_after="1h").id == 2
        assert t.assert_enqueued(shop.send, execute_after=START + HOUR).id == 2
        assert t.assert_enqueued(shop.send, execute_after=0).id == 1


def test_an_assertion_that_fails_lists_what_is_there(shop: Shop) -> None:
    with shop.app.testing(at=AT) as t:
        with pytest.raises(AssertionError) as nothing:
            t.assert_enqueued(shop.send, "a")
        shop.chain.delay(1)
        with pytest.raises(AssertionError) as others:
            t.assert_enqueued(shop.send, "a")
        shop.send.delay("done")
        t.drain()
        shop.send.delay("b")
        shop.send.options(execute_after="1h", queue="bulk").delay("a")
        with pytest.raises(AssertionError) as same:
            t.assert_enqueued(shop.send, "a", execute_after="2h", queue="mail")

    assert str(nothing.value) == "no such job is waiting: send(to='a', urgent=False)\nno job is waiting at all"
    assert str(others.value).splitlines()[1:] == ["waiting jobs of other tasks:", '  chain {"left":1}']
    assert str(same.value).splitlines() == [
        "no such job is waiting: send(to='a', urgent=False) in queue 'mail', due 2h after it was enqueued",
        "waiting jobs of this task:",
        "  #4 (to='b', urgent=False), queue 'mail', due at once",
        "    differs in to: 'b', not 'a'; due: at once, not 2h after it was enqueued",
        "  #5 (to='a', urgent=False), queue 'bulk', due 1h after it was enqueued (2026-03-01 13:00:00+00:00)",
        "    differs in queue: 'bulk', not 'mail'; due: 1h after it was enqueued, not 2h after it was enqueued",
        "it has run already:",
        '  send#2 (attempt 1/5) done, 2026-03-01 12:00:00 UTC {"to":"done"}',
    ]


def test_a_question_that_cannot_be_right_is_refused(shop: Shop) -> None:
    with shop.app.testing() as t:
        with pytest.raises(TypeError, match="cannot be called like this"):
            t.assert_enqueued(shop.send, "a", subject="x")
        with pytest.raises(UnknownTask, match="did you mean 'send'"):
            t.enqueued("sent")
        shop.noted()
        t.drain()
        with pytest.raises(UnknownSchedule, match="did you mean 'nightly'"):
            t.runs("nightley")


def test_no_list_of_nothing_is_given_for_a_name_that_nobody_has(shop: Shop) -> None:
    other = PgCron("other", url="memory://").task(name="others")(lambda: None)
    shop.noted()
    with shop.app.testing() as t:
        for ask in (lambda: t.enqueued(schedule="nightley"), lambda: t.ticks("nightley")):
            with pytest.raises(UnknownSchedule, match="did you mean 'nightly'"):
                ask()
        with pytest.raises(UnknownTask, match="others"):
            t.runs(other)
        for ask in (lambda: t.runs(5), lambda: t.enqueued(len), lambda: t.takes(None, 1), lambda: t.ticks(shop.send)):
            with pytest.raises(OptionError, match=r"expected (a task of <PgCron 'shop'>|the name of a schedule)"):
                ask()
        shop.app.cron("0 * * * *", name="hourly")(shop.flaky)
        assert (t.enqueued(schedule="hourly"), t.ticks("hourly"), t.runs("hourly")) == ([], [], [])
        with pytest.raises(UnknownTask, match="'hourly' on app 'shop': that is a schedule, of task 'flaky'"):
            t.takes("hourly", "1h")


def test_an_assertion_that_fails_shows_what_comes_closest_first(shop: Shop) -> None:
    moved = shop.app.task(name="moved")(lambda queue: None)
    with shop.app.testing(at=AT) as t:
        for number in range(30):
            shop.send.delay(f"{number}")
        shop.send.delay("a", urgent=True)
        with pytest.raises(AssertionError) as urgent:
            t.assert_enqueued(shop.send, "a")
        moved.delay("mail")
        with pytest.raises(AssertionError) as taken:
            t.assert_enqueued(moved, queue="mail")

    lines = str(urgent.value).splitlines()
    assert lines[2:4] == [
        "  #1 (to='0', urgent=False), queue 'mail', due at once", "    differs in to: '0', not 'a'",
    ]  # fmt: skip
    assert lines[-1] == "  … and 11 more"
    assert str(taken.value).splitlines()[-1] == (
        "queue= is an option of the job; pass an argument of moved named queue by position"
    )


def test_what_a_schedule_has_planned_is_not_taken_for_a_call(shop: Shop) -> None:
    nightly = shop.noted()
    with shop.app.testing(at=AT) as t:
        with pytest.raises(AssertionError, match=r"'nightly' has planned it.*t\.enqueued\(schedule='nightly'\)"):
            t.assert_enqueued(nightly)
        assert t.enqueued() == []
        assert [job.execute_after for job in t.enqueued(schedule="nightly")] == [START + 14.5 * HOUR]


# Inline


def test_inline_runs_a_job_as_it_is_enqueued(shop: Shop) -> None:
    with shop.app.testing(inline=True) as t:
        assert shop.send.delay("a").result() == "sent to a"
        assert shop.did == ["a"]
        shop.send.map([("b",), ("c",)])
        assert shop.did == ["a", "b", "c"]
        shop.send.options(execute_after="1h").delay("later")
        assert len(t.enqueued()) == 1
        shop.chain.delay(3)  # what a task enqueues runs after it
        assert shop.did[3:] == [3, 2, 1, 0]


def test_inline_keeps_to_the_policy_unless_errors_are_to_come_out(shop: Shop) -> None:
    shop.fails = 2
    with shop.app.testing(inline=True) as t:
        handle = shop.flaky.delay()
        assert (handle.state(), handle.job().attempt) == ("queued", 1)
        t.advance("1h")
        assert handle.state() == "done"

    shop.fails = 1
    with shop.app.testing(inline=True, raises=True), pytest.raises(ConnectionError):
        shop.flaky.delay()


def test_in_memory_a_connection_is_taken_and_ignored(shop: Shop) -> None:
    with shop.app.testing() as t:
        shop.send.options(conn=object()).delay("x")
        assert len(t.drain()) == 1


# Time


def test_a_day_on_which_the_clocks_change(shop: Shop) -> None:
    shop.noted(tz="Europe/Berlin")
    with shop.app.testing(at="2026-03-28 12:00", tz="Europe/Berlin") as t:
        runs = t.advance("1d")

        # 02:30 does not exist: it runs when the clock first shows a later time.
        assert moments(runs, datetime(2026, 3, 29, 1, tzinfo=UTC)) == [0 * SECOND]
        assert t.now == datetime(2026, 3, 29, 13, tzinfo=BERLIN)
        t.advance(to="2026-10-26 00:00")
        assert len(t.runs("nightly")) == 211
        assert [run.tick for run in t.runs("nightly")][-1] == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


def test_the_time_stands_still_until_it_is_moved(shop: Shop) -> None:
    with shop.app.testing(at=AT) as t:
        shop.send.delay("x")
        t.drain()
        assert t.now == shop.app.store.now() == START
        assert t.advance("90s") == []
        assert t.now == START + 90 * SECOND
        t.advance(to="2026-03-02")
        assert t.now == datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at": "noon"}, 'expected a moment such as "2026-03-28 12:00"'),
        ({"at": 5}, "expected a datetime or a text"),
        ({"at": "2026-03-29 02:30", "tz": "Europe/Berlin"}, "this time does not exist in Europe/Berlin"),
        ({"tz": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ({"clock": object()}, "freeze_time"),
    ],
)
def test_a_time_that_cannot_be_is_refused(shop: Shop, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        shop.app.testing(**options)


@pytest.mark.parametrize(
    ("args", "to", "said"),
    [
        ((), None, "takes a duration"),
        (("1d",), "2027-01-01", "takes a duration"),
        (("soon",), None, "is not a duration"),
        (("2026-03-02",), None, r"that is a moment, not a duration: advance\(to='2026-03-02'\)"),
        ((datetime(2026, 3, 2),), None, r"advance\(to=datetime"),
        ((-5,), None, "is negative"),
        ((), "2026-02-01", "time goes forward"),
    ],
)
def test_a_way_that_cannot_be_gone_is_refused(shop: Shop, args: Any, to: Any, said: str) -> None:
    with shop.app.testing(at=AT) as t, pytest.raises(OptionError, match=said):
        t.advance(*args, to=to)


def test_everything_happens_at_its_moment_and_in_its_order(shop: Shop) -> None:
    shop.fails = 3
    shop.noted("quarterly", when="*/15 * * * *")
    with shop.app.testing(at=AT) as t:
        shop.send.options(execute_after=START + 20 * MINUTE).delay("at twenty past")
        shop.send.options(execute_after="10s").delay("soon")
        shop.flaky.delay()

        runs = t.advance("30m")

        assert [(run.task, run.at - START) for run in runs] == [
            ("flaky", 0 * SECOND), ("send", 10 * SECOND), ("flaky", 10 * SECOND), ("flaky", 40 * SECOND),
            ("flaky", 130 * SECOND), ("quarterly", 15 * MINUTE), ("send", 20 * MINUTE), ("quarterly", 30 * MINUTE),
        ]  # fmt: skip
        assert t.runs() == runs


def test_a_backoff_takes_exactly_as_long_as_planned(shop: Shop) -> None:
    always = shop.app.task(name="always", max_attempts=5, backoff=Backoff("1m", factor=2, jitter=1))(lambda: 1 / 0)
    with shop.app.testing(at=AT) as t:
        always.delay()
        runs = t.advance("1d")

    assert moments(runs) == [n * MINUTE for n in (0, 1, 3, 7, 15)]
    assert states(runs) == ["retrying"] * 4 + ["failed"]
    assert [entry["at"] for entry in runs[-1].job.errors] == [run.at.isoformat() for run in runs[:-1]]


def test_jobs_of_a_schedule_know_their_tick(shop: Shop) -> None:
    seen: list[Any] = []

    @shop.app.cron("0 * * * *", name="hourly", jitter="10m")
    def hourly() -> None:
        seen.append((current_job.tick, current_job.previous_tick, current_job.is_caught_up))

    with shop.app.testing(at=AT) as t:
        runs = t.advance("130m")

    assert seen == [(START + HOUR, None, False), (START + 2 * HOUR, START + HOUR, False)]
    late = [run.at - run.tick for run in runs if run.tick]
    assert len(late) == 2
    assert all(timedelta(0) <= each <= 10 * MINUTE for each in late)


def test_a_run_that_starts_with_the_code_and_one_from_end_to_start(shop: Shop) -> None:
    shop.noted("warm", when="@yearly", run_on_start=True)
    shop.noted("lazy", when="every 10m", after_finish=True)
    with shop.app.testing(at=AT) as t:
        t.takes("lazy", "5m")
        t.advance("40m")

        assert moments(t.runs("warm")) == [0 * SECOND]
        assert moments(t.runs("lazy")) == [10 * MINUTE, 25 * MINUTE, 40 * MINUTE]


def test_code_that_comes_to_life_at_the_moment_of_a_tick_runs_beside_it(shop: Shop) -> None:
    shop.noted("warm", when="*/10 * * * *", run_on_start=True, overlap="allow")
    with shop.app.testing(at=AT) as t:
        t.advance("10m")
        # Twice, and no time passes.
        for name in ("one", "other"):
            shop.noted(name, when="@yearly")
            t.drain()

        assert [run.at - START for run in t.runs("warm")] == [0 * SECOND] + [10 * MINUTE] * 3
        assert [view.kind for view in t.ticks("warm")] == ["start", "tick", "start", "start"]


@pytest.mark.parametrize(
    ("overlap", "begins", "skipped"),
    [("skip", [10, 40, 70], 4), ("queue", [10, 35, 60], 0), ("allow", range(10, 71, 10), 0)],
)
def test_runs_that_take_their_time_overlap_by_policy(shop: Shop, overlap: Any, begins: Any, skipped: int) -> None:
    shop.noted("slow", when="*/10 * * * *", overlap=overlap, catch_up="all")
    with shop.app.testing(at=AT) as t:
        t.takes("slow", "25m")
        t.advance("70m")

        assert moments(t.runs("slow")) == [n * MINUTE for n in begins]
        reasons = [view.reason for view in t.ticks("slow") if view.outcome == "skipped"]
        assert len(reasons) == skipped
        assert all(str(reason).startswith("overlap: the run of") for reason in reasons)


def test_a_run_that_lasts_ends_when_it_has(shop: Shop) -> None:
    heard: list[Any] = []
    shop.app.on("job_done")(lambda job, seconds: heard.append((job.task, seconds)))
    with shop.app.testing(at=AT) as t:
        t.takes(shop.send, "90s")
        handle = shop.send.delay("x")
        t.drain()
        assert (shop.did, handle.state(), states(t.runs())) == (["x"], "running", ["running"])
        t.advance("89s")
        assert handle.state() == "running"
        t.advance("1s")

        assert handle.result() == "sent to x"
        assert handle.job().finished_at == START + 90 * SECOND
    assert heard == [("send", 90.0)]


def test_no_more_run_at_once_than_there_are_slots(shop: Shop) -> None:
    with shop.app.testing(at=AT, slots=2) as t:
        t.takes(shop.send, "10m")
        shop.send.map([(str(n),) for n in range(5)])
        runs = t.advance("1h")

    assert moments(runs) == [n * 10 * MINUTE for n in (0, 0, 1, 1, 2)]


@pytest.mark.parametrize(
    ("catch_up", "ran"), [("latest", [72]), ("all", [24, 48, 72]), ("skip", [])], ids=["latest", "all", "skip"]
)
def test_an_outage_is_made_up_for_by_policy(shop: Shop, catch_up: Any, ran: list[int]) -> None:
    missed: list[datetime] = []
    shop.app.on("schedule_missed")(lambda schedule, tick: missed.append(tick))
    shop.noted("daily", when="0 12 * * *", catch_up=catch_up)
    with shop.app.testing(at=AT) as t:
        t.advance("1h")
        t.stop_worker()
        assert t.advance("3d") == []
        with pytest.raises(PgCronError, match="start_worker"):
            t.drain()
        runs = t.start_worker()

        assert [run.tick for run in runs] == [START + n * HOUR for n in ran]
        assert all(run.at == START + 3 * DAY + HOUR for run in runs)
        assert [view.outcome for view in t.ticks("daily")] == ["done" if n in ran else "skipped" for n in (24, 48, 72)]
        assert len(missed) == 1
        assert [run.tick for run in t.advance("1d")] == [START + 96 * HOUR]


def test_what_runs_when_the_worker_stops_is_handed_back_unharmed(shop: Shop) -> None:
    with shop.app.testing(at=AT) as t:
        t.takes(shop.send, "1h")
        handle = shop.send.options(max_attempts=1).delay("x")
        t.advance("10m")
        t.stop_worker()
        assert (handle.state(), handle.job().attempt, states(t.runs())) == ("queued", 0, ["released"])
        with pytest.raises(PgCronError, match="stopped"):
            t.stop_worker()
        t.start_worker()
        with pytest.raises(PgCronError, match="a worker already"):
            t.start_worker()
        t.advance("2h")

        assert states(t.runs()) == ["released", "done"]


def test_alarms_are_raised_in_time_and_end(shop: Shop) -> None:
    heard: list[tuple[str, timedelta]] = []
    with shop.app.testing(at=AT) as t:
        for event in ("schedule_missed", "schedule_late", "schedule_recovered"):
            shop.app.on(event)(lambda schedule, tick, event=event: heard.append((event, t.now - START)))
        shop.noted("slow", when="*/10 * * * *")
        t.drain()
        shop.app.store.pause("default")
        t.advance("12m")
        shop.app.store.resume("default")
        t.drain()
        t.takes("slow", "15m")
        t.advance("40m")

    kinds = [kind for kind, _ in heard]
    assert kinds[:2] == ["schedule_missed", "schedule_recovered"]
    assert timedelta(minutes=11) <= heard[0][1] <= timedelta(minutes=11, seconds=16)
    assert kinds[2:4] == ["schedule_late", "schedule_recovered"]
    assert timedelta(minutes=30) <= heard[2][1] <= timedelta(minutes=30, seconds=16)
    assert heard[3][1] == timedelta(minutes=35)


def test_monitors_are_not_told_of_tests(shop: Shop) -> None:
    shop.noted("watched", when="0 * * * *", ping="http://127.0.0.1:1/check")
    with shop.app.testing(at=AT) as t:
        t.advance("1h")

        assert [(url, kind) for url, kind, _ in t.sent] == [
            ("http://127.0.0.1:1/check", "start"), ("http://127.0.0.1:1/check", "success"),
        ]  # fmt: skip
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pgcron")]


# Crashes


def test_what_a_dead_worker_held_is_rescued_after_the_lease_and_runs_alone(shop: Shop) -> None:
    heard: list[str] = []
    shop.app.on("job_rescued")(lambda job: heard.append(job.task))
    with shop.app.testing(at=AT) as t:
        handles = shop.send.map([("a",), ("b",)])
        t.crash_worker()
        assert ([handle.state() for handle in handles], shop.did) == (["running", "running"], [])
        assert t.advance("29s") == []
        runs = t.advance("10s")

        # As long as a reaper has to watch, and until it looks again.
        assert all(30 * SECOND <= moment <= 35 * SECOND for moment in moments(runs))
        assert [(run.job.alone, run.attempt, run.job.crashes) for run in runs] == [(True, 1, 0)] * 2
        assert heard == ["send", "send"]


def test_a_task_that_kills_its_worker_is_stopped_as_in_production(shop: Shop) -> None:
    with shop.app.testing(at=AT) as t:

        @shop.app.task(name="poison")
        def poison() -> None:
            try:
                t.crash_worker()
            except Exception:
                pytest.fail("a dead worker catches nothing")
            pytest.fail("a dead worker goes on")

        handle = poison.delay()
        shop.send.options(priority=-1).delay("innocent")
        runs = t.advance("10m")

        # Found among others at first, then three times alone.
        assert [run.state for run in runs if run.task == "poison"] == ["crashed"] * 4
        assert (handle.state(), handle.job().crashes) == ("failed", 3)
        assert handle.job().error == "the worker died 3 times while running this job alone"
        assert shop.did == ["innocent"]
        with pytest.raises(JobFailed):
            handle.result()


def test_what_ran_for_a_while_dies_in_the_middle(shop: Shop) -> None:
    with shop.app.testing(at=AT, lease="1m") as t:
        t.takes(shop.send, "10m")
        shop.send.delay("x")
        t.advance("5m")
        t.crash_worker()
        runs = t.advance("20m")

        assert states(t.runs()) == ["crashed", "done"]
        assert timedelta(minutes=6) <= moments(runs)[0] <= timedelta(minutes=6, seconds=5)


def test_a_crash_during_a_tick_loses_it_to_nobody(shop: Shop) -> None:
    shop.noted("nightly", when="0 * * * *")
    with shop.app.testing(at=AT) as t:
        t.takes("nightly", "10m")
        t.advance("65m")
        t.crash_worker()
        t.advance("20m")

        assert [run.tick for run in t.runs("nightly")] == [START + HOUR] * 2
        assert states(t.runs("nightly")) == ["crashed", "done"]
        assert [view.outcome for view in t.ticks("nightly")] == ["done"]


# Frozen clocks


def test_a_clock_of_freezegun_is_led_along(shop: Shop) -> None:
    seen: list[datetime] = []
    look = shop.app.task(name="now")(lambda: seen.append(calendar.datetime.now(UTC)))
    shop.app.cron("0 * * * *", name="hourly")(look)

    with freeze_time("2026-03-01 12:00") as frozen, shop.app.testing(clock=frozen) as t:
        t.advance("150m")
        assert t.now == calendar.datetime.now(UTC) == START + 150 * MINUTE
        frozen.tick(HOUR)  # the test may move it as well
        t.drain()
        assert t.now == START + 210 * MINUTE

    assert seen == [START + n * HOUR for n in (1, 2)] + [START + 210 * MINUTE]


def test_a_clock_of_time_machine_is_led_along(shop: Shop) -> None:
    seen: list[datetime] = []
    look = shop.app.task(name="now")(lambda: seen.append(calendar.datetime.now(UTC)))
    shop.app.cron("0 * * * *", name="hourly")(look)

    with (
        time_machine.travel(START, tick=False) as traveller,
        shop.app.testing(at="2026-04-01 06:30", clock=traveller) as t,
    ):
        t.advance("2h")
        assert calendar.datetime.now(UTC) == datetime(2026, 4, 1, 8, 30, tzinfo=UTC)

    assert seen == [datetime(2026, 4, 1, hour, tzinfo=UTC) for hour in (7, 8)]


def test_a_clock_that_is_frozen_no_longer_is_noticed(shop: Shop) -> None:
    with freeze_time("2020-01-01") as frozen:
        pass

    with pytest.raises(OptionError, match="Is it still active"):
        shop.app.testing(at=AT, clock=frozen)


def test_a_clock_that_was_moved_back_is_noticed(shop: Shop) -> None:
    with freeze_time("2026-03-01 12:00") as frozen, shop.app.testing(clock=frozen) as t:
        t.advance("1h")
        frozen.move_to("2026-03-01 12:30")

        with pytest.raises(OptionError, match=r"shows 2026-03-01 12:30:00 UTC, and it was 2026-03-01 13:00:00 UTC"):
            t.drain()


@pytest.mark.parametrize("freeze", [lambda: freeze_time(AT), lambda: time_machine.travel(START, tick=False)])
def test_nothing_hangs_when_the_clocks_are_frozen(freeze: Any, pg_url: str) -> None:
    for url in ("memory://", pg_url):
        shop = Shop(url)
        with freeze():
            with pytest.raises(WaitTimeout):
                shop.send.delay("nobody").result(timeout=0.05)
            shop.fails = 1
            shop.flaky.delay()
            assert run_worker(shop.app, drain=True, max_seconds=60) == 0
            assert run_worker(shop.app, max_seconds=0.2) == 0
        shop.app.close()
        assert shop.did == ["nobody", 1]


# A year


@pytest.mark.same_under_gevent
def test_a_year_of_fifty_schedules_has_all_its_runs() -> None:
    app = PgCron("years", url="memory://")
    ran: Counter[str] = Counter()
    expressions = [
        "0 * * * *", *(f"{n * 15 % 60} {n % 6} * * *" for n in range(25)), *(f"30 {n} * * {n % 7}" for n in range(20)),
        *(f"0 6 {n} * *" for n in (1, 15, 31, "L")),
    ]  # fmt: skip
    for number, expression in enumerate(expressions):
        name = f"s{number}"
        task = app.task(name=f"t{number}")(lambda name=name: ran.update([name]))
        app.cron(expression, name=name, tz="Europe/Berlin", overlap="allow")(task)

    with app.testing(at="2026-01-01", tz="Europe/Berlin") as t:
        begun = t.now
        runs = t.advance(to="2027-01-01")

        expected = {name: len(list(s.timing.between(begun, t.now))) for name, s in app.declared.items()}
        assert ran == expected
        assert len(app.declared) == 50
        assert len(runs) == sum(expected.values()) == 18_971
        assert all(run.at == run.tick for run in runs)
        assert [run.at for run in runs] == sorted(run.at for run in runs)


# On PostgreSQL


@pytest.fixture
def on_pg(shop: Shop, pg_url: str) -> Iterator[Any]:
    with shop.app.testing(url=pg_url) as t:
        yield t


def test_the_same_on_a_real_database(shop: Shop, on_pg: Any) -> None:
    shop.fails = 1
    shop.chain.delay(2)
    flaky = shop.flaky.delay()
    shop.send.options(execute_after="1h").delay("later")

    runs = on_pg.drain()

    assert [(run.task, run.state) for run in runs] == [("chain", "done")] * 1 + [("flaky", "retrying")] + [
        ("chain", "done")
    ] * 2
    assert flaky.job().error == "ConnectionError: the other side is away"
    assert on_pg.assert_enqueued(shop.send, "later", execute_after="1h")
    assert on_pg.drain() == []


def test_the_time_of_a_database_cannot_be_moved(shop: Shop, pg_url: str, on_pg: Any) -> None:
    for do in (lambda: on_pg.advance("1h"), on_pg.crash_worker, lambda: on_pg.takes("send", "1h")):
        with pytest.raises(OptionError, match=r"in PostgreSQL the time is the server's.*Leave out url="):
            do()
    with pytest.raises(OptionError, match="the time is the server's"):
        PgCron("other").testing(at=AT, url=pg_url)
    assert abs(on_pg.now - datetime.now(UTC)) < 10 * MINUTE


def test_a_schedule_on_a_real_database_runs_when_it_is_asked_to(shop: Shop, pg_url: str) -> None:
    shop.noted("nightly")
    with shop.app.testing(url=pg_url) as t:
        shop.app.schedules.run_now("nightly")
        [run] = t.drain()

        assert (run.schedule, run.state, len(t.runs("nightly"))) == ("nightly", "done", 1)


def test_after_the_block_nobody_is_connected_and_no_worker_is_left(shop: Shop, pg_url: str) -> None:
    with shop.app.testing(url=pg_url) as t:
        shop.send.delay("x")
        t.drain()

    with psycopg.connect(pg_url) as conn:
        assert conn.execute("select count(*) from pgcron.workers").fetchone() == (0,)
        [others] = conn.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchone() or (None,)
    assert others == 0


def test_a_connection_that_the_code_under_test_has_closed_is_not_left_open(
    shop: Shop, pg_url: str, databases: Any
) -> None:
    with contextlib.suppress(ZeroDivisionError), shop.app.testing(url=pg_url) as t:
        shop.app.close()
        shop.send.delay("x")
        assert len(t.drain()) == 1
        shop.app.close()
        raise ZeroDivisionError

    eventually(lambda: not databases.visitors(pg_url))
    assert repr(t) == "<'shop' under test, on a database>"


def test_a_database_without_our_tables_is_refused(shop: Shop, empty_pg_url: str) -> None:
    with pytest.raises(PgCronError, match="pgcron migrate"), shop.app.testing(url=empty_pg_url):
        pytest.fail("the block has begun")
    assert shop.app._harness is None


class Mine:
    """Ways to enqueue in one's own transaction: each yields what to pass, and ends the transaction as asked."""

    @staticmethod
    @contextlib.contextmanager
    def psycopg(url: str, commits: bool) -> Iterator[Any]:
        with psycopg.connect(url) as conn:
            conn.execute("select 1")
            yield conn
            conn.commit() if commits else conn.rollback()

    @staticmethod
    @contextlib.contextmanager
    def leaving(url: str, commits: bool) -> Iterator[Any]:
        with contextlib.suppress(ZeroDivisionError), psycopg.connect(url) as conn:
            yield conn.cursor()
            if not commits:
                raise ZeroDivisionError

    @staticmethod
    @contextlib.contextmanager
    def block(url: str, commits: bool) -> Iterator[Any]:
        with (
            psycopg.connect(url, autocommit=True) as conn,
            contextlib.suppress(ZeroDivisionError),
            conn.transaction(),
            conn.transaction(),
        ):
            yield conn
            if not commits:
                raise ZeroDivisionError

    @staticmethod
    @contextlib.contextmanager
    def session(url: str, commits: bool) -> Iterator[Any]:
        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with Session(engine) as session:
            session.execute(sqlalchemy.text("select 1"))
            yield session
            session.commit() if commits else session.rollback()
        engine.dispose()

    @staticmethod
    @contextlib.contextmanager
    def connection(url: str, commits: bool) -> Iterator[Any]:
        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as conn:
            yield conn
            conn.commit() if commits else conn.rollback()
        engine.dispose()


@pytest.mark.parametrize("way", ["psycopg", "leaving", "block", "session", "connection"])
def test_inline_runs_after_your_commit_and_never_after_a_rollback(shop: Shop, pg_url: str, way: str) -> None:
    with shop.app.testing(url=pg_url, inline=True) as t:
        with getattr(Mine, way)(pg_url, True) as conn:
            shop.send.options(conn=conn).delay("committed")
            shop.send.options(conn=conn).delay("with it")
            assert shop.did == []
        assert shop.did == ["committed", "with it"]

        with getattr(Mine, way)(pg_url, False) as conn:
            shop.send.options(conn=conn).delay("rolled back")
        assert shop.did == ["committed", "with it"]

        with psycopg.connect(pg_url, autocommit=True) as conn:
            shop.send.options(conn=conn).delay("at once")
            assert shop.did[2:] == ["at once"]
        assert (t.enqueued(), states(t.runs())) == ([], ["done"] * 3)


def test_each_app_and_each_block_on_a_connection_hears_of_its_commit(shop: Shop, pg_url: str) -> None:
    other = Shop()
    with psycopg.connect(pg_url) as conn:
        with contextlib.suppress(ZeroDivisionError), shop.app.testing(url=pg_url, inline=True):
            shop.send.options(conn=conn).delay("of a test that failed")
            raise ZeroDivisionError

        with shop.app.testing(url=pg_url, inline=True), other.app.testing(url=pg_url, inline=True):
            shop.flaky.options(conn=conn).delay()
            other.app.task(name="theirs")(lambda: other.did.append("theirs")).options(conn=conn).delay()
            conn.commit()

            assert (shop.did, other.did) == (["of a test that failed", 1], ["theirs"])


def test_a_task_may_use_the_connection_whose_commit_it_follows(shop: Shop, pg_url: str) -> None:
    with shop.app.testing(url=pg_url, inline=True, raises=True), psycopg.connect(pg_url) as conn:

        @shop.app.task(name="same")
        def same() -> None:
            shop.did.append(conn.execute("select 42").fetchone())

        same.options(conn=conn).delay()
        conn.commit()

        assert shop.did == [(42,)]
        lock = type(conn.lock)
    assert lock is type(threading.Lock())


# The plugin


def run_pytest(folder: Path, program: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_shop.py").write_text(textwrap.dedent(program), "utf-8")
    known = {point.name for point in metadata.entry_points(group="pytest11")}
    plugin = [] if "pgcron" in known else ["-p", "pgcron_lite.testing.plugin"]
    paths = [str(Path(pgcron_lite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", *plugin, *args],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **env},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_the_plugin_is_an_entry_point() -> None:
    assert "pgcron_lite.testing.plugin" in [point.value for point in metadata.entry_points(group="pytest11")]


def test_the_plugin_loads_no_driver_and_not_even_the_toolkit() -> None:
    program = "import sys, pgcron_lite.testing.plugin; print(*sys.modules)"

    run = subprocess.run([sys.executable, "-c", program], cwd=Path(pgcron_lite.__file__).parents[1],
                         capture_output=True, text=True, check=True)  # fmt: skip

    loaded = set(run.stdout.split())
    assert not {"psycopg", "gevent", "flask", "click", "pgcron_lite.worker.loop", "pgcron_lite.embedded"} & loaded


def test_the_fixtures_in_memory(tmp_path: Path) -> None:
    answer = run_pytest(
        tmp_path,
        """
        from pgcron_lite import PgCron

        app = PgCron("shop", url="postgresql://db.invalid/shop")
        ran = []

        @app.cron("0 3 * * *", name="nightly")
        def nightly():
            ran.append(1)

        def test_of_my_app(pgcron_testing):
            t = pgcron_testing(app, at="2026-03-01 12:00")
            t.advance("3d")
            assert len(t.runs("nightly")) == len(ran) == 3

        def test_it_is_as_it_was():
            assert app._harness is None and app._store is None

        def test_an_app_of_its_own(pgcron_app, pgcron_testing):
            t = pgcron_testing(pgcron_app)
            task = pgcron_app.task(ran.clear)
            task.delay()
            t.drain(raises=True)
            assert ran == []

        def test_another(pgcron_app):
            assert pgcron_app.tasks == {}
        """,
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "4 passed" in answer.stdout


def test_the_fixtures_on_a_real_database(tmp_path: Path, pg_url: str) -> None:
    answer = run_pytest(
        tmp_path,
        """
        import pytest
        from pgcron_lite import PgCron

        app = PgCron("shop")
        ran, urls = [], []

        @app.task
        def note(what):
            ran.append(what)

        @pytest.mark.parametrize("what", [1, 2])
        def test_a_fresh_database_each(pgcron_testing, pgcron_database, what):
            t = pgcron_testing(app, url=pgcron_database)
            handle = note.delay(what)
            assert (handle.id, len(t.drain())) == (1, 1)
            urls.append(pgcron_database)

        def test_afterwards(pgcron_server, pgcron_databases):
            assert ran == [1, 2]
            assert len(set(urls)) == 2
            url = pgcron_databases.create("other")
            with PgCron("shop", url=url, schema="other").testing(url=url) as t:
                assert t.drain() == []
            pgcron_databases.drop(url)
        """,
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "3 passed" in answer.stdout


@pytest.mark.parametrize(("ci", "told"), [("", "1 skipped"), ("true", "1 error")])
def test_without_a_postgres_a_test_is_skipped_and_a_pipeline_fails(tmp_path: Path, ci: str, told: str) -> None:
    answer = run_pytest(
        tmp_path, "def test_it(pgcron_database): pass", PGCRON_PG_BIN=str(tmp_path / "nowhere"), CI=ci
    )

    assert told in answer.stdout
    assert 'pip install "pgcron_lite[dev]"' in answer.stdout


# What it stands on


def test_a_memory_store_finds_what_falls_due_next() -> None:
    from pgcron_lite.memory.deadlines import Deadlines

    gone: set[str] = set()
    agenda: Deadlines[str] = Deadlines(lambda _, thing: thing not in gone)
    for number, thing in enumerate("cab"):
        agenda.add(START + number * SECOND, thing)

    assert agenda.first == START
    gone.add("c")
    assert agenda.first == START + SECOND
    assert agenda.take(START + SECOND) == [(START + SECOND, "a")]
    assert agenda.take(START + DAY) == [(START + 2 * SECOND, "b")]
    assert agenda.first is None
    assert isinstance(MemoryStore().next_planning, type(None))


def test_the_app_may_be_set_up_in_the_block_until_it_is_used(shop: Shop) -> None:
    with shop.app.testing():
        shop.app.configure(lease="1m")
        shop.send.delay("x")
        with pytest.raises(SetupFinished):
            shop.app.configure(lease="2m")
