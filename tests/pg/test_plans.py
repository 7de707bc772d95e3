"""Plans of the frequent statements: the index they use, and how much they read from a full table.

The store sends its own statements, and differs only in that it puts EXPLAIN ANALYZE in front of each.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from pgcron_lite.job import Outcome
from pgcron_lite.pg.connection import Connection, Params
from pgcron_lite.pg.pool import Pool
from pgcron_lite.pg.prepared import Answer, Values
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url

ME, CLAIM = uuid.UUID(int=1), uuid.UUID(int=2)
FUTURE = 200_000


class ExplainingConnection(Connection):
    """A connection that runs every statement under EXPLAIN ANALYZE, and keeps its plan instead of its rows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plans: list[dict[str, Any]] = []

    def rows(self, query: LiteralString, params: Params = None) -> list[Any]:
        [row] = super().rows("explain (analyze, buffers, format json) " + query, params)
        self.plans.append(row[0][0]["Plan"])
        return []

    @contextmanager
    def sending(self, query: LiteralString, values: Values) -> Iterator[Answer]:
        yield Answer(1, lambda: [(0.0,)])
        self.rows(query, values)


class ExplainingStore(PostgresStore):
    """A store on one such connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.connection = ExplainingConnection(self.address, self.schema)
        self.pool = Pool(lambda: self.connection, 1)

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of the last statement."""
        return self.connection.plans[-1]


@pytest.fixture(scope="module")
def full_url(databases: Any) -> Iterator[str]:
    """Create 200,000 deferred jobs of a higher priority, and a hundred due ones in each of two queues."""
    url = databases.create(databases.template)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """
            insert into pgcron.jobs (task, queue, priority, execute_after)
            select 'add', 'default', 10, clock_timestamp() + interval '1 day' + n * interval '1 ms'
            from generate_series(1, %s) as n
            """,
            [FUTURE],
        )
        conn.execute(
            """
            insert into pgcron.jobs (task, queue, priority, execute_after)
            select 'add', queue, 0, clock_timestamp() - n * interval '1 ms'
            from generate_series(1, 100) as n, unnest(array['default', 'mail']) as queue
            """
        )
    yield url
    databases.drop(url)


@pytest.fixture(params=["analyzed", "fresh"])
def full(full_url: str, request: pytest.FixtureRequest) -> Iterator[ExplainingStore]:
    """Return a store on the full table, with the planner's statistics and with those of an empty table."""
    with psycopg.connect(full_url, autocommit=True) as conn:
        if request.param == "analyzed":
            conn.execute("vacuum analyze pgcron.jobs")
        else:
            conn.execute("delete from pg_statistic where starelid = 'pgcron.jobs'::regclass")
            conn.execute(
                "update pg_class set reltuples = -1, relpages = 0"
                " where oid = 'pgcron.jobs'::regclass or relname in ('jobs_waiting', 'jobs_pkey', 'jobs_suspect')"
            )
    store = ExplainingStore(parse_url(full_url, application="pgcron plans"))
    yield store
    store.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every node of a plan."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def rows_read(plan: dict[str, Any]) -> float:
    """Return the number of rows read from the table of jobs, including those removed by a filter."""
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes(plan)
        if node.get("Relation Name") == "jobs" and node["Node Type"] != "ModifyTable"
    )


def pages(plan: dict[str, Any]) -> int:
    """Return the number of pages read, including those read by functions."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def indexes(plan: dict[str, Any]) -> set[str]:
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def shown(plan: dict[str, Any]) -> str:
    return json.dumps(plan, indent=1)


def test_the_claim_reads_only_what_it_takes(full: ExplainingStore) -> None:
    full.claim(ME, CLAIM, ["*"], ["add"], 10)

    plan = full.plan
    assert not [n for n in nodes(plan) if n["Node Type"] in ("Seq Scan",) and n.get("Relation Name") == "jobs"]
    assert "jobs_waiting" in indexes(plan), shown(plan)
    # Ten from each of the two queues of the highest priority with due jobs, and the ten that are updated.
    assert rows_read(plan) <= 40, shown(plan)
    assert all(n["Actual Rows"] <= 20 for n in nodes(plan) if "Sort" in n["Node Type"]), shown(plan)
    assert pages(plan) < 600, shown(plan)
    taken = [n for n in nodes(plan) if n["Node Type"] == "ModifyTable"]
    assert [n["Actual Rows"] for n in taken] == [10]
    with psycopg.connect(full.address.conninfo, autocommit=True) as conn:
        conn.execute(
            "update pgcron.jobs set state = 'queued', claim = null, worker = null, claimed_at = null, attempt = 0"
            " where state = 'running'"
        )


def test_next_due_reads_one_row_of_each_level(full: ExplainingStore) -> None:
    with pytest.raises(IndexError):
        full.next_due(["*"], ["add"])

    plan = full.plan
    assert "jobs_waiting" in indexes(plan)
    assert rows_read(plan) <= 4, shown(plan)
    # Most of them are pages of the catalogue, which a new session reads once.
    assert pages(plan) < 300, shown(plan)


def test_claiming_a_suspect_reads_only_suspects(full: ExplainingStore) -> None:
    full.claim_suspect(ME, CLAIM, ["*"], ["add"])

    assert "jobs_suspect" in indexes(full.plan), shown(full.plan)
    assert rows_read(full.plan) == 0
    assert pages(full.plan) < 50


def test_settling_reads_only_the_jobs_it_settles(full: ExplainingStore) -> None:
    for state in ("done", "queued"):
        full.settle([Outcome(n, CLAIM, state, delay=1.0) for n in range(1, 51)])  # type: ignore[arg-type]

    # The end of claims, the check of those that were not ours, and the return of jobs to the queue.
    assert len(full.connection.plans) == 3
    for plan in full.connection.plans:
        assert rows_read(plan) <= 50, shown(plan)
        assert pages(plan) < 400, shown(plan)


def test_the_poll_counts_the_jobs_of_its_worker_by_claim(full: ExplainingStore) -> None:
    with psycopg.connect(full.address.conninfo, autocommit=True) as conn:
        conn.execute(
            "insert into pgcron.jobs (task, state, attempt, claim, worker, claimed_at)"
            " select 'add', 'running', 1, %s, %s, now() from generate_series(1, 2000)",
            [CLAIM, ME],
        )
        with pytest.raises(IndexError):
            full.look(["*"], ["add"], ME)
        conn.execute("delete from pgcron.jobs where worker = %s", [ME])

    [held] = [n for n in nodes(full.plan) if n.get("Subplan Name") == "CTE held"]
    assert held["Actual Rows"] == 1, shown(held)
    assert indexes(held) == {"jobs_held"}, shown(held)
    assert rows_read(held) <= 2000 + held.get("Rows Removed by Filter", 0), shown(held)


def test_a_reap_reads_only_the_jobs_of_dead_workers(full: ExplainingStore) -> None:
    full.reap([(ME, None)])

    assert rows_read(full.plan) == 0, shown(full.plan)
    assert pages(full.plan) < 100, shown(full.plan)


def test_cancelling_and_reading_a_job_read_one_row(full: ExplainingStore) -> None:
    full.cancel(10**12)
    assert rows_read(full.plan) == 0
    full.get(FUTURE // 2)
    assert rows_read(full.plan) == 1, shown(full.plan)


@pytest.mark.row(136)
@pytest.mark.parametrize("states", [["done", "failed", "cancelled"], ["failed", "cancelled"], ["cancelled"]])
def test_pruning_reads_only_what_it_deletes(pg_url: str, states: list[str]) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            """
            insert into pgcron.history (id, task, queue, priority, state, args, headers, tags, execute_after, attempt,
                                        max_attempts, crashes, max_crashes, errors, created_at, finished_at)
            select n, 'add', 'default', 0, (%(states)s::text[])[1 + n %% cardinality(%(states)s::text[])],
                   '{}', '{}', '{}', now(), 1, 5, 0, 3, '[]', now(), now() - n * interval '1 minute'
            from generate_series(1, 60000) as n
            """,
            {"states": states},
        )
        conn.execute("analyze pgcron.history")
    store = ExplainingStore(parse_url(pg_url, application="pgcron plans"))

    store.prune(timedelta(0), timedelta(0), limit=100)

    read = sum(
        (n["Actual Rows"] + n.get("Rows Removed by Filter", 0)) * n["Actual Loops"]
        for n in nodes(store.plan)
        if n.get("Relation Name") == "history" and n["Node Type"] != "ModifyTable"
    )
    store.close()
    assert read <= 600, shown(store.plan)


@pytest.fixture(scope="module")
def wide_url(databases: Any) -> Iterator[str]:
    """Create deferred jobs in 200 queues with 100 priorities each: 20,000 levels."""
    url = databases.create(databases.template)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """
            insert into pgcron.jobs (task, queue, priority, execute_after)
            select 'unknown', 'q' || n / 100, n % 100 - 50, clock_timestamp() + interval '1 day'
            from generate_series(0, 19999) as n
            """
        )
    yield url
    databases.drop(url)


def rows_passed(plan: dict[str, Any]) -> float:
    """Return the number of rows that all nodes of a plan have returned or removed."""
    return sum(
        (n["Actual Rows"] + n.get("Rows Removed by Filter", 0) + n.get("Rows Removed by Join Filter", 0))
        * n["Actual Loops"]
        for n in nodes(plan)
    )


@pytest.mark.parametrize("verb", ["claim", "next_due", "look"])
def test_the_cost_is_linear_in_the_number_of_levels(wide_url: str, verb: str) -> None:
    store = ExplainingStore(parse_url(wide_url, application="pgcron plans"))
    looks: dict[str, Callable[[], Any]] = {
        "claim": lambda: store.claim(ME, CLAIM, ["*"], ["add"], 10),
        "next_due": lambda: store.next_due(["*"], ["add"]),
        "look": lambda: store.look(["*"], ["add"]),
    }

    with suppress(IndexError):
        looks[verb]()

    store.close()
    # A few rows for each level, and not one for each level and priority, which would be two million.
    assert rows_passed(store.plan) < 12 * 20_000, rows_passed(store.plan)
    # Two index descents of `levels()`, and one of the statement.
    assert pages(store.plan) < 20 * 20_000, pages(store.plan)
