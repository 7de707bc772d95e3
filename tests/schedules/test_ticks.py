"""What becomes of a schedule's ticks, by the pure function that decides it, against a plain list of what should."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcron_lite.errors import OptionError
from pgcron_lite.schedules import ticks
from pgcron_lite.schedules.schedule import SCHEDULE, TICK, CatchUp, Schedule, checked, generation, loads, timing_of
from pgcron_lite.schedules.ticks import AHEAD, LATE, MARGIN, Entry, Move, decide
from pgcron_lite.schedules.timing import Cron, Every

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
MICROSECOND = timedelta(microseconds=1)


def schedule(when: str = "*/10 * * * *", **options: Any) -> Schedule:
    bounds = {bound: options.pop(bound, None) for bound in ("start", "end")}
    timing = timing_of(when, options.pop("tz", "UTC"), name="s", **bounds)
    return Schedule("s", "add", timing, **options)


def entry(of: Schedule, last_tick: datetime = NOON, **fields: Any) -> Entry:
    usual: dict[str, Any] = {"revision": 7, "runs": 0, "is_paused": False, "is_busy": False, "last_end": None}
    return Entry("s", of.dumps(), last_tick=last_tick, **usual | fields)


def with_job(move: Move) -> list[datetime]:
    return [tick.tick for tick in move.ticks if tick.job is not None]


def left_out(move: Move) -> dict[datetime, str | None]:
    return {tick.tick: tick.reason for tick in move.ticks if tick.job is None}


# Ahead


def test_the_next_tick_is_in_the_table_however_far_away_it_is() -> None:
    move = decide(entry(schedule("0 0 1 1 *")), NOON)

    new_year = datetime(2027, 1, 1, tzinfo=UTC)
    assert with_job(move) == [new_year]
    assert (move.last_tick, move.plan_at, move.revision, move.trouble) == (new_year, new_year - MARGIN, 7, None)


def test_so_are_all_of_the_next_minute() -> None:
    move = decide(entry(schedule("* * * * * *")), NOON)

    assert with_job(move) == [NOON + SECOND * n for n in range(1, 61)]
    assert move.plan_at == NOON + AHEAD - MARGIN


def test_a_tick_within_the_margin_brings_the_one_behind_it_along() -> None:
    move = decide(entry(schedule("*/10 * * * *"), NOON - 5 * MINUTE), NOON - 20 * SECOND)

    assert with_job(move) == [NOON, NOON + 10 * MINUTE]
    assert move.last_tick == NOON + 10 * MINUTE


def test_what_is_decided_is_not_decided_again() -> None:
    first = decide(entry(schedule()), NOON + SECOND)
    again = decide(entry(schedule(), first.last_tick), NOON + 2 * SECOND)

    assert with_job(first) == [NOON + 10 * MINUTE]
    assert again.ticks == ()
    assert again.last_tick == first.last_tick


@pytest.mark.row(93)
def test_a_clock_that_steps_back_repeats_nothing() -> None:
    first = decide(entry(schedule("* * * * * *")), NOON)
    again = decide(entry(schedule("* * * * * *"), first.last_tick), NOON - 10 * MINUTE)

    assert again.ticks == ()
    assert again.last_tick == first.last_tick


def test_the_job_of_a_tick_carries_what_was_said_of_it() -> None:
    of = schedule(args='{"x": 1}', queue="mail", priority=3, max_attempts=2, max_crashes=1, tags=("t",))
    [tick] = decide(entry(of), NOON).ticks

    job = tick.job
    assert job is not None
    assert (job.task, job.args, job.queue, job.priority) == ("add", '{"x": 1}', "mail", 3)
    assert (job.max_attempts, job.max_crashes, job.tags) == (2, 1, ("t",))
    assert job.execute_after == tick.due_at == tick.tick == NOON + 10 * MINUTE
    assert job.headers == {SCHEDULE: "s", TICK: "2026-03-01T12:10:00+00:00"}
    assert tick.late_at == NOON + 20 * MINUTE


def test_jitter_puts_a_tick_off_by_the_same_each_time() -> None:
    of = schedule("0 * * * *", jitter=10 * MINUTE)
    due = [decide(entry(of), NOON).ticks[0].due_at for _ in range(3)]

    assert len(set(due)) == 1
    assert NOON + HOUR < due[0] < NOON + HOUR + 10 * MINUTE
    assert len({decide(entry(of, NOON + n * HOUR), NOON + n * HOUR).ticks[0].due_at.minute for n in range(9)}) > 3


def test_alert_after_says_when_a_run_is_late() -> None:
    [tick] = decide(entry(schedule(alert_after=5 * MINUTE)), NOON).ticks

    assert tick.late_at == tick.tick + 5 * MINUTE


def test_nothing_is_due_before_start_and_after_end() -> None:
    of = schedule(start=NOON + 25 * MINUTE, end=NOON + 40 * MINUTE)

    first = decide(entry(of), NOON)
    last = decide(entry(of, NOON + 30 * MINUTE), NOON + 31 * MINUTE)

    assert with_job(first) == [NOON + 30 * MINUTE]
    assert (with_job(last), last.plan_at) == ([NOON + 40 * MINUTE], None)


def test_after_max_runs_it_ends() -> None:
    of = schedule("* * * * * *", max_runs=5)

    move = decide(entry(of, runs=2), NOON)

    assert with_job(move) == [NOON + SECOND * n for n in (1, 2, 3)]
    assert move.plan_at is None
    assert decide(entry(of, runs=5), NOON).ticks == ()


def test_what_is_not_enabled_has_no_ticks() -> None:
    move = decide(entry(schedule(enabled=False)), NOON + HOUR)

    assert (move.ticks, move.plan_at, move.last_tick) == ((), None, NOON + HOUR)


# Missed


def test_the_latest_of_what_was_missed_stands_for_the_rest() -> None:
    move = decide(entry(schedule()), NOON + 35 * MINUTE)

    assert with_job(move) == [NOON + 30 * MINUTE, NOON + 40 * MINUTE]
    assert left_out(move) == dict.fromkeys(
        [NOON + 10 * MINUTE, NOON + 20 * MINUTE], "missed; a later tick stands for it"
    )
    assert move.missed == NOON + 30 * MINUTE


def test_all_is_all_and_the_oldest_first() -> None:
    move = decide(entry(schedule(catch_up="all")), NOON + 35 * MINUTE)

    assert with_job(move) == [NOON + n * MINUTE for n in (10, 20, 30, 40)]
    assert left_out(move) == {}


def test_skip_leaves_out_what_was_missed() -> None:
    move = decide(entry(schedule(catch_up="skip")), NOON + 35 * MINUTE)

    assert with_job(move) == [NOON + 40 * MINUTE]
    assert left_out(move) == {NOON + n * MINUTE: "missed" for n in (10, 20, 30)}


@pytest.mark.parametrize("catch_up", ["skip", "latest", "all"])
def test_a_scheduler_that_comes_a_moment_late_misses_nothing(catch_up: CatchUp) -> None:
    move = decide(entry(schedule(catch_up=catch_up)), NOON + 10 * MINUTE + LATE)

    assert with_job(move) == [NOON + 10 * MINUTE, NOON + 20 * MINUTE]
    assert move.missed is None


@pytest.mark.parametrize(
    ("catch_up", "runs"), [("latest", [30]), ("all", [20, 30]), ("skip", [])], ids=["latest", "all", "skip"]
)
def test_start_within_is_a_limit_to_catching_up(catch_up: CatchUp, runs: list[int]) -> None:
    move = decide(entry(schedule(catch_up=catch_up, start_within=15 * MINUTE)), NOON + 34 * MINUTE)

    assert with_job(move) == [NOON + n * MINUTE for n in [*runs, 40]]


def test_what_is_too_late_says_so() -> None:
    move = decide(entry(schedule(start_within=2 * MINUTE)), NOON + 35 * MINUTE)

    assert with_job(move) == [NOON + 40 * MINUTE]
    assert set(left_out(move).values()) == {"missed by more than start_within=2m"}


def test_a_long_outage_is_summed_up() -> None:
    move = decide(entry(schedule("* * * * * *")), NOON + 30 * DAY)

    rows = left_out(move)
    assert len(rows) == ticks.MAX_ROWS + 1
    assert "so were all before it" in str(rows[min(rows)])
    assert with_job(move)[0] == NOON + 30 * DAY


def test_catching_up_with_all_has_a_limit() -> None:
    move = decide(entry(schedule("* * * * * *", catch_up="all")), NOON + DAY)

    assert len([tick for tick in with_job(move) if tick <= NOON + DAY]) == ticks.MAX_CAUGHT_UP
    assert "1000 later ones" in str(left_out(move)[max(left_out(move))])


# Paused


def test_ticks_of_a_pause_are_noted_and_not_run() -> None:
    move = decide(entry(schedule(catch_up="all"), is_paused=True), NOON + 25 * MINUTE)

    assert left_out(move) == {NOON + 10 * MINUTE: "paused", NOON + 20 * MINUTE: "paused"}
    assert with_job(move) == []
    assert (move.last_tick, move.plan_at) == (NOON + 25 * MINUTE, NOON + 30 * MINUTE)


def test_a_paused_schedule_of_every_second_is_not_asked_each_second() -> None:
    move = decide(entry(schedule("* * * * * *"), is_paused=True), NOON)

    assert move.plan_at == NOON + MARGIN


# After the end of the last run


def test_the_next_one_counts_from_the_end_of_the_last() -> None:
    of = schedule("every 10m", after_finish=True)

    first = decide(entry(of), NOON + SECOND)
    busy = decide(entry(of, first.last_tick, is_busy=True), NOON + HOUR)
    following = decide(entry(of, first.last_tick, last_end=NOON + 47 * MINUTE), NOON + 47 * MINUTE)

    assert (with_job(first), first.plan_at) == ([NOON + 10 * MINUTE], None)
    assert (busy.ticks, busy.plan_at) == ((), None)
    assert with_job(following) == [NOON + 57 * MINUTE]


# When code comes to life


def test_a_start_is_a_run_at_once_and_changes_nothing_else() -> None:
    of, asked_at = schedule(args='{"x": 1}'), NOON + 25 * MINUTE + SECOND
    now = asked_at + SECOND

    usual, move = decide(entry(of), now), decide(entry(of, starts_at=asked_at), now)

    start = move.ticks[0]
    assert (start.kind, start.tick, start.due_at, start.late_at) == ("start", asked_at, now, NOON + 30 * MINUTE)
    assert start.job is not None
    assert (start.job.args, start.job.execute_after) == ('{"x": 1}', now)
    assert start.job.headers == {SCHEDULE: "s", TICK: asked_at.isoformat()}
    assert replace(move, ticks=move.ticks[1:]) == usual


def test_a_start_that_was_asked_for_long_ago_is_due_now_and_not_missed() -> None:
    move = decide(entry(schedule(), NOON + HOUR, starts_at=NOON), NOON + HOUR)

    assert (move.ticks[0].tick, move.ticks[0].due_at, move.missed) == (NOON + MICROSECOND, NOON + HOUR, None)


@pytest.mark.parametrize("when", ["*/10 * * * *", "* * * * * *", "every 5m"])
def test_a_start_at_the_very_moment_of_a_tick_is_beside_it(when: str) -> None:
    of = schedule(when, start=NOON)
    asked_at = of.timing.next(NOON + HOUR)
    assert asked_at is not None

    move = decide(entry(of, asked_at - SECOND, starts_at=asked_at), asked_at)

    assert [(tick.kind, tick.tick) for tick in move.ticks[:2]] == [
        ("start", asked_at + MICROSECOND), ("tick", asked_at),
    ]  # fmt: skip


@pytest.mark.parametrize("catch_up", ["skip", "latest", "all"])
def test_a_start_makes_up_for_nothing(catch_up: CatchUp) -> None:
    of, now = schedule(catch_up=catch_up), NOON + 35 * MINUTE

    usual, move = decide(entry(of), now), decide(entry(of, starts_at=now), now)

    assert move.ticks == (move.ticks[0], *usual.ticks)
    assert (move.missed, move.last_tick) == (usual.missed, usual.last_tick)


def test_a_start_does_not_count_for_max_runs() -> None:
    of = schedule("* * * * * *", max_runs=5)

    some = decide(entry(of, runs=3, starts_at=NOON), NOON)
    over = decide(entry(of, runs=5, starts_at=NOON), NOON)

    assert [tick.kind for tick in some.ticks] == ["start", "tick", "tick"]
    assert ([tick.kind for tick in over.ticks], over.plan_at) == (["start"], None)


def test_what_is_paused_or_not_enabled_does_not_start() -> None:
    for of, is_paused in ((schedule(), True), (schedule(enabled=False), False)):
        usual = decide(entry(of, is_paused=is_paused), NOON + HOUR)

        assert decide(entry(of, is_paused=is_paused, starts_at=NOON + HOUR), NOON + HOUR) == usual


@pytest.mark.parametrize("is_busy", [False, True])
def test_what_counts_from_the_end_of_a_run_counts_from_the_end_of_the_start(is_busy: bool) -> None:
    of = schedule("every 10m", after_finish=True)

    move = decide(entry(of, starts_at=NOON + HOUR, is_busy=is_busy), NOON + HOUR)

    assert ([tick.kind for tick in move.ticks], move.last_tick, move.plan_at) == (["start"], NOON, None)
    following = decide(entry(of, last_end=NOON + HOUR + MINUTE), NOON + HOUR + MINUTE)
    assert with_job(following) == [NOON + HOUR + 11 * MINUTE]


# Trouble


@pytest.mark.parametrize(
    "definition",
    ['{"task": "add", "timing": "30 2 * * *", "tz": "Mars/Olympus"}', "{}", "[]", '{"timing": 7}', "no json",
     '{"task": "add", "timing": "nonsense"}', '{"task": "add", "timing": "every 1s", "surprise": 1}'],
)  # fmt: skip
def test_what_cannot_be_read_is_stuck_and_tried_again(definition: str) -> None:
    move = decide(Entry("s", definition, 7, NOON, 0, False, False, None, starts_at=NOON), NOON)

    assert move.trouble
    assert (move.ticks, move.last_tick, move.plan_at) == ((), NOON, NOON + MINUTE)


# The definition as it is written down


SCHEDULES = [
    schedule(),
    schedule("every 90s", jitter=MINUTE, start=NOON, end=NOON + DAY),
    schedule("30 2 * * 1-5", tz="Europe/Berlin", catch_up="all", start_within=6 * HOUR, overlap="queue", max_runs=3),
    schedule("every 90s", after_finish=True, enabled=False, alert_after=HOUR, ping="https://example.org/x?y=1"),
    schedule("@daily", args='{"ä": "\\u0000"}', queue="q", priority=-3, tags=("a", "b"), run_on_start=True),
]


@pytest.mark.parametrize("of", SCHEDULES, ids=lambda of: str(of.timing).replace(" ", "_"))
def test_a_schedule_comes_back_as_it_was_written(of: Schedule) -> None:
    again = loads("s", of.dumps())

    assert again == of
    assert again.dumps() == of.dumps()


def test_the_grid_of_an_interval_depends_on_the_name_alone() -> None:
    of = schedule("every 90s")

    assert isinstance(of.timing, Every)
    assert of.timing == Every("90s", name="s")
    assert loads("s", of.dumps()).timing.next(NOON) == of.timing.next(NOON)


def test_generations_are_told_apart_by_what_they_declare() -> None:
    one, other = {"s": schedule().dumps()}, {"s": schedule("every 5m").dumps()}

    assert generation("shop", one) == generation("shop", dict(one))
    assert len({generation(*each) for each in (("shop", one), ("shop", other), ("mill", one), ("shop", {}))}) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"catch_up": "al"}, "did you mean 'all'"),
        ({"overlap": "never"}, "overlap='never': expected one of 'allow', 'skip', 'queue'"),
        ({"max_runs": 0}, "max_runs=0"),
        ({"max_runs": True}, "max_runs=True"),
        ({"start_within": "soon"}, "start_within="),
        ({"jitter": -1}, "jitter=-1 is negative"),
        ({"run_on_start": 1}, "run_on_start=1"),
        ({"ping": "hc-ping.com/abc"}, "http:// or https://"),
        ({"alert_after": "x"}, "alert_after="),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_right_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        checked(**wrong)

    assert said in str(refusal.value)


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(OptionError, match="use it with every"):
        Schedule("s", "add", Cron("* * * * *"), after_finish=True)
    with pytest.raises(OptionError, match="none to catch up"):
        Schedule("s", "add", Every("5m"), after_finish=True, catch_up="all")
    with pytest.raises(OptionError, match="longer than the interval"):
        Schedule("s", "add", Every("5m"), jitter=HOUR)


# Every tick is decided, once, whatever happens in between


@pytest.mark.row(90)
@settings(deadline=None, max_examples=200)
@given(
    when=st.sampled_from(["* * * * * */7", "*/3 * * * *", "every 50s", "17 * * * *", "30 2 * * *"]),
    tz=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    catch_up=st.sampled_from(["skip", "latest", "all"]),
    steps=st.lists(
        st.one_of(st.integers(1, 90), st.integers(1, 5000), st.integers(-700, 0)), min_size=1, max_size=25
    ),
    paused=st.lists(st.booleans(), min_size=25, max_size=25),
    starts=st.lists(st.booleans(), min_size=25, max_size=25),
)
def test_each_tick_is_decided_once_and_all_are(
    when: str, tz: str, catch_up: CatchUp, steps: list[int], paused: list[bool], starts: list[bool]
) -> None:
    begin = datetime(2026, 3, 28, 23, tzinfo=UTC)
    of = schedule(when, tz=tz, catch_up=catch_up)
    now = last = begin
    decided: list[datetime] = []
    for step, is_paused, starts_now in zip(steps, paused, starts, strict=False):
        now += step * SECOND
        move = decide(entry(of, last, is_paused=is_paused, starts_at=now if starts_now else None), now)
        begun = [tick.tick for tick in move.ticks if tick.kind == "start"]
        assert len(begun) == (starts_now and not is_paused)
        assert not set(begun) & {tick.tick for tick in move.ticks if tick.kind == "tick"}
        assert move.last_tick >= last
        assert all(tick.reason for tick in move.ticks if tick.job is None)
        summed_up = [tick for tick in move.ticks if "so were all before it" in str(tick.reason)]
        if summed_up:
            decided += [tick for tick in of.timing.between(last, summed_up[0].tick) if tick < summed_up[0].tick]
        decided += [tick.tick for tick in move.ticks if tick.kind == "tick"]
        last = move.last_tick

    assert decided == list(of.timing.between(begin, last))
