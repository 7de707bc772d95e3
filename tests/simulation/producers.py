"""Producers with the production stock of ids and order of statements, on the simulated server.

`pg.enqueue` contains the protocol (draw, insert, insert again after a lost reply) and its SQL. The protocol is used
unchanged; each of its statements is a method of `database.Database`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from pgcron_lite.errors import DatabaseRefused, DatabaseUnavailable, PgCronError
from pgcron_lite.job import NewJob
from pgcron_lite.pg.enqueue import Enqueueing

from .connection import Connection
from .invariants import Ledger
from .world import World

# Seconds after which a hanging call of a producer ends: the TCP timeouts.
PATIENCE = 30.0


class Enqueuer(Enqueueing):
    """The enqueueing of the PostgreSQL store over a simulated connection."""

    rings = True

    def __init__(self, connection: Connection) -> None:
        # No real connection is opened.
        super().__init__(cast(Any, None), "simulated")
        self._connection = connection

    @property
    def generation(self) -> int:
        return self._connection.generation

    def ring(self) -> None:
        self._connection.ring()

    def _draw(self, count: int) -> list[int]:
        drawn: list[int] = self._connection.draw(count)
        return drawn

    def _draw_anew(self, taken: Sequence[int], why: str) -> list[int]:
        self._stock.empty()
        drawn: list[int] = self._connection.draw_anew(len(taken))
        return drawn

    def _insert(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        try:
            is_in: bool = self._connection.insert_unless_ended(ids, jobs)
        except DatabaseRefused:
            return False
        self.ring()
        return is_in

    def _insert_again(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        is_ours: bool = self._connection.insert_again(ids, jobs)
        return is_ours


class Credulous(Enqueuer):
    """A producer that after a lost reply takes any row with its id for its own, and never drops its stock of ids."""

    def enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        ids = self._ids(len(jobs))
        try:
            self._connection.insert(ids, jobs)
        except DatabaseUnavailable:
            self._connection.insert_where_free(ids, jobs)
        self.ring()
        return ids

    def _ids(self, count: int) -> list[int]:
        self._kept: list[int] = getattr(self, "_kept", [])
        if len(self._kept) < count:
            self._kept += self._draw(count + 8)
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken


DEFAULT = Enqueuer


class Producer:
    """A process that makes `calls` calls of `delay()`, with random pauses."""

    def __init__(
        self, world: World, ledger: Ledger, number: int, *, calls: int, pause: float, make: type[Enqueuer]
    ) -> None:
        self.name = f"producer {number}"
        self.is_dead = False
        self.frozen_until = 0.0
        self.is_done = False
        self._world = world
        self._ledger = ledger
        self._calls = calls
        self._pause = pause
        connection = Connection(world, self.name, self, patience=PATIENCE, on_effects=ledger.record)
        self._enqueuer = make(connection)
        self.task = world.start(self._run)

    def _run(self) -> None:
        world, random = self._world, self._world.random
        for _ in range(self._calls):
            world.wait(random.expovariate(1.0 / self._pause), self)
            nonces = [self._ledger.new_nonce() for _ in range(random.choice((1, 1, 1, 2, 5)))]
            try:
                ids = self._enqueuer.enqueue([_job(world, nonce) for nonce in nonces])
            except PgCronError as error:
                world.say(self.name, "delay() raises %s: %s", type(error).__name__, error)
                continue
            world.say(self.name, "delay() returns %s", ids)
            self._ledger.acknowledge(self.name, ids, nonces)
        self.is_done = True


def _job(world: World, nonce: int) -> NewJob:
    random = world.random
    is_poison = world.has("poison") and random.random() < 0.004
    return NewJob(
        "poison" if is_poison else "work",
        args=json.dumps({"nonce": nonce}),
        priority=random.choice((0, 0, 0, 5)),
        max_attempts=random.choice((1, 2, 4)),
    )
