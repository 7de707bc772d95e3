"""Contract of the stores about ticks that come due while runs of their schedule are in progress, late or stopped.

Single cases first, then a property test: one worker with a few slots, runs of some length, and outages.
"""

import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from clock import START, Clock
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgcron_lite.cli import health, schedule_status
from pgcron_lite.job import Job, Outcome
from pgcron_lite.schedules import schedule, ticks
from pgcron_lite.schedules.schedule import Schedule
from pgcron_lite.schedules.ticks import LATE, MAX_LEFT_DUE, MAX_WAITING, TickView

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
ME = uuid.UUID(int=1)
# Poll interval of an idle worker, in seconds.
POLL = 5


class Line:
    """One schedule, and a worker with a few slots whose runs take `seconds` each. Time passes only in `work`."""

    def __init__(
        self, store: Any, clock: Clock, when: str = "* * * * * */10", *, name: str = "s", slots: int = 3,
        seconds: float = 25, **options: Any,
    ) -> None:
        self.store, self.clock, self.name, self.slots, self.seconds = store, clock, name, slots, seconds
        self.schedule = Schedule(name, "add", schedule.timing_of(when, "UTC", name=name), queue=name, **options)
        self.running: dict[int, tuple[Job, datetime]] = {}
        self.begun: list[datetime] = []
        # `waits` counts how often a run was claimed and returned to wait for another one.
        self.max_at_once = self.waits = 0
        assert store.put_schedule(name, "shop", self.schedule.dumps(), replace=False) == "added"
        store.plan(ticks.decide, name)

    def work(self, seconds: float) -> None:
        """Let time pass while the worker runs."""
        until = self.clock.now + timedelta(seconds=seconds)
        self.step()
        while self.clock.now < until:
            ends = [ends_at for _, ends_at in self.running.values()]
            wake = min([self.clock.now + POLL * SECOND, until, *ends])
            self.clock.advance((wake - self.clock.now).total_seconds())
            self.step()

    def step(self) -> None:
        now = self.clock.now
        for job, ends_at in list(self.running.values()):
            if ends_at <= now:
                del self.running[job.id]
                self._write(job, "done")
                self.store.close_ticks([job.id])
                self.store.release([job.id])
        self.store.watch()
        self.store.plan(ticks.decide)
        while self.take(self.slots - len(self.running)):
            pass
        self.max_at_once = max(self.max_at_once, len(self.running))

    def take(self, limit: int) -> bool:
        """Claim up to `limit` jobs and begin those that are admitted. Return True if any were claimed."""
        held: list[Job] = self.store.claim(ME, uuid.uuid4(), [self.name], ["add"], limit) if limit else []
        answers = self.store.admit([job.id for job in held]) if held else {}
        for job in held:
            answer = answers[job.id]
            if answer.refusal is not None:
                self._write(job, "cancelled")
            elif answer.wait is not None:
                self.waits += 1
                self._write(job, "queued", delay=answer.wait, gives_back=True)
            else:
                self.running[job.id] = job, self.clock.now + timedelta(seconds=self.seconds)
                self.begun.append(datetime.fromisoformat(job.headers[schedule.TICK]))
                continue
            self.store.release([job.id])
        return bool(held)

    def finish(self) -> None:
        """End the current runs, and let the waiting ones run without taking time."""
        self.seconds = 0
        self.work(60)
        for _ in range(200):
            # Not a multiple of any interval in these tests, so that not every step ends at a tick.
            self.work(7)
            if not [view for view in self.past() if view.outcome is None]:
                return
        pytest.fail("it does not come to an end")

    def past(self) -> list[TickView]:
        """Return the ticks that have come due, oldest first."""
        views: list[TickView] = self.store.ticks(self.name, limit=100_000)
        return [view for view in reversed(views) if view.due_at <= self.clock.now]

    def reasons(self) -> set[str | None]:
        return {view.reason for view in self.past() if view.outcome == "skipped"}

    def _write(self, job: Job, state: Any, **fields: Any) -> None:
        assert job.claim is not None
        assert self.store.settle([Outcome(job.id, job.claim, state, **fields)]) == {job.id}


def outcomes(line: Line) -> list[str | None]:
    return [view.outcome for view in line.past()]


# overlap="queue"


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("catch_up", ["skip", "latest", "all"])
def test_with_queue_every_tick_has_its_run_in_order(store: Any, clock: Clock, catch_up: str, slots: int) -> None:
    line = Line(store, clock, overlap="queue", catch_up=catch_up, slots=slots, seconds=25)

    line.work(120)
    line.finish()

    assert set(outcomes(line)) == {"done"}
    assert line.begun == [view.tick for view in line.past()]
    assert line.max_at_once == 1


def test_a_tick_that_waits_long_for_another_run_is_not_missed(store: Any, clock: Clock) -> None:
    line = Line(store, clock, "* * * * *", overlap="queue", seconds=600)
    line.work(120)
    line.seconds = 0

    line.work(600)

    assert line.reasons() == set()
    assert max(view.lateness for view in line.past() if view.lateness) > LATE


def test_a_waiting_tick_raises_no_alarm_but_the_run_before_it_does(store: Any, clock: Clock) -> None:
    line = Line(store, clock, "* * * * *", overlap="queue", seconds=900, alert_after=10 * MINUTE)
    line.work(60)
    raised = []

    for _ in range(30):
        clock.advance(20)
        store.plan(ticks.decide)
        raised += store.watch()[1]

    assert [(alarm.kind, alarm.tick) for alarm in raised] == []
    assert schedule_status.condition(store.schedules("s")[0], clock.now).word == "ok"
    clock.advance(20)
    assert [(alarm.kind, alarm.tick) for alarm in store.watch()[1]] == [("late", START + MINUTE)]


def test_a_run_that_waited_for_another_run_is_not_caught_up(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *", overlap="queue")
    clock.advance(600)
    [first] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([first.id])
    store.plan(ticks.decide)
    clock.advance(1200)
    [second] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.settle([Outcome(first.id, first.claim, "done")])
    store.close_ticks([first.id])

    admission = store.admit([second.id])[second.id]

    assert (admission.refusal, admission.wait, admission.is_late) == (None, None, False)


@pytest.mark.parametrize("alert_after", [None, 15 * MINUTE], ids=["next tick", "alert_after"])
def test_the_lateness_of_a_run_that_waited_counts_from_the_end_of_the_wait(
    store: Any, clock: Clock, alert_after: timedelta | None
) -> None:
    Line(store, clock, "*/10 * * * *", overlap="queue", alert_after=alert_after)
    second = second_after(store, clock, 25 * MINUTE)
    store.admit([second.id])
    clock.advance(540)
    store.plan(ticks.decide)

    on_time = store.watch()[1]
    clock.advance(420)
    store.plan(ticks.decide)

    assert on_time == []
    assert [(alarm.kind, alarm.tick) for alarm in store.watch()[1]] == [("late", START + 20 * MINUTE)]


def test_the_end_of_a_run_counts_before_it_is_recorded(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *", overlap="queue")
    second = second_after(store, clock, 25 * MINUTE, is_recorded=False)

    admission = store.admit([second.id])[second.id]
    store.close_ticks([view.job_id for view in store.ticks("s", until=START + 10 * MINUTE)])
    store.plan(ticks.decide)
    clock.advance(30)

    assert (admission.wait, admission.is_late) == (None, False)
    assert store.watch()[1] == []


def test_a_manual_run_that_waits_is_neither_missed_nor_late(store: Any, clock: Clock) -> None:
    line = Line(store, clock, "*/10 * * * *", overlap="skip", alert_after=HOUR)
    clock.advance(600)
    [first] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([first.id])
    by_hand = ticks.Tick(
        clock.now, clock.now, line.schedule.job(clock.now, clock.now), clock.now + MINUTE, kind="manual"
    )
    store.add_ticks("s", [replace(by_hand, tick=clock.now + SECOND)])
    [manual] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    assert store.admit([manual.id])[manual.id].wait is not None
    clock.advance(300)
    store.plan(ticks.decide)
    alarms = store.watch()[1]
    word = schedule_status.condition(store.schedules("s")[0], clock.now).word

    end(store, first)
    admission = store.admit([manual.id])[manual.id]
    clock.advance(30)

    assert (alarms, word) == ([], "ok")
    assert (admission.wait, admission.is_late) == (None, False)
    assert store.watch()[1] == []


def second_after(store: Any, clock: Clock, takes: timedelta, *, is_recorded: bool = True) -> Job:
    """Return the second run of a ten-minute schedule, claimed when the first run, which takes `takes`, has ended."""
    clock.advance(600)
    [first] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([first.id])
    store.plan(ticks.decide)
    clock.advance(takes.total_seconds())
    second: Job = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 1)[0]
    assert store.admit([second.id])[second.id].wait is not None
    end(store, first, is_recorded=is_recorded)
    return second


def end(store: Any, job: Job, *, is_recorded: bool = True) -> None:
    store.settle([Outcome(job.id, job.claim, "done")])
    if is_recorded:
        store.close_ticks([job.id])


# Waiting


def return_to_wait(store: Any, job: Job) -> None:
    wait = store.admit([job.id])[job.id].wait
    assert store.settle([Outcome(job.id, job.claim, "queued", delay=wait, gives_back=True)]) == {job.id}


def waiting(store: Any, clock: Clock) -> tuple[Job, Job]:
    """Return a run in progress, and the next one, which is claimed and has to wait."""
    Line(store, clock, "*/10 * * * *", overlap="queue")
    clock.advance(600)
    [first] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([first.id])
    store.plan(ticks.decide)
    clock.advance(600)
    [second] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    return first, second


def is_due(store: Any) -> bool:
    return bool(store.look(["s"], ["add"]).due_in == 0)


def test_a_run_that_waits_is_claimed_once_before_it_begins(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="queue", slots=3, seconds=540)

    line.work(600)

    # Each tick was claimed when it came due, during another run, and is not claimed again until that run has ended.
    assert len(line.past()) == 60
    assert line.waits <= 60


def test_the_next_run_begins_when_the_one_before_it_has_ended(store: Any, clock: Clock) -> None:
    first, second = waiting(store, clock)
    return_to_wait(store, second)
    assert not store.release([second.id])
    assert not is_due(store)

    end(store, first)

    assert store.release([first.id])
    assert is_due(store)
    assert not store.release([first.id])


def test_a_run_that_is_returned_while_the_one_before_it_ends_is_due_at_once(store: Any, clock: Clock) -> None:
    first, second = waiting(store, clock)
    wait = store.admit([second.id])[second.id].wait
    end(store, first)
    assert not store.release([first.id])
    store.settle([Outcome(second.id, second.claim, "queued", delay=wait, gives_back=True)])

    assert store.release([second.id])

    assert is_due(store)


@pytest.mark.parametrize("is_recorded", [True, False], ids=["before releasing", "before noting the end"])
def test_a_worker_that_dies_before_it_releases_the_next_run_delays_it_until_the_next_watch(
    store: Any, clock: Clock, is_recorded: bool
) -> None:
    first, second = waiting(store, clock)
    return_to_wait(store, second)
    store.watch()

    end(store, first, is_recorded=is_recorded)
    clock.advance(15)
    store.watch()

    assert is_due(store)


def test_a_run_that_is_never_released_begins_anyway(store: Any, clock: Clock) -> None:
    first, second = waiting(store, clock)
    return_to_wait(store, second)
    end(store, first)

    clock.advance(ticks.ASK_AGAIN.total_seconds())

    assert second.id in [job.id for job in store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)]
    assert store.admit([second.id])[second.id].wait is None


def test_the_next_run_is_released_when_the_current_one_is_cancelled_before_its_next_attempt(
    store: Any, clock: Clock
) -> None:
    first, second = waiting(store, clock)
    return_to_wait(store, second)
    store.settle([Outcome(first.id, first.claim, "queued", delay=3600)])

    store.cancel(first.id)

    assert is_due(store)


def test_a_run_that_waits_past_start_within_is_skipped_without_being_claimed(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="queue", start_within=2 * MINUTE, seconds=1500)
    line.work(300)

    assert "too late" in line.reasons()
    assert line.waits <= 30


def test_a_schedule_with_a_current_run_is_not_missed_when_a_later_tick_was_skipped(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="queue", slots=5, seconds=100_000)
    line.work(10 * MAX_WAITING + 60)

    view = store.schedules("s")[0]

    assert view.last_outcome == "skipped"
    assert schedule_status.condition(replace(view, alarm=None, alarm_tick=None), clock.now).word == "ok"


def test_ticks_without_a_worker_are_missed_with_queue_too(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="queue", catch_up="latest", seconds=0)
    line.work(60)

    clock.advance(1800)
    line.work(60)

    assert "missed; a later tick stands for it" in line.reasons()
    missed = [view for view in line.past() if view.outcome == "skipped"]
    assert len(missed) > 100
    assert line.max_at_once <= 1


def test_beyond_the_limit_the_newest_ticks_are_skipped_with_that_reason(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="queue", slots=5, seconds=1500)
    line.work(20)

    # All slots but one are free, so every due tick is claimed.
    for _ in range(28):
        clock.advance(50)
        line.step()
    line.finish()

    skipped = [view for view in line.past() if view.outcome == "skipped"]
    assert {view.reason for view in skipped} == {f"overlap: {MAX_WAITING} runs were waiting already"}
    # The first tick runs, as many as the limit wait, and later ones are skipped until the first run has ended.
    ran = [view.tick for view in line.past() if view.outcome == "done"]
    assert ran[: MAX_WAITING + 1] == [START + n * 10 * SECOND for n in range(1, MAX_WAITING + 2)]
    assert len(skipped) > 20


# catch_up="all"


def test_catching_up_with_all_skips_no_tick_that_comes_due_meanwhile(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="skip", catch_up="all", seconds=8)
    line.work(60)

    clock.advance(120)
    line.work(200)
    line.finish()

    assert line.reasons() == set()
    assert line.begun == [view.tick for view in line.past()]


def test_a_run_that_began_in_time_still_prevents_the_next_with_all(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="skip", catch_up="all", seconds=15)

    line.work(60)

    assert any(str(reason).startswith("overlap: the run of") for reason in line.reasons())


# No worker runs the jobs


@pytest.mark.parametrize(("catch_up", "limit"), [("latest", 1), ("skip", 0)])
@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_ticks_do_not_pile_up_while_others_plan_and_no_worker_runs_them(
    store: Any, clock: Clock, overlap: str, catch_up: str, limit: int
) -> None:
    line = Line(store, clock, "*/10 * * * *", overlap=overlap, catch_up=catch_up)

    for _ in range(120):
        clock.advance(60)
        store.plan(ticks.decide)
        store.watch()

    due = [job for job in store.find(states=["queued"], limit=1000) if job.execute_after < clock.now - LATE]
    views = line.past()
    assert len(due) <= limit
    assert len(views) == 12
    assert sum(view.outcome is None for view in views) <= limit + 1
    assert line.reasons() == {"missed; a later tick stands for it" if catch_up == "latest" else "missed"}
    assert store.schedules("s")[0].runs <= limit + 2
    assert store.schedules("s")[0].alarm == "missed"


def test_with_all_the_newest_ticks_wait_up_to_a_limit(store: Any, clock: Clock) -> None:
    line = Line(store, clock, catch_up="all")

    for _ in range(40):
        clock.advance(600)
        store.plan(ticks.decide)
    store.watch()

    waiting = [view for view in line.past() if view.outcome is None]
    assert len(waiting) == MAX_LEFT_DUE
    assert f"missed, and {MAX_LEFT_DUE} later ones as well" in line.reasons()
    assert waiting[-1].tick == line.past()[-1].tick


def test_a_tick_that_a_worker_has_just_claimed_is_not_skipped(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *")
    clock.advance(600)
    store.plan(ticks.decide)
    [held] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    clock.advance(700)
    store.plan(ticks.decide)

    store.watch()

    assert store.get(held.id).state == "running"
    assert [view.outcome for view in store.ticks("s", before=START + 15 * MINUTE)] == [None]


# A planned run that is cancelled by hand


@pytest.mark.parametrize(("how", "outcome"), [("cancel", "cancelled"), ("delete", "deleted"), ("clear", "cancelled")])
def test_the_tick_of_a_cancelled_planned_run_is_closed_at_once(
    store: Any, clock: Clock, how: str, outcome: str
) -> None:
    Line(store, clock, "*/10 * * * *")
    [job] = store.find(states=["queued"])

    store.clear("s") if how == "clear" else getattr(store, how)(job.id)

    view = store.schedules("s")[0]
    [tick] = store.ticks("s")
    assert (tick.outcome, tick.finished_at, tick.started_at) == (outcome, START, None)
    assert (view.next_tick, view.last_tick, view.last_outcome, view.runs) == (None, tick.tick, outcome, 0)
    assert store.look(["*"], ["add"]).plan_in == 0


def test_the_tick_after_a_cancelled_one_is_planned_at_once(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *", max_runs=1)
    [job] = store.find(states=["queued"])

    store.cancel(job.id)
    store.plan(ticks.decide)

    view = store.schedules("s")[0]
    assert (view.next_tick, view.runs) == (START + 20 * MINUTE, 1)
    assert schedule_status.condition(view, clock.now).word == "ok"
    assert len(store.find(states=["queued"])) == 1


def test_a_run_that_has_begun_and_waits_for_another_attempt_is_closed_by_a_worker(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *")
    clock.advance(600)
    [job] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([job.id])
    store.settle([Outcome(job.id, job.claim, "queued", delay=3600)])

    store.cancel(job.id)

    # The worker that finds the end reports it, because the start of the run was reported.
    [closing] = store.watch()[0]
    assert (closing.job_id, closing.outcome) == (job.id, "cancelled")


def test_a_cancelled_run_that_is_retried_is_the_run_of_its_tick_again(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *", max_runs=5)
    [job] = store.find(states=["queued"])
    store.cancel(job.id)
    store.plan(ticks.decide)

    store.retry(job.id)

    view = store.schedules("s")[0]
    assert (view.next_tick, view.next_due_at, view.last_outcome) == (START + 10 * MINUTE, START, None)
    assert [complaint.schedule for complaint in health.of_schedules(store)] == [None]
    [held] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    assert store.admit([held.id])[held.id].kind == "manual"
    assert store.schedules("s")[0].last_outcome == "running"
    end(store, held)
    [_, tick] = store.ticks("s")
    view = store.schedules("s")[0]
    assert (tick.tick, tick.kind, tick.outcome, tick.job_id) == (START + 10 * MINUTE, "manual", "done", job.id)
    # It counts towards max_runs no more than when it was cancelled.
    assert (view.last_outcome, view.next_tick, view.runs) == ("done", START + 20 * MINUTE, 1)


@pytest.mark.parametrize("catch_up", ["latest", "skip"])
def test_no_policy_skips_a_run_that_is_retried(store: Any, clock: Clock, catch_up: str) -> None:
    Line(store, clock, "*/10 * * * *", catch_up=catch_up, start_within=MINUTE)
    [job] = store.find(states=["queued"])
    store.cancel(job.id)
    clock.advance(1500)
    store.plan(ticks.decide)

    store.retry(job.id)

    held = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    answers = store.admit([each.id for each in held])
    assert (answers[job.id].refusal, answers[job.id].wait) == (None, None)


def test_a_skipped_run_that_is_retried_runs(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *", catch_up="skip")
    clock.advance(1000)
    [job] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    assert store.admit([job.id])[job.id].refusal == "missed"
    store.settle([Outcome(job.id, job.claim, "cancelled")])

    store.retry(job.id)

    [job] = [each for each in store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5) if each.id == job.id]
    assert store.admit([job.id])[job.id].refusal is None


def test_a_failed_run_that_is_retried_waits_for_the_current_run(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *")
    clock.advance(600)
    [first] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([first.id])
    store.plan(ticks.decide)
    store.settle([Outcome(first.id, first.claim, "failed")])
    store.close_ticks([first.id])
    clock.advance(600)
    [second] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([second.id])

    store.retry(first.id)

    [again] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    assert store.admit([again.id])[again.id].wait is not None
    assert [view.outcome for view in store.ticks("s", until=clock.now)] == [None, None]


def test_a_cancelled_tick_replaces_no_earlier_one(store: Any, clock: Clock) -> None:
    Line(store, clock, "* * * * * *", overlap="allow")
    clock.advance(2)
    first, second = sorted(store.find(states=["queued"], limit=100), key=lambda job: job.execute_after)[:2]
    store.cancel(second.id)

    [held] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)

    assert held.id == first.id
    assert store.admit([held.id])[held.id].refusal is None


def test_a_run_refused_after_its_schedule_was_retired_does_not_break_the_schedule(store: Any, clock: Clock) -> None:
    from test_store_schedules import declared, definition

    declared(store, 1, s=definition(catch_up="skip"))
    clock.advance(600)
    [held] = store.claim(ME, uuid.uuid4(), ["*"], ["add"], 5)
    declared(store, 2, other=definition(name="other"))
    store.forget(uuid.UUID(int=1))
    store.reconcile()
    assert store.schedules("s")[0].retired_at is not None
    clock.advance(300)

    answer = store.admit([held.id])[held.id]

    assert answer.refusal == "the schedule was removed"
    assert store.schedules("s")[0].next_tick is None


def test_a_run_whose_schedule_was_removed_still_belongs_to_its_tick(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *")
    clock.advance(600)
    [job] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.admit([job.id])
    store.remove_schedule("s")

    assert store.admit([job.id])[job.id].refusal is None


# A pause or a removal between the claim of a run and its beginning


def leave(store: Any, how: str) -> None:
    """Pause or remove the schedule `s`, or pause and resume it."""
    if how == "removed":
        assert store.remove_schedule("s") == "removed"
    else:
        assert store.pause_schedule("s")
    if how == "resumed":
        assert store.resume_schedule("s")


@pytest.mark.parametrize(("how", "reason"), [("paused", "paused"), ("removed", "the schedule was removed")])
@pytest.mark.parametrize("overlap", ["skip", "queue", "allow"])
def test_a_claimed_tick_does_not_begin_once_its_schedule_was_paused_or_removed(
    store: Any, clock: Clock, overlap: str, how: str, reason: str
) -> None:
    Line(store, clock, "*/10 * * * *", overlap=overlap)
    clock.advance(600)
    [job] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)

    leave(store, how)

    assert store.admit([job.id])[job.id].refusal == reason
    assert store.admit([job.id])[job.id].refusal == reason
    [view] = store.ticks("s", until=clock.now)
    assert (view.outcome, view.reason, view.started_at, view.finished_at) == ("skipped", reason, None, clock.now)


def test_a_returned_tick_that_had_not_begun_is_skipped_while_its_schedule_is_paused(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *", max_runs=1)
    clock.advance(600)
    [job] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)
    store.pause_schedule("s")
    hand_back(store, job)
    clock.advance(120)
    store.watch()

    [view] = store.ticks("s", until=START + 10 * MINUTE)

    assert (view.outcome, view.reason) == ("skipped", "paused")
    assert store.get(job.id) is None
    assert store.schedules("s")[0].runs == 0


def test_a_pause_that_ended_before_the_run_begins_changes_nothing(store: Any, clock: Clock) -> None:
    Line(store, clock, "*/10 * * * *")
    clock.advance(600)
    [job] = store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5)

    leave(store, "resumed")

    assert decision(store, job) == "go"


@pytest.mark.parametrize("how", ["paused", "removed"])
def test_current_and_requested_runs_continue_when_the_schedule_is_paused_or_removed(
    store: Any, clock: Clock, how: str
) -> None:
    line = Line(store, clock, "*/10 * * * *", overlap="allow")
    clock.advance(600)
    request(store, clock, line)
    clock.advance(1)
    request(store, clock, line, "backfill")
    begun, *asked_for = sorted(store.claim(ME, uuid.uuid4(), ["s"], ["add"], 5), key=lambda job: job.execute_after)
    store.admit([begun.id])

    leave(store, how)

    assert len(asked_for) == 2
    assert [decision(store, job) for job in [begun, *asked_for]] == ["go"] * 3


# A task or queue that the schedule no longer has


def renamed(store: Any, *, task: str = "mail", queue: str = "s", when: str = "*/10 * * * *", **options: Any) -> None:
    """Change the task or the queue of schedule `s`."""
    other = Schedule("s", task, schedule.timing_of(when, "UTC", name="s"), queue=queue, **options)
    assert store.put_schedule("s", "shop", other.dumps(), replace=True) == "replaced"
    store.plan(ticks.decide, "s")


def take(store: Any, *tasks: str, limit: int = 1) -> list[Job]:
    found: list[Job] = store.claim(ME, uuid.uuid4(), ["*"], [*tasks], limit)
    return found


def decision(store: Any, job: Job) -> str:
    answer = store.admit([job.id])[job.id]
    return "skip" if answer.refusal is not None else "go" if answer.wait is None else "wait"


def hand_back(store: Any, job: Job) -> None:
    assert store.settle([Outcome(job.id, job.claim, "queued", gives_back=True)]) == {job.id}


def request(store: Any, clock: Clock, line: Line, kind: Any = "manual") -> int:
    at = clock.now - timedelta(microseconds=7)
    [job_id] = store.add_ticks("s", [ticks.Tick(at, clock.now, line.schedule.job(at, clock.now), kind=kind)]).values()
    return int(job_id)


@pytest.mark.parametrize("change", [{"task": "mail"}, {"queue": "other"}], ids=["task", "queue"])
@pytest.mark.parametrize("catch_up", ["latest", "all"])
@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_run_under_a_former_task_or_queue_does_not_block_others(
    store: Any, clock: Clock, overlap: str, catch_up: str, change: dict[str, str]
) -> None:
    line = Line(store, clock, "*/10 * * * *", overlap=overlap, catch_up=catch_up)
    by_hand = request(store, clock, line)
    clock.advance(600)
    renamed(store, overlap=overlap, catch_up=catch_up, **change)
    old = [job.id for job in store.find(states=["queued"]) if job.execute_after <= clock.now]
    clock.advance(600)
    store.plan(ticks.decide)
    store.watch()
    job = next(job for job in take(store, "add", "mail", limit=10) if job.id not in old)
    for other in [other for other in store.find(states=["running"]) if other.id != job.id]:
        hand_back(store, other)

    assert decision(store, job) == "go"

    assert by_hand in old
    assert store.get(by_hand).state == "queued"


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_run_returned_by_the_last_worker_that_knew_its_task_does_not_block_others(
    store: Any, clock: Clock, overlap: str
) -> None:
    Line(store, clock, "*/10 * * * *", overlap=overlap)
    clock.advance(600)
    [old] = take(store, "add")
    store.admit([old.id])
    renamed(store, overlap=overlap)
    hand_back(store, old)
    clock.advance(600)
    [new] = take(store, "mail")

    assert decision(store, new) == "go"


@pytest.mark.parametrize("overlap", ["skip", "queue"])
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
def test_a_run_under_a_former_task_does_not_run_beside_a_newer_one(
    store: Any, clock: Clock, overlap: str, begun: bool
) -> None:
    Line(store, clock, "*/10 * * * *", overlap=overlap)
    clock.advance(600)
    [old] = take(store, "add")
    if begun:
        store.admit([old.id])
    renamed(store, overlap=overlap)
    hand_back(store, old)
    clock.advance(600)
    [new] = take(store, "mail")
    assert decision(store, new) == "go"

    [old] = take(store, "add")
    answer = decision(store, old)

    assert answer == {"skip": "skip", "queue": "wait"}[overlap]
    if overlap == "skip":
        assert store.ticks("s", until=START + 10 * MINUTE)[0].reason == "missed; a later tick stands for it"
        return
    end(store, new)
    assert decision(store, old) == "go"


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_newer_run_does_not_begin_while_an_old_worker_holds_one(
    store: Any, clock: Clock, overlap: str
) -> None:
    Line(store, clock, "*/10 * * * *", overlap=overlap)
    clock.advance(600)
    [old] = take(store, "add")
    store.admit([old.id])
    renamed(store, overlap=overlap)
    clock.advance(600)
    [new] = take(store, "mail")

    assert decision(store, new) == {"skip": "skip", "queue": "wait"}[overlap]


def test_a_manual_run_under_the_former_task_waits_for_the_current_run(
    store: Any, clock: Clock
) -> None:
    line = Line(store, clock, "*/10 * * * *")
    by_hand = request(store, clock, line)
    renamed(store)
    clock.advance(600)
    [new] = take(store, "mail")
    assert decision(store, new) == "go"

    [old] = take(store, "add")

    assert old.id == by_hand
    assert decision(store, old) == "wait"
    end(store, new)
    assert decision(store, old) == "go"


def test_the_next_run_is_released_although_an_older_one_waits_under_the_former_task(store: Any, clock: Clock) -> None:
    line = Line(store, clock, "*/10 * * * *", overlap="queue")
    clock.advance(600)
    [first] = take(store, "add")
    store.admit([first.id])
    request(store, clock, line)
    [old] = take(store, "add")
    return_to_wait(store, old)
    renamed(store, overlap="queue")
    clock.advance(600)
    [new] = take(store, "mail")
    return_to_wait(store, new)

    end(store, first)

    assert store.release([first.id])
    assert [job.id for job in take(store, "mail")] == [new.id]
    # A worker that still knows the former task does not have to wait either.
    assert [job.id for job in take(store, "add")] == [old.id]


def test_runs_under_the_former_task_do_not_count_as_waiting(store: Any, clock: Clock) -> None:
    line = Line(store, clock, overlap="queue", catch_up="all", slots=1, seconds=100_000)
    line.work(10 * MAX_WAITING + 60)
    [(running, _)] = line.running.values()
    renamed(store, when="* * * * * */10", overlap="queue", catch_up="latest")
    clock.advance(20)
    store.plan(ticks.decide)
    new = take(store, "mail")[0]

    answer = store.admit([new.id])[new.id]

    assert (answer.refusal, answer.wait is not None) == (None, True)
    assert running.id == store.find(states=["running"])[-1].id


def test_a_later_success_ends_the_alarm_about_a_run_under_the_former_task(store: Any, clock: Clock) -> None:
    line = Line(store, clock, "*/10 * * * *", catch_up="all")
    request(store, clock, line)
    renamed(store, catch_up="all")
    clock.advance(600)
    [alarm] = store.watch()[1]
    [new] = take(store, "mail")
    assert decision(store, new) == "go"
    store.plan(ticks.decide)
    store.settle([Outcome(new.id, new.claim, "done")])
    assert store.close_ticks([new.id])[0].recovered

    clock.advance(30)
    again = store.watch()[1]

    assert alarm.kind == "missed"
    assert again == []
    view = store.schedules("s")[0]
    assert (view.alarm, view.next_tick) == (None, START + 20 * MINUTE)
    assert schedule_status.condition(view, clock.now).word == "ok"


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
def test_an_after_finish_schedule_continues_if_its_last_run_is_under_the_former_task(
    store: Any, clock: Clock, begun: bool
) -> None:
    Line(store, clock, "every 10m", after_finish=True)
    clock.advance(600)
    [old] = take(store, "add")
    if begun:
        store.admit([old.id])
        renamed(store, when="every 10m", after_finish=True)
        hand_back(store, old)
        store.watch()
        store.plan(ticks.decide)
    else:
        hand_back(store, old)
        renamed(store, when="every 10m", after_finish=True)

    clock.advance(1200)

    [new] = take(store, "mail")
    assert decision(store, new) == "go"
    end(store, new)
    store.plan(ticks.decide)
    assert store.schedules("s")[0].next_tick == clock.now + 10 * MINUTE


# Property: any sequence of events


EVENTS = st.one_of(
    st.tuples(st.just("work"), st.integers(1, 90)),
    st.tuples(st.just("work"), st.integers(60, 400)),
    st.tuples(st.just("outage"), st.integers(1, 30)),
    st.tuples(st.just("outage"), st.integers(60, 500)),
    st.tuples(st.just("run takes"), st.integers(0, 40)),
)


@pytest.mark.row(90)
@pytest.mark.parametrize("catch_up", ["all", "latest", "skip"])
@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_no_tick_is_skipped_except_by_its_policy(store: Any, clock: Clock, catch_up: str, overlap: str) -> None:
    is_real = type(store).__name__ != "MemoryStore"
    numbers = iter(range(10_000))

    @settings(
        deadline=None, max_examples=3 if is_real else 20, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate],
    )  # fmt: skip
    @given(
        slots=st.integers(1, 4), seconds=st.integers(0, 30), events=st.lists(EVENTS, min_size=3, max_size=12),
    )
    def live(slots: int, seconds: int, events: list[tuple[str, int]]) -> None:
        name = f"line {next(numbers)}"
        line = Line(
            store, clock, name=name, slots=slots, seconds=seconds, overlap=overlap, catch_up=catch_up,
        )  # fmt: skip
        outages = []
        for event, amount in events:
            if event == "work":
                line.work(amount)
            elif event == "outage":
                outages.append((clock.now, clock.now + amount * SECOND))
                clock.advance(amount)
            else:
                line.seconds = amount
        line.finish()
        check(line, outages)
        store.pause_schedule(name)

    live()


def check(line: Line, outages: list[tuple[datetime, datetime]]) -> None:
    views = line.past()
    runs = [view for view in views if view.outcome == "done"]
    assert line.max_at_once <= 1
    assert line.begun == [view.tick for view in runs], "out of order, or twice"
    assert {view.outcome for view in views} <= {"done", "skipped"}
    for view in views:
        if view.outcome != "skipped":
            continue
        reason = str(view.reason)
        if reason.startswith("missed"):
            # No worker ran when it was due, or an outage began within `LATE` after that.
            assert line.schedule.catch_up != "all"
            assert line.schedule.overlap == "skip" or any(
                begin <= view.due_at + LATE and view.due_at < end for begin, end in outages
            ), f"{view.tick} was not missed"
        else:
            assert line.schedule.overlap == "skip", reason
            blocking = next(run for run in runs if reason.endswith(_named(run.tick)))
            assert blocking.started_at is not None
            assert blocking.finished_at is not None
            if line.schedule.catch_up == "all":
                assert blocking.started_at <= view.due_at
                assert blocking.started_at - blocking.due_at <= LATE
                before = [run for run in runs if run.tick < blocking.tick]
                assert all(run.finished_at <= blocking.due_at for run in before[-1:] if run.finished_at), "delayed"


def _named(tick: datetime) -> str:
    return f"the run of {tick:%Y-%m-%d %H:%M:%S} UTC was still going on"
