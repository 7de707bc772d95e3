"""One claimed job, from its row to an outcome. Read `run` from top to bottom: it is the life of an attempt."""

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

# What is kept of one attempt's error.
MAX_TEXT, MAX_TRACEBACK = 2_000, 16_000


@value
class Ended:
    """An attempt that is over: what is to be written, how long it took, and what was raised."""

    job: Job
    outcome: Outcome
    seconds: float
    error: BaseException | None = None
    # How many executions this error allows in all: a rule may allow fewer than the row does.
    limit: int | None = None
    # A run of a schedule that has to wait for its turn was claimed and not begun.
    begun: bool = True


def run(
    app: PgCron,
    job: Job,
    is_stopping: Callable[[], bool] = lambda: False,
    luck: Callable[[], float] = random.random,
) -> Ended:
    """Run `job`'s task once. Never raises: whatever the task does becomes an outcome. `luck` is for the backoff."""
    started = time.perf_counter()
    token = running.set(Running(app, job, is_stopping))
    task: Task[..., Any] | None = None
    error: BaseException | None = None
    limit: int | None = None
    try:
        task = app.find_task(job.task)
        outcome = _done(app, task, job, _call_in_hooks(app, task, job))
    except BaseException as raised:
        # BaseException: a task that calls sys.exit or raises KeyboardInterrupt has failed; the worker goes on.
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
    """One `around` hook. It sees what is raised inside it and may raise something else, but not make it go away.

    What is inside may also be another hook that failed before the task had begun: were it swallowed, a job would be
    done that has never run.
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
            f"the task ran, but what it returned cannot be kept: {error} Return plain data, or set"
            f" @app.task(keep_result=False) on {task.name}."
        ) from error


class UnfitResult(PayloadError):
    """The effects have happened; running the task again would only repeat them."""


class UnreadableArguments(PayloadError):
    """The stored arguments cannot be decoded, and never will be."""


class UnreadableJob(PayloadError):
    """A value of the job's row cannot be decoded, and never will be."""


def _failed(
    job: Job, error: BaseException, policy: RetryPolicy, luck: Callable[[], float]
) -> tuple[Outcome, int | None]:
    """Return the outcome, and how many executions `error` allows if that is fewer than the row does."""
    if isinstance(error, (UnfitResult, UnreadableArguments, UnreadableJob)):
        policy = RetryPolicy(discard_on=(type(error),))
    allowed = job.max_attempts if isinstance(error, Steer) else policy.plan(error, job.max_attempts)[0]
    # Not worth a second try, whatever the number: the line then says what the row permits.
    limit = allowed if job.attempt <= allowed < job.max_attempts else None
    return decide(job, error, policy, describe(job, error), luck), limit


def interrupted(job: Job, error: BaseException) -> Ended:
    """What `run` comes to when something from outside throws itself off: a failure like any other, described safely."""
    text = f"{type(error).__name__} from outside"
    entry = {"attempt": job.attempt, "at": datetime.now(UTC).isoformat(), "error": text}
    return Ended(job, decide(job, error, RetryPolicy(max_attempts=job.max_attempts), entry), 0.0, error)


def describe(job: Job, error: BaseException) -> dict[str, Any]:
    """An entry for the job's error history: bounded, and of text that any database takes."""
    entry = {
        "attempt": job.attempt,
        "at": datetime.now(UTC).isoformat(),
        "error": clean(one_line(error), MAX_TEXT),
    }
    if not isinstance(error, Steer):
        entry["traceback"] = clean(_traceback(error), MAX_TRACEBACK)
    return entry


def one_line(error: BaseException) -> str:
    """`ValueError: bad input`, whatever its `__str__` does."""
    try:
        # A plain copy: what `__str__` returns may be of a class whose other methods are an ambush as well.
        text = str.__str__(str(error))
    except BaseException as second:  # a __str__ is user code, and may even raise SystemExit
        text = f"<its text cannot be had: {type(second).__name__}>"
    if isinstance(error, Steer):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def clean(text: str, max_length: int) -> str:
    """`text` without what PostgreSQL refuses (NUL, lone surrogates), cut in the middle to `max_length` characters."""
    if len(text) > max_length:
        half = max_length // 2
        text = f"{text[:half]}\n… {len(text) - max_length} characters left out …\n{text[-half:]}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _traceback(error: BaseException) -> str:
    try:
        # limit: the frames next to the error and next to the call; a cause chain is walked by the library itself.
        return "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-30))
    except BaseException as second:
        return f"<its traceback cannot be had: {type(second).__name__}>"
