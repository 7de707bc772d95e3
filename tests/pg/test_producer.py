"""A malicious producer: every column that a role which may only enqueue can write, set to extreme values.

The columns are read from the catalogue, so a column that is granted later fails here until it has extreme values. The
values that the table refuses are here too: each is either refused by the insert, or affects nobody else.
"""

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import Run, objects, runner
from psycopg import conninfo, errors, sql
from support import eventually

from pgcron_lite import PgCron
from pgcron_lite.errors import DatabaseRefused, OptionError
from pgcron_lite.job import MAX_HEADERS_SIZE, MAX_TAGS, NewJob, Outcome, WorkerCard
from pgcron_lite.memory import MemoryStore
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.errors import UNFIT
from pgcron_lite.pg.migrate import migrate
from pgcron_lite.pg.pool import Pool
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.serialization.json_codec import MAX_SIZE
from pgcron_lite.worker import execute

ME, CLAIM = uuid.UUID(int=1), uuid.UUID(int=2)

APP = """
from pgcron_lite import PgCron
from pgcron_lite.worker import execute

app = PgCron("shop")

@app.task(name="ok")
def ok(*args, **kwargs):
    pass

@app.task(name="numbers")
def numbers(n: set[int]):
    pass
"""

ANSI, BIDI, BELL = r"E'a\x1b]0;owned\x07\x1b[2Jb'", "'a' || chr(8238) || 'b'", r"E'a\x07\nb\r\tc'"
TEXTS = [ANSI, BIDI, BELL, "''", "' '", "'*'", "'a,b'", "'; rm -rf /'", "'--help'", "'\u00e9\U0001f600'"]
# Integers with the same hash in Python.
COLLIDING = "json_build_object('n', json_build_object('$set', (select json_agg(n * 2305843009213693951::numeric) " \
            "from generate_series(1, 12000) as n)))"
MOMENTS = [
    "'infinity'", "'-infinity'", "'4713-01-01 00:00+00 BC'", "'0001-01-01 00:00+00'", "'294276-12-31 00:00+00'",
    "'1999-12-31 00:00+00'", "'2000-01-01 00:00+00'", "'9000-01-01 00:00+00'", "'9999-12-31 23:59:59+00'",
]
NUMBERS = ["-32768", "32767", "-101", "-100", "-1", "0", "1", "100", "101", "2147483647"]

# The expressions for each column.
EXTREMES: dict[str, list[str]] = {
    "id": [
        "null", "0", "-1", "-9223372036854775808", "9223372036854775807", "1", "1000000",
        "nextval('pgcron.jobs_id_seq')",
    ],
    "nonce": ["null", "0", "-9223372036854775808", "9223372036854775807"],
    "task": ["null", "'unknown'", "repeat('x', 200)", "repeat('x', 201)", "'numbers'", *TEXTS],
    "queue": ["null", "repeat('x', 100)", "repeat('x', 101)", *TEXTS],
    "priority": ["null", *NUMBERS],
    "max_attempts": ["null", *NUMBERS],
    "max_crashes": ["null", *NUMBERS],
    "execute_after": ["null", *MOMENTS],
    "created_at": ["null", *MOMENTS],
    "headers": [
        "null", "'null'", "'[]'", "'{\"a\": 1}'", "'{\"\": \"\"}'", "jsonb_build_object('a', repeat('x', 1000000))",
        f"jsonb_build_object({ANSI}, {BIDI})", "'{\"pgcron-tick\": \"never\"}'",
        "(select jsonb_object_agg(n::text, n::text) from generate_series(1, 1000) as n)",
    ],
    "tags": [
        "null", "'{null}'", "'{a,null,b}'", "'{{a,b},{c,d}}'", "'[5:6]={a,b}'", "'{}'", "'{\"\"}'",
        "array_fill('x'::text, array[101])", "array_fill('x'::text, array[100])", "array[repeat('x', 1000000)]",
        f"array[{ANSI}, {BIDI}, {BELL}]",
    ],
    "args": [
        "null", "'null'", "'1'", "'\"x\"'", "'[]'", "'[[]]'",
        "('[' || repeat('1,', 100000) || '1]')::json",
        "(repeat('[', 500) || repeat(']', 500))::json", "('[\"' || repeat('x', 2000000) || '\"]')::json",
        "'[1e999999]'", "('[' || repeat('9', 5000) || ']')::json", r"""'["\u0000"]'""", r"""'["\ud800"]'""",
        "'[NaN]'", "'{\"*args\": 1}'", "'{\"**kwargs\": 1}'", "'{\"**kwargs\": {\"\": 1}}'", "'{\"\": 1}'",
        "'{\"$set\": [[]]}'", "'[{\"$decimal\": \"1e99999999\"}]'", "'[{\"$datetime\": \"x\"}]'",
        f"json_build_array({ANSI}, {BIDI}, {BELL})", COLLIDING,
    ],
}  # fmt: skip


class Producer:
    """A role with only the part `producer`, and the owner."""

    def __init__(self, url: str, owner: "psycopg.Connection[Any]") -> None:
        self.owner = owner
        self.role = f"{owner.info.dbname} producer"
        owner.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(self.role)))
        owner.execute("select pgcron.allow(%s, 'producer')", [self.role])
        self.url = conninfo.make_conninfo(url, user=self.role, password="secret")
        self.conn = psycopg.connect(self.url, autocommit=True)
        self.conn.execute("set statement_timeout = '20s'")

    def tries(self, statement: str) -> bool:
        """Return True if the server accepted the statement."""
        try:
            self.conn.execute(statement.encode())
        except (errors.DataError, errors.IntegrityError, errors.RaiseException):
            return False
        return True

    def close(self) -> None:
        self.conn.close()
        self.owner.execute(
            sql.SQL("drop owned by {role}; drop role {role}").format(role=sql.Identifier(self.role))
        )


@pytest.fixture
def producer(pg_url: str) -> Iterator[Producer]:
    with psycopg.connect(pg_url, autocommit=True) as owner:
        producer = Producer(pg_url, owner)
        yield producer
        producer.close()


@pytest.fixture
def store(pg_url: str) -> Iterator[PostgresStore]:
    """Return the owner's store."""
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    yield store
    store.close()


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    (tmp_path / "shop.py").write_text(APP)
    inner = runner(tmp_path, request)
    return lambda *words, **more: inner("--app", "shop", *words, **more)


def writable(producer: Producer) -> set[tuple[str, str]]:
    """Return every column of the schema that the role may insert or update."""
    rows = producer.owner.execute(
        """
        select c.relname, a.attname
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = 'pgcron'::regnamespace and c.relkind in ('r', 'v')
          and (has_column_privilege(%(role)s, c.oid, a.attnum, 'insert')
               or has_column_privilege(%(role)s, c.oid, a.attnum, 'update'))
        """,
        {"role": producer.role},
    )
    return set(rows.fetchall())


def is_harmless(text: str) -> bool:
    """Return True if `text` contains no control characters for a terminal."""
    return all(character.isprintable() or character == "\n" for character in text)


def test_every_column_that_a_producer_may_write_has_its_extremes_here(producer: Producer) -> None:
    granted = writable(producer)

    assert {table for table, _ in granted} == {"jobs"}
    assert {column for _, column in granted} == EXTREMES.keys() - {"created_at"}


@pytest.mark.parametrize("column", EXTREMES)
def test_no_extreme_of_a_column_stops_or_misleads_anyone(
    producer: Producer, run: Run, store: PostgresStore, column: str
) -> None:
    # A role keeps a right that it was granted before the grant became narrower.
    producer.owner.execute(
        sql.SQL("grant insert (created_at) on pgcron.jobs to {}").format(sql.Identifier(producer.role))
    )
    [before] = store.enqueue([NewJob("ok")])
    taken = 0
    for extreme in EXTREMES[column]:
        names, values = ("task", "'ok'") if column != "task" else ("queue", "'default'")
        taken += producer.tries(f"insert into pgcron.jobs ({names}, {column}) values ({values}, {extreme})")  # noqa: S608
        if column not in ("id", "nonce", "created_at"):
            first = "'ok', " if column != "task" else ""
            taken += producer.tries(f"select pgcron.enqueue({first}{column} => {extreme})")
            entry = f"json_build_object({names!r}, {values}, {column!r}, {extreme})"
            taken += producer.tries(f"select pgcron.enqueue_many(json_build_array({entry}))")
    [after] = store.enqueue([NewJob("ok")])
    ids = [str(job_id) for job_id, in producer.owner.execute("select id from pgcron.jobs order by id").fetchall()]

    looked = [run("jobs", "list", "-n", 1000), run("jobs", "show", *ids), run("queues", "list")]
    worker = run("worker", "--drain", "-q", "*")
    store.register(WorkerCard(ME, "box", 7, ("*",), 1, "threads", "1"))
    looked += [run("jobs", "list", "-n", 1000), run("jobs", "show", *ids), run("queues", "list"), run("health")]

    assert taken
    assert worker.returncode == 0, worker.stderr
    assert store.get(before).state == store.get(after).state == "done"
    for answer in looked:
        assert answer.returncode == 0, answer.stderr
        assert is_harmless(answer.stdout), answer.stdout
    assert is_harmless(worker.stdout)
    assert {str(job["id"]) for job in objects(run("jobs", "list", "--json", "-n", 1000))} == set(ids)


def test_the_id_of_a_job_that_has_ended_is_refused(producer: Producer, run: Run, pg_url: str) -> None:
    """A producer could otherwise fake the result of another job, and prevent its retry by an operator."""
    producer.owner.execute("select pgcron.enqueue('ok')")
    assert run("worker", "--drain").returncode == 0

    with pytest.raises(errors.UniqueViolation, match="a job that has ended"):
        producer.conn.execute(
            "insert into pgcron.jobs (id, task, execute_after) select min(id), 'ok', '8000-01-01' from pgcron.history"
        )


def test_a_failed_run_is_not_completed_by_another_job_with_its_id(producer: Producer, run: Run, pg_url: str) -> None:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    [job_id] = store.enqueue([NewJob("ok")])
    assert store.delete(job_id)
    moment = "2020-01-01 00:00+00"
    producer.owner.execute(
        "insert into pgcron.schedules (name, origin, app, definition) values ('nightly', 'hand', 'shop', '{}')"
    )
    producer.owner.execute(
        "insert into pgcron.ticks (schedule, tick, kind, due_at, job_id, started_at, outcome, finished_at)"
        " values ('nightly', %(at)s, 'tick', %(at)s, %(job)s, %(at)s, 'failed', %(at)s)",
        {"at": moment, "job": job_id},
    )
    producer.conn.execute("insert into pgcron.jobs (id, task) values (%s, 'ok')", [job_id])
    producer.owner.execute("update pgcron.jobs set headers = '{\"pgcron-schedule\": \"nightly\"}'")
    assert run("worker", "--drain").returncode == 0
    store.close_ticks([job_id])
    store.close()

    assert producer.owner.execute("select outcome from pgcron.ticks").fetchall() == [("failed",)]


def test_an_id_must_be_drawn_before_it_is_used(producer: Producer) -> None:
    """A million jobs ahead of the sequence would be a million failures for all other producers."""
    with pytest.raises(errors.InvalidParameterValue, match="was not drawn from the sequence"):
        producer.conn.execute("insert into pgcron.jobs (id, task) select n, 'ok' from generate_series(1, 100) as n")

    [drawn] = producer.conn.execute("select nextval('pgcron.jobs_id_seq')").fetchone()
    producer.conn.execute("insert into pgcron.jobs (id, task) values (%s, 'ok')", [drawn])

    own = PostgresStore(parse_url(producer.url, application="pgcron test"))
    ids = own.enqueue([NewJob("ok")] * 300)
    own.close()
    assert min(ids) > drawn


def test_ids_ahead_of_the_sequence_are_not_held_during_a_statement(producer: Producer, pg_url: str) -> None:
    """Jobs of ticks and other producers get the next ids, and would wait for a statement that does not end."""
    [last] = producer.owner.execute("select nextval('pgcron.jobs_id_seq')").fetchone()
    producer.owner.execute("select pg_advisory_lock(42)")
    statement = """
        insert into pgcron.jobs (id, task)
        select n, case n when LAST + 2 then pg_advisory_xact_lock_shared(42)::text else 'ok' end
        from generate_series(LAST + 1, LAST + 2) as n
    """
    attack = threading.Thread(target=producer.tries, args=[statement.replace("LAST", str(last))])
    attack.start()
    eventually(lambda: not attack.is_alive() or producer.owner.execute(
        "select from pg_stat_activity where wait_event = 'advisory' and datname = current_database()"
    ).rowcount)

    try:
        with psycopg.connect(pg_url, options="-c lock_timeout=2s", autocommit=True) as other:
            [job_id] = other.execute("select pgcron.enqueue('ok')").fetchone()
    finally:
        producer.owner.execute("select pg_advisory_unlock_all()")
        attack.join()

    assert job_id == last + 1


def test_an_operator_queues_a_job_again_though_the_sequence_was_set_back(pg_url: str, store: PostgresStore) -> None:
    [job_id] = store.enqueue([NewJob("ok")])
    store.cancel(job_id)
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("select setval('pgcron.jobs_id_seq', 1, false)")

    assert store.retry(job_id)


# The messages about bounds


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("pgcron.enqueue('ok', priority => 101)", "priority => 101: expected a number from -100 to 100"),
        ("pgcron.enqueue('ok', json_build_array(repeat('x', 1048576)))", "the arguments take 1048580 bytes of JSON"),
        ("pgcron.enqueue('ok', max_crashes => 101)", "max_crashes => 101: expected a number from 1 to 100"),
        ("pgcron.enqueue('ok', max_crashes => 0)", "max_crashes => 0: expected a number from 1 to 100"),
        ("pgcron.enqueue('ok', max_attempts => 0)", "max_attempts => 0: expected a number from 1 to 32767"),
        ("pgcron.enqueue('ok', max_attempts => 100000)", "max_attempts => 100000: expected a number from 1 to 32767"),
        ("pgcron.enqueue('ok', priority => 100000)", "priority => 100000: expected a number from -100 to 100"),
        ("pgcron.enqueue('ok', priority => null)", "priority => NULL: expected a number from -100 to 100"),
        ("pgcron.enqueue('ok', '7')", "args => '7': expected a JSON array or object of arguments"),
        ("pgcron.enqueue('ok', null)", "args => NULL: expected a JSON array or object of arguments"),
        ("pgcron.enqueue('')", "task => '': expected the name of a task"),
        ("pgcron.enqueue(null)", "task => NULL: expected the name of a task"),
        ("pgcron.enqueue(repeat('x', 201))", "task => 'x+': expected the name of a task, of 1 to 200 characters"),
        ("pgcron.enqueue('ok', queue => '')", "queue => '': expected a name of 1 to 100 characters"),
        ("pgcron.enqueue('ok', execute_after => 'infinity')", "execute_after => 'infinity': expected a time"),
        ("pgcron.enqueue('ok', tags => '{null}')", "tags => 1 of them: expected up to 100 texts"),
        ("pgcron.enqueue('ok', tags => null)", "tags => NULL in place of them: expected up to 100 texts"),
        ("pgcron.enqueue('ok', tags => array_fill('x'::text, array[101]))", "tags => 101 of them: expected up to 100"),
        ("pgcron.enqueue('ok', headers => '[7]')", "headers => '.7.': expected a JSON object of texts"),
        ("pgcron.enqueue('ok', headers => '{\"a\": 1}')", "headers => '.*': expected a JSON object of texts"),
        ("pgcron.enqueue('ok', headers => null)", "headers => NULL: expected a JSON object of texts"),
        ("pgcron.enqueue('ok', headers => jsonb_build_object('a', repeat('x', 70000)))", "the headers take 700"),
        ("pgcron.enqueue_many('[{\"task\": \"ok\"}, {\"task\": \"ok\", \"priority\": -101}]')",
         r"jobs\[1\]: priority => -101: expected a number from -100 to 100"),
        ("pgcron.enqueue_many('[7]')", r"jobs\[0\]: task => NULL: expected the name of a task"),
        ("pgcron.enqueue_many('[{\"task\": \"ok\", \"delay\": -2e11}]')",
         r"jobs\[0\]: execute_after => '.*': expected a time"),
        ("pgcron.enqueue_many('[{\"task\": \"ok\", \"args\": 7}]')", r"jobs\[0\]: args => '7': expected a JSON array"),
        ("pgcron.enqueue_many(json_build_array(json_build_object('task', 'ok', 'args',"
         " json_build_array(repeat('x', 1048576)))))", r"jobs\[0\]: the arguments take 1048580 bytes of JSON"),
    ],
)  # fmt: skip
def test_the_sql_function_refuses_invalid_values_with_a_message_and_a_hint(
    producer: Producer, call: str, words: str
) -> None:
    with pytest.raises(errors.CheckViolation, match=f"^{words}") as caught:
        producer.conn.execute(f"select {call}".encode())

    assert caught.value.diag.message_hint
    assert "pgcron" not in caught.value.diag.message_hint
    assert producer.owner.execute("select count(*) from pgcron.jobs").fetchone() == (0,)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"priority": 1.5}, "priority => '1.5': expected a whole number"),
        ({"priority": "high"}, "priority => 'high': expected a whole number"),
        ({"priority": True}, "priority => 'true': expected a whole number"),
        ({"priority": 10**12}, "priority => '1000000000000': expected a whole number"),
        ({"max_attempts": [3]}, r"max_attempts => '\[3\]': expected a whole number"),
        ({"max_crashes": 0.5}, "max_crashes => '0.5': expected a whole number"),
        ({"tags": "x"}, "tags => 'x': expected an array of texts"),
        ({"tags": None}, "tags => NULL: expected an array of texts"),
        ({"tags": {"a": 1}}, "tags => '{\"a\": 1}': expected an array of texts"),
        ({"headers": "x"}, "headers => 'x': expected a JSON object of texts"),
        ({"headers": [7]}, r"headers => '\[7\]': expected a JSON object of texts"),
        ({"delay": "NaN"}, "delay => 'NaN': expected a number of seconds"),
        ({"delay": "Infinity"}, "delay => 'Infinity': expected a number of seconds"),
        ({"delay": 1e300}, "delay => '1e.?300': expected a number of seconds"),
        ({"delay": "1 hour"}, "delay => '1 hour': expected a number of seconds"),
        ({"execute_after": "soon"}, "execute_after => 'soon': expected a time"),
        ({"execute_after": 7}, "execute_after => '7': expected a time"),
        ({"execute_after": "2026-02-30"}, "execute_after => '2026-02-30': expected a time"),
        ({"task": 7}, "task => '7': expected the name of a task"),
        ({"queue": 7}, "queue => '7': expected a name of 1 to 100 characters"),
        ({"max_retries": 3}, "max_retries: there is no such key"),
        ({"created_at": "2026-01-01"}, "created_at: there is no such key"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_with_its_position(
    producer: Producer, entry: dict[str, Any], words: str
) -> None:
    jobs = json.dumps([{"task": "ok"}, {"task": "ok", **entry}, {"task": "ok", "priority": "never looked at"}])

    with pytest.raises(errors.CheckViolation, match=rf"^jobs\[1\]: {words}") as caught:
        producer.conn.execute("select pgcron.enqueue_many(%s)", [jobs])

    assert caught.value.diag.message_hint
    assert len(caught.value.diag.context or "") < 400
    assert producer.owner.execute("select count(*) from pgcron.jobs").fetchone() == (0,)


@pytest.mark.parametrize("jobs", ['{"task": "ok"}', "7", "null", '"ok"', None])
def test_enqueue_many_refuses_anything_but_an_array(producer: Producer, jobs: str | None) -> None:
    with pytest.raises(errors.CheckViolation, match=r"^jobs => .*: expected a JSON array of jobs") as caught:
        producer.conn.execute("select pgcron.enqueue_many(%s::json)", [jobs])

    assert caught.value.diag.message_hint


def test_enqueue_many_accepts_all_keys_and_null_for_the_default(producer: Producer) -> None:
    full = {
        "task": "ok", "args": [1], "queue": "q", "priority": 7, "execute_after": "2030-01-01T00:00:00.5+02:00",
        "max_attempts": 2, "headers": {"a": "b"}, "tags": ["x", "y"], "max_crashes": 1,
    }  # fmt: skip
    names = ["queue", "priority", "execute_after", "delay", "max_attempts", "headers", "max_crashes"]
    bare = {"task": "ok", **dict.fromkeys(names)}

    producer.conn.execute(
        "select pgcron.enqueue_many(%s)", [json.dumps([full, bare, {"task": "ok", "delay": -1.5e-7}])]
    )

    rows = producer.owner.execute(
        "select queue, priority, max_attempts, headers, tags, max_crashes from pgcron.jobs order by id"
    ).fetchall()
    assert rows == [("q", 7, 2, {"a": "b"}, ["x", "y"], 1)] + [("default", 0, 5, {}, [], 3)] * 2


def test_compressed_headers_count_with_their_uncompressed_size(pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("create temp table kept as select jsonb_build_object('a', repeat('x', 500000)) as headers")

        with pytest.raises(errors.CheckViolation, match="headers_are_at_most_64_kb"):
            conn.execute("insert into pgcron.jobs (task, headers) select 'ok', headers from kept")


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "postgres"])
@pytest.mark.parametrize(
    "wrong",
    [
        NewJob("ok", priority=101),
        NewJob("ok", priority=-101),
        NewJob("ok", max_crashes=101),
        NewJob("ok", args=json.dumps(["x" * MAX_SIZE])),
        NewJob("ok", tags=("x",) * (MAX_TAGS + 1)),
        NewJob("ok", tags=("x" * 10_001,)),
    ],
    ids=["priority", "negative", "crashes", "args", "tags", "tag"],
)
@pytest.mark.parametrize("count", [1, 2, 300])
def test_every_way_to_enqueue_has_the_same_bounds(request: Any, wrong: NewJob, memory: bool, count: int) -> None:
    store: Any = MemoryStore() if memory else request.getfixturevalue("store")

    with pytest.raises((DatabaseRefused, OptionError)):
        store.enqueue([wrong] * count)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_value_that_the_table_refuses_is_refused_with_a_reason(store: PostgresStore, count: int) -> None:
    for wrong, words in [
        (NewJob("ok", priority=101), "its priority is not from -100 to 100"),
        (NewJob("ok", args="7"), "its arguments are neither a JSON array nor an object"),
        (NewJob("ok", args=json.dumps(["x" * MAX_SIZE])), "its arguments take more than 1 MB of JSON"),
        (NewJob("ok", tags=("x",) * (MAX_TAGS + 1)), "its tags are more than 100"),
        (NewJob(""), "its task has no name"),
    ]:
        with pytest.raises(DatabaseRefused, match=f"^the database does not store this job: {words}"):
            store.enqueue([wrong] * count)


def test_every_constraint_with_a_reason_exists(producer: Producer) -> None:
    rows = producer.owner.execute("select conname from pg_constraint where connamespace = 'pgcron'::regnamespace")

    assert set(UNFIT) <= {row[0] for row in rows.fetchall()}


def test_headers_are_bounded_by_options() -> None:
    app = PgCron("shop", url="memory://")
    task = app.task(name="ok")(lambda: None)

    with pytest.raises(OptionError, match="64 kB"):
        task.options(headers={"a": "x" * MAX_HEADERS_SIZE})
    app.close()


# Rows from before there were bounds

OLD_ROWS = {
    "infinite": "insert into pgcron.jobs (task, created_at) values ('ok', 'infinity')",
    "long ago": "insert into pgcron.jobs (task, created_at) values ('ok', '-infinity')",
    "before Christ": "insert into pgcron.jobs (task, created_at) values ('ok', '4713-01-01 00:00+00 BC')",
    "too late": "insert into pgcron.jobs (task, created_at) values ('ok', '294276-12-31 00:00+00')",
}

@pytest.fixture(params=OLD_ROWS.values(), ids=OLD_ROWS)
def old(request: pytest.FixtureRequest, databases: Any) -> Iterator[tuple[PostgresStore, int]]:
    """Return a store with three jobs, and the id of the one that cannot be decoded."""
    url = databases.create(databases.template)
    store = PostgresStore(parse_url(url, application="pgcron test"))
    store.enqueue([NewJob("ok")])
    with psycopg.connect(url, autocommit=True) as conn:
        [job_id] = conn.execute(request.param + " returning id").fetchone()
    store.enqueue([NewJob("ok")])
    yield store, job_id
    store.close()
    databases.drop(url)


@pytest.mark.parametrize("is_direct", [True, False], ids=["session", "transaction"])
def test_a_row_that_cannot_be_decoded_fails_alone_with_its_reason(
    old: tuple[PostgresStore, int], is_direct: bool
) -> None:
    store, job_id = old
    if not is_direct:
        # As behind a pooler, where nothing is prepared and rows are sent as text.
        store.pool.close()
        connection = Connection(store.address, "pgcron")
        connection._may_prepare = False
        store.pool = Pool(lambda: connection, 1)
    app = PgCron("shop", url="memory://")
    app.task(name="ok")(lambda *args: None)

    jobs = store.claim(ME, CLAIM, ["*"], ["ok"], 10)
    ends = [execute.run(app, job) for job in jobs]
    store.settle([ended.outcome for ended in ends])

    assert [job.flaw is None for job in jobs] == [job.id != job_id for job in jobs]
    assert len(jobs) == 3
    for job in jobs:
        ended = store.get(job.id)
        assert ended.state == ("failed" if job.id == job_id else "done")
        assert ("the job's row cannot be read: " in (ended.error or "")) == (job.id == job_id)
    app.close()


def test_every_query_returns_a_row_that_cannot_be_decoded(old: tuple[PostgresStore, int]) -> None:
    store, job_id = old

    assert {job.id for job in store.find()} >= {job_id}
    assert store.get(job_id).flaw
    claimed = {job.id for job in store.claim(ME, CLAIM, ["*"], ["ok"], 10)}
    assert {job.id for job in store.held(ME, CLAIM)} == claimed
    assert {job.id for job in store.reap([(ME, None)])} == claimed
    suspects = [store.claim_suspect(ME, CLAIM, ["*"], ["ok"]) for _ in claimed]
    assert {suspect.id for suspect in suspects if suspect} == claimed
    assert [suspect.id for suspect in suspects if suspect and suspect.flaw] == [job_id]


def test_rows_that_exceed_newer_bounds_stay_and_can_be_run(empty_pg_url: str) -> None:
    where = parse_url(empty_pg_url, application="pgcron test")
    migrate(where, to=4)
    with psycopg.connect(empty_pg_url, autocommit=True) as conn:
        conn.execute("create view public.mine as select id, priority, tags from pgcron.all_jobs")
        conn.execute("grant select on pgcron.all_jobs to public")
        conn.execute(
            """
            insert into pgcron.jobs (task, priority, max_crashes, tags, args, created_at)
            values ('ok', 30000, 30000, '{a,null,b}', json_build_array(repeat('x', 2000000)), 'infinity'),
                   ('ok', -30000, 1, '{{a,b},{c,d}}', '[]', now()),
                   ('ok', 20000, 1, '{}', '[]', now())
            """
        )
        before = conn.execute("select relacl from pg_class where oid = 'pgcron.all_jobs'::regclass").fetchone()

        migrate(where)

        assert conn.execute("select relacl from pg_class where oid = 'pgcron.all_jobs'::regclass").fetchone() == before
        priorities = conn.execute("select priority from public.mine order by id").fetchall()
        assert priorities == [(30000,), (-30000,), (20000,)]
    store = PostgresStore(where)
    jobs = store.claim(ME, CLAIM, ["*"], ["ok"], 10)
    assert [job.tags for job in jobs] == [("a", "b"), (), ("a", "b", "c", "d")]
    store.settle([Outcome(job.id, CLAIM, "queued") for job in jobs[:1]])
    store.settle([Outcome(job.id, CLAIM, "failed") for job in jobs[1:]])
    assert store.cancel(jobs[0].id)
    # A retry inserts a new row: its priority is limited to the bounds, and arguments of 2 MB are refused.
    assert store.retry(jobs[1].id)
    assert store.get(jobs[1].id).priority == 100
    with pytest.raises(
        DatabaseRefused, match=rf"job {jobs[0].id} cannot be retried: its arguments take more than 1 MB of JSON"
    ):
        store.retry(jobs[0].id)
    store.close()
