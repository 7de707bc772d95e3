"""The scheduler: plans due ticks, admits or rejects their jobs, and reports missed ticks.

Every worker has one, and any number may run at once. The first one does the work, and what two do at the same time is
written once. There is no leader, and no scheduler has to be awake at the time of a tick.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..clock import Clock, monotonic
from ..contrib.pings import Pings
from ..durations import in_utc
from ..errors import DatabaseRefused
from ..job import Job, Look, Outcome, hand_back
from ..retry import Cancel
from ..schedules import ticks
from ..schedules.schedule import CAUGHT_UP, OF_TICKS, PREVIOUS, SCHEDULE, TICK, header_time
from ..schedules.ticks import Admission, Change, Closing, Entry, Move
from .execute import Ended, describe

if TYPE_CHECKING:
    from ..app import PgCron
    from ..store import Store

T = TypeVar("T")

logger = logging.getLogger("pgcron_lite.schedules")

# If another session holds the planning lock, try again after this time. After `MAX_YIELDS` tries plan without the lock:
# its holder may be something other than a scheduler.
YIELD_SECONDS, MAX_YIELDS = 1.0, 8
PRUNE_SECONDS = 600.0
# The number of schedules to plan at once. A full batch means that there are more, but between two batches the worker
# claims jobs.
BATCH = 20


class Scheduler:
    """The scheduler of one worker."""

    def __init__(
        self, app: PgCron, store: Store, *, plans: bool = True, clock: Clock = monotonic, pings: Pings | None = None
    ) -> None:
        self.due_at = math.inf
        # The seconds until the first job that the last step has inserted is due.
        self.first_in = math.inf
        self._app = app
        self._store = store
        self._plans = plans
        self._clock = clock
        self._pings = Pings() if pings is None else pings
        self._prune_at = clock() + PRUNE_SECONDS
        self._troubled: dict[str, str] = {}
        self._yields, self._batch = 0, BATCH

    def apply(self, look: Look) -> None:
        """Take over the deadlines of a poll, and check runs and alarms if it says so."""
        if self._plans and look.plan_in is not None:
            self.due_at = self._clock() + max(0.0, look.plan_in)
        if look.ticks_want_watching:
            self._try(self._watch, None)

    def step(self) -> bool:
        """Plan due ticks. Return True if that inserted jobs; the first is due in `first_in` seconds."""
        self.due_at = self.first_in = math.inf
        if self._plan() is None:
            return False
        changes: list[Change] = self._try(self._store.reconcile, [])
        for change in changes:
            _log_change(change)
        if changes:
            # Plan the changed declarations. The first call has decided all earlier ticks by the old ones.
            self._plan()
        return self.first_in < math.inf

    def admit(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Ended]]:
        """Return the jobs that may begin, and the outcomes of the others: a tick's job may be too late or too early."""
        of_ticks = [job for job in jobs if SCHEDULE in job.headers]
        if not of_ticks:
            return list(jobs), []
        if self._plans and any(_is_late(job) for job in of_ticks):
            # Plan first: there may be later ticks by now, one of which replaces it.
            while self._plan() and self.due_at == 0.0:
                pass
        admissions = self._admissions([job.id for job in of_ticks])
        admitted, rejected = [], []
        for job in jobs:
            admission = admissions.get(job.id)
            if admission is None:
                # Everyone who may enqueue can write headers. Only a tick's row proves that a job is a schedule's run.
                admitted.append(_of_no_tick(job))
            elif admission.refusal is not None:
                rejected.append(_refused(job, admission.refusal))
            elif admission.wait is not None:
                rejected.append(Ended(job, hand_back(job, admission.wait), 0.0, begun=False))
            else:
                admitted.append(self._admitted(job, admission))
        return admitted, rejected

    def written(self, ended: Sequence[Ended]) -> bool:
        """Close the ticks of the written outcomes. Return True if a run that waited for one of them is due now."""
        of_ticks = [each for each in ended if SCHEDULE in each.job.headers]
        over = [each.job.id for each in of_ticks if each.outcome.state != "queued"]
        if over:
            closings: list[Closing] = self._try(partial(self._store.close_ticks, over), [])
            if self._plans and any(closing.goes_on for closing in closings):
                self.due_at = 0.0
            self._report_closings(closings)
        moved = over + [each.job.id for each in of_ticks if not each.begun]
        if not moved or not self._try(partial(self._store.release, moved), False):
            return False
        # That run may belong to a queue of other workers.
        self._store.ring()
        return True

    def close(self, seconds: float) -> None:
        """Wait up to `seconds` for the pings that are being sent."""
        self._pings.close(seconds)

    def _admissions(self, job_ids: list[int]) -> dict[int, Admission]:
        try:
            return self._store.admit(job_ids)
        except DatabaseRefused:
            # One of the schedules is broken. Only that one must fail, and its run, which was planned before, begins.
            found: dict[int, Admission] = {}
            for job_id in job_ids:
                nothing_known = {job_id: Admission()}
                found |= self._try(partial(self._store.admit, [job_id]), nothing_known)
            return found

    def _try(self, do: Callable[[], T], default: T) -> T:
        """Return the result of `do`, or `default` if the database refuses it.

        A schedule that was edited into something invalid must not end a worker.
        """
        try:
            return do()
        except DatabaseRefused as error:
            logger.error("the database refused a statement about schedules; was one edited by hand? %s", error)
            return default

    def _plan(self) -> list[Move] | None:
        """Plan one batch of schedules. Return None if another scheduler is planning."""
        decided: list[Entry] = []
        decided_at = datetime.min

        def decide(entry: Entry, now: datetime) -> Move:
            nonlocal decided_at
            decided.append(entry)
            decided_at = now
            return ticks.decide(entry, now)

        try:
            gives_way = self._yields < MAX_YIELDS
            moves = self._store.plan(decide, limit=self._batch, gives_way=gives_way)
        except DatabaseRefused as error:
            # A tick of one of the schedules cannot be stored: continue with one at a time, and set that one aside.
            if len(decided) == 1:
                self._set_aside(decided[0].name, str(error))
            self._batch, self.due_at = 1, 0.0
            return []
        if moves is None:
            self._yields += 1
            self.due_at = self._clock() + YIELD_SECONDS
            return None
        self._yields = 0
        if len(decided) == self._batch:
            self.due_at = 0.0
        else:
            self._batch = BATCH
        for move in moves:
            self._report_move(move)
        due = [tick.due_at for move in moves for tick in move.ticks if tick.job is not None]
        if due:
            self.first_in = min(self.first_in, max(0.0, (min(due) - decided_at).total_seconds()))
        return moves

    def _set_aside(self, name: str, trouble: str) -> None:
        """Postpone a schedule whose ticks the database refuses, so that the others are not delayed."""
        moves: list[Move] | None = self._try(
            lambda: self._store.plan(lambda entry, now: ticks.stuck(entry, now, trouble), name), None
        )
        for move in moves or ():
            self._report_move(move)

    def _report_move(self, move: Move) -> None:
        if move.trouble is not None and self._troubled.get(move.name) != move.trouble:
            logger.error("schedule %s is stuck and retried every minute: %s", move.name, move.trouble)
        if move.trouble is not None:
            self._troubled[move.name] = move.trouble
        else:
            self._troubled.pop(move.name, None)
        left_out = sum(tick.job is None for tick in move.ticks)
        if left_out:
            logger.warning("schedule %s: %d tick%s left out: %s", move.name, left_out, "s" * (left_out > 1),
                           next(tick.reason for tick in reversed(move.ticks) if tick.job is None))  # fmt: skip
        if move.missed is not None and self._raises_alarm(move.name, move.missed):
            self._missed(move.name, move.missed)

    def _admitted(self, job: Job, admission: Admission) -> Job:
        schedule, tick = job.headers[SCHEDULE], _tick_of(job)
        if job.attempt == 1:
            if admission.ping:
                self._pings.send(admission.ping, "start", f"{schedule}, tick of {in_utc(tick)}")
            if admission.is_late and self._raises_alarm(schedule, tick):
                self._missed(schedule, tick)
        headers = {CAUGHT_UP: "yes"} if admission.is_late or admission.kind == "backfill" else {}
        if admission.previous is not None:
            headers[PREVIOUS] = admission.previous.isoformat()
        return job.changed(headers={**job.headers, **headers}) if headers else job

    def _watch(self) -> None:
        closings, alarms = self._store.watch()
        self._report_closings(closings)
        for alarm in alarms:
            if alarm.kind == "missed":
                self._missed(alarm.schedule, alarm.tick)
                continue
            logger.error("schedule %s: the run of %s is still running", alarm.schedule, in_utc(alarm.tick))
            self._app.events.send("schedule_late", schedule=alarm.schedule, tick=alarm.tick, job_id=alarm.job_id)
        if self._clock() >= self._prune_at:
            gone = self._store.prune_ticks(self._app.settings.keep_failed)
            self._prune_at = self._clock() + (1.0 if gone >= 1000 else PRUNE_SECONDS)

    def _raises_alarm(self, schedule: str, tick: datetime) -> bool:
        return self._try(lambda: self._store.raise_alarm(schedule, tick), False)

    def _missed(self, schedule: str, tick: datetime) -> None:
        logger.error("schedule %s missed its tick of %s", schedule, in_utc(tick))
        self._app.events.send("schedule_missed", schedule=schedule, tick=tick)

    def _report_closings(self, closings: Sequence[Closing]) -> None:
        for closing in closings:
            if closing.ping:
                took = "" if closing.seconds is None else f" after {timedelta(seconds=round(closing.seconds, 3))}"
                self._pings.send(
                    closing.ping, "success" if closing.outcome == "done" else "failure",
                    f"{closing.schedule}: {closing.outcome}{took}",
                )
            if closing.recovered:
                logger.info("schedule %s has recovered with its tick of %s", closing.schedule, in_utc(closing.tick))
                self._app.events.send("schedule_recovered", schedule=closing.schedule, tick=closing.tick)


def _of_no_tick(job: Job) -> Job:
    """Return `job` without the headers that only jobs of ticks may have."""
    if SCHEDULE not in job.headers:
        return job
    return job.changed(headers={name: text for name, text in job.headers.items() if name not in OF_TICKS})


def _is_late(job: Job) -> bool:
    return job.claimed_at is not None and job.claimed_at - job.execute_after > ticks.LATE


def _tick_of(job: Job) -> datetime:
    try:
        return header_time(job.headers, TICK) or job.execute_after
    except ValueError:  # edited by hand
        return job.execute_after


def _refused(job: Job, reason: str) -> Ended:
    """Return the outcome of a tick's job that must not run."""
    assert job.claim is not None
    entry = describe(job, Cancel(f"skipped: {reason}"))
    return Ended(job, Outcome(job.id, job.claim, "cancelled", error=entry), 0.0)


def _log_change(change: Change) -> None:
    if change.what == "taken":
        logger.error("schedule %s is declared in code, but a schedule created at run time has that name and stays in"
                     " force. Remove it to put the declared one in force, or give that another name=...",
                     change.name)  # fmt: skip
    else:
        logger.info("schedule %s %s", change.name, {
            "new": "is new", "changed": "was changed", "started": "runs once now, because its code was started",
            "retired": "was retired, because no code declares it any more",
        }[change.what])  # fmt: skip
