"""Claims in doubt: each is asked for once, kept while it may still be committed, and not for ever."""

import uuid

from pgcron_lite.worker.claiming import UNCERTAIN_SECONDS, UncertainClaims

FIRST, SECOND = uuid.UUID(int=1), uuid.UUID(int=2)


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_claim_that_was_asked_for_in_vain_is_not_asked_for_again_and_stays_in_doubt() -> None:
    uncertain = UncertainClaims(Seconds())
    uncertain.add(FIRST)
    uncertain.add(SECOND)

    uncertain.found_nothing(SECOND)

    assert uncertain.next == FIRST
    assert set(uncertain) == {FIRST, SECOND}


def test_a_claim_whose_jobs_were_found_is_in_doubt_no_more() -> None:
    uncertain = UncertainClaims(Seconds())
    uncertain.add(FIRST)

    uncertain.resolve(FIRST)

    assert uncertain.next is None
    assert not uncertain


def test_doubts_do_not_pile_up() -> None:
    seconds = Seconds()
    uncertain = UncertainClaims(seconds)
    for number in range(1000):
        uncertain.add(uuid.UUID(int=number))
        uncertain.found_nothing(uuid.UUID(int=number))
        seconds.now += 1.0

    assert len(list(uncertain)) < UNCERTAIN_SECONDS
    seconds.now += UNCERTAIN_SECONDS
    assert not uncertain


def test_a_claim_that_could_not_be_asked_for_is_not_forgotten_however_long_the_database_is_away() -> None:
    seconds = Seconds()
    uncertain = UncertainClaims(seconds)
    uncertain.add(FIRST)

    seconds.now += 100 * UNCERTAIN_SECONDS

    assert list(uncertain) == [FIRST]
    assert uncertain.next == FIRST
