"""One attempt: everything a task does becomes an outcome, and everything it raises becomes text that can be stored."""

import json
import uuid
from typing import Any

import pytest

from pgcron_lite import Cancel, PgCron, Retry, Snooze, current_job
from pgcron_lite.job import Job, NewJob
from pgcron_lite.memory import MemoryStore
from pgcron_lite.worker.execute import MAX_TEXT, MAX_TRACEBACK, Ended, clean, interrupted, one_line, run


@pytest.fixture
def app() -> PgCron:
    return PgCron("execute", url="memory://")


def claimed(args: str = "{}", task: str = "work", max_attempts: int = 5) -> Job:
    store = MemoryStore()
    store.enqueue([NewJob(task, args, max_attempts=max_attempts)])
    return store.claim(uuid.uuid4(), uuid.uuid4(), ["*"], [task], 1)[0]


def ran(app: PgCron, function: Any, args: str = "{}", max_attempts: int = 5, **options: Any) -> Ended:
    app.task(name="work", max_attempts=max_attempts, **options)(function)
    return run(app, claimed(args, max_attempts=max_attempts))


def raising(error: BaseException) -> Any:
    def work() -> None:
        raise error

    return work


def error_entry(ended: Ended) -> dict[str, Any]:
    assert ended.outcome.error is not None
    return dict(ended.outcome.error)


def test_a_task_that_returns_is_done_and_its_result_stored(app: PgCron) -> None:
    def work(x: int) -> dict[str, int]:
        return {"twice": 2 * x}

    ended = ran(app, work, '{"x": 21}')

    assert ended.outcome.state == "done"
    assert json.loads(ended.outcome.result or "") == {"twice": 42}
    assert ended.error is None
    assert ended.seconds >= 0


def test_a_result_is_not_stored_if_the_task_is_declared_so(app: PgCron) -> None:
    ended = ran(app, plain_object, keep_result=False)

    assert (ended.outcome.state, ended.outcome.result) == ("done", None)


def plain_object() -> object:
    return object()


@pytest.mark.row(32)
@pytest.mark.parametrize(
    "result",
    [object(), float("nan"), "x" * 1_000_000, "a\0b", "\ud800"],
    ids=["object", "nan", "huge", "nul", "surrogate"],
)
def test_a_result_that_cannot_be_stored_fails_the_job_without_a_retry(
    app: PgCron, result: object
) -> None:
    def work() -> object:
        return result

    ended = ran(app, work)

    assert ended.outcome.state == "failed"
    assert "the task ran, but its result cannot be stored" in error_entry(ended)["error"]


@pytest.mark.row(19)
@pytest.mark.parametrize("args", ['{"x": {"$datetime": "never"}}', '{"y": 1}', "[1, 2, 3]"])
def test_arguments_that_cannot_be_decoded_fail_the_job_without_a_retry(app: PgCron, args: str) -> None:
    calls = []

    def work(x: int) -> None:
        calls.append(x)

    ended = ran(app, work, args)

    assert calls == []
    assert ended.outcome.state in ("failed", "queued")
    assert error_entry(ended)["error"]


def test_an_error_is_retried_and_the_last_attempt_fails(app: PgCron) -> None:
    again = ran(app, raising(ValueError("no")))
    last = ran(PgCron("other", url="memory://"), raising(ValueError("no")), max_attempts=1)

    assert (again.outcome.state, last.outcome.state) == ("queued", "failed")
    assert again.outcome.delay is not None
    assert error_entry(last)["error"] == "ValueError: no"
    assert error_entry(last)["attempt"] == 1
    assert "raise error" in error_entry(last)["traceback"]


@pytest.mark.row(26)
@pytest.mark.parametrize(
    "error", [SystemExit(0), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit(), BaseException("all")], ids=repr
)
def test_a_base_exception_is_a_failure_too(app: PgCron, error: BaseException) -> None:
    ended = ran(app, raising(error))

    assert ended.outcome.state == "queued"
    assert ended.outcome.gives_back is False
    assert error_entry(ended)["error"].startswith(type(error).__name__)


def test_a_task_can_retry_snooze_or_cancel_its_job(app: PgCron) -> None:
    outcomes = [
        ran(PgCron(f"app{number}", url="memory://"), raising(error)).outcome
        for number, error in enumerate([Retry("5s"), Snooze("7s"), Cancel("enough")])
    ]

    assert [(o.state, o.delay, o.gives_back) for o in outcomes] == [
        ("queued", 5.0, False), ("queued", 7.0, True), ("cancelled", None, False),
    ]
    # These are not errors, so there is no traceback.
    assert outcomes[2].error is not None
    assert outcomes[2].error["error"] == "enough"
    assert "traceback" not in outcomes[2].error


def test_an_unknown_task_is_an_outcome_too(app: PgCron) -> None:
    ended = run(app, claimed(task="nobody"))

    assert "no task named 'nobody'" in error_entry(ended)["error"]


def test_the_current_job_is_available_only_while_the_task_runs(app: PgCron) -> None:
    seen = []

    def work() -> None:
        seen.append((current_job.id, current_job.attempt, current_job.stopping))

    ran(app, work)

    assert seen == [(1, 1, False)]
    assert not current_job


@pytest.mark.row(29)
@pytest.mark.row(30)
@pytest.mark.parametrize("text", ["a\0b", "\ud800", "both \0 and \udfff"], ids=["nul", "surrogate", "both"])
def test_characters_that_postgres_rejects_are_escaped(app: PgCron, text: str) -> None:
    entry = error_entry(ran(app, raising(ValueError(text))))

    for part in ("error", "traceback"):
        entry[part].encode()
        assert "\0" not in entry[part]
    assert "\\x00" in entry["error"] or "\\ud" in entry["error"]


@pytest.mark.row(31)
def test_long_text_is_cut_in_the_middle(app: PgCron) -> None:
    entry = error_entry(ran(app, raising(ValueError("begin" + "x" * 50_000_000 + "end"))))

    assert entry["error"].startswith("ValueError: begin")
    assert entry["error"].endswith("end")
    assert "characters left out" in entry["error"]
    assert len(entry["error"]) < MAX_TEXT + 100
    assert len(entry["traceback"]) < MAX_TRACEBACK + 100


@pytest.mark.row(31)
def test_a_circular_chain_of_causes_is_formatted(app: PgCron) -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one

    assert "one" in error_entry(ran(app, raising(one)))["traceback"]


@pytest.mark.row(31)
def test_infinite_recursion_is_an_ordinary_failure(app: PgCron) -> None:
    def work() -> None:
        work()

    entry = error_entry(ran(app, work))

    assert entry["error"].startswith("RecursionError")
    assert len(entry["traceback"]) < MAX_TRACEBACK + 100


class Ambush(str):
    """A text whose methods raise, except those of plain `str`."""

    def __format__(self, how: str) -> str:
        raise SystemExit

    def __len__(self) -> int:
        raise SystemExit

    def replace(self, *args: Any, **kwargs: Any) -> str:
        raise SystemExit


class Untold(Exception):
    def __init__(self, trap: object) -> None:
        self.trap = trap

    def __str__(self) -> str:
        if isinstance(self.trap, BaseException):
            raise self.trap
        return self.trap  # type: ignore[return-value]

    __repr__ = __str__


@pytest.mark.row(31)
@pytest.mark.parametrize(
    ("trap", "line"),
    [
        (ValueError("no"), "Untold: <its text is not available: ValueError>"),
        (SystemExit(3), "Untold: <its text is not available: SystemExit>"),
        (RecursionError(), "Untold: <its text is not available: RecursionError>"),
        (42, "Untold: <its text is not available: TypeError>"),
        (Ambush("text"), "Untold: text"),
        ("", "Untold"),
    ],
    ids=["raises", "exits", "recurses", "no text", "ambush", "empty"],
)
def test_an_error_whose_text_is_not_available_is_shown_by_its_name(app: PgCron, trap: object, line: str) -> None:
    ended = ran(app, raising(Untold(trap)))

    assert error_entry(ended)["error"] == line
    assert one_line(Untold(trap)) == line


def test_short_clean_text_is_unchanged() -> None:
    assert clean("grün ☂ ok", 100) == "grün ☂ ok"


def test_an_exception_thrown_in_outside_the_task_is_a_failed_attempt() -> None:
    ended = interrupted(claimed(max_attempts=1), KeyboardInterrupt())
    again = interrupted(claimed(max_attempts=2), KeyboardInterrupt())

    assert (ended.outcome.state, again.outcome.state) == ("failed", "queued")
    assert error_entry(ended)["error"] == "KeyboardInterrupt, thrown in from outside the task"
