"""Schedules as an app knows them: those its code declares, and `app.schedules`, which changes things at run time."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar

from . import moment, plan, ticks
from .config import Settings
from .errors import OptionError, UnknownSchedule, near_miss
from .handle import Handle
from .plan import CatchUp, Overlap, Schedule
from .retry import Backoff, Duration, RetryOn, attempts
from .schedule import Cron, Every
from .task import Task, priority_number, queue_name, tag_names
from .ticks import ScheduleView, Tick, TickView
from .zone import END

if TYPE_CHECKING:
    from .app import PgCron

P = ParamSpec("P")
R = TypeVar("R")

Args = tuple[Any, ...] | list[Any] | Mapping[str, Any]
# What runs: a cron expression, "every 90s", or an interval.
When = str | timedelta | Cron | Every

MOST_BACKFILLED = 10_000
# What is said of each job; everything else about how it runs belongs to its task.
OF_JOBS = ("queue", "priority", "max_attempts", "tags")


class ScheduleOptions(TypedDict, total=False):
    """What may be said about a schedule, however it is made."""

    args: Args
    start: datetime | None
    end: datetime | None
    catch_up: CatchUp
    grace: Duration | None
    overlap: Overlap
    jitter: Duration | None
    max_runs: int | None
    run_on_start: bool
    after_finish: bool
    enabled: bool
    alert_after: Duration | None
    ping: str | None
    queue: str
    priority: int
    max_attempts: int
    tags: Sequence[str]


class DeclaredOptions(ScheduleOptions, total=False):
    """... and what a plain function may be given, which becomes a task by being scheduled."""

    name: str | None
    backoff: Backoff | Duration | None
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None
    discard_on: type[BaseException] | tuple[type[BaseException], ...]
    retry: Sequence[RetryOn]
    max_crashes: int
    keep_result: bool


OF_SCHEDULES = tuple(name for name in ScheduleOptions.__annotations__ if name not in OF_JOBS)
OF_TASKS = tuple(name for name in DeclaredOptions.__annotations__ if name not in ScheduleOptions.__annotations__)


def declare(
    app: PgCron, target: Callable[P, R] | Task[P, R], when: When, tz: str, options: DeclaredOptions
) -> Task[P, R]:
    """Put a task on a schedule, and make one of a plain function first."""
    given: dict[str, Any] = dict(options)
    _check_names(given, (*DeclaredOptions.__annotations__, "tz"))
    name = given.pop("name", None)
    if isinstance(target, Task):
        task = target
        for option in OF_TASKS:
            if option in given:
                raise OptionError(f"{option}= is about the task, not about when it runs: give it to @app.task")
    else:
        about_task = {option: given[option] for option in (*OF_TASKS, *OF_JOBS) if option in given}
        about_task.pop("tags", None)
        task = app.task(**about_task)(target)
        given = {option: value for option, value in given.items() if option not in OF_TASKS}
    made = make(app, task.name if name is None else plan.schedule_name(name), when, task, tz, given)
    earlier = app.declared.get(made.name)
    if earlier is not None and earlier.dumps() != made.dumps():
        raise OptionError(f"two schedules are named {made.name!r}; give one of them name=...")
    app.declared[made.name] = made
    return task


def make(app: PgCron, name: str, when: When, task: Task[..., Any], tz: str, options: Mapping[str, Any]) -> Schedule:
    """A schedule of what was given, each part of it checked."""
    given = dict(options)
    _check_names(given, tuple(ScheduleOptions.__annotations__))
    timing = plan.timing_of(when, tz, name=name, start=given.pop("start", None), end=given.pop("end", None))
    args = given.pop("args", ())
    own = task.settings
    return Schedule(
        name=name,
        task=task.name,
        timing=timing,
        args=_arguments(task, args),
        queue=queue_name(given.pop("queue", own.queue)),
        priority=priority_number(given.pop("priority", own.priority)),
        max_attempts=attempts(given.pop("max_attempts", own.policy.most_attempts)),
        max_crashes=own.max_crashes,
        tags=tag_names(given.pop("tags", ())),
        **plan.checked(**given),
    )


def _arguments(task: Task[..., Any], args: Args) -> str:
    if not args:
        try:
            inspect.signature(task.function).bind()
        except TypeError as error:
            raise OptionError(
                f"{task.name}{inspect.signature(task.function)} cannot be called without arguments ({error});"
                " give them: args=(1, 2) or args={'name': value}"
            ) from None
        return "{}"
    limit = Settings().payload_limit
    try:
        if isinstance(args, Mapping):
            return task.arguments.dumps((), args, limit)
        return task.arguments.dumps(tuple(args), {}, limit)
    except TypeError as error:
        raise OptionError(f"args={args!r}: {error}") from None


def _check_names(given: Mapping[str, Any], known: Sequence[str]) -> None:
    for option in given:
        if option not in known:
            raise OptionError(f"a schedule has no option {option!r}{near_miss(option, known) or '.'}")


class Schedules:
    """`app.schedules`: looks at every schedule, and makes and changes some while everything runs.

    A schedule made here is a row, and lasts until it is removed here. One declared in code is changed in code; here it
    can be paused, run, and looked at.
    """

    def __init__(self, app: PgCron) -> None:
        self._app = app

    def all(self) -> list[ScheduleView]:
        """Every schedule, by name."""
        return self._app.store.schedules()

    def get(self, name: str) -> ScheduleView:
        """The schedule called `name`; `UnknownSchedule` if there is none."""
        found = self._app.store.schedules(name)
        if not found:
            raise self._unknown(name)
        return found[0]

    def add(
        self, name: str, when: When, task: Task[..., Any] | str, *, tz: str = "UTC", **options: Any
    ) -> ScheduleView:
        """Put a registered task on a schedule. Options as for `@app.cron`."""
        return self._put(name, when, task, tz, options, replace=False)

    def replace(
        self, name: str, when: When, task: Task[..., Any] | str, *, tz: str = "UTC", **options: Any
    ) -> ScheduleView:
        """Give a schedule made at run time another definition, entirely. What has run is remembered."""
        return self._put(name, when, task, tz, options, replace=True)

    def remove(self, name: str) -> None:
        """End a schedule made at run time. What has begun goes on; what has not is withdrawn.

        If the code of your workers declares one of the same name, which had to stand back, that one is in force then.
        """
        answer = self._app.store.remove_schedule(name)
        if answer == "missing":
            raise self._unknown(name)
        if answer == "code":
            raise OptionError(f"schedule {name!r} is declared in code: remove it there, or pause it here")
        self._plan(name)

    def pause(self, name: str) -> None:
        """Start no more runs of it, whatever is deployed, until `resume`."""
        if not self._app.store.pause_schedule(name):
            raise self._unknown(name)

    def resume(self, name: str) -> None:
        """Go on from now. Ticks that went by meanwhile are not caught up with."""
        store = self._app.store
        self.get(name)
        # What went by is noted as paused first; after that it is open no more.
        store.plan(ticks.decide, name)
        store.resume_schedule(name)
        self._plan(name)

    def run_now(self, name: str) -> Handle[Any]:
        """Run it once, beside its ticks, also if it is paused."""
        store, schedule = self._app.store, self.get(name).schedule
        now = store.now()
        while True:
            added = store.add_ticks(name, [_by_hand(schedule, now, now, "manual")])
            if added:
                store.ring()
                return Handle(self._app, added[now])
            now += timedelta(microseconds=1)

    def backfill(self, name: str, since: datetime, until: datetime | None = None) -> list[Handle[Any]]:
        """Run the ticks from `since` up to `until` (now) that have not run. They know that they are caught up."""
        store, schedule = self._app.store, self.get(name).schedule
        if schedule.after_finish:
            raise OptionError(f"schedule {name!r} counts from the end of each run, so no runs of the past are missing")
        now = store.now()
        first, last = _moment(since, "since"), now if until is None else _moment(until, "until")
        if last > now:
            raise OptionError(f"until={until}: ticks that are still to come need no backfill")
        before = first - timedelta(microseconds=1)
        asked = list(itertools.islice(schedule.timing.between(before, last), MOST_BACKFILLED + 1))
        asked = [tick for tick in asked if tick < last or until is None]
        if len(asked) > MOST_BACKFILLED:
            raise OptionError(f"that is more than {MOST_BACKFILLED} ticks; do it in parts")
        added = store.add_ticks(name, [_by_hand(schedule, tick, now, "backfill") for tick in asked])
        store.ring()
        return [Handle(self._app, added[tick]) for tick in asked if tick in added]

    def history(self, name: str, limit: int = 50, before: datetime | None = None) -> list[TickView]:
        """What became of the ticks that have come, the newest first; also of a schedule that is gone."""
        store = self._app.store
        return store.ticks(name, before=before or store.now() + timedelta(microseconds=1), limit=limit)

    def next(self, name: str, count: int = 5) -> list[datetime]:
        """When it is due next, by its timing alone."""
        view = self.get(name)
        if view.schedule.after_finish:
            return [] if view.next_tick is None else [view.next_tick]
        return list(itertools.islice(view.schedule.timing.between(self._app.store.now(), END), count))

    def _put(
        self, name: str, when: When, task: Task[..., Any] | str, tz: str, options: Mapping[str, Any], *, replace: bool
    ) -> ScheduleView:
        known = self._app.find_task(task.name if isinstance(task, Task) else task)
        made = make(self._app, plan.schedule_name(name), when, known, tz, options)
        if made.run_on_start:
            raise OptionError("run_on_start=True is for schedules declared in code; here, call run_now()")
        answer = self._app.store.put_schedule(name, self._app.name, made.dumps(), replace=replace)
        if answer == "exists":
            raise OptionError(f"there is a schedule {name!r} already; replace() gives it another definition")
        if answer == "missing":
            raise self._unknown(name)
        if answer == "code":
            raise OptionError(f"schedule {name!r} is declared in code: change it there")
        self._plan(name)
        return self.get(name)

    def _plan(self, name: str) -> None:
        """Decide its next ticks here and now, rather than when a worker comes by."""
        if self._app.store.plan(ticks.decide, name):
            self._app.store.ring()

    def _unknown(self, name: str) -> UnknownSchedule:
        known = [view.name for view in self._app.store.schedules()]
        return UnknownSchedule(f"there is no schedule {name!r}{near_miss(name, known) or '.'}")


def _by_hand(schedule: Schedule, tick: datetime, now: datetime, kind: ticks.Kind) -> Tick:
    return Tick(tick, now, schedule.job(tick, now), late_at=ticks.late_at(schedule, now, now), kind=kind)


def _moment(value: datetime, name: str) -> datetime:
    found = moment.due(value, name=name) if isinstance(value, datetime) else value
    if not isinstance(found, datetime):
        raise OptionError(f"{name}={value!r}: expected a datetime with a time zone")
    return found
