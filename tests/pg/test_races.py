"""Two operations at once on real connections, in both orders, the second while the first holds its locks.

The first to come is stopped at its commit, with its statement done and its locks held. Then the second either waits
for it, as pg_stat_activity shows, or does not; and the result must be that of one after the other.
"""

import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import conninfo
from support import eventually

from pgcron_lite.job import Job, NewJob, Outcome, State, WorkerCard, hand_back
from pgcron_lite.memory import MemoryStore
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.pool import Pool
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.schedules import ticks
from pgcron_lite.schedules.schedule import Schedule
from pgcron_lite.schedules.timing import Every

DEAD, A, B = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3)
CLAIM, OLD_CLAIM = uuid.UUID(int=100), uuid.UUID(int=99)
TASKS = ["add"]

# The connection named `first` waits here at its commit, until the test releases the lock.
GATE = """
    create function public.test_gate() returns trigger language plpgsql as $$
    begin
        if current_setting('application_name') = 'first' then
            perform pg_advisory_xact_lock_shared(42);
        end if;
        return null;
    end $$;
    create constraint trigger gate after insert or update or delete on pgcron.jobs
        deferrable initially deferred for each row execute function public.test_gate();
    create constraint trigger gate after insert or update or delete on pgcron.history
        deferrable initially deferred for each row execute function public.test_gate();
    create constraint trigger gate after insert or update or delete on pgcron.workers
        deferrable initially deferred for each row execute function public.test_gate();
"""


class Arena:
    """A first and a second store, and a lock that stops the first between its statement and its commit."""

    def __init__(self, url: str) -> None:
        self.setup = PostgresStore(parse_url(url, application="pgcron arena"))
        self.first, self.second = waiting_store(url, "first"), waiting_store(url, "second")
        self.conn = psycopg.connect(url, autocommit=True)
        self.conn.execute(GATE)
        self._pool = ThreadPoolExecutor(2)

    def run(self, first: Callable[[Any], Any], second: Callable[[Any], Any]) -> tuple[Any, Any, bool]:
        """Return both results, and True if the second had to wait for the first."""
        self.conn.execute("select pg_advisory_lock(42)")
        try:
            one = self._pool.submit(first, self.first)
            eventually(lambda: one.done() or self.waits("first"))
            other = self._pool.submit(second, self.second)
            eventually(lambda: other.done() or self.waits("second"))
            waited = not other.done()
        finally:
            self.conn.execute("select pg_advisory_unlock(42)")
        return _answer(one), _answer(other), waited

    def waits(self, name: str) -> bool:
        query = "select from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
        return bool(self.conn.execute(query, [name]).rowcount)

    def close(self) -> None:
        self._pool.shutdown()
        for one in (self.setup, self.first, self.second, self.conn):
            one.close()


def waiting_store(url: str, name: str) -> PostgresStore:
    """Return a store with a lock timeout that is long enough to observe the wait on a slow machine."""
    where = parse_url(url, application=name)
    store = PostgresStore(where)
    store.pool = Pool(lambda: Connection(where, "pgcron", lock_seconds=20), 4)
    return store


def _answer(future: "Future[Any]") -> Any:
    return future.result(timeout=20)


@pytest.fixture
def arena(pg_url: str) -> Iterator[Arena]:
    arena = Arena(pg_url)
    yield arena
    arena.close()


# Jobs, set up in both stores, and the operations on them.


def waiting(store: Any) -> int:
    [job_id] = store.enqueue([NewJob("add")])
    return int(job_id)


def held_by_the_dead(store: Any) -> int:
    store.register(WorkerCard(DEAD, "box", 7, ("*",), 1, "threads", "1"))
    job_id = waiting(store)
    [old] = store.claim(B, OLD_CLAIM, ["*"], TASKS, 1)
    store.settle([hand_back(old)])
    store.claim(DEAD, CLAIM, ["*"], TASKS, 1)
    return job_id


def failed(store: Any) -> int:
    job_id = held_by_the_dead(store)
    store.settle([Outcome(job_id, CLAIM, "failed")])
    return job_id


def ids(jobs: list[Job]) -> list[int]:
    return [job.id for job in jobs]


VERBS: dict[str, Callable[[Any, int], Any]] = {
    "claim": lambda s, i: ids(s.claim(A, uuid.UUID(int=7), ["*"], TASKS, 5)),
    "claim by another": lambda s, i: ids(s.claim(B, uuid.UUID(int=8), ["*"], TASKS, 5)),
    "cancel": lambda s, i: s.cancel(i),
    "delete": lambda s, i: s.delete(i),
    "clear": lambda s, i: s.clear("default"),
    "finish": lambda s, i: s.settle([Outcome(i, CLAIM, "done", result="1")]),
    "finish under an old claim": lambda s, i: s.settle([Outcome(i, OLD_CLAIM, "failed")]),
    "fail and try again": lambda s, i: s.settle([Outcome(i, CLAIM, "queued", delay=0.0)]),
    "hand back": lambda s, i: s.settle([Outcome(i, CLAIM, "queued", gives_back=True)]),
    "reap": lambda s, i: ids(s.reap([(DEAD, 0)])),
    "retry": lambda s, i: s.retry(i),
    "prune": lambda s, i: s.prune(timedelta(0), timedelta(0)),
}

PAIRS = [
    (begin, first, second)
    for begin, verbs in {
        waiting: ["claim", "claim by another", "cancel", "delete", "clear"],
        held_by_the_dead: ["finish", "finish under an old claim", "fail and try again", "hand back", "reap", "cancel"],
        failed: ["retry", "prune", "delete"],
    }.items()
    for first in verbs
    for second in verbs
]


@dataclass(frozen=True)
class End:
    """The state of a job, as far as it depends on the order of two operations."""

    state: str | None
    attempt: int | None
    crashes: int | None
    alone: bool | None
    worker: uuid.UUID | None
    result: str | None

    @classmethod
    def of(cls, store: Any, job_id: int) -> "End":
        job = store.get(job_id)
        names = ("state", "attempt", "crashes", "alone", "worker", "result")
        return cls(*(getattr(job, name, None) for name in names))


def one_after_the_other(begin: Callable[[Any], int], *verbs: str) -> tuple[list[Any], End]:
    """Return the results and the end on the memory store, one operation after the other."""
    store = MemoryStore()
    job_id = begin(store)
    return [VERBS[verb](store, job_id) for verb in verbs], End.of(store, job_id)


@pytest.mark.row(67)
@pytest.mark.row(138)
@pytest.mark.parametrize(("begin", "first", "second"), PAIRS, ids=lambda part: getattr(part, "__name__", part))
def test_two_operations_at_once_end_as_if_run_one_after_the_other(
    arena: Arena, begin: Callable[[Any], int], first: str, second: str
) -> None:
    job_id = begin(arena.setup)
    both, end_of_both = one_after_the_other(begin, first, second)
    [_], end_of_first = one_after_the_other(begin, first)

    answer, other, waited = arena.run(lambda s: VERBS[first](s, job_id), lambda s: VERBS[second](s, job_id))

    passed_by = ([answer], End.of(arena.setup, job_id)) == ([both[0]], end_of_first) and not other
    assert passed_by or ([answer, other], End.of(arena.setup, job_id)) == (both, end_of_both)
    if {first, second} <= {"claim", "claim by another"}:
        assert not waited, "a claim waited for another"


# Operations that wait, and those that must not.


@pytest.mark.parametrize(
    ("begin", "first", "second", "waits"),
    [
        (waiting, "claim", "cancel", True),
        (waiting, "cancel", "claim", False),
        (held_by_the_dead, "finish", "reap", False),
        (held_by_the_dead, "reap", "finish", True),
        (held_by_the_dead, "reap", "reap", False),
        (failed, "retry", "prune", False),
        (failed, "prune", "retry", True),
    ],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_only_operations_that_depend_on_the_other_wait(
    arena: Arena, begin: Callable[[Any], int], first: str, second: str, waits: bool
) -> None:
    job_id = begin(arena.setup)

    _, _, waited = arena.run(lambda s: VERBS[first](s, job_id), lambda s: VERBS[second](s, job_id))

    assert waited is waits


def test_a_heartbeat_during_a_reap_learns_of_it(arena: Arena) -> None:
    held_by_the_dead(arena.setup)

    rescued, beaten, waited = arena.run(lambda s: s.reap([(DEAD, 0)]), lambda s: s.beat(DEAD))

    assert (len(rescued), beaten, waited) == (1, False, True)


def test_a_reap_during_a_heartbeat_leaves_the_worker(arena: Arena) -> None:
    job_id = held_by_the_dead(arena.setup)

    beaten, rescued, waited = arena.run(lambda s: s.beat(DEAD), lambda s: s.reap([(DEAD, 0)]))

    # It does not wait: a heartbeat may hang for long, and the jobs of other workers must be rescued.
    assert (beaten, rescued, waited) == (True, [], False)
    assert arena.setup.get(job_id).worker == DEAD


def test_a_job_taken_over_in_between_is_not_rescued_from_its_new_owner(arena: Arena) -> None:
    """The reaper has read the row of a dead worker's job; before it gets the lock, another worker owns the job."""
    job_id = held_by_the_dead(arena.setup)

    def hand_over(store: Any) -> None:
        with store.pool.take() as connection, connection.transaction() as conn:
            conn.execute("update pgcron.jobs set worker = %s, claim = %s", [A, uuid.UUID(int=7)])

    _, rescued, _ = arena.run(hand_over, lambda s: s.reap([(DEAD, 0)]))

    assert rescued == []
    assert arena.setup.get(job_id).worker == A


@pytest.mark.row(67)
def test_batches_in_opposite_orders_never_deadlock(pg_url: str) -> None:
    """Two settle the same claims in opposite orders while a third reaps, clears and cancels. A deadlock would raise."""
    stores = [PostgresStore(parse_url(pg_url, application=f"pgcron {n}"), rings=False) for n in range(3)]
    setup = stores[0]
    with ThreadPoolExecutor(3) as pool:
        for turn in range(30):
            setup.register(WorkerCard(DEAD, "box", 7, ("*",), 1, "threads", "1"))
            claim = uuid.uuid4()
            setup.enqueue([NewJob("add", max_attempts=9)] * 40)
            jobs = setup.claim(DEAD, claim, ["*"], TASKS, 40)
            state: State = "done" if turn % 2 else "queued"
            outcomes = [Outcome(j.id, claim, state, delay=0.0) for j in jobs]

            def disturb(turn: int = turn, jobs: list[Job] = jobs) -> None:
                if turn % 3 == 0:
                    stores[2].reap([(DEAD, None)])
                stores[2].clear("default", 15)
                for job in reversed(jobs[:10]):
                    stores[2].cancel(job.id)

            forth = pool.submit(stores[0].settle, outcomes)
            back = pool.submit(stores[1].settle, outcomes[::-1])
            aside = pool.submit(disturb)

            for future in (forth, back, aside):
                future.result(timeout=30)
            while setup.clear("default"):
                pass
            setup.reap([(DEAD, None)])
            while setup.clear("default"):
                pass
    assert setup.find(states=["queued", "running"]) == []
    for store in stores:
        store.close()


@pytest.mark.row(67)
@pytest.mark.parametrize("step", [1, -1], ids=["lowest last", "lowest first"])
@pytest.mark.parametrize("state", ["done", "queued"])
def test_a_batch_locks_its_jobs_in_the_order_of_their_ids(arena: Arena, state: State, step: int) -> None:
    """While it waits for the lowest id, it holds no lock on the others, in whatever order they were passed."""
    arena.setup.enqueue([NewJob("add")] * 20)
    jobs = arena.setup.claim(A, CLAIM, ["*"], TASKS, 20)
    lowest, *others = sorted(job.id for job in jobs)
    # It is written last, so the lowest id is also the last row in the table.
    arena.conn.execute("update pgcron.jobs set tags = tags where id = %s", [lowest])
    outcomes = [Outcome(i, CLAIM, state, delay=1.0) for i in [*reversed(others), lowest][::step]]
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(arena.setup.address.conninfo) as holder:
            holder.execute("select from pgcron.jobs where id = %s for update", [lowest])
            settled = pool.submit(arena.second.settle, outcomes)
            eventually(lambda: arena.waits("second"))

            free = holder.execute("select id from pgcron.jobs order by id for update skip locked").fetchall()

        assert [row[0] for row in free] == [lowest, *others]
        assert settled.result(timeout=20) == {lowest, *others}


def test_many_claimers_never_take_a_job_twice_or_exceed_their_limit(pg_url: str) -> None:
    setup = PostgresStore(parse_url(pg_url, application="pgcron setup"))
    new = [NewJob("add", queue=f"q{n % 7}", priority=n % 3) for n in range(600)]
    everything = setup.enqueue(new)
    stores = [PostgresStore(parse_url(pg_url, application=f"pgcron {n}"), size=1) for n in range(6)]

    def work(store: PostgresStore) -> list[list[Job]]:
        batches = []
        while setup.waiting_tasks():
            batches.append(store.claim(uuid.uuid4(), uuid.uuid4(), ["*"], TASKS, 5))
        return batches

    with ThreadPoolExecutor(6) as pool:
        batches = [batch for found in pool.map(work, stores) for batch in found]

    assert max(map(len, batches)) == 5
    assert sorted(job.id for batch in batches for job in batch) == everything
    for store in (setup, *stores):
        store.close()


# An enqueue whose reply is lost


class Proxy:
    """A proxy in front of the server that can drop the reply to the next insert's commit and close the connection."""

    def __init__(self, url: str) -> None:
        parts = conninfo.conninfo_to_dict(url)
        self._server = (str(parts["host"]), int(parts["port"]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = conninfo.make_conninfo(url, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        self.cuts = 0
        self.before_the_cut: Callable[[], None] = lambda: None
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._ends += [client, server]
                cut = threading.Event()
                for come, go, watch in ((client, server, True), (server, client, False)):
                    self._threads.append(threading.Thread(target=self._pass, args=(come, go, cut, watch)))
                    self._threads[-1].start()

    def _pass(self, come: socket.socket, go: socket.socket, cut: threading.Event, watch: bool) -> None:
        with contextlib.suppress(OSError):
            while data := come.recv(65536):
                if watch and self.cuts and b"insert into" in data:
                    self.cuts -= 1
                    cut.set()
                if cut.is_set() and not watch:
                    self._drop(come, go)
                    return
                go.sendall(data)
        for end in (come, go):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _drop(self, server: socket.socket, client: socket.socket) -> None:
        # The data read so far is the reply to the pipeline, including the commit, or its beginning.
        server.settimeout(0.5)
        with contextlib.suppress(OSError):
            while server.recv(65536):
                pass
        self.before_the_cut()
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def direct(pg_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(pg_url, application="pgcron direct"))
    yield store
    store.close()


@pytest.fixture
def producer(proxy: Proxy) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(proxy.url, application="pgcron producer"), rings=False)
    yield store
    store.close()


@pytest.fixture
def proxy(pg_url: str) -> Iterator[Proxy]:
    proxy = Proxy(pg_url)
    yield proxy
    proxy.close()


@pytest.mark.row(123)
@pytest.mark.parametrize("count", [1, 3])
def test_an_enqueue_whose_reply_is_lost_stores_each_job_once(
    direct: PostgresStore, proxy: Proxy, producer: PostgresStore, count: int
) -> None:
    proxy.cuts = 1
    committed: list[int] = []
    proxy.before_the_cut = lambda: committed.extend(j.id for j in direct.find(task="add"))

    ids = producer.enqueue([NewJob("add")] * count)

    assert sorted(committed) == ids, "the first try had not been committed: the test has tested nothing"
    assert sorted(j.id for j in direct.find(task="add")) == ids


@pytest.mark.row(123)
@pytest.mark.parametrize("ended", [1, 2])
def test_an_enqueue_whose_reply_is_lost_stores_no_ended_job_again(
    direct: PostgresStore, proxy: Proxy, producer: PostgresStore, ended: int
) -> None:
    proxy.cuts = 1
    ran: list[int] = []

    def run_some() -> None:
        jobs = direct.claim(A, CLAIM, ["*"], TASKS, ended)
        ran.extend(direct.settle([Outcome(j.id, CLAIM, "done") for j in jobs]))

    proxy.before_the_cut = run_some

    ids = producer.enqueue([NewJob("add")] * 2)

    assert len(ran) == ended
    found = sorted((j.id, j.state) for j in direct.find(task="add"))
    assert found == [(i, "done" if i in ran else "queued") for i in ids]


# Schedules


def hourly(**options: Any) -> str:
    return Schedule("s", "add", Every("1h"), **options).dumps()


def register_new_code(store: Any) -> None:
    """Register a worker whose code declares `s`, which was added at run time, and a new definition of `t`."""
    store.declare("shop", "new", {"s": hourly(args='{"x": 2}'), "t": hourly(args='{"x": 2}')})
    store.register(WorkerCard(B, "box", 7, ("*",), 1, "threads", "1", "new"))


def prepared(arena: Arena) -> Any:
    """Return a store where `s` was added at run time, `t` is declared by live code, and a newer worker starts."""
    store = arena.setup
    store.put_schedule("s", "shop", hourly(args='{"x": 1}'), replace=False)
    store.declare("shop", "old", {"t": hourly(args='{"x": 1}')})
    store.register(WorkerCard(A, "box", 7, ("*",), 1, "threads", "1", "old"))
    store.reconcile()
    store.plan(ticks.decide)
    register_new_code(store)
    return store


@pytest.mark.parametrize("is_first", [True, False])
def test_removing_and_declaring_a_schedule_at_once_end_with_the_declared_one(
    arena: Arena, is_first: bool
) -> None:
    """In both orders the declared one is in force in the end, and there is no deadlock."""
    store = prepared(arena)

    def remove(store: Any) -> Any:
        return store.remove_schedule("s")

    def reconcile(store: Any) -> Any:
        return [(change.name, change.what) for change in store.reconcile()]

    verbs = [remove, reconcile] if is_first else [reconcile, remove]
    one, other, waited = arena.run(*verbs)

    assert waited
    changes = [("t", "changed")] if is_first else [("s", "taken"), ("t", "changed")]
    assert (one, other) == (("removed", changes) if is_first else (changes, "removed"))
    store.plan(ticks.decide)
    assert {view.name: view.origin for view in store.schedules()} == {"s": "code", "t": "code"}
    assert [job.args for job in store.find()] == ['{"x": 2}'] * 2
    assert store.reconcile() == []


IN_ORDER = {
    "planner": "select from pgcron.planner for update nowait",
    "schedule": "select from pgcron.schedules for update nowait",
    "job": "select from pgcron.jobs for update nowait",
}
TAKERS: dict[str, Callable[[Any], Any]] = {
    "pause": lambda s: s.pause_schedule("t"),
    "reconcile": lambda s: s.reconcile(),
    "remove": lambda s: s.remove_schedule("s"),
}


@pytest.mark.parametrize(
    ("verb", "waits_for"),
    [("pause", "schedule"), ("reconcile", "schedule"), ("reconcile", "planner"), ("remove", "planner")],
)
def test_planner_schedule_and_jobs_are_locked_in_that_order(arena: Arena, verb: str, waits_for: str) -> None:
    """Otherwise one could hold the jobs and wait for the schedule while another does the reverse."""
    prepared(arena)
    with psycopg.connect(arena.setup.address.conninfo) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute(IN_ORDER[waits_for])

        waiting = pool.submit(TAKERS[verb], arena.second)
        eventually(lambda: arena.waits("second"))

        # Nothing after it is locked.
        for what in list(IN_ORDER)[list(IN_ORDER).index(waits_for) :]:
            holder.execute(IN_ORDER[what])
        holder.commit()
        _answer(waiting)


def test_schedules_are_locked_in_the_order_of_their_names(arena: Arena) -> None:
    """As `admit` does: otherwise two transactions could each hold one of two schedules and wait for the other."""
    store = arena.setup
    store.declare("shop", "old", {"retired": hourly(), "t": hourly(args='{"x": 1}')})
    store.register(WorkerCard(A, "box", 7, ("*",), 1, "threads", "1", "old"))
    store.reconcile()
    register_new_code(store)
    store.forget(A)
    query = "select from pgcron.schedules where name = %s for update nowait"
    with psycopg.connect(arena.setup.address.conninfo) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute(query, ["retired"])

        waiting = pool.submit(TAKERS["reconcile"], arena.second)
        eventually(lambda: arena.waits("second"))

        holder.execute(query, ["t"])
        holder.commit()
        changes = [(change.name, change.what) for change in _answer(waiting)]
    assert changes == [("s", "new"), ("t", "changed"), ("retired", "retired")]


@pytest.mark.parametrize("is_known", [True, False], ids=["cancelled", "deleted"])
def test_a_run_whose_end_is_recorded_twice_at_once_is_counted_once(arena: Arena, is_known: bool) -> None:
    store = arena.setup
    definition = Schedule("s", "add", Every("20s", name="s"), max_runs=5, ping="https://example.org/p").dumps()
    store.put_schedule("s", "shop", definition, replace=False)
    store.plan(ticks.decide, "s")
    runs = store.schedules("s")[0].runs
    job_id = store.ticks("s")[0].job_id
    assert job_id is not None
    # As if a worker or an operator's command died before it recorded the end with the tick.
    with psycopg.connect(store.address.conninfo, autocommit=True) as conn:
        conn.execute(
            """
            create constraint trigger gate after update on pgcron.ticks
                deferrable initially deferred for each row execute function public.test_gate()
            """
        )
        conn.execute(
            """
            with gone as (delete from pgcron.jobs where id = %s returning *)
            insert into pgcron.history (id, task, queue, priority, state, args, headers, tags, execute_after, attempt,
                                        max_attempts, crashes, max_crashes, errors, created_at, finished_at)
            select id, task, queue, priority, 'cancelled', args, headers, tags, execute_after, attempt, max_attempts,
                   crashes, max_crashes, errors, created_at, pgcron.clock()
            from gone
            where %s
            """,
            [job_id, is_known],
        )

    first, second, waited = arena.run(lambda s: s.close_ticks([job_id]), lambda s: s.close_ticks([job_id]))

    assert waited
    assert [closing.job_id for closing in first] == [job_id]
    assert second == []
    assert store.schedules("s")[0].runs == runs - 1


# Limits that an operator has set for the role


@pytest.mark.row(66)
@pytest.mark.row(73)
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_the_limits_of_the_role_do_not_apply(pg_url: str, isolation: str) -> None:
    """Neither a strict default isolation level nor a short default timeout applies to our statements."""
    options = f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')} -c statement_timeout=1s"
    where = parse_url(conninfo.make_conninfo(pg_url, options=options), application="pgcron limited")
    store = PostgresStore(where)
    store.enqueue([NewJob("add")] * 200)

    query: LiteralString = """
        select current_setting('transaction_isolation') as isolation, current_setting('statement_timeout') as timeout
    """

    def work(n: int) -> int:
        claim = uuid.uuid4()
        jobs = store.claim(uuid.UUID(int=n + 1), claim, ["*"], TASKS, 9)
        return len(store.settle([Outcome(j.id, claim, "done") for j in jobs]))

    with store.pool.take() as connection:
        assert [tuple(row) for row in connection.rows(query)] == [("read committed", "30s")]
    with store.pool.take() as connection, connection.transaction() as conn:
        row = conn.execute(query).fetchone()
        assert row is not None
        assert tuple(row) == ("read committed", "30s")
    with ThreadPoolExecutor(4) as pool:
        ended = sum(pool.map(work, range(40)))
    assert ended == 200
    store.close()
