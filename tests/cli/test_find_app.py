"""Finding the app: what may be given, what is looked for, and what is said when it is not there."""

import importlib.util
import marshal
import os
import pwd
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support import python

from pgcron_lite.cli.context import Chosen
from pgcron_lite.cli.dev.command import require_app
from pgcron_lite.cli.find_app import NothingHere, candidates, find_app
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
    with pytest.raises(AppNotFound, match=r"Say which one: --app a"):
        require_app(Chosen(), False)


@pytest.mark.parametrize("way", ["--app", "PGCRON_APP"])
def test_dev_needs_an_app_to_be_named_once(folder, monkeypatch, way):
    write(folder, "a.py", ONE.format(name="app"))
    write(folder, "b.py", ONE.format(name="app"))
    if way == "PGCRON_APP":
        monkeypatch.setenv(way, "b")

    require_app(Chosen("b" if way == "--app" else None), False)


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


@pytest.mark.row("S13")
@pytest.mark.parametrize(
    "url", ["postgresql://ada:pa@c4nary@host/shop", "host=db password=c4nary", "postgresql://h/d?user=a&password=c4nary"]
)
def test_the_traceback_of_a_failure_shows_no_password_of_a_url(folder, url):
    write(folder, "one.py", f"from pgcron_lite import PgCron\napp = PgCron('shop', url='{url}', slot=7)\n")

    with pytest.raises(AppNotFound, match="did you mean 'slots'") as caught:
        find_app("one")

    assert "one.py" in str(caught.value)
    assert "slot=7" in str(caught.value)
    assert "c4nary" not in str(caught.value)


# What another user may have written.

TRAP = "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\n" + ONE.format(name="app")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def give_away(*paths: Path) -> None:
    for path in paths:
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)


def complete_tasks(folder: Path) -> str:
    """What the shell is offered for `pgcron enqueue <TAB>`."""
    env = {"_PGCRON_COMPLETE": "bash_complete", "COMP_WORDS": "pgcron enqueue ", "COMP_CWORD": "2"}
    # Not `python -m`, by which Python itself makes the current folder importable.
    program = "from pgcron_lite.cli import pgcron; pgcron.main(prog_name='pgcron')"
    return python(program, cwd=folder, env={**env, "PYTHONSAFEPATH": "1"})


@as_root
@pytest.mark.parametrize("file", ["app.py", "wsgi.py", "hello.py", "app/__init__.py"])
@pytest.mark.row("S24")
def test_a_file_of_another_user_is_not_imported_unless_it_is_named(folder, file):
    write(folder, file, TRAP)
    give_away(folder / file)
    module = file.removesuffix(".py").removesuffix("/__init__")

    with pytest.raises(AppNotFound, match=rf"belongs to another user.*--app {module} or PGCRON_APP={module}"):
        find_app()

    assert str(folder) not in sys.path
    assert complete_tasks(folder).strip() == ""
    assert not list(folder.rglob("was_run"))
    assert find_app(module).name == "app"
    assert list(folder.rglob("was_run"))


@as_root
def test_a_folder_of_another_user_is_not_imported_from(folder):
    write(folder, "app.py", TRAP)
    give_away(folder)

    with pytest.raises(AppNotFound, match="belongs to another user"):
        find_app()

    assert not (folder / "was_run").exists()


@as_root
def test_a_link_to_a_file_of_another_user_is_not_imported(folder, tmp_path_factory):
    theirs = tmp_path_factory.mktemp("theirs") / "app.py"
    theirs.write_text(TRAP)
    give_away(theirs)
    (folder / "app.py").symlink_to(theirs)

    with pytest.raises(AppNotFound, match="belongs to another user"):
        find_app()

    assert not theirs.with_name("was_run").exists()


@pytest.mark.parametrize("writable", [".", "app.py"])
def test_what_every_user_may_write_is_not_imported(folder, writable):
    write(folder, "app.py", TRAP)
    (folder / writable).chmod(0o777)

    with pytest.raises(AppNotFound, match="is writable for every user"):
        find_app()

    assert not (folder / "was_run").exists()


@as_root
@pytest.mark.parametrize("file", ["app.py", "app/__init__.py"])
@pytest.mark.row("S24")
def test_what_another_user_may_have_compiled_is_not_imported(folder, file):
    source = folder / file
    write(folder, file, ONE.format(name="app"))
    compiled = Path(importlib.util.cache_from_source(str(source)))
    compiled.parent.mkdir()
    trap = compile(TRAP.replace("__file__", repr(str(source))), str(source), "exec")
    # As Python writes it for the source that is there: it would be run in its place.
    header = struct.pack("<4sIII", importlib.util.MAGIC_NUMBER, 0, int(source.stat().st_mtime), source.stat().st_size)
    compiled.write_bytes(header + marshal.dumps(trap))
    give_away(compiled.parent)

    with pytest.raises(AppNotFound, match=r"__pycache__.*belongs to another user"):
        find_app()

    assert not list(folder.rglob("was_run"))
    assert find_app("app").name == "app"
    assert list(folder.rglob("was_run"))


def test_what_a_group_may_write_is_imported(folder):
    write(folder, "app.py", TRAP)
    folder.chmod(0o775)
    (folder / "app.py").chmod(0o664)

    assert find_app().name == "app"
    assert complete_tasks(folder).strip() != ""


def test_a_folder_without_an_app_does_not_become_importable(folder):
    write(folder, "psycopg.py", "raise SystemExit('the trap was run')\n")

    with pytest.raises(NothingHere):
        find_app()

    assert str(folder) not in sys.path


@as_root
def test_health_uses_the_environment_alone_in_a_folder_of_another_user(folder, pg_url):
    write(folder, "app.py", TRAP)
    write(folder, "psycopg.py", "raise SystemExit('the trap was run')\n")
    give_away(folder, folder / "app.py", folder / "psycopg.py")
    program = "from pgcron_lite.cli import pgcron; pgcron.main(['health'], prog_name='pgcron', standalone_mode=False)"

    said = python(program, cwd=folder, env={"DATABASE_URL": pg_url, "PYTHONSAFEPATH": "1"}, stderr=subprocess.STDOUT,
                  capture_output=False, stdout=subprocess.PIPE)

    assert "settings from the environment alone" in said
    assert "database   PostgreSQL" in said
    assert not (folder / "was_run").exists()


def test_a_pipe_among_the_files_is_not_read(folder):
    os.mkfifo(folder / "pipe.py")
    write(folder, "hello.py", ONE.format(name="cron"))

    assert find_app().name == "cron"
