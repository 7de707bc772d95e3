"""Enqueueing in a separate transaction, and the doorbell. For the caller's transaction see `caller_transaction`."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg

from ..clock import monotonic
from ..errors import DatabaseRefused, DatabaseUnavailable, PgCronError
from ..job import NewJob
from . import bounded_connection
from .connection import Connection, in_schema
from .copy import COLUMNS, records
from .errors import IdHeld, IdTaken
from .pool import Statements
from .prepared import array
from .rows import as_json

logger = logging.getLogger(__name__)

# Seconds between two rings of one producer. A NOTIFY commits under one lock of the whole server. A worker that was
# woken polls again after this time, so a job that shares a ring does not wait longer.
RING_WINDOW = 0.025
# Seconds without a ring after one has failed.
RING_PAUSE = 1.0
# The number of jobs from which COPY is faster than an insert.
COPIES_FROM = 200
# How many times one call draws ids. Each id is free when it is drawn.
MAX_DRAWS = 10
# Seconds that a producer waits for a silent server before it tries once more on a new connection. Both tries, and the
# time to connect between them, fit into the 30 s after which web servers end a request. `bounded_connection` lists all
# such limits.
SILENT_SECONDS = 10.0


class Enqueueing(Statements):
    """The method of producers, and the doorbell."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stock = IdStock(lambda: self.generation)
        self._ring_again_at = 0.0

    def enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        """Insert `jobs` in a separate transaction and return their ids. Workers are woken after the commit."""
        if not jobs:
            return []
        limit = bounded_connection.lower(SILENT_SECONDS)
        try:
            return self._enqueue(jobs)
        finally:
            bounded_connection.restore(limit)

    def _enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        ids = self._stock.take(len(jobs), self._draw)
        # Identifies the rows of this call, in `jobs` and in history, if it has to be repeated.
        nonce = next(self._stock.nonces)
        for _ in range(MAX_DRAWS):
            try:
                if self._put_in(ids, jobs, nonce):
                    return ids
                why = BEHIND
            except IdTaken:
                why = BEHIND
            except IdHeld:
                why = HELD
            ids = self._draw_anew(ids, why)
        raise DatabaseRefused(
            f"ids that were free were taken {MAX_DRAWS} times before a job could be stored under one of them. Is the"
            " sequence pgcron.jobs_id_seq being set back?"
        )

    def _put_in(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        """Insert `jobs` under `ids`: all of them, or none if one of the ids cannot be used.

        In that case return False, or raise `IdTaken` or `IdHeld`.
        """
        try:
            if len(jobs) < COPIES_FROM:
                return self._insert(ids, jobs, nonce)
            is_in = self._copy(ids, jobs, nonce)
        except IdHeld:
            raise
        except DatabaseUnavailable:
            # Either the connection was stale and nothing is stored, or the reply to our commit was lost.
            is_in = self._insert_again(ids, jobs, nonce)
        self.ring()
        return is_in

    def ring(self) -> None:
        """Wake the workers, unless this producer did so just now. Never raises: workers also poll."""
        if not self._may_ring():
            return
        try:
            self._run(_RING, {})
        except PgCronError as error:
            self._ring_failed(error)

    def _may_ring(self) -> bool:
        """Return True if the doorbell may be rung now. The caller then has to ring it."""
        now = monotonic()
        if not self.rings or now < self._ring_again_at:
            return False
        self._ring_again_at = now + RING_WINDOW
        return True

    def _ring_failed(self, error: Exception) -> None:
        self._ring_again_at = monotonic() + RING_PAUSE
        logger.debug("the doorbell does not work: %s", error)

    def _insert(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        if len(jobs) == 1 and self._may_ring():
            # Ring after the commit, in a separate transaction: a full notification queue must not roll back the jobs,
            # and the lock for all notifications must not be held while the commit is written to disk.
            with self.pool.take() as connection:
                count, error = connection.run_then(*_insertion(connection, ids, jobs, nonce), _RING)
            if error is not None:
                self._ring_failed(error)
            return count == 1
        with self.pool.take() as connection:
            count = connection.run(*_insertion(connection, ids, jobs, nonce))
        # Ring after the commit: it may have taken longer than `RING_WINDOW`, so that woken workers polled before it.
        self.ring()
        return count == len(jobs)

    def _copy(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        # COPY takes a quarter of the time of an insert from arrays.
        with self.pool.take() as connection:
            now = connection.rows("select pgcron.clock() as now")[0].now
            # Unlike an insert, a COPY cannot be committed after the connection broke: its commit is a separate message,
            # which is sent only after the server has confirmed the rows.
            connection.copy(_COPY, lambda encoding: records(ids, jobs, nonce, now, encoding))
        return True

    def notify(self, channel: str) -> None:
        """Send an empty notification on `channel`, with which a listener tests that it receives them."""
        with self.pool.take() as connection:
            # Reading the usage also frees a queue that would stay full after the listener that blocked it is gone.
            sent = connection.rows(
                """
                select set_config('lock_timeout', '250', true) as lock, pg_notify(%(channel)s, '') as sent
                from (select pg_notification_queue_usage() as usage offset 0) as queue
                where queue.usage < 0.25
                """,
                {"channel": channel},
            )
        if not sent:
            raise DatabaseUnavailable("the server's notify queue is filling up: some listener does not read")

    def _insert_again(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        """Insert after a first try that may have been committed. Return False if other jobs have these ids."""
        # The first try wrote all of its rows or none. The rows are checked after the insert, not before, because the
        # insert waits for a first try that is still running on the server. A row that exists is ours only if it has
        # our nonce: after a failover, ids may have been drawn twice.
        lost = self.pool.lost()
        with self.pool.take() as connection:
            if lost:
                # Bytes of the first try may still be delayed in the network. Terminate the backends that would receive
                # them. That works even for a frozen backend: it handles the signal before it begins a statement.
                connection.rows(_END_BACKENDS, {"pids": [b.pid for b in lost], "begun": [b.begun for b in lost]})
            with connection.transaction() as conn:
                rows = _columns(ids, jobs, nonce)
                added = conn.execute(in_schema(_INSERT + " on conflict (id) do nothing", self.schema), rows).rowcount
                if added < len(jobs):
                    # Some ids exist: keep none of the rows that were added beside them.
                    raise psycopg.Rollback
            if added == len(jobs):
                return True
            ours = connection.rows(
                """
                select j.id from pgcron.jobs as j where j.id = any(%(ids)s) and j.nonce = %(nonce)s
                union all
                select h.id from pgcron.history as h where h.id = any(%(ids)s) and h.nonce = %(nonce)s
                limit 1
                """,
                {"ids": list(ids), "nonce": nonce},
            )
            if ours:
                # If the first try was terminated while it waited for a synchronous standby, its rows are visible before
                # they are replicated. This commit waits for the standby in its place.
                connection.rows("select pg_logical_emit_message(true, 'pgcron', '')")
            return bool(ours)

    def _draw(self, count: int) -> list[int]:
        """Draw ids that are used neither by live jobs nor in history."""
        return self._drawn("select unnest(pgcron.draw_ids(%(count)s::int)) as id", count)

    def _draw_anew(self, taken: Sequence[int], why: str) -> list[int]:
        """Return new ids in place of `taken`, and discard the stock, whose ids come from the same part of the sequence.

        `why` is the message to log.
        """
        self._stock.empty()
        ids = self._draw(len(taken))
        which = f"the id {taken[0]} is" if len(taken) == 1 else f"of the ids {taken[0]} to {taken[-1]} some are"
        logger.error(why, which, ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}")
        return ids

    def _drawn(self, query: LiteralString, count: int) -> list[int]:
        try:
            rows = self._tuples(query, {"count": count})
        except DatabaseUnavailable:
            rows = self._tuples(query, {"count": count})
        return [job_id for job_id, in rows]


# Log messages for ids that could not be used.
BEHIND = (
    "%s in use by other jobs, or not drawn yet, so the sequence of ids is behind, as after a failover or a restore;"
    " enqueueing under %s instead. Workers move the sequence forward; to do it now, run: pgcron migrate"
)
HELD = (
    "%s in use by a job that a transaction has inserted which has not ended; enqueueing under %s instead. Either the"
    " sequence of ids is behind, or a role inserts jobs under ids that others have drawn"
)

# A notification may be lost in a crash of the server, so its commit does not wait for the disk. It also waits only
# briefly for the lock for all notifications, which is held while the server waits for a synchronous standby.
_RING: LiteralString = """
    select set_config('synchronous_commit', 'off', true) as commit, set_config('lock_timeout', '250', true) as lock,
           pgcron.ring()
"""

_END_BACKENDS: LiteralString = """
    select pg_terminate_backend(a.pid)
    from unnest(%(pids)s::int[], %(begun)s::text[]) as lost (pid, begun)
    join pg_stat_activity as a on a.pid = lost.pid and a.backend_start::text = lost.begun
    -- A backend that waits for a standby has finished its statement already.
    where a.wait_event is distinct from 'SyncRep'
"""

# The enqueue.
#
# It must store all jobs or none, and store each job once, even if the first try was committed and its reply lost. So
# the ids are drawn before, and every row carries the nonce of its call. A repeat uses the same ids: the primary key
# refuses rows that exist, and the nonce tells whether they are ours. See `_insert_again`.
#
# It must not be stored again after the job has ended. A network may hold a statement back for long; through a pooler it
# may arrive after the job was inserted again by a producer that received no reply, has run, and was moved to history.
# So `_INSERT` inserts nothing if history has one of the ids. One gap of microseconds remains: the statement reads
# history as of its beginning, and a job that ends between then and the insert of the row is stored a second time. On a
# direct connection this cannot happen, because the backend is terminated first, see `_END_BACKENDS`.
#
# Three forms: `_INSERT_ONE` for one job, the usual case, without arrays and, on a direct connection, without the look
# into history; `_INSERT` for several jobs, or through a pooler, which reads history by its primary key; and `_COPY` for
# many jobs, which takes a quarter of the time of an insert from arrays.
_INSERT_ONE: LiteralString = """
    insert into pgcron.jobs (id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes,
                             nonce)
    values (%(id)s, %(task)s, %(queue)s, %(priority)s, %(args)s::json, %(headers)s::jsonb, %(tags)s::text[],
            coalesce(%(at)s::timestamptz, pgcron.clock() + make_interval(secs => %(delay)s::float8)),
            %(max_attempts)s, %(max_crashes)s, %(nonce)s)
"""

_INSERT: LiteralString = """
    insert into pgcron.jobs (id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes,
                             nonce)
    select n.id, n.task, n.queue, n.priority, n.args, n.headers,
           coalesce((select array_agg(t.tag) from json_array_elements_text(n.tags) as t (tag)), '{}'),
           coalesce(n.at, clock.now + make_interval(secs => n.delay)),
           n.max_attempts, n.max_crashes, %(nonce)s::bigint
    from unnest(
        %(ids)s::bigint[], %(tasks)s::text[], %(queues)s::text[], %(priorities)s::smallint[], %(args)s::json[],
        %(headers)s::jsonb[], %(tags)s::json[], %(ats)s::timestamptz[], %(delays)s::float8[],
        %(max_attempts)s::smallint[], %(max_crashes)s::smallint[]
    ) as n (id, task, queue, priority, args, headers, tags, at, delay, max_attempts, max_crashes)
    cross join (select pgcron.clock() as now) as clock
    where not exists (select from pgcron.history as h where h.id = any(%(ids)s::bigint[]))
"""


_COPY: LiteralString = f"copy pgcron.jobs ({COLUMNS}) from stdin (format binary)"


def _insertion(
    connection: Connection, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int
) -> tuple[LiteralString, Mapping[str, Any]]:
    """Return the statement that inserts `jobs` on `connection`, and its values."""
    if len(jobs) == 1 and connection.is_direct:
        return _INSERT_ONE, _row(ids[0], jobs[0], nonce)
    return _INSERT, _columns(ids, jobs, nonce)


class IdStock:
    """Stock of job ids drawn for this process, so that enqueueing a single job rarely has to draw one.

    Ids are discarded when a connection is replaced: the new one may lead to another server, whose sequence gives the
    same ids to others.
    """

    MOST = 256

    def __init__(self, generation: Callable[[], int]) -> None:
        # Returns the generation of the connections; below, the generation in which the ids were drawn.
        self._generation = generation
        self._drawn_in = -1
        self._batch = 1
        self.start_over()
        _stocks.add(self)

    def start_over(self) -> None:
        """Reset everything. In a forked child the ids and nonces belong to the parent, which may hold the lock too."""
        self._lock = threading.Lock()
        self._ids: list[int] = []
        # A random start, so that no two processes use the same numbers.
        self.nonces = itertools.count(secrets.randbits(62))

    def take(self, count: int, draw: Callable[[int], list[int]]) -> list[int]:
        """Return `count` new ids, from stock or from `draw(how_many)`."""
        # Wait no longer than the limit for a silent server. Otherwise each of many threads would wait for the limits of
        # all threads before it.
        if not self._lock.acquire(timeout=SILENT_SECONDS):
            raise DatabaseUnavailable(
                f"another thread of this process, which draws ids of jobs, has had no answer for {SILENT_SECONDS:g} s"
            )
        try:
            if self._generation() != self._drawn_in:
                self._ids = []
            if len(self._ids) < count:
                self._ids += draw(max(count - len(self._ids), self._batch))
                # Double from one: a script that enqueues one job leaves no gap; a busy producer draws once in 256 jobs.
                self._batch = min(self._batch * 2, self.MOST)
                self._drawn_in = self._generation()
            taken, self._ids = self._ids[:count], self._ids[count:]
            return taken
        finally:
            self._lock.release()

    def empty(self) -> None:
        """Discard the stock."""
        with self._lock:
            # Start again with small batches: while others occupy the ids, keep few.
            self._ids, self._batch = [], 1


_stocks: weakref.WeakSet[IdStock] = weakref.WeakSet()


def _after_fork() -> None:
    for stock in list(_stocks):
        stock.start_over()


os.register_at_fork(after_in_child=_after_fork)


def _row(job_id: int, job: NewJob, nonce: int) -> dict[str, Any]:
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
        "nonce": nonce,
    }


def _columns(ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> dict[str, Any]:
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
        "nonce": nonce,
    }
