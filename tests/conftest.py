"""Fixtures for the whole suite: one server per session, a fresh database per test, nothing left behind."""

import contextlib
import functools
import itertools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
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
    "test_ahead_rows", "test_benchmarks", "test_cli_crontab", "test_cli_schedules", "test_connection_rows", "test_dev",
    "test_docs", "test_embedded", "test_examples", "test_hostile_tasks", "test_logs", "test_poison_rows",
    "test_pooler_rows", "test_process_rows", "test_shell", "test_shutdown_rows", "test_storm", "test_supervisor",
    "test_time_rows",
}  # fmt: skip


# A run in the background of a script ignores Ctrl-C, and so would the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--half", type=int, choices=(1, 2), help="every second test: for two processes without xdist")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")
    if half := config.getoption("--half"):
        config.hook.pytest_deselected(items=items[2 - half :: 2])
        items[:] = items[half - 1 :: 2]


@pytest.fixture(scope="session")
def pg_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The server of this session (of this process, under xdist): PostgreSQL 18, or `PGCRON_TEST_PG`."""
    with server(tmp_path_factory.mktemp("postgres"), max_connections="100") as running_server:
        yield running_server


@pytest.fixture(autouse=True)
def nothing_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is short of processors any look may take long; claims are to be as exact as they are fast."""
    with contextlib.suppress(ImportError):
        from pgcron_lite.pg import marks

        monkeypatch.setattr(marks, "DEAR_SECONDS", math.inf)


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
        from pgcron_lite.pg.address import address
        from pgcron_lite.pg.migrate import migrate

        url = self.create()
        migrate(address(url, application="pgcron tests"))
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
def pg_url(databases: Databases, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of this test's own, with our schema."""
    yield from _lent(databases, databases.create(databases.template), request)


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
    from pgcron_lite.pg.address import address
    from pgcron_lite.pg.store import PostgresStore

    url = request.getfixturevalue("pg_url")
    clock.rule(url)
    store = PostgresStore(address(url, application="pgcron store"))
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
