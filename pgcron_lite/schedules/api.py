"""Schedules of an app: declarations in code, and `app.schedules`, which reads and changes schedules at run time."""

from __future__ import annotations

import builtins
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypedDict, TypeVar

from .. import durations
from ..checks import priority_number, queue_name, tag_names
from ..config import Settings
from ..errors import OptionError, UnknownSchedule
from ..handle import Handle
from ..hints import near_miss
from ..interfaces import App
from ..retry import Backoff, Duration, RetryOn, attempts
from ..task import Task
from . import ticks
from .schedule import CatchUp, Overlap, Schedule, checked, schedule_name, timing_of
from .ticks import ScheduleView, Tick, TickView
from .timezones import END, TimeZone
from .timing import Cron, Every

if TYPE_CHECKING:
    from ..store import Store

P = ParamSpec("P")
R = TypeVar("R")

Args = tuple[Any, ...] | list[Any] | Mapping[str, Any]
# A cron expression, "every 90s", or an interval.
When = str | timedelta | Cron | Every

MAX_BACKFILLED = 10_000
# More ticks than are ever decided ahead of time, even for a schedule that runs every second.
MAX_AHEAD = 1_000
# Options of each job. All other options of its execution belong to its task.
OF_JOBS = ("queue", "priority", "max_attempts", "tags")


class ScheduleOptions(TypedDict, total=False):
    """Options of every schedule, declared in code or made at run time."""

    args: Args
    start: datetime | None
    end: datetime | None
    catch_up: CatchUp
    start_within: Duration | None
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
    """Options of a schedule declared in code, and those of the task that is made of a plain function."""

    name: str | None
    backoff: Backoff | Duration | None
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None
    discard_on: type[BaseException] | tuple[type[BaseException], ...]
    retry: Sequence[RetryOn]
    max_crashes: int
    keep_result: bool


OF_SCHEDULES = tuple(name for name in ScheduleOptions.__annotations__ if name not in OF_JOBS)
OF_TASKS = tuple(name for name in DeclaredOptions.__annotations__ if name not in ScheduleOptions.__annotations__)


class SchedulingApp(App, Protocol):
    """The app, as its schedules use it. Implemented by `app.PgCron`."""

    @property
    def name(self) -> str: ...

    def find_task(self, name: str) -> Task[..., Any]: ...


class Declaring(Protocol):
    """An app or a blueprint, as the declaration of a schedule uses it. Implemented by `declarations.Declarations`."""

    def task(self, *args: Any, **options: Any) -> Any: ...

    def _add_schedule(self, schedule: Schedule) -> None: ...


def declare(
    target: Callable[P, R] | Task[P, R], when: When, tz: TimeZone, options: DeclaredOptions, *, on: Declaring
) -> Task[P, R]:
    """Put a task on a schedule. A plain function becomes a task first."""
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
        task = on.task(**about_task)(target)
        given = {option: value for option, value in given.items() if option not in OF_TASKS}
    on._add_schedule(make(task.name if name is None else schedule_name(name), when, task, tz, given))
    return task


def make(name: str, when: When, task: Task[..., Any], tz: TimeZone, options: Mapping[str, Any]) -> Schedule:
    """Return a schedule, after checking each option."""
    given = dict(options)
    _check_names(given, tuple(ScheduleOptions.__annotations__))
    timing = timing_of(when, tz, name=name, start=given.pop("start", None), end=given.pop("end", None))
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
        **checked(**given),
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
    """Access to all schedules at run time, as `app.schedules`.

    A schedule made here is a row, and exists until it is removed here. One declared in code is changed in code; here
    it can be paused, run and read.
    """

    def __init__(self, app: SchedulingApp) -> None:
        self._app = app

    def list(self) -> builtins.list[ScheduleView]:
        """Return every schedule, sorted by name."""
        return self._app.store.schedules()

    def get(self, name: str) -> ScheduleView:
        """Return the schedule called `name`, or raise `UnknownSchedule`."""
        found = self._app.store.schedules(name)
        if not found:
            raise self._unknown(name)
        return found[0]

    def add(
        self, name: str, when: When, task: Task[..., Any] | str, *, tz: TimeZone = "UTC", **options: Any
    ) -> ScheduleView:
        """Put a registered task on a schedule. Options as for `@app.cron`."""
        return self._put(name, when, task, tz, options, replace=False)

    def replace(
        self, name: str, when: When, task: Task[..., Any] | str, *, tz: TimeZone = "UTC", **options: Any
    ) -> ScheduleView:
        """Replace the whole definition of a schedule made at run time. Its history is kept."""
        return self._put(name, when, task, tz, options, replace=True)

    def remove(self, name: str) -> None:
        """Remove a schedule made at run time. Runs that have begun continue; all others are withdrawn.

        If the code of your workers declares a schedule of the same name, which this one had replaced, that schedule
        takes effect.
        """
        answer = self._app.store.remove_schedule(name)
        if answer == "missing":
            raise self._unknown(name)
        if answer == "code":
            raise OptionError(f"schedule {name!r} is declared in code: remove it there, or pause it here")
        self._plan(name)

    def pause(self, name: str) -> None:
        """Start no more runs of it until `resume`. A deployment does not change that."""
        if not self._app.store.pause_schedule(name):
            raise self._unknown(name)

    def resume(self, name: str) -> None:
        """Resume the schedule from now on. Ticks that passed during the pause are not caught up."""
        store = self._app.store
        self.get(name)
        # First record the ticks that passed as paused, so that `resume` does not run them.
        store.plan(ticks.decide, name)
        store.resume_schedule(name)
        self._plan(name)

    def run_now(self, name: str) -> Handle[Any]:
        """Run it once, in addition to its ticks, even if it is paused."""
        store, schedule = self._app.store, self.get(name).schedule
        now = store.now()
        while True:
            added = store.add_ticks(name, [_by_hand(schedule, now, now, "manual")])
            if added:
                store.ring()
                return Handle(self._app, added[now])
            now += timedelta(microseconds=1)

    def backfill(self, name: str, since: datetime, until: datetime | None = None) -> builtins.list[Handle[Any]]:
        """Run the ticks from `since` up to `until` (or now) that have not run, with `current_job.is_caught_up`."""
        store, schedule = self._app.store, self.get(name).schedule
        if schedule.after_finish:
            raise OptionError(f"schedule {name!r} counts from the end of each run, so no runs of the past are missing")
        now = store.now()
        first, last = _moment(since, "since"), now if until is None else _moment(until, "until")
        if last > now:
            raise OptionError(f"until={until}: ticks that are still to come need no backfill")
        before = first - timedelta(microseconds=1)
        asked = list(itertools.islice(schedule.timing.between(before, last), MAX_BACKFILLED + 1))
        asked = [tick for tick in asked if tick < last or until is None]
        if len(asked) > MAX_BACKFILLED:
            raise OptionError(f"that is more than {MAX_BACKFILLED} ticks; do it in parts")
        added = store.add_ticks(name, [_by_hand(schedule, tick, now, "backfill") for tick in asked])
        store.ring()
        return [Handle(self._app, added[tick]) for tick in asked if tick in added]

    def history(self, name: str, limit: int = 50, before: datetime | None = None) -> builtins.list[TickView]:
        """Return the ticks that have been due or were cancelled earlier, newest first; also of a removed schedule."""
        store = self._app.store
        return store.ticks(name, before=before, until=store.now(), limit=limit)

    def next(self, name: str, count: int = 5) -> builtins.list[datetime]:
        """Return its next `count` ticks, without those whose planned run was cancelled, deleted or run early."""
        view, store = self.get(name), self._app.store
        if view.schedule.after_finish:
            return [] if view.next_tick is None else [view.next_tick]
        now = store.now()
        gone = {tick.tick for tick in called_off(store, name, now)}
        ahead = (tick for tick in view.schedule.timing.between(now, END) if tick not in gone)
        return [*itertools.islice(ahead, count)]

    def _put(
        self, name: str, when: When, task: Task[..., Any] | str, tz: TimeZone, options: Mapping[str, Any], *,
        replace: bool,
    ) -> ScheduleView:
        if not isinstance(task, (Task, str)):
            raise OptionError(
                f"schedules.add() and replace() take a registered task or its name, got {task!r}; put @app.task above"
                " the function, so that workers find it by its name"
            )
        known = self._app.find_task(task.name if isinstance(task, Task) else task)
        made = make(schedule_name(name), when, known, tz, options)
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
        """Decide its next ticks immediately, without waiting for a worker."""
        if self._app.store.plan(ticks.decide, name):
            self._app.store.ring()

    def _unknown(self, name: str) -> UnknownSchedule:
        known = [view.name for view in self._app.store.schedules()]
        return UnknownSchedule(f"there is no schedule {name!r}{near_miss(name, known) or '.'}")


def called_off(store: Store, name: str, now: datetime) -> list[TickView]:
    """Return future ticks without a run to start, because it was cancelled, deleted or run early by a user."""
    ahead = [tick for tick in store.ticks(name, limit=MAX_AHEAD) if tick.tick > now]
    return [tick for tick in reversed(ahead) if tick.outcome is not None or tick.kind != "tick"]


def _by_hand(schedule: Schedule, tick: datetime, now: datetime, kind: ticks.Kind) -> Tick:
    return Tick(tick, now, schedule.job(tick, now), late_at=ticks.late_at(schedule, now, now), kind=kind)


def _moment(value: datetime, name: str) -> datetime:
    found = durations.due(value, name=name) if isinstance(value, datetime) else value
    if not isinstance(found, datetime):
        raise OptionError(f"{name}={value!r}: expected a datetime with a time zone")
    return found
