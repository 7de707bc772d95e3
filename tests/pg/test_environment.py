"""The environment label: producers and commands of another environment are refused before they write or show any."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgcron_lite import PgCron
from pgcron_lite.cli import MISFIT, pgcron
from pgcron_lite.errors import ConfigError, SchemaMismatch

REFUSAL = r"belongs to the environment 'production'.*PGCRON_ENVIRONMENT not set.*Is it a copy\?.*pgcron migrate"


def label(url: str, value: str | None) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("delete from pgcron.facts where name = 'environment'")
        if value is not None:
            conn.execute("insert into pgcron.facts values ('environment', %s)", [value])


def count(url: str) -> int:
    with psycopg.connect(url) as conn:
        rows = conn.execute("select count(*) from pgcron.jobs").fetchall()
    return int(rows[0][0])


@pytest.fixture
def made() -> Iterator[list[PgCron]]:
    apps: list[PgCron] = []
    yield apps
    for app in apps:
        app.close()


def shop(made: list[PgCron], url: str, environment: str | None = None, **settings: Any) -> PgCron:
    app = PgCron("shop", url=url, environment=environment, **settings)
    made.append(app)

    @app.task(name="add")
    def add(x: int = 0) -> int:
        return x

    return app


DEEDS = {
    "delay": lambda app: app.tasks["add"].delay(1),
    "map": lambda app: app.tasks["add"].map([(1,), (2,)]),
    "map of many": lambda app: app.tasks["add"].map([(n,) for n in range(500)]),
    "a handle": lambda app: app.handle(1).state(),
    "schedules.add": lambda app: app.schedules.add("s", "* * * * *", "add"),
    "schedules.list": lambda app: app.schedules.list(),
}


@pytest.mark.row(84)
@pytest.mark.parametrize("deed", DEEDS)
def test_a_producer_of_another_environment_is_refused_before_it_writes(
    pg_url: str, made: list[PgCron], deed: str
) -> None:
    label(pg_url, "production")

    with pytest.raises(ConfigError, match=REFUSAL):
        DEEDS[deed](shop(made, pg_url))

    assert count(pg_url) == 0
    with psycopg.connect(pg_url) as conn:
        assert conn.execute("select from pgcron.schedules").fetchall() == []


@pytest.mark.parametrize(("there", "mine"), [("production", "production"), (None, None), (None, "staging")])
def test_a_producer_of_the_same_environment_or_of_none_is_accepted(
    pg_url: str, made: list[PgCron], there: str | None, mine: str | None
) -> None:
    label(pg_url, there)

    shop(made, pg_url, mine).tasks["add"].delay(1)

    assert count(pg_url) == 1


@pytest.mark.parametrize("deed", ["delay", "schedules.list"])
def test_a_database_without_a_schema_names_the_command(empty_pg_url: str, made: list[PgCron], deed: str) -> None:
    with pytest.raises(SchemaMismatch, match="Run: pgcron migrate"):
        DEEDS[deed](shop(made, empty_pg_url))


def test_a_new_connection_is_checked_again(pg_url: str, made: list[PgCron]) -> None:
    app = shop(made, pg_url)
    app.tasks["add"].delay(1)
    label(pg_url, "production")
    app.tasks["add"].delay(1)
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgcron'"
        )

    with contextlib.suppress(ConfigError):
        app.tasks["add"].delay(1)
    with pytest.raises(ConfigError, match=REFUSAL):
        app.tasks["add"].delay(1)

    assert count(pg_url) == 2


def test_enqueueing_reads_the_label_once_for_each_connection(pg_url: str, made: list[PgCron]) -> None:
    app = shop(made, pg_url)
    app.tasks["add"].delay(1)
    with psycopg.connect(pg_url) as conn:
        # From now on, reading the label would wait for a lock.
        conn.execute("lock table pgcron.facts in access exclusive mode")
        for _ in range(20):
            app.tasks["add"].delay(1)

    assert count(pg_url) == 21


def test_a_callers_connection_is_checked_before_the_first_job(pg_url: str, made: list[PgCron]) -> None:
    label(pg_url, "production")
    add = shop(made, pg_url).tasks["add"]
    with psycopg.connect(pg_url) as conn:
        conn.execute("create table orders (id int)")
        with pytest.raises(ConfigError, match=REFUSAL):
            add.options(conn=conn).delay(1)
        # The caller's transaction is not affected.
        conn.execute("insert into orders values (1)")

    assert count(pg_url) == 0


def test_a_callers_connection_is_checked_once_for_each_database(pg_url: str, made: list[PgCron]) -> None:
    add = shop(made, pg_url).tasks["add"]
    with psycopg.connect(pg_url) as conn:
        add.options(conn=conn).delay(1)
    label(pg_url, "production")

    with psycopg.connect(pg_url) as conn:
        add.options(conn=conn).delay(1)

    assert count(pg_url) == 2


def test_a_session_of_sqlalchemy_is_checked_too(pg_url: str, made: list[PgCron]) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    label(pg_url, "production")
    add = shop(made, pg_url).tasks["add"]
    engine = sqlalchemy.create_engine(pg_url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with orm.Session(engine) as session, pytest.raises(ConfigError, match=REFUSAL):
            add.options(conn=session).delay(1)
        with engine.connect() as conn, pytest.raises(ConfigError, match=REFUSAL):
            add.options(conn=conn).delay(1)
    finally:
        engine.dispose()

    assert count(pg_url) == 0


@pytest.mark.parametrize("caller", ["psycopg2_connection", "psycopg2_cursor", "django_connection"])
def test_a_connection_of_another_driver_is_checked_too(pg_url: str, made: list[PgCron], caller: str) -> None:
    callers = pytest.importorskip("test_caller_transaction")
    label(pg_url, "production")
    add = shop(made, pg_url).tasks["add"]

    with getattr(callers, caller)(pg_url) as conn, pytest.raises(ConfigError, match=REFUSAL):
        add.options(conn=conn).delay(1)

    assert count(pg_url) == 0


def test_a_role_that_cannot_read_the_label_can_enqueue(pg_url: str, made: list[PgCron]) -> None:
    app = shop(made, pg_url)
    with psycopg.connect(pg_url) as conn:
        conn.execute("drop role if exists label_blind")
        conn.execute("create role label_blind")
        conn.execute("select pgcron.allow('label_blind', 'producer')")
        conn.execute("revoke select on pgcron.facts from label_blind")
        conn.execute("set role label_blind")

        app.tasks["add"].options(conn=conn).delay(1)

        conn.execute("reset role")
        conn.execute("drop owned by label_blind")
        conn.execute("drop role label_blind")

    assert count(pg_url) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["jobs", "list"], ["jobs", "cancel", "1"], ["queues", "list"], ["queues", "pause", "mail"],
        ["schedules", "list"], ["schedules", "pause", "s"], ["workers", "list"], ["health"],
    ],
    ids=" ".join,
)
def test_a_command_of_another_environment_neither_shows_nor_writes(
    pg_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, command: list[str]
) -> None:
    label(pg_url, "production")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGCRON_DATABASE_URL", pg_url)

    result = CliRunner().invoke(pgcron, command)

    assert result.exit_code == MISFIT, result.output
    assert "belongs to the environment 'production'" in result.output
    with psycopg.connect(pg_url) as conn:
        assert conn.execute("select from pgcron.queues").fetchall() == []


def test_migrate_can_set_the_label_of_a_copy(
    pg_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, made: list[PgCron]
) -> None:
    label(pg_url, "production")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGCRON_DATABASE_URL", pg_url)

    result = CliRunner().invoke(pgcron, ["migrate", "--environment", "staging"])

    assert result.exit_code == 0, result.output
    shop(made, pg_url, "staging").tasks["add"].delay(1)
    assert count(pg_url) == 1
