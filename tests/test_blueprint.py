"""Blueprints: tasks of modules that do not import the app."""

import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from pgcron_lite import PgCron, TaskBlueprint, UnknownTask
from pgcron_lite.errors import NotRegistered, OptionError, PgCronError, SetupFinished


@pytest.fixture
def app() -> PgCron:
    return PgCron("shop", url="memory://")


@pytest.fixture
def mail() -> TaskBlueprint:
    return TaskBlueprint("mail")


def send(to: str = "ada") -> str:
    return f"sent to {to}"


def test_a_task_of_a_blueprint_runs_like_any_other(app: PgCron, mail: TaskBlueprint) -> None:
    task = mail.task(queue="mail", max_attempts=2)(send)
    app.register(mail)

    handle = task.delay("eve")

    assert (handle.job().task, handle.job().queue, handle.job().max_attempts) == ("mail.send", "mail", 2)
    assert app.run_worker(queues="mail", drain=True) == 0
    assert handle.result(0) == "sent to eve"
    assert task.app is app
    assert task("bob") == "sent to bob"


def test_a_schedule_of_a_blueprint_is_one_of_the_app(app: PgCron, mail: TaskBlueprint) -> None:
    @mail.every("1h")
    def sweep() -> None: ...

    @mail.cron("30 2 * * *", name="nightly", tz="Europe/Berlin", queue="mail")
    @mail.task
    def report() -> None: ...

    mail.schedule("every 10s")(report)
    app.register(mail)

    assert sorted(app.declared) == ["mail.report", "mail.sweep", "nightly"]
    assert app.declared["nightly"].task == "mail.report"
    assert sorted(app.tasks) == ["mail.report", "mail.sweep"]


def test_a_name_that_is_given_is_used_as_it_is(app: PgCron, mail: TaskBlueprint) -> None:
    mail.task(name="shop.jobs.send")(send)
    app.register(mail)

    assert list(app.tasks) == ["shop.jobs.send"]


def test_nothing_can_be_enqueued_before_the_blueprint_is_registered(mail: TaskBlueprint) -> None:
    task = mail.task(send)

    for enqueue in (task.delay, lambda: task.map(["ada"]), task.options(priority=2).delay):
        with pytest.raises(PgCronError, match=r"<TaskBlueprint 'mail'> cannot be enqueued yet: .*app\.register"):
            enqueue()


def test_a_copy_with_options_made_before_the_registration_works_after_it(app: PgCron, mail: TaskBlueprint) -> None:
    urgent = mail.task(send).options(priority=50, tags=["urgent"])
    app.register(mail)

    job = urgent.delay().job()

    assert (job.priority, job.tags) == (50, ("urgent",))


def test_what_a_registered_blueprint_declares_later_reaches_the_app(app: PgCron, mail: TaskBlueprint) -> None:
    app.register(mail)
    task = mail.task(send)
    mail.every("1h", name="hourly")(task)

    assert (list(app.tasks), list(app.declared)) == (["mail.send"], ["hourly"])
    assert task.delay().state() == "queued"


def test_registering_twice_is_registering_once(app: PgCron, mail: TaskBlueprint) -> None:
    mail.task(send)
    app.register(mail)
    app._freeze("its worker is running")

    app.register(mail)

    assert list(app.tasks) == ["mail.send"]


def test_a_blueprint_belongs_to_one_app(app: PgCron, mail: TaskBlueprint) -> None:
    app.register(mail)

    with pytest.raises(OptionError, match=r"<TaskBlueprint 'mail'> is registered on <PgCron 'shop'> already"):
        PgCron("other", url="memory://").register(mail)


def test_a_name_that_is_taken_registers_nothing(app: PgCron, mail: TaskBlueprint) -> None:
    app.task(name="mail.send")(lambda: None)

    mail.task(name="first")(print_it)
    mail.task(send)
    with pytest.raises(OptionError, match=r"two tasks are named 'mail\.send': .*test_blueprint\.py:\d+ and "):
        app.register(mail)

    assert list(app.tasks) == ["mail.send"]
    with pytest.raises(PgCronError, match="cannot be enqueued yet"):
        mail.tasks["first"].delay()


def print_it() -> None:
    print("it")


def test_two_tasks_of_one_blueprint_cannot_share_a_name(mail: TaskBlueprint) -> None:
    mail.task(send)

    with pytest.raises(OptionError, match=r"two tasks are named 'mail\.send'"):
        mail.task(name="mail.send")(print_it)


def test_two_blueprints_cannot_give_a_schedule_the_same_name(app: PgCron, mail: TaskBlueprint) -> None:
    reports = TaskBlueprint("reports")
    mail.every("1h", name="hourly")(send)
    reports.every("2h", name="hourly")(print_it)
    app.register(mail)

    with pytest.raises(OptionError, match="two schedules are named 'hourly'"):
        app.register(reports)

    assert list(app.tasks) == ["mail.send"]


def test_a_running_worker_takes_no_new_tasks(app: PgCron, mail: TaskBlueprint) -> None:
    reports = TaskBlueprint("reports")
    app.register(mail)
    app._freeze("its worker is running")

    with pytest.raises(SetupFinished, match=r"cannot register <TaskBlueprint 'reports'> on <PgCron 'shop'>"):
        app.register(reports)
    with pytest.raises(SetupFinished, match=r"cannot register a task on <PgCron 'shop'>: its worker is running"):
        mail.task(send)
    with pytest.raises(SetupFinished, match="cannot declare a schedule"):
        mail.every("1h")(print_it)

    assert (mail.tasks, app.tasks) == ({}, {})


@pytest.mark.parametrize("wrong", [send, "mail", None, sys])
def test_what_is_no_blueprint_is_not_registered(app: PgCron, wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"app\.register\(.*expected a TaskBlueprint"):
        app.register(wrong)


@pytest.mark.parametrize("name", ["", " mail", "__main__", None, 3, "a\nb"])
def test_a_blueprint_needs_a_name(name: Any) -> None:
    with pytest.raises(OptionError, match="name="):
        TaskBlueprint(name)


def test_hooks_are_the_apps(mail: TaskBlueprint) -> None:
    with pytest.raises(AttributeError, match=r"a blueprint has no attribute 'on'; here it is @app\.on\(event\)"):
        mail.on  # type: ignore[attr-defined]  # noqa: B018


def test_a_lambda_has_no_name_in_a_blueprint_either(mail: TaskBlueprint) -> None:
    with pytest.raises(OptionError, match="a lambda has no name"):
        mail.task(lambda: None)


def test_a_module_that_is_reloaded_can_be_registered_again(
    app: PgCron, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reloaded_mail.py").write_text(
        "from pgcron_lite import TaskBlueprint\n"
        "mail = TaskBlueprint('mail')\n"
        "@mail.every('1h')\n"
        "def sweep(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_mail")
    app.register(module.mail)

    module = importlib.reload(module)
    app.register(module.mail)

    assert app.tasks == {"mail.sweep": module.sweep}
    assert module.sweep.delay().state() == "queued"


def test_tasks_of_several_modules_enqueue_each_other_without_importing_the_app(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "late_bound_shop"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from pgcron_lite import PgCron\n"
        "from . import mail, orders\n"
        "app = PgCron('shop', url='memory://')\n"
        "app.register(mail.tasks)\n"
        "app.register(orders.tasks)\n"
    )
    (package / "mail.py").write_text(
        "from pgcron_lite import TaskBlueprint\n"
        "tasks = TaskBlueprint('mail')\n"
        "@tasks.task\n"
        "def thank(order: int) -> str:\n"
        "    return f'thanks for {order}'\n"
    )
    (package / "orders.py").write_text(
        "from pgcron_lite import TaskBlueprint\n"
        "from . import mail\n"
        "tasks = TaskBlueprint('orders')\n"
        "@tasks.task\n"
        "def ship(order: int) -> int:\n"
        "    return mail.thank.delay(order).id\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shop = importlib.import_module("late_bound_shop")

    shipped = shop.orders.ship.delay(7)
    assert shop.app.run_worker(drain=True) == 0

    assert shop.app.handle(shipped.result(0)).result(0) == "thanks for 7"


def test_a_task_of_a_blueprint_that_is_not_registered_is_unknown(app: PgCron, mail: TaskBlueprint) -> None:
    mail.task(send)

    with pytest.raises(UnknownTask, match=r"no task named 'mail\.send'"):
        app.find_task("mail.send")


def logged(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> str:
        return function(*args, **kwargs)

    return inner


def test_two_functions_under_one_decorator_are_two_functions(app: PgCron, mail: TaskBlueprint) -> None:
    mail.task(name="send")(logged(send))

    with pytest.raises(OptionError, match=r"two tasks are named 'send'"):
        mail.task(name="send")(logged(lambda: "texted"))
    app.task(name="send")(logged(lambda: "texted"))
    with pytest.raises(OptionError, match=r"two tasks are named 'send'"):
        app.register(mail)


def test_a_declaration_that_the_app_refuses_leaves_the_blueprint_as_it_was(app: PgCron, mail: TaskBlueprint) -> None:
    app.task(name="mail.send")(print_it)
    app.every("1h", name="hourly")(print_it)
    app.register(mail)

    with pytest.raises(OptionError, match="two tasks are named"):
        mail.task(send)
    task = mail.task(name="other")(send)
    with pytest.raises(OptionError, match="two schedules are named"):
        mail.every("2h", name="hourly")(task)

    assert (list(mail.tasks), list(mail.declared)) == (["other"], [])


def test_declarations_in_other_threads_are_not_lost_while_the_blueprint_is_registered(app: PgCron) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(30):
            blueprint = TaskBlueprint(f"b{number}")

            def declare(blueprint: TaskBlueprint = blueprint) -> None:
                for each in range(40):
                    blueprint.task(name=f"{blueprint.name}.{each}")(send)

            thread = threading.Thread(target=declare)
            thread.start()
            app.register(blueprint)
            thread.join()
            assert len([name for name in app.tasks if name.startswith(f"b{number}.")]) == len(blueprint.tasks) == 40
    finally:
        sys.setswitchinterval(before)


def test_a_schedule_of_a_task_whose_blueprint_was_forgotten_starts_no_worker(app: PgCron, mail: TaskBlueprint) -> None:
    app.every("1s")(mail.task(send))

    expected = r"schedule 'mail\.send' runs the task 'mail\.send', which is not registered on .*app\.register"
    with pytest.raises(OptionError, match=expected):
        app.run_worker(drain=True)
    with pytest.raises(OptionError, match=expected), app.testing(at="2026-03-01 12:00") as t:
        t.advance("1m")

    app.register(mail)
    assert app.run_worker(drain=True) == 0


def test_a_task_that_is_not_registered_can_be_inspected_and_mocked(mail: TaskBlueprint) -> None:
    task = mail.task(send)

    assert not hasattr(task, "app")
    assert dict(inspect.getmembers(task))["name"] == "mail.send"
    assert mock.create_autospec(task)
    with pytest.raises(NotRegistered, match="cannot be enqueued yet"):
        task.app  # noqa: B018


@pytest.mark.parametrize("name", ["x" * 199, "mail"])
def test_the_name_of_a_task_is_checked_as_a_whole(name: str) -> None:
    blueprint = TaskBlueprint(name)
    send.__name__, before = "se\nd" if name == "mail" else "send", send.__name__
    try:
        with pytest.raises(OptionError, match="expected 1 to 200 printable characters"):
            blueprint.task(send)
    finally:
        send.__name__ = before


def test_the_options_of_a_task_go_below_its_schedule(app: PgCron, mail: TaskBlueprint) -> None:
    for place in (app, mail):
        scheduled = place.cron("@daily", name="nightly")(send)
        with pytest.raises(OptionError, match=r"is a task already: write @app\.task below @app\.cron"):
            place.task(max_attempts=3)(scheduled)
