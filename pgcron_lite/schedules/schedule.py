"""A schedule: a task, its arguments, its timing, and the policies for ticks that cannot run on time.

A schedule is a value, stored as JSON in the same way whether it is declared in code or made at run time. `timing`
computes its ticks, and `ticks` decides the outcome of each one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast, get_args
from urllib import parse

from .. import durations
from ..errors import OptionError
from ..hints import near_miss
from ..job import MAX_CRASHES, NewJob
from ..job import SCHEDULE as SCHEDULE
from ..retry import Duration
from .timezones import TimeZone
from .timing import Cron, Every, jitter_of, read_timing

CatchUp = Literal["skip", "latest", "all"]
Overlap = Literal["allow", "skip", "queue"]

# The headers of a job that belongs to a tick.
TICK, PREVIOUS, CAUGHT_UP = "pgcron-tick", "pgcron-previous", "pgcron-caught-up"
OF_TICKS = frozenset({SCHEDULE, TICK, PREVIOUS, CAUGHT_UP})


def header_time(headers: Mapping[str, str], header: str) -> datetime | None:
    """Return the moment in `header` of a tick's job, or None if it is not set."""
    return _moment(headers.get(header))


@dataclass(frozen=True, slots=True)
class Schedule:
    """The job to enqueue at each tick of `timing`, and the policies."""

    name: str
    task: str
    timing: Cron | Every
    args: str = "{}"
    queue: str = "default"
    priority: int = 0
    max_attempts: int = 5
    max_crashes: int = MAX_CRASHES
    tags: tuple[str, ...] = ()
    catch_up: CatchUp = "latest"
    start_within: timedelta | None = None
    overlap: Overlap = "skip"
    jitter: timedelta = timedelta(0)
    max_runs: int | None = None
    run_on_start: bool = False
    after_finish: bool = False
    enabled: bool = True
    alert_after: timedelta | None = None
    ping: str | None = None

    def __post_init__(self) -> None:
        if self.after_finish and not isinstance(self.timing, Every):
            raise OptionError("after_finish=True counts an interval from the end of the last run: use it with every")
        if self.after_finish and self.catch_up == "all":
            raise OptionError('after_finish=True has one run at a time and none to catch up; leave out catch_up="all"')
        if isinstance(self.timing, Every) and self.jitter > self.timing.interval:
            raise OptionError(
                f"jitter={durations.spoken(self.jitter)} is longer than the interval,"
                f" {durations.spoken(self.timing.interval)}: a tick could come after the one that follows it"
            )

    def due_at(self, tick: datetime) -> datetime:
        """Return the due time of the job of `tick`, delayed by the jitter, which is the same in every process."""
        return tick + jitter_of(self.name, tick, self.jitter) if self.jitter else tick

    def job(self, tick: datetime, due_at: datetime) -> NewJob:
        """Return the job of `tick`."""
        return NewJob(
            self.task, self.args, self.queue, self.priority, due_at, self.max_attempts, self.max_crashes,
            {SCHEDULE: self.name, TICK: tick.isoformat()}, self.tags,
        )

    def dumps(self) -> str:
        """Return the schedule as JSON without its name. Equal schedules have the same text."""
        timing = self.timing
        said: dict[str, Any] = {
            "task": self.task,
            "timing": str(timing),
            "tz": timing.tz if isinstance(timing, Cron) else None,
            "start": _iso(timing.start),
            "end": _iso(timing.end),
            "args": self.args,
            "queue": self.queue,
            "priority": self.priority,
            "max_attempts": self.max_attempts,
            "max_crashes": self.max_crashes,
            "tags": list(self.tags),
            "catch_up": self.catch_up,
            "start_within": _seconds(self.start_within),
            "overlap": self.overlap,
            "jitter": _seconds(self.jitter),
            "max_runs": self.max_runs,
            "run_on_start": self.run_on_start,
            "after_finish": self.after_finish,
            "enabled": self.enabled,
            "alert_after": _seconds(self.alert_after),
            "ping": self.ping,
        }
        return json.dumps({key: value for key, value in said.items() if value is not None}, separators=(",", ":"))


# A planner reads each definition many times.
@functools.lru_cache(maxsize=16_384)
def loads(name: str, text: str) -> Schedule:
    """Return the schedule that `dumps` has written, or raise `OptionError` if it is not valid on this machine."""
    try:
        said = json.loads(text)
        start, end = _moment(said.pop("start", None)), _moment(said.pop("end", None))
        timing = timing_of(said.pop("timing"), said.pop("tz", "UTC"), name=name, start=start, end=end)
        said |= {key: timedelta(seconds=said[key]) for key in ("start_within", "alert_after", "jitter") if key in said}
        return Schedule(name=name, timing=timing, **said | {"tags": tuple(said.get("tags", ()))})
    except OptionError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise OptionError(f"the definition of schedule {name!r} cannot be read: {what}") from None


def timing_of(
    when: object, tz: TimeZone, *, name: str, start: datetime | None = None, end: datetime | None = None
) -> Cron | Every:
    """Return the timing for `when`: a cron expression, "every 90s", a timedelta, or a timing itself."""
    read = when if isinstance(when, Cron | Every | timedelta) else read_timing(cast(str, when), tz)
    if isinstance(read, Cron):
        return Cron(read.expression, read.tz, start=start or read.start, end=end or read.end)
    if isinstance(read, Every):
        return Every(read.interval, name=name, start=start or read.start, end=end or read.end)
    return Every(read, name=name, start=start, end=end)


def generation(app: str, definitions: Mapping[str, str]) -> str:
    """Return the id of a set of declared schedules, which is the same for every process of one release."""
    text = json.dumps([app, sorted(definitions.items())])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


OPTIONS = (
    "catch_up", "start_within", "overlap", "jitter", "max_runs", "run_on_start", "after_finish", "enabled",
    "alert_after", "ping",
)


def checked(
    *,
    catch_up: CatchUp = "latest",
    start_within: Duration | None = None,
    overlap: Overlap = "skip",
    jitter: Duration | None = None,
    max_runs: int | None = None,
    run_on_start: bool = False,
    after_finish: bool = False,
    enabled: bool = True,
    alert_after: Duration | None = None,
    ping: str | None = None,
) -> dict[str, Any]:
    """Return the options of a schedule, each checked."""
    _choice("catch_up", catch_up, get_args(CatchUp))
    _choice("overlap", overlap, get_args(Overlap))
    if max_runs is not None and (not isinstance(max_runs, int) or isinstance(max_runs, bool) or max_runs < 1):
        raise OptionError(f"max_runs={max_runs!r}: expected a whole number of at least 1")
    for name, flag in (("run_on_start", run_on_start), ("after_finish", after_finish), ("enabled", enabled)):
        if not isinstance(flag, bool):
            raise OptionError(f"{name}={flag!r}: expected True or False")
    return {
        "catch_up": catch_up,
        "start_within": None if start_within is None else durations.duration(start_within, name="start_within"),
        "overlap": overlap,
        "jitter": timedelta(0) if jitter is None else durations.duration(jitter, name="jitter"),
        "max_runs": max_runs,
        "run_on_start": run_on_start,
        "after_finish": after_finish,
        "enabled": enabled,
        "alert_after": None if alert_after is None else durations.duration(alert_after, name="alert_after"),
        "ping": None if ping is None else check_url(ping),
    }


def check_url(value: object) -> str:
    """Return `value` if pings can be sent to it. Errors never show it: anyone who knows it can report to the check."""
    expected = "expected http:// or https:// and a host, such as 'https://hc-ping.com/<id of the check>'"
    if not isinstance(value, str):
        raise OptionError(f"the url of pings is of type {type(value).__name__}; {expected}")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise OptionError(
            "the url of pings has characters that no url has; write them as %20 and the like, and the host in ASCII"
        )
    try:
        parts = parse.urlsplit(value)
        is_known = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_known = is_known and parts.port != 0
    except ValueError:  # such as a port that is no number
        is_known = False
    if not is_known:
        raise OptionError(f"the url of pings cannot be used; {expected}")
    if "@" in parts.netloc:
        raise OptionError(f"the url of pings has a user in it, which is not supported; {expected}")
    return value


def schedule_name(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable() or value != value.strip():
        raise OptionError(f"name={value!r}: expected 1 to 200 printable characters, such as 'nightly'")
    return value


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = near_miss(value, choices) if isinstance(value, str) else ""
        raise OptionError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}{near}")


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()
