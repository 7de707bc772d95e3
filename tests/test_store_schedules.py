"""Contract of the stores for schedules, ticks and their jobs, in memory and on PostgreSQL."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from clock import START, Clock

from pgcron_lite.job import Job, Outcome, WorkerCard
from pgcron_lite.schedules import schedule, ticks
from pgcron_lite.schedules.schedule import Schedule
from pgcron_lite.schedules.ticks import LATE, Alarm, Change, Entry, Move, Tick

SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
ME = uuid.UUID(int=1)


def definition(when: str = "*/10 * * * *", name: str = "s", **options: Any) -> str:
    timing = schedule.timing_of(when, options.pop("tz", "UTC"), name=name)
    return Schedule(name, options.pop("task", "add"), timing, **options).dumps()


def put(store: Any, when: str = "*/10 * * * *", name: str = "s", **options: Any) -> None:
    """Add a schedule at run time, and decide its next ticks."""
    assert store.put_schedule(name, "shop", definition(when, name, **options), replace=False) == "added"
    store.plan(ticks.decide, name)


def planned(store: Any) -> list[Move]:
    moves: list[Move] = store.plan(ticks.decide)
    return moves


def rows(store: Any, name: str = "s") -> dict[datetime, tuple[str | None, str | None]]:
    """Return outcome and reason of each tick, oldest first."""
    return {view.tick: (view.outcome, view.reason) for view in reversed(store.ticks(name))}


def jobs(store: Any, name: str = "s") -> list[Job]:
    found = [job for job in store.find(limit=1000) if job.headers.get(schedule.SCHEDULE) == name]
    return sorted(found, key=lambda job: job.execute_after)


def claim(store: Any, limit: int = 100) -> list[Job]:
    claimed: list[Job] = store.claim(ME, uuid.uuid4(), ["*"], ["add"], limit)
    return claimed


def end(store: Any, job: Job, state: Any = "done", **fields: Any) -> Any:
    assert job.claim is not None
    assert store.settle([Outcome(job.id, job.claim, state, **fields)]) == {job.id}
    return store.close_ticks([job.id])


def live(store: Any, generation: str | None, number: int = 1) -> None:
    """Register a worker with the code of `generation`."""
    store.register(WorkerCard(uuid.UUID(int=number), "box", 7, ("*",), 3, "threads", "1", generation))


def declared(store: Any, number: int, app: str = "shop", **definitions: str) -> list[Change]:
    """Start worker `number` with code that declares these schedules. Return the changes."""
    generation = schedule.generation(app, definitions)
    store.declare(app, generation, definitions)
    live(store, generation, number)
    changes: list[Change] = store.reconcile()
    planned(store)
    return changes


def what(changes: Sequence[Change]) -> dict[str, str]:
    return {change.name: change.what for change in changes}


# Planning


def test_the_next_tick_of_a_new_schedule_is_stored_at_once(store: Any) -> None:
    put(store, args='{"x": 1}', queue="mail", priority=3, tags=("t",), jitter=MINUTE)

    [job] = jobs(store)
    [view] = store.ticks("s")
    assert (job.task, job.args, job.queue, job.priority, job.tags, job.state) == (
        "add", '{"x": 1}', "mail", 3, ("t",), "queued",
    )  # fmt: skip
    assert job.headers == {schedule.SCHEDULE: "s", schedule.TICK: (START + 10 * MINUTE).isoformat()}
    assert view.tick == START + 10 * MINUTE
    assert view.tick <= view.due_at == job.execute_after <= view.tick + MINUTE
    assert (view.kind, view.job_id, view.planned_at) == ("tick", job.id, START)
    assert (view.started_at, view.finished_at, view.outcome, view.reason, view.lateness) == (None,) * 5


def test_a_tick_is_decided_once_however_often_planning_runs(store: Any, clock: Clock) -> None:
    put(store)

    for _ in range(3):
        planned(store)
        clock.advance(9 * 60 + 35)
        planned(store)

    assert [job.execute_after for job in jobs(store)] == [START + n * 10 * MINUTE for n in (1, 2, 3)]


@pytest.mark.row(87)
def test_a_decision_on_a_row_that_has_changed_since_is_not_written(store: Any) -> None:
    put(store)
    before = jobs(store)

    def outdated(entry: Entry, now: datetime) -> Move:
        tick = Tick(now + HOUR, now + HOUR, schedule.loads("s", definition()).job(now, now))
        return Move(entry.name, entry.revision - 1, now + HOUR, None, (tick,))

    made = store.plan(outdated, "s")

    assert made == []
    assert jobs(store) == before


def test_an_existing_tick_gets_no_second_job(store: Any) -> None:
    put(store)

    def again(entry: Entry, now: datetime) -> Move:
        tick = START + 10 * MINUTE
        job = schedule.loads("s", definition()).job(tick, tick)
        return Move(entry.name, entry.revision, tick, None, (Tick(tick, tick, job),))

    store.plan(again, "s")

    assert len(jobs(store)) == 1


def test_look_returns_the_time_of_the_next_planning(store: Any, clock: Clock) -> None:
    assert store.look(["*"], ["add"]).plan_in is None

    put(store)
    assert store.look(["*"], ["add"]).plan_in == pytest.approx(9.5 * 60)

    clock.advance(9.5 * 60)
    assert store.look(["*"], ["add"]).plan_in == 0
    assert [move.name for move in planned(store)] == ["s"]
    assert store.look(["*"], ["add"]).plan_in == pytest.approx(10 * 60)


@pytest.mark.row(104)
def test_a_broken_schedule_does_not_stop_the_others(store: Any, clock: Clock) -> None:
    store.put_schedule("a", "shop", '{"task": "add", "timing": "30 2 * * *", "tz": "Mars/Olympus"}', replace=False)
    put(store, name="b")
    clock.advance(600)

    moves = {move.name: move for move in planned(store)}

    assert "Mars/Olympus" in str(moves["a"].trouble)
    assert moves["b"].trouble is None
    assert [view.trouble is None for view in store.schedules()] == [False, True]
    assert store.look(["*"], ["add"]).plan_in == pytest.approx(60)


@pytest.mark.row(90)
def test_missed_ticks_are_rows_with_a_reason(store: Any, clock: Clock) -> None:
    put(store)
    clock.advance(45 * 60)
    planned(store)

    assert rows(store) == {
        START + 10 * MINUTE: (None, None),
        START + 20 * MINUTE: ("skipped", "missed; a later tick stands for it"),
        START + 30 * MINUTE: ("skipped", "missed; a later tick stands for it"),
        START + 40 * MINUTE: (None, None),
        START + 50 * MINUTE: (None, None),
    }


def test_max_runs_counts_planned_runs_without_withdrawn_ones(store: Any, clock: Clock) -> None:
    put(store, "* * * * * *", max_runs=3)
    assert len(jobs(store)) == 3

    store.pause_schedule("s")
    assert (jobs(store), store.schedules("s")[0].runs) == ([], 0)

    clock.advance(10)
    store.plan(ticks.decide, "s")
    store.resume_schedule("s")
    store.plan(ticks.decide, "s")
    assert [job.execute_after for job in jobs(store)] == [START + n * SECOND for n in (11, 12, 13)]
    assert store.look(["*"], ["add"]).plan_in is None


# Admission


def admitted(store: Any, clock: Clock, late: timedelta = timedelta(0), **options: Any) -> tuple[Any, Job]:
    """Return the admission and the job of the first tick of a schedule, which is claimed `late`."""
    put(store, **options)
    clock.advance((10 * MINUTE + late).total_seconds())
    [job] = claim(store)
    return store.admit([job.id])[job.id], job


def test_a_tick_begins_when_it_is_time(store: Any, clock: Clock) -> None:
    admission, _ = admitted(store, clock, ping="https://example.org/p")

    assert (admission.refusal, admission.wait, admission.is_late, admission.previous) == (None, None, False, None)
    assert (admission.kind, admission.ping) == ("tick", "https://example.org/p")
    assert store.ticks("s")[0].started_at == START + 10 * MINUTE


@pytest.mark.row(90)
@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"catch_up": "latest"}, None),
        ({"catch_up": "all"}, None),
        ({"catch_up": "skip"}, "missed"),
        ({"start_within": 2 * MINUTE}, "too late"),
        ({"start_within": 10 * MINUTE}, None),
    ],
    ids=["latest", "all", "skip", "beyond-start-within", "within-start-within"],
)
def test_the_policy_decides_on_a_late_run(
    store: Any, clock: Clock, options: dict[str, Any], refusal: str | None
) -> None:
    admission, _ = admitted(store, clock, 5 * MINUTE, **options)

    assert admission.refusal == refusal
    assert admission.is_late == (refusal is None)
    assert rows(store)[START + 10 * MINUTE] == (("skipped", refusal) if refusal else (None, None))


def test_a_repeated_admission_gives_the_same_answer(store: Any, clock: Clock) -> None:
    refused, job = admitted(store, clock, 5 * MINUTE, catch_up="skip")

    assert store.admit([job.id])[job.id].refusal == refused.refusal == "missed"
    assert store.schedules("s")[0].runs == 0


def test_a_run_that_has_begun_may_continue_however_late(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock, catch_up="skip", start_within=MINUTE)
    clock.advance(HOUR.total_seconds())

    again = store.admit([job.id])[job.id]

    assert (again.refusal, again.wait, again.is_late) == (None, None, False)
    assert store.ticks("s", limit=1)[0].started_at == START + 10 * MINUTE


def test_of_several_due_ticks_only_the_latest_runs(store: Any, clock: Clock) -> None:
    put(store, "* * * * * *", overlap="allow")
    clock.advance(5)
    held = claim(store)
    assert len(held) == 5

    answers = store.admit([job.id for job in held])

    assert [answers[job.id].refusal is None for job in held] == [False, False, False, False, True]


@pytest.mark.row(102)
@pytest.mark.parametrize(
    ("overlap", "decision"), [("allow", "go"), ("skip", "skip"), ("queue", "wait")], ids=["allow", "skip", "queue"]
)
def test_overlap_is_decided_when_the_next_run_would_begin(
    store: Any, clock: Clock, overlap: str, decision: str
) -> None:
    _, first = admitted(store, clock, overlap=overlap)
    planned(store)
    clock.advance(600)
    [second] = claim(store)

    answer = store.admit([second.id])[second.id]

    assert ("skip" if answer.refusal else "wait" if answer.wait else "go") == decision
    if decision == "skip":
        assert answer.refusal == "overlap: the run of 2026-03-01 12:10:00 UTC was still going on"
    if decision == "wait":
        assert answer.wait == 600
        end(store, first)
        assert store.admit([second.id])[second.id].wait is None


def test_a_run_that_waits_for_a_retry_has_not_ended(store: Any, clock: Clock) -> None:
    _, first = admitted(store, clock)
    store.settle([Outcome(first.id, first.claim, "queued", delay=3600)])
    planned(store)
    clock.advance(600)
    [second] = claim(store)

    assert "overlap" in store.admit([second.id])[second.id].refusal


def test_a_run_whose_end_is_not_recorded_blocks_no_other(store: Any, clock: Clock) -> None:
    _, first = admitted(store, clock)
    store.settle([Outcome(first.id, first.claim, "done")])  # and the worker died here
    planned(store)
    clock.advance(600)
    [second] = claim(store)

    assert store.admit([second.id])[second.id].refusal is None


def test_caught_up_ticks_run_one_after_the_other(store: Any, clock: Clock) -> None:
    put(store, catch_up="all")
    clock.advance(35 * 60)
    planned(store)
    held = claim(store)

    answers = store.admit([job.id for job in held])

    assert [answers[job.id].wait is None for job in held] == [True, False, False]
    assert all(answer.refusal is None for answer in answers.values())


def test_a_job_without_a_tick_needs_no_admission(store: Any) -> None:
    assert store.admit([4711]) == {}
    assert store.close_ticks([4711]) == []


# The end of a run


def test_the_end_of_a_run_is_recorded(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock)
    clock.advance(42)

    [closing] = end(store, job)

    assert (closing.schedule, closing.tick, closing.job_id) == ("s", START + 10 * MINUTE, job.id)
    assert (closing.outcome, closing.seconds, closing.recovered, closing.goes_on) == ("done", 42, False, False)
    view = store.ticks("s")[0]
    assert (view.outcome, view.finished_at) == ("done", START + 10 * MINUTE + 42 * SECOND)
    assert store.close_ticks([job.id]) == []


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_the_failure_of_a_run_is_recorded(store: Any, clock: Clock, state: str) -> None:
    _, job = admitted(store, clock)

    assert [closing.outcome for closing in end(store, job, state)] == [state]


def test_a_failed_run_that_is_retried_by_hand_ends_as_done(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock)
    end(store, job, "failed")
    store.retry(job.id)
    [again] = claim(store)
    assert store.admit([again.id])[again.id].refusal is None

    [closing] = end(store, again)

    assert closing.outcome == "done"
    assert store.ticks("s")[0].outcome == "done"


def test_a_run_gets_the_tick_of_the_last_successful_one(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock)
    end(store, job)
    seen = []
    for state in ("failed", "done", "done"):
        planned(store)
        clock.advance(600)
        [job] = claim(store)
        seen.append(store.admit([job.id])[job.id].previous)
        end(store, job, state)

    assert seen == [START + 10 * MINUTE, START + 10 * MINUTE, START + 30 * MINUTE]


def test_with_after_finish_the_interval_counts_from_the_end_of_the_last_run(store: Any, clock: Clock) -> None:
    put(store, "every 10m", after_finish=True)
    clock.advance(600)
    [job] = claim(store)
    store.admit([job.id])
    planned(store)
    clock.advance(2000)
    assert jobs(store) == [store.get(job.id)]

    [closing] = end(store, job)

    assert closing.goes_on
    assert store.look(["*"], ["add"]).plan_in == 0
    planned(store)
    assert jobs(store)[-1].execute_after == START + 2600 * SECOND + 600 * SECOND


# Watching


def watch(store: Any, clock: Clock, seconds: float = 15) -> list[Alarm]:
    clock.advance(seconds)
    alarms: list[Alarm] = store.watch()[1]
    return alarms


def test_a_tick_that_does_not_begin_raises_one_missed_alarm(store: Any, clock: Clock) -> None:
    put(store)
    assert watch(store, clock, 600 + LATE.total_seconds()) == []

    assert watch(store, clock) == [Alarm("s", START + 10 * MINUTE, "missed", jobs(store)[0].id)]
    assert watch(store, clock) == []
    assert store.schedules("s")[0].alarm == "missed"


def test_a_run_that_has_not_ended_at_its_next_tick_raises_one_late_alarm(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock)
    planned(store)
    assert watch(store, clock, 600) == []

    assert watch(store, clock) == [Alarm("s", START + 10 * MINUTE, "late", job.id)]
    assert watch(store, clock) == []


def test_a_success_ends_the_alarm(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock, alert_after=MINUTE)
    assert [alarm.kind for alarm in watch(store, clock, 75)] == ["late"]

    [closing] = end(store, job)

    assert closing.recovered
    assert store.schedules("s")[0].alarm is None


def test_a_failure_does_not_end_the_alarm(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock, alert_after=MINUTE)
    watch(store, clock, 75)

    [closing] = end(store, job, "failed")

    assert not closing.recovered
    assert store.schedules("s")[0].alarm == "late"


def test_an_alarm_is_raised_when_nothing_is_planned(store: Any, clock: Clock) -> None:
    put(store)
    clock.advance(570)
    planned(store)  # up to 12:20, and then every scheduler is gone
    [job] = [job for job in jobs(store) if job.execute_after == START + 10 * MINUTE]
    clock.advance(30)
    [job] = claim(store)
    store.admit([job.id])
    end(store, job)
    # By then, the next tick should have been decided.
    store.cancel(jobs(store)[-1].id)
    store.watch()

    assert [alarm.kind for alarm in watch(store, clock, 150)] == ["missed"]


def test_only_one_worker_watches_in_each_interval(store: Any, clock: Clock) -> None:
    put(store)

    clock.advance(700)
    assert store.look(["*"], ["add"]).ticks_want_watching
    assert len(store.watch()[1]) == 1
    assert not store.look(["*"], ["add"]).ticks_want_watching
    assert store.watch() == ([], [])


@pytest.mark.parametrize("how", ["ended", "deleted"])
def test_an_end_that_was_not_recorded_is_found(store: Any, clock: Clock, how: str) -> None:
    _, job = admitted(store, clock)
    store.settle([Outcome(job.id, job.claim, "done")])
    if how == "deleted":
        store.delete(job.id)
    clock.advance(20)

    [closing] = store.watch()[0]

    assert closing.outcome == ("done" if how == "ended" else "deleted")


def test_an_alarm_is_raised_once(store: Any) -> None:
    put(store)

    assert [store.raise_alarm("s", START), store.raise_alarm("s", START)] == [True, False]
    assert store.raise_alarm("nobody", START) is False


# Changes at run time


def test_a_paused_schedule_has_rows_for_its_ticks_and_no_jobs(store: Any, clock: Clock) -> None:
    put(store, catch_up="all")
    assert store.pause_schedule("s")
    assert (jobs(store), rows(store)) == ([], {})
    clock.advance(25 * 60)
    planned(store)

    assert rows(store) == {START + n * MINUTE: ("skipped", "paused") for n in (10, 20)}

    assert store.resume_schedule("s")
    planned(store)
    assert [job.execute_after for job in jobs(store)] == [START + 30 * MINUTE]
    assert not store.resume_schedule("s")
    assert not store.pause_schedule("nobody")


def test_an_overdue_tick_does_not_run_during_a_pause(store: Any, clock: Clock) -> None:
    put(store)
    clock.advance(605)

    store.pause_schedule("s")

    assert (jobs(store), rows(store)) == ([], {START + 10 * MINUTE: ("skipped", "paused")})


def test_a_pause_does_not_affect_a_current_run(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock)

    store.pause_schedule("s")

    assert store.get(job.id).state == "running"
    assert [closing.outcome for closing in end(store, job)] == ["done"]


def test_a_new_definition_replaces_ticks_that_have_not_begun(store: Any, clock: Clock) -> None:
    put(store)
    clock.advance(60)

    assert store.put_schedule("s", "shop", definition("*/7 * * * *", args='{"x": 2}'), replace=True) == "replaced"
    planned(store)

    [job] = jobs(store)
    assert (job.execute_after, job.args) == (START + 7 * MINUTE, '{"x": 2}')
    assert list(rows(store)) == [START + 7 * MINUTE]


def test_a_name_is_used_once(store: Any) -> None:
    put(store)

    assert store.put_schedule("s", "shop", definition(), replace=False) == "exists"
    assert store.put_schedule("t", "shop", definition(name="t"), replace=True) == "missing"
    assert store.remove_schedule("t") == "missing"


def test_the_history_of_a_removed_schedule_remains(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock)
    end(store, job)
    planned(store)

    assert store.remove_schedule("s") == "removed"

    assert store.schedules() == []
    assert rows(store) == {START + 10 * MINUTE: ("done", None)}
    assert [job.state for job in jobs(store)] == ["done"]


def test_an_overdue_tick_of_a_removed_schedule_says_why_it_did_not_run(store: Any, clock: Clock) -> None:
    put(store)
    clock.advance(660)

    store.remove_schedule("s")

    assert rows(store) == {START + 10 * MINUTE: ("skipped", "the schedule was removed")}
    assert jobs(store) == []


def by_hand(kind: ticks.Kind, tick: datetime, now: datetime) -> Tick:
    return Tick(tick, now, schedule.loads("s", definition()).job(tick, now), kind=kind)


def test_runs_can_be_added_but_none_twice(store: Any, clock: Clock) -> None:
    put(store)
    clock.advance(35 * 60)
    planned(store)
    now = store.now()
    asked = [START + n * MINUTE for n in (-10, 0, 10, 20)]

    added = store.add_ticks("s", [by_hand("backfill", tick, now) for tick in asked])

    # 12:10 is waiting with its job. 12:20 was skipped in favour of a later tick, and can be backfilled.
    assert list(added) == [START - 10 * MINUTE, START, START + 20 * MINUTE]
    assert store.add_ticks("s", [by_hand("backfill", tick, now) for tick in asked]) == {}
    views = {view.tick: view for view in store.ticks("s")}
    assert (views[START].kind, views[START].due_at, views[START].job_id) == ("backfill", now, added[START])


def test_runs_by_hand_do_not_count_for_max_runs(store: Any, clock: Clock) -> None:
    put(store, max_runs=2)
    store.add_ticks("s", [by_hand("manual", START + SECOND, START)])

    assert store.schedules("s")[0].runs == 1


def test_requested_runs_wait_for_the_current_run(store: Any, clock: Clock) -> None:
    _, running = admitted(store, clock)
    now = store.now()
    store.add_ticks("s", [by_hand("manual", now + SECOND, now), by_hand("backfill", START, now)])
    held = claim(store)

    answers = [store.admit([job.id])[job.id] for job in held]

    assert [(answer.refusal, answer.wait) for answer in answers] == [(None, 600), (None, 600)]
    assert {answer.kind for answer in answers} == {"manual", "backfill"}
    end(store, running)
    again = [store.admit([job.id])[job.id].wait is None for job in held]
    assert sorted(again) == [False, True]


def test_old_ticks_are_deleted_and_never_decided_again(store: Any, clock: Clock) -> None:
    _, job = admitted(store, clock)
    end(store, job)
    clock.advance(DAY.total_seconds())

    assert store.prune_ticks(HOUR) == 1
    planned(store)
    assert START + 10 * MINUTE not in rows(store)
    assert store.prune_ticks(timedelta(days=30)) == 0


# Declarations in code


def test_declarations_take_effect_when_a_worker_starts(store: Any) -> None:
    store.declare("shop", "g1", {"s": definition()})
    assert store.reconcile() == []

    live(store, "g1")
    assert store.look(["*"], ["add"]).plan_in == 0
    assert store.reconcile() == [Change("s", "new")]
    assert store.reconcile() == []
    planned(store)
    assert len(jobs(store)) == 1
    [view] = store.schedules()
    assert (view.name, view.origin, view.app, view.next_tick) == ("s", "code", "shop", START + 10 * MINUTE)


def test_a_second_worker_of_the_same_code_changes_nothing(store: Any) -> None:
    declared(store, 1, s=definition())

    assert declared(store, 2, s=definition()) == []


def test_a_deploy_changes_adds_and_retires(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition(), old=definition("@daily", "old"))
    clock.advance(60)

    changes = declared(store, 2, s=definition("*/7 * * * *"), new=definition("@hourly", "new"))

    # A worker with the old code is still alive, so the schedules that only it declares remain.
    assert what(changes) == {"s": "changed", "new": "new"}
    assert [job.execute_after for job in jobs(store)] == [START + 7 * MINUTE]
    store.forget(uuid.UUID(int=1))
    assert what(store.reconcile()) == {"old": "retired"}
    assert jobs(store, "old") == []
    assert [view.name for view in store.schedules() if view.retired_at is None] == ["new", "s"]


@pytest.mark.row(101)
def test_a_restarted_worker_with_old_code_reverts_nothing(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition())
    clock.advance(60)
    declared(store, 2, s=definition("*/7 * * * *"))
    store.forget(uuid.UUID(int=1))
    store.reconcile()
    clock.advance(60)

    changes = declared(store, 3, s=definition())

    assert changes == []
    assert [job.execute_after for job in jobs(store)] == [START + 7 * MINUTE]


@pytest.mark.row(101)
def test_a_rollback_is_complete_when_the_last_newer_worker_has_stopped(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition())
    clock.advance(60)
    declared(store, 2, s=definition("*/7 * * * *"), new=definition("@hourly", "new"))
    declared(store, 3, s=definition())
    store.forget(uuid.UUID(int=1))
    assert what(store.reconcile()) == {}

    store.forget(uuid.UUID(int=2))

    assert what(store.reconcile()) == {"s": "changed", "new": "retired"}
    planned(store)
    assert [job.execute_after for job in jobs(store)] == [START + 10 * MINUTE]


def test_the_schedules_of_another_app_are_not_changed(store: Any) -> None:
    declared(store, 1, "shop", s=definition())
    declared(store, 2, "mill", m=definition(name="m"))

    store.forget(uuid.UUID(int=1))

    assert store.reconcile() == []
    assert [view.name for view in store.schedules() if view.retired_at is None] == ["m", "s"]


def test_ticks_missed_while_all_workers_were_down_are_caught_up(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition())
    store.forget(uuid.UUID(int=1))
    clock.advance(35 * 60)

    declared(store, 2, s=definition())

    held = claim(store)
    answers = store.admit([job.id for job in held])
    assert [(job.execute_after, answers[job.id].refusal) for job in held] == [
        (START + 10 * MINUTE, "missed; a later tick stands for it"), (START + 30 * MINUTE, None),
    ]  # fmt: skip


def test_a_schedule_that_returns_within_the_hour_continues(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition(), t=definition(name="t"))
    declared(store, 2, t=definition(name="t"))
    store.forget(uuid.UUID(int=1))
    assert what(store.reconcile()) == {"s": "retired"}
    clock.advance(25 * 60)

    assert what(declared(store, 3, s=definition())) == {"s": "changed"}

    assert START + 20 * MINUTE in [job.execute_after for job in jobs(store)]


def test_a_schedule_that_returns_later_starts_afresh(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition(), t=definition(name="t"))
    declared(store, 2, t=definition(name="t"))
    store.forget(uuid.UUID(int=1))
    store.reconcile()
    clock.advance(DAY.total_seconds() + 300)

    declared(store, 3, s=definition())

    assert [job.execute_after for job in jobs(store)] == [START + DAY + 10 * MINUTE]


def test_a_pause_survives_a_deploy(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition())
    store.pause_schedule("s")

    declared(store, 2, s=definition("*/7 * * * *"))

    assert store.schedules("s")[0].paused_at == START
    assert jobs(store) == []


def test_a_schedule_added_at_run_time_keeps_its_name(store: Any) -> None:
    put(store)

    assert what(declared(store, 1, s=definition("*/7 * * * *"))) == {"s": "taken"}

    assert [job.execute_after for job in jobs(store)] == [START + 10 * MINUTE]


def test_when_the_added_schedule_is_removed_the_declared_one_takes_effect(store: Any, clock: Clock) -> None:
    put(store)
    declared(store, 1, s=definition("*/7 * * * *", run_on_start=True))
    clock.advance(60)

    assert store.remove_schedule("s") == "removed"

    assert store.look(["*"], ["add"]).plan_in == 0
    planned(store)
    [view] = store.schedules()
    assert (view.origin, view.app, view.runs, view.next_tick) == ("code", "shop", 1, START + 7 * MINUTE)
    # No new code has started, so run_on_start causes no run.
    assert [job.execute_after for job in jobs(store)] == [START + 7 * MINUTE]
    assert store.reconcile() == []
    assert store.remove_schedule("s") == "code"


def test_the_declared_one_takes_effect_even_while_all_workers_are_absent(store: Any) -> None:
    put(store)
    declared(store, 1, s=definition("*/7 * * * *"))
    store.forget(uuid.UUID(int=1))

    store.remove_schedule("s")

    assert declared(store, 2, s=definition("*/7 * * * *")) == []
    assert [job.execute_after for job in jobs(store)] == [START + 7 * MINUTE]


def test_of_several_declarations_the_newest_replaces_a_removed_schedule(store: Any) -> None:
    put(store)
    declared(store, 1, s=definition("*/6 * * * *"))
    declared(store, 2, s=definition("*/7 * * * *"))
    declared(store, 3, s=definition("*/6 * * * *"))

    store.remove_schedule("s")
    planned(store)

    assert [job.execute_after for job in jobs(store)] == [START + 7 * MINUTE]


def test_removing_a_schedule_does_not_reconcile_other_declarations(store: Any) -> None:
    put(store)
    definitions = {"s": definition("*/7 * * * *", run_on_start=True), "t": definition(name="t")}
    store.declare("shop", "g1", definitions)
    live(store, "g1")

    store.remove_schedule("s")
    planned(store)

    assert [(view.name, view.next_tick) for view in store.schedules()] == [("s", START + 7 * MINUTE)]
    assert store.reconcile() == [Change("s", "started"), Change("t", "new")]
    planned(store)
    assert len(starts(store)) == 1


def test_a_schedule_declared_in_code_is_not_changed_at_run_time(store: Any) -> None:
    declared(store, 1, s=definition())

    assert store.put_schedule("s", "shop", definition("@hourly"), replace=True) == "code"
    assert store.remove_schedule("s") == "code"


# Start of new code


def starts(store: Any, name: str = "s") -> list[tuple[datetime, datetime]]:
    """Return the runs for run_on_start: their ticks and due times."""
    views = [view for view in reversed(store.ticks(name)) if view.kind == "start"]
    assert [store.get(view.job_id).execute_after for view in views] == [view.due_at for view in views]
    return [(view.tick, view.due_at) for view in views]


def started(store: Any, number: int, **definitions: str) -> list[Change]:
    """Start worker `number` like `declared`, but let it die before it plans anything. Return the changes."""
    generation = schedule.generation("shop", definitions)
    store.declare("shop", generation, definitions)
    live(store, generation, number)
    changes: list[Change] = store.reconcile()
    return changes


WARM, COLD, OTHER = definition("@yearly", run_on_start=True), definition("@yearly"), definition("@daily", "t")


def test_new_code_may_request_a_run_at_its_start(store: Any, clock: Clock) -> None:
    assert declared(store, 1, s=WARM) == [Change("s", "new")]
    assert declared(store, 2, s=WARM) == []
    clock.advance(60)
    assert declared(store, 3, s=WARM, t=OTHER) == [Change("s", "started"), Change("t", "new")]
    clock.advance(60)
    assert declared(store, 4, s=definition("@hourly", run_on_start=True)) == [Change("s", "changed")]
    clock.advance(60)
    assert declared(store, 5, s=WARM) == []

    assert starts(store) == [(START + n * MINUTE, START + n * MINUTE) for n in range(3)]
    assert starts(store, "t") == []
    # The runs are in addition to the ticks, which are decided as usual and count alone.
    assert [view.kind for view in store.ticks("s") if view.tick > clock.now] == ["tick"]
    assert store.schedules("s")[0].runs == 1


@pytest.mark.row(85)
@pytest.mark.parametrize("was", ["new", "changed", "started"])
@pytest.mark.parametrize("is_reaped", [False, True])
def test_the_run_of_a_start_survives_the_worker_that_requested_it(
    store: Any, clock: Clock, was: str, is_reaped: bool
) -> None:
    if was != "new":
        declared(store, 1, **{"s": COLD} if was == "changed" else {"s": WARM, "t": OTHER})
    clock.advance(60)
    before = len(starts(store))
    assert what(started(store, 2, s=WARM)) == {"s": was}
    if is_reaped:
        store.forget(uuid.UUID(int=2))
        store.reconcile()
    clock.advance(60)

    assert store.look(["*"], ["add"]).plan_in <= 0
    declared(store, 3, s=WARM)
    planned(store)

    [(tick, due_at)] = starts(store)[before:]
    assert START + MINUTE <= tick <= due_at == START + 2 * MINUTE


def test_a_stuck_schedule_starts_once_it_can_be_decided(store: Any, clock: Clock) -> None:
    started(store, 1, s=WARM)
    store.plan(lambda entry, now: ticks.stuck(entry, now, "no time zones here"))
    assert starts(store) == []
    clock.advance(60)

    planned(store)
    planned(store)

    assert starts(store) == [(START, START + MINUTE)]


def test_an_older_decision_does_not_clear_the_request_for_a_start(store: Any) -> None:
    declared(store, 1, s=WARM, t=OTHER)
    read: list[Entry] = []

    def reading(entry: Entry, now: datetime) -> Move:
        read.append(entry)
        return ticks.decide(entry, now)

    store.plan(reading, "s")
    started(store, 2, s=WARM)
    assert store.plan(lambda entry, now: ticks.decide(read[0], now), "s") == []
    planned(store)

    assert len(starts(store)) == 2


@pytest.mark.parametrize("is_paused", [True, False])
def test_a_paused_or_disabled_schedule_does_not_start_now_or_later(store: Any, is_paused: bool) -> None:
    declared(store, 1, s=COLD if is_paused else definition("@yearly", enabled=False))
    if is_paused:
        store.pause_schedule("s")
    declared(store, 2, s=definition("@yearly", run_on_start=True, enabled=is_paused))

    store.resume_schedule("s")
    declared(store, 3, s=COLD)

    assert starts(store) == []


def test_a_schedule_that_is_retired_before_its_start_does_not_start(store: Any) -> None:
    declared(store, 1, t=OTHER)
    started(store, 2, s=WARM)
    store.forget(uuid.UUID(int=2))

    assert what(store.reconcile()) == {"s": "retired"}
    planned(store)

    assert starts(store) == []
    assert store.plan(ticks.decide, "s") == []


def test_a_schedule_that_is_changed_before_its_start_does_not_start(store: Any) -> None:
    started(store, 1, s=WARM)

    declared(store, 2, s=COLD)

    assert starts(store) == []


def test_a_start_has_a_unique_tick_even_if_the_clock_stands_still(store: Any, clock: Clock) -> None:
    declared(store, 1, s=definition(run_on_start=True))
    clock.advance(600)  # exactly to its tick
    declared(store, 2, s=definition(run_on_start=True), t=OTHER)
    declared(store, 3, s=definition("*/7 * * * *", run_on_start=True))

    ten = START + 10 * MINUTE
    assert [due_at for _, due_at in starts(store)] == [START, ten, ten]
    moments = [view.tick for view in store.ticks("s") if view.tick <= ten + SECOND]
    assert len(moments) == len(set(moments)) == 4
    assert sum(job.execute_after <= ten for job in jobs(store)) == 4


def test_with_after_finish_the_interval_counts_from_the_end_of_a_start(store: Any, clock: Clock) -> None:
    lazy = definition("every 10m", after_finish=True, run_on_start=True, max_runs=1)

    def to_come() -> list[datetime]:
        return [job.execute_after for job in jobs(store) if job.state == "queued"]

    declared(store, 1, s=lazy)
    for number in (2, 3):
        assert to_come() == [clock.now]
        [job] = claim(store)
        store.admit([job.id])
        clock.advance(60)
        end(store, job)
        planned(store)
        assert to_come() == [clock.now + 10 * MINUTE]
        clock.advance(120)
        # The run at the start replaces the next tick, and does not count towards max_runs.
        declared(store, number, s=lazy, **{f"t{number}": OTHER})
    assert (to_come(), store.schedules("s")[0].runs) == ([clock.now], 0)
