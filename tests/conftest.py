"""Fixtures for the whole suite: one server per session, a fresh database per test, nothing left behind."""

import contextlib
import functools
import gc
import itertools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from clock import Clock
from psycopg import sql
from servers import server
from support import eventually

from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.memory import MemoryStore

# Real processes and servers that are killed, frozen and waited for. They depend on the operating system more than on
# the versions of Python and of the drivers, so one line of tox runs them all and the others leave them out.
SLOW = {
    "test_benchmarks", "test_connection_rows", "test_dev", "test_docs", "test_embedded", "test_examples", "test_exits",
    "test_failover_rows", "test_frozen_backends", "test_hangs", "test_hostile_tasks", "test_import_crontab",
    "test_late_commits", "test_limits_of_the_server", "test_logs", "test_poison_rows", "test_pooler_rows",
    "test_prefetch_rows", "test_process_rows", "test_producers", "test_schedules", "test_secrets", "test_shell",
    "test_shutdown_rows", "test_simulation", "test_store_overlap", "test_storm", "test_supervisor", "test_time_rows",
}  # fmt: skip

# Calculations, commands, and statements to the server: gevent changes how a process waits, and these wait for nothing
# but an answer, as all others do. With the tests that start programs in processes of their own, they run only once,
# unpatched.
SAME_UNDER_GEVENT = {
    "test_annotations", "test_arguments", "test_cli", "test_config", "test_cron", "test_crontab_parser",
    "test_blueprint", "test_differential", "test_durations", "test_find_app", "test_hints", "test_json_codec",
    "test_layers", "test_output", "test_ownership", "test_plans", "test_producer", "test_retry", "test_roles",
    "test_schema", "test_send", "test_store_schedules", "test_store_schedules_property", "test_timing", "test_typing",
    "test_url",
}  # fmt: skip
PROCESSES = {"workers", "workers_of_its_own", "project"}
SERVERS = {"pg_server", "store"}

# Values, and machines in virtual time: the result does not depend on the server, and what they use of other libraries
# is tested with the old releases by the rest. Tests of these files that have a server, and those of the contract of
# stores on PostgreSQL, run in `lowest` too.
SAME_IN_LOWEST = {
    "test_annotations", "test_arguments", "test_config", "test_crontab_parser", "test_durations", "test_events",
    "test_harness", "test_hints", "test_json_codec", "test_layers", "test_retry", "test_side_by_side", "test_typing",
}  # fmt: skip


# A run in the background of a script ignores Ctrl-C, and so would the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Reading them takes each process of xdist longer than many a test.
    return True if collection_path.stem in SLOW and "not slow" in config.option.markexpr else None


# Before the markers are compared with -m.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name, fixtures = item.path.stem, {*getattr(item, "fixturenames", ())}
        if name in SLOW:
            item.add_marker("slow")
        if name in SAME_UNDER_GEVENT or fixtures & PROCESSES:
            item.add_marker("same_under_gevent")
        if _is_on_memory(item) or (name in SAME_IN_LOWEST and not fixtures & SERVERS):
            item.add_marker("same_in_lowest")
    items[:] = _slow_ones_first(items)


def _is_on_memory(item: pytest.Item) -> bool:
    """Whether this is a test of the contract of stores, on the one without a server."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("store") == "memory"


def _slow_ones_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Let each process of xdist begin with its share of the slow tests, so that no long one is left at the end.

    With --dist worksteal each process is given one part of the list, in order, and steals from the others in the end.
    """
    parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.path.stem in SLOW]
    fast = [item for item in items if item.path.stem not in SLOW]
    return [item for part in range(parts) for kind in (slow, fast) for item in _part(kind, part, parts)]


def _part(items: list[pytest.Item], part: int, parts: int) -> list[pytest.Item]:
    return items[len(items) * part // parts : len(items) * (part + 1) // parts]


def pytest_collection_finish() -> None:
    # Thousands of tests stay to the end: the garbage collector need not look at each of them again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pg_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The server of this session (of this process, under xdist): PostgreSQL 18, or `PGCRON_TEST_PG`."""
    with server(tmp_path_factory.mktemp("postgres"), max_connections="100") as running_server:
        yield running_server


@pytest.fixture(autouse=True)
def nothing_is_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is short of processors any look may take long; claims are to be as exact as they are fast."""
    with contextlib.suppress(ImportError):
        from pgcron_lite.pg import claim_cursor

        monkeypatch.setattr(claim_cursor, "EXPENSIVE_SECONDS", math.inf)


class Databases:
    """Makes and drops databases over one connection, which lasts as long as the session."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._conn: psycopg.Connection[Any] | None = None

    def create(self, template: str = "template0") -> str:
        """The URL of a new copy of the database `template`."""
        name = f"test_{next(self._numbers)}"
        statement = sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, template)))
        if int(self.server.data_directory.name.removeprefix("pg")) >= 15:
            # Copying the files takes 10 ms here, writing every page to the log takes 60.
            statement += sql.SQL(" strategy file_copy")
        self.execute(statement)
        return self.server.url.removesuffix("postgres") + name

    def drop(self, url: str) -> None:
        """Drop the database and whoever is still connected to it."""
        self.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name_of(url))))

    @functools.cached_property
    def template(self) -> str:
        """The name of a database with our schema."""
        from pgcron_lite.pg.migrate import migrate
        from pgcron_lite.pg.url import parse_url

        url = self.create()
        migrate(parse_url(url, application="pgcron tests"))
        eventually(lambda: not self.visitors(url))
        return name_of(url)

    def visitors(self, url: str) -> list[tuple[Any, ...]]:
        """Everybody who is connected to the database."""
        return self.execute(
            """
            select pid, application_name, state, left(query, 200)
            from pg_stat_activity
            where datname = %(name)s and backend_type = 'client backend'
            """,
            {"name": name_of(url)},
        ).fetchall()

    def execute(self, statement: Any, values: dict[str, Any] | None = None) -> psycopg.Cursor[Any]:
        """Run a statement as the administrator, over a new connection if a test has restarted the server."""
        if self._conn is not None:
            with contextlib.suppress(psycopg.OperationalError):
                return self._conn.execute(statement, values)
            self._conn.close()
        self._conn = psycopg.connect(self.server.url, autocommit=True)
        return self._conn.execute(statement, values)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


@pytest.fixture(scope="session")
def databases(pg_server: EmbeddedPostgres) -> Iterator[Databases]:
    """Where databases come from."""
    databases = Databases(pg_server)
    yield databases
    databases.close()


@pytest.fixture
def template(databases: Databases) -> str:
    """The name of the database that `pg_url` is a copy of."""
    return databases.template


@pytest.fixture
def pg_url(databases: Databases, template: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of this test's own, with our schema."""
    yield from _lent(databases, databases.create(template), request)


@pytest.fixture
def empty_pg_url(databases: Databases, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of this test's own, with nothing in it."""
    yield from _lent(databases, databases.create(), request)


def _lent(databases: Databases, url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        yield url
        _nothing_left(request, "connections", lambda: databases.visitors(url))
    finally:
        databases.drop(url)


# The stores of which the contract is asked: both, unless there is no PostgreSQL.
STORES = ["memory"] if os.environ.get("PGCRON_TEST_STORE") == "memory" else ["memory", "postgres"]


@pytest.fixture
def clock() -> Iterator[Clock]:
    """The time of `store`. It stands still until the test moves it."""
    clock = Clock()
    yield clock
    clock.release()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Any]:
    """An empty store, once of each kind, whose time is `clock`."""
    if request.param == "memory":
        yield MemoryStore(clock)
        return
    from pgcron_lite.pg.store import PostgresStore
    from pgcron_lite.pg.url import parse_url

    url = request.getfixturevalue("pg_url")
    clock.rule(url)
    store = PostgresStore(parse_url(url, application="pgcron store"))
    yield store
    store.close()
    clock.release()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every thread that a test starts has ended soon after it."""
    before = set(threading.enumerate())
    yield
    _nothing_left(request, "threads", lambda: [*filter(_ours, {*threading.enumerate()} - before)])


def _ours(thread: threading.Thread) -> bool:
    """Whether we answer for it: not for the daemons of other libraries, except for those of our pools."""
    return not thread.daemon or thread.name.startswith(("pgcron", "pool-"))


def _nothing_left(request: pytest.FixtureRequest, what: str, find: Callable[[], list[Any]]) -> None:
    if request.node.get_closest_marker("leaks_allowed"):
        return
    try:
        eventually(lambda: not find(), within=5)
    except pytest.fail.Exception:
        pytest.fail(
            f"the test left {what} behind: {find()}. Close them, or say why not with"
            " @pytest.mark.leaks_allowed(reason)",
            pytrace=False,
        )
