"""One attempt: whatever a task does becomes an outcome, and whatever it raises becomes text that can be stored."""

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


def told(ended: Ended) -> dict[str, Any]:
    assert ended.outcome.error is not None
    return dict(ended.outcome.error)


def test_a_task_that_returns_is_done_and_its_result_kept(app: PgCron) -> None:
    def work(x: int) -> dict[str, int]:
        return {"twice": 2 * x}

    ended = ran(app, work, '{"x": 21}')

    assert ended.outcome.state == "done"
    assert json.loads(ended.outcome.result or "") == {"twice": 42}
    assert ended.error is None
    assert ended.seconds >= 0


def test_a_result_is_not_kept_when_the_task_says_so(app: PgCron) -> None:
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
def test_a_result_that_cannot_be_kept_fails_the_job_at_once_for_its_effects_have_happened(
    app: PgCron, result: object
) -> None:
    def work() -> object:
        return result

    ended = ran(app, work)

    assert ended.outcome.state == "failed"
    assert "the task ran, but its result cannot be stored" in told(ended)["error"]


@pytest.mark.row(19)
@pytest.mark.parametrize("args", ['{"x": {"$datetime": "never"}}', '{"y": 1}', "[1, 2, 3]"])
def test_arguments_that_cannot_be_read_never_will_be(app: PgCron, args: str) -> None:
    calls = []

    def work(x: int) -> None:
        calls.append(x)

    ended = ran(app, work, args)

    assert calls == []
    assert ended.outcome.state in ("failed", "queued")
    assert told(ended)["error"]


def test_an_error_is_retried_and_the_last_attempt_fails(app: PgCron) -> None:
    again = ran(app, raising(ValueError("no")))
    last = ran(PgCron("other", url="memory://"), raising(ValueError("no")), max_attempts=1)

    assert (again.outcome.state, last.outcome.state) == ("queued", "failed")
    assert again.outcome.delay is not None
    assert told(last)["error"] == "ValueError: no"
    assert told(last)["attempt"] == 1
    assert "raise error" in told(last)["traceback"]


@pytest.mark.row(26)
@pytest.mark.parametrize(
    "error", [SystemExit(0), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit(), BaseException("all")], ids=repr
)
def test_what_is_no_exception_is_a_failure_all_the_same(app: PgCron, error: BaseException) -> None:
    ended = ran(app, raising(error))

    assert ended.outcome.state == "queued"
    assert ended.outcome.gives_back is False
    assert told(ended)["error"].startswith(type(error).__name__)


def test_a_task_steers_its_job(app: PgCron) -> None:
    outcomes = [
        ran(PgCron(f"app{number}", url="memory://"), raising(error)).outcome
        for number, error in enumerate([Retry("5s"), Snooze("7s"), Cancel("enough")])
    ]

    assert [(o.state, o.delay, o.gives_back) for o in outcomes] == [
        ("queued", 5.0, False), ("queued", 7.0, True), ("cancelled", None, False),
    ]
    # They are no errors, and bring no traceback.
    assert outcomes[2].error is not None
    assert outcomes[2].error["error"] == "enough"
    assert "traceback" not in outcomes[2].error


def test_an_unknown_task_is_an_outcome_too(app: PgCron) -> None:
    ended = run(app, claimed(task="nobody"))

    assert "no task named 'nobody'" in told(ended)["error"]


def test_the_current_job_is_there_while_the_task_runs_and_not_after(app: PgCron) -> None:
    seen = []

    def work() -> None:
        seen.append((current_job.id, current_job.attempt, current_job.stopping))

    ran(app, work)

    assert seen == [(1, 1, False)]
    assert not current_job


@pytest.mark.row(29)
@pytest.mark.row(30)
@pytest.mark.parametrize("text", ["a\0b", "\ud800", "both \0 and \udfff"], ids=["nul", "surrogate", "both"])
def test_text_that_postgres_refuses_is_written_another_way(app: PgCron, text: str) -> None:
    entry = told(ran(app, raising(ValueError(text))))

    for part in ("error", "traceback"):
        entry[part].encode()
        assert "\0" not in entry[part]
    assert "\\x00" in entry["error"] or "\\ud" in entry["error"]


@pytest.mark.row(31)
def test_long_text_keeps_its_beginning_and_its_end(app: PgCron) -> None:
    entry = told(ran(app, raising(ValueError("begin" + "x" * 50_000_000 + "end"))))

    assert entry["error"].startswith("ValueError: begin")
    assert entry["error"].endswith("end")
    assert "characters left out" in entry["error"]
    assert len(entry["error"]) < MAX_TEXT + 100
    assert len(entry["traceback"]) < MAX_TRACEBACK + 100


@pytest.mark.row(31)
def test_a_chain_of_causes_that_bites_its_tail_has_an_end(app: PgCron) -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one

    assert "one" in told(ran(app, raising(one)))["traceback"]


@pytest.mark.row(31)
def test_a_recursion_without_end_is_an_error_like_any_other(app: PgCron) -> None:
    def work() -> None:
        work()

    entry = told(ran(app, work))

    assert entry["error"].startswith("RecursionError")
    assert len(entry["traceback"]) < MAX_TRACEBACK + 100


class Ambush(str):
    """Text whose every method but the plain ones springs a trap."""

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
def test_an_error_whose_text_cannot_be_had_is_told_by_its_name(app: PgCron, trap: object, line: str) -> None:
    ended = ran(app, raising(Untold(trap)))

    assert told(ended)["error"] == line
    assert one_line(Untold(trap)) == line


def test_text_that_is_short_and_clean_stays_as_it_is() -> None:
    assert clean("grün ☂ ok", 100) == "grün ☂ ok"


def test_what_throws_the_runner_itself_off_counts_as_a_failed_attempt() -> None:
    ended = interrupted(claimed(max_attempts=1), KeyboardInterrupt())
    again = interrupted(claimed(max_attempts=2), KeyboardInterrupt())

    assert (ended.outcome.state, again.outcome.state) == ("failed", "queued")
    assert told(ended)["error"] == "KeyboardInterrupt, thrown in from outside the task"
