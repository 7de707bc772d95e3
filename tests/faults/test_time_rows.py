"""Rows 85-93, 101 and 102 of the fault catalogue: schedules kept by processes that are killed, frozen and deployed.

`PGCRON_CRON_SECONDS=600 pytest tests/faults/test_time_rows.py -k each_second` kills for ten minutes.
"""

import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from clock import START, Clock
from pgbouncer import pgbouncer
from support import eventually
from workers import QUICK, Queue, WorkerProcess, Workers

from pgcron_lite import PgCron
from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.job import Outcome, WorkerCard
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.schedules import schedule, ticks
from pgcron_lite.schedules.schedule import Schedule
from pgcron_lite.schedules.ticks import Entry, Move
from pgcron_lite.worker.execute import Ended
from pgcron_lite.worker.scheduler import MAX_YIELDS, Scheduler

PROGRAM = Path(__file__).with_name("time_tasks.py")
SECONDS = float(os.environ.get("PGCRON_CRON_SECONDS", "15"))
PATIENCE = 40.0
SECOND = timedelta(seconds=1)

# None is left out, whatever happens, and none waits for another.
EACH_SECOND = {"when": "* * * * * *", "name": "each", "catch_up": "all", "overlap": "allow"}


def start(workers: Workers, *schedules: dict[str, Any], clock: float = 0, url: str | None = None) -> WorkerProcess:
    """A worker whose code declares these schedules."""
    said = {"FAULT_SCHEDULES": json.dumps(schedules or [EACH_SECOND]), "FAULT_CLOCK": str(clock)}
    return workers.start(program=PROGRAM, env={**QUICK, **said}, url=url, ready=False)


def ticks_of(queue: Queue, name: str = "each") -> list[Any]:
    """Those whose time has come, the oldest first."""
    return queue.rows(
        "select tick, outcome, reason, job_id, started_at, due_at from pgcron.ticks"
        " where schedule = %s and tick <= now() order by tick", name,
    )  # fmt: skip


def until_running(queue: Queue, count: int = 1, name: str = "each") -> None:
    eventually(lambda: len([t for t in ticks_of(queue, name) if t.outcome == "done"]) >= count, PATIENCE)


def assert_each_second_once(queue: Queue) -> list[Any]:
    """From the first tick on: no second is missing, and each has one job, which is done."""
    __tracebackhide__ = True
    last = queue.rows("select date_trunc('second', now()) as now")[0].now
    eventually(lambda: all(t.outcome for t in ticks_of(queue) if t.tick <= last), PATIENCE)
    seen = [t for t in ticks_of(queue) if t.tick <= last]
    span = int((last - seen[0].tick).total_seconds())
    assert [t.tick for t in seen] == [seen[0].tick + n * SECOND for n in range(span + 1)]
    assert Counter(t.outcome for t in seen) == {"done": len(seen)}
    jobs = queue.rows(
        """
        select headers ->> 'pgcron-tick' as tick, count(*) as times
        from pgcron.all_jobs
        where headers ->> 'pgcron-schedule' = 'each'
        group by 1
        having count(*) > 1
        """
    )
    assert jobs == []
    return seen


@pytest.fixture(params=["direct", "pgbouncer"])
def way_in(request: pytest.FixtureRequest, pg_url: str) -> Iterator[str]:
    """The URL that workers are given: the server's own, or that of PgBouncer in transaction mode."""
    if request.param == "direct":
        yield pg_url
        return
    with pgbouncer(pg_url) as bouncer:
        yield bouncer.url


@pytest.mark.row(85)
@pytest.mark.row(88)
@pytest.mark.timeout(SECONDS + 120)
def test_a_schedule_of_each_second_survives_a_death_each_second(queue: Queue, workers: Workers, way_in: str) -> None:
    crew = [start(workers, url=way_in) for _ in range(5)]
    until_running(queue)

    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        time.sleep(1)
        crew.pop(0).kill()
        crew.append(start(workers, url=way_in))

    assert len(assert_each_second_once(queue)) >= SECONDS


@pytest.mark.row(102)
def test_runs_that_wait_for_their_turn_survive_the_deaths_of_workers(queue: Queue, workers: Workers) -> None:
    turns = {**EACH_SECOND, "overlap": "queue"}
    crew = [start(workers, turns) for _ in range(3)]
    until_running(queue)

    for _ in range(8):
        time.sleep(1)
        crew.pop(0).kill()
        crew.append(start(workers, turns))

    seen = assert_each_second_once(queue)
    assert [t.tick for t in sorted(seen, key=lambda t: t.started_at)] == [t.tick for t in seen]


@pytest.mark.row(85)
def test_a_frozen_scheduler_is_in_nobodys_way(queue: Queue, workers: Workers) -> None:
    crew = [start(workers) for _ in range(2)]
    until_running(queue, 2)

    for worker in crew:
        worker.freeze()
        time.sleep(3)
        worker.thaw()

    assert_each_second_once(queue)


@pytest.mark.row(90)
@pytest.mark.parametrize("catch_up", ["all", "latest", "skip"])
def test_what_nobody_was_there_for_is_up_to_the_policy(
    queue: Queue, workers: Workers, catch_up: str, clock: Clock
) -> None:
    declared = {**EACH_SECOND, "catch_up": catch_up}
    worker = start(workers, declared)
    until_running(queue, 2)
    assert worker.stop() == 0
    # As if it had been a while ago; not so long that rows would be summed up.
    queue.rows(
        """
        begin;
        update pgcron.ticks set tick = tick - interval '150 s', due_at = due_at - interval '150 s';
        update pgcron.schedules set last_tick = last_tick - interval '150 s', plan_at = plan_at - interval '150 s';
        update pgcron.jobs set execute_after = execute_after - interval '150 s';
        commit
        """
    )
    stopped = queue.rows("select max(tick) as tick from pgcron.ticks where outcome = 'done'")[0].tick

    start(workers, declared)
    eventually(lambda: len([t for t in ticks_of(queue) if t.outcome == "done" and t.tick > stopped]) >= 3, PATIENCE)
    eventually(lambda: all(t.outcome for t in ticks_of(queue)[:-2]), PATIENCE)

    seen = ticks_of(queue)[:-2]
    assert [t.tick for t in seen] == [seen[0].tick + n * SECOND for n in range(len(seen))]
    missed = [t for t in seen if (t.tick > stopped and (t.started_at or t.tick) > t.tick + 5 * SECOND) or t.reason]
    ran = [t for t in missed if t.outcome == "done"]
    assert len(missed) > 60
    assert len(ran) == len(missed) if catch_up == "all" else len(ran) <= 1
    assert all(t.reason for t in missed if t.outcome == "skipped")


@pytest.mark.row(91)
def test_the_clocks_of_workers_do_not_matter(queue: Queue, workers: Workers) -> None:
    start(workers, clock=3600)
    start(workers, clock=-90)
    until_running(queue, 8)

    seen = assert_each_second_once(queue)

    assert max(t.started_at - t.due_at for t in seen) < 60 * SECOND


@pytest.mark.row(101)
def test_two_generations_side_by_side(queue: Queue, workers: Workers) -> None:
    before = start(workers, {**EACH_SECOND, "args": ["old"]}, {**EACH_SECOND, "name": "gone"})
    until_running(queue, 2)
    after = start(workers, {**EACH_SECOND, "args": ["new"]}, {**EACH_SECOND, "name": "fresh"})
    until_running(queue, 2, "fresh")

    # Both live. The newer says what is done each second, and what it does not know of is not ended.
    before.kill()
    start(workers, {**EACH_SECOND, "args": ["old"]}, {**EACH_SECOND, "name": "gone"})
    until_running(queue, len(ticks_of(queue)) + 3)

    words = [entry["what"] for entry in sorted(queue.entries(), key=lambda e: e["tick"]) if entry["what"]]
    assert words == sorted(words, reverse=True)
    assert set(words) == {"old", "new"}
    for worker in workers.all:
        if worker is not after and worker.is_alive:
            assert worker.stop() == 0
    eventually(lambda: queue.rows("select 1 from pgcron.schedules where name = 'gone' and retired_at is not null"))
    until_running(queue, len(ticks_of(queue)) + 2)
    assert not queue.rows("select id from pgcron.jobs where headers ->> 'pgcron-schedule' = 'gone'")
    assert_each_second_once(queue)


# Whoever writes a tick waits here, until the test lets go.
GATE = """
    create function public.test_gate() returns trigger language plpgsql as $$
    begin
        perform pg_advisory_xact_lock_shared(42);
        return new;
    end $$;
    create trigger gate before insert on pgcron.ticks for each row execute function public.test_gate()
"""
AT_THE_GATE = "select pid from pg_stat_activity where wait_event = 'advisory' and datname = current_database()"


@pytest.mark.row(85)
def test_a_worker_that_dies_before_it_has_planned_the_run_of_its_start_leaves_it_to_another(
    queue: Queue, workers: Workers
) -> None:
    warm = {"when": "@yearly", "name": "warm", "run_on_start": True}
    queue.rows(GATE)
    with psycopg.connect(queue.url, autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(42)")
        worker = start(workers, warm)
        planner = eventually(lambda: queue.rows(AT_THE_GATE), PATIENCE)[0].pid
        worker.kill()
        # What it has said to the server and not committed goes with it.
        queue.rows("select pg_terminate_backend(%s)", planner)
        eventually(lambda: not queue.rows(AT_THE_GATE), PATIENCE)

    # The code is in force, so it does not come to life with those that say the same.
    in_force = queue.rows("select generations from pgcron.planner")
    assert ticks_of(queue, "warm") == []
    crew = [start(workers, warm) for _ in range(3)]
    until_running(queue, 1, "warm")
    eventually(lambda: queue.rows("select 1 from pgcron.workers having count(*) = 3"), PATIENCE)
    for each in crew:
        assert each.stop() == 0

    assert queue.rows("select generations from pgcron.planner") == in_force
    assert [tick.outcome for tick in ticks_of(queue, "warm")] == ["done"]
    assert len(queue.entries()) == 1


# Schedulers turned by hand, each with connections of its own


class Crew:
    """Schedulers on one database, whose clock stands still until it is moved."""

    def __init__(self, url: str, count: int) -> None:
        self.app = PgCron("crew", url=url)
        self.stores = [PostgresStore(parse_url(url, application=f"scheduler {n}"), size=1) for n in range(count)]
        self.schedulers = [Scheduler(self.app, store) for store in self.stores]

    def close(self) -> None:
        for store in self.stores:
            store.close()


@pytest.fixture
def crew(pg_url: str, clock: Clock) -> Iterator[Crew]:
    clock.rule(pg_url)
    crew = Crew(pg_url, 10)
    yield crew
    crew.close()
    clock.release()


def put(store: PostgresStore, name: str, when: str, **options: Any) -> None:
    definition = Schedule(name, "add", schedule.timing_of(when, "UTC", name=name), **options).dumps()
    assert store.put_schedule(name, "crew", definition, replace=False) == "added"


@pytest.mark.row(86)
def test_ten_schedulers_at_once_make_one_job_for_each_tick(
    crew: Crew, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(30):
        put(crew.stores[0], f"s{n}", "* * * * * */5", catch_up="all")

    for _ in range(12):
        clock.advance(20)
        threads = [threading.Thread(target=scheduler.step) for scheduler in crew.schedulers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    store = crew.stores[0]
    for scheduler in crew.schedulers:
        scheduler.step()
    expected = [START + n * 5 * SECOND for n in range(1, 49)]
    for n in range(30):
        views = [view for view in reversed(store.ticks(f"s{n}", limit=1000)) if view.tick <= clock.now]
        assert [view.tick for view in views] == expected
        assert len({view.job_id for view in views}) == len(expected)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.row(86)
def test_ten_schedulers_at_once_make_one_run_for_each_start(crew: Crew, clock: Clock) -> None:
    store = crew.stores[0]
    warm = Schedule("warm", "add", schedule.timing_of("@yearly", "UTC", name="warm"), run_on_start=True).dumps()
    for deploy in range(5):
        clock.advance(60)
        store.declare("crew", f"deploy {deploy}", {"warm": warm})
        for _ in crew.schedulers:
            store.register(WorkerCard(uuid.uuid4(), "box", 7, ("*",), 1, "threads", "1", f"deploy {deploy}"))

        threads = [threading.Thread(target=scheduler.step) for scheduler in crew.schedulers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for scheduler in crew.schedulers:
            scheduler.step()

    runs = [view for view in reversed(store.ticks("warm")) if view.kind == "start"]
    assert [view.tick for view in runs] == [START + n * 60 * SECOND for n in range(1, 6)]
    assert len(store.find()) == 5 + 1


@pytest.mark.row(87)
def test_a_scheduler_that_freezes_between_deciding_and_writing_changes_nothing(crew: Crew, clock: Clock) -> None:
    stale, fresh = crew.stores[:2]
    put(stale, "s", "*/10 * * * *")
    entered, go_on, refusals = threading.Event(), threading.Event(), []

    def slowly(entry: Entry, now: datetime) -> Move:
        entered.set()
        go_on.wait(PATIENCE)
        return ticks.decide(entry, now)

    def plan_slowly() -> None:
        try:
            stale.plan(slowly)
        except DatabaseUnavailable as error:
            refusals.append(error)

    thread = threading.Thread(target=plan_slowly)
    thread.start()
    assert entered.wait(PATIENCE)
    assert fresh.plan(ticks.decide) is None

    # The server ends its transaction; the other decides, and what the stale one writes after that is nothing.
    eventually(lambda: fresh.plan(ticks.decide), PATIENCE)
    go_on.set()
    thread.join()

    assert len(refusals) == 1
    assert [view.tick for view in fresh.ticks("s")] == [START + timedelta(minutes=10)]
    assert len(fresh.find()) == 1


@pytest.mark.row(89)
def test_whoever_holds_the_lock_cannot_keep_schedules_from_being_kept(crew: Crew, pg_url: str) -> None:
    put(crew.stores[0], "s", "*/10 * * * *")
    scheduler = crew.schedulers[0]
    with psycopg.connect(pg_url) as stranger:
        stranger.execute("select pg_advisory_xact_lock(hashtextextended('pgcron planner', 7090))")

        turns = [scheduler.step() for _ in range(MAX_YIELDS + 1)]

    assert turns == [False] * MAX_YIELDS + [True]


@pytest.mark.row(102)
def test_two_runs_of_one_schedule_are_let_in_one_after_the_other(crew: Crew, clock: Clock, pg_url: str) -> None:
    store = crew.stores[0]
    put(store, "s", "* * * * * */10", catch_up="all", overlap="queue")
    crew.schedulers[0].step()
    clock.advance(20)
    first, second = store.claim(uuid.uuid4(), uuid.uuid4(), ["*"], ["add"], 2)

    with psycopg.connect(pg_url) as one, psycopg.connect(pg_url) as other:
        one.execute("select pgcron.admit(%s)", [[first.id]])
        other.execute("set lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("select pgcron.admit(%s)", [[second.id]])


@pytest.mark.row(104)
def test_a_schedule_that_was_edited_into_nonsense_breaks_alone(
    crew: Crew, clock: Clock, pg_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, scheduler, me = crew.stores[0], crew.schedulers[0], uuid.uuid4()
    for name in ("bad", "good"):
        put(store, name, "*/10 * * * *")
    scheduler.step()
    nonsense = '{"task": "add", "timing": "x", "overlap": 7, "start_within": "soon", "after_finish": "perhaps"}'
    with psycopg.connect(pg_url) as conn:
        conn.execute("update pgcron.schedules set definition = %s where name = 'bad'", [nonsense])
    clock.advance(600)

    held = store.claim(me, uuid.uuid4(), ["*"], ["add"], 9)
    let_in, rejected = scheduler.admit(held)
    assert (len(let_in), rejected) == (2, [])
    store.settle([Outcome(job.id, job.claim or me, "done") for job in let_in])
    for job in let_in:
        scheduler.written([Ended(job, Outcome(job.id, job.claim or me, "done"), 0.0)])
    clock.advance(20)
    scheduler.apply(store.look(["*"], ["add"]))
    scheduler.step()

    assert [view.outcome for view in store.ticks("good")] == [None, "done"]
    assert "was one edited by hand?" in caplog.text
    assert store.schedules("bad")[0].trouble is not None


@pytest.mark.row(92)
@pytest.mark.row(93)
@pytest.mark.parametrize("jump", [3600, -600], ids=["ahead", "back"])
def test_a_clock_of_the_database_that_jumps_doubles_no_tick(crew: Crew, clock: Clock, jump: int) -> None:
    store, scheduler = crew.stores[0], crew.schedulers[0]
    put(store, "s", "*/10 * * * *", catch_up="all")
    for _ in range(4):
        clock.advance(600)
        scheduler.step()

    clock.advance(jump)
    scheduler.step()
    for _ in range(12):
        clock.advance(600)
        scheduler.step()

    seen = [view.tick for view in reversed(store.ticks("s", limit=1000))]
    assert seen == [START + n * timedelta(minutes=10) for n in range(1, len(seen) + 1)]
    assert seen[-1] > clock.now
