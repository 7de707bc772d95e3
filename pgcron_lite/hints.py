"""Hints in error messages: the name that was probably meant, and what the words of other queues are called here.

The words come from Celery, RQ, huey, Dramatiq, Procrastinate and APScheduler. A word without an equivalent gets the
reason, or an alternative.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, cast

from .errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])

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
    "minute": "it is a field of the expression: '30 2 * * *' is minute, hour, day, month and weekday",
    "hour": "it is a field of the expression: '30 2 * * *' is minute, hour, day, month and weekday",
    "day_of_week": "it is a field of the expression: '30 2 * * 1-5' is minute, hour, day, month and weekday",
    "replace_existing": "a schedule is known by its name, and a deploy replaces it",
    "expires": "no job expires here; for a schedule, start_within='1h' is how late a run may still begin",
    "timeout": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
    "time_limit": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
    "job_timeout": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
    "soft_time_limit": "there is no time limit for a task; set one where the task waits (a socket, a statement)",
}


# Methods of other queues, with the calls that do the same here: of a task, a handle, and the app.
TASK_METHODS = {
    "apply_async": "task.options(...).delay(...)",
    "apply": "task(...), which runs it in this process",
    "call_local": "task(...), which runs it in this process",
    "s": "task.delay(...); there are no signatures",
    "si": "task.delay(...); there are no signatures",
    "signature": "task.delay(...); there are no signatures",
    "send": "task.delay(...)",
    "send_with_options": "task.options(...).delay(...)",
    "enqueue": "task.delay(...)",
    "defer": "task.delay(...)",
    "configure": "task.options(...)",
    "schedule": "task.options(execute_after=...).delay(...)",
    "retry": "raise Retry(...), from pgcron_lite import Retry",
    "request": "current_job, from pgcron_lite import current_job",
    "starmap": "task.map([(1, 2), (3, 4)])",
    "chunks": "task.map([...])",
}
HANDLE_METHODS = {
    "get": "handle.result(timeout='10s')",
    "wait": "handle.result(timeout='10s')",
    "status": "handle.state()",
    "ready": "handle.done()",
    "revoke": "handle.cancel()",
    "forget": "app.jobs.delete(handle.id)",
}
APP_METHODS = {
    "enqueue": "some_task.delay(...), or app.send('name', args=[...]). SQL has select pgcron.enqueue('name', ...)",
    "send_task": "app.send('name', args=[...])",
    "AsyncResult": "app.handle(id)",
    "fetch_job": "app.jobs.get(id)",
    "periodic_task": "@app.cron(...) or @app.every(...)",
    "scheduled_job": "@app.cron(...) or @app.every(...)",
    "add_job": "app.schedules.add(...)",
    "add_periodic_task": "app.schedules.add(...)",
    "on_after_configure": "@app.cron(...) or @app.every(...)",
    "conf": "app.configure(...)",
    "autodiscover_tasks": "app.register(blueprint), or an import of the module",
    "blueprint": "TaskBlueprint('name'), from pgcron_lite import TaskBlueprint",
    "register_blueprint": "app.register(blueprint)",
    "include": "app.register(blueprint)",
    "worker_main": "app.run_worker()",
    "start": "app.run_worker()",
    "signal": "@app.on(event)",
}
BLUEPRINT_METHODS = {
    "on": "@app.on(event), on the app",
    "around": "@app.around, on the app",
    "send": "app.send('name', args=[...]), on the app",
    "register": "app.register(blueprint), on the PgCron and not on the Flask app",
    "run_worker": "app.run_worker(), on the app",
    "before_request": "@app.around, on the app",
}
# Signals of other queues, with the events here.
SIGNALS = {
    "before_task_publish": "job_enqueuing",
    "after_task_publish": "job_enqueued",
    "task_prerun": "job_started",
    "task_postrun": "job_done",
    "task_success": "job_done",
    "task_failure": "job_failed",
    "task_retry": "job_retrying",
    "task_revoked": "job_cancelled",
    "worker_ready": "worker_started",
    "worker_shutting_down": "worker_stopping",
    "worker_shutdown": "worker_stopped",
}


def refuse_attribute(owner: object, name: str, what: str, short: str, methods: Mapping[str, str]) -> NoReturn:
    """Raise AttributeError for `owner.name`, with the call that another queue's `name` is here."""
    if name.startswith("__"):
        # Python itself asks for these; `__dict__` of an object with slots, for example, in `__dir__` below.
        raise AttributeError(f"{what} has no attribute {name!r}", name=name, obj=owner)
    if name in dir(type(owner)):
        # A property or a slot, which has raised AttributeError itself.
        object.__getattribute__(owner, name)
    known = [each for each in object.__dir__(owner) if not each.startswith("_")]
    if name in methods:
        hint = f"; here it is {methods[name]}"
    else:
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
        hint = f"; did you mean {short}.{near[0]}?" if near and not name.startswith("_") else ""
    raise AttributeError(f"{what} has no attribute {name!r}{hint}", name=name, obj=owner)


def foreign_signal(name: str) -> str:
    """Return the text `; here it is @app.on(...)` for a signal of another queue, else ""."""
    return f"; here it is @app.on({SIGNALS[name]!r})" if name in SIGNALS else ""


def crontab_of(value: object) -> str:
    """Return the text `; write '0 7 * * *'` for a `crontab(...)` object of Celery, else ""."""
    parts = [getattr(value, f"_orig_{part}", None) for part in ("minute", "hour", "day_of_month", "month_of_year",
                                                                "day_of_week")]
    if any(not isinstance(part, str | int) for part in parts):
        return ""
    return f"; write {' '.join(str(part).replace(' ', '') for part in parts)!r}"


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
