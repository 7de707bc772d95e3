"""Constraints of the table of jobs, which apply to every role that writes it."""

from typing import Any

import psycopg
import pytest
from psycopg import sql

RUNNING = "state = 'running', claim = gen_random_uuid(), worker = gen_random_uuid(), claimed_at = now(), attempt = 1"


@pytest.fixture
def conn(pg_url: str) -> Any:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("insert into pgcron.jobs (task) values ('add')")
        yield conn


def write(conn: Any, change: str) -> int:
    """Update the only job."""
    return int(conn.execute(sql.SQL("update pgcron.jobs set {}").format(sql.SQL(change))).rowcount)


@pytest.mark.parametrize(
    "change",
    [
        "task = ''",
        "task = repeat('x', 201)",
        "queue = ''",
        "queue = repeat('x', 101)",
        "args = '7'",
        "args = 'null'",
        "headers = '[]'",
        """headers = '{"a": 1}'""",
        """headers = '{"a": {"b": "c"}}'""",
        "errors = '{}'",
        "execute_after = '1999-12-31'",
        "execute_after = 'infinity'",
        "crashes = -1",
        "max_crashes = 0",
    ],
)
def test_a_value_that_no_job_may_have_is_refused(conn: Any, change: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        write(conn, change)


@pytest.mark.parametrize(
    "change",
    [
        "state = 'done'",
        "state = 'running'",
        "claim = gen_random_uuid()",
        "worker = gen_random_uuid()",
        "claimed_at = now()",
        "attempt = -1",
        "attempt = 5",
        "max_attempts = 0",
        RUNNING + ", claim = null",
        RUNNING + ", worker = null",
        RUNNING + ", claimed_at = null",
        RUNNING + ", attempt = 0",
        RUNNING + ", attempt = 6",
    ],
)
def test_a_state_that_contradicts_the_rest_of_the_row_is_refused(conn: Any, change: str) -> None:
    # The last assignment to a column is used: SQL accepts only one.
    columns = dict(part.split(" = ", 1) for part in change.split(", "))

    with pytest.raises(psycopg.errors.CheckViolation):
        write(conn, ", ".join(map(" = ".join, columns.items())))


@pytest.mark.parametrize("change", [RUNNING, RUNNING.replace("attempt = 1", "attempt = 5"), "attempt = 4"])
def test_what_a_claim_and_a_retry_write_is_accepted(conn: Any, change: str) -> None:
    assert write(conn, change) == 1
