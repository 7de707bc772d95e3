"""Execution of one claimed job, from its row to an outcome. `run` is one attempt, from start to end."""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..context import Running, running
from ..errors import PayloadError
from ..job import Job, Outcome, value
from ..retry import RetryPolicy, Steer, decide

if TYPE_CHECKING:
    from ..app import Around, PgCron
    from ..task import Task

logger = logging.getLogger(__name__)

# Length limits for the stored error of one attempt.
MAX_TEXT, MAX_TRACEBACK = 2_000, 16_000


@value
class Ended:
    """A finished attempt: the outcome to write, its duration, and the exception that was raised."""

    job: Job
    outcome: Outcome
    seconds: float
    error: BaseException | None = None
    # The total number of executions that this error allows, if a retry rule allows fewer than the row does.
    limit: int | None = None
    # False for a run of a schedule that was claimed but has to wait for an earlier run.
    begun: bool = True


def run(
    app: PgCron,
    job: Job,
    is_stopping: Callable[[], bool] = lambda: False,
    luck: Callable[[], float] = random.random,
) -> Ended:
    """Run `job`'s task once. Never raises: every exception becomes an outcome. `luck` is the jitter of the backoff."""
    started = time.perf_counter()
    token = running.set(Running(app, job, is_stopping))
    task: Task[..., Any] | None = None
    error: BaseException | None = None
    limit: int | None = None
    try:
        task = app.find_task(job.task)
        outcome = _done(app, task, job, _call_in_hooks(app, task, job))
    except BaseException as raised:
        # BaseException: a task that calls sys.exit or raises KeyboardInterrupt has failed; the worker continues.
        policy = RetryPolicy(max_attempts=job.max_attempts) if task is None else task.settings.policy
        outcome, limit, error = *_failed(job, raised, policy, luck), raised
    finally:
        running.reset(token)
    return Ended(job, outcome, time.perf_counter() - started, error, limit)


def _call_in_hooks(app: PgCron, task: Task[..., Any], job: Job) -> Any:
    """Call the task with the job's arguments, inside every `around` hook."""
    if job.flaw is not None:
        raise UnreadableJob(f"the job's row cannot be read: {job.flaw}")
    args, kwargs = _arguments(task, job)
    if not app.arounds:
        return _call(app, task, job, args, kwargs)
    result = None
    with ExitStack() as hooks:
        for hook in app.arounds:
            hooks.enter_context(_hook(hook, job))
        result = _call(app, task, job, args, kwargs)
    return result


def _call(app: PgCron, task: Task[..., Any], job: Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if app.events.wants("job_started"):
        app.events.send("job_started", job=job)
    return task.function(*args, **kwargs)


@contextmanager
def _hook(hook: Around, job: Job) -> Iterator[None]:
    """Enter one `around` hook. It sees an exception raised inside it and may replace it, but cannot suppress it.

    The exception may come from another hook, before the task has started. If it were suppressed, a job that never ran
    would be recorded as done.
    """
    raised: BaseException | None = None
    with contextmanager(hook)(job):
        try:
            yield
        except BaseException as error:
            raised = error
            raise
    if raised is not None:
        raise raised


def _arguments(task: Task[..., Any], job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return task.arguments.loads(job.args)
    except PayloadError as error:
        raise UnreadableArguments(str(error)) from error


def _done(app: PgCron, task: Task[..., Any], job: Job, result: Any) -> Outcome:
    assert job.claim is not None
    if result is None or not task.settings.keep_result:
        return Outcome(job.id, job.claim, "done")
    return Outcome(job.id, job.claim, "done", result=_encoded_result(app, task, result))


def _encoded_result(app: PgCron, task: Task[..., Any], result: Any) -> str:
    try:
        return task.arguments.dumps_result(result, app.settings.payload_limit)
    except PayloadError as error:
        raise UnfitResult(
            f"the task ran, but its result cannot be stored: {error} Return plain data, or set"
            f" @app.task(keep_result=False) on {task.name}."
        ) from error


class UnfitResult(PayloadError):
    """The result cannot be stored. The task has run, so a retry would only repeat its effects."""


class UnreadableArguments(PayloadError):
    """The stored arguments cannot be decoded. A retry cannot change that."""


class UnreadableJob(PayloadError):
    """A value of the job's row cannot be decoded. A retry cannot change that."""


def _failed(
    job: Job, error: BaseException, policy: RetryPolicy, luck: Callable[[], float]
) -> tuple[Outcome, int | None]:
    """Return the outcome, and the number of executions that `error` allows if that is fewer than the row allows."""
    if isinstance(error, (UnfitResult, UnreadableArguments, UnreadableJob)):
        policy = RetryPolicy(discard_on=(type(error),))
    allowed = job.max_attempts if isinstance(error, Steer) else policy.plan(error, job.max_attempts)[0]
    # An error that is never retried has no separate limit: its log line shows the limit of the row.
    limit = allowed if job.attempt <= allowed < job.max_attempts else None
    return decide(job, error, policy, describe(job, error), luck), limit


def interrupted(job: Job, error: BaseException) -> Ended:
    """Return the outcome of a job whose slot got an exception thrown in by other code: an ordinary failure.

    The description uses only the name of the exception's class, and so runs none of the exception's own code.
    """
    text = f"{type(error).__name__}, thrown in from outside the task"
    entry = {"attempt": job.attempt, "at": datetime.now(UTC).isoformat(), "error": text}
    return Ended(job, decide(job, error, RetryPolicy(max_attempts=job.max_attempts), entry), 0.0, error)


def describe(job: Job, error: BaseException) -> dict[str, Any]:
    """Return an entry for the job's error history, of bounded size and in text that any database accepts."""
    entry = {
        "attempt": job.attempt,
        "at": datetime.now(UTC).isoformat(),
        "error": clean(one_line(error), MAX_TEXT),
    }
    if not isinstance(error, Steer):
        entry["traceback"] = clean(_traceback(error), MAX_TRACEBACK)
    return entry


def one_line(error: BaseException) -> str:
    """Return `error` as one text, such as `ValueError: bad input`, even if its `__str__` raises."""
    try:
        # A plain copy: `__str__` may return an instance of a subclass of str whose other methods raise as well.
        text = str.__str__(str(error))
    except BaseException as second:  # a __str__ is user code, and may even raise SystemExit
        text = f"<its text is not available: {type(second).__name__}>"
    if isinstance(error, Steer):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def clean(text: str, max_length: int) -> str:
    """Return `text` without characters that PostgreSQL rejects (NUL, lone surrogates).

    A text longer than `max_length` characters is cut in the middle.
    """
    if len(text) > max_length:
        half = max_length // 2
        text = f"{text[:half]}\n… {len(text) - max_length} characters left out …\n{text[-half:]}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _traceback(error: BaseException) -> str:
    try:
        # The limit keeps the 30 frames nearest to the error. The library follows the chain of causes itself.
        return "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-30))
    except BaseException as second:
        return f"<its traceback is not available: {type(second).__name__}>"
