"""The schema: migrations, what refuses to work without it, and what its tables refuse."""

import logging
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from support import eventually, python, running

from pgcron_lite.errors import ConfigError, DatabaseRefused, SchemaMismatch
from pgcron_lite.job import NewJob, WorkerCard
from pgcron_lite.pg import migrate
from pgcron_lite.pg.connection import in_schema
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import DatabaseUrl, parse_url

MIGRATE = """
import sys
from pgcron_lite.pg.url import parse_url
from pgcron_lite.pg.migrate import migrate
where = parse_url(sys.argv[1], application="pgcron migrator")
sys.stdin.readline()
print([m.number for m in migrate(where)])
"""


@pytest.fixture
def where(empty_pg_url: str) -> DatabaseUrl:
    return parse_url(empty_pg_url, application="pgcron migrate")


@pytest.fixture
def conn(empty_pg_url: str) -> Iterator["psycopg.Connection[Any]"]:
    with psycopg.connect(empty_pg_url, autocommit=True) as conn:
        yield conn


def numbers() -> list[int]:
    return [m.number for m in migrate.migrations()]


def description(conn: "psycopg.Connection[Any]", schema: str = "pgcron") -> list[tuple[Any, ...]]:
    """Return everything that a schema consists of, as texts, with its name replaced by `pgcron`."""
    rows = conn.execute(
        """
        select 'column', c.table_name, c.column_name, c.data_type, c.is_nullable, c.column_default
        from information_schema.columns as c where c.table_schema = %(schema)s
        union all
        select 'constraint', r.relname, '', pg_get_constraintdef(k.oid), '', ''
        from pg_constraint as k join pg_class as r on r.oid = k.conrelid
        where r.relnamespace = %(schema)s::regnamespace and k.contype <> 'n'
        union all
        select 'index', tablename, indexname, indexdef, '', '' from pg_indexes where schemaname = %(schema)s
        union all
        select 'function', p.proname, pg_get_function_identity_arguments(p.oid), p.prosrc, p.proconfig::text,
               p.proacl::text
        from pg_proc as p where p.pronamespace = %(schema)s::regnamespace
        union all
        select 'view', viewname, '', definition, '', '' from pg_views where schemaname = %(schema)s
        union all
        select 'relation', relname, relkind::text, array_to_string(reloptions, ','), relacl::text, ''
        from pg_class where relnamespace = %(schema)s::regnamespace
        """,
        {"schema": schema},
    ).fetchall()
    return sorted(tuple(str(part).replace(schema, "pgcron") for part in row) for row in rows)


# Applying


def test_a_fresh_database_gets_every_migration_in_order(where: DatabaseUrl) -> None:
    applied = migrate.migrate(where)

    assert [m.number for m in applied] == numbers() == sorted(set(numbers()))
    state = migrate.state(where)
    assert (state.have, state.want, state.refusal("pgcron")) == (numbers()[-1], numbers()[-1], None)
    PostgresStore(where).close()


def test_migrating_again_does_nothing(where: DatabaseUrl, conn: Any) -> None:
    migrate.migrate(where)
    before = description(conn)

    assert migrate.migrate(where) == []

    assert description(conn) == before


def test_migrating_may_stop_at_a_number_and_continue_from_it(where: DatabaseUrl, conn: Any) -> None:
    assert [m.number for m in migrate.migrate(where, to=1)] == [1]
    assert migrate.migrate(where, to=1) == []
    assert [m.number for m in migrate.migrate(where)] == numbers()[1:]

    with pytest.raises(SchemaMismatch, match="only go forward"):
        migrate.migrate(where, to=1)


@pytest.mark.parametrize("number", [0, -1, 4711])
def test_a_number_that_is_no_migration_is_refused(where: DatabaseUrl, number: int) -> None:
    with pytest.raises(ConfigError, match=f"no migration {number}"):
        migrate.migrate(where, to=number)


@pytest.mark.row(81)
def test_of_two_migrators_at_once_each_step_is_done_by_one(where: DatabaseUrl, empty_pg_url: str) -> None:
    with running(MIGRATE, empty_pg_url) as one, running(MIGRATE, empty_pg_url) as other:
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60)[0].strip() for process in (one, other)]

    assert (one.returncode, other.returncode) == (0, 0)
    done = sorted(int(n) for answer in answers for n in answer.strip("[]").split(",") if n.strip())
    assert done == numbers()
    assert migrate.state(where).refusal("pgcron") is None


def test_a_migration_retries_its_wait_for_locks(
    where: DatabaseUrl, conn: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While another migrates, this one repeatedly leaves the queue for the lock, and succeeds in the end."""
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    migrate.migrate(where, to=1)
    with ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            conn.execute("lock table pgcron.migrations in share update exclusive mode")
            applied = pool.submit(migrate.migrate, where)
            eventually(lambda: caplog.text.count("waits for a lock that others hold") >= 2)
            assert not applied.done()

        assert [m.number for m in applied.result(timeout=30)] == numbers()[1:]


def test_a_migration_waits_for_another_that_creates_the_schema(
    where: DatabaseUrl, conn: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    first = migrate.migrations()[0]
    with ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            conn.execute("create schema pgcron")
            conn.execute(first.text.encode())
            applied = pool.submit(migrate.migrate, where)
            eventually(lambda: caplog.text.count("waits for a lock that others hold") >= 2)
            conn.execute("insert into pgcron.migrations (number, name, oldest_code) values (1, 'jobs', 1)")

        assert [m.number for m in applied.result(timeout=30)] == numbers()[1:]


@pytest.mark.row("S19")
def test_a_role_that_only_reads_cannot_block_a_migration(
    where: DatabaseUrl, conn: Any, empty_pg_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 3.0)
    role = sql.Identifier(f"{conn.info.dbname} reader")
    migrate.migrate(where)
    conn.execute(sql.SQL("create role {} login password 'secret'").format(role))
    conn.execute("select pgcron.allow(%s, 'reader')", [role.as_string().strip('"')])
    # So far behind that the sequence is set, and not advanced id by id.
    conn.execute("insert into pgcron.jobs (id, task) values (3000000, 'add')")
    more = migrate.Migration(numbers()[-1] + 1, "more", "create table pgcron.more ();")
    every = [*migrate.migrations(), more]
    monkeypatch.setattr(migrate, "migrations", lambda: every)

    with psycopg.connect(where.conninfo, user=f"{conn.info.dbname} reader", password="secret") as reader:
        for turn in ("pgcron migrate pgcron", "pgcron sequence", "pgcron planner"):
            reader.execute("select pg_advisory_lock(hashtextextended(%s, 7090))", [turn])
        reader.execute("lock table pgcron.migrations in access share mode")
        applied = migrate.migrate(
            parse_url(f"{empty_pg_url}?options=-c%20lock_timeout%3D5s", application="pgcron test")
        )

    assert conn.execute("select nextval('pgcron.jobs_id_seq')").fetchone() == (3_000_001,)
    conn.execute(sql.SQL("drop owned by {role}; drop role {role}").format(role=role))
    assert [m.name for m in applied] == ["more"]


def test_a_migration_that_waits_for_a_table_does_not_block_others(
    where: DatabaseUrl, conn: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    migrate.migrate(where, to=1)
    more = migrate.Migration(2, "more", "alter table pgcron.jobs add column more text;")
    monkeypatch.setattr(migrate, "migrations", lambda: [migrate.Migration(1, "jobs", ""), more])
    with ThreadPoolExecutor(1) as pool, conn.transaction():
        conn.execute("select from pgcron.jobs")
        applied = pool.submit(migrate.migrate, where)
        eventually(lambda: caplog.text.count("waits for a lock that others hold") >= 2)
        # Between two tries nothing waits for the lock, so that others can read.
        eventually(lambda: _may_read(where))
        conn.execute("select from pgcron.jobs")
    assert [m.name for m in applied.result(timeout=30)] == ["more"]


def _may_read(where: DatabaseUrl) -> bool:
    with psycopg.connect(where.conninfo, autocommit=True, options="-c lock_timeout=50ms") as other:
        try:
            other.execute("select from pgcron.jobs")
        except errors.LockNotAvailable:
            return False
    return True


def test_a_migration_that_fails_is_rolled_back(where: DatabaseUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate.migrate(where, to=1)
    known = migrate.migrations()
    broken = migrate.Migration(2, "broken", "create table pgcron.half (); select 1 / 0;")
    monkeypatch.setattr(migrate, "migrations", lambda: [known[0], broken])

    with pytest.raises(DatabaseRefused, match="0002 broken was refused, nothing of it has been done: division by zero"):
        migrate.migrate(where)

    assert migrate.state(where).have == 1
    with psycopg.connect(where.conninfo) as conn:
        assert conn.execute("select to_regclass('pgcron.half')").fetchone() == (None,)


def test_a_role_that_may_not_migrate_is_refused(where: DatabaseUrl, conn: Any) -> None:
    conn.execute("drop role if exists test_nobody; create role test_nobody login password 'secret'")
    try:
        login = psycopg.conninfo.make_conninfo(where.conninfo, user="test_nobody", password="secret")
        nobody = parse_url(login, application="nobody")
        with pytest.raises(DatabaseRefused, match="permission denied for database"):
            migrate.migrate(nobody)
        migrate.migrate(where)
        with pytest.raises(DatabaseRefused, match="permission denied for schema pgcron"):
            migrate.migrate(nobody)
    finally:
        conn.execute("drop role test_nobody")


# Names of schemas


def test_two_apps_in_one_database_have_separate_jobs_and_doorbells(where: DatabaseUrl) -> None:
    stores = {}
    for schema in ("shop", "blog"):
        migrate.migrate(where, schema)
        stores[schema] = PostgresStore(where, schema)
    shop, blog = stores["shop"], stores["blog"]
    bells = {name: store.open_bell(lambda: None) for name, store in stores.items()}
    for bell in bells.values():
        eventually(lambda bell=bell: bell.step() and bell.is_live)

    [job_id] = shop._enqueue([NewJob("pgcron", '"pgcron"'.join(["[", "]"]), queue="pgcron")])

    eventually(lambda: bells["shop"].step()[0])
    assert bells["blog"].step()[0] is False
    assert [(j.id, j.task, j.queue, j.args) for j in shop.find()] == [(job_id, "pgcron", "pgcron", '["pgcron"]')]
    assert blog.find() == []
    assert len(shop.claim(_worker().id, _worker().id, ["*"], ["pgcron"], 5)) == 1
    for thing in (*stores.values(), *bells.values()):
        thing.close()


def test_the_schema_is_the_same_under_any_name(where: DatabaseUrl, conn: Any) -> None:
    migrate.migrate(where)
    migrate.migrate(where, "shop")

    assert description(conn, "shop") == description(conn)


@pytest.mark.parametrize("schema", ["jobs", "history", "text", "set", "job", "a", "_x", "x" * 40, "queue"])
def test_a_schema_may_have_the_name_of_a_table_or_keyword(where: DatabaseUrl, schema: str) -> None:
    migrate.migrate(where, schema)
    store = PostgresStore(where, schema)
    store.check_schema()

    [job_id] = store.enqueue([NewJob("add")])
    store.pause(schema)
    store.pause(schema)
    worker = _worker()
    store.register(worker)
    [job] = store.claim(worker.id, worker.id, ["*"], ["add"], 1)
    [rescued] = store.reap([(worker.id, 0)])

    assert job.id == rescued.id == job_id
    assert store.cancel(job_id)
    assert store.retry(job_id)
    assert store.clear("default") == 1
    store.close()


def _worker() -> WorkerCard:
    import uuid

    return WorkerCard(uuid.UUID(int=1), "box", 7, ("*",), 1, "threads", "1")


@pytest.mark.parametrize("schema", ["user", "select", "table", "order", "default"])
def test_a_reserved_word_is_refused(where: DatabaseUrl, schema: str) -> None:
    with pytest.raises(ConfigError, match="reserved word"):
        migrate.migrate(where, schema)


@pytest.mark.parametrize(
    "schema",
    ["Shop", "my shop", "a-b", "", "1a", "x" * 41, "x;drop table users", 'a"b', "a'b", "a.b", "a\0b", "a\n", "ä", "%s"],
)
@pytest.mark.row("S8")
@pytest.mark.row("S9")
@pytest.mark.row("S26")
def test_a_malicious_schema_name_is_refused_everywhere(where: DatabaseUrl, schema: str) -> None:
    for enter in (
        lambda: migrate.migrate(where, schema),
        lambda: migrate.state(where, schema),
        lambda: migrate.script(schema),
        lambda: in_schema("select from pgcron.jobs", schema),
        lambda: PostgresStore(where, schema).find(),
    ):
        with pytest.raises(ConfigError, match="plain lower-case name"):
            enter()


# A schema with another number


@pytest.mark.row(79)
def test_a_missing_schema_is_reported_with_the_command_to_run(where: DatabaseUrl) -> None:
    store = PostgresStore(where)

    with pytest.raises(SchemaMismatch, match=r"'pgcron' is not there yet\. Run: pgcron migrate$"):
        store.check_schema()
    with pytest.raises(SchemaMismatch, match=r"pgcron\..*does not exist"):
        store.find()
    store.close()


@pytest.mark.row(79)
def test_an_older_schema_is_reported_with_the_command_to_run(where: DatabaseUrl) -> None:
    migrate.migrate(where, to=1)
    store = PostgresStore(where)

    with pytest.raises(SchemaMismatch, match=rf"is at 1, this version needs {numbers()[-1]}\. Run: pgcron migrate$"):
        store.check_schema()
    store.close()


@pytest.mark.row(79)
@pytest.mark.row(126)
def test_a_newer_schema_is_refused_only_if_it_requires_newer_code(where: DatabaseUrl, conn: Any) -> None:
    migrate.migrate(where)
    store = PostgresStore(where)
    newest = numbers()[-1]

    insert = "insert into pgcron.migrations (number, name, oldest_code) values (%s, 'next', %s)"
    conn.execute(insert, [newest + 1, newest])
    store.check_schema()
    assert migrate.migrate(where) == []
    conn.execute("update pgcron.migrations set oldest_code = %s where number = %s", [newest + 1, newest + 1])

    for refuses in (store.check_schema, lambda: migrate.migrate(where)):
        with pytest.raises(SchemaMismatch, match=rf"is at {newest + 1} .* Run: pip install --upgrade pgcron_lite$"):
            refuses()
    store.close()


def test_the_oldest_code_is_read_from_the_file_and_is_its_own_number_otherwise() -> None:
    assert migrate.Migration(7, "x", "-- about\n-- oldest code: 5\nselect 1").oldest_code == 5
    assert migrate.Migration(7, "x", "select 1").oldest_code == 7


# The script


def test_the_script_creates_the_same_schema(where: DatabaseUrl, conn: Any) -> None:
    migrate.migrate(where)

    conn.execute(migrate.script("by_hand"))

    assert description(conn, "by_hand") == description(conn)
    assert migrate.state(where, "by_hand").refusal("by_hand") is None
    assert migrate.migrate(where, "by_hand") == []


def test_the_script_continues_from_the_number_of_a_database(where: DatabaseUrl, conn: Any) -> None:
    migrate.migrate(where, "reference")
    migrate.migrate(where, to=1)

    conn.execute(migrate.script(since=1))

    assert description(conn) == description(conn, "reference")


def test_reading_the_script_needs_no_database() -> None:
    printed = python("from pgcron_lite.pg.migrate import script; print(script())")

    assert "create table pgcron.jobs" in printed
    assert printed.count("begin;") == printed.count("commit;") == len(numbers())


def test_the_script_runs_through_psql(empty_pg_url: str, where: DatabaseUrl, pg_server: Any) -> None:
    psql = pg_server.bin_directory / "psql"
    if not psql.exists():
        pytest.skip("there is no psql beside this server")

    subprocess.run([psql, "-q", "-v", "ON_ERROR_STOP=1", empty_pg_url], input=migrate.script(), text=True, check=True)

    assert migrate.state(where).refusal("pgcron") is None


# The catalogue


def test_every_function_pins_its_search_path_and_none_runs_as_its_owner(where: DatabaseUrl, conn: Any) -> None:
    migrate.migrate(where)

    functions = conn.execute(
        "select proname, proconfig, prosecdef from pg_proc where pronamespace = 'pgcron'::regnamespace"
    ).fetchall()

    assert functions
    for name, config, is_definer in functions:
        # These two are inlined, and qualify the names they call.
        assert config == (None if name in ("clock", "refusal") else ["search_path=pg_catalog, pg_temp"]), name
        assert is_definer is False, name


def test_nothing_is_granted_to_the_public(where: DatabaseUrl, conn: Any) -> None:
    conn.execute("alter default privileges grant all on tables to public")
    conn.execute("alter default privileges grant all on sequences to public")
    conn.execute("alter default privileges grant all on functions to public")
    migrate.migrate(where)

    granted = conn.execute(
        """
        select p.proname from pg_proc as p
        cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
        where p.pronamespace = 'pgcron'::regnamespace and a.grantee = 0
        union all
        select c.relname from pg_class as c
        cross join lateral aclexplode(
            coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
        ) as a
        where c.relnamespace = 'pgcron'::regnamespace and c.relkind in ('r', 'v', 'S') and a.grantee = 0
        union all
        select n.nspname from pg_namespace as n
        cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as a
        where n.nspname = 'pgcron' and a.grantee = 0
        """
    ).fetchall()

    assert granted == []


ROW = {
    "task": "add", "queue": "default", "state": "queued", "args": "{}", "headers": "{}", "attempt": 0,
    "max_attempts": 5, "crashes": 0, "max_crashes": 3, "claim": None, "worker": None, "claimed_at": None,
    "execute_after": "2026-01-01", "errors": "[]",
}
RUNNING = {
    "state": "running", "attempt": 1, "claim": "00000000-0000-0000-0000-000000000001",
    "worker": "00000000-0000-0000-0000-000000000002", "claimed_at": "2026-01-01",
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": ""}, {"task": "x" * 201}, {"queue": ""}, {"queue": "x" * 101},
        {"state": "done"}, {"state": "ready"},
        {"args": "7"}, {"args": "null"}, {"headers": "[]"}, {"errors": "{}"},
        {"attempt": -1}, {"attempt": 5}, {"max_attempts": 0}, {"crashes": -1}, {"max_crashes": 0},
        {"execute_after": "infinity"}, {"execute_after": "-infinity"}, {"execute_after": "20000-01-01"},
        {"execute_after": "0044-03-15 BC"},
        {"claim": RUNNING["claim"]}, {"worker": RUNNING["worker"]}, {"claimed_at": "2026-01-01"},
        {**RUNNING, "claim": None}, {**RUNNING, "worker": None}, {**RUNNING, "claimed_at": None},
        {**RUNNING, "attempt": 0}, {**RUNNING, "attempt": 6},
    ],
    ids=str,
)
@pytest.mark.row(120)
def test_an_invalid_row_is_refused(pg_url: str, wrong: dict[str, Any]) -> None:
    insert = sql.SQL("insert into pgcron.jobs ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, ROW)), sql.SQL(", ").join(map(sql.Placeholder, ROW))
    )
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(insert, ROW)
        conn.execute(insert, {**ROW, **RUNNING})
        with pytest.raises(errors.CheckViolation):
            conn.execute(insert, {**ROW, **wrong})


@pytest.mark.row(75)
def test_ids_exceed_four_bytes_and_the_precision_of_a_float(pg_url: str) -> None:
    store = PostgresStore(parse_url(pg_url, application="pgcron ids"))
    with psycopg.connect(pg_url, autocommit=True) as conn:
        for last in (2**31 - 2, 2**53 - 2):
            conn.execute("select setval('pgcron.jobs_id_seq', %s)", [last])
            ids = store.enqueue([NewJob("add")] * 5) + store.enqueue([NewJob("add")])
            claim = _worker().id
            jobs = store.claim(claim, claim, ["*"], ["add"], 10)
            assert sorted(j.id for j in jobs) == ids
            assert ids[-1] > last
            store.reap([(claim, None)])
            assert all(store.cancel(i) for i in ids)
    store.close()


@pytest.mark.row(126)
def test_an_older_producer_and_a_newer_one_share_a_schema(pg_url: str) -> None:
    """A call of an older producer, which passes only the first parameters, keeps working."""
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("select pgcron.enqueue('add')")
        conn.execute("select pgcron.enqueue(task => 'add', args => '[1]', queue => 'q', priority => 2)")
        conn.execute("select pgcron.enqueue_many('[{\"task\": \"add\"}]')")
        rows = conn.execute("select queue, priority, args::text from pgcron.jobs order by id").fetchall()
        assert rows == [("default", 0, "{}"), ("q", 2, "[1]"), ("default", 0, "{}")]
        with pytest.raises(errors.CheckViolation):
            conn.execute("select pgcron.enqueue('')")
