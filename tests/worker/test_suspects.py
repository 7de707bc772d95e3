import pytest

from pgcron_lite.worker.suspects import PAUSE_SECONDS, QUIET_SECONDS, TRIES, Suspects


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def tick(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def step(suspects: Suspects, *, is_busy: bool, due: bool = True) -> str:
    return suspects.step(is_busy=is_busy, is_suspect_due=lambda: due)


def test_an_idle_worker_takes_a_suspect_at_once_and_isolates_it(clock: Clock) -> None:
    suspects = Suspects(5, clock)

    chosen = step(suspects, is_busy=False)
    suspects.record_claim(True, is_busy=False)

    assert chosen == "take"
    assert suspects.is_occupied


def test_without_suspects_the_next_query_waits_for_the_interval(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    suspects.record_claim(False, is_busy=False)

    assert step(suspects, is_busy=False) == "go on"
    clock.tick(5)
    assert step(suspects, is_busy=False) == "take"


def test_a_busy_worker_claims_nothing_until_it_is_idle(clock: Clock) -> None:
    suspects = Suspects(5, clock)

    assert step(suspects, is_busy=True) == "wait"
    clock.tick(QUIET_SECONDS / 2)
    assert step(suspects, is_busy=True) == "wait"
    assert step(suspects, is_busy=False) == "take"


def test_a_busy_worker_without_suspects_continues(clock: Clock) -> None:
    assert step(Suspects(5, clock), is_busy=True, due=False) == "go on"


def test_a_suspect_that_never_finds_the_worker_idle_finally_runs_with_other_jobs(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    steps = []
    for _ in range(TRIES):
        steps.append(step(suspects, is_busy=True))
        clock.tick(QUIET_SECONDS)
        steps.append(step(suspects, is_busy=True))
        clock.tick(PAUSE_SECONDS)

    last = step(suspects, is_busy=True)
    suspects.record_claim(True, is_busy=True)

    assert steps == ["wait", "go on"] * TRIES
    assert last == "take"
    assert not suspects.is_occupied


def test_after_a_suspect_other_jobs_get_as_much_time(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    suspects.record_claim(True, is_busy=False)
    clock.tick(12)
    suspects.ended()

    assert step(suspects, is_busy=False) == "go on"
    clock.tick(12)
    assert step(suspects, is_busy=False) == "take"


def test_new_suspects_are_queried_for_at_once(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    suspects.record_claim(False, is_busy=False)

    suspects.check_now()

    assert step(suspects, is_busy=False) == "take"


def test_after_a_suspect_was_found_more_are_expected_until_none_is_found(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    assert not suspects.may_have_more

    suspects.record_claim(True, is_busy=False)
    suspects.ended()
    assert suspects.may_have_more
    suspects.record_claim(False, is_busy=False)
    assert not suspects.may_have_more
