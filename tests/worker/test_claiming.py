"""Uncertain claims: each is looked up once, and kept while it may still be committed, up to a limit."""

import uuid

from pgcron_lite.worker.claiming import UNCERTAIN_SECONDS, UncertainClaims

FIRST, SECOND = uuid.UUID(int=1), uuid.UUID(int=2)


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_claim_that_was_looked_up_without_result_is_not_looked_up_again_and_stays_uncertain() -> None:
    uncertain = UncertainClaims(Seconds())
    uncertain.add(FIRST)
    uncertain.add(SECOND)

    uncertain.found_nothing(SECOND)

    assert uncertain.next == FIRST
    assert set(uncertain) == {FIRST, SECOND}


def test_a_claim_whose_jobs_were_found_is_no_longer_uncertain() -> None:
    uncertain = UncertainClaims(Seconds())
    uncertain.add(FIRST)

    uncertain.resolve(FIRST)

    assert uncertain.next is None
    assert not uncertain


def test_uncertain_claims_do_not_accumulate() -> None:
    seconds = Seconds()
    uncertain = UncertainClaims(seconds)
    for number in range(1000):
        uncertain.add(uuid.UUID(int=number))
        uncertain.found_nothing(uuid.UUID(int=number))
        seconds.now += 1.0

    assert len(list(uncertain)) < UNCERTAIN_SECONDS
    seconds.now += UNCERTAIN_SECONDS
    assert not uncertain


def test_a_claim_that_could_not_be_looked_up_is_kept_throughout_an_outage() -> None:
    seconds = Seconds()
    uncertain = UncertainClaims(seconds)
    uncertain.add(FIRST)

    seconds.now += 100 * UNCERTAIN_SECONDS

    assert list(uncertain) == [FIRST]
    assert uncertain.next == FIRST
