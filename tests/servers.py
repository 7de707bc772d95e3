"""PostgreSQL servers for tests, which go when the test run goes, however it goes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import running

from pgcron_lite.embedded import EmbeddedPostgres

# Data may be lost when the machine dies, not when the server does: tests that kill it see what users would.
FAST = {"fsync": "off", "full_page_writes": "off"}

# Resets the cluster when our end of its input closes, which the kernel does for us if we are killed.
GUARD = """
import sys
from pgcron_lite.embedded import EmbeddedPostgres
sys.stdin.read()
EmbeddedPostgres(sys.argv[1], version=int(sys.argv[2])).reset()
"""


def wanted_version() -> int:
    """PostgreSQL 18, or what `PGCRON_TEST_PG` says. Skips the test where there is to be none."""
    if os.environ.get("PGCRON_TEST_STORE") == "memory":
        pytest.skip("needs PostgreSQL, and PGCRON_TEST_STORE=memory says that there is none")
    return int(os.environ.get("PGCRON_TEST_PG", "18"))


@contextlib.contextmanager
def server(home: Path, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A running server in a folder of its own, with further server settings."""
    version = wanted_version()
    embedded = EmbeddedPostgres(home, version=version, settings={**FAST, **settings})
    with running(GUARD, embedded.home, version, start_new_session=True) as guard:
        try:
            embedded.start()
            yield embedded
        finally:
            guard.communicate(timeout=60)
    assert guard.returncode == 0, "a server of the tests was not cleaned away"
