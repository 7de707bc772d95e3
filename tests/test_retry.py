import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgcron_lite import Backoff, Cancel, Retry, RetryOn, Snooze
from pgcron_lite.errors import OptionError
from pgcron_lite.job import Job, Outcome
from pgcron_lite.retry import RetryPolicy, decide
from pgcron_lite.task import task_options

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STEADY = Backoff("10s", factor=2, max="1m", jitter=0)


def job(attempt: int = 1, max_attempts: int = 5) -> Job:
    return Job(
        id=1, task="t", queue="default", priority=0, state="running", args="{}", headers={}, tags=(),
        execute_after=NOW, attempt=attempt, max_attempts=max_attempts, crashes=0, max_crashes=3, alone=False,
        claim=uuid.uuid4(), worker=uuid.uuid4(), created_at=NOW, claimed_at=NOW,
    )  # fmt: skip


def verdict(error: BaseException, policy: RetryPolicy | None = None, **of: Any) -> Outcome:
    return decide(job(**of), error, policy or RetryPolicy(backoff=STEADY), {"error": str(error)})


def test_the_wait_grows_by_the_factor_up_to_the_max() -> None:
    assert [STEADY.seconds(n) for n in (1, 2, 3, 4, 5)] == [10, 20, 40, 60, 60]


def test_jitter_stays_within_its_share() -> None:
    backoff = Backoff("10s", factor=1, jitter=0.2)

    assert [backoff.seconds(1, luck) for luck in (0, 0.5, 1)] == pytest.approx([8, 10, 12])


def test_a_thousandth_attempt_does_not_overflow() -> None:
    assert Backoff("1s", factor=1000, max="1h", jitter=0).seconds(32_000) == 3600


def test_a_failure_is_retried_after_its_backoff() -> None:
    outcome = verdict(ValueError("no"), attempt=2)

    assert (outcome.state, outcome.delay, outcome.gives_back) == ("queued", 20, False)


def test_the_last_attempt_fails_for_good() -> None:
    assert verdict(ValueError("no"), attempt=5).state == "failed"


@pytest.mark.parametrize(("error", "state"), [(ConnectionError(), "queued"), (ValueError(), "failed")])
def test_retry_on_names_what_is_worth_another_try(error: Exception, state: str) -> None:
    assert verdict(error, RetryPolicy(retry_on=(ConnectionError,))).state == state


def test_discard_on_gives_up_at_once() -> None:
    assert verdict(KeyError("x"), RetryPolicy(discard_on=(LookupError,))).state == "failed"


def test_each_rule_has_attempts_and_a_backoff_of_its_own() -> None:
    rules = (RetryOn(TimeoutError, max_attempts=8, backoff="1m"), RetryOn(OSError, max_attempts=2))
    policy = task_options(max_attempts=3, backoff=STEADY, rules=rules).policy

    patient = verdict(TimeoutError(), policy, attempt=7, max_attempts=policy.most_attempts)
    impatient = verdict(PermissionError(), policy, attempt=2, max_attempts=policy.most_attempts)
    other = verdict(ValueError(), policy, attempt=3, max_attempts=policy.most_attempts)

    assert policy.most_attempts == 8
    assert (patient.state, patient.delay) == ("queued", 60)
    assert impatient.state == "failed"
    assert other.state == "failed"


def test_a_call_may_allow_fewer_attempts_than_its_task() -> None:
    assert verdict(ValueError(), RetryPolicy(max_attempts=5), attempt=1, max_attempts=1).state == "failed"


def test_retry_says_when_and_counts_as_an_attempt() -> None:
    outcome = verdict(Retry("30s"))

    assert (outcome.state, outcome.delay, outcome.gives_back) == ("queued", 30, False)
    assert verdict(Retry("30s"), attempt=5).state == "failed"


def test_retry_overrules_retry_on() -> None:
    assert verdict(Retry(), RetryPolicy(retry_on=(ConnectionError,), backoff=STEADY)).delay == 10


def test_snooze_gives_the_attempt_back_and_is_no_error() -> None:
    outcome = verdict(Snooze("2h"), attempt=5)

    assert (outcome.state, outcome.delay, outcome.gives_back, outcome.error) == ("queued", 7200, True, None)


def test_cancel_ends_the_job_with_its_reason() -> None:
    outcome = verdict(Cancel("the order is gone"))

    assert outcome.state == "cancelled"
    assert outcome.error == {"error": "the order is gone"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_attempts": 0}, "1 means no retry"),
        ({"max_attempts": True}, "whole number"),
        ({"retry_on": "ConnectionError"}, "exception classes"),
        ({"discard_on": (1,)}, "exception classes"),
        ({"rules": [ValueError]}, "RetryOn"),
        ({"max_crashes": 0}, "1 to 100"),
        ({"backoff": "soon"}, "soon"),
        ({"queue": "a,b"}, "comma"),
        ({"queue": "*"}, r"\* is for workers"),
        ({"priority": "high"}, "higher runs earlier"),
        ({"keep_result": "yes"}, "True or False"),
    ],
)
def test_an_option_that_cannot_be_right_is_refused_with_a_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        task_options(**options)


@pytest.mark.parametrize("arguments", [{"factor": 0.5}, {"jitter": 2}, {"first": "-1s"}, {"factor": float("nan")}])
def test_a_backoff_that_cannot_be_right_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Backoff(**arguments)


@pytest.mark.parametrize("option", ["most", "maximum", "cap"])
def test_the_longest_delay_of_a_backoff_is_called_max(option: str) -> None:
    with pytest.raises(OptionError, match=rf"Backoff\(\) has no option '{option}'; here it is max, the longest"):
        Backoff(**{option: "10m"})

    assert Backoff(max="10m").max == timedelta(minutes=10)


def test_a_misspelled_option_of_a_backoff_is_refused_with_the_near_miss() -> None:
    with pytest.raises(OptionError, match=r"Backoff\(\) has no option 'frist'; did you mean 'first'"):
        Backoff(**{"frist": "5s"})


def test_a_duration_alone_is_a_constant_backoff() -> None:
    backoff = task_options(backoff=timedelta(minutes=1)).policy.backoff

    assert {backoff.seconds(n) for n in range(1, 9)} == {60}
