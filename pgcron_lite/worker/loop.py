"""The worker's loop: claim jobs for free slots, write their outcomes, and rescue the jobs of dead workers."""

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

# A producer rings at most once in 25 ms. A woken worker claims once more after that, for jobs committed meanwhile.
RECHECK_SECONDS = 0.03
# Outcomes are written when no job waits for a slot, or when half of the held jobs have ended, or after this time.
WRITE_BEHIND_SECONDS = 0.02
# If this many jobs have ended by one turn, claims follow one another without a pause: settle and claim are pipelined.
SERIES = 100
# Held jobs that have waited this long are handed back. Prefetch expects them to start within 50 ms.
STALE_SECONDS = 0.25
# The pause between two attempts in an outage. Refused logins are repeated at longer intervals, because a
# server that counts them may lock the role.
FIRST_PAUSE, MAX_PAUSE, MAX_PAUSE_REFUSED = 0.1, 1.0, 5.0
# The same refusal of the database is logged at most once in this time.
LOG_AGAIN_SECONDS = 60.0
NO_BELL_POLL_SECONDS = 2.0


class Bell(Protocol):
    """The receiving end of the doorbell: PostgreSQL's listener or the memory store's."""

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
    """A worker that runs the jobs of its queues in a number of slots."""

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
        # Set with each job; reset by the process.
        self.has_begun_jobs = False
        self.report = Reporter(app.events)
        self.turned_at = clock()
        # Since the last turn without trouble: refused logins; turns that were ended by a refused statement or by a
        # schema of another version; and the reason of the last.
        self.refused_logins = 0
        self.refusals = 0
        self.refusal = ""
        # The time at which the database was available again after the last trouble.
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
        # False after a claim that returned fewer jobs than asked for. While True, the end of a job triggers a claim.
        self._may_have_more = True
        # When to claim next, when to poll for due jobs, and when to check the heartbeats of other workers.
        self._claim_at = 0.0
        self._poll_at = 0.0
        self._reap_at = 0.0
        self._pause = FIRST_PAUSE
        # The current step, for messages about a refusal, and the time at which each refusal was last logged.
        self._current_step = "starting"
        self._logged_at: dict[str, float] = {}

    @property
    def id(self) -> uuid.UUID:
        return self.card.id

    @property
    def _claimable(self) -> tuple[Sequence[str], Sequence[str]]:
        """The queues and the tasks of which this worker may claim jobs."""
        blocked = self._outcomes.blocked_tasks
        tasks = [task for task in self._tasks if task not in blocked] if blocked else self._tasks
        return self.card.queues, tasks

    @property
    def poll_seconds(self) -> float:
        """The longest sleep, which limits the delay after a lost notification."""
        poll = self.app.settings.poll.total_seconds()
        if self.bell is not None and not self.bell.is_live:
            poll = min(poll, NO_BELL_POLL_SECONDS)
        # Jittered, so that many workers do not poll at the same time.
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
            # No content of a row may end a worker.
            return self._refused(f"the database refused a statement while {self._current_step}: {error}", logging.ERROR)
        if not self.stopping:
            self._recovered()
        return wait

    @property
    def is_healthy(self) -> bool:
        """True if the last turn had no trouble with the database."""
        return self._pause == FIRST_PAUSE

    def stop(self) -> None:
        """Stop claiming, and hand back the jobs that have not started."""
        self.stopping = True

    def is_idle(self) -> bool:
        """Return True if no job runs and no outcome waits to be written."""
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
        # A job whose outcome cannot be stored is running only according to the table. It is handed back at the end.
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
        """The tasks whose jobs are not claimed, because the database refuses too many of their outcomes."""
        return sorted(self._outcomes.blocked_tasks)

    def drained(self) -> bool:
        """Query the database; return True if no job is due that this worker may claim."""
        if not self.is_idle() or self._uncertain:
            return False
        self._suspects.check_now()
        self.store.start_over()
        return not self._claim_now() and self.is_idle()

    def claim_soon(self) -> None:
        """Claim in the next turn."""
        self._claim_at = 0.0

    def poll_soon(self) -> None:
        """Look for due ticks and dead workers in the next turn. Neither rings the doorbell."""
        self._reap_at = 0.0

    def register_as(self, card: WorkerCard) -> None:
        """Register under a new id. The old one was declared dead, and other workers may have its jobs now."""
        self.store.register(card, instead_of=self.id)
        self.card = card

    def release(self, delay: float = 1.0) -> list[Job]:
        """Hand back all jobs that are still running. Other workers may claim them after `delay` seconds."""
        self.stop()
        self._process_pipelined()
        # A job that is handed back runs again, so this is the last chance to store its outcome.
        self._outcomes.retry_soon()
        self._settle()
        # This includes rejected runs of schedules whose outcomes the database refuses.
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
        # The bell first: until its socket is read, every sleep ends at once.
        rung, bell_wait = self.bell.step() if self.bell is not None else (False, self.poll_seconds)
        is_pipelined = self._can_pipeline() and self._settle_and_claim()
        if not is_pipelined:
            self._process_pipelined()
            self._settle()
        self._return_stale()
        self._current_step = "checking the schema"
        self._maintenance.check_schema()
        self._try("checking the sequence of ids", self._maintenance.mend_sequence)
        now = self._clock()
        if not is_pipelined and (rung or now >= self._claim_at):
            self._claim_now()
        if rung:
            # Claim once more when the producers could ring again.
            self._claim_at = min(self._claim_at, now + RECHECK_SECONDS)
        if now >= min(self._poll_at, self._reap_at):
            self._try("polling", self._poll)
        if self._clock() >= self.scheduler.due_at:
            self._try("deciding ticks", self._decide_ticks)
        self._try("pruning the history", self._maintenance.prune)
        soonest = min(self._claim_at, self._poll_at, self._reap_at, self._maintenance.prune_at, self.scheduler.due_at)
        wait = min(bell_wait, soonest - self._clock())
        if self._pipelined is not None:
            return 0.0
        if self.slots.waiting:
            # Outcomes are written soon even though the slots wake the loop only after `enough` jobs have ended.
            wait = min(wait, WRITE_BEHIND_SECONDS)
        return max(0.0, wait)

    def _decide_ticks(self) -> None:
        if self.scheduler.step():
            # Ticks are usually planned ahead of time, so their jobs are not due yet.
            self._claim_at = min(self._claim_at, self._clock() + self.scheduler.first_in)
            self.store.ring()

    def _can_pipeline(self) -> bool:
        """Return True if settle and claim may be sent together: jobs are short, and no earlier trouble is pending."""
        if not (self._may_have_more and self.is_healthy and self._suspects.is_too_early):
            return False
        if self._uncertain.next is not None or not self._outcomes.is_empty:
            return False
        return len(self.slots.ended) >= SERIES if self._pipelined is None else self._pipelined.is_full

    def _settle_and_claim(self) -> bool:
        """Write outcomes and claim jobs in one pipeline; meanwhile process the previous pipeline's result.

        Return False, without sending anything, if there is no room for more jobs.
        """
        limit = min(self._room(), self.slots.enough)
        if limit == 0:
            return False
        self._current_step = "writing outcomes and claiming jobs"
        self._outcomes.add(self._collect())
        claim, asked_at = uuid.uuid4(), self._clock()
        self._claim_at, self._poll_at = math.inf, asked_at + self.poll_seconds
        # The claim is uncertain until the reply has arrived.
        self._uncertain.add(claim)
        try:
            with self.store.settle_and_claim(self._outcomes.outcomes, self.id, claim, *self._claimable, limit) as reply:
                if self._pipelined is not None and self._pipelined.is_plain:
                    self._process_pipelined()
        except DatabaseRefused:
            # An outcome that cannot be stored: `_settle` finds out which. The claimed jobs are found by their token.
            self.claim_soon()
            return True
        self._uncertain.resolve(claim)
        # Keep the new result first: processing the previous one may fail, and must not lose the new one.
        written = self._outcomes.close(reply.settled)
        earlier, self._pipelined = self._pipelined, PipelineResult(claim, asked_at, limit, reply, written)
        if earlier is not None:
            self._process_result(earlier)
        return True

    def _process_pipelined(self) -> None:
        """Report the outcomes that the last pipeline wrote, and begin the jobs that it claimed."""
        pipelined, self._pipelined = self._pipelined, None
        if pipelined is not None:
            self._process_result(pipelined)

    def _process_result(self, pipelined: PipelineResult) -> None:
        # Until its jobs have begun, they can only be found by the token of the claim.
        with self._uncertain_on_error(pipelined.claim):
            self._written(pipelined.written)
            if self.stopping:
                self.running.update((job.id, job) for job in pipelined.jobs)
                self.has_begun_jobs = True
                self._unreturned += pipelined.jobs
                return
            jobs, rejected = self.scheduler.admit(pipelined.jobs)
        self._claimed(jobs, rejected, pipelined.asked_at, pipelined.limit)

    def _claim_now(self) -> bool:
        """Fill the slots and prefetch. Return True if jobs were claimed, or if none may be claimed at this moment."""
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
            self._plan_next_claim(is_turn_over=not jobs)

    def _room(self) -> int:
        """Return how many jobs to claim now. With prefetch, claim only when at least half of the places are free."""
        ahead = self._prefetch.ahead
        held = self.slots.busy + (self._pipelined.count if self._pipelined is not None else 0)
        free = max(0, self.slots.count + ahead - held)
        self.slots.enough = max(1, (self.slots.count + ahead) // 2)
        return free if ahead == 0 or free >= self.slots.enough else 0

    def _claim_with(self, claim_jobs: Callable[[uuid.UUID], Sequence[Job]]) -> tuple[list[Job], list[Ended]]:
        """Claim under a fresh token. Return the jobs that may begin, and the outcomes of the others."""
        claim = uuid.uuid4()
        with self._uncertain_on_error(claim):
            return self.scheduler.admit(claim_jobs(claim))

    @contextmanager
    def _uncertain_on_error(self, claim: uuid.UUID) -> Iterator[None]:
        """Keep the token of a claim that fails: it may be committed, with only its reply lost."""
        try:
            yield
        except PgCronError:
            self._uncertain.add(claim)
            raise

    def _handle_suspects(self) -> bool:
        """Run a suspect, isolated, if it is time. Return True if no other job may be claimed because of a suspect."""
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
        """Write the outcomes of scheduled jobs that may not begin, and claim again: other jobs may be due too."""
        if ended:
            self._outcomes.add(ended)
            self.claim_soon()
            self._settle()

    def _begin(self, jobs: Sequence[Job], asked_at: float) -> None:
        self._prefetch.record_arguments([len(job.args) for job in jobs])
        # The age counts from the request, not from the reply: if the process is frozen before it reads the reply,
        # other workers may have these jobs by now.
        self.running.update((job.id, job) for job in jobs)
        self.has_begun_jobs = True
        self.slots.put(*jobs, since=asked_at)

    def _runs(self, job: Job) -> bool:
        """Return True if this claim of the job runs here. After a freeze we may claim a job that still runs here."""
        running = self.running.get(job.id)
        return running is not None and running.claim == job.claim

    def _plan_next_claim(self, *, is_turn_over: bool) -> None:
        """Look up when the next job is due, after a claim that found too few."""
        self._may_have_more = False
        if self._suspects.may_have_more:
            if is_turn_over:
                # No other job is due in the time that is reserved for them after a suspect.
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
            # A suspect must run isolated. A worker claims it again when it can do so.
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
        """Compare this worker's running rows, counted per claim, with the jobs that it knows.

        Only this thread claims and settles, and no statement is in progress now. So a claim has more rows than known
        jobs only if its reply was lost, wholly or in part. Fewer rows are normal: a task may have completed its job,
        or an operator may have deleted it.
        """
        known = Counter(job.claim for job in self._known().values())
        for claim, count in held.items():
            if count > known[claim]:
                logger.info("found jobs of a claim that was committed after its reply was lost: %s", claim)
                self._adopt(claim)

    def _unknown_jobs(self, claim: uuid.UUID) -> list[Job]:
        """Return the jobs that the table shows as running under this worker and `claim`, and that it does not know."""
        known = self._known()
        held = self.store.held(self.id, claim)
        return [job for job in held if job.id not in known or known[job.id].claim != job.claim]

    def _known(self) -> dict[int, Job]:
        """Return the jobs that run, wait for a slot, or have an outcome that is not written yet."""
        claimed = self._pipelined.jobs if self._pipelined is not None else []
        # The latest claim of each job comes last. After a freeze we may claim a job that still runs here.
        return {job.id: job for job in [*self._outcomes.jobs, *self._unreturned, *self.running.values(), *claimed]}

    def _settle(self) -> None:
        """Write the outcomes of ended jobs, then report them."""
        self._current_step = "writing outcomes"
        blocked = self._outcomes.blocked_tasks
        self._written(self._outcomes.write(self._collect()))
        if self._outcomes.blocked_tasks != blocked:
            self._block(self._outcomes.blocked_tasks, blocked)
        if self._suspects.is_occupied and not self._is_busy:
            # Also if no outcome of the suspect could be written.
            self._suspects.ended()
            self.claim_soon()

    def _block(self, blocked: frozenset[str], before: frozenset[str]) -> None:
        """Stop claiming jobs of the `blocked` tasks, and claim those of tasks that are no longer blocked again."""
        for task in sorted(blocked - before):
            logger.error(
                "the database refuses the outcomes of %d or more jobs of %r: this worker claims no more of them until"
                " an outcome is stored, and continues with other tasks", MAX_REFUSED, task,
            )  # fmt: skip
        for task in sorted(before - blocked):
            logger.info("outcomes of %r are stored again, and its jobs are claimed again", task)
        if before - blocked:
            # The claim cursor has passed jobs of this task.
            self.store.start_over()
            self.claim_soon()
        if blocked - before:
            # This also hands back jobs of other tasks, which are claimed again at once.
            self._return_unbegun()
            self.claim_soon()

    def _collect(self) -> list[Ended]:
        """Take the ended jobs out of the slots, and adapt the prefetch to their durations."""
        ended = self.slots.collect()
        self._prefetch.record([each.seconds for each in ended], [len(each.outcome.result or "") for each in ended])
        return ended

    def _written(self, written: Sequence[tuple[Ended, bool]]) -> None:
        """Report written outcomes, each paired with True if the job was still ours."""
        if not written:
            return
        for each, was_ours in written:
            if self._runs(each.job):
                del self.running[each.job.id]
            if each.outcome.delay is not None:
                # The job runs again, and may be due before the next claim.
                self._claim_at = min(self._claim_at, self._clock() + each.outcome.delay)
            self.report.ended(each, was_ours=was_ours)
        if self._may_have_more:
            self.claim_soon()
        if self.scheduler.written([each for each, was_ours in written if was_ours]):
            self.claim_soon()

    def _return_stale(self) -> None:
        """Hand back the held jobs if none of them has started for a while.

        So prefetched jobs never delay a job of a higher priority, never keep work from an idle worker, and do not run
        long after an operator's pause.
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
        """Look for due jobs, ticks and dead workers in one statement, the only one that an idle worker sends."""
        # Set before the statement, so that a refused one is not repeated at once.
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
        """Run one part of the turn. If the database refuses it, log that and continue with the other parts."""
        try:
            do()
        except DatabaseRefused as error:
            if self._clock() >= self._logged_at.get(what, -math.inf) + LOG_AGAIN_SECONDS:
                self._logged_at[what] = self._clock()
                logger.error("the database refused a statement while %s: %s; continuing without it", what, error)

    def _refused(self, trouble: str, level: int) -> float:
        """Return the seconds to the next attempt. Log the refusal at most once a minute: it may need an operator."""
        self.refusals += 1
        self.refusal = trouble
        if self.is_healthy or self._clock() >= self._logged_at.get("refused", -math.inf) + LOG_AGAIN_SECONDS:
            self._logged_at["refused"] = self._clock()
            logger.log(level, "%s; trying again", trouble)
        return self._pause_longer()

    def _unavailable(self, trouble: str, *, is_login: bool) -> float:
        """Return the seconds to the next attempt. An outage is logged when it begins."""
        if self.is_healthy:
            logger.warning("%s; trying again", trouble)
        return self._pause_longer(is_login=is_login)

    def _pause_longer(self, *, is_login: bool = False) -> float:
        """Return the seconds to the next attempt: longer each time, up to `MAX_PAUSE`, or more for refused logins."""
        # Jittered, so that the workers of a fleet do not all connect at the same time.
        wait = self._pause * (1.0 if is_login else self._spread(0.5, 1.0))
        self._pause = min(self._pause * 2, MAX_PAUSE_REFUSED if is_login else MAX_PAUSE)
        # Make the next turn query the database. A turn without a statement would count as healthy.
        self._maintenance.check_at = 0.0
        # Repeat the claim too, in case that failed: where only writes fail, a successful read proves nothing.
        self.claim_soon()
        return wait

    def _recovered(self) -> None:
        if self._pause != FIRST_PAUSE:
            logger.info("the database is back")
            self._pause, self.refused_logins, self.refusals = FIRST_PAUSE, 0, 0
            self.healthy_since = self._clock()
            self.claim_soon()
