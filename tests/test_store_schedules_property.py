"""Property test of schedules: each tick is decided once, and its outcome follows its policy.

Several schedulers use one store and one simulated clock. They start and stop, decide on rows that they read long ago,
die between deciding and running, and are all absent for a while. The database's clock jumps, and new code with the
same schedule starts. The result is compared with the list of ticks that the timing yields.
"""

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from clock import START, Clock
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgcron_lite.job import Job, Outcome, WorkerCard
from pgcron_lite.schedules import ticks
from pgcron_lite.schedules.schedule import TICK, CatchUp, Overlap, Schedule, timing_of
from pgcron_lite.schedules.ticks import LATE, Entry, Move, TickView

SECOND = timedelta(seconds=1)
ME = uuid.UUID(int=1)

TIMES = ["*/5 * * * *", "* * * * * */50", "every 70s", "13 * * * *"]
EVENTS = st.one_of(
    st.tuples(st.just("pass"), st.integers(1, 120)),
    st.tuples(st.just("pass"), st.integers(60, 1200)),
    st.tuples(st.just("step back"), st.integers(1, 600)),
    st.tuples(st.just("plan"), st.just(0)),
    st.tuples(st.just("plan by what was read before"), st.just(0)),
    st.tuples(st.just("work"), st.integers(1, 6)),
    st.tuples(st.just("deploy"), st.just(0)),
)


class World:
    """A store with one schedule, and the events that happen to it."""

    def __init__(self, store: Any, clock: Clock, schedule: Schedule) -> None:
        self.store = store
        self.clock = clock
        self.schedule = schedule
        self.name = schedule.name
        self.begun_at = self.latest = store.now()
        self.ran: dict[datetime, datetime] = {}
        self.read: list[Entry] = []
        # "deploy", or the tick of a run at a start. A list in order of events, because the clock may step back.
        self.starts: list[str | datetime] = []
        self.worker: uuid.UUID | None = None
        self.deploy()

    def do(self, what: str, amount: int) -> None:
        self.latest = max(self.latest, self.clock.now)
        if what == "pass":
            self.clock.advance(amount)
        elif what == "step back":
            self.clock.advance(-amount)
        elif what == "plan":
            self.plan()
        elif what == "work":
            self.work(amount)
        elif what == "deploy":
            self.deploy()
        else:
            self.plan_stale()

    def deploy(self) -> None:
        """Start a worker with new code and stop the old one. Nothing is planned yet."""
        generation, worker = f"{self.name}, deploy {len(self.starts)}", uuid.uuid4()
        self.store.declare("shop", generation, {self.name: self.schedule.dumps()})
        self.store.register(WorkerCard(worker, "box", 7, ("*",), 3, "threads", "1", generation))
        if self.worker is not None:
            self.store.forget(self.worker)
        self.worker = worker
        self.starts.append("deploy")
        self.store.reconcile()

    def leave(self) -> None:
        assert self.worker is not None
        self.store.forget(self.worker)

    def plan(self) -> None:
        def decide(entry: Entry, now: datetime) -> Move:
            self.read = [*self.read[-3:], entry]
            return ticks.decide(entry, now)

        self.store.plan(decide)

    def plan_stale(self) -> None:
        """Decide on an old copy of the row, like a scheduler that was frozen after it had read it."""
        if self.read:
            stale = self.read[0]
            self.store.plan(lambda entry, now: ticks.decide(stale, now))

    def work(self, limit: int) -> None:
        """Claim some jobs and run those that are admitted."""
        held: list[Job] = self.store.claim(ME, uuid.uuid4(), ["*"], ["add"], limit)
        if not held:
            return
        answers = self.store.admit([job.id for job in held])
        # Jobs that have to wait are returned first, before any run ends.
        for job in sorted(held, key=lambda job: answers[job.id].wait is None):
            answer = answers[job.id]
            assert job.claim is not None
            if answer.wait is not None:
                outcome = Outcome(job.id, job.claim, "queued", delay=answer.wait, gives_back=True)
            else:
                state: Any = "cancelled" if answer.refusal else "done"
                outcome = Outcome(job.id, job.claim, state)
                if state == "done":
                    tick = datetime.fromisoformat(job.headers[TICK])
                    assert tick not in self.ran, "a tick ran twice"
                    assert tick not in self.starts, "a start ran twice"
                    if answer.kind == "start":
                        self.starts.append(tick)
                    else:
                        self.ran[tick] = self.clock.now
            self.store.settle([outcome])
            self.store.close_ticks([job.id])
            self.store.release([job.id])

    def end(self) -> None:
        """Plan and run everything that is due, until no tick is open."""
        self.clock.advance((self.latest - self.clock.now).total_seconds())
        for _ in range(500):
            self.plan()
            self.work(50)
            views = self.store.ticks(self.name, limit=300)
            # This includes ticks that have come due meanwhile: they may replace ticks that were missed before.
            if not [view for view in views if not view.outcome and min(view.tick, view.due_at) <= self.clock.now]:
                return
            self.clock.advance(1)
        pytest.fail("it does not come to an end")


def check(world: World) -> None:
    views = {view.tick: view for view in world.store.ticks(world.name, limit=100_000)}
    ended = {tick: view.finished_at for tick, view in views.items() if view.outcome == "done" and view.finished_at}
    check_starts(world, [views.pop(tick) for tick in sorted(views) if views[tick].kind == "start"])
    last = world.store.schedules(world.name)[0].last_planned
    expected = list(world.schedule.timing.between(world.begun_at, last))
    summed_up = [tick for tick, view in views.items() if "so were all before it" in str(view.reason)]
    rows = [tick for tick in expected if tick in views]
    assert sorted(views) == rows
    assert all(any(tick < other for other in summed_up) for tick in expected if tick not in views)
    past = [tick for tick in expected if tick in views and views[tick].outcome is not None]
    assert {tick for tick in past if views[tick].outcome == "done"} == set(world.ran)
    assert all(views[tick].reason for tick in past if views[tick].outcome == "skipped")
    assert all(views[tick].outcome in ("done", "skipped") for tick in past)
    overlapped = {tick for tick in past if str(views[tick].reason).startswith("overlap")}
    assert not overlapped or world.schedule.overlap == "skip"
    if world.schedule.catch_up == "all" and not summed_up:
        assert set(past) == set(world.ran) | overlapped
    if world.schedule.catch_up == "latest" and past:
        # The last of several missed ticks replaces the others.
        assert past[-1] in {*world.ran, *overlapped}
    if world.schedule.catch_up == "skip":
        for tick, began in world.ran.items():
            ready = [world.schedule.due_at(tick)]
            if world.schedule.overlap == "queue":
                # A run that waited for another run is not missed.
                ready += [end for other, end in ended.items() if other != tick and end <= began]
            assert began - max(ready) <= LATE


def check_starts(world: World, views: list[TickView]) -> None:
    """Check that each deploy is followed by a run, with no more runs than deploys; or by none without run_on_start."""
    deploys = world.starts.count("deploy")
    if not world.schedule.run_on_start:
        assert (world.starts, views) == (["deploy"] * deploys, [])
        return
    assert world.starts[-1] != "deploy"
    ran = [tick for tick in world.starts if tick != "deploy"]
    assert len(ran) <= deploys
    assert {(view.tick, view.outcome) for view in views} == {(tick, "done") for tick in ran}


@pytest.mark.row(90)
@pytest.mark.parametrize("catch_up", ["all", "latest", "skip"])
@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
def test_the_outcome_of_each_tick_follows_its_policy(
    store: Any, clock: Clock, catch_up: CatchUp, overlap: Overlap
) -> None:
    is_real = type(store).__name__ != "MemoryStore"
    worlds = iter(range(10_000))

    @settings(
        deadline=None, max_examples=8 if is_real else 60, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate],
    )  # fmt: skip
    @given(
        when=st.sampled_from(TIMES), jitter=st.sampled_from([0, 17]), run_on_start=st.booleans(),
        events=st.lists(EVENTS, min_size=5, max_size=25),
    )
    def live(when: str, jitter: int, run_on_start: bool, events: list[tuple[str, int]]) -> None:
        name = f"world {next(worlds)}"
        clock.advance((START - clock.now).total_seconds())
        timing = timing_of(when, "UTC", name=name)
        world = World(
            store, clock,
            Schedule(
                name, "add", timing, catch_up=catch_up, overlap=overlap, jitter=jitter * SECOND,
                run_on_start=run_on_start,
            ),
        )
        try:
            for event in events:
                world.do(*event)
            world.end()
            check(world)
        finally:
            world.leave()

    live()
