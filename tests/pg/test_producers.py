"""Producers on a real server, driven by a seed: statements are refused, lost and late, and ids are drawn twice.

The counterpart of `tests/simulation` for the SQL of enqueueing, which the memory store does not have. One thread does
everything one after the other, so a failing seed fails again.
"""

import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgcron_lite.errors import DatabaseUnavailable, PgCronError
from pgcron_lite.job import NewJob, Outcome
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.pool import Pool
from pgcron_lite.pg.prepared import Answer
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import DatabaseUrl, parse_url

SEEDS, BLOCK, STEPS = 20, 10, 30


class Trouble:
    """The faults of a producer's statements, and the statements that are delayed in the network."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.on_their_way: list[Callable[[], object]] = []
        self._left: list[psycopg.Connection[Any]] = []

    def draw(self) -> str:
        return self.random.choice(["ok"] * 6 + ["refused", "lost", "late"])

    def hold(self, conn: "psycopg.Connection[Any]", query: Any, values: Any) -> None:
        """Delay a statement for its backend, whose client has closed the connection."""
        self._left.append(conn)
        self.on_their_way.append(lambda: conn.execute(query, values))

    def arrive(self) -> None:
        """Deliver one delayed statement to the server."""
        if self.on_their_way:
            late = self.on_their_way.pop(self.random.randrange(len(self.on_their_way)))
            try:
                late()
            except psycopg.Error:
                """Discard the answer: the client has gone."""

    def close(self) -> None:
        for conn in self._left:
            conn.close()


class TroubledConnection(Connection):
    """A connection that breaks before a statement arrives, or before its reply does."""

    def __init__(self, where: DatabaseUrl, trouble: Trouble) -> None:
        super().__init__(where, "pgcron")
        self._trouble = trouble

    def rows(self, query: Any, params: Any = None) -> list[Any]:
        with self._meeting(query, params):
            return super().rows(query, params)

    def run(self, query: Any, values: Any) -> Any:
        with self._meeting(query, values):
            return super().run(query, values)

    @contextmanager
    def sending(self, query: Any, values: Any) -> Iterator[Answer]:
        with self._meeting(query, values), super().sending(query, values) as answer:
            yield answer

    @contextmanager
    def transaction(self) -> Iterator["psycopg.Connection[Any]"]:
        with self._meeting(None, None), super().transaction() as conn:
            yield conn

    @contextmanager
    def _meeting(self, query: Any, values: Any) -> Iterator[None]:
        fate = self._trouble.draw()
        if fate == "late" and query is not None:
            self._trouble.hold(self.connection(), query, values)
            # Keep it open, so that the backend exists when the statement arrives.
            self._conn = None
        if fate in ("refused", "late"):
            self._break()
        yield
        if fate == "lost":
            self._break()

    def _break(self) -> None:
        self.close()
        if self._backend is not None:
            self.lost.append(self._backend)
        raise DatabaseUnavailable("the connection broke")


class Scenario:
    """Two producers, a worker that ends the jobs it finds, and the calls that were acknowledged."""

    def __init__(self, url: str, seed: int) -> None:
        where = parse_url(url, application="pgcron test")
        self.trouble = Trouble(seed)
        self.random = self.trouble.random
        self.producers = [PostgresStore(where, rings=False) for _ in range(2)]
        for producer in self.producers:
            producer.pool = Pool(lambda: TroubledConnection(where, self.trouble), 1)
        self.worker = PostgresStore(where, rings=False)
        self.acknowledged: dict[int, int] = {}
        self.executed: Counter[int] = Counter()
        self._calls = 0

    def step(self) -> None:
        self.random.choice([self.enqueue] * 5 + [self.work, self.trouble.arrive, self.set_back, self.fail_over])()

    def enqueue(self) -> None:
        calls = range(self._calls, self._calls + self.random.choice((1, 1, 1, 3)))
        self._calls = calls.stop
        try:
            ids = self.random.choice(self.producers).enqueue(
                [NewJob("work", args=json.dumps({"call": call})) for call in calls]
            )
        except PgCronError:
            return
        self.acknowledged.update(zip(calls, ids, strict=True))

    def work(self, limit: int = 5) -> int:
        """Claim up to `limit` jobs and end them."""
        jobs = self.worker.claim(uuid.uuid4(), uuid.uuid4(), ["*"], ["work"], limit)
        self.worker.settle([Outcome(job.id, job.claim or uuid.uuid4(), "done") for job in jobs])
        self.executed.update(json.loads(job.args)["call"] for job in jobs)
        return len(jobs)

    def set_back(self) -> None:
        """Set the sequence back, so that it returns ids that were drawn before."""
        with self.worker.pool.take() as connection:
            connection.rows(
                "select setval('pgcron.jobs_id_seq', greatest(1, last_value - %(back)s)) from pgcron.jobs_id_seq",
                {"back": self.random.randint(1, 30)},
            )

    def fail_over(self) -> None:
        for producer in self.producers:
            producer.close()
        self.set_back()

    def close(self) -> None:
        self.trouble.close()
        for store in (*self.producers, self.worker):
            store.close()


@pytest.mark.parametrize("first", range(1, SEEDS + 1, BLOCK))
def test_each_acknowledged_call_is_one_job_despite_faults(pg_url: str, first: int) -> None:
    for seed in range(first, first + BLOCK):
        scenario = Scenario(pg_url, seed)
        try:
            for _ in range(STEPS):
                scenario.step()
            while scenario.trouble.on_their_way or scenario.work():
                scenario.trouble.arrive()
        finally:
            scenario.close()

        lost = {call: job_id for call, job_id in scenario.acknowledged.items() if not scenario.executed[call]}
        twice = [call for call, count in scenario.executed.items() if count > 1]
        assert (lost, twice) == ({}, []), f"seed {seed}"
