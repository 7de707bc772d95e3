"""A schema that another role has created: it is refused by every command before anything in it runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import Run, runner
from psycopg import conninfo, errors, sql

from pgcron_lite.config import Settings
from pgcron_lite.errors import ConfigError
from pgcron_lite.job import NewJob
from pgcron_lite.pg import connection, migrate
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import DatabaseUrl, parse_url

# The view records the role that reads it.
TRAP = """
    create schema pgcron;
    grant usage on schema pgcron to public;
    create function pgcron.caught() returns int language plpgsql as
        'begin insert into public.caught values (current_user); return 99; end';
    create view pgcron.migrations as
        select pgcron.caught() as number, 'x'::text as name, 1 as oldest_code, now() as applied_at;
    grant select on pgcron.migrations to public;
"""


class Stage:
    """A database, the role of the operator, and another that may create schemas."""

    def __init__(self, url: str, boss: "psycopg.Connection[Any]") -> None:
        self.boss, self.url = boss, url
        self.roles = [f"{boss.info.dbname} {name}" for name in ("mallory", "deploy")]
        for role in self.roles:
            name = sql.Identifier(role)
            boss.execute(sql.SQL("create role {} login password 'secret'").format(name))
            boss.execute(
                sql.SQL("grant create on database {} to {}").format(sql.Identifier(boss.info.dbname), name)
            )
        boss.execute("create table public.caught (who text); grant insert on public.caught to public")
        self.mallory, self.deploy = (conninfo.make_conninfo(url, user=role, password="secret") for role in self.roles)

    def as_mallory(self, statements: str) -> None:
        with psycopg.connect(self.mallory, autocommit=True) as conn:
            conn.execute(statements.encode())

    @property
    def caught(self) -> list[tuple[str]]:
        return self.boss.execute("select who from public.caught").fetchall()

    def close(self) -> None:
        for role in self.roles:
            self.boss.execute(sql.SQL("drop owned by {role} cascade; drop role {role}").format(
                role=sql.Identifier(role)))  # fmt: skip


@pytest.fixture
def stage(empty_pg_url: str) -> Iterator[Stage]:
    with psycopg.connect(empty_pg_url, autocommit=True) as boss:
        stage = Stage(empty_pg_url, boss)
        yield stage
        stage.close()
    connection._checked.clear()


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    return runner(tmp_path, request)


def by(url: str) -> DatabaseUrl:
    return parse_url(url, application="pgcron test")


def checks_schema(where: DatabaseUrl) -> None:
    store = PostgresStore(where)
    try:
        store.check_schema()
    finally:
        store.close()


def enqueues(where: DatabaseUrl) -> None:
    store = PostgresStore(where)
    try:
        store.enqueue([NewJob("ok")])
    finally:
        store.close()


DOORS: dict[str, Callable[[DatabaseUrl], Any]] = {
    "migrate": migrate.migrate, "state": migrate.state, "check_schema": checks_schema, "enqueue": enqueues,
}


@pytest.mark.parametrize("who", ["superuser", "deploy"])
@pytest.mark.parametrize("door", DOORS)
def test_a_view_in_place_of_a_table_is_not_read(stage: Stage, door: str, who: str) -> None:
    stage.as_mallory(TRAP)

    with pytest.raises(ConfigError, match=r"the schema 'pgcron' is owned by '.* mallory', whom"):
        DOORS[door](by(stage.url if who == "superuser" else stage.deploy))

    assert stage.caught == []


def test_the_view_is_read_where_the_owner_is_not_checked(stage: Stage) -> None:
    """Check the view itself: otherwise the tests above would test nothing."""
    stage.as_mallory(TRAP)

    stage.boss.execute("select * from pgcron.migrations")

    assert len(stage.caught) == 1


@pytest.mark.parametrize("words", [("migrate",), ("migrate", "--check"), ("health",), ("jobs", "list")])
def test_commands_name_the_owner_of_the_schema(stage: Stage, run: Run, words: tuple[str, ...]) -> None:
    stage.as_mallory(TRAP)

    answer = run(*words, url=stage.url)

    assert answer.returncode == 78
    assert "is owned by" in answer.stderr
    assert stage.caught == []


def test_the_role_of_the_worker_is_referred_to_the_owner_for_migrating(stage: Stage, run: Run) -> None:
    """It must not be told to drop the schema, which holds its jobs."""
    assert run("migrate", url=stage.deploy).returncode == 0
    worker = stage.roles[0]
    with psycopg.connect(stage.deploy, autocommit=True) as conn:
        conn.execute("select pgcron.allow(%s, 'worker')", [worker])

    answer = run("migrate", url=stage.mallory)

    assert answer.returncode == 78
    assert "made by `pgcron migrate` with another role, use the URL of that role" in answer.stderr
    assert "drop" not in answer.stderr


@pytest.mark.parametrize("since", [0, 2])
def test_the_script_checks_by_itself_in_each_of_its_transactions(stage: Stage, since: int) -> None:
    stage.as_mallory(TRAP)
    refusals = 0

    # As a client that continues after an error.
    with psycopg.connect(stage.url, autocommit=True) as conn:
        transactions = migrate.script("pgcron", since).split("\ncommit;")[:-1]
        for transaction in transactions:
            with pytest.raises(errors.InsufficientPrivilege, match="is owned by"):
                conn.execute(f"{transaction}\ncommit;".encode())
            refusals += 1
            conn.rollback()

    assert refusals == len([m for m in migrate.migrations() if m.number > since])
    assert stage.caught == []


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("create view pgcron.migrations as select 0 as number, 0 as oldest_code", "'migrations' of another kind"),
        ("create table pgcron.migrations (number int, oldest_code int); alter table pgcron.migrations"
         " enable row level security", "'migrations' of another kind"),
        ("create materialized view pgcron.jobs as select 1 as id", "'jobs' of another kind"),
    ],
)  # fmt: skip
def test_a_trusted_schema_with_objects_of_another_kind_is_refused(stage: Stage, parts: str, words: str) -> None:
    stage.boss.execute(f"create schema pgcron; {parts}".encode())

    for door in DOORS.values():
        with pytest.raises(ConfigError, match=words):
            door(by(stage.url))


def test_a_function_of_another_role_in_a_trusted_schema_is_not_called(stage: Stage) -> None:
    migrate.migrate(by(stage.url))
    stage.boss.execute(
        sql.SQL("grant create, usage on schema pgcron to {}").format(sql.Identifier(stage.roles[0]))
    )
    stage.as_mallory(
        "create function pgcron.enqueue_many(jobs text, ring boolean) returns int language sql as 'select 1'"
    )

    for door in DOORS.values():
        with pytest.raises(ConfigError, match=r"has 'enqueue_many', which is owned by '.* mallory'"):
            door(by(stage.url))


def test_a_schema_with_objects_of_others_is_not_taken_over(stage: Stage) -> None:
    stage.boss.execute("create schema pgcron; create table pgcron.orders (id int)")
    stage.boss.execute("grant select on pgcron.orders to public")

    with pytest.raises(ConfigError, match="has 'orders', which no migration made"):
        migrate.migrate(by(stage.url))

    rights = stage.boss.execute("select relacl::text from pg_class where relname = 'orders'").fetchone()
    assert "=r/" in rights[0].replace("postgres=", "")


@pytest.mark.parametrize("schema", ["public", "information_schema"])
def test_a_shared_schema_is_refused_by_its_name(stage: Stage, run: Run, schema: str) -> None:
    with pytest.raises(ConfigError, match="belongs to others as well"):
        Settings().with_values({"schema": schema}, "PgCron")
    with pytest.raises(ConfigError, match="belongs to others as well"):
        migrate.migrate(by(stage.url), schema)
    with pytest.raises(ConfigError, match="belongs to others as well"):
        migrate.script(schema)

    assert run("migrate", "--sql", PGCRON_SCHEMA=schema).returncode == 78


@pytest.mark.parametrize("owner", ["deploy", "superuser", "database owner"])
def test_an_empty_schema_created_for_us_is_accepted(stage: Stage, owner: str) -> None:
    deploy = sql.Identifier(stage.roles[1])
    stage.boss.execute("create schema pgcron")
    stage.boss.execute(sql.SQL("grant usage, create on schema pgcron to {}").format(deploy))
    if owner == "deploy":
        stage.boss.execute(sql.SQL("alter schema pgcron owner to {}").format(deploy))

    assert migrate.migrate(by(stage.deploy))
    checks_schema(by(stage.deploy))


def test_a_role_that_cannot_create_schemas_uses_that_of_another_owner(stage: Stage) -> None:
    migrate.migrate(by(stage.deploy))
    mallory = sql.Identifier(stage.roles[0])
    stage.boss.execute(
        sql.SQL("revoke create on database {} from {}").format(sql.Identifier(stage.boss.info.dbname), mallory)
    )
    with psycopg.connect(stage.deploy, autocommit=True) as conn:
        conn.execute("select pgcron.allow(%s, 'producer')", [stage.roles[0]])

    enqueues(by(stage.mallory))


def test_a_member_of_the_owner_uses_its_schema(stage: Stage) -> None:
    migrate.migrate(by(stage.deploy))
    mallory, deploy = map(sql.Identifier, stage.roles)
    stage.boss.execute(sql.SQL("grant {} to {}").format(deploy, mallory))

    checks_schema(by(stage.mallory))
