"""Number of connections that a worker opens."""

import threading

import psycopg
import pytest

from pgcron_lite import PgCron
from pgcron_lite.worker.process import run_worker


@pytest.mark.row(65)
@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "app used before"])
def test_a_worker_whose_jobs_all_enqueue_takes_four_connections_at_most(pg_url: str, used_before: bool) -> None:
    app = PgCron("thrifty", url=pg_url, slots=8, connections=5)
    seen: list[int] = []
    together = threading.Barrier(8, timeout=30)

    @app.task
    def leaf() -> None: ...

    @app.task(max_attempts=1)
    def parent() -> None:
        together.wait()
        for _ in range(20):
            leaf.delay()
        together.wait()
        seen.append(connections(pg_url))

    if used_before:
        parent.map([()] * 8)
    else:
        other = PgCron("web", url=pg_url)
        other.task(parent.function, name=parent.name, max_attempts=1).map([()] * 8)
        other.close()

    assert run_worker(app, drain=True) == 0

    # The main one, that of the heartbeat, that of the listener, and one for enqueueing from tasks.
    assert len(seen) == 8
    assert max(seen) <= 4


def connections(url: str) -> int:
    """Return the number of our connections on the server, without this one, which has another name."""
    with psycopg.connect(url, application_name="the test", autocommit=True) as conn:
        row = conn.execute(
            """
            select count(*) from pg_stat_activity
            where datname = current_database() and application_name like 'pgcron%'
            """
        ).fetchone()
    assert row is not None
    return int(row[0])
