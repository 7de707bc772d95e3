"""The worker: claims jobs into free slots, writes down what became of them, and looks after the dead.

It is a machine: `step()` does what is due and returns how many seconds it may sleep. It never sleeps itself, so a
test turns it by hand. Everything that waits for the database waits here, and in the heart.
"""

from __future__ import annotations

import logging
import math
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from .chores import Chores
from .clock import Clock, Spread, monotonic
from .errors import DatabaseRefused, DatabaseUnavailable, LoginRefused, PgCronError, SchemaMismatch
from .execute import Ended
from .haul import Haul
from .job import Job, WorkerCard, hand_back
from .ledger import Ledger
from .pace import Pace
from .ping import Pings
from .quarantine import Quarantine
from .reaper import Reaper
from .report import Reporter
from .scheduler import Scheduler
from .slots import Slots

if TYPE_CHECKING:
    from .app import PgCron, Store

logger = logging.getLogger(__name__)

# A producer does not ring again within 25 ms; who was woken looks once more after that.
ATTENTIVE_SECONDS = 0.03
# Outcomes are written when nothing waits any more, or when half of what is held has ended, or after this.
WRITE_BEHIND_SECONDS = 0.02
# So many jobs that have ended at once come from one claim of a series.
SERIES = 100
# What is held is planned to begin within 50 ms.
STALE_SECONDS = 0.25
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
DEAF_POLL_SECONDS = 2.0


class Bell(Protocol):
    """The doorbell as the worker hears it: PostgreSQL's listener or the memory store's."""

    @property
    def is_live(self) -> bool: ...

    @property
    def busy_seconds(self) -> float: ...

    def cut(self) -> None: ...

    def fileno(self) -> int | None: ...

    def step(self) -> tuple[bool, float]: ...

    def rest(self, seconds: float) -> None: ...

    def close(self) -> None: ...


class Worker:
    """Runs the jobs of some queues in a number of slots."""

    def __init__(
        self,
        app: PgCron,
        store: Store,
        card: WorkerCard,
        *,
        bell: Bell | None = None,
        tell: Callable[[], None] = lambda: None,
        takes_jobs: bool = True,
        plans_ticks: bool = True,
        slots: Callable[..., Slots] = Slots,
        clock: Clock = monotonic,
        spread: Spread = random.uniform,
        pings: Pings | None = None,
    ) -> None:
        self.app = app
        self.store = store
        self.card = card
        self.bell = bell
        self._clock = clock
        self._spread = spread
        self.stopping = False
        lease = app.settings.lease.total_seconds()
        self.slots = slots(app, card.slots, tell, lambda: self.stopping, patience=lease / 2, clock=clock)
        self.running: dict[int, Job] = {}
        self.report = Reporter(app.events)
        self.turned_at = clock()
        # Logins refused one after the other, since the last turn that went well.
        self.refused_logins = 0
        self.scheduler = Scheduler(app, store, plans=plans_ticks, clock=clock, pings=pings)
        self._tasks = list(app.tasks) if takes_jobs else []
        self._pace = Pace(card.slots)
        self._reaper = Reaper(store, lease, clock)
        self._quarantine = Quarantine(self._reaper.interval, clock)
        self._ledger = Ledger(store)
        self._chores = Chores(app, store, card.queues, clock, spread)
        self._unreturned: list[Job] = []
        self._haul: Haul | None = None
        self._doubtful: list[uuid.UUID] = []
        # Was the last claim as large as there was room for? Then the end of a job calls for the next.
        self._hungry = True
        # When to claim, when to look whether there is something to claim, when to look at other workers' beats.
        self._look_at = 0.0
        self._poll_at = 0.0
        self._reap_at = 0.0
        self._pause = FIRST_PAUSE

    @property
    def id(self) -> uuid.UUID:
        return self.card.id

    @property
    def _mine(self) -> tuple[Sequence[str], Sequence[str]]:
        """What this worker may take: jobs of these queues and these tasks."""
        return self.card.queues, self._tasks

    @property
    def poll_seconds(self) -> float:
        """How long to sleep at most: the time that a lost doorbell may cost."""
        poll = self.app.settings.poll.total_seconds()
        if self.bell is not None and not self.bell.is_live:
            poll = min(poll, DEAF_POLL_SECONDS)
        # Jittered, so that many workers do not look at the same moment.
        return poll * self._spread(0.8, 1.0)

    def step(self) -> float:
        """Do what is due; returns how many seconds nothing will be."""
        self.turned_at = self._clock()
        try:
            wait = self._turn()
        except DatabaseUnavailable as error:
            self.refused_logins += isinstance(error, LoginRefused)
            return self._endure(f"the database is not available: {error}")
        except SchemaMismatch as error:
            return self._endure(f"the schema does not fit this version, not claiming: {error}")
        if not self.stopping:
            self._recovered()
        return wait

    @property
    def is_well(self) -> bool:
        """Did the last turn go without trouble?"""
        return self._pause == FIRST_PAUSE

    def stop(self) -> None:
        """Claim nothing more, and hand back what has not begun."""
        self.stopping = True

    def is_idle(self) -> bool:
        """Nothing runs and nothing is left to be written."""
        return not (
            self.running or self.slots.busy or self.slots.ended or self._haul is not None or not self._ledger.is_empty
        )

    def drained(self) -> bool:
        """Is there nothing left that is due? Asks the database."""
        if not self.is_idle() or self._doubtful:
            return False
        self._quarantine.look_again()
        self.store.start_over()
        return not self._claim_now() and self.is_idle()

    def look_soon(self) -> None:
        """There may be something to claim."""
        self._look_at = 0.0

    def look_around_soon(self) -> None:
        """There may be something that no bell tells of: ticks to be decided, or a worker that has died."""
        self._reap_at = 0.0

    def become(self, card: WorkerCard) -> None:
        """Go on under a new identity: the old one was declared dead, and what it held may be others' now."""
        self.store.register(card, instead_of=self.id)
        self.card = card

    def release(self, delay: float = 1.0) -> list[Job]:
        """Hand back everything that is still running, for others to take when this process has surely ended."""
        self.stop()
        self._take_in()
        self._settle()
        left = list(self.running.values())
        settled = self.store.settle([hand_back(job, delay) for job in left])
        for job in left:
            del self.running[job.id]
            if job.id in settled:
                self.report.released(job)
        return left

    # One turn

    def _turn(self) -> float:
        if self.stopping:
            self._take_in()
            self._settle()
            self._return_unbegun()
            return self.poll_seconds
        # The bell first: a socket that has something to say ends the sleep at once until somebody has listened.
        rung, bell_wait = self.bell.step() if self.bell is not None else (False, self.poll_seconds)
        swings = self._is_in_full_swing() and self._exchange()
        if not swings:
            self._take_in()
            self._settle()
        self._return_stale()
        self._chores.check_schema()
        now = self._clock()
        if not swings and (rung or now >= self._look_at):
            self._claim_now()
        if rung:
            # Look once more when the producers may have rung again.
            self._look_at = min(self._look_at, now + ATTENTIVE_SECONDS)
        if now >= min(self._poll_at, self._reap_at):
            self._look_around()
        if self._clock() >= self.scheduler.due_at and self.scheduler.step():
            # Mostly they are ahead of time, and there is nothing to claim yet.
            self._look_at = min(self._look_at, self._clock() + self.scheduler.first_in)
            self.store.ring()
        self._chores.prune()
        soonest = min(self._look_at, self._poll_at, self._reap_at, self._chores.prune_at, self.scheduler.due_at)
        wait = min(bell_wait, soonest - self._clock())
        if self._haul is not None:
            return 0.0
        if self.slots.waiting:
            # What ended beside it is written soon, though the slots say nothing before they have done their share.
            wait = min(wait, WRITE_BEHIND_SECONDS)
        return max(0.0, wait)

    def _is_in_full_swing(self) -> bool:
        """Are short jobs taken by the hundred, with no suspect's turn and nothing left over from trouble?"""
        if not (self._hungry and self.is_well and self._quarantine.is_others_turn):
            return False
        if self._doubtful or not self._ledger.is_empty:
            return False
        return len(self.slots.ended) >= SERIES if self._haul is None else self._haul.is_full

    def _exchange(self) -> bool:
        """Write what ended and claim what comes next, both at once; meanwhile take in what was claimed before.

        False if there is no room for more.
        """
        limit = min(self._room(), self.slots.enough)
        if limit == 0:
            return False
        self._ledger.add(self._collect())
        claim, asked_at = uuid.uuid4(), self._clock()
        self._look_at, self._poll_at = math.inf, asked_at + self.poll_seconds
        # Until the answer is there.
        self._doubtful.append(claim)
        try:
            with self.store.exchange(self._ledger.outcomes, self.id, claim, *self._mine, limit) as exchange:
                if self._haul is not None and self._haul.is_plain:
                    self._take_in()
        except DatabaseRefused:
            # An outcome that cannot be stored; `_settle` finds out which. What was claimed is found by its token.
            self.look_soon()
            return True
        self._doubtful.remove(claim)
        written = self._ledger.close(exchange.settled)
        self._take_in()
        self._haul = Haul(claim, asked_at, limit, exchange, written)
        return True

    def _take_in(self) -> None:
        """Say what the last exchange has written, and begin what it has claimed."""
        haul, self._haul = self._haul, None
        if haul is None:
            return
        self._written(haul.written)
        if self.stopping:
            self.running.update((job.id, job) for job in haul.jobs)
            self._unreturned += haul.jobs
        else:
            with self._doubting(haul.claim):
                jobs, turned_away = self.scheduler.admit(haul.jobs)
            self._claimed(jobs, turned_away, haul.asked_at, haul.limit)

    def _claim_now(self) -> bool:
        """Fill the slots, and hold a few jobs more. True if there was something to take, or to wait for quietly."""
        self._adopt()
        room = self._room()
        self._hungry = True
        self._look_at, self._poll_at = math.inf, self._clock() + self.poll_seconds
        if room == 0 or self._quarantine.is_occupied or self._attends_to_suspects():
            return True
        asked_at = self._clock()
        jobs, turned_away = self._ask(lambda claim: self.store.claim(self.id, claim, *self._mine, room))
        self._claimed(jobs, turned_away, asked_at, room)
        return bool(jobs or turned_away)

    def _claimed(self, jobs: Sequence[Job], turned_away: Sequence[Ended], asked_at: float, limit: int) -> None:
        """So much came of a claim of up to `limit` jobs."""
        self._begin(jobs, asked_at)
        if turned_away:
            self._turn_away(turned_away)
        elif len(jobs) < limit:
            self._nothing_more(is_turn_over=not jobs)

    def _room(self) -> int:
        """How many jobs to claim now. While there is work for the slots, none before half of what may be held."""
        ahead = self._pace.ahead
        held = self.slots.busy + (self._haul.count if self._haul is not None else 0)
        free = max(0, self.slots.count + ahead - held)
        self.slots.enough = max(1, (self.slots.count + ahead) // 2)
        return free if ahead == 0 or free >= self.slots.enough else 0

    def _ask(self, ask: Callable[[uuid.UUID], Sequence[Job]]) -> tuple[list[Job], list[Ended]]:
        """What a claim under a fresh token brings: the jobs that may begin, and what becomes of the others."""
        claim = uuid.uuid4()
        with self._doubting(claim):
            return self.scheduler.admit(ask(claim))

    @contextmanager
    def _doubting(self, claim: uuid.UUID) -> Iterator[None]:
        """A claim may have been committed and only its reply lost; the token finds it again."""
        try:
            yield
        except DatabaseUnavailable:
            self._doubtful.append(claim)
            raise

    def _attends_to_suspects(self) -> bool:
        """Is this the moment of a suspect, which runs with no neighbours, or a silence before it?"""
        step = self._quarantine.step(
            is_busy=bool(self.running),
            is_suspect_due=lambda: self.store.suspects_due(*self._mine),
        )
        if step == "take":
            was_busy, asked_at = bool(self.running), self._clock()
            suspect, turned_away = self._ask(self._suspect)
            self._quarantine.took(bool(suspect), is_busy=was_busy)
            self._begin(suspect, asked_at)
            self._turn_away(turned_away)
        elif step == "wait":
            self._look_at = self._quarantine.quiet_until
        return step == "wait" or self._quarantine.is_occupied

    def _suspect(self, claim: uuid.UUID) -> list[Job]:
        suspect = self.store.claim_suspect(self.id, claim, *self._mine)
        return [] if suspect is None else [suspect]

    def _turn_away(self, ended: Sequence[Ended]) -> None:
        """Jobs of ticks that may not begin, now or ever. There may be others behind them."""
        if ended:
            self._ledger.add(ended)
            self.look_soon()
            self._settle()

    def _begin(self, jobs: Sequence[Job], asked_at: float) -> None:
        self._pace.weigh([len(job.args) for job in jobs])
        # Not since the reply: a process frozen before it reads that has jobs that are others' by now.
        self.running.update((job.id, job) for job in jobs)
        self.slots.put(*jobs, since=asked_at)

    def _runs(self, job: Job) -> bool:
        """Is it this claim of the job that runs here? After a freeze we may claim what we are still running."""
        running = self.running.get(job.id)
        return running is not None and running.claim == job.claim

    def _nothing_more(self, *, is_turn_over: bool) -> None:
        """The table has no more for us now: find out when it will."""
        self._hungry = False
        if self._quarantine.may_have_more:
            if is_turn_over:
                # Nobody else wants the turn that the others have after a suspect.
                self._quarantine.look_again()
                return self.look_soon()
            self._look_at = self._quarantine.next_try
        due = self.store.next_due(*self._mine)
        now = self._clock()
        self._look_at = min(self._look_at, math.inf if due is None else now + due)
        self._chores.complain()

    def _adopt(self) -> None:
        """Take in what an earlier claim got whose reply was lost."""
        while self._doubtful:
            asked_at = self._clock()
            held = self.store.held(self.id, self._doubtful[-1])
            jobs, turned_away = self.scheduler.admit([job for job in held if not self._runs(job)])
            self._begin(jobs, asked_at)
            self._doubtful.pop()
            self._turn_away(turned_away)

    def _settle(self) -> None:
        """Write down what ended, then say so."""
        self._written(self._ledger.write(self._collect()))

    def _collect(self) -> list[Ended]:
        """What has ended, and what it says about what comes next."""
        ended = self.slots.collect()
        self._pace.learn([each.seconds for each in ended], [len(each.outcome.result or "") for each in ended])
        return ended

    def _written(self, written: Sequence[tuple[Ended, bool]]) -> None:
        """This was written, and was ours or not."""
        if not written:
            return
        for each, was_ours in written:
            if self._runs(each.job):
                del self.running[each.job.id]
            if each.outcome.delay is not None:
                # To run again: it may be due before we would have looked.
                self._look_at = min(self._look_at, self._clock() + each.outcome.delay)
            self.report.ended(each, was_ours=was_ours)
        if not self.running:
            self._quarantine.ended()
        if self._hungry:
            self.look_soon()
        if self.scheduler.ended([each.job for each, ours in written if ours and each.outcome.state != "queued"]):
            self.look_soon()

    def _return_stale(self) -> None:
        """Hand back what is held when nothing of it has begun for a while.

        So it is never in the way of a job of a higher priority, of an idle worker, or of an operator's pause.
        """
        waited = self.slots.waited(self._clock())
        if waited > STALE_SECONDS or self.slots.has_late or self._unreturned:
            self._pace.slow_down(waited)
            self._return_unbegun()
            self.look_soon()

    def _return_unbegun(self) -> None:
        self._unreturned += self.slots.take_back()
        if self._unreturned:
            settled = self.store.settle([hand_back(job) for job in self._unreturned])
            back, self._unreturned = self._unreturned, []
            for job in back:
                if self._runs(job):
                    del self.running[job.id]
                if job.id in settled:
                    self.report.released(job)
            self.store.ring()

    def _look_around(self) -> None:
        """Find what no bell has told of, and who is dead. All that an idle worker asks the database, in one go."""
        look = self.store.look(*self._mine)
        now = self._clock()
        self._poll_at = now + self.poll_seconds
        self._reap_at = now + self._reaper.interval * self._spread(0.8, 1.0)
        if look.due_in is not None:
            self._look_at = min(self._look_at, now + look.due_in)
        self.scheduler.heed(look)
        rescued = self._reaper.step(self.id, look.pulses)
        for job in rescued:
            self.report.rescued(job)
        if rescued:
            self._quarantine.look_again()
            self.look_soon()
            self.store.ring()

    # Trouble

    def _endure(self, trouble: str) -> float:
        """Wait for better times: a little longer each turn, never more than five seconds."""
        if self._pause == FIRST_PAUSE:
            logger.warning("%s; trying again", trouble)
        wait = self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        # The next turn begins with a question to the database; one that had none to ask would take it for well.
        self._chores.check_at = 0.0
        return wait

    def _recovered(self) -> None:
        if self._pause != FIRST_PAUSE:
            logger.info("the database is back")
            self._pause, self.refused_logins = FIRST_PAUSE, 0
            self.look_soon()


def check_slots(count: object) -> int:
    """A number of slots, or a sentence about it."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 10_000:
        raise PgCronError(f"slots={count!r}: expected a whole number from 1 to 10000")
    return count
