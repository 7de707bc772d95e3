"""Putting jobs in: in a transaction of our own. The caller's own transaction is the matter of `callers`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg

from ..clock import monotonic
from ..errors import DatabaseUnavailable, PgCronError
from ..job import NewJob
from .link import in_schema
from .prepared import array
from .records import COLUMNS, records
from .rows import as_json
from .statements import Statements

logger = logging.getLogger(__name__)

# A ring commits under a lock that the whole server shares: a producer rings at most once in this many seconds, and a
# worker that was woken looks again after it.
RING_WINDOW = 0.025
# How long none is tried after one has failed.
RING_PAUSE = 1.0
# From so many jobs on a COPY pays.
COPIES_FROM = 200


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
        ids = self._stock.take(len(jobs), self._draw)
        try:
            if len(jobs) >= COPIES_FROM:
                self._copy(ids, jobs)
                self.ring()
            else:
                self._insert(ids, jobs)
        except DatabaseUnavailable:
            # Either the connection was stale, or the reply to our commit was lost. The ids are ours alone, so asking
            # again under the same ids cannot make a second job.
            self._insert_again(ids, jobs)
            self.ring()
        return ids

    def ring(self) -> None:
        """Wake the workers, unless we rang just now. Never raises: they also look by themselves."""
        if not self._may_ring():
            return
        try:
            self._run(_RING, {})
        except PgCronError as error:
            self._rang_in_vain(error)

    def _may_ring(self) -> bool:
        """Is it time? The one who asks is the one who rings."""
        now = monotonic()
        if not self.rings or now < self._ring_again_at:
            return False
        self._ring_again_at = now + RING_WINDOW
        return True

    def _rang_in_vain(self, error: Exception) -> None:
        self._ring_again_at = monotonic() + RING_PAUSE
        logger.debug("the doorbell does not work: %s", error)

    def _insert(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> None:
        if len(jobs) == 1 and self._may_ring():
            # Behind the commit, in a transaction of its own: a full notify queue must not undo what was enqueued, and
            # the lock of all notices is not held while the disk is waited for.
            with self.links.take() as link:
                trouble = link.run_then(_INSERT_ONE, _row(ids[0], jobs[0]), _RING)
            if trouble is not None:
                self._rang_in_vain(trouble)
            return
        if len(jobs) == 1:
            self._run(_INSERT_ONE, _row(ids[0], jobs[0]))
        else:
            self._rows(_INSERT, _columns(ids, jobs))
        # The commit may have taken longer than those who were woken look again.
        self.ring()

    def _copy(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> None:
        # COPY takes a quarter of the time of an insert from arrays.
        with self.links.take() as link:
            now = link.rows("select pgcron.clock() as now")[0].now
            link.copy(_COPY, lambda encoding: records(ids, jobs, now, encoding))

    def notify(self, channel: str) -> None:
        """Send an empty notice: how a listener finds out whether it can be heard."""
        with self.links.take() as link:
            # Asking for the usage also frees a queue that stays full after its cause is gone.
            sent = link.rows(
                """
                select set_config('lock_timeout', '250', true) as lock, pg_notify(%(channel)s, '') as sent
                from (select pg_notification_queue_usage() as usage offset 0) as queue
                where queue.usage < 0.25
                """,
                {"channel": channel},
            )
        if not sent:
            raise DatabaseUnavailable("the server's notify queue is filling up: some listener does not read")

    def _insert_again(self, ids: Sequence[int], jobs: Sequence[NewJob]) -> None:
        # The first try wrote all of its rows or none. If they were committed and some have ended since, history
        # knows, and the fresh rows are undone before anybody saw them. The look comes after the insert, because the
        # insert waits for a first try that is still under way on the server.
        rows = _columns(ids, jobs)
        with self.links.take() as link, link.transaction() as conn:
            conn.execute(in_schema(_INSERT + " on conflict (id) do nothing", self.schema), rows)
            ended = conn.execute(
                in_schema("select from pgcron.history where id = any(%(ids)s) limit 1", self.schema), rows
            )
            if ended.rowcount:
                raise psycopg.Rollback

    def _draw(self, count: int) -> list[int]:
        query: LiteralString = "select nextval('pgcron.jobs_id_seq') as id from generate_series(1, %(count)s::int)"
        try:
            rows = self._tuples(query, {"count": count})
        except DatabaseUnavailable:
            rows = self._tuples(query, {"count": count})
        return [job_id for job_id, in rows]


# What is lost when the server crashes is a noise, so nobody waits for the disk; nor, for longer than this, for the lock
# of all notices, which is kept while the server waits for a synchronous standby.
_RING: LiteralString = """
    select set_config('synchronous_commit', 'off', true) as commit, set_config('lock_timeout', '250', true) as lock,
           pgcron.ring()
"""

# One job, the usual case, without the arrays.
_INSERT_ONE: LiteralString = """
    insert into pgcron.jobs (id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes,
                             created_at)
    values (%(id)s, %(task)s, %(queue)s, %(priority)s, %(args)s::json, %(headers)s::jsonb, %(tags)s::text[],
            coalesce(%(at)s::timestamptz, pgcron.clock() + make_interval(secs => %(delay)s::float8)),
            %(max_attempts)s, %(max_crashes)s, pgcron.clock())
"""

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


_COPY: LiteralString = f"copy pgcron.jobs ({COLUMNS}) from stdin (format binary)"


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


def _row(job_id: int, job: NewJob) -> dict[str, Any]:
    due = job.execute_after
    return {
        "id": job_id,
        "task": job.task,
        "queue": job.queue,
        "priority": job.priority,
        "args": job.args,
        "headers": as_json(dict(job.headers)) if job.headers else "{}",
        "tags": array(job.tags) if job.tags else "{}",
        "at": due if isinstance(due, datetime) else None,
        "delay": due.total_seconds() if isinstance(due, timedelta) else 0.0,
        "max_attempts": job.max_attempts,
        "max_crashes": job.max_crashes,
    }


def _columns(ids: Sequence[int], jobs: Sequence[NewJob]) -> dict[str, Any]:
    return {
        "ids": list(ids),
        "tasks": [j.task for j in jobs],
        "queues": [j.queue for j in jobs],
        "priorities": [j.priority for j in jobs],
        "args": [j.args for j in jobs],
        "headers": [as_json(dict(j.headers)) if j.headers else "{}" for j in jobs],
        "tags": [as_json(list(j.tags)) if j.tags else "[]" for j in jobs],
        "ats": [j.execute_after if isinstance(j.execute_after, datetime) else None for j in jobs],
        "delays": [j.execute_after.total_seconds() if isinstance(j.execute_after, timedelta) else 0.0 for j in jobs],
        "max_attempts": [j.max_attempts for j in jobs],
        "max_crashes": [j.max_crashes for j in jobs],
    }
