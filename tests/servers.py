"""PostgreSQL servers for tests, which go when the test run goes, however it goes."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import running

from pgcron_lite.embedded import EmbeddedPostgres

# Data may be lost when the machine dies, not when the server does: tests that kill it see what users would.
FAST = {"fsync": "off", "full_page_writes": "off"}

# A database is three hundred files. Where others have just been deleted, as after every test, a disk's file system may
# take a quarter of a second to make them; one in memory takes ten milliseconds.
MEMORY, ROOM = Path("/dev/shm"), 4 << 30

# Resets the cluster when our end of its input closes, which the kernel does for us if we are killed.
GUARD = """
import sys
from pgcron_lite.embedded import EmbeddedPostgres
sys.stdin.read()
EmbeddedPostgres(sys.argv[1], version=int(sys.argv[2]), folder=sys.argv[3] or None).reset()
"""


class Server(EmbeddedPostgres):
    """The embedded server under a URL without options: tests append to it, and send it through poolers."""

    @property
    def url(self) -> str:
        return super().url.partition("?")[0]


def wanted_version() -> int:
    """PostgreSQL 18, or what `PGCRON_TEST_PG` says. Skips the test where there is to be none."""
    if os.environ.get("PGCRON_TEST_STORE") == "memory":
        pytest.skip("needs PostgreSQL, and PGCRON_TEST_STORE=memory says that there is none")
    return int(os.environ.get("PGCRON_TEST_PG", "18"))


@contextlib.contextmanager
def server(home: Path, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A running server in a folder of its own, with further server settings."""
    version, folder = wanted_version(), place_in_memory()
    embedded = Server(home, version=version, settings={**FAST, **settings}, folder=folder)
    with running(GUARD, embedded.home, version, folder or "", start_new_session=True) as guard:
        try:
            embedded.start()
            yield embedded
        finally:
            guard.communicate(timeout=60)
    assert guard.returncode == 0, "a server of the tests was not cleaned away"


def place_in_memory() -> Path | None:
    """A folder to be made where files lie in memory, if there is room for the servers of all processes of a run."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(MEMORY).free > ROOM:
            return MEMORY / f"pgcron-test-{secrets.token_hex(8)}"
    return None
