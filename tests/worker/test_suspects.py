import pytest

from pgcron_lite.worker.suspects import PAUSE_SECONDS, QUIET_SECONDS, TRIES, Suspects


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def tick(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def asked(suspects: Suspects, *, is_busy: bool, due: bool = True) -> str:
    return suspects.step(is_busy=is_busy, is_suspect_due=lambda: due)


def test_an_idle_worker_takes_a_suspect_at_once_and_runs_it_alone(clock: Clock) -> None:
    suspects = Suspects(5, clock)

    step = asked(suspects, is_busy=False)
    suspects.record_claim(True, is_busy=False)

    assert step == "take"
    assert suspects.is_occupied


def test_where_there_are_none_it_is_asked_again_only_after_a_while(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    suspects.record_claim(False, is_busy=False)

    assert asked(suspects, is_busy=False) == "go on"
    clock.tick(5)
    assert asked(suspects, is_busy=False) == "take"


def test_a_busy_worker_keeps_quiet_until_it_is_idle(clock: Clock) -> None:
    suspects = Suspects(5, clock)

    assert asked(suspects, is_busy=True) == "wait"
    clock.tick(QUIET_SECONDS / 2)
    assert asked(suspects, is_busy=True) == "wait"
    assert asked(suspects, is_busy=False) == "take"


def test_a_busy_worker_without_suspects_goes_on(clock: Clock) -> None:
    assert asked(Suspects(5, clock), is_busy=True, due=False) == "go on"


def test_a_suspect_that_finds_no_quiet_moment_runs_beside_others_at_last(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    steps = []
    for _ in range(TRIES):
        steps.append(asked(suspects, is_busy=True))
        clock.tick(QUIET_SECONDS)
        steps.append(asked(suspects, is_busy=True))
        clock.tick(PAUSE_SECONDS)

    last = asked(suspects, is_busy=True)
    suspects.record_claim(True, is_busy=True)

    assert steps == ["wait", "go on"] * TRIES
    assert last == "take"
    assert not suspects.is_occupied


def test_after_a_suspect_the_others_have_as_long_a_turn(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    suspects.record_claim(True, is_busy=False)
    clock.tick(12)
    suspects.ended()

    assert asked(suspects, is_busy=False) == "go on"
    clock.tick(12)
    assert asked(suspects, is_busy=False) == "take"


def test_news_of_suspects_is_heeded_at_once(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    suspects.record_claim(False, is_busy=False)

    suspects.check_now()

    assert asked(suspects, is_busy=False) == "take"


def test_who_has_found_a_suspect_may_find_more_until_none_is_found(clock: Clock) -> None:
    suspects = Suspects(5, clock)
    assert not suspects.may_have_more

    suspects.record_claim(True, is_busy=False)
    suspects.ended()
    assert suspects.may_have_more
    suspects.record_claim(False, is_busy=False)
    assert not suspects.may_have_more
