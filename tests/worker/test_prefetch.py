"""How many jobs to hold beside those that run: none when tasks are slow, some when quick, never too many."""

import pytest

from pgcron_lite.worker.prefetch import AHEAD_SECONDS, AHEAD_SIZE, MAX_AHEAD, SLOW_SECONDS, WINDOW, Prefetch

QUICK = 0.001


def paced(*durations: float, slots: int = 4) -> Prefetch:
    """After so many jobs, which ended one by one."""
    prefetch = Prefetch(slots)
    for seconds in durations:
        prefetch.record([seconds])
    return prefetch


def test_nothing_is_held_while_nothing_is_known() -> None:
    assert Prefetch(4).ahead == 0


def test_that_nothing_has_ended_says_nothing() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * WINDOW)
    before = prefetch.ahead

    prefetch.record([])

    assert prefetch.ahead == before > 0


@pytest.mark.parametrize("seconds", [SLOW_SECONDS, 0.1, 1.0, 3600.0])
def test_nothing_is_held_for_slow_tasks(seconds: float) -> None:
    assert paced(*[seconds] * 200).ahead == 0


@pytest.mark.parametrize("slots", [1, 4, 20])
@pytest.mark.parametrize("seconds", [0.005, 0.01, 0.02])
def test_for_quick_tasks_as_much_is_held_as_the_slots_begin_within_the_planned_time(
    seconds: float, slots: int
) -> None:
    prefetch = Prefetch(slots)

    prefetch.record([seconds] * WINDOW)

    # The last of them begins when all that are before it have gone through the slots.
    assert prefetch.ahead > 0
    assert prefetch.ahead == pytest.approx(slots * AHEAD_SECONDS / seconds, abs=1.001)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-6, 1e-5])
@pytest.mark.parametrize("slots", [1, 50, 10_000])
def test_never_are_more_held_than_the_most(seconds: float, slots: int) -> None:
    prefetch = Prefetch(slots)

    prefetch.record([seconds] * 1000)

    assert 0 < prefetch.ahead <= MAX_AHEAD


def test_with_slots_enough_the_quickest_tasks_reach_the_most() -> None:
    prefetch = Prefetch(4)

    prefetch.record([0.0] * WINDOW)

    assert prefetch.ahead == MAX_AHEAD


def test_of_slow_and_quick_tasks_in_turn_nothing_is_held() -> None:
    # Half of them take 1 ms. What is held would wait behind the others.
    assert paced(*[QUICK, 0.2] * 100).ahead == 0


def test_a_slow_task_among_very_many_quick_ones_takes_little_away() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * WINDOW)
    before = prefetch.ahead

    prefetch.record([QUICK] * (WINDOW - 1) + [0.05])

    assert before / 2 < prefetch.ahead < before


def test_the_last_few_jobs_decide_and_not_all_there_ever_were() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * 100_000)
    assert prefetch.ahead > 0

    prefetch.record([1.0] * WINDOW)

    assert prefetch.ahead == 0
    for _ in range(20):
        prefetch.record([QUICK] * WINDOW)
    assert prefetch.seconds == pytest.approx(QUICK)
    assert prefetch.ahead > 0


def test_one_by_one_or_many_at_once_comes_to_much_the_same() -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.01] * WINDOW)

    # Many at once count in full, one by one they wear off.
    assert prefetch.seconds == pytest.approx(0.01)
    assert 0.01 < paced(*[0.01] * WINDOW).seconds < SLOW_SECONDS
    assert paced(*[0.01] * 1000).seconds == pytest.approx(0.01, rel=0.01)


def test_what_had_to_wait_slows_down_at_once() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * 1000)
    assert prefetch.ahead > 0

    prefetch.slow_down(0.3)

    assert (prefetch.seconds, prefetch.ahead) == (0.3, 0)


def test_a_short_wait_does_not_make_slow_tasks_quick() -> None:
    prefetch = paced(*[1.0] * 1000)
    before = prefetch.seconds

    prefetch.slow_down(0.0)

    assert prefetch.seconds == before
    assert prefetch.ahead == 0


@pytest.mark.parametrize("size", [5_000, 100_000, 256_000])
def test_of_large_arguments_as_many_are_held_as_memory_is_meant_for_them(size: int) -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.0] * WINDOW)

    prefetch.record_arguments([size] * WINDOW)

    assert prefetch.ahead == AHEAD_SIZE // size < MAX_AHEAD


def test_large_results_which_wait_to_be_written_count_like_arguments() -> None:
    prefetch = Prefetch(4)

    prefetch.record_arguments([AHEAD_SIZE // 200] * WINDOW)
    prefetch.record([0.0] * WINDOW, [AHEAD_SIZE // 50] * WINDOW)

    assert prefetch.ahead == 40


def test_small_arguments_take_nothing_away() -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.0] * WINDOW)

    prefetch.record_arguments([2] * WINDOW)
    prefetch.record([0.0] * WINDOW, [4] * WINDOW)
    prefetch.record_arguments([])

    assert prefetch.ahead == MAX_AHEAD


def test_arguments_larger_than_all_that_may_be_held_are_left_in_the_table() -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.0] * WINDOW)

    prefetch.record_arguments([AHEAD_SIZE + 1] * WINDOW)

    assert prefetch.ahead == 0
