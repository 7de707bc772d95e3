"""The worker: claims jobs into free slots, writes their outcomes, and rescues the jobs of dead workers."""

from __future__ import annotations

import logging
import math
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ..clock import Clock, Spread, monotonic
from ..contrib.pings import Pings
from ..errors import DatabaseRefused, DatabaseUnavailable, LoginRefused, PgCronError, SchemaMismatch
from ..job import Job, WorkerCard
from .claiming import UncertainClaims
from .execute import Ended
from .heartbeat import Reaper
from .maintenance import Maintenance
from .outcomes import MAX_REFUSED, Outcomes
from .pipeline import PipelineResult
from .prefetch import Prefetch
from .reporting import Reporter
from .scheduler import Scheduler
from .slots import Slots
from .suspects import Suspects

if TYPE_CHECKING:
    from ..app import PgCron
    from ..store import Store

logger = logging.getLogger(__name__)

# A producer does not ring again within 25 ms; who was woken looks once more after that.
RECHECK_SECONDS = 0.03
# Outcomes are written when nothing waits any more, or when half of what is held has ended, or after this.
WRITE_BEHIND_SECONDS = 0.02
# This many jobs that have ended at once mean that claims follow one another without a pause.
SERIES = 100
# What is held is planned to begin within 50 ms.
STALE_SECONDS = 0.25
# Between two attempts in an outage. A refused login is repeated at longer intervals: whoever counts them locks us out.
FIRST_PAUSE, MAX_PAUSE, MAX_PAUSE_REFUSED = 0.1, 1.0, 5.0
# The same refusal of the database is logged at most once in this time.
LOG_AGAIN_SECONDS = 60.0
NO_BELL_POLL_SECONDS = 2.0


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
        wake_loop: Callable[[], None] = lambda: None,
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
        self.slots = slots(app, card.slots, wake_loop, lambda: self.stopping, max_age=lease / 2, clock=clock)
        self.running: dict[int, Job] = {}
        self.report = Reporter(app.events)
        self.turned_at = clock()
        # Since the last turn that went well: logins that were refused, turns that a refused statement or a schema that
        # does not fit has ended, and the last reason.
        self.refused_logins = 0
        self.refusals = 0
        self.refusal = ""
        # When the database was back after the last trouble.
        self.healthy_since = 0.0
        self.scheduler = Scheduler(app, store, plans=plans_ticks, clock=clock, pings=pings)
        self._tasks = list(app.tasks) if takes_jobs else []
        self._prefetch = Prefetch(card.slots)
        self._reaper = Reaper(store, lease, clock)
        self._suspects = Suspects(self._reaper.interval, clock)
        self._outcomes = Outcomes(store, clock)
        self._maintenance = Maintenance(app, store, card.queues, clock, spread)
        self._unreturned: list[Job] = []
        self._pipelined: PipelineResult | None = None
        self._uncertain = UncertainClaims(clock)
        # Was the last claim as large as there was room for? Then the end of a job calls for the next.
        self._may_have_more = True
        # When to claim, when to look whether there is something to claim, when to look at other workers' beats.
        self._claim_at = 0.0
        self._poll_at = 0.0
        self._reap_at = 0.0
        self._pause = FIRST_PAUSE
        # The step under way, for messages about a refusal, and when each refusal was last logged.
        self._current_step = "starting"
        self._logged_at: dict[str, float] = {}

    @property
    def id(self) -> uuid.UUID:
        return self.card.id

    @property
    def _claimable(self) -> tuple[Sequence[str], Sequence[str]]:
        """What this worker may take: jobs of these queues and these tasks."""
        blocked = self._outcomes.blocked_tasks
        tasks = [task for task in self._tasks if task not in blocked] if blocked else self._tasks
        return self.card.queues, tasks

    @property
    def poll_seconds(self) -> float:
        """How long to sleep at most: the time that a lost doorbell may cost."""
        poll = self.app.settings.poll.total_seconds()
        if self.bell is not None and not self.bell.is_live:
            poll = min(poll, NO_BELL_POLL_SECONDS)
        # Jittered, so that many workers do not look at the same moment.
        return poll * self._spread(0.8, 1.0)

    def step(self) -> float:
        """Do everything that is due; return the seconds until the next deadline."""
        self.turned_at = self._clock()
        try:
            wait = self._turn()
        except DatabaseUnavailable as error:
            is_login = isinstance(error, LoginRefused)
            self.refused_logins += is_login
            return self._unavailable(f"the database is not available: {error}", is_login=is_login)
        except SchemaMismatch as error:
            return self._refused(f"the schema does not fit this version, not claiming: {error}", logging.WARNING)
        except DatabaseRefused as error:
            # Nothing that a row can hold ends a worker.
            return self._refused(f"the database refused a statement while {self._current_step}: {error}", logging.ERROR)
        if not self.stopping:
            self._recovered()
        return wait

    @property
    def is_healthy(self) -> bool:
        """True if the last turn met no trouble."""
        return self._pause == FIRST_PAUSE

    def stop(self) -> None:
        """Claim nothing more, and hand back what has not begun."""
        self.stopping = True

    def is_idle(self) -> bool:
        """Return True if nothing runs and nothing is left to be written."""
        return not (
            self._is_busy
            or self.slots.busy
            or self.slots.ended
            or self._pipelined is not None
            or not self._outcomes.is_empty
        )

    @property
    def _is_busy(self) -> bool:
        """True if a job runs here."""
        # A job whose outcome cannot be stored runs by the table alone. It is handed back at the end.
        refused = {(each.job.id, each.job.claim) for each in self._outcomes.refused}
        if not refused:
            return bool(self.running)
        return any((job.id, job.claim) not in refused for job in self.running.values())

    @property
    def unstorable(self) -> list[Job]:
        """The jobs that have ended and whose outcomes the database refuses."""
        return [each.job for each in self._outcomes.refused]

    @property
    def blocked_tasks(self) -> list[str]:
        """The tasks of which nothing is claimed, because the database refuses too many of their outcomes."""
        return sorted(self._outcomes.blocked_tasks)

    def drained(self) -> bool:
        """Return True if there is nothing due that this worker may claim. Asks the database."""
        if not self.is_idle() or self._uncertain:
            return False
        self._suspects.check_now()
        self.store.start_over()
        return not self._claim_now() and self.is_idle()

    def claim_soon(self) -> None:
        """Claim in the next turn."""
        self._claim_at = 0.0

    def poll_soon(self) -> None:
        """Look for ticks and dead workers in the next turn: neither rings the doorbell."""
        self._reap_at = 0.0

    def register_as(self, card: WorkerCard) -> None:
        """Continue under a new identity, because the old one was declared dead and its jobs may be others' now."""
        self.store.register(card, instead_of=self.id)
        self.card = card

    def release(self, delay: float = 1.0) -> list[Job]:
        """Hand back everything that is still running. Others may claim it after `delay` seconds."""
        self.stop()
        self._process_pipelined()
        # What is handed back runs again, so this is the last moment to store that it has run.
        self._outcomes.retry_soon()
        self._settle()
        # Also runs of a schedule that were turned away, and of which the database stores nothing.
        left = list({job.id: job for job in [*self.unstorable, *self.running.values()]}.values())
        unknown = [job for claim in self._uncertain for job in self._unknown_jobs(claim)]
        settled, failed = self._outcomes.hand_back([*left, *unknown], delay)
        if failed:
            self._written(self._outcomes.write(failed))
        for job in [*left, *unknown]:
            self.running.pop(job.id, None)
            if job.id in settled:
                self.report.released(job)
        return left

    # One turn

    def _turn(self) -> float:
        if self.stopping:
            self._process_pipelined()
            self._settle()
            self._return_unbegun()
            return self.poll_seconds
        # The bell first: a socket that has something to say ends the sleep at once until somebody has listened.
        rung, bell_wait = self.bell.step() if self.bell is not None else (False, self.poll_seconds)
        is_pipelined = self._can_pipeline() and self._settle_and_claim()
        if not is_pipelined:
            self._process_pipelined()
            self._settle()
        self._return_stale()
        self._current_step = "looking at the schema"
        self._maintenance.check_schema()
        self._try("looking after the sequence of ids", self._maintenance.mend_sequence)
        now = self._clock()
        if not is_pipelined and (rung or now >= self._claim_at):
            self._claim_now()
        if rung:
            # Look once more when the producers may have rung again.
            self._claim_at = min(self._claim_at, now + RECHECK_SECONDS)
        if now >= min(self._poll_at, self._reap_at):
            self._try("looking around", self._poll)
        if self._clock() >= self.scheduler.due_at:
            self._try("deciding ticks", self._decide_ticks)
        self._try("pruning the history", self._maintenance.prune)
        soonest = min(self._claim_at, self._poll_at, self._reap_at, self._maintenance.prune_at, self.scheduler.due_at)
        wait = min(bell_wait, soonest - self._clock())
        if self._pipelined is not None:
            return 0.0
        if self.slots.waiting:
            # What ended beside it is written soon, though the slots say nothing before they have done their share.
            wait = min(wait, WRITE_BEHIND_SECONDS)
        return max(0.0, wait)

    def _decide_ticks(self) -> None:
        if self.scheduler.step():
            # Mostly they are ahead of time, and there is nothing to claim yet.
            self._claim_at = min(self._claim_at, self._clock() + self.scheduler.first_in)
            self.store.ring()

    def _can_pipeline(self) -> bool:
        """Return True if settle and claim may be sent together: jobs are short, and nothing is left from trouble."""
        if not (self._may_have_more and self.is_healthy and self._suspects.is_too_early):
            return False
        if self._uncertain.next is not None or not self._outcomes.is_empty:
            return False
        return len(self.slots.ended) >= SERIES if self._pipelined is None else self._pipelined.is_full

    def _settle_and_claim(self) -> bool:
        """Write what ended and claim what comes next, both at once; meanwhile take in what was claimed before.

        False if there is no room for more.
        """
        limit = min(self._room(), self.slots.enough)
        if limit == 0:
            return False
        self._current_step = "writing outcomes and claiming jobs"
        self._outcomes.add(self._collect())
        claim, asked_at = uuid.uuid4(), self._clock()
        self._claim_at, self._poll_at = math.inf, asked_at + self.poll_seconds
        # Until the answer is there.
        self._uncertain.add(claim)
        try:
            with self.store.settle_and_claim(self._outcomes.outcomes, self.id, claim, *self._claimable, limit) as reply:
                if self._pipelined is not None and self._pipelined.is_plain:
                    self._process_pipelined()
        except DatabaseRefused:
            # An outcome that cannot be stored; `_settle` finds out which. What was claimed is found by its token.
            self.claim_soon()
            return True
        self._uncertain.resolve(claim)
        # First the new one: to take in the one before may fail, and that must not cost what this one has brought.
        written = self._outcomes.close(reply.settled)
        earlier, self._pipelined = self._pipelined, PipelineResult(claim, asked_at, limit, reply, written)
        if earlier is not None:
            self._process_result(earlier)
        return True

    def _process_pipelined(self) -> None:
        """Report what the last pipelined turn has written, and begin what it has claimed."""
        pipelined, self._pipelined = self._pipelined, None
        if pipelined is not None:
            self._process_result(pipelined)

    def _process_result(self, pipelined: PipelineResult) -> None:
        # From here on nothing but the token leads to its jobs until they have begun.
        with self._uncertain_on_error(pipelined.claim):
            self._written(pipelined.written)
            if self.stopping:
                self.running.update((job.id, job) for job in pipelined.jobs)
                self._unreturned += pipelined.jobs
                return
            jobs, rejected = self.scheduler.admit(pipelined.jobs)
        self._claimed(jobs, rejected, pipelined.asked_at, pipelined.limit)

    def _claim_now(self) -> bool:
        """Fill the slots, and hold a few jobs more. True if there was something to take, or to wait for quietly."""
        self._current_step = "claiming jobs"
        while (claim := self._uncertain.next) is not None:
            self._adopt(claim)
        room = self._room()
        self._may_have_more = True
        self._claim_at, self._poll_at = math.inf, self._clock() + self.poll_seconds
        if room == 0 or self._suspects.is_occupied or self._handle_suspects():
            return True
        asked_at = self._clock()
        jobs, rejected = self._claim_with(lambda claim: self.store.claim(self.id, claim, *self._claimable, room))
        self._claimed(jobs, rejected, asked_at, room)
        return bool(jobs or rejected)

    def _claimed(self, jobs: Sequence[Job], rejected: Sequence[Ended], asked_at: float, limit: int) -> None:
        """Begin the jobs that a claim of up to `limit` jobs has returned."""
        self._begin(jobs, asked_at)
        if rejected:
            self._reject(rejected)
        elif len(jobs) < limit:
            self._nothing_more(is_turn_over=not jobs)

    def _room(self) -> int:
        """How many jobs to claim now. While there is work for the slots, none before half of what may be held."""
        ahead = self._prefetch.ahead
        held = self.slots.busy + (self._pipelined.count if self._pipelined is not None else 0)
        free = max(0, self.slots.count + ahead - held)
        self.slots.enough = max(1, (self.slots.count + ahead) // 2)
        return free if ahead == 0 or free >= self.slots.enough else 0

    def _claim_with(self, ask: Callable[[uuid.UUID], Sequence[Job]]) -> tuple[list[Job], list[Ended]]:
        """Claim under a fresh token. Return the jobs that may begin, and the outcomes of the others."""
        claim = uuid.uuid4()
        with self._uncertain_on_error(claim):
            return self.scheduler.admit(ask(claim))

    @contextmanager
    def _uncertain_on_error(self, claim: uuid.UUID) -> Iterator[None]:
        """Keep the token of a claim that fails: it may be committed, with only its reply lost."""
        try:
            yield
        except PgCronError:
            self._uncertain.add(claim)
            raise

    def _handle_suspects(self) -> bool:
        """Run a suspect, which runs alone, if it is time. Return True if one runs or is waited for."""
        step = self._suspects.step(
            is_busy=self._is_busy,
            is_suspect_due=lambda: self.store.suspects_due(*self._claimable),
        )
        if step == "take":
            was_busy, asked_at = self._is_busy, self._clock()
            suspect, rejected = self._claim_with(self._suspect)
            self._suspects.record_claim(bool(suspect), is_busy=was_busy)
            self._begin(suspect, asked_at)
            self._reject(rejected)
        elif step == "wait":
            self._claim_at = self._suspects.quiet_until
        return step == "wait" or self._suspects.is_occupied

    def _suspect(self, claim: uuid.UUID) -> list[Job]:
        suspect = self.store.claim_suspect(self.id, claim, *self._claimable)
        return [] if suspect is None else [suspect]

    def _reject(self, ended: Sequence[Ended]) -> None:
        """Write the outcomes of jobs of ticks that may not begin, and claim again: there may be others behind them."""
        if ended:
            self._outcomes.add(ended)
            self.claim_soon()
            self._settle()

    def _begin(self, jobs: Sequence[Job], asked_at: float) -> None:
        self._prefetch.record_arguments([len(job.args) for job in jobs])
        # Not since the reply: a process frozen before it reads that has jobs that are others' by now.
        self.running.update((job.id, job) for job in jobs)
        self.slots.put(*jobs, since=asked_at)

    def _runs(self, job: Job) -> bool:
        """Return True if this claim of the job runs here. After a freeze we may claim what we are still running."""
        running = self.running.get(job.id)
        return running is not None and running.claim == job.claim

    def _nothing_more(self, *, is_turn_over: bool) -> None:
        """Find out when the table, which has no more for us now, will have."""
        self._may_have_more = False
        if self._suspects.may_have_more:
            if is_turn_over:
                # Nobody else wants the turn that the others have after a suspect.
                self._suspects.check_now()
                return self.claim_soon()
            self._claim_at = self._suspects.next_try
        due = self.store.next_due(*self._claimable)
        now = self._clock()
        self._claim_at = min(self._claim_at, math.inf if due is None else now + due)
        self._maintenance.warn_unknown_tasks()

    def _adopt(self, claim: uuid.UUID) -> None:
        """Begin, or hand back, the jobs that this worker holds under `claim` and does not run."""
        asked_at = self._clock()
        unknown = self._unknown_jobs(claim)
        if not unknown:
            return self._uncertain.found_nothing(claim)
        is_suspect = any(job.alone for job in unknown)
        if is_suspect and (self._is_busy or self._pipelined is not None):
            # It must have no neighbours. Some worker claims it again when it can.
            self._unreturned += unknown
            self._uncertain.resolve(claim)
            self._suspects.check_now()
            return self._return_unbegun()
        jobs, rejected = self.scheduler.admit(unknown)
        self._uncertain.resolve(claim)
        self._begin(jobs, asked_at)
        if is_suspect and jobs:
            self._suspects.record_claim(True, is_busy=False)
        self._reject(rejected)

    def _reconcile(self, held: Mapping[uuid.UUID, int]) -> None:
        """Compare the rows that run under this worker, counted by their claims, with the jobs it knows of.

        Claims are made and settled by this thread alone, and none is under way now. So only a claim or a part of one
        whose reply was lost has more rows than jobs. Fewer are in order: a task may have completed its job, an operator
        may have deleted it.
        """
        known = Counter(job.claim for job in self._known().values())
        for claim, count in held.items():
            if count > known[claim]:
                logger.info("found jobs of a claim that was committed after its reply was lost: %s", claim)
                self._adopt(claim)

    def _unknown_jobs(self, claim: uuid.UUID) -> list[Job]:
        """The jobs that run under this worker and `claim` by the table alone."""
        known = self._known()
        held = self.store.held(self.id, claim)
        return [job for job in held if job.id not in known or known[job.id].claim != job.claim]

    def _known(self) -> dict[int, Job]:
        """The jobs that run, wait for a slot, or have ended or been turned away and are not written yet."""
        claimed = self._pipelined.jobs if self._pipelined is not None else []
        # The latest claim of each job last. After a freeze we may claim again what we are still running.
        return {job.id: job for job in [*self._outcomes.jobs, *self._unreturned, *self.running.values(), *claimed]}

    def _settle(self) -> None:
        """Write the outcomes of jobs that ended, then report them."""
        self._current_step = "writing outcomes"
        blocked = self._outcomes.blocked_tasks
        self._written(self._outcomes.write(self._collect()))
        if self._outcomes.blocked_tasks != blocked:
            self._block(self._outcomes.blocked_tasks, blocked)
        if self._suspects.is_occupied and not self._is_busy:
            # Also if nothing could be written about the suspect.
            self._suspects.ended()
            self.claim_soon()

    def _block(self, blocked: frozenset[str], before: frozenset[str]) -> None:
        """Leave jobs of `blocked` tasks to others, and claim those of tasks again that are no longer blocked."""
        for task in sorted(blocked - before):
            logger.error(
                "the database refuses the outcomes of %d or more jobs of %r: this worker claims no more of them until"
                " an outcome is stored, and goes on with other tasks", MAX_REFUSED, task,
            )  # fmt: skip
        for task in sorted(before - blocked):
            logger.info("outcomes of %r are stored again, and its jobs are claimed again", task)
        if before - blocked:
            # The last claims have passed over its jobs.
            self.store.start_over()
            self.claim_soon()
        if blocked - before:
            # Also those of other tasks, which are claimed again at once.
            self._return_unbegun()
            self.claim_soon()

    def _collect(self) -> list[Ended]:
        """Take the jobs that have ended out of the slots, and adapt the pace to them."""
        ended = self.slots.collect()
        self._prefetch.record([each.seconds for each in ended], [len(each.outcome.result or "") for each in ended])
        return ended

    def _written(self, written: Sequence[tuple[Ended, bool]]) -> None:
        """Report outcomes that were written, each with True if the job was still ours."""
        if not written:
            return
        for each, was_ours in written:
            if self._runs(each.job):
                del self.running[each.job.id]
            if each.outcome.delay is not None:
                # To run again: it may be due before we would have looked.
                self._claim_at = min(self._claim_at, self._clock() + each.outcome.delay)
            self.report.ended(each, was_ours=was_ours)
        if self._may_have_more:
            self.claim_soon()
        if self.scheduler.written([each for each, was_ours in written if was_ours]):
            self.claim_soon()

    def _return_stale(self) -> None:
        """Hand back what is held when nothing of it has begun for a while.

        So it is never in the way of a job of a higher priority, of an idle worker, or of an operator's pause.
        """
        waited = self.slots.waited(self._clock())
        if waited > STALE_SECONDS or self.slots.has_late or self._unreturned:
            self._prefetch.slow_down(waited)
            self._return_unbegun()
            self.claim_soon()

    def _return_unbegun(self) -> None:
        self._unreturned += self.slots.take_back()
        if self._unreturned:
            self._current_step = "handing jobs back"
            settled, failed = self._outcomes.hand_back(self._unreturned)
            self._outcomes.add(failed)
            unreturned = {each.job.id for each in failed}
            back = [job for job in self._unreturned if job.id not in unreturned]
            self._unreturned = []
            for job in back:
                if self._runs(job):
                    del self.running[job.id]
                if job.id in settled:
                    self.report.released(job)
            self.store.ring()

    def _poll(self) -> None:
        """Look for due jobs, ticks and dead workers: all that an idle worker asks the database, in one statement."""
        # Also if the look is refused.
        self._poll_at = self._clock() + self.poll_seconds
        self._reap_at = self._clock() + self._reaper.interval * self._spread(0.8, 1.0)
        look = self.store.look(*self._claimable, self.id)
        now = self._clock()
        if look.due_in is not None:
            self._claim_at = min(self._claim_at, now + look.due_in)
        self.scheduler.apply(look)
        rescued = self._reaper.step(self.id, look.pulses)
        for job in rescued:
            self.report.rescued(job)
        if rescued:
            self._suspects.check_now()
            self.claim_soon()
            self.store.ring()
        self._reconcile(look.held)

    # Trouble

    def _try(self, what: str, do: Callable[[], None]) -> None:
        """Do a part of the turn. The other parts go on if the database refuses it."""
        try:
            do()
        except DatabaseRefused as error:
            if self._clock() >= self._logged_at.get(what, -math.inf) + LOG_AGAIN_SECONDS:
                self._logged_at[what] = self._clock()
                logger.error("the database refused a statement while %s: %s; going on without", what, error)

    def _refused(self, trouble: str, level: int) -> float:
        """Return how long to wait before the next attempt. Log it once a minute: it may need an operator."""
        self.refusals += 1
        self.refusal = trouble
        if self.is_healthy or self._clock() >= self._logged_at.get("refused", -math.inf) + LOG_AGAIN_SECONDS:
            self._logged_at["refused"] = self._clock()
            logger.log(level, "%s; trying again", trouble)
        return self._pause_longer()

    def _unavailable(self, trouble: str, *, is_login: bool) -> float:
        """Return how long to wait before the next attempt. An outage is logged when it begins."""
        if self.is_healthy:
            logger.warning("%s; trying again", trouble)
        return self._pause_longer(is_login=is_login)

    def _pause_longer(self, *, is_login: bool = False) -> float:
        """Return how long to wait before the next attempt: a little longer each turn, but at most a second."""
        # Jittered, so that the workers of a fleet do not all connect at the same moment.
        wait = self._pause * (1.0 if is_login else self._spread(0.5, 1.0))
        self._pause = min(self._pause * 2, MAX_PAUSE_REFUSED if is_login else MAX_PAUSE)
        # The next turn begins with a question to the database; one that had none to ask would take it for well.
        self._maintenance.check_at = 0.0
        # And it repeats the claim, if that was what failed: where only writes fail, reading proves nothing.
        self.claim_soon()
        return wait

    def _recovered(self) -> None:
        if self._pause != FIRST_PAUSE:
            logger.info("the database is back")
            self._pause, self.refused_logins, self.refusals = FIRST_PAUSE, 0, 0
            self.healthy_since = self._clock()
            self.claim_soon()
