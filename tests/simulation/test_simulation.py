"""Tests with the simulation: a fixed number of seeds, and checks that it detects missing safeguards.

Each safeguard is disabled in turn, and the simulation has to detect it. `python -m tests.simulation` runs more seeds.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pgcron_lite.job import Job, Outcome
from pgcron_lite.worker.loop import Worker

from .database import Database, PlainKeys
from .invariants import Violation
from .producers import Credulous
from .run import Options, Result, run
from .world import FAULTS

BLOCK = 40
MAX_SEEDS = 120


def first_violation(options: Options, *kinds: str) -> Result:
    """Return the result of the first seed that violates one of these invariants."""
    __tracebackhide__ = True
    for seed in range(1, MAX_SEEDS + 1):
        result = run(seed, options)
        if result.violation is not None and result.violation.kind in kinds:
            return result
    pytest.fail(f"none of {MAX_SEEDS} seeds violates: {', '.join(kinds)}")


@pytest.mark.parametrize("first", range(1, 5 * BLOCK, BLOCK))
def test_every_invariant_holds_under_faults(first: int) -> None:
    for seed in range(first, first + BLOCK):
        result = run(seed)

        assert result.violation is None, f"replay: python -m tests.simulation --seed {seed} --trace"


def test_a_run_is_repeated_exactly_by_its_seed() -> None:
    first, second = run(3, traces=True), run(3, traces=True)

    assert first.trace == second.trace
    assert len(first.trace) > 100


# Missing safeguards


class NeverCompares(Worker):
    """A worker that treats an empty result as proof that its claim was never committed."""

    def _reconcile(self, held: Mapping[uuid.UUID, int]) -> None:
        """Compare nothing."""


def test_it_finds_jobs_stranded_by_a_claim_that_commits_late() -> None:
    options = Options(frozenset({"late", "commits_late"}), worker=NeverCompares)

    result = first_violation(options, "stranded")

    assert "which is alive" in str(result.violation)


def test_it_finds_a_worker_that_cannot_handle_an_id_in_history() -> None:
    options = Options(frozenset({"failover", "reset"}), database=PlainKeys)

    # The worker ends because of the refusal, or cannot store the outcome.
    first_violation(options, "worker ended", "not ended", "lost", "stranded", "tick open")


def test_it_finds_an_acknowledged_job_that_was_never_stored() -> None:
    faults = frozenset({"refused", "late", "silent", "reset", "failover"})
    options = Options(faults, enqueuer=Credulous, database=Database)

    result = first_violation(options, "not stored")

    assert "from delay(); that row is" in str(result.violation)


def test_it_finds_a_second_job_created_by_a_late_insert() -> None:
    options = Options(frozenset({"late", "stall", "twice"}), enqueuer=Credulous, database=Database)

    first_violation(options, "stored twice")


class Unfenced(Database):
    """A server on which an outcome of an old claim can end a job that was claimed again."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        running = {job.id: job for job in self._running()}
        return super().settle([
            replace(o, claim=running[o.id].claim or o.claim) if o.id in running else o for o in outcomes
        ])


def test_it_finds_a_write_of_a_stale_owner() -> None:
    first_violation(Options(frozenset(FAULTS) - {"reset", "failover"}, database=Unfenced), "fence")


class Hasty(Worker):
    """A worker that declares others dead after a third of their lease."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reaper.lease_seconds /= 3


def test_it_finds_a_live_worker_that_is_declared_dead() -> None:
    first_violation(Options(frozenset({"silent", "stall", "late"}), worker=Hasty), "live worker reaped")


class Charging(Database):
    """A server on which the crash of a worker uses up an attempt of its jobs."""

    def _rescue(self, job: Job, *, counts_crash: bool) -> Job:
        rescued = super()._rescue(job, counts_crash=counts_crash)
        return rescued if rescued.is_final else self._keep(rescued.changed(attempt=rescued.attempt + 1))


def test_it_finds_an_attempt_that_did_not_happen() -> None:
    first_violation(Options(frozenset({"kill"}), database=Charging), "attempts")


class Forgetful(Database):
    """A server that loses one tick in eight."""

    def _write(self, schedule: str, ticks: Sequence[Any]) -> Any:
        return super()._write(schedule, [tick for tick in ticks if int(tick.tick.timestamp() // 20) % 8])


def test_it_finds_a_tick_that_was_never_decided() -> None:
    first_violation(Options(frozenset(), database=Forgetful), "tick missing")


def test_the_trace_shows_the_faults_that_led_to_a_violation() -> None:
    options = Options(frozenset({"late", "commits_late"}), worker=NeverCompares)
    seed = first_violation(options, "stranded").seed

    result = run(seed, options, traces=True)

    assert isinstance(result.violation, Violation)
    assert any("VIOLATION" in line for line in result.trace)
    assert any("meets: " in line for line in result.trace)
