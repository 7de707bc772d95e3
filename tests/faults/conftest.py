"""Fixtures of the fault tests: a queue seen from outside, and processes to be unkind to."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import server
from workers import Audit, Queue, Workers

from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.pg.migrate import migrate
from pgcron_lite.pg.url import parse_url


@pytest.fixture
def queue(pg_url: str, tmp_path: Path) -> Iterator[Queue]:
    """The queue in this test's database."""
    queue = Queue(pg_url, tmp_path / "journal")
    yield queue
    queue.close()


@pytest.fixture
def workers(queue: Queue, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Starts worker processes. Their logs are part of a failure's report."""
    yield from _workers(queue, tmp_path, request)


@pytest.fixture
def sighup_stops_children() -> Iterator[None]:
    """Let the processes that a test starts stop at a SIGHUP, in a run under `nohup` too.

    `nohup` has it ignored, which a started program inherits; a handler it does not. So this process has one meanwhile.
    """
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def audit(queue: Queue) -> Audit:
    """Records every transition from now on."""
    return Audit(queue)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this test's own, which may be stopped and restarted as it likes. Goes when the test run goes."""
    with server(tmp_path / "postgres", max_connections="100") as own:
        migrate(parse_url(own.url, application="pgcron tests"))
        yield own


@pytest.fixture
def queue_of_its_own(own_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Queue]:
    """The queue on a server of this test's own."""
    queue = Queue(own_server.url, tmp_path / "journal")
    yield queue
    queue.close()


@pytest.fixture
def workers_of_its_own(
    queue_of_its_own: Queue, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Workers]:
    """Starts worker processes on that server."""
    yield from _workers(queue_of_its_own, tmp_path, request)


def _workers(queue: Queue, folder: Path, request: pytest.FixtureRequest) -> Iterator[Workers]:
    workers = Workers(queue, folder)
    yield workers
    workers.clean_up()
    request.node.add_report_section("teardown", "worker logs", workers.logs())
