"""The storm: workers killed, frozen and stopped, the server restarted, poison among the jobs; and then the reckoning.

A short one runs with the suite. The long one:

    PGCRON_STORM_SECONDS=600 pytest tests/faults/test_storm.py -s

`PGCRON_STORM_SEED` repeats the choices of a storm, not its timing.
"""

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from support import eventually
from workers import QUICK, Audit, Queue, WorkerProcess, Workers, recovery_bound

from pgcron_lite.embedded import EmbeddedPostgres

SECONDS = float(os.environ.get("PGCRON_STORM_SECONDS", "20"))
SEED = int(os.environ.get("PGCRON_STORM_SEED", str(time.time_ns() % 1_000_000)))

CREW = 3
# Longer than the lease, so that who is frozen so long has been declared dead.
FREEZE_SECONDS = (2.0, 4.0)


@dataclass
class Storm:
    """What rages, and a record of what it did."""

    queue: Queue
    workers: Workers
    server: EmbeddedPostgres
    gevent: bool
    chance: random.Random
    crew: list[WorkerProcess] = field(default_factory=list)
    frozen: dict[int, float] = field(default_factory=dict)
    deaths: dict[int, datetime] = field(default_factory=dict)
    restarts: list[datetime] = field(default_factory=list)
    innocents: list[int] = field(default_factory=list)
    poisons: list[int] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)

    def rage(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        restart_at = time.monotonic() + min(6.0, seconds / 3)
        while time.monotonic() < ends:
            self.tend()
            self.chance.choices([self.kill, self.freeze, self.stop, self.feed], [5, 3, 2, 6])[0]()
            if time.monotonic() > restart_at:
                restart_at = time.monotonic() + self.chance.uniform(6, 12)
                self.restart_server()
            time.sleep(self.chance.uniform(0.1, 0.4))

    def tend(self) -> None:
        """Thaw whose time has come, replace the dead: what a platform does."""
        for worker in self.crew:
            if worker.pid in self.frozen and time.monotonic() > self.frozen[worker.pid]:
                del self.frozen[worker.pid]
                worker.thaw()
        self.crew = [worker for worker in self.crew if worker.is_alive]
        while len(self.crew) < CREW:
            self.crew.append(self.workers.start(ready=False, gevent=self.gevent, grace="0.3s"))

    def kill(self) -> None:
        victim = self.chance.choice(self.crew)
        victim.kill()
        self.frozen.pop(victim.pid, None)
        self.deaths[victim.pid] = datetime.now(UTC)
        self.did["killed"] += 1

    def freeze(self) -> None:
        victim = self.chance.choice(self.crew)
        if len(self.frozen) < CREW - 1:
            victim.freeze()
            self.frozen[victim.pid] = time.monotonic() + self.chance.uniform(*FREEZE_SECONDS)
            self.did["frozen"] += 1

    def stop(self) -> None:
        self.chance.choice(self.crew).terminate()
        self.did["stopped"] += 1

    def restart_server(self) -> None:
        self.server.restart(mode="immediate")
        self.restarts.append(datetime.now(UTC))
        self.did["restarts of the server"] += 1

    def feed(self) -> None:
        for _ in range(self.chance.randint(3, 15)):
            kind = self.chance.choice(["nap", "nap", "once", "spin", "doze"])
            seconds = round(self.chance.uniform(0, 0.2), 3)
            args = {"times": 2} if kind == "doze" else {"seconds": seconds}
            # Death strikes here without asking who was alone when it came, and three times is soon reached: by
            # `max_crashes` only the poison is judged.
            self.innocents.append(
                self.queue.enqueue(kind, max_attempts=1 if kind == "once" else 5, max_crashes=30_000, **args)
            )

    def calm(self) -> None:
        """No more trouble from us; poison still kills, and who dies is still replaced."""
        self.frozen = dict.fromkeys(self.frozen, 0.0)

        def is_over() -> bool:
            self.tend()
            return not self.queue.rows("select id from pgcron.jobs limit 1")

        eventually(is_over, 60 + SECONDS)


@pytest.mark.storm
@pytest.mark.timeout(240 + 3 * SECONDS)
@pytest.mark.row(6)
@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_after_a_storm_everything_has_ended_as_it_should(
    queue_of_its_own: Queue, workers_of_its_own: Workers, own_server: EmbeddedPostgres, gevent: bool
) -> None:
    queue, chance = queue_of_its_own, random.Random(SEED)
    audit = Audit(queue)
    # It runs no jobs and is spared, so that somebody always watches: who else would be, is a matter of luck.
    keeper = workers_of_its_own.start(queues=["nothing-comes-here"])
    storm = Storm(queue, workers_of_its_own, own_server, gevent, chance)
    for _ in range(20):
        storm.feed()
    storm.poisons += [queue.enqueue("die", how=how) for how in ("exit", "segfault")]

    storm.rage(SECONDS)
    storm.calm()

    moves = audit.check()
    ended = {row.id: row for row in queue.rows("select id, state, attempt, crashes, errors from pgcron.history")}
    recoveries = recovery_seconds(storm, audit)
    print(
        f"\nstorm of {SECONDS:g} s, seed {SEED}, {'gevent' if gevent else 'threads'}: {dict(storm.did)};"
        f" {len(ended)} jobs, {len(moves)} transitions, {len(recoveries)} rescued from the killed,"
        f" after at most {max(recoveries, default=0):.2f} s"
    )
    assert keeper.is_alive
    lost = [job for job in [*storm.innocents, *storm.poisons] if job not in ended]
    assert lost == []
    assert {job: ended[job].errors for job in storm.innocents if ended[job].state != "done"} == {}
    for job in storm.poisons:
        assert (ended[job].state, ended[job].crashes) == ("failed", 3)
    begun_and_ended = {entry["job"] for entry in queue.entries(what="end")}
    napped = queue.rows("select id from pgcron.history where task <> 'fault_tasks.doze' and state = 'done'")
    assert {row.id for row in napped} <= begun_and_ended
    assert max(recoveries, default=0.0) < recovery_bound(QUICK)


def recovery_seconds(storm: Storm, audit: Audit) -> list[float]:
    """For every job that a killed worker held: how long until it was back in the queue.

    Counted from the last restart of the server, if one came in between: the reapers then begin their watch anew.
    """
    pids, holder, seconds = audit.pids(), {}, []
    for move in audit.moves():
        if move.after == "running":
            holder[move.job] = pids.get(move.worker)
        elif move.before == "running" and move.after == "queued":
            died = storm.deaths.get(holder[move.job])
            if died is not None and died < move.at:
                since = max([died, *(r for r in storm.restarts if r < move.at)])
                seconds.append((move.at - since).total_seconds())
    return seconds
