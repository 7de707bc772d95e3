"""Pipelined settle and claim on two connections: each of them when the other waits, fails, or loses its connection."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from support import eventually

from pgcron_lite.errors import DatabaseRefused, DatabaseUnavailable
from pgcron_lite.job import Job, NewJob, Outcome
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url

ME = uuid.UUID(int=1)


@pytest.fixture
def stores(pg_url: str) -> Iterator[Callable[..., PostgresStore]]:
    """Return a function that makes stores on one connection each; with `listens`, also a live listener."""
    made: list[PostgresStore] = []
    bells: list[Any] = []

    def make(*, listens: bool = True, **options: Any) -> PostgresStore:
        store = PostgresStore(parse_url(pg_url, application="pgcron exchange"), size=1, rings=False, **options)
        made.append(store)
        if listens:
            bell = store.open_bell(lambda: None)
            bells.append(bell)
            eventually(lambda: (bell.step(), bell.is_live)[1])
        return store

    yield make
    for each in [*bells, *made]:
        each.close()


@pytest.fixture
def store(stores: Callable[..., PostgresStore]) -> PostgresStore:
    return stores()


@pytest.fixture
def desk(pg_url: str) -> Iterator["psycopg.Connection[Any]"]:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        yield conn


def taken(store: PostgresStore, count: int) -> list[Job]:
    """Return `count` running jobs, with as many others waiting in the queue."""
    store.enqueue([NewJob("add")] * (2 * count))
    return claim(store, count)


def practised(store: PostgresStore, count: int) -> list[Job]:
    """Do as `taken`, with a store that has prepared its statements, so that it sends them before the block."""
    first = taken(store, 1)
    with store.settle_and_claim(done(first), ME, uuid.uuid4(), ["*"], ["none"], 1):
        pass
    store.settle(done(claim(store, 1)))
    return taken(store, count)


def claim(store: PostgresStore, count: int) -> list[Job]:
    return store.claim(ME, uuid.uuid4(), ["*"], ["add"], count)


def done(jobs: list[Job]) -> list[Outcome]:
    return [Outcome(job.id, job.claim, "done") for job in jobs if job.claim is not None]


def states(desk: "psycopg.Connection[Any]") -> dict[str, int]:
    return dict(desk.execute("select state, count(*) from pgcron.all_jobs group by state").fetchall())


def waiting(desk: "psycopg.Connection[Any]") -> list[tuple[Any, ...]]:
    """Return our sessions that wait for a lock."""
    return desk.execute(
        "select pid from pg_stat_activity where application_name = 'pgcron exchange' and wait_event_type = 'Lock'"
        " and datname = current_database()"
    ).fetchall()


@pytest.mark.parametrize("listens", [True, False], ids=["two connections", "one"])
def test_both_results_are_complete_after_the_block(
    stores: Callable[..., PostgresStore], desk: "psycopg.Connection[Any]", listens: bool
) -> None:
    store = stores(listens=listens)
    ours, stranger = taken(store, 3), Outcome(10**12, uuid.uuid4(), "done")

    # The first time, the statements are sent with their texts, then by name.
    for round in range(2):
        with store.settle_and_claim([*done(ours), stranger], ME, claim := uuid.uuid4(), ["*"], ["add"], 3) as reply:
            pass
        jobs = reply.jobs()

        assert reply.settled == {job.id for job in ours}
        assert reply.count == len(jobs) == (3 if round == 0 else 0)
        assert [(job.state, job.claim, job.worker) for job in jobs] == [("running", claim, ME)] * reply.count
        ours = jobs
    assert states(desk) == {"done": 6}


def test_retries_and_hand_backs_are_settled_too(store: PostgresStore, desk: "psycopg.Connection[Any]") -> None:
    first, second, third = taken(store, 3)
    assert first.claim
    assert second.claim
    outcomes = [
        Outcome(first.id, first.claim, "queued", delay=3600.0),
        Outcome(second.id, second.claim, "queued", gives_back=True, delay=3600.0),
        *done([third]),
    ]

    with store.settle_and_claim(outcomes, ME, uuid.uuid4(), ["*"], ["add"], 10) as reply:
        pass

    assert reply.settled == {first.id, second.id, third.id}
    assert reply.count == 3
    attempts = desk.execute("select attempt from pgcron.jobs where state = 'queued' order by id").fetchall()
    assert attempts == [(1,), (0,)]


def test_an_earlier_settle_is_recognised_as_ours(store: PostgresStore) -> None:
    jobs = taken(store, 3)
    store.settle(done(jobs))

    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 1) as reply:
        pass

    assert reply.settled == {job.id for job in jobs}


def test_the_server_works_on_both_during_the_block(
    store: PostgresStore, desk: "psycopg.Connection[Any]", pg_url: str
) -> None:
    jobs = practised(store, 3)

    with psycopg.connect(pg_url) as other:
        other.execute("select from pgcron.jobs where id = %s for update", [jobs[0].id])
        with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 2) as reply:
            # One waits for the row; the other completes before its answer is read.
            eventually(lambda: waiting(desk))
            eventually(lambda: states(desk)["running"] == 5)
            other.rollback()

    assert reply.settled == {job.id for job in jobs}
    assert reply.count == 2


@pytest.mark.parametrize(
    "obstacle",
    ["select from pgcron.jobs for update", "lock table pgcron.queues in access exclusive mode"],
    ids=["settling", "claiming"],
)
def test_a_connection_lost_during_the_block_loses_nothing(
    store: PostgresStore, desk: "psycopg.Connection[Any]", pg_url: str, obstacle: LiteralString
) -> None:
    jobs, token = practised(store, 3), uuid.uuid4()

    with psycopg.connect(pg_url) as other:
        other.execute(obstacle)
        reply = store.settle_and_claim(done(jobs), ME, token, ["*"], ["add"], 3)
        reply.__enter__()
        eventually(lambda: waiting(desk))
        desk.execute("select pg_terminate_backend(%s)", waiting(desk)[0])
        with pytest.raises(DatabaseUnavailable):
            reply.__exit__(None, None, None)

    # A repeated call returns the same as if the connection had not been lost.
    assert store.settle(done(jobs)) == {job.id for job in jobs}
    held = store.held(ME, token)
    assert store.settle(done(held)) == {job.id for job in held}
    rest = claim(store, 10)
    assert len(held) + len(rest) == 3
    store.settle(done(rest))
    assert states(desk) == {"done": 8}


def test_claimed_jobs_can_be_decoded_after_the_connection_is_lost(store: PostgresStore) -> None:
    jobs = taken(store, 3)
    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 3) as reply:
        pass

    store.close()

    assert [job.state for job in reply.jobs()] == ["running"] * 3


def test_an_outcome_that_cannot_be_stored_is_refused_and_the_claim_is_kept(
    store: PostgresStore, desk: "psycopg.Connection[Any]"
) -> None:
    jobs = taken(store, 3)
    assert jobs[0].claim
    token = uuid.uuid4()
    outcomes = [Outcome(jobs[0].id, jobs[0].claim, "done", result="no JSON"), *done(jobs[1:])]

    with pytest.raises(DatabaseRefused), store.settle_and_claim(outcomes, ME, token, ["*"], ["add"], 3):
        pass

    assert states(desk) == {"running": 6}
    assert len(store.held(ME, token)) == 3
    # Both connections can be used for the next call.
    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 3) as reply:
        pass
    assert reply.settled == {job.id for job in jobs}


def test_a_ring_during_the_block_is_received(store: PostgresStore, desk: "psycopg.Connection[Any]") -> None:
    jobs = taken(store, 1)
    bell = store._bell
    assert bell is not None
    bell.step()

    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 1):
        desk.execute("select pgcron.ring()")

    assert bell.step()[0]


def test_a_listener_with_another_url_is_not_used_for_writes(
    stores: Callable[..., PostgresStore], pg_url: str, desk: "psycopg.Connection[Any]"
) -> None:
    store = stores(direct=parse_url(pg_url, application="pgcron ears"))
    jobs = taken(store, 3)

    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 3) as reply:
        pass

    assert reply.settled == {job.id for job in jobs}
    wrote = desk.execute(
        "select query from pg_stat_activity where application_name = 'pgcron ears' and query like '%into pgcron.%'"
    ).fetchall()
    assert wrote == []
