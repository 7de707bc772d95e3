"""Finding the app: what may be given, what is looked for, and what is said when it is not there."""

import sys
from pathlib import Path

import pytest
from support import python

from pgcron_lite.discover import NothingHere, candidates, find_app
from pgcron_lite.errors import AppNotFound

ONE = "from pgcron_lite import PgCron\n{name} = PgCron('{name}')\n@{name}.task\ndef add(x, y): return x + y\n"

FLASK = """
from flask import Flask
from pgcron_lite import PgCron

cron = PgCron("inside")

def create_app(name="default"):
    app = Flask(name)
    app.extensions["pgcron"] = cron
    cron.name = name
    return app
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("PGCRON_APP", "FLASK_APP"):
        monkeypatch.delenv(name, raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("asked", ["one", "one:app", "one.py", "./one.py", "one.py:app"])
def test_a_module_may_be_named_in_every_usual_way(folder, asked):
    write(folder, "one.py", ONE.format(name="app"))

    assert find_app(asked).name == "app"


@pytest.mark.parametrize("name", ["app", "application", "cron", "anything"])
def test_the_only_app_of_a_module_is_found_under_any_name(folder, name):
    write(folder, "one.py", ONE.format(name=name))

    assert find_app("one").name == name


def test_an_app_that_has_two_names_in_its_module_is_one_app(folder):
    write(folder, "one.py", ONE.format(name="cron") + "also = cron\n")

    assert find_app("one").name == "cron"


def test_several_apps_in_a_module_are_listed_with_what_to_type(folder):
    write(folder, "two.py", "from pgcron_lite import PgCron\na = PgCron()\nb = PgCron()\n")

    with pytest.raises(AppNotFound, match=r"several apps: a, b\. Say which one: --app two:a"):
        find_app("two")


def test_the_environment_names_the_app_and_the_command_line_wins(folder):
    for name in ("one", "two", "three"):
        write(folder, f"{name}.py", ONE.format(name=name))
    environ = {"PGCRON_APP": "two", "FLASK_APP": "three"}

    assert find_app("one", environ).name == "one"
    assert find_app(None, environ).name == "two"
    assert find_app(None, {"FLASK_APP": "three"}).name == "three"


@pytest.mark.parametrize("file", ["app.py", "wsgi.py", "app/__init__.py"])
def test_the_usual_files_are_found_by_themselves(folder, file):
    write(folder, file, ONE.format(name="cron"))

    assert find_app().name == "cron"


def test_a_usual_file_without_an_app_does_not_hide_the_one_that_has_it(folder):
    write(folder, "app.py", "nothing = 1\n")
    write(folder, "hello.py", ONE.format(name="cron"))

    assert find_app().name == "cron"


def test_the_only_file_that_makes_an_app_is_found_and_no_other_is_run(folder):
    write(folder, "hello.py", ONE.format(name="cron"))
    write(folder, "danger.py", "raise SystemExit('this was run')\n# PgCron( in a comment\n")

    assert find_app().name == "cron"


def test_several_files_that_make_an_app_are_listed(folder):
    write(folder, "a.py", ONE.format(name="app"))
    write(folder, "b.py", ONE.format(name="app"))

    with pytest.raises(AppNotFound, match=r"a\.py, b\.py\. Say which one: --app a"):
        candidates()


def test_an_empty_folder_is_told_what_to_do(folder):
    with pytest.raises(NothingHere, match=r"no app in this folder.*--app module:name.*pgcron dev --new"):
        find_app()


@pytest.mark.parametrize("asked", ["shop", "shop:create_app", "shop:create_app()", "shop/__init__.py:create_app"])
def test_a_factory_is_called_and_its_app_is_asked_for_the_pgcron(folder, asked):
    write(folder, "shop/__init__.py", FLASK)

    assert find_app(asked).name == "default"


def test_a_factory_takes_literals(folder):
    write(folder, "shop.py", FLASK)

    assert find_app("shop:create_app('production')").name == "production"
    assert find_app("shop:create_app(name='staging')").name == "staging"


def test_a_factory_comes_before_the_bare_pgcron_it_connects(folder):
    write(folder, "shop.py", FLASK)

    assert find_app("shop").name == "default"  # the factory renamed it


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("shop:create_app('a', 'b')", "cannot be called like this: too many positional arguments"),
        ("shop:create_app(open('x'))", "the arguments of a factory are literals"),
        ("shop:create_app(", "is not a name or a call"),
        ("shop:1 + 1", "is not a name or a call"),
        ("shop:crno", r"module 'shop' has no 'crno'; did you mean 'cron'\?"),
        ("shop:Flask.nothing", "has no 'nothing'"),
        ("shop:Flask", "expected a PgCron, or a Flask app that has one"),
        ("shop:", "expected module, module:name or path/to/file.py"),
        ("nope.py", "there is no file 'nope.py' here"),
        ("shop.txt/x.py", "there is no file"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(folder, asked, words):
    write(folder, "shop.py", FLASK)

    with pytest.raises(AppNotFound, match=words):
        find_app(asked)


def test_a_flask_app_without_a_pgcron_is_told_how_to_connect_one(folder):
    write(folder, "wsgi.py", "from flask import Flask\napp = Flask('x')\n")

    with pytest.raises(AppNotFound, match=r"Flask app without one: cron\.init_app\(app\) connects them"):
        find_app()


def test_a_module_that_is_not_there_is_not_confused_with_one_that_fails(folder):
    write(folder, "needs.py", "import not_there_at_all\n")
    write(folder, "wrong.py", "def f():\n    return undefined\nf()\n")
    write(folder, "leaves.py", "import sys\nsys.exit(3)\n")

    with pytest.raises(AppNotFound, match=r"^there is no module 'neds'.*; did you mean 'needs'\?"):
        find_app("neds")
    with pytest.raises(AppNotFound, match=r"(?s)^importing 'needs' failed: ModuleNotFoundError.*needs\.py.*line 1"):
        find_app("needs")
    with pytest.raises(AppNotFound, match=r"(?s)^importing 'wrong' failed: NameError.*wrong\.py.*line 2, in f"):
        find_app("wrong")
    with pytest.raises(AppNotFound, match="importing 'leaves' failed: SystemExit"):
        find_app("leaves")


def test_the_traceback_of_a_failure_shows_the_users_files_alone(folder):
    write(folder, "wrong.py", "1 / 0\n")

    with pytest.raises(AppNotFound) as refused:
        find_app("wrong")

    assert "discover.py" not in str(refused.value)
    assert "importlib" not in str(refused.value)


def test_tasks_are_named_alike_by_a_script_by_its_path_and_by_its_module(folder):
    text = ONE.format(name="app") + "if __name__ == '__main__':\n    print(*app.tasks)\n"
    write(folder, "jobs/hello.py", text)
    write(folder, "package/__init__.py", "")
    write(folder, "package/mail.py", ONE.format(name="app"))

    as_script = python("import subprocess, sys; subprocess.run([sys.executable, 'jobs/hello.py'])", cwd=folder)
    by_path = [*find_app("jobs/hello.py").tasks]
    in_package = [*find_app("package/mail.py").tasks]

    assert by_path == ["hello.add"]
    assert in_package == ["package.mail.add"] == [*find_app("package.mail").tasks]
    assert as_script.split() == by_path
