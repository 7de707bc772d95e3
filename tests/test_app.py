"""The app: names, registration, settings, and that nothing happens before it must."""

import inspect
import re
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints
from zoneinfo import ZoneInfo

import pytest
from support import python

from pgcron_lite import Backoff, PgCron, RetryOn, Task, config
from pgcron_lite.app import RunOptions, task_name
from pgcron_lite.errors import OptionError, PgCronError, SetupFinished, UnknownJob, UnknownTask
from pgcron_lite.worker import process


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


def work(x: int = 1) -> int:
    return x


# Making one.


def test_an_app_does_nothing_when_it_is_made():
    app = PgCron("shop", url="postgresql://nowhere.invalid/db")
    app.task(work)

    assert repr(app) == "<PgCron 'shop'>"
    app.close()


def test_a_url_in_the_place_of_the_name_is_refused():
    with pytest.raises(OptionError, match=r"the first argument is the app's name; the database is url="):
        PgCron(7)  # type: ignore[arg-type]


def test_several_apps_live_in_one_process_without_knowing_of_each_other():
    first, second = PgCron("first", url="memory://"), PgCron("second", url="memory://")
    one = first.task(name="work")(work)
    two = second.task(name="work")(work)

    handles = one.delay(1), two.delay(2), two.delay(3)
    process.run_worker(second, drain=True)

    assert (one.app, two.app) == (first, second)
    assert [handle.state() for handle in handles] == ["queued", "done", "done"]


def test_an_app_in_memory_keeps_its_queue_while_threads_use_it(app):
    task = app.task(name="work")(work)
    threads = [threading.Thread(target=task.delay, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert process.run_worker(app, drain=True) == 0
    assert [app.handle(n).state() for n in range(1, 21)] == ["done"] * 20


@pytest.mark.row("S25")
def test_memory_on_a_production_host_is_warned_about(monkeypatch):
    monkeypatch.setenv("DYNO", "web.1")

    with pytest.warns(RuntimeWarning, match="jobs are lost when the process ends. Set PGCRON_DATABASE_URL"):
        PgCron(url="memory://").task(work).delay()


# Names.


def test_a_task_is_named_after_its_module_and_function(app):
    class Mail:
        def send(self) -> None: ...

        @staticmethod
        def check() -> None: ...

    def nested() -> None: ...

    assert app.task(work).name == "test_app.work"
    here = "test_app.test_a_task_is_named_after_its_module_and_function"
    assert app.task(nested).name == f"{here}.nested"
    assert app.task(Mail.check).name == f"{here}.Mail.check"
    assert task_name(Mail.send) == f"{here}.Mail.send"


def test_a_name_may_be_given(app):
    task = app.task(name="mail.send")(work)

    assert (task.name, app.tasks) == ("mail.send", {"mail.send": task})
    assert repr(task) == "<Task mail.send>"


SCRIPT = """
from pgcron_lite import PgCron

app = PgCron(url="memory://")

@app.task
def hello(): ...

print(*app.tasks)
"""


@pytest.mark.parametrize(
    ("files", "command", "names"),
    [
        ({"hello.py": SCRIPT}, ["hello.py"], "hello.hello"),
        ({"hello.py": SCRIPT}, ["./hello.py"], "hello.hello"),
        ({"hello.py": SCRIPT}, ["-m", "hello"], "hello.hello"),
        ({"pkg/__init__.py": "", "pkg/mod.py": SCRIPT}, ["-m", "pkg.mod"], "pkg.mod.hello"),
        ({"pkg/__init__.py": "", "pkg/__main__.py": SCRIPT}, ["-m", "pkg"], "pkg.hello"),
        ({"hello.py": SCRIPT}, ["-c", "import hello"], "hello.hello"),
    ],
)
def test_no_name_ever_contains_main(tmp_path, files, command, names):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    said = run(command, tmp_path)

    assert (said.returncode, said.stdout.strip()) == (0, names), said.stderr


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    import os

    import pgcron_lite

    env = {**os.environ, "PYTHONPATH": str(Path(pgcron_lite.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_task_at_the_prompt_needs_a_name():
    """A worker could not import it."""
    said = python(
        """
        from pgcron_lite import PgCron
        from pgcron_lite.errors import OptionError
        app = PgCron(url="memory://")
        def hello(): ...
        try:
            app.task(hello)
        except OptionError as error:
            print(error)
        print(app.task(name="hello")(hello).name)
        """
    )

    assert "is defined at an interactive prompt, where no worker can find it" in said
    assert said.endswith("\nhello\n")


# Registering.


def test_the_bare_decorator_and_the_one_with_options_give_the_same(app):
    @app.task
    def bare() -> None: ...

    @app.task()
    def called() -> None: ...

    assert isinstance(bare, Task)
    assert bare.settings == called.settings


def test_a_task_looks_like_its_function(app):
    @app.task
    def documented() -> None:
        """What it does."""

    assert (documented.__name__, documented.__doc__, documented.__module__) == (
        "documented", "What it does.", __name__,
    )


def test_two_tasks_of_one_name_are_refused_with_both_places(app):
    app.task(name="work")(work)

    place = r".*test_app\.py:\d+"
    with pytest.raises(OptionError, match=f"two tasks are named 'work': {place} and {place}; give one of them name="):
        app.task(name="work")(lambda_free)


def lambda_free() -> None:
    """Another function."""


def test_the_same_function_may_be_registered_again(app):
    """As when a module is reloaded, or a factory that defines tasks is called twice."""
    app.task(name="work")(work)

    assert app.task(name="work", queue="mail")(work).settings.queue == "mail"


async def asynchronous() -> None: ...


def generating() -> Any:
    yield


async def both() -> Any:
    yield


class Callable:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (asynchronous, r"is async; tasks are plain functions: call asyncio\.run"),
        (both, "is async"),
        (generating, "is a generator; a task runs to its end and returns"),
        ("mail", r"expects a function, got 'mail'; options go by name: @app\.task\(queue=\.\.\.\)"),
        (Callable(), "has no name that a worker can look up"),
        (staticmethod(work), "has no name that a worker can look up"),
        (classmethod(work), "expects a function"),
        (lambda: None, "a lambda has no name that a worker can look up; define a function, or give it name="),
        (int, "register a plain function"),
    ],
)
def test_what_cannot_be_a_task_is_refused_with_the_way_out(app, function, words):
    with pytest.raises(OptionError, match=words):
        app.task(function)


def test_a_lambda_with_a_name_is_a_task(app):
    handle = app.task(name="double")(lambda x: x * 2).delay(21)
    process.run_worker(app, drain=True)

    assert handle.result(timeout=0) == 42


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queu": "mail"}, r"@app\.task has no option 'queu'; did you mean 'queue'\?"),
        ({"colour": "red"}, r"@app\.task has no option 'colour'"),
        ({"name": ""}, "name=''"),
        ({"name": 7}, "name=7"),
        ({"name": "x" * 201}, "name="),
        ({"name": "a\nb"}, "name="),
        ({"name": "__main__.send"}, "__main__"),
        ({"queue": ""}, "queue=''"),
        ({"queue": "*"}, r"queue='\*'"),
        ({"queue": "a,b"}, "has no comma"),
        ({"queue": " mail"}, "no spaces around"),
        ({"queue": "x" * 101}, "1 to 100 printable"),
        ({"queue": 7}, "queue=7"),
        ({"priority": "high"}, "priority='high': expected a whole number"),
        ({"priority": True}, "priority=True"),
        ({"priority": 1.5}, "priority=1.5"),
        ({"priority": 40_000}, "priority=40000"),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"max_attempts": True}, "max_attempts=True"),
        ({"max_attempts": "3"}, "max_attempts='3'"),
        ({"max_attempts": 100_000}, "max_attempts=100000"),
        ({"backoff": "soon"}, "backoff"),
        ({"backoff": -1}, "backoff"),
        ({"backoff": object()}, "backoff"),
        ({"retry_on": ValueError("x")}, "retry_on"),
        ({"retry_on": "ValueError"}, "retry_on"),
        ({"retry_on": [ValueError()]}, "retry_on"),
        ({"discard_on": (int,)}, "discard_on"),
        ({"retry": [ValueError]}, r"retry=\[\.\.\.\]: expected RetryOn"),
        ({"max_crashes": 0}, "max_crashes=0: expected a whole number from 1 to 100"),
        ({"max_crashes": True}, "max_crashes=True"),
        ({"keep_result": "no"}, "keep_result='no': expected True or False"),
    ],
)
def test_an_option_that_cannot_be_right_is_refused_at_decoration(app, options, words):
    with pytest.raises(OptionError, match=words):
        app.task(**options)(work)

    assert app.tasks == {}


def test_all_options_together_are_taken(app):
    task = app.task(
        name="mail.send", queue="mail", priority=-5, max_attempts=8, backoff=Backoff(first="5s", factor=2, max="10m"),
        retry_on=(ConnectionError,), discard_on=ValueError, retry=[RetryOn(KeyError, max_attempts=2)], max_crashes=1,
        keep_result=False,
    )(work)

    job = task.delay().job()
    assert (job.task, job.queue, job.priority, job.max_attempts, job.max_crashes) == ("mail.send", "mail", -5, 8, 1)


# Frozen.


def test_a_frozen_app_says_why_and_what_to_do(app):
    app._freeze("its worker is running")

    for register in (lambda: app.task(work), lambda: app.on("job_done")(work), lambda: app.around(generating)):
        with pytest.raises(SetupFinished, match=r"on <PgCron 'shop'>: its worker is running\. Import the module"):
            register()


def test_a_worker_thaws_its_app_when_it_ends(app):
    process.run_worker(app, drain=True)

    assert not app._is_running
    app.task(work)


# Looking things up.


def test_an_unknown_task_is_answered_with_the_nearest(app):
    app.task(name="mail.send")(work)

    with pytest.raises(UnknownTask, match=r"no task named 'mail\.sent' on app 'shop'; did you mean 'mail\.send'\?"):
        app.find_task("mail.sent")


def test_a_handle_for_a_job_that_is_not_there_says_why(app):
    with pytest.raises(UnknownJob, match="there is no job #9"):
        app.handle(9).job()


def test_a_closed_app_opens_again(pg_url):
    app = PgCron(url=pg_url)
    task = app.task(name="work")(work)
    first = task.delay()
    app.close()

    second = task.delay()

    assert [app.handle(h.id).state() for h in (first, second)] == ["queued", "queued"]
    app.close()


def test_a_reset_app_reads_its_settings_again_and_keeps_its_tasks(app, monkeypatch):
    handle = app.task(name="work")(work).delay()
    monkeypatch.setenv("PGCRON_SLOTS", "3")
    before = app.settings.slots

    app.reset()

    assert (before, app.settings.slots, list(app.tasks)) == (10, 3, ["work"])
    assert app.store.get(handle.id) is None


def test_importing_a_module_that_defines_tasks_loads_no_driver(tmp_path):
    (tmp_path / "mail.py").write_text(SCRIPT.replace("memory://", "postgresql://nowhere.invalid/db"))

    said = python('import sys, mail; print({"psycopg", "gevent", "flask", "click"} & set(sys.modules))', cwd=tmp_path)

    assert said.splitlines() == ["mail.hello", "set()"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slot": 5}, "run_worker() has no option 'slot'; did you mean 'slots'?"),
        ({"queue": "mail"}, "did you mean 'queues'?"),
        ({"log_format": "jsonl"}, "log_format='jsonl': expected one of text, logfmt, json; did you mean 'json'?"),
        ({"log_level": "loud"}, "log_level='loud': expected one of debug, info, warning, error, critical"),
        ({"max_seconds": 0}, "max_seconds=0: expected a number of seconds above 0"),
        ({"max_seconds": "1m"}, "max_seconds='1m': expected a number of seconds above 0"),
        ({"drain": "no"}, "drain='no': expected True or False"),
        ({"slots": 0}, "slots"),
        ({"start_within": "soon"}, "start_within"),
        ({"processes": 0}, "processes=0: expected a whole number from 1 to 256"),
    ],
)
def test_an_option_of_a_worker_that_cannot_be_right_is_refused(options, words):
    app = PgCron("options", url="memory://")

    with pytest.raises(PgCronError, match=re.escape(words) if len(words) > 10 else f"(?i){words}"):
        app.run_worker(**options)

    assert app.run_worker(drain=True) == 0


def test_every_option_of_a_worker_is_typed_and_documented():
    given = set(inspect.signature(process.run_worker).parameters) - {"app"}

    assert set(RunOptions.__annotations__) == given | {"log_format", "log_level"}
    assert [name for name in RunOptions.__annotations__ if f"`{name}" not in PgCron.run_worker.__doc__] == []


def test_the_time_zone_of_a_schedule_is_stored_by_its_name_however_it_is_given(app):
    berlin = ZoneInfo("Europe/Berlin")
    app.cron("30 2 * * *", tz=berlin, name="by_cron")(work)
    app.schedule("30 2 * * *", tz=berlin, name="by_schedule")(work)
    view = app.schedules.add("by_hand", "30 2 * * *", app.task(name="work")(work), tz=berlin)

    zones = [schedule.timing.tz for schedule in (*app.declared.values(), view.schedule)]
    assert zones == ["Europe/Berlin"] * 3
    assert '"tz":"Europe/Berlin"' in app._definitions["by_cron"]
    with app.testing(at="2026-03-01 12:00", tz=berlin) as t:
        assert t.now.tzinfo == berlin


# What users call, and what the other modules of this library use besides.
OF_USERS = {
    "around", "close", "configure", "cron", "enable_shell", "every", "handle", "init_app", "jobs", "name", "on",
    "queues", "register", "reset", "run_worker", "schedule", "schedules", "send", "settings", "task", "tasks",
    "testing",
}  # fmt: skip
INTERNAL = {"arounds", "declared", "events", "find_task", "store"}


def test_little_but_what_users_call_completes_on_an_app(app):
    assert {name for name in dir(app) if not name.startswith("_")} == OF_USERS | INTERNAL


def test_the_settings_are_typed_for_the_constructor():
    hints = get_type_hints(config.SettingValues)

    assert set(hints) == {field.name for field in fields(config.Settings)}
