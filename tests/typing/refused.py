"""Programs that must not type-check. Each line says which error mypy has to give there."""

from collections.abc import Iterator

from pgcron_lite import Backoff, Handle, Job, PgCron, RetryOn

app = PgCron("shop", url="memory://")


@app.task
def add(x: int, y: int = 1) -> int:
    return x + y


@app.task(queue="mail")
def send(to: str, *, subject: str) -> None: ...


# A wrong call is found in the editor, not at 3 a.m.
add()  # refused: call-arg
add("1")  # refused: arg-type
add.delay()  # refused: call-arg
add.delay("1")  # refused: arg-type
add.delay(1, 2, 3)  # refused: call-arg
add.delay(1, z=2)  # refused: call-arg
send.delay("ada@example.org")  # refused: call-arg
send.delay("ada@example.org", "hello")  # refused: call-arg
add.options(priority=5).delay("1")  # refused: arg-type

# A result is what the function returns.
text: str = add(1)  # refused: assignment
other: str = add.delay(1).result()  # refused: assignment
words: Handle[str] = add.delay(1)  # refused: assignment
several: list[Handle[str]] = add.map([(1,)])  # refused: assignment

# Options.
add.options(prority=5)  # refused: call-arg
add.options(priority="high")  # refused: arg-type
add.options(tags=[1])  # refused: list-item
add.options(headers={"a": 1})  # refused: dict-item
add.options(execute_after=object())  # refused: arg-type
add.map(1)  # refused: arg-type
app.task(queu="mail")  # refused: call-overload
app.task(queue=1)  # refused: call-overload
app.task(keep_result="no")  # refused: call-overload
app.task(retry=[ValueError])  # refused: list-item
app.task(retry_on=[ValueError("x")])  # refused: call-overload
Backoff(frist="5s")  # refused: call-arg
RetryOn("ValueError")  # refused: arg-type


app.run_worker(slot=5)  # refused: call-arg
app.run_worker(slots="5")  # refused: arg-type
app.run_worker(log_format="xml")  # refused: arg-type


# Hooks.
@app.around  # refused: arg-type
def no_generator(job: Job) -> None: ...


@app.around  # refused: arg-type
def of_something_else(number: int) -> Iterator[None]:
    yield


@app.around
def changes_what_it_was_given(job: Job) -> Iterator[None]:
    job.queue = "other"  # refused: misc
    yield
