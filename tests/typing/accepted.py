"""Programs that type-check under `mypy --strict`. Checked by test_typing, never run."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import assert_type

from pgcron_lite import Backoff, Handle, Job, PgCron, RetryOn, TaskBlueprint, current_job

app = PgCron("shop", url="memory://", slots=5)


@app.task
def bare(x: int, y: int = 1) -> int:
    return x + y


@app.task()
def called(text: str) -> str:
    return text


@app.task(
    name="mail.send", queue="mail", priority=3, max_attempts=8, backoff=Backoff(first="5s", factor=2, max="10m"),
    retry_on=(ConnectionError,), discard_on=ValueError, retry=[RetryOn(KeyError, max_attempts=2)], max_crashes=1,
    keep_result=False,
)
def with_options(to: str, *, subject: str = "") -> None: ...


@app.task(backoff="10s", retry_on=ConnectionError)
def with_a_short_backoff() -> list[str]:
    return []


# The decorated function keeps its type, whichever form the decorator has.
assert_type(bare(1), int)
assert_type(called("x"), str)
assert_type(with_a_short_backoff(), list[str])
with_options("ada@example.org", subject="hello")

# delay() is typed like the function, and the handle like its result.
assert_type(bare.delay(1, y=2), Handle[int])
assert_type(bare.delay(1).result(timeout=10), int)
assert_type(called.delay(text="x").result(), str)
assert_type(with_options.delay("ada@example.org", subject="hello"), Handle[None])
assert_type(bare.delay(1).job(), Job)

# options() changes nothing about that.
assert_type(bare.options(execute_after="10m", queue="mail", tags=["x"], headers={"a": "b"}).delay(1), Handle[int])
assert_type(bare.options(execute_after=timedelta(minutes=1)).delay(1).result(), int)
assert_type(bare.options(execute_after=datetime(2040, 1, 1, tzinfo=UTC), max_attempts=2).delay(1), Handle[int])
assert_type(bare.options(conn=object()).map([(1,)]), list[Handle[int]])

# map takes tuples or dicts, and the values of a single parameter.
assert_type(bare.map([1, 2]), list[Handle[int]])
assert_type(bare.map([(1, 2), (3,)]), list[Handle[int]])
assert_type(bare.map({"x": n} for n in range(3)), list[Handle[int]])

# A task of a blueprint is typed like one of the app.
mail = TaskBlueprint("mail")


@mail.task(queue="mail")
def thank(order: int) -> str:
    return f"thanks for {order}"


@mail.cron("30 2 * * *", tz="Europe/Berlin")
def report() -> int:
    return 1


app.register(mail)
assert_type(thank.delay(1), Handle[str])
assert_type(report(), int)

# What is sent by name has any result.
app.send("add", args=[1, 2], kwargs=None, priority=3, tags=["x"]).result("10s")
app.send("add", kwargs={"x": 1})

assert_type(app.jobs.get(1), Job)
assert_type(app.jobs.list(state=["failed"], since="2h"), list[Job])
assert_type(app.jobs.retry(1), bool)
assert_type(app.queues.list()[0].due, int)
assert_type(app.queues.clear("mail"), int)

# A handle of any result is one of object.
handle: Handle[object] = bare.delay(1)


class Mail:
    @staticmethod
    def check(box: str) -> bool:
        return bool(box)


assert_type(app.task(Mail.check)("inbox"), bool)


@app.on("job_failed")
def alert(job: Job, error: BaseException | None) -> None:
    print(job.id, error, current_job.attempt)


@app.around
def surround(job: Job) -> Iterator[None]:
    yield


# Hooks stay what they are.
alert(handle.job(), None)
next(iter(surround(handle.job())))


# A worker returns its exit code.
assert_type(app.run_worker(queues=["mail"], slots=5, grace="10s", drain=True, log_format="json"), int)
