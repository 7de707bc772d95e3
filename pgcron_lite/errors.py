"""Exceptions that users of the library may want to catch.

::

    PgCronError
    ├── OptionError           an invalid option (also a ValueError)
    ├── PayloadError          an argument or a result that cannot be stored (also a TypeError)
    ├── ConfigError           an invalid setting or URL (also a ValueError)
    ├── SetupFinished         registering on an app that already runs
    ├── UnknownTask           a name that no registered task has
    ├── UnknownSchedule       a name that no schedule in the database has
    ├── UnknownJob            an id that is not in the database (any more)
    ├── AppNotFound           the command line could not find your app
    ├── LatePatch             gevent patched after the database driver was loaded
    ├── DatabaseUnavailable   the database cannot be reached now
    │   └── LoginRefused      the server does not accept the user or the password
    ├── DatabaseRefused       the database rejected the request, and would reject it again
    ├── SchemaMismatch        the schema is missing, older or newer than this code
    ├── EmbeddedDatabaseError the development database cannot be found or started
    ├── WaitTimeout           the job has not ended within the timeout (also a TimeoutError)
    └── JobEnded              what ``handle.result()`` raises when the job ended without a result
        ├── JobFailed
        └── JobCancelled

`Retry`, `Snooze` and `Cancel` are raised *by* tasks to steer a job. They are not errors and are in `retry`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class PgCronError(Exception):
    """Base class of all errors of this library."""


class OptionError(PgCronError, ValueError):
    """An option of a task, a call or a worker is invalid."""


class PayloadError(PgCronError, TypeError):
    """A value cannot be stored, or a stored one cannot be read; the message names its path."""


class ConfigError(PgCronError, ValueError):
    """A setting is invalid."""


class SetupFinished(PgCronError, RuntimeError):
    """The app is running; tasks and hooks are registered before that."""


class UnknownTask(PgCronError, LookupError):
    """No task of that name is registered on the app."""


class UnknownSchedule(PgCronError, LookupError):
    """No schedule has that name."""


class UnknownJob(PgCronError, LookupError):
    """No job has that id: it never existed, was deleted, or its history was pruned."""


class AppNotFound(PgCronError):
    """The command line could not find an app to run."""


class LatePatch(PgCronError, RuntimeError):
    """gevent was patched too late or incompletely; greenlets would block each other."""


class DatabaseUnavailable(PgCronError):
    """The database cannot be reached or does not answer now. A later retry may succeed."""


class LoginRefused(DatabaseUnavailable):
    """The server does not accept our user or password; a new URL may be needed."""


class DatabaseRefused(PgCronError):
    """The database rejected the request. A retry would not succeed."""


class SchemaMismatch(PgCronError):
    """The tables are missing, older or newer than this code expects."""


class EmbeddedDatabaseError(PgCronError):
    """The development database cannot be found or started."""


class JobEnded(PgCronError):
    """The job has ended, and has no result to return."""


class JobFailed(JobEnded):
    """The job failed for good; the message is its last error."""


class JobCancelled(JobEnded):
    """The job was cancelled; the message is the reason."""


class WaitTimeout(PgCronError, TimeoutError):
    """The job has not ended within the timeout, which does not affect the job."""


# Options of other queues, with the name and the meaning of the option here.
FOREIGN_OPTIONS = {
    "max_retries": ("max_attempts", "which counts the first execution too: max_retries=3 is max_attempts=4"),
    "retries": ("max_attempts", "which counts the first execution too: retries=3 is max_attempts=4"),
    "autoretry_for": ("retry_on", "a tuple of exception classes"),
    "retry_delay": ("backoff", "a duration, or Backoff(...)"),
    "retry_backoff": ("backoff", "a duration, or Backoff(...)"),
    "default_retry_delay": ("backoff", "a duration, or Backoff(...)"),
    "most": ("max", "the longest delay: max='10m'"),
    "maximum": ("max", "the longest delay: max='10m'"),
    "cap": ("max", "the longest delay: max='10m'"),
    "countdown": ("execute_after", "a duration from now: execute_after='10s'"),
    "delay": ("execute_after", "a duration from now: execute_after='10s'"),
    "schedule_in": ("execute_after", "a duration from now: execute_after='10s'"),
    "eta": ("execute_after", "a datetime with a time zone, or a duration from now"),
    "run_at": ("execute_after", "a datetime with a time zone, or a duration from now"),
    "misfire_grace_time": ("start_within", "a duration: how late a run may still begin"),
    "grace": ("start_within", "a duration: how late a run may still begin"),
    "coalesce": ("catch_up", "'latest' runs once for all missed ticks, 'all' runs each"),
    "max_instances": ("overlap", "'skip' or 'queue' keeps two runs from overlapping"),
    "timezone": ("tz", "an IANA name such as 'Europe/Berlin'"),
    "at": ("execute_after", "a datetime with a time zone, or a duration from now"),
    "routing_key": ("queue", "a name such as 'mail'"),
    "ignore_result": ("keep_result", "keep_result=False drops the result"),
    "id": ("name", "a text such as 'nightly'"),
    "start_date": ("start", "a datetime with a time zone"),
    "end_date": ("end", "a datetime with a time zone"),
    "kwargs": ("args", "a tuple of positional arguments, or a dict of named ones"),
    "concurrency": ("slots", "how many jobs run at once"),
    "broker": ("database_url", "postgresql://user:password@host:5432/database"),
    "broker_url": ("database_url", "postgresql://user:password@host:5432/database"),
}
# Options of other queues without an equivalent here, with the reason or an alternative.
ABSENT_OPTIONS = {
    "bind": "the running job is current_job, from pgcron_lite import current_job",
    "acks_late": "a job always runs at least once, and is acknowledged when it has ended",
    "rate_limit": "there is no rate limit; slots bounds how many jobs a worker runs at once",
    "result_ttl": "the setting PGCRON_KEEP_DONE sets how long done jobs are kept",
    "task_id": "the database draws the id, which is handle.id",
    "job_id": "the database draws the id, which is handle.id",
    "replace_existing": "a schedule is known by its name, and a deploy replaces it",
    "expires": "no job expires here; for a schedule, start_within='1h' is how late a run may still begin",
    "timeout": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
    "time_limit": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
    "job_timeout": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
    "soft_time_limit": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
}


def foreign_option(name: str, known: Iterable[str]) -> tuple[str, str]:
    """Return the option of `known` that other queues call `name`, and the text `; here it is ...`; both "" if none."""
    option, meaning = FOREIGN_OPTIONS.get(name, ("", ""))
    return (option, f"; here it is {option}, {meaning}") if option in known else ("", "")


def near_miss(name: str, known: Iterable[str]) -> str:
    """Return the text `; did you mean 'x'?` if one of `known` is close to `name`, else ""."""
    known = list(known)
    _, translated = foreign_option(name, known)
    if translated:
        return translated
    if name in ABSENT_OPTIONS and name not in known:
        return f"; {ABSENT_OPTIONS[name]}"
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def refuses_unknown_options(where: str) -> Callable[[F], F]:
    """Return a decorator for methods: an unknown keyword raises `OptionError` with the option that was probably meant.

    `where` names the call in the message, as in "options()".
    """

    def decorate(method: F) -> F:
        parameters = list(inspect.signature(method).parameters.values())[1:]
        known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]

        @functools.wraps(method)
        def checked(self: Any, *args: Any, **given: Any) -> Any:
            for option in given:
                if option not in known:
                    raise OptionError(f"{where} has no option {option!r}{near_miss(option, known) or '.'}")
            return method(self, *args, **given)

        return cast("F", checked)

    return decorate
