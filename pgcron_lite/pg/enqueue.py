"""Enqueueing in a transaction of our own. For the caller's transaction see `caller_transaction`."""

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

# A ring commits under a lock that the whole server shares: a producer rings at most once in this many seconds, and a
# worker that was woken looks again after it.
RING_WINDOW = 0.025
# How long none is tried after one has failed.
RING_PAUSE = 1.0
# From this many jobs on COPY is faster.
COPIES_FROM = 200
# How often ids are drawn anew for one call, each of which is free when it is drawn.
MAX_DRAWS = 10
# How long a producer waits for a server that is silent, before it tries once more with a new connection. Both tries
# and the connecting between them fit into the 30 s after which web servers end a request. See `bounded_connection` for
# the others.
SILENT_SECONDS = 10.0


class Enqueueing(Statements):
    """The verb of producers, and the doorbell."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stock = IdStock(lambda: self.generation)
        self._ring_again_at = 0.0

    def enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        """Insert `jobs` in a transaction of our own and return their ids; workers are told after the commit."""
        if not jobs:
            return []
        limit = bounded_connection.lower(SILENT_SECONDS)
        try:
            return self._enqueue(jobs)
        finally:
            bounded_connection.restore(limit)

    def _enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        ids = self._stock.take(len(jobs), self._draw)
        # Identifies the rows of this call, also in history. It is not returned.
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
        """Insert `jobs` under `ids`. False, `IdTaken` or `IdHeld` if one of these may not be used: no job is stored."""
        try:
            if len(jobs) < COPIES_FROM:
                return self._insert(ids, jobs, nonce)
            is_in = self._copy(ids, jobs, nonce)
        except IdHeld:
            raise
        except DatabaseUnavailable:
            # Either the connection was stale, or the reply to our commit was lost.
            is_in = self._insert_again(ids, jobs, nonce)
        self.ring()
        return is_in

    def ring(self) -> None:
        """Wake the workers, unless we rang just now. Never raises: they also look by themselves."""
        if not self._may_ring():
            return
        try:
            self._run(_RING, {})
        except PgCronError as error:
            self._rang_in_vain(error)

    def _may_ring(self) -> bool:
        """Return True if the bell may be rung now. The caller then has to ring it."""
        now = monotonic()
        if not self.rings or now < self._ring_again_at:
            return False
        self._ring_again_at = now + RING_WINDOW
        return True

    def _rang_in_vain(self, error: Exception) -> None:
        self._ring_again_at = monotonic() + RING_PAUSE
        logger.debug("the doorbell does not work: %s", error)

    def _insert(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        if len(jobs) == 1 and self._may_ring():
            # Behind the commit, in a transaction of its own: a full notify queue must not undo what was enqueued, and
            # the lock of all notices is not held while the disk is waited for.
            with self.pool.take() as connection:
                count, trouble = connection.run_then(*_insertion(connection, ids, jobs, nonce), _RING)
            if trouble is not None:
                self._rang_in_vain(trouble)
            return count == 1
        with self.pool.take() as connection:
            count = connection.run(*_insertion(connection, ids, jobs, nonce))
        # The commit may have taken longer than those who were woken look again.
        self.ring()
        return count == len(jobs)

    def _copy(self, ids: Sequence[int], jobs: Sequence[NewJob], nonce: int) -> bool:
        # COPY takes a quarter of the time of an insert from arrays.
        with self.pool.take() as connection:
            now = connection.rows("select pgcron.clock() as now")[0].now
            # It cannot come late, as an insert can: its commit is a message of its own, which is sent when the server
            # has confirmed the rows.
            connection.copy(_COPY, lambda encoding: records(ids, jobs, nonce, now, encoding))
        return True

    def notify(self, channel: str) -> None:
        """Send an empty notice: how a listener finds out whether it can be heard."""
        with self.pool.take() as connection:
            # Asking for the usage also frees a queue that stays full after its cause is gone.
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
        """Insert after a first try that may have been committed. False if `ids` are another's."""
        # The first try wrote all of its rows or none. The look comes after the insert, because the insert waits for a
        # first try that is still under way on the server. A row that is there is ours only if it has our nonce: after
        # a failover ids may have been drawn twice.
        lost = self.pool.lost()
        with self.pool.take() as connection:
            if lost:
                # The network may still hold back bytes of the first try. Whoever would get them is ended, before it
                # begins a statement, even if it is frozen: a signal comes before everything else.
                connection.rows(_END_BACKENDS, {"pids": [b.pid for b in lost], "begun": [b.begun for b in lost]})
            with connection.transaction() as conn:
                rows = _columns(ids, jobs, nonce)
                added = conn.execute(in_schema(_INSERT + " on conflict (id) do nothing", self.schema), rows).rowcount
                if added < len(jobs):
                    # Nothing stays of what was added beside rows that were there.
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
                # Ended while it waited for a standby, the first try shows its rows before they are replicated. A commit
                # of ours waits for that.
                connection.rows("select pg_logical_emit_message(true, 'pgcron', '')")
            return bool(ours)

    def _draw(self, count: int) -> list[int]:
        """Draw ids that are in use neither by living jobs nor in history."""
        return self._drawn("select unnest(pgcron.draw_ids(%(count)s::int)) as id", count)

    def _draw_anew(self, taken: Sequence[int], why: str) -> list[int]:
        """Ids that are free, after others were not; what is in stock comes from the same source as those."""
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


# Why ids could not be used, for the log.
BEHIND = (
    "%s in use by other jobs, or not drawn yet, so the sequence of ids is behind, as after a failover or a restore;"
    " enqueueing under %s instead. Workers move the sequence on; to do it now, run: pgcron migrate"
)
HELD = (
    "%s in use by a job that a transaction has inserted which has not ended; enqueueing under %s instead. Either the"
    " sequence of ids is behind, or a role inserts jobs under ids that others have drawn"
)

# A notice may be lost when the server crashes, so the commit does not wait for the disk. Nor does it wait long for the
# lock of all notices, which is held while the server waits for a synchronous standby.
_RING: LiteralString = """
    select set_config('synchronous_commit', 'off', true) as commit, set_config('lock_timeout', '250', true) as lock,
           pgcron.ring()
"""

_END_BACKENDS: LiteralString = """
    select pg_terminate_backend(a.pid)
    from unnest(%(pids)s::int[], %(begun)s::text[]) as lost (pid, begun)
    join pg_stat_activity as a on a.pid = lost.pid and a.backend_start::text = lost.begun
    -- One that waits for a standby has its statement behind it.
    where a.wait_event is distinct from 'SyncRep'
"""

# One job, the usual case, without the arrays.
_INSERT_ONE: LiteralString = """
    insert into pgcron.jobs (id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes,
                             nonce)
    values (%(id)s, %(task)s, %(queue)s, %(priority)s, %(args)s::json, %(headers)s::jsonb, %(tags)s::text[],
            coalesce(%(at)s::timestamptz, pgcron.clock() + make_interval(secs => %(delay)s::float8)),
            %(max_attempts)s, %(max_crashes)s, %(nonce)s)
"""

# All of them or none, and not into history's ids: what a network holds back for long may arrive through a pooler when
# the same job, inserted again by a producer that heard no reply, has run and ended. (The statement looks as of its
# begin: should the job end between that and the insert of the row, there is a second one after all. In between are
# microseconds. Without a pooler there is no such moment, see `_END_BACKENDS`.)
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
    if len(jobs) == 1 and connection.is_ours:
        return _INSERT_ONE, _row(ids[0], jobs[0], nonce)
    return _INSERT, _columns(ids, jobs, nonce)


class IdStock:
    """Job ids that are this process's alone. A few are kept, so that single jobs seldom ask for one.

    They are kept no longer than the connections they came by: behind another one there may be another server, whose
    sequence gives the same ids to others.
    """

    MOST = 256

    def __init__(self, generation: Callable[[], int]) -> None:
        # Changes with the connections, and what it was when the ids were drawn.
        self._generation = generation
        self._drawn_in = -1
        self._batch = 1
        self.start_over()
        _stocks.add(self)

    def start_over(self) -> None:
        """Begin with nothing, as in a forked child: the ids and the nonces are the parent's, and so may be the lock."""
        self._lock = threading.Lock()
        self._ids: list[int] = []
        # A process counts from a number that no other is near.
        self.nonces = itertools.count(secrets.randbits(62))

    def take(self, count: int, draw: Callable[[int], list[int]]) -> list[int]:
        """`count` fresh ids, from stock or by `draw(how_many)`."""
        # Not for longer than the server may be silent: of many threads each would wait for all before it.
        if not self._lock.acquire(timeout=SILENT_SECONDS):
            raise DatabaseUnavailable(
                f"no answer for {SILENT_SECONDS:g} s to another thread of this process, which asks for the ids of jobs"
            )
        try:
            if self._generation() != self._drawn_in:
                self._ids = []
            if len(self._ids) < count:
                self._ids += draw(max(count - len(self._ids), self._batch))
                # Doubling from one: a script that enqueues one job leaves no gap, a busy producer asks once in 256.
                self._batch = min(self._batch * 2, self.MOST)
                self._drawn_in = self._generation()
            taken, self._ids = self._ids[:count], self._ids[count:]
            return taken
        finally:
            self._lock.release()

    def empty(self) -> None:
        with self._lock:
            # Begun anew: where somebody occupies the ids that are kept, few are kept.
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
