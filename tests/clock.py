"""Clock for tests of both stores. It stands still until a test moves it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that stands still. The memory store calls it, and a database can be bound to it."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now
        self._follower: psycopg.Connection[Any] | None = None

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> datetime:
        """Move the clock by `seconds`, backwards if negative. Return the new time."""
        self.now += timedelta(seconds=seconds)
        self._update_database()
        return self.now

    def rule(self, url: str) -> None:
        """Replace the database's pgcron.clock() by this clock, until `release`."""
        self._follower = psycopg.connect(url, autocommit=True)
        self._follower.execute(
            """
            create table public.test_moment (now timestamptz not null);
            grant select on public.test_moment to public;
            insert into public.test_moment values ('2000-01-01');
            create or replace function pgcron.clock() returns timestamptz
                language sql stable parallel safe
                set search_path = pg_catalog, pg_temp
                as 'select now from public.test_moment';
            """
        )
        self._update_database()

    def release(self) -> None:
        if self._follower is not None:
            self._follower.close()

    def _update_database(self) -> None:
        if self._follower is not None:
            self._follower.execute("update public.test_moment set now = %s", [self.now])
