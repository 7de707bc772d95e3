"""Putting jobs in: in a transaction of our own. The caller's own transaction is the matter of `callers`."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg

from ..errors import DatabaseUnavailable, PgCronError
from ..job import NewJob
from .link import Params, in_schema
from .rows import as_json
from .statements import Statements

logger = logging.getLogger(__name__)

# A ring commits under a lock that the whole server shares: a producer rings at most once in this many seconds, and a
# worker that was woken looks again after it.
RING_WINDOW = 0.025
# How long a ring may wait for that lock, and how long none is tried after one has failed.
RING_PATIENCE, RING_PAUSE = 0.25, 1.0


class Enqueueing(Statements):
    """The verb of producers, and the doorbell."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stock = IdStock()
        self._ring_again_at = 0.0

    def enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        """Insert `jobs` in a transaction of our own and return their ids; workers are told after the commit."""
        if not jobs:
            return []
        rows = _columns(self._stock.take(len(jobs), self._draw), jobs)
        try:
            self._rows(_INSERT, rows)
        except DatabaseUnavailable:
            # Either the connection was stale, or the reply to our commit was lost. The ids are ours alone, so asking
            # again under the same ids cannot make a second job.
            self._insert_again(rows)
        self.ring()
        return list(rows["ids"])

    def ring(self) -> None:
        """Wake the workers, unless we rang just now. Never raises: they also look by themselves."""
        now = time.monotonic()
        if not self.rings or now < self._ring_again_at:
            return
        self._ring_again_at = now + RING_WINDOW
        try:
            # A transaction of its own, after the commit: a full notify queue must not undo what was enqueued.
            self._ring_or_leave("select pgcron.ring()")
        except PgCronError as error:
            self._ring_again_at = time.monotonic() + RING_PAUSE
            logger.debug("the doorbell does not work: %s", error)

    def notify(self, channel: str) -> None:
        """Send an empty notice: how a listener finds out whether it can be heard."""
        # Asking for the usage also frees a queue that stays full after its cause is gone.
        sent = self._ring_or_leave(
            """
            select pg_notify(%(channel)s, '')
            from (select pg_notification_queue_usage() as usage offset 0) as queue
            where queue.usage < 0.25
            """,
            {"channel": channel},
        )
        if not sent:
            raise DatabaseUnavailable("the server's notify queue is filling up: some listener does not read")

    def _ring_or_leave(self, query: LiteralString, params: Params = None) -> list[Any]:
        # Every commit with a notice takes one lock that the whole server shares, and keeps it while it waits for a
        # synchronous standby. Nobody waits for a doorbell.
        with self.links.take() as link:
            return link.rows(query, params, lock_seconds=RING_PATIENCE)

    def _insert_again(self, rows: dict[str, Any]) -> None:
        # The first try wrote all of its rows or none. If they were committed and some have ended since, history
        # knows, and the fresh rows are undone before anybody saw them. The look comes after the insert, because the
        # insert waits for a first try that is still under way on the server.
        with self.links.take() as link, link.transaction() as conn:
            conn.execute(in_schema(_INSERT + " on conflict (id) do nothing", self.schema), rows)
            ended = conn.execute(
                in_schema("select from pgcron.history where id = any(%(ids)s) limit 1", self.schema), rows
            )
            if ended.rowcount:
                raise psycopg.Rollback

    def _draw(self, count: int) -> list[int]:
        query: LiteralString = "select nextval('pgcron.jobs_id_seq') as id from generate_series(1, %(count)s)"
        try:
            rows = self._rows(query, {"count": count})
        except DatabaseUnavailable:
            rows = self._rows(query, {"count": count})
        return [row.id for row in rows]


_INSERT: LiteralString = """
    insert into pgcron.jobs (id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes,
                             created_at)
    select n.id, n.task, n.queue, n.priority, n.args, n.headers,
           coalesce((select array_agg(t.tag) from json_array_elements_text(n.tags) as t (tag)), '{}'),
           coalesce(n.at, clock.now + make_interval(secs => n.delay)),
           n.max_attempts, n.max_crashes, clock.now
    from unnest(
        %(ids)s::bigint[], %(tasks)s::text[], %(queues)s::text[], %(priorities)s::smallint[], %(args)s::json[],
        %(headers)s::jsonb[], %(tags)s::json[], %(ats)s::timestamptz[], %(delays)s::float8[],
        %(max_attempts)s::smallint[], %(max_crashes)s::smallint[]
    ) as n (id, task, queue, priority, args, headers, tags, at, delay, max_attempts, max_crashes)
    cross join (select pgcron.clock() as now) as clock
"""


class IdStock:
    """Job ids that are this process's alone. A few are kept, so that single jobs seldom ask for one."""

    MOST = 64

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ids: list[int] = []
        self._batch = 1

    def take(self, count: int, draw: Any) -> list[int]:
        """`count` fresh ids, from stock or by `draw(how_many)`."""
        if os.getpid() != self._pid:
            # A forked child has a copy of its parent's stock; using it would lose jobs to "id exists already".
            self.__init__()  # type: ignore[misc]
        with self._lock:
            if len(self._ids) < count:
                self._ids += draw(max(count - len(self._ids), self._batch))
                # Doubling from one: a script that enqueues one job leaves no gap, a busy producer asks once in 64.
                self._batch = min(self._batch * 2, self.MOST)
            taken, self._ids = self._ids[:count], self._ids[count:]
            return taken


def _columns(ids: Sequence[int], jobs: Sequence[NewJob]) -> dict[str, Any]:
    return {
        "ids": list(ids),
        "tasks": [j.task for j in jobs],
        "queues": [j.queue for j in jobs],
        "priorities": [j.priority for j in jobs],
        "args": [j.args for j in jobs],
        "headers": [as_json(dict(j.headers)) for j in jobs],
        "tags": [as_json(list(j.tags)) for j in jobs],
        "ats": [j.execute_after if isinstance(j.execute_after, datetime) else None for j in jobs],
        "delays": [j.execute_after.total_seconds() if isinstance(j.execute_after, timedelta) else 0.0 for j in jobs],
        "max_attempts": [j.max_attempts for j in jobs],
        "max_crashes": [j.max_crashes for j in jobs],
    }
