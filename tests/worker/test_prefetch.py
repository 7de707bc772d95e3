"""Prefetch: none when tasks are slow, some when they are quick, and never above the limits."""

import pytest

from pgcron_lite.worker.prefetch import AHEAD_SECONDS, AHEAD_SIZE, MAX_AHEAD, SLOW_SECONDS, WINDOW, Prefetch

QUICK = 0.001


def paced(*durations: float, slots: int = 4) -> Prefetch:
    """Return a prefetch after jobs of these durations, recorded one by one."""
    prefetch = Prefetch(slots)
    for seconds in durations:
        prefetch.record([seconds])
    return prefetch


def test_no_prefetch_before_the_first_durations() -> None:
    assert Prefetch(4).ahead == 0


def test_an_empty_record_changes_nothing() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * WINDOW)
    before = prefetch.ahead

    prefetch.record([])

    assert prefetch.ahead == before > 0


@pytest.mark.parametrize("seconds", [SLOW_SECONDS, 0.1, 1.0, 3600.0])
def test_no_prefetch_for_slow_tasks(seconds: float) -> None:
    assert paced(*[seconds] * 200).ahead == 0


@pytest.mark.parametrize("slots", [1, 4, 20])
@pytest.mark.parametrize("seconds", [0.005, 0.01, 0.02])
def test_prefetch_for_quick_tasks_is_what_the_slots_start_within_the_planned_time(
    seconds: float, slots: int
) -> None:
    prefetch = Prefetch(slots)

    prefetch.record([seconds] * WINDOW)

    # The last of them starts when all jobs before it have run.
    assert prefetch.ahead > 0
    assert prefetch.ahead == pytest.approx(slots * AHEAD_SECONDS / seconds, abs=1.001)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-6, 1e-5])
@pytest.mark.parametrize("slots", [1, 50, 10_000])
def test_prefetch_never_exceeds_its_maximum(seconds: float, slots: int) -> None:
    prefetch = Prefetch(slots)

    prefetch.record([seconds] * 1000)

    assert 0 < prefetch.ahead <= MAX_AHEAD


def test_with_enough_slots_the_quickest_tasks_reach_the_maximum() -> None:
    prefetch = Prefetch(4)

    prefetch.record([0.0] * WINDOW)

    assert prefetch.ahead == MAX_AHEAD


def test_no_prefetch_for_alternating_slow_and_quick_tasks() -> None:
    # Half of them take 1 ms. Held jobs would wait for the slow half.
    assert paced(*[QUICK, 0.2] * 100).ahead == 0


def test_one_slow_task_among_many_quick_ones_reduces_prefetch_little() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * WINDOW)
    before = prefetch.ahead

    prefetch.record([QUICK] * (WINDOW - 1) + [0.05])

    assert before / 2 < prefetch.ahead < before


def test_only_the_last_jobs_determine_the_average() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * 100_000)
    assert prefetch.ahead > 0

    prefetch.record([1.0] * WINDOW)

    assert prefetch.ahead == 0
    for _ in range(20):
        prefetch.record([QUICK] * WINDOW)
    assert prefetch.seconds == pytest.approx(QUICK)
    assert prefetch.ahead > 0


def test_durations_recorded_singly_or_together_give_a_similar_average() -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.01] * WINDOW)

    # A full window replaces the average; single values replace it gradually.
    assert prefetch.seconds == pytest.approx(0.01)
    assert 0.01 < paced(*[0.01] * WINDOW).seconds < SLOW_SECONDS
    assert paced(*[0.01] * 1000).seconds == pytest.approx(0.01, rel=0.01)


def test_a_long_wait_stops_prefetch_at_once() -> None:
    prefetch = Prefetch(4)
    prefetch.record([QUICK] * 1000)
    assert prefetch.ahead > 0

    prefetch.slow_down(0.3)

    assert (prefetch.seconds, prefetch.ahead) == (0.3, 0)


def test_a_short_wait_does_not_lower_the_average() -> None:
    prefetch = paced(*[1.0] * 1000)
    before = prefetch.seconds

    prefetch.slow_down(0.0)

    assert prefetch.seconds == before
    assert prefetch.ahead == 0


@pytest.mark.parametrize("size", [5_000, 100_000, 256_000])
def test_large_arguments_limit_prefetch(size: int) -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.0] * WINDOW)

    prefetch.record_arguments([size] * WINDOW)

    assert prefetch.ahead == AHEAD_SIZE // size < MAX_AHEAD


def test_large_results_limit_prefetch_like_arguments() -> None:
    prefetch = Prefetch(4)

    prefetch.record_arguments([AHEAD_SIZE // 200] * WINDOW)
    prefetch.record([0.0] * WINDOW, [AHEAD_SIZE // 50] * WINDOW)

    assert prefetch.ahead == 40


def test_small_arguments_do_not_limit_prefetch() -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.0] * WINDOW)

    prefetch.record_arguments([2] * WINDOW)
    prefetch.record([0.0] * WINDOW, [4] * WINDOW)
    prefetch.record_arguments([])

    assert prefetch.ahead == MAX_AHEAD


def test_no_prefetch_for_arguments_above_the_total_size() -> None:
    prefetch = Prefetch(4)
    prefetch.record([0.0] * WINDOW)

    prefetch.record_arguments([AHEAD_SIZE + 1] * WINDOW)

    assert prefetch.ahead == 0
