"""Rights: the four parts of pgcron.allow, each tried on every operation, and attacks by a role with few rights."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, errors, sql

from pgcron_lite.errors import DatabaseRefused
from pgcron_lite.job import NewJob, Outcome, WorkerCard
from pgcron_lite.pg.caller_transaction import complete_on, enqueue_on
from pgcron_lite.pg.enqueue import COPIES_FROM
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.schedules import ticks
from pgcron_lite.schedules.schedule import Schedule
from pgcron_lite.schedules.timing import Every

ME, CLAIM = uuid.UUID(int=1), uuid.UUID(int=2)
PARTS = ["producer", "reader", "worker", "admin"]
CARD = WorkerCard(ME, "box", 7, ("*",), 1, "threads", "1")


class Cast:
    """The owner's store, one for each part, and one for a role without rights."""

    def __init__(self, url: str, owner: "psycopg.Connection[Any]") -> None:
        self.owner = owner
        self.boss = PostgresStore(parse_url(url, application="pgcron owner"))
        self.urls: dict[str, str] = {}
        self.stores: dict[str, PostgresStore] = {}
        for part in [*PARTS, "stranger"]:
            role = self.role(part)
            owner.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(role)))
            if part != "stranger":
                owner.execute("select pgcron.allow(%s, %s)", [role, part])
            self.urls[part] = conninfo.make_conninfo(url, user=role, password="secret")
            self.stores[part] = PostgresStore(parse_url(self.urls[part], application=f"pgcron {part}"))

    def role(self, part: str) -> str:
        # Roles belong to the server, so their names contain that of this test's database.
        return f"{self.owner.info.dbname} {part}"

    def connect(self, part: str) -> "psycopg.Connection[Any]":
        return psycopg.connect(self.urls[part], autocommit=True)

    def close(self) -> None:
        self.boss.close()
        for store in self.stores.values():
            store.close()
        for part in [*PARTS, "stranger"]:
            role = sql.Identifier(self.role(part))
            self.owner.execute(sql.SQL("drop owned by {}; drop role {}").format(role, role))


@pytest.fixture
def cast(pg_url: str) -> Iterator[Cast]:
    with psycopg.connect(pg_url, autocommit=True) as owner:
        cast = Cast(pg_url, owner)
        yield cast
        cast.close()


def take(store: Any) -> Any:
    store.enqueue([NewJob("add")])
    [job] = store.claim(ME, CLAIM, ["*"], ["add"], 1)
    return job


def conflicting_schedule(store: Any) -> str:
    """Add a schedule at run time, and register a live worker whose code declares one with the same name."""
    name, definition = f"s {uuid.uuid4()}", Schedule("s", "add", Every("1h")).dumps()
    store.put_schedule(name, "shop", definition, replace=False)
    store.declare("shop", name, {name: definition})
    store.register(WorkerCard(uuid.uuid4(), "box", 7, ("*",), 1, "threads", "1", name))
    return name


def removed(store: Any, name: str) -> None:
    assert store.remove_schedule(name) == "removed"
    assert store.schedules(name)[0].origin == "code"


def ended(store: Any) -> int:
    job = take(store)
    store.settle([Outcome(job.id, CLAIM, "failed")])
    return int(job.id)


# Each operation, what it needs to have something to do, and the parts that may use it.

Verb = Callable[[Any, Any], Any]
VERBS: dict[str, tuple[Callable[[Any], Any], Verb, set[str]]] = {
    "enqueue": (lambda s: None, lambda s, _: s.enqueue([NewJob("add")] * 3), {"producer", "worker", "admin"}),
    "ring": (lambda s: None, lambda s, _: s._rows("select pgcron.ring()"), set(PARTS)),
    "check_schema": (lambda s: None, lambda s, _: s.check_schema(), set(PARTS)),
    "now": (lambda s: None, lambda s, _: s.now(), set(PARTS)),
    "facts": (lambda s: None, lambda s, _: s.facts(), set(PARTS)),
    "get": (lambda s: s.enqueue([NewJob("add")])[0], lambda s, i: s.get(i), {"reader", "worker", "admin"}),
    "find": (lambda s: None, lambda s, _: s.find(), {"reader", "worker", "admin"}),
    "queues": (lambda s: None, lambda s, _: s.queues(), {"reader", "worker", "admin"}),
    "workers": (lambda s: None, lambda s, _: s.workers(), {"reader", "worker", "admin"}),
    "look": (lambda s: None, lambda s, _: s.look(["*"], ["add"]), {"worker"}),
    "waiting_tasks": (lambda s: None, lambda s, _: s.waiting_tasks(), {"reader", "worker", "admin"}),
    "claim": (lambda s: s.enqueue([NewJob("add")]), lambda s, _: s.claim(ME, CLAIM, ["*"], ["add"], 5), {"worker"}),
    "next_due": (lambda s: None, lambda s, _: s.next_due(["*"], ["add"]), {"worker"}),
    "claim_suspect": (
        lambda s: take(s) and s.reap([(ME, None)]),
        lambda s, _: s.claim_suspect(ME, CLAIM, ["*"], ["add"]),
        {"worker", "admin"},
    ),
    "suspects_due": (lambda s: None, lambda s, _: s.suspects_due(["*"], ["add"]), {"reader", "worker", "admin"}),
    "held": (take, lambda s, _: s.held(ME, CLAIM), {"reader", "worker", "admin"}),
    "finish": (take, lambda s, j: s.settle([Outcome(j.id, CLAIM, "done")]), {"worker", "admin"}),
    "put back": (take, lambda s, j: s.settle([Outcome(j.id, CLAIM, "queued")]), {"worker", "admin"}),
    "register": (lambda s: None, lambda s, _: s.register(CARD), {"worker"}),
    "beat": (lambda s: s.register(CARD), lambda s, _: s.beat(ME), {"worker"}),
    "forget": (lambda s: s.register(CARD), lambda s, _: s.forget(ME), {"worker"}),
    "reap": (take, lambda s, _: s.reap([(ME, None)]), {"worker"}),
    "prune": (ended, lambda s, _: s.prune(timedelta(0), timedelta(0)), {"worker", "admin"}),
    "cancel": (lambda s: s.enqueue([NewJob("add")])[0], lambda s, i: s.cancel(i), {"worker", "admin"}),
    "retry": (ended, lambda s, i: s.retry(i), {"worker", "admin"}),
    "delete": (ended, lambda s, i: s.delete(i), {"worker", "admin"}),
    "clear": (lambda s: s.enqueue([NewJob("add")]), lambda s, _: s.clear("default"), {"worker", "admin"}),
    "pause": (lambda s: None, lambda s, _: s.pause("q"), {"worker", "admin"}),
    "resume": (lambda s: s.pause("q"), lambda s, _: s.resume("q"), {"worker", "admin"}),
    "schedules": (conflicting_schedule, lambda s, name: s.schedules(name), {"reader", "worker", "admin"}),
    "plan": (conflicting_schedule, lambda s, name: s.plan(ticks.decide, name), {"worker", "admin"}),
    "pause_schedule": (conflicting_schedule, lambda s, name: s.pause_schedule(name), {"worker", "admin"}),
    "remove_schedule": (conflicting_schedule, removed, {"worker", "admin"}),
    "reconcile": (conflicting_schedule, lambda s, _: s.reconcile(), {"worker", "admin"}),
    "note_fact": (lambda s: None, lambda s, _: s.note_fact("environment", "mine"), set()),
}


@pytest.mark.parametrize("verb", VERBS)
def test_each_part_may_do_its_own_operations_and_no_others(cast: Cast, verb: str) -> None:
    prepare, act, parts = VERBS[verb]
    may = set()
    for part, store in cast.stores.items():
        cast.owner.execute("truncate pgcron.jobs, pgcron.history, pgcron.workers, pgcron.queues")
        subject = prepare(cast.boss)
        before = cast.owner.execute("select count(*), max(state) from pgcron.all_jobs").fetchone()

        if _is_allowed(act, store, subject):
            may.add(part)
        else:
            assert cast.owner.execute("select count(*), max(state) from pgcron.all_jobs").fetchone() == before

    assert may == parts


def _is_allowed(act: Verb, store: Any, subject: Any) -> bool:
    try:
        act(store, subject)
    except DatabaseRefused as refusal:
        if "permission denied" not in str(refusal):
            raise
        return False
    return True


@pytest.mark.parametrize(("part", "act"), [
    ("stranger", lambda s: s.check_schema()), ("stranger", lambda s: s.enqueue([NewJob("add")])),
    ("producer", lambda s: s.get(1)), ("reader", lambda s: s.register(CARD)),
])
def test_a_missing_right_is_reported_with_the_call_that_grants_it(cast: Cast, part: str, act: Any) -> None:
    with pytest.raises(DatabaseRefused, match=r"^permission denied for [a-z_ ]+\. .*select pgcron\.allow\('ROLE'"):
        act(cast.stores[part])


@pytest.mark.parametrize("part", [*PARTS, "stranger"])
@pytest.mark.parametrize(
    "statement",
    [
        "truncate pgcron.jobs",
        "alter table pgcron.jobs drop constraint jobs_state_check",
        "drop index pgcron.jobs_waiting",
        "alter domain pgcron.task_name drop constraint task_name_check",
        "drop view pgcron.all_jobs",
        "create or replace function pgcron.clock() returns timestamptz language sql as 'select now()'",
        "create table pgcron.mine ()",
        "select pgcron.allow(current_user, 'admin')",
        "insert into pgcron.migrations (number, name, oldest_code) values (99, 'x', 99)",
        "update pgcron.facts set value = 'x'",
        "select setval('pgcron.jobs_id_seq', 1)",
    ],
)
@pytest.mark.row("S16")
def test_only_the_owner_can_change_the_schema(cast: Cast, part: str, statement: str) -> None:
    with cast.connect(part) as conn, pytest.raises(errors.InsufficientPrivilege):
        conn.execute(statement)


@pytest.mark.parametrize("part", PARTS)
def test_only_the_owner_can_grant_rights(cast: Cast, part: str) -> None:
    """A role without the grant option is warned or refused, and grants nothing."""
    query = "select relname, relacl from pg_class where relnamespace = 'pgcron'::regnamespace order by 1"
    before = cast.owner.execute(query).fetchall()

    with cast.connect(part) as conn:
        for table in ("jobs", "history", "workers", "queues", "migrations"):
            with contextlib.suppress(errors.InsufficientPrivilege):
                conn.execute(sql.SQL("grant all on pgcron.{} to public").format(sql.Identifier(table)))

    assert cast.owner.execute(query).fetchall() == before


# The producer, which is trusted least


def test_a_producer_can_enqueue_in_every_way(cast: Cast) -> None:
    with cast.connect("producer") as conn:
        [first] = enqueue_on(conn, [NewJob("add")], schema="pgcron", rings=True)
        second = conn.execute("select pgcron.enqueue('add', '[1]', priority => 3)").fetchone()
        third = conn.execute("select * from pgcron.enqueue_many('[{\"task\": \"add\"}]')").fetchone()
        ids = cast.stores["producer"].enqueue([NewJob("add")] * 2)

    assert second is not None
    assert third is not None
    assert {j.id for j in cast.boss.find()} == {first, second[0], third[0], *ids}


def test_a_producer_can_enqueue_by_copy(cast: Cast) -> None:
    ids = cast.stores["producer"].enqueue([NewJob("add")] * COPIES_FROM)

    assert {j.id for j in cast.boss.find(limit=2 * COPIES_FROM)} == set(ids)


@pytest.mark.parametrize(
    "statement",
    [
        "select args from pgcron.jobs",
        "select * from pgcron.jobs",
        "select task from pgcron.jobs",
        "select args from pgcron.history",
        "select * from pgcron.all_jobs",
        "select * from pgcron.workers",
        "select * from pgcron.queues",
        "select * from pgcron.levels()",
        "select id from pgcron.jobs for update",
        "delete from pgcron.jobs",
        "update pgcron.jobs set priority = 9",
        "insert into pgcron.jobs (task) values ('add') returning args",
        "insert into pgcron.jobs (task, state, claim, worker, claimed_at, attempt)"
        " values ('add', 'running', gen_random_uuid(), gen_random_uuid(), now(), 1)",
        "insert into pgcron.jobs (task, errors) values ('add', '[]')",
        "insert into pgcron.jobs (task, created_at) values ('add', 'infinity')",
        "insert into pgcron.jobs (id, task) select id, 'x' from pgcron.jobs"
        " on conflict (id) do update set task = excluded.task",
        "insert into pgcron.history select * from pgcron.history",
        "insert into pgcron.workers (id) values (gen_random_uuid())",
        "select pgcron.complete(1, gen_random_uuid())",
        "copy pgcron.jobs to stdout",
    ],
)
@pytest.mark.parametrize("part", ["producer", "stranger"])
@pytest.mark.row("S15")
def test_a_producer_cannot_read_change_or_claim(cast: Cast, part: str, statement: str) -> None:
    """S15. Arguments may contain data that the web process must not be able to read again."""
    cast.boss.enqueue([NewJob("add", '{"card": "4111"}')])

    with cast.connect(part) as conn, pytest.raises(errors.InsufficientPrivilege):
        conn.execute(statement)


def test_a_role_without_rights_cannot_read_the_clock(cast: Cast) -> None:
    with cast.connect("stranger") as conn, pytest.raises(errors.InsufficientPrivilege):
        conn.execute("select pgcron.clock()")


def test_a_reader_cannot_change_anything_by_sql(cast: Cast) -> None:
    cast.boss.enqueue([NewJob("add")])

    with cast.connect("reader") as conn:
        for statement in (
            "update pgcron.jobs set priority = 1", "delete from pgcron.jobs", "delete from pgcron.history",
            "insert into pgcron.jobs (task) values ('x')", "select id from pgcron.jobs for update",
            "update pgcron.workers set beat = 0", "select pgcron.enqueue('x')",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(statement)


@pytest.mark.row("S19")
def test_a_readers_open_transaction_does_not_block_others(cast: Cast) -> None:
    with cast.connect("reader") as reader, reader.transaction():
        for table in ("jobs", "history", "workers", "queues", "schedules", "ticks", "generations", "planner"):
            reader.execute(sql.SQL("select from pgcron.{}").format(sql.Identifier(table)))
        for turn in ("pgcron planner", "pgcron sequence"):
            reader.execute("select pg_advisory_lock(hashtextextended(%s, 7090))", [turn])

        for prepare, act, _ in VERBS.values():
            cast.owner.execute("delete from pgcron.jobs; delete from pgcron.history; delete from pgcron.workers")
            act(cast.boss, prepare(cast.boss))


@pytest.mark.parametrize("part", ["producer", "reader"])
@pytest.mark.row("S19")
def test_a_role_that_cannot_write_takes_no_lock_that_blocks_others(cast: Cast, part: str) -> None:
    tables = [name for name, in cast.owner.execute(
        "select relname from pg_class where relnamespace = 'pgcron'::regnamespace and relkind in ('r', 'v')"
    )]
    with cast.connect(part) as conn:
        for table in tables:
            with pytest.raises(errors.InsufficientPrivilege), conn.transaction():
                conn.execute(sql.SQL("lock table pgcron.{} in row exclusive mode").format(sql.Identifier(table)))


def test_a_worker_completes_a_job_in_its_own_transaction(cast: Cast) -> None:
    job = take(cast.stores["worker"])

    with cast.connect("worker") as conn:
        assert complete_on(conn, job.id, CLAIM, '"x"', schema="pgcron")

    assert cast.boss.get(job.id).result == '"x"'


def test_allow_can_be_repeated_and_refuses_unknown_parts(cast: Cast) -> None:
    cast.owner.execute("select pgcron.allow(%s, 'reader')", [cast.role("reader")])

    with pytest.raises(errors.InvalidParameterValue, match="there is no part 'god'; the parts are producer"):
        cast.owner.execute("select pgcron.allow(%s, 'god')", [cast.role("reader")])
    with pytest.raises(errors.UndefinedObject):
        cast.owner.execute("select pgcron.allow('nobody; drop table x', 'reader')")


@pytest.mark.parametrize("name", ["public", "PUBLIC", " Public ", "current_user", "pg_monitor", "pg_read_all_data"])
def test_nothing_is_allowed_to_everyone(cast: Cast, name: str) -> None:
    query = "select relname, relacl::text from pg_class where relnamespace = 'pgcron'::regnamespace order by 1"
    before = cast.owner.execute(query).fetchall()

    for statement in ("select pgcron.allow(%s, 'producer')", "select pgcron.deny(%s, 'producer')"):
        with pytest.raises(errors.InvalidParameterValue, match="is not a role of one program"):
            cast.owner.execute(statement, [name])

    assert cast.owner.execute(query).fetchall() == before


def rights(cast: Cast, part: str) -> list[Any]:
    """Return all rights in the schema that are granted to the role itself."""
    query = """
        select 'table', c.relname::text, a.privilege_type
        from pg_class as c cross join lateral aclexplode(c.relacl) as a
        where c.relnamespace = 'pgcron'::regnamespace and a.grantee = %(role)s::regrole
        union all
        select 'column', format('%%s.%%s', c.relname, k.attname), a.privilege_type
        from pg_class as c
        join pg_attribute as k on k.attrelid = c.oid
        cross join lateral aclexplode(k.attacl) as a
        where c.relnamespace = 'pgcron'::regnamespace and a.grantee = %(role)s::regrole
        union all
        select 'function', p.oid::regprocedure::text, a.privilege_type
        from pg_proc as p cross join lateral aclexplode(p.proacl) as a
        where p.pronamespace = 'pgcron'::regnamespace and a.grantee = %(role)s::regrole
        union all
        select 'schema', n.nspname::text, a.privilege_type
        from pg_namespace as n cross join lateral aclexplode(n.nspacl) as a
        where n.nspname = 'pgcron' and a.grantee = %(role)s::regrole
        order by 1, 2, 3
    """
    return cast.owner.execute(query, {"role": f'"{cast.role(part)}"'}).fetchall()


@pytest.mark.parametrize("part", PARTS)
def test_deny_revokes_everything_that_allow_granted(cast: Cast, part: str) -> None:
    assert rights(cast, part)

    cast.owner.execute("select pgcron.deny(%s, %s)", [cast.role(part), part])

    assert rights(cast, part) == []


@pytest.mark.parametrize(
    ("held", "denied", "kept"),
    [
        (["producer", "reader"], "reader", ["producer"]),
        (["producer", "reader"], "producer", ["reader"]),
        (["producer", "admin"], "admin", ["producer"]),
        (["producer", "admin"], "producer", ["admin"]),
        # A larger part keeps the rights that it needs.
        (["worker"], "producer", ["worker"]),
        (["admin"], "reader", ["admin"]),
        # A larger part is revoked with those it contains: rights do not record that they were granted twice.
        (["worker", "producer"], "worker", []),
        (["admin", "reader"], "admin", []),
        ([], "worker", []),
    ],
)
def test_deny_revokes_the_parts_that_a_part_contains(
    cast: Cast, held: list[str], denied: str, kept: list[str]
) -> None:
    name = cast.role("stranger")
    for part in kept:
        cast.owner.execute("select pgcron.allow(%s, %s)", [name, part])
    wanted = rights(cast, "stranger")
    for part in held:
        cast.owner.execute("select pgcron.allow(%s, %s)", [name, part])

    cast.owner.execute("select pgcron.deny(%s, %s)", [name, denied])

    assert rights(cast, "stranger") == wanted


def test_allow_revokes_what_a_producer_no_longer_needs(cast: Cast) -> None:
    name = cast.role("producer")
    before = rights(cast, "producer")
    cast.owner.execute(sql.SQL("grant insert (created_at) on pgcron.jobs to {}").format(sql.Identifier(name)))

    cast.owner.execute("select pgcron.allow(%s, 'producer')", [name])

    assert rights(cast, "producer") == before


# Attacks by a role with few rights


@pytest.mark.parametrize("victim", ["worker", "admin", "owner"])
def test_functions_with_our_names_in_a_shared_schema_are_not_called(cast: Cast, victim: str) -> None:
    """S17 and S18: a producer creates functions that match our calls better than the real ones."""
    cast.owner.execute(
        sql.SQL("grant create on schema public to {}").format(sql.Identifier(cast.role("producer")))
    )
    cast.owner.execute("create table public.caught (who text); grant all on caught to public")
    with cast.connect("producer") as conn:
        conn.execute(LOOK_ALIKES)
        # Check the functions themselves: without a fixed search path they are called.
        conn.execute("select format('%s', 1), jsonb_build_object('a', 1::smallint, 'b', now(), 'c', 'd')")
        conn.execute("select pg_notify('a'::varchar, 'b'::varchar)")
    assert cast.owner.execute("select distinct who from public.caught").fetchall() == [(cast.role("producer"),)]
    cast.owner.execute("truncate public.caught")
    store = cast.boss if victim == "owner" else cast.stores[victim]

    for verb, (prepare, act, parts) in VERBS.items():
        if victim == "owner" or victim in parts:
            cast.owner.execute("truncate pgcron.jobs, pgcron.history, pgcron.workers, pgcron.queues")
            subject = prepare(cast.boss)
            act(store, subject)
            assert cast.owner.execute("select who from public.caught").fetchall() == [], verb
    kill_worker_by_suspect(cast.boss if victim == "owner" else cast.stores["worker"])
    assert cast.owner.execute("select who from public.caught").fetchall() == []


def kill_worker_by_suspect(store: Any) -> None:
    """Let a suspect kill its worker, which uses every part of the reap."""
    store.enqueue([NewJob("add", max_crashes=2)])
    store.claim(ME, CLAIM, ["*"], ["add"], 1)
    store.reap([(ME, None)])
    for _ in range(2):
        store.claim_suspect(ME, CLAIM, ["*"], ["add"])
        store.reap([(ME, None)])


def test_functions_with_our_names_on_a_callers_search_path_are_not_called(cast: Cast) -> None:
    """S17: objects in the temporary schema of the caller's session and first on its path are not called."""
    cast.owner.execute("create table public.caught (who text); grant all on caught to public; create schema evil")
    cast.owner.execute(LOOK_ALIKES.replace("public.", "evil.").replace("evil.caught", "public.caught"))
    cast.owner.execute("grant usage on schema evil to public")
    job = take(cast.boss)
    with psycopg.connect(cast.boss.address.conninfo, autocommit=True) as conn:
        conn.execute("set search_path = evil, pg_catalog")
        conn.execute("create temp table jobs (id bigint, task text)")
        conn.execute("create temp table history (id bigint)")

        [job_id] = enqueue_on(conn, [NewJob("add", tags=("t",), headers={"a": "b"})], schema="pgcron", rings=True)
        conn.execute("select pgcron.enqueue('add')")
        conn.execute("select pgcron.ring()")
        assert complete_on(conn, job.id, CLAIM, None, schema="pgcron")

    assert cast.boss.get(job_id).tags == ("t",)
    assert cast.owner.execute("select who from public.caught").fetchall() == []


# Each matches a call exactly where the real one needs a conversion, or comes before it on a path.
LOOK_ALIKES = """
    create function public.test_catch() returns void language sql as 'insert into public.caught values (current_user)';
    create function public.format(text, integer) returns text language plpgsql as
        'begin perform public.test_catch(); return $1; end';
    create function public.jsonb_build_object(text, smallint, text, timestamptz, text, text) returns jsonb
        language plpgsql as 'begin perform public.test_catch(); return ''{}''; end';
    create function public.pg_notify(varchar, varchar) returns void language plpgsql as
        'begin perform public.test_catch(); end';
    create function public.pg_notify(text, text) returns void language plpgsql as
        'begin perform public.test_catch(); end';
    create function public.make_interval(double precision) returns interval language plpgsql as
        'begin perform public.test_catch(); return ''1 s''; end';
    create function public.jsonb_array_length(jsonb) returns int language plpgsql as
        'begin perform public.test_catch(); return 0; end';
    create function public.clock_timestamp() returns timestamptz language plpgsql as
        'begin perform public.test_catch(); return now(); end';
    create function public.nextval(text) returns bigint language plpgsql as
        'begin perform public.test_catch(); return 1; end';
    create function public.json_array_elements_text(json) returns setof text language plpgsql as
        'begin perform public.test_catch(); return; end';
    create function public.test_less(timestamptz, timestamptz) returns boolean language plpgsql as
        'begin perform public.test_catch(); return true; end';
    create operator public.<= (leftarg = timestamptz, rightarg = timestamptz, function = public.test_less);
"""
