"""Ticks of schedules in states that only the rows in PostgreSQL can have."""

from collections.abc import Iterator

import psycopg
import pytest

from pgcron_lite.job import NewJob
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url


@pytest.fixture
def store(pg_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"), rings=False)
    yield store
    store.close()


@pytest.mark.parametrize("verb", ["cancel", "delete", "clear"])
def test_a_cancel_is_reported_although_its_tick_cannot_be_recorded(
    store: PostgresStore, pg_url: str, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    [job_id] = store.enqueue([NewJob("note")])
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            "insert into pgcron.schedules (name, origin, app, definition) values ('nightly', 'hand', 'shop', '{}')"
        )
        conn.execute(
            """
            insert into pgcron.ticks (schedule, tick, due_at, job_id)
            values ('nightly', now() + interval '1 hour', now() + interval '1 hour', %s)
            """,
            [job_id],
        )

        with conn.transaction():
            conn.execute("lock table pgcron.ticks in access exclusive mode")
            assert getattr(store, verb)("default" if verb == "clear" else job_id)

        assert "will record later" in caplog.text
        store.watch()
        outcome = "deleted" if verb == "delete" else "cancelled"
        assert conn.execute("select outcome from pgcron.ticks").fetchall() == [(outcome,)]


def test_an_alarm_is_raised_although_overdue_ticks_cannot_be_skipped(
    store: PostgresStore, pg_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = store.enqueue([NewJob("note")] * 2)
    with psycopg.connect(pg_url, autocommit=True) as conn:
        for name, definition, job_id in zip(["sound", "edited"], ["{}", '{"start_within": "soon"}'], ids, strict=True):
            conn.execute(
                "insert into pgcron.schedules (name, origin, app, definition) values (%s, 'hand', 'shop', %s)",
                [name, definition],
            )
            conn.execute(
                """
                insert into pgcron.ticks (schedule, tick, due_at, job_id)
                values (%s, now() - interval '5 minutes', now() - interval '5 minutes', %s)
                """,
                [name, job_id],
            )

    _, alarms = store.watch()

    # The alarms are recorded in the rows, and no later call returns them.
    assert {alarm.schedule for alarm in alarms} == {"sound", "edited"}
    assert "could not skip overdue ticks" in caplog.text
