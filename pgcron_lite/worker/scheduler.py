"""The scheduler: has ticks decided when it is time, lets their jobs in or not, and says what is missed.

It lives in every worker. Any number may run at once: whoever comes first does the work, and what two do at the same
time is written once. Nothing rests on one of them being the leader, or on its being awake at the moment of a tick.
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

# When somebody else is deciding ticks, look again after this; and stop giving way when it has taken them so long:
# who holds the lock may be no scheduler at all.
YIELD_SECONDS, MAX_YIELDS = 1.0, 8
PRUNE_SECONDS = 600.0
# What a planner takes at once; if there is that much, there is more. A worker has jobs to begin in between.
BATCH = 20


class Scheduler:
    """One worker's part in keeping the schedules."""

    def __init__(
        self, app: PgCron, store: Store, *, plans: bool = True, clock: Clock = monotonic, pings: Pings | None = None
    ) -> None:
        self.due_at = math.inf
        # In how many seconds the first job that the last step has made is due.
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
        """Act on what a look at the table has shown."""
        if self._plans and look.plan_in is not None:
            self.due_at = self._clock() + max(0.0, look.plan_in)
        if look.ticks_want_watching:
            self._try(self._watch, None)

    def step(self) -> bool:
        """Have ticks decided. True if that made jobs; the first is due in `first_in` seconds."""
        self.due_at = self.first_in = math.inf
        if self._plan() is None:
            return False
        changes: list[Change] = self._try(self._store.reconcile, [])
        for change in changes:
            _log_change(change)
        if changes:
            # What has just been declared. Before that, all was decided as it was declared at the time.
            self._plan()
        return self.first_in < math.inf

    def admit(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Ended]]:
        """Those that may begin, and what becomes of the others: jobs of ticks may come too late, or too early."""
        of_ticks = [job for job in jobs if SCHEDULE in job.headers]
        if not of_ticks:
            return list(jobs), []
        if self._plans and any(_is_late(job) for job in of_ticks):
            # There may have been later ticks meanwhile, one of which stands for it.
            while self._plan() and self.due_at == 0.0:
                pass
        admissions = self._admissions([job.id for job in of_ticks])
        admitted, rejected = [], []
        for job in jobs:
            admission = admissions.get(job.id)
            if admission is None:
                # Anybody who may enqueue can write headers. Only the rows of ticks say which job is a schedule's run.
                admitted.append(_of_no_tick(job))
            elif admission.refusal is not None:
                rejected.append(_refused(job, admission.refusal))
            elif admission.wait is not None:
                rejected.append(Ended(job, hand_back(job, admission.wait), 0.0, begun=False))
            else:
                admitted.append(self._admitted(job, admission))
        return admitted, rejected

    def written(self, ended: Sequence[Ended]) -> bool:
        """These outcomes are written: note with their ticks which have ended. True if a run that waited is due now."""
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
        # It may be of a queue that other workers serve.
        self._store.ring()
        return True

    def close(self, seconds: float) -> None:
        """Wait at most so long for reports that are on their way."""
        self._pings.close(seconds)

    def _admissions(self, job_ids: list[int]) -> dict[int, Admission]:
        try:
            return self._store.admit(job_ids)
        except DatabaseRefused:
            # The schedule of one of them is broken. It breaks alone, and its run, which was decided before, begins.
            found: dict[int, Admission] = {}
            for job_id in job_ids:
                nothing_known = {job_id: Admission()}
                found |= self._try(partial(self._store.admit, [job_id]), nothing_known)
            return found

    def _try(self, do: Callable[[], T], default: T) -> T:
        """What `do` brings; a schedule that somebody has edited into nonsense ends no worker."""
        try:
            return do()
        except DatabaseRefused as error:
            logger.error("the database refuses something about schedules; is one edited by hand? %s", error)
            return default

    def _plan(self) -> list[Move] | None:
        """One batch; there are jobs to be claimed between two of them. None: it is others' turn."""
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
            # Something in one of them cannot be stored: go one by one, and leave that one out.
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
        """A schedule whose ticks the database refuses: others are not to wait behind it."""
        moves: list[Move] | None = self._try(
            lambda: self._store.plan(lambda entry, now: ticks.stuck(entry, now, trouble), name), None
        )
        for move in moves or ():
            self._report_move(move)

    def _report_move(self, move: Move) -> None:
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
            logger.error("schedule %s: the run of %s is still going on", alarm.schedule, in_utc(alarm.tick))
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
    """The job without the headers that only the jobs of ticks have."""
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
    """The job of a tick that is not to run."""
    assert job.claim is not None
    entry = describe(job, Cancel(f"skipped: {reason}"))
    return Ended(job, Outcome(job.id, job.claim, "cancelled", error=entry), 0.0)


def _log_change(change: Change) -> None:
    if change.what == "taken":
        logger.error("schedule %s is declared in code, but one made at run time has that name: it is left as it is."
                     " Remove it, and the declared one is in force; or give that another name=...",
                     change.name)  # fmt: skip
    else:
        logger.info("schedule %s %s", change.name, {
            "new": "is new", "changed": "was changed", "started": "asks for a run, as its code has come to life",
            "retired": "is declared by nobody's code any more, and retired",
        }[change.what])  # fmt: skip
