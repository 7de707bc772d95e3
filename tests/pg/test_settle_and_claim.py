"""Settling and claiming at the same time, on two connections: what each does when the other waits, fails or is gone."""

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
    """Makes stores on one connection each; of one that `hears`, the bell has proven that it does."""
    made: list[PostgresStore] = []
    bells: list[Any] = []

    def make(*, hears: bool = True, **options: Any) -> PostgresStore:
        store = PostgresStore(parse_url(pg_url, application="pgcron exchange"), size=1, rings=False, **options)
        made.append(store)
        if hears:
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
    """Jobs that are running here, and as many that wait behind them."""
    store.enqueue([NewJob("add")] * (2 * count))
    return claim(store, count)


def practised(store: PostgresStore, count: int) -> list[Job]:
    """`taken`, by a store that knows its statements by name, and sends them at once."""
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
    """Our sessions that wait for a lock."""
    return desk.execute(
        "select pid from pg_stat_activity where application_name = 'pgcron exchange' and wait_event_type = 'Lock'"
        " and datname = current_database()"
    ).fetchall()


@pytest.mark.parametrize("hears", [True, False], ids=["two connections", "one"])
def test_both_are_there_behind_the_block(
    stores: Callable[..., PostgresStore], desk: "psycopg.Connection[Any]", hears: bool
) -> None:
    store = stores(hears=hears)
    ours, stranger = taken(store, 3), Outcome(10**12, uuid.uuid4(), "done")

    # The first time the statements go with their texts, then by name.
    for round in range(2):
        with store.settle_and_claim([*done(ours), stranger], ME, claim := uuid.uuid4(), ["*"], ["add"], 3) as reply:
            pass
        jobs = reply.jobs()

        assert reply.settled == {job.id for job in ours}
        assert reply.count == len(jobs) == (3 if round == 0 else 0)
        assert [(job.state, job.claim, job.worker) for job in jobs] == [("running", claim, ME)] * reply.count
        ours = jobs
    assert states(desk) == {"done": 6}


def test_retries_and_hand_backs_go_with_it(store: PostgresStore, desk: "psycopg.Connection[Any]") -> None:
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


def test_what_was_settled_before_is_known_to_be_ours(store: PostgresStore) -> None:
    jobs = taken(store, 3)
    store.settle(done(jobs))

    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 1) as reply:
        pass

    assert reply.settled == {job.id for job in jobs}


def test_the_server_is_at_work_on_both_during_the_block(
    store: PostgresStore, desk: "psycopg.Connection[Any]", pg_url: str
) -> None:
    jobs = practised(store, 3)

    with psycopg.connect(pg_url) as other:
        other.execute("select from pgcron.jobs where id = %s for update", [jobs[0].id])
        with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 2) as reply:
            # The one waits for the row, and the other is through before anybody asks for its answer.
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
def test_a_connection_that_is_lost_meanwhile_costs_nothing(
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

    # What is asked again is answered as if nothing had been.
    assert store.settle(done(jobs)) == {job.id for job in jobs}
    held = store.held(ME, token)
    assert store.settle(done(held)) == {job.id for job in held}
    rest = claim(store, 10)
    assert len(held) + len(rest) == 3
    store.settle(done(rest))
    assert states(desk) == {"done": 8}


def test_what_was_claimed_is_there_though_the_connection_is_lost_before_anybody_looks(store: PostgresStore) -> None:
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
    # Both connections are fit for the next one.
    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 3) as reply:
        pass
    assert reply.settled == {job.id for job in jobs}


def test_what_rings_meanwhile_is_heard(store: PostgresStore, desk: "psycopg.Connection[Any]") -> None:
    jobs = taken(store, 1)
    bell = store._bell
    assert bell is not None
    bell.step()

    with store.settle_and_claim(done(jobs), ME, uuid.uuid4(), ["*"], ["add"], 1):
        desk.execute("select pgcron.ring()")

    assert bell.step()[0]


def test_a_listener_under_another_address_is_not_asked_to_write(
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
