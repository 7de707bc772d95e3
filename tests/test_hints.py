"""What is said to those who write what other queues understand, or what looks right and is not."""

import copy
import inspect
import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pgcron_lite import Handle, PgCron, Task, TaskBlueprint, hints
from pgcron_lite.errors import ConfigError, OptionError, WaitTimeout
from pgcron_lite.events import EVENTS


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


@pytest.fixture
def add(app: PgCron) -> Any:
    @app.task(name="add")
    def add(x: int, y: int = 2) -> int:
        return x + y

    return add


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("max_retries", "here it is max_attempts, .*max_retries=3 is max_attempts=4"),
        ("retries", "here it is max_attempts, .*retries=3 is max_attempts=4"),
        ("retry_delay", "here it is backoff"),
        ("expires", "no job expires here"),
        ("timeout", "there is no time limit for a task"),
        ("max_attempt", "did you mean 'max_attempts'"),
        ("bind", "the running job is current_job"),
        ("acks_late", "a job always runs at least once"),
        ("rate_limit", "there is no rate limit"),
        ("ignore_result", "here it is keep_result"),
        ("result_ttl", "the setting PGCRON_KEEP_DONE"),
    ],
)
def test_an_option_of_another_queue_at_a_task_is_translated(app, option, says):
    with pytest.raises(OptionError, match=f"@app.task has no option '{option}'; {says}"):
        app.task(**{option: 3})


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("countdown", "here it is execute_after, a duration from now"),
        ("eta", "here it is execute_after, a datetime with a time zone"),
        ("retries", "here it is max_attempts"),
        ("expires", "no job expires here"),
        ("que", "did you mean 'queue'"),
        ("at", "here it is execute_after"),
        ("routing_key", "here it is queue"),
        ("task_id", "the database draws the id"),
        ("job_id", "the database draws the id"),
    ],
)
def test_an_option_of_another_queue_at_a_call_is_translated(add, option, says):
    with pytest.raises(OptionError, match=rf"options\(\) has no option '{option}'; {says}"):
        add.options(**{option: 3})


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("misfire_grace_time", "here it is start_within"), ("coalesce", "here it is catch_up"),
        ("max_instances", "here it is overlap"), ("timezone", "here it is tz"),
        ("start_withn", "did you mean 'start_within'"),
        ("grace", "here it is start_within"),
        ("id", "here it is name"), ("start_date", "here it is start"), ("end_date", "here it is end"),
        ("kwargs", "here it is args"), ("replace_existing", ".*a deploy replaces it"),
    ],
)
def test_an_option_of_another_scheduler_is_translated(app, option, says):
    with pytest.raises(OptionError, match=f"a schedule has no option '{option}'; {says}"):
        app.every("10s", **{option: 3})(lambda: None)


@pytest.mark.parametrize("option", ["queue", "execute_after", "conn"])
def test_an_option_of_the_call_given_to_delay_is_shown_its_place(add, option):
    with pytest.raises(TypeError, match=rf"{option} is meant as an option.*task\.options\({option}=\.\.\.\)\.delay"):
        add.delay(1, **{option: "x"})


@pytest.mark.parametrize("option", ["countdown", "eta"])
def test_an_option_of_another_queue_given_to_delay_is_translated(add, option):
    with pytest.raises(TypeError, match=rf"'{option}'; here it is .*task\.options\(execute_after=\.\.\.\)\.delay"):
        add.delay(1, **{option: 3})


@pytest.mark.parametrize(
    ("option", "says"), [("concurrency", "here it is slots"), ("broker", "here it is database_url")]
)
def test_a_setting_of_another_queue_is_translated(option, says):
    with pytest.raises(ConfigError, match=f"there is no setting '{option}'; {says}"):
        PgCron("shop", **{option: 3})


def test_the_concurrency_of_a_worker_is_called_slots(app):
    with pytest.raises(OptionError, match=r"run_worker\(\) has no option 'concurrency'; here it is slots"):
        app.run_worker(concurrency=4)


@pytest.mark.parametrize("text", ["10s", "1h30m"])
def test_an_interval_in_the_place_of_a_cron_expression_is_shown_its_form(app, text):
    with pytest.raises(OptionError, match=rf"'{text}'.*an interval is written 'every {text}'"):
        app.cron(text)


def test_an_argument_of_that_name_is_no_option(app):
    @app.task(name="route")
    def route(queue: str) -> str:
        return queue

    with pytest.raises(TypeError) as caught:
        route.delay(1, queue="x")

    assert "meant as an option" not in str(caught.value)


def test_a_conn_that_is_none_is_refused(add):
    with pytest.raises(OptionError, match=r"options\(conn=None\).*Leave conn out"):
        add.options(conn=None)


def test_a_plain_function_on_a_schedule_made_at_run_time_is_shown_the_decorator(app):
    def plain() -> None:
        pass

    with pytest.raises(OptionError, match=r"got <function .*put @app\.task above the function"):
        app.schedules.add("nightly", "@daily", plain)


def test_the_text_of_a_moment_is_shown_how_to_become_one(add):
    with pytest.raises(OptionError, match=r"execute_after='2040-02-29T12:30:00'.*datetime\.fromisoformat"):
        add.options(execute_after="2040-02-29T12:30:00")

    assert add.options(execute_after=datetime(2040, 2, 29, 12, 30, tzinfo=UTC))


@pytest.mark.parametrize("wrong", ["x#1", "1", 1.0, True, None])
def test_what_is_no_id_makes_no_handle(app, wrong):
    with pytest.raises(OptionError, match=r"app\.handle\(.*expected the job's id as a whole number"):
        app.handle(wrong)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("enqueue", r"some_task\.delay\(\.\.\.\), or app\.send\('name'.*select pgcron\.enqueue"),
        ("send_task", r"app\.send\('name', args=\[\.\.\.\]\)"),
        ("AsyncResult", r"app\.handle\(id\)"),
        ("periodic_task", r"@app\.cron\(\.\.\.\) or @app\.every\(\.\.\.\)"),
        ("add_job", r"app\.schedules\.add\(\.\.\.\)"),
        ("conf", r"app\.configure\(\.\.\.\)"),
        ("worker_main", r"app\.run_worker\(\)"),
        ("register_blueprint", r"app\.register\(blueprint\)"),
    ],
)
def test_a_method_of_another_queues_app_is_translated(app, name, says):
    with pytest.raises(AttributeError, match=f"an app has no attribute '{name}'; here it is {says}"):
        getattr(app, name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("apply_async", r"here it is task\.options\(\.\.\.\)\.delay\(\.\.\.\)"),
        ("send_with_options", r"here it is task\.options\(\.\.\.\)\.delay\(\.\.\.\)"),
        ("send", r"here it is task\.delay\(\.\.\.\)"),
        ("defer", r"here it is task\.delay\(\.\.\.\)"),
        ("s", "there are no signatures"),
        ("call_local", "which runs it in this process"),
        ("request", "here it is current_job"),
        ("delayed", r"did you mean task\.delay\?"),
    ],
)
def test_a_method_of_another_queues_task_is_translated(add, name, says):
    with pytest.raises(AttributeError, match=f"a task has no attribute '{name}'.*{says}"):
        getattr(add, name)


@pytest.mark.parametrize(
    ("name", "says"),
    [("get", r"here it is handle\.result\(timeout='10s'\)"), ("ready", r"here it is handle\.done\(\)"),
     ("forget", r"here it is app\.jobs\.delete\(handle\.id\)"), ("results", r"did you mean handle\.result\?")],
)
def test_a_method_of_another_queues_handle_is_translated(add, name, says):
    with pytest.raises(AttributeError, match=f"a handle has no attribute '{name}'; {says}"):
        getattr(add.delay(1), name)


@pytest.mark.parametrize(
    ("signal", "event"),
    [("task_success", "job_done"), ("task_failure", "job_failed"), ("task_prerun", "job_started"),
     ("worker_ready", "worker_started")],
)
def test_a_signal_of_another_queue_is_translated(app, signal, event):
    with pytest.raises(OptionError, match=rf"there is no event '{signal}'; here it is @app\.on\('{event}'\)"):
        app.on(signal)(print)


def test_every_translation_names_something_that_exists(app, add):
    handle = add.delay(1)
    for owner, methods in ((app, hints.APP_METHODS), (add, hints.TASK_METHODS), (handle, hints.HANDLE_METHODS)):
        short = {PgCron: "app", Task: "task", Handle: "handle"}[type(owner)]
        for foreign, ours in methods.items():
            assert not hasattr(owner, foreign), foreign
            for name in re.findall(rf"\b{short}\.(\w+)", ours):
                assert hasattr(owner, name), ours
    assert set(hints.SIGNALS.values()) <= set(EVENTS)
    assert not set(hints.SIGNALS) & set(EVENTS)
    assert set(hints.BLUEPRINT_METHODS).isdisjoint(dir(TaskBlueprint("mail")))


def test_what_copies_and_inspects_a_task_is_not_disturbed(add):
    assert copy.copy(add).name == "add"
    assert inspect.unwrap(add)(1) == 3
    assert list(inspect.signature(add).parameters) == ["x", "y"]


def crontab(minute: Any = "*", hour: Any = "*", day_of_week: Any = "*") -> Any:
    """The attributes that Celery's class of this name has."""
    return SimpleNamespace(
        _orig_minute=minute, _orig_hour=hour, _orig_day_of_month="*", _orig_month_of_year="*",
        _orig_day_of_week=day_of_week,
    )


def test_a_crontab_object_is_written_as_an_expression(app, add):
    with pytest.raises(OptionError, match=r"expected a cron expression as text.*; write '0 7 \* \* mon-fri'"):
        app.cron(crontab(minute=0, hour=7, day_of_week="mon-fri"))
    with pytest.raises(OptionError, match=r"; write '\*/5 \* \* \* \*'"):
        app.schedules.add("often", crontab(minute="*/5"), add)


def test_a_url_in_the_place_of_the_name_is_recognised_and_not_repeated():
    with pytest.raises(OptionError, match=r"url='postgresql://\.\.\.'") as caught:
        PgCron("postgresql://ada:canary@db/shop")

    assert "canary" not in str(caught.value)


def test_a_hook_around_jobs_takes_the_job_and_nothing_else(app):
    def around(job, task):
        yield

    with pytest.raises(OptionError, match=r"calls around\(job, task\) with one argument, the job: def around\(job\)"):
        app.around(around)


def test_how_long_to_wait_is_a_duration_like_any_other(add):
    handle = add.delay(1)

    with pytest.raises(WaitTimeout, match=r"is still queued after 0\.02 s"):
        handle.result("20ms")
    with pytest.raises(WaitTimeout, match=r"is still queued after 0\.02 s"):
        handle.result(0.02)
    with pytest.raises(OptionError, match="timeout='soon'"):
        handle.result("soon")


def test_an_error_inside_a_property_is_not_hidden_by_a_hint():
    class Shop(PgCron):
        @property
        def mailer(self):
            return None.send

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'send'"):
        Shop("shop", url="memory://").mailer  # noqa: B018


@pytest.mark.parametrize(("name", "near"), [("taks", "tasks"), ("job", "jobs"), ("queue", "queues")])
def test_a_misspelt_attribute_of_an_app_is_recognised(app, name, near):
    with pytest.raises(AttributeError, match=rf"did you mean app\.{near}\?"):
        getattr(app, name)
