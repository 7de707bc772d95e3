"""The scheduler: has ticks decided when it is time, lets their jobs in or not, and says what is missed.

It lives in every worker. Any number may run at once: whoever comes first does the work, and what two do at the same
time is written once. Nothing rests on one of them being the leader, or on its being awake at the moment of a tick.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from . import plan, ticks
from .errors import DatabaseRefused
from .execute import Ended, describe
from .job import Job, Look, Outcome, hand_back
from .moment import in_utc
from .ping import Pings
from .retry import Cancel
from .ticks import Admission, Change, Closing, Entry, Move, Tick

if TYPE_CHECKING:
    from .app import PgCron, Store

logger = logging.getLogger("pgcron_lite.schedules")

# When somebody else is deciding ticks, look again after this.
OTHERS_TURN_SECONDS = 1.0
PRUNE_SECONDS = 600.0
# What a planner takes at once; if there is that much, there is more.
BATCH = 200


class Scheduler:
    """One worker's part in keeping the schedules."""

    def __init__(self, app: PgCron, store: Store, *, plans: bool = True) -> None:
        self.due_at = math.inf
        self._app = app
        self._store = store
        self._plans = plans
        self._pings = Pings()
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        self._troubled: dict[str, str] = {}

    def heed(self, look: Look) -> None:
        """Act on what a look at the table has shown."""
        if self._plans and look.plan_in is not None:
            self.due_at = time.monotonic() + max(0.0, look.plan_in)
        if look.ticks_want_watching:
            self._watch()

    def step(self) -> bool:
        """Have ticks decided. True if that made jobs."""
        self.due_at = math.inf
        moves = self._plan()
        if moves is None:
            return False
        changes = self._store.reconcile()
        for change in changes:
            _say(change)
        if changes:
            # What has just been declared. Before that, all was decided as it was declared at the time.
            moves += self._plan() or []
            moves += [self._start(change.name) for change in changes if change.starts]
        return any(tick.job is not None for move in moves for tick in move.ticks)

    def admit(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Ended]]:
        """Those that may begin, and what becomes of the others: jobs of ticks may come too late, or too early."""
        of_ticks = [job for job in jobs if plan.SCHEDULE in job.headers]
        if not of_ticks:
            return list(jobs), []
        if self._plans and any(_is_late(job) for job in of_ticks):
            # There may have been later ticks meanwhile, one of which stands for it.
            self._plan()
        admissions = self._store.admit([job.id for job in of_ticks])
        let_in, turned_away = [], []
        for job in jobs:
            admission = admissions.get(job.id)
            if admission is None:
                let_in.append(job)
            elif admission.refusal is not None:
                turned_away.append(_refused(job, admission.refusal))
            elif admission.wait is not None:
                turned_away.append(Ended(job, hand_back(job, admission.wait), 0.0))
            else:
                let_in.append(self._let_in(job, admission))
        return let_in, turned_away

    def ended(self, jobs: Sequence[Job]) -> None:
        """These have ended, and it is written: note it with their ticks."""
        of_ticks = [job.id for job in jobs if plan.SCHEDULE in job.headers]
        if of_ticks:
            closings = self._store.close_ticks(of_ticks)
            if self._plans and any(closing.goes_on for closing in closings):
                self.due_at = 0.0
            self._noted(closings)

    def close(self, seconds: float) -> None:
        """Wait at most so long for reports that are on their way."""
        self._pings.close(seconds)

    def _plan(self) -> list[Move] | None:
        made: list[Move] = []
        batch = BATCH
        while True:
            judged: list[Entry] = []

            def decide(entry: Entry, now: datetime, judged: list[Entry] = judged) -> Move:
                judged.append(entry)
                return ticks.decide(entry, now)

            try:
                moves = self._store.plan(decide, limit=batch)
            except DatabaseRefused as error:
                # Something in one of them cannot be stored: go one by one, and leave that one out.
                if len(judged) == 1:
                    self._set_aside(judged[0].name, str(error))
                batch = 1
                continue
            if moves is None:
                self.due_at = time.monotonic() + OTHERS_TURN_SECONDS
                return None
            for move in moves:
                self._look_at(move)
            made += moves
            if len(judged) < batch:
                return made

    def _set_aside(self, name: str, trouble: str) -> None:
        """A schedule whose ticks the database refuses: others are not to wait behind it."""
        moves = self._store.plan(lambda entry, now: ticks.stuck(entry, now, trouble), name)
        for move in moves or ():
            self._look_at(move)

    def _look_at(self, move: Move) -> None:
        if move.trouble is not None and self._troubled.get(move.name) != move.trouble:
            logger.error("schedule %s is stuck, and tried again each minute: %s", move.name, move.trouble)
        if move.trouble is not None:
            self._troubled[move.name] = move.trouble
        else:
            self._troubled.pop(move.name, None)
        left_out = sum(tick.job is None for tick in move.ticks)
        if left_out:
            logger.warning("schedule %s: %d tick%s left out: %s", move.name, left_out, "s" * (left_out > 1),
                           next(tick.reason for tick in reversed(move.ticks) if tick.job is None))  # fmt: skip
        if move.missed is not None and self._store.raise_alarm(move.name, move.missed):
            self._missed(move.name, move.missed)

    def _start(self, name: str) -> Move:
        """Run a schedule once because its code has come to life."""
        now = self._store.now()
        view = self._store.schedules(name)[0]
        tick = Tick(now, now, view.schedule.job(now, now), kind="start")
        self._store.add_ticks(name, [tick])
        return Move(name, 0, now, None, (tick,))

    def _let_in(self, job: Job, admission: Admission) -> Job:
        schedule, tick = job.headers[plan.SCHEDULE], datetime.fromisoformat(job.headers[plan.TICK])
        if job.attempt == 1:
            if admission.ping:
                self._pings.send(admission.ping, "start", f"{schedule}, tick of {in_utc(tick)}")
            if admission.is_late and self._store.raise_alarm(schedule, tick):
                self._missed(schedule, tick)
        told = {plan.CAUGHT_UP: "yes"} if admission.is_late or admission.kind == "backfill" else {}
        if admission.previous is not None:
            told[plan.PREVIOUS] = admission.previous.isoformat()
        return replace(job, headers={**job.headers, **told})

    def _watch(self) -> None:
        closings, alarms = self._store.watch()
        self._noted(closings)
        for alarm in alarms:
            if alarm.kind == "missed":
                self._missed(alarm.schedule, alarm.tick)
                continue
            logger.error("schedule %s: the run of %s is still going on", alarm.schedule, in_utc(alarm.tick))
            self._app.events.send("schedule_late", schedule=alarm.schedule, tick=alarm.tick, job_id=alarm.job_id)
        if time.monotonic() >= self._prune_at:
            gone = self._store.prune_ticks(self._app.settings.keep_failed)
            self._prune_at = time.monotonic() + (1.0 if gone >= 1000 else PRUNE_SECONDS)

    def _missed(self, schedule: str, tick: datetime) -> None:
        logger.error("schedule %s missed its tick of %s", schedule, in_utc(tick))
        self._app.events.send("schedule_missed", schedule=schedule, tick=tick)

    def _noted(self, closings: Sequence[Closing]) -> None:
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


def _is_late(job: Job) -> bool:
    return job.claimed_at is not None and job.claimed_at - job.execute_after > ticks.LATE


def _refused(job: Job, reason: str) -> Ended:
    """The job of a tick that is not to run."""
    assert job.claim is not None
    entry = describe(job, Cancel(f"skipped: {reason}"))
    return Ended(job, Outcome(job.id, job.claim, "cancelled", error=entry), 0.0)


def _say(change: Change) -> None:
    if change.what == "taken":
        logger.error("schedule %s is declared in code, but one made at run time has that name: it is left as it is."
                     " Remove it, or give the other one name=...", change.name)  # fmt: skip
    elif change.what != "same":
        logger.info("schedule %s %s", change.name, {"new": "is new", "changed": "was changed"}.get(
            change.what, "is declared by nobody's code any more, and retired"))  # fmt: skip
