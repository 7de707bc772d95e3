"""What surrounds a job: sees how it ends, cannot change that to the better, and fails it when it fails itself."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import pytest
from support import eventually

from pgcron_lite import PgCron, Retry, current_job
from pgcron_lite.errors import OptionError
from pgcron_lite.job import Job
from pgcron_lite.worker import process


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


def drained(app: PgCron, function: Any, **options: Any) -> Job:
    """The job of one call of `function`, after a worker has run what is due."""
    options = {"name": "work", "max_attempts": 1, **options}
    handle = app.task(**options)(function).delay()
    assert process.run_worker(app, drain=True, slots=1) == 0
    return handle.job()


def work() -> str:
    return "result"


def broken() -> None:
    raise ValueError("the task's")


def test_a_hook_runs_before_and_after_with_the_job(app):
    seen: list[Any] = []

    @app.around
    def hook(job: Job) -> Iterator[None]:
        seen.append(("before", job.task, current_job.id == job.id))
        yield
        seen.append("after")

    drained(app, lambda_free(seen))

    assert seen == [("before", "work", True), "task", "after"]


def lambda_free(seen: list[Any]) -> Any:
    def noted() -> None:
        seen.append("task")

    return noted


def test_the_first_hook_is_the_outermost_unless_another_asks(app):
    seen: list[str] = []

    def hook(name: str) -> Any:
        def surround(job: Job) -> Iterator[None]:
            seen.append(name)
            yield
            seen.append(name)

        return surround

    app.around(hook("first"))
    app.around(hook("second"))
    app.around(hook("ground"), outermost=True)

    drained(app, work)

    assert seen == ["ground", "first", "second", "second", "first", "ground"]


def test_a_hook_sees_what_the_task_raised(app):
    seen: list[BaseException] = []

    @app.around
    def hook(job: Job) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(error)
            raise

    job = drained(app, broken)

    assert [str(error) for error in seen] == ["the task's"]
    assert (job.state, job.error) == ("failed", "ValueError: the task's")


def swallowing(job: Job) -> Iterator[None]:
    with contextlib.suppress(BaseException):
        yield


def failing_before(job: Job) -> Iterator[None]:
    raise LookupError("before")
    yield


def failing_after(job: Job) -> Iterator[None]:
    yield
    raise LookupError("after")


def translating(job: Job) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise LookupError("translated") from error


@pytest.mark.parametrize(
    ("hooks", "task", "error"),
    [
        ([swallowing], broken, "ValueError: the task's"),
        ([swallowing, swallowing], broken, "ValueError: the task's"),
        ([failing_before], work, "LookupError: before"),
        ([failing_after], work, "LookupError: after"),
        ([failing_after], broken, "ValueError: the task's"),
        ([translating], broken, "LookupError: translated"),
        ([swallowing, failing_before], work, "LookupError: before"),
        ([swallowing, failing_after], work, "LookupError: after"),
        ([swallowing, translating], broken, "LookupError: translated"),
        ([failing_after, failing_before], work, "LookupError: before"),
    ],
    ids=lambda value: "+".join(f.__name__ for f in value) if isinstance(value, list) else None,
)
def test_no_hook_turns_a_failure_into_a_success(app, hooks, task, error):
    for hook in hooks:
        app.around(hook)

    job = drained(app, task)

    assert (job.state, job.error) == ("failed", error)
    assert job.result is None


def test_a_task_does_not_run_when_a_hook_fails_before_it(app):
    ran: list[str] = []
    app.around(swallowing)
    app.around(failing_before)

    drained(app, lambda_free(ran))

    assert ran == []


@pytest.mark.parametrize("raised", [StopIteration("odd"), GeneratorExit(), KeyboardInterrupt(), RuntimeError("r")])
@pytest.mark.parametrize("hooks", [[], [swallowing], [swallowing, swallowing]], ids=len)
def test_what_python_treats_specially_passes_as_it_is(app, raised, hooks):
    for hook in hooks:
        app.around(hook)

    def odd() -> None:
        raise raised

    job = drained(app, odd)

    assert job.state == "failed"
    assert job.error is not None
    assert job.error.startswith(type(raised).__name__)


def test_a_hook_that_fails_may_be_retried_like_the_task(app):
    tries: list[int] = []

    @app.around
    def shaky(job: Job) -> Iterator[None]:
        tries.append(job.attempt)
        if job.attempt == 1:
            raise ConnectionError
        yield

    job = drained(app, work, max_attempts=3, backoff="1ms")
    eventually(lambda: process.run_worker(app, drain=True) == 0 and app.handle(job.id).job().is_final)

    assert (tries, app.handle(job.id).state()) == ([1, 2], "done")


def test_steering_passes_through_hooks(app):
    app.around(swallowing)

    def later() -> None:
        raise Retry("1h")

    job = drained(app, later, max_attempts=5)

    assert (job.state, job.attempt) == ("queued", 1)


def test_what_a_hook_sets_is_there_in_the_task_and_gone_in_the_next_job(app):
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    @app.around
    def set_once(job: Job) -> Iterator[None]:
        seen.append(tenant.get())
        tenant.set(f"tenant {job.id}")
        yield

    @app.task(name="look")
    def look() -> None:
        seen.append(tenant.get())

    first, second = look.delay(), look.delay()
    process.run_worker(app, drain=True, slots=1)

    assert seen == ["nobody", f"tenant {first.id}", "nobody", f"tenant {second.id}"]


def test_hooks_do_not_surround_a_plain_call(app):
    app.around(failing_before)

    assert app.task(name="work")(work)() == "result"


def test_hooks_of_one_app_do_not_surround_the_jobs_of_another(app):
    PgCron("other", url="memory://").around(failing_before)

    assert drained(app, work).state == "done"


def never(job: Job) -> Iterator[None]:
    if job.id < 0:
        yield


def twice(job: Job) -> Iterator[None]:
    yield
    yield


@pytest.mark.parametrize(("hook", "words"), [(never, "didn't yield"), (twice, "didn't stop")])
def test_a_hook_that_does_not_yield_exactly_once_fails_the_job(app, hook, words):
    app.around(hook)

    job = drained(app, work)

    assert job.state == "failed"
    assert words in str(job.error)


@pytest.mark.parametrize("hook", [work, "text", lambda job: None])
def test_what_is_no_generator_is_refused(app, hook):
    with pytest.raises(OptionError, match="expects a generator function with one yield"):
        app.around(hook)
