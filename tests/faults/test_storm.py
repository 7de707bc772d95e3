"""The storm: every fault that this project knows, at random, for a while; then the reckoning.

Workers are killed, frozen and stopped, some under a supervisor. The server is restarted. Single backends are frozen,
commits wait for a standby that does not answer, connections become half-open, the sequence of ids is set back, and
tasks kill their process or leave it with exit code 0. Two short storms run with the suite. The soak, half an hour:

    PGCRON_STORM_SECONDS=450 pytest tests/faults/test_storm.py -s

`PGCRON_STORM_SEED` repeats the choices of a storm, not its timing.
"""

import contextlib
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from pgbouncer import pgbouncer
from proxy import Proxy
from support import eventually
from workers import QUICK, Audit, Queue, WorkerProcess, Workers, recovery_bound

from pgcron_lite.embedded import EmbeddedPostgres

SECONDS = float(os.environ.get("PGCRON_STORM_SECONDS", "16"))
SEED = int(os.environ.get("PGCRON_STORM_SEED", str(time.time_ns() % 1_000_000)))
IS_SOAK = SECONDS >= 60

CREW = 3
# Longer than the lease, so that a worker frozen for this long has been declared dead.
FREEZE_SECONDS = (2.0, 4.0)
# In the soak also longer than the guard allows a statement: the worker gives up on a claim that commits later.
STALLS = [(1.0, 4.0), (21.0, 30.0)] if IS_SOAK else [(1.0, 4.0)]
# How long a job may be `running` under one claim. The tasks here take 0.2 s at most.
STRANDED_SECONDS = 60.0

STORMS = [(False, False), (True, True)]
if IS_SOAK:
    STORMS += [(False, True), (True, False)]


@dataclass
class Watch:
    """The claims that are running now, and since when each has been."""

    queue: Queue
    since: dict[tuple[int, uuid.UUID], float] = field(default_factory=dict)
    longest: float = 0.0
    stranded: list[tuple[int, uuid.UUID]] = field(default_factory=list)

    def look(self) -> None:
        now = time.monotonic()
        running = {(row.id, row.claim) for row in self.queue.rows("select id, claim from pgcron.running")}
        self.since = {claim: self.since.get(claim, now) for claim in running}
        for claim, since in self.since.items():
            self.longest = max(self.longest, now - since)
            if now - since > STRANDED_SECONDS and claim not in self.stranded:
                self.stranded.append(claim)


@dataclass
class Storm:
    """The faults, and a record of what was done."""

    queue: Queue
    workers: Workers
    server: EmbeddedPostgres
    proxy: Proxy
    gevent: bool
    chance: random.Random
    watch: Watch
    crew: list[WorkerProcess] = field(default_factory=list)
    frozen: dict[int, float] = field(default_factory=dict)
    # Ended by a thread: a statement of ours may wait for the very backend that stands still.
    stalled: dict[int, threading.Timer] = field(default_factory=dict)
    commits_wait_until: float | None = None
    deaths: dict[int, datetime] = field(default_factory=dict)
    # When the database was last not itself: reapers begin their watch anew after it.
    disturbances: list[datetime] = field(default_factory=list)
    innocents: list[str] = field(default_factory=list)
    poisons: list[str] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)

    def rage(self, seconds: float) -> None:
        faults = {
            self.feed: 8, self.kill: 5, self.freeze: 3, self.stop: 2, self.freeze_a_backend: 4,
            self.cut_without_a_word: 2, self.set_the_sequence_back: 1, self.leave: 1,
        }
        ends = time.monotonic() + seconds
        restart_at = time.monotonic() + min(6.0, seconds / 3)
        wait_at = time.monotonic() + min(9.0, seconds / 2)
        while time.monotonic() < ends:
            self.tend()
            self.chance.choices(list(faults), list(faults.values()))[0]()
            if time.monotonic() > restart_at:
                restart_at = time.monotonic() + self.chance.uniform(6, 12) * (3 if IS_SOAK else 1)
                self.restart_server()
            if time.monotonic() > wait_at:
                wait_at = time.monotonic() + self.chance.uniform(60, 120)
                self.let_commits_wait()
            time.sleep(self.chance.uniform(0.1, 0.4))

    def tend(self) -> None:
        """End the faults that are over and replace dead workers, as a platform does."""
        now = time.monotonic()
        for worker in self.crew:
            if worker.pid in self.frozen and now > self.frozen[worker.pid]:
                del self.frozen[worker.pid]
                worker.thaw()
        if self.commits_wait_until is not None and now > self.commits_wait_until:
            self.let_commits_go()
        self.watch.look()
        self.crew = [worker for worker in self.crew if worker.is_alive]
        while len(self.crew) < CREW:
            # One of them is a supervisor with two workers.
            processes = 2 if len(self.workers.all) % CREW == 1 else 1
            self.crew.append(
                self.workers.start(
                    ready=False, queues=["default"], gevent=self.gevent, grace="0.3s", processes=processes,
                    url=self.proxy.url,
                )
            )

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

    def leave(self) -> None:
        """A task that ends its process as if all were well, where most would be missed: under a supervisor."""
        self.give("die_at_first", deaths=1, code=0)
        self.did["left with 0"] += 1

    def freeze_a_backend(self) -> None:
        """The server's process behind one connection stands still, in the middle of a statement if one is found."""
        if len(self.stalled) > 1:
            return
        ends = time.monotonic() + 0.3
        while time.monotonic() < ends:
            rows = self.queue.rows(
                "select pid from pg_stat_activity where application_name like 'pgcron worker%%' and state = 'active'"
                " and pid <> pg_backend_pid()"
            )
            if rows:
                break
        else:
            rows = self.queue.rows(
                "select pid from pg_stat_activity where application_name like 'pgcron%%' and pid <> pg_backend_pid()"
                " and backend_type = 'client backend' and application_name <> 'pgcron tests'"
            )
        if rows:
            pid = self.chance.choice(rows).pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                seconds = self.chance.uniform(*self.chance.choice(STALLS))
                self.stalled[pid] = threading.Timer(seconds, self.thaw_backend, [pid])
                self.stalled[pid].start()
                self.did["backends frozen"] += 1

    def thaw_backend(self, pid: int) -> None:
        timer = self.stalled.pop(pid, None)
        if timer is None:
            return
        timer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self.disturbances.append(datetime.now(UTC))

    def let_commits_wait(self) -> None:
        """A synchronous standby does not answer: commits are written, but nobody sees them yet."""
        self.await_standby("nobody")
        self.commits_wait_until = time.monotonic() + self.chance.uniform(*self.chance.choice(STALLS))
        self.did["standby away"] += 1

    def let_commits_go(self) -> None:
        self.await_standby("")
        self.commits_wait_until = None
        self.disturbances.append(datetime.now(UTC))

    def await_standby(self, name: str) -> None:
        self.queue.rows(f"alter system set synchronous_standby_names = '{name}'")
        self.queue.rows("select pg_reload_conf()")

    def cut_without_a_word(self) -> None:
        """Every connection through the proxy becomes half-open."""
        self.proxy.black_hole()
        self.disturbances.append(datetime.now(UTC))
        self.did["half-open"] += 1

    def set_the_sequence_back(self) -> None:
        """What a failover to a standby that lags behind, or a restore, does to the ids."""
        self.queue.rows("select setval('pgcron.jobs_id_seq', greatest(1, last_value - 200)) from pgcron.jobs_id_seq")
        self.did["sequence set back"] += 1

    def restart_server(self) -> None:
        for pid in list(self.stalled):
            self.thaw_backend(pid)
        self.server.restart(mode="immediate")
        self.disturbances.append(datetime.now(UTC))
        self.did["restarts of the server"] += 1

    def feed(self) -> None:
        for _ in range(self.chance.randint(3, 15)):
            kind = self.chance.choice(["nap", "nap", "once", "spin", "doze"])
            seconds = round(self.chance.uniform(0, 0.2), 3)
            args = {"times": 2} if kind == "doze" else {"seconds": seconds}
            queue = self.chance.choice(["default", "steady"])
            self.give(kind, queue=queue, max_attempts=1 if kind == "once" else 5, **args)

    def give(self, kind: str, **options: object) -> None:
        """Enqueue a job that must be done in the end."""
        # Death strikes here without asking which job was alone when it came, and three times is soon reached: by
        # `max_crashes` only the poison is judged.
        self.innocents.append(self.enqueue(kind, max_crashes=100, **options))

    def enqueue(self, kind: str, **options: object) -> str:
        """Enqueue under a key of our own: ids are what the storm throws into disorder."""
        key = uuid.uuid4().hex
        self.queue.enqueue(kind, headers={"storm": key}, **options)
        return key

    def calm(self) -> None:
        """No more trouble from us; poison still kills, and dead workers are still replaced."""
        self.frozen = dict.fromkeys(self.frozen, 0.0)
        for pid in list(self.stalled):
            self.thaw_backend(pid)
        if self.commits_wait_until is not None:
            self.commits_wait_until = 0.0

        def is_over() -> bool:
            self.tend()
            assert not self.watch.stranded
            return not self.queue.rows("select id from pgcron.jobs limit 1")

        eventually(is_over, 90 + SECONDS)


@pytest.fixture
def url(own_server: EmbeddedPostgres, is_pooled: bool) -> Iterator[str]:
    """Where workers connect: to the server, or to a pooler in front of it."""
    if not is_pooled:
        yield own_server.url
        return
    with pgbouncer(own_server.url, size=12) as bouncer:
        yield bouncer.url


@pytest.mark.storm
@pytest.mark.timeout(300 + 3 * SECONDS)
@pytest.mark.row(6)
@pytest.mark.parametrize(
    ("gevent", "is_pooled"), STORMS,
    ids=["-".join(("gevent" if g else "threads", "pooled" if p else "direct")) for g, p in STORMS],
)
def test_after_a_storm_everything_has_ended_as_it_should(
    queue_of_its_own: Queue, workers_of_its_own: Workers, own_server: EmbeddedPostgres, url: str, gevent: bool,
    is_pooled: bool,
) -> None:
    queue, chance = queue_of_its_own, random.Random(SEED)
    queue.rows("create view pgcron.running as select id, claim from pgcron.jobs where state = 'running'")
    # What is asked and given here does not wait for a standby.
    queue.rows("alter role postgres in database postgres set synchronous_commit = 'local'")
    queue.close()
    audit = Audit(queue)
    # It is neither killed nor frozen, so that there is always a reaper, and a worker that lives on with a connection
    # that failed it. No task in its queue kills it.
    steady = workers_of_its_own.start(queues=["steady"], gevent=gevent, url=url)
    with Proxy(url) as proxy:
        storm = Storm(queue, workers_of_its_own, own_server, proxy, gevent, chance, Watch(queue))
        for _ in range(20):
            storm.feed()
        storm.poisons += [storm.enqueue("die", how=how) for how in ("exit", "segfault")]

        storm.rage(SECONDS)
        storm.calm()

    moves = audit.check()
    ended = {
        row.key: row
        for row in queue.rows(
            "select id, headers ->> 'storm' as key, state, attempt, crashes, errors from pgcron.history"
        )
    }
    recoveries = recovery_seconds(storm, audit)
    print(
        f"\nstorm of {SECONDS:g} s, seed {SEED}, {'gevent' if gevent else 'threads'},"
        f" {'pooled' if is_pooled else 'direct'}: {dict(storm.did)}; {len(ended)} jobs, {len(moves)} transitions,"
        f" {len(recoveries)} rescued from the killed, after at most {max(recoveries, default=0):.2f} s;"
        f" running for {storm.watch.longest:.1f} s at most"
    )
    assert steady.is_alive
    assert [key for key in [*storm.innocents, *storm.poisons] if key not in ended] == []
    assert {key: ended[key].errors for key in storm.innocents if ended[key].state != "done"} == {}
    for key in storm.poisons:
        assert (ended[key].state, ended[key].crashes) == ("failed", 3)
    # 1 is an error that nothing caught: a row, say, that the worker could not write or read. Or the end of a supervisor
    # that had to kill a frozen child, or whose child ran the poison while it was stopping.
    explained = ("within the grace of 0.3 s; killing it", "died (SIGSEGV)")
    failed = [worker.log for worker in workers_of_its_own.all if worker.code == 1]
    assert [log for log in failed if not any(reason in log for reason in explained)] == []
    assert [worker.log for worker in workers_of_its_own.all if "died (exit code 1)" in worker.log] == []
    assert max(recoveries, default=0.0) < recovery_bound(QUICK)


def recovery_seconds(storm: Storm, audit: Audit) -> list[float]:
    """For every job that a killed worker held: how many seconds passed until it was back in the queue.

    Counted from the last disturbance of the database, if one came in between: reapers then begin their watch anew.
    """
    pids, holder, seconds = audit.pids(), {}, []
    for move in audit.moves():
        if move.after == "running":
            holder[move.job] = pids.get(move.worker)
        elif move.before == "running" and move.after == "queued":
            died = storm.deaths.get(holder[move.job])
            if died is not None and died < move.at:
                since = max([died, *(at for at in storm.disturbances if at < move.at)])
                seconds.append((move.at - since).total_seconds())
    return seconds
