"""Flask: settings from the config, an app context around every job, `db.session`, and `flask jobs ...`."""

import configparser
import gc
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import flask
import flask_sqlalchemy
import pytest
import sqlalchemy

import pgcron_lite
from pgcron_lite import PgCron, Retry, current_job
from pgcron_lite.contrib.flask import settings_of
from pgcron_lite.errors import ConfigError, OptionError, SetupFinished
from pgcron_lite.job import NewJob
from pgcron_lite.worker import process

DEADLINE = 60


@pytest.fixture
def cron() -> Iterator[PgCron]:
    cron = PgCron("shop")
    yield cron
    cron.close()


def flask_app(cron: PgCron | None = None, **given: Any) -> Any:
    app = flask.Flask("shop")
    app.config.update(given)
    if cron is not None:
        cron.init_app(app)
    return app


def memory_app(cron: PgCron, **given: Any) -> Any:
    return flask_app(cron, PGCRON_DATABASE_URL="memory://", **given)


def drain(cron: PgCron) -> None:
    """Run what is due, on a worker of its own."""
    assert process.run_worker(cron, drain=True, slots=2) == 0


# Connecting.


def test_an_app_under_test_whose_data_are_elsewhere_does_not_send_jobs_to_database_url(monkeypatch, cron):
    monkeypatch.setenv("DATABASE_URL", "postgresql://real/queue")
    flask_app(cron, TESTING=True, SQLALCHEMY_DATABASE_URI="sqlite://")

    with pytest.raises(ConfigError, match=r"under test \(TESTING\) and its data are in sqlite, so DATABASE_URL is not"):
        cron._enqueue([NewJob("x")])
    with cron.testing():
        assert cron._enqueue([NewJob("x")])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"SQLALCHEMY_DATABASE_URI": "sqlite://"}, "postgresql://real/queue"),
        ({"TESTING": True}, "postgresql://real/queue"),
        ({"TESTING": True, "SQLALCHEMY_DATABASE_URI": "postgresql://test/db"}, "postgresql://test/db"),
        (
            {"TESTING": True, "SQLALCHEMY_DATABASE_URI": "sqlite://", "PGCRON_DATABASE_URL": "postgresql://test/queue"},
            "postgresql://test/queue",
        ),
    ],
)
def test_otherwise_database_url_and_what_names_another_hold(monkeypatch, cron, given, expected):
    monkeypatch.setenv("DATABASE_URL", "postgresql://real/queue")
    flask_app(cron, **given)

    assert cron.settings.url() == expected



def test_the_extension_is_kept_where_flask_keeps_them(cron):
    app = memory_app(cron)

    assert app.extensions["pgcron"] is cron


def test_connecting_twice_changes_nothing(cron):
    app = memory_app(cron)
    cron.init_app(app)

    assert len(cron.arounds) == 1


def test_what_is_no_flask_app_is_refused(cron):
    with pytest.raises(OptionError, match="expected a Flask app"):
        cron.init_app("shop")


def test_a_second_pgcron_on_one_flask_app_is_refused(cron):
    app = memory_app(cron)

    with pytest.raises(OptionError, match="has <PgCron 'shop'> already"):
        PgCron("other").init_app(app)


# Settings.


def test_every_setting_is_read_from_the_config(cron):
    memory_app(cron, PGCRON_SLOTS=3, PGCRON_QUEUES="mail,reports", PGCRON_GRACE="7s", PGCRON_NOTIFY=False, OTHER=1)

    settings = cron.settings
    assert (settings.slots, settings.queues, settings.notify) == (3, ("mail", "reports"), False)
    assert settings.grace.total_seconds() == 7
    assert settings.is_memory


def test_the_config_wins_over_the_environment_and_the_constructor_over_both(monkeypatch):
    monkeypatch.setenv("PGCRON_SLOTS", "1")
    monkeypatch.setenv("PGCRON_SCHEMA", "from_env")
    monkeypatch.setenv("PGCRON_POLL", "1s")
    cron = PgCron(poll="3s")

    memory_app(cron, PGCRON_SLOTS=2, PGCRON_POLL="2s")

    assert (cron.settings.slots, cron.settings.poll.total_seconds()) == (2, 3)
    assert cron.settings.schema == "from_env"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"PGCRON_SLOT": 3}, r"the config of <Flask 'shop'>: there is no setting 'slot'; did you mean 'slots'\?"),
        ({"PGCRON_SLOTS": "many"}, r"the config of <Flask 'shop'>: PGCRON_SLOTS='many'"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused_at_init_app(cron, given, message):
    with pytest.raises(ConfigError, match=message):
        flask_app(cron, **given)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql+psycopg://u:p%40@host:5433/db?sslmode=require", "postgresql://u:p%40@host:5433/db?sslmode=require"),
        ("postgresql+psycopg2://host/db", "postgresql://host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgres://host/db", "postgresql://host/db"),
        ("sqlite:///app.db", None),
        ("mysql+pymysql://host/db", None),
        ("", None),
        (None, None),
    ],
)
def test_the_database_of_sqlalchemy_is_used_without_the_name_of_its_driver(monkeypatch, uri, expected):
    monkeypatch.delenv("PGCRON_DATABASE_URL", raising=False)

    settings = settings_of(flask_app(SQLALCHEMY_DATABASE_URI=uri))

    assert settings.get("database_url") == expected


def test_a_url_object_of_sqlalchemy_keeps_its_password(monkeypatch):
    monkeypatch.delenv("PGCRON_DATABASE_URL", raising=False)
    url = sqlalchemy.URL.create("postgresql+psycopg", "ada", "s/e@c", "host", database="db")

    settings = settings_of(flask_app(SQLALCHEMY_DATABASE_URI=url))

    assert settings["database_url"] == "postgresql://ada:s%2Fe%40c@host/db"


def test_a_database_named_for_us_comes_before_the_one_of_sqlalchemy(monkeypatch, cron):
    uri = "postgresql://host/main"
    named = settings_of(flask_app(PGCRON_DATABASE_URL="postgresql://host/jobs", SQLALCHEMY_DATABASE_URI=uri))
    monkeypatch.setenv("PGCRON_DATABASE_URL", "postgresql://host/env")
    from_env = flask_app(cron, SQLALCHEMY_DATABASE_URI=uri)

    assert named["database_url"] == "postgresql://host/jobs"
    assert from_env.extensions["pgcron"].settings.database_url == "postgresql://host/env"


# The context of a job.


def test_each_job_has_an_app_context_of_its_own_and_no_request(cron):
    app = memory_app(cron, GREETING="hello")
    seen = []

    @cron.task(name="look")
    def look() -> str:
        assert not flask.has_request_context()
        seen.append(flask.g._get_current_object())
        assert not hasattr(flask.g, "mine")
        flask.g.mine = current_job.id
        return str(flask.current_app.config["GREETING"])

    handles = look.map([(), ()])
    drain(cron)

    assert [handle.result(timeout=0) for handle in handles] == ["hello", "hello"]
    assert seen[0] is not seen[1]
    assert app.extensions["pgcron"] is cron


@pytest.mark.parametrize(
    ("raised", "state"), [(ValueError("no"), "failed"), (Retry("1h"), "queued"), (SystemExit(3), "failed")]
)
def test_teardown_functions_see_what_the_task_raised(cron, raised, state):
    app = memory_app(cron)
    seen: list[BaseException | None] = []
    app.teardown_appcontext(seen.append)

    @cron.task(name="fail", max_attempts=1 if state == "failed" else 5)
    def fail() -> None:
        raise raised

    handle = fail.delay()
    drain(cron)

    assert seen == [raised]
    assert handle.state() == state


def test_a_teardown_that_fails_fails_the_job(cron):
    app = memory_app(cron)

    @app.teardown_appcontext
    def broken(error: BaseException | None) -> None:
        raise RuntimeError("the session could not be given back")

    @cron.task(name="work", max_attempts=1)
    def work() -> None: ...

    handle = work.delay()
    drain(cron)

    assert handle.job().error == "RuntimeError: the session could not be given back"


def test_the_app_context_is_there_for_hooks_that_were_added_before_init_app(cron):
    seen = []

    @cron.around
    def tenant(job: Any) -> Iterator[None]:
        seen.append(flask.current_app.name)
        yield
        seen.append(flask.current_app.name)

    @cron.task(name="work")
    def work() -> None: ...

    memory_app(cron)
    work.delay()
    drain(cron)

    assert seen == ["shop", "shop"]


def test_a_plain_call_stays_in_the_context_of_the_caller(cron):
    app = memory_app(cron)

    @cron.task(name="look")
    def look() -> Any:
        return flask.g.mine

    with app.app_context():
        flask.g.mine = "the caller's"

        assert look() == "the caller's"


# Factories.


def test_of_two_apps_from_a_factory_the_last_one_counts(cron):
    @cron.task(name="whoami")
    def whoami() -> str:
        return str(flask.current_app.config["NUMBER"])

    memory_app(cron, NUMBER=1)
    memory_app(cron, NUMBER=2)
    handle = whoami.delay()
    drain(cron)

    assert handle.result(timeout=0) == "2"
    assert len(cron.arounds) == 1


def test_the_next_app_of_a_factory_brings_settings_and_a_queue_of_its_own(cron):
    @cron.task(name="work")
    def work() -> None: ...

    memory_app(cron, PGCRON_SLOTS=1)
    earlier = work.delay()
    memory_app(cron)

    assert cron.settings.slots == 10
    assert cron.store.get(earlier.id) is None


def test_the_apps_of_a_factory_are_not_kept(cron):
    gone = [weakref.ref(memory_app(cron)) for _ in range(5)]
    gc.collect()

    assert [ref() is None for ref in gone] == [True, True, True, True, False]


def test_an_app_made_inside_a_job_does_not_take_the_place_of_the_one_that_runs(cron):
    memory_app(cron, NUMBER=1)

    @cron.task(name="careless")
    def careless() -> tuple[str, str]:
        made = memory_app(cron, NUMBER=2)
        with made.app_context():
            inner = flask.current_app.config["NUMBER"]
        return str(inner), str(flask.current_app.config["NUMBER"])

    first, second = careless.delay(), careless.delay()
    drain(cron)

    assert first.result(timeout=0) == second.result(timeout=0) == ("2", "1")


def test_an_app_with_other_settings_is_refused_while_a_worker_runs(cron):
    memory_app(cron)

    @cron.task(name="careless", max_attempts=1)
    def careless() -> None:
        flask_app(cron, PGCRON_DATABASE_URL="postgresql://elsewhere/db")

    handle = careless.delay()
    drain(cron)

    assert handle.job().error is not None
    assert SetupFinished.__name__ in handle.job().error


def test_after_the_worker_another_app_may_come(cron):
    memory_app(cron)
    drain(cron)

    memory_app(cron, PGCRON_SLOTS=4)

    assert cron.settings.slots == 4


# The session.


@pytest.fixture
def shop(pg_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Flask app with a database, and a PgCron that gets to it by the config of SQLAlchemy."""
    monkeypatch.delenv("PGCRON_DATABASE_URL", raising=False)
    db, cron = flask_sqlalchemy.SQLAlchemy(), PgCron("shop")

    class Order(db.Model):  # type: ignore[name-defined,misc]
        id = db.Column(db.Integer, primary_key=True)

    app = flask.Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = pg_url.replace("postgresql://", "postgresql+psycopg://")
    db.init_app(app)
    cron.init_app(app)
    app.db, app.cron, app.Order = db, cron, Order

    @cron.task(name="ship")
    def ship(order: int) -> int:
        return int(db.session.get(Order, order).id)

    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        db.engine.dispose()
    cron.close()


def test_a_job_enqueued_on_the_session_finds_its_row(shop):
    with shop.app_context():
        shop.db.session.add(shop.Order(id=7))
        handle = shop.cron.tasks["ship"].options(conn=shop.db.session).delay(7)
        shop.db.session.commit()
    drain(shop.cron)

    assert handle.result(timeout=0) == 7


def test_a_session_that_is_rolled_back_or_thrown_away_takes_the_job_along(shop):
    task = shop.cron.tasks["ship"]
    with shop.app_context():
        rolled_back = task.options(conn=shop.db.session).delay(1)
        shop.db.session.rollback()
        forgotten = task.options(conn=shop.db.session).delay(2)

    assert shop.cron.store.get(rolled_back.id) is None
    assert shop.cron.store.get(forgotten.id) is None


def test_a_request_that_fails_leaves_no_job(shop):
    @shop.post("/orders")
    def order() -> str:
        shop.db.session.add(shop.Order(id=1))
        shop.cron.tasks["ship"].options(conn=shop.db.session).delay(1)
        if flask.request.args.get("fail"):
            raise RuntimeError("after the enqueue, before the commit")
        shop.db.session.commit()
        return "ok"

    client = shop.test_client()
    failed = client.post("/orders?fail=1").status_code
    before = jobs_of(shop)
    client.post("/orders")

    assert (failed, before, jobs_of(shop)) == (500, 0, 1)


def jobs_of(shop: Any) -> int:
    with shop.app_context():
        return int(shop.db.session.execute(shop.db.text("select count(*) from pgcron.jobs")).scalar())


def test_the_session_itself_is_asked_for_when_the_extension_is_passed(shop):
    with shop.app_context(), pytest.raises(OptionError, match=r"db\.session in Flask"):
        shop.cron.tasks["ship"].options(conn=shop.db).delay(1)


def test_each_job_gets_a_fresh_session_and_gives_its_connection_back(shop):
    sessions: list[int] = []

    @shop.cron.task(name="dirty")
    def dirty(number: int) -> None:
        sessions.append(id(shop.db.session()))
        shop.db.session.add(shop.Order(id=number))
        shop.db.session.flush()  # and never commits

    dirty.map([(1,), (2,), (3,)])
    drain(shop.cron)

    with shop.app_context():
        assert shop.db.session.query(shop.Order).count() == 0
        shop.db.session.rollback()
        assert shop.db.engine.pool.checkedout() == 0
    assert len(sessions) == 3


def test_a_job_completed_on_the_session_is_committed_with_it(shop):
    @shop.cron.task(name="book")
    def book(number: int) -> None:
        shop.db.session.add(shop.Order(id=number))
        current_job.complete(shop.db.session, result=number)
        shop.db.session.commit()

    handle = book.delay(9)
    drain(shop.cron)

    assert handle.result(timeout=0) == 9


# The commands, as a user types them.

APP = '''
import os, sys, threading
import flask_sqlalchemy            # which loads psycopg only at the first connect
import psycopg                     # ... and this does it now
from flask import Flask, current_app
from pgcron_lite import PgCron

cron = PgCron("shop")

@cron.task
def whoami(text: str) -> str:
    import gevent.monkey
    return f"{text} {current_app.config['STAGE']} {gevent.monkey.is_module_patched('threading')}"

def create_app(stage="plain"):
    app = Flask(__name__)
    app.config["STAGE"] = stage
    app.config["PGCRON_DATABASE_URL"] = os.environ["SHOP_URL"]
    cron.init_app(app)
    return app
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(textwrap.dedent(APP))
    declare_the_entry_point(tmp_path)
    return tmp_path


def declare_the_entry_point(folder: Path) -> None:
    """What setup.cfg says, for a run of the tests in which the package is not installed."""
    if any(point.name == "jobs" for point in entry_points(group="flask.commands")):
        return
    read = configparser.ConfigParser()
    read.read(Path(pgcron_lite.__file__).parents[1] / "setup.cfg")
    commands = read["options.entry_points"]["flask.commands"].strip()
    info = folder / "entry-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: entry\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[flask.commands]\n{commands}\n")


def run_flask(project: Path, url: str, *words: str, app: str = "shop:create_app") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", app, "jobs", *words],
        cwd=project, env=environment(url), capture_output=True, text=True, timeout=DEADLINE, check=False,
    )


def environment(url: str) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "PGCRON_DATABASE_URL")}
    return {**plain, "SHOP_URL": url, "PYTHONPATH": str(Path(pgcron_lite.__file__).parents[1])}


def test_flask_jobs_migrates_works_and_lists(project, empty_pg_url):
    migrated = run_flask(project, empty_pg_url, "migrate")
    enqueued = run_flask(project, empty_pg_url, "enqueue", "shop.whoami", "hi")
    worked = run_flask(project, empty_pg_url, "worker", "--drain")
    listed = run_flask(project, empty_pg_url, "list", "--json", "--state", "done")

    for answer in (migrated, enqueued, worked, listed):
        assert answer.returncode == 0, answer.stdout + answer.stderr
    assert '"result": "hi plain False"' in listed.stdout


def test_flask_jobs_finds_the_development_database_and_names_its_own_commands(project, pg_url):
    source = (project / "shop" / "__init__.py").read_text()
    (project / "shop" / "__init__.py").write_text(source.replace('os.environ["SHOP_URL"]', "None"))
    (project / ".pgcron").mkdir(mode=0o700)
    (project / ".pgcron" / "url").touch(mode=0o600)
    (project / ".pgcron" / "url").write_text(pg_url)

    workers = run_flask(project, "unused", "workers", "list")
    health = run_flask(project, "unused", "health")

    assert "database of `pgcron dev`" in workers.stderr
    assert "start one with: flask jobs worker" in workers.stderr
    assert "start one with: flask jobs worker" in health.stdout


def test_a_worker_with_gevent_is_patched_before_the_app_is_imported(project, pg_url):
    run_flask(project, pg_url, "enqueue", "shop.whoami", "hi")

    worked = run_flask(project, pg_url, "worker", "--drain", "--gevent", app="shop:create_app('green')")
    listed = run_flask(project, pg_url, "list", "--json", "--state", "done")

    assert worked.returncode == 0, worked.stdout + worked.stderr
    assert '"result": "hi green True"' in listed.stdout


def test_help_needs_no_app(project):
    answer = run_flask(project, "postgresql://nowhere/db", "--help", app="nothing_here")

    assert answer.returncode == 0
    assert {"worker", "migrate", "list", "retry"} <= set(answer.stdout.split())


def test_an_app_without_a_pgcron_is_told_how_to_get_one(project):
    (project / "bare.py").write_text("from flask import Flask\napp = Flask(__name__)\n")

    answer = run_flask(project, "postgresql://nowhere/db", "list", app="bare")

    assert answer.returncode == 2
    assert "has no PgCron; connect it: cron.init_app(app)" in answer.stderr


def test_a_command_that_is_not_there_is_answered_with_the_nearest(project):
    answer = run_flask(project, "postgresql://nowhere/db", "lits")

    assert answer.returncode == 2
    assert "did you mean 'list'?" in answer.stderr
