"""Operator queries and actions on jobs, queues and workers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ..errors import DatabaseRefused, PgCronError
from ..job import RUNNING_SHOWN, Job, QueueView, WorkerView
from .errors import IdTaken, JobUnfit
from .rows import as_job
from .schedules_ticks import SchedulesTicks

logger = logging.getLogger(__name__)


class Admin(SchedulesTicks):
    """The methods for operators."""

    def get(self, job_id: int) -> Job | None:
        """Return the job, live or ended, or None."""
        rows = self._rows(
            """
            select id, task, queue, priority, state, args::text as args, headers, tags, execute_after, attempt,
                   max_attempts, crashes, max_crashes, alone, claim, worker, created_at, claimed_at, errors,
                   finished_at, result::text as result
            from pgcron.all_jobs
            where id = %(id)s
            -- Two jobs may have the same id, see `retry`. Return the one that has not ended.
            order by finished_at nulls first
            limit 1
            """,
            {"id": job_id},
        )
        return as_job(rows[0]) if rows else None

    def find(
        self,
        *,
        states: Sequence[str] = (),
        task: str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        since: timedelta | None = None,
        before: int | None = None,
        limit: int = 50,
        with_payload: bool = True,
    ) -> list[Job]:
        """Return the jobs that match, newest first, at most `limit`; `before` continues below an id.

        `with_payload=False` leaves out arguments, headers and results, which may be a megabyte each.
        """
        rows = self._rows(
            """
            select id, task, queue, priority, state,
                   case when %(with_payload)s then args::text else '{}' end as args,
                   case when %(with_payload)s then headers else '{}' end as headers, tags, execute_after, attempt,
                   max_attempts, crashes, max_crashes, alone, claim, worker, created_at, claimed_at, errors,
                   finished_at, case when %(with_payload)s then result::text end as result
            from pgcron.all_jobs
            where (%(states)s::text[] is null or state = any(%(states)s))
              and (%(task)s::text is null or task = %(task)s)
              and (%(queue)s::text is null or queue = %(queue)s)
              and (%(tag)s::text is null or %(tag)s = any(tags))
              and (%(since)s::interval is null or created_at >= pgcron.clock() - %(since)s)
              and (%(before)s::bigint is null or id < %(before)s)
            order by id desc
            limit %(limit)s
            """,
            {
                "states": list(states) or None,
                "task": task,
                "queue": queue,
                "tag": tag,
                "since": since,
                "before": before,
                "limit": limit,
                "with_payload": with_payload,
            },
        )
        return [as_job(row) for row in rows]

    def cancel(self, job_id: int, reason: str = "cancelled by hand") -> bool:
        """Cancel a job that has not begun. Return False if it is running, has ended, or is unknown."""
        rows = self._rows(
            """
            with waiting as (
                delete from pgcron.jobs as j
                where j.id = %(id)s and j.state = 'queued'
                returning j.*
            )
            insert into pgcron.history (
                id, task, queue, priority, state, args, headers, tags, execute_after, attempt, max_attempts, crashes,
                max_crashes, claimed_at, errors, created_at, finished_at, nonce
            )
            select h.history_id, w.task, w.queue, w.priority, 'cancelled', w.args, h.history_headers, w.tags,
                   w.execute_after,
                   w.attempt, w.max_attempts, w.crashes, w.max_crashes, w.claimed_at,
                   w.errors || jsonb_build_object(
                       'attempt', w.attempt, 'at', pgcron.clock(), 'error', %(reason)s::text
                   ),
                   w.created_at, pgcron.clock(), w.nonce
            from waiting as w
            cross join lateral pgcron.into_history(w.id, null, w.headers) as h
            returning id
            """,
            {"id": job_id, "reason": reason},
        )
        self._call_off(rows)
        return bool(rows)

    def retry(self, job_id: int) -> bool:
        """Queue a failed or cancelled job again, due now, under its own id and with all its attempts."""
        try:
            rows = self._rows(
                """
                with ended as (
                    delete from pgcron.history as h
                    where h.id = %(id)s and h.state in ('failed', 'cancelled')
                    returning h.*
                ),
                reopened as (
                    -- If it is the run of a tick, it becomes a manual run, which no policy skips and which waits for
                    -- its turn. A job created after the run had ended is another job.
                    update pgcron.ticks as t
                    set kind = 'manual', due_at = pgcron.clock(), late_at = t.late_at + (pgcron.clock() - t.due_at),
                        started_at = null, finished_at = null, outcome = null, reason = null
                    from ended as e
                    where t.job_id = e.id and (t.finished_at is null or e.created_at <= t.finished_at)
                )
                insert into pgcron.jobs (
                    id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes, errors,
                    created_at, nonce
                )
                select e.id, e.task, e.queue,
                       -- Fit it into the bounds of the table: the job may have ended before there were bounds.
                       greatest(-100, least(100, e.priority)), e.args, e.headers, e.tags, pgcron.clock(),
                       e.max_attempts, e.max_crashes, e.errors, e.created_at, e.nonce
                from ended as e
                returning id
                """,
                {"id": job_id},
            )
        except IdTaken as error:
            raise DatabaseRefused(
                f"job {job_id} cannot be retried now: another job that has not ended has the same id, as ids were given"
                f" out twice after a failover or a restore. Retry it when that one has ended: pgcron jobs show {job_id}"
            ) from error
        except JobUnfit as error:
            raise DatabaseRefused(
                f"job {job_id} cannot be retried: {error.reason}. It was stored before there was such a limit, and"
                " stays in history. To run its task again, enqueue a new job"
            ) from error
        return bool(rows)

    def delete(self, job_id: int) -> bool:
        """Delete a job and everything about it. Return False if it is running or unknown."""
        # Two jobs may have the same id, see `retry`. As everywhere, the id means the one that has not ended.
        rows = self._rows(
            """
            with live as (
                delete from pgcron.jobs where id = %(id)s and state = 'queued' returning id
            ),
            ended as (
                delete from pgcron.history
                where id = %(id)s and not exists (select from pgcron.jobs as j where j.id = history.id)
                returning id
            )
            select id from live union all select id from ended
            """,
            {"id": job_id},
        )
        self._call_off(rows)
        return bool(rows)

    def clear(self, queue: str, limit: int = 1000) -> int:
        """Cancel up to `limit` waiting jobs of a queue. Return their number; call again until it is 0."""
        rows = self._rows(
            """
            with waiting as (
                delete from pgcron.jobs as j
                where j.id = any(array(
                    select w.id
                    from pgcron.jobs as w
                    where w.queue = %(queue)s and w.state = 'queued'
                    order by w.id
                    limit %(limit)s
                    for update skip locked
                ))
                returning j.*
            )
            insert into pgcron.history (
                id, task, queue, priority, state, args, headers, tags, execute_after, attempt, max_attempts, crashes,
                max_crashes, claimed_at, errors, created_at, finished_at, nonce
            )
            select h.history_id, w.task, w.queue, w.priority, 'cancelled', w.args, h.history_headers, w.tags,
                   w.execute_after,
                   w.attempt, w.max_attempts, w.crashes, w.max_crashes, w.claimed_at,
                   w.errors || jsonb_build_object('attempt', w.attempt, 'at', pgcron.clock(), 'error', 'queue cleared'),
                   w.created_at, pgcron.clock(), w.nonce
            from waiting as w
            cross join lateral pgcron.into_history(w.id, null, w.headers) as h
            returning id
            """,
            {"queue": queue, "limit": limit},
        )
        self._call_off(rows)
        return len(rows)

    def pause(self, queue: str) -> None:
        """Stop claims from `queue` until it is resumed. Jobs can still be enqueued, and running ones finish."""
        self._rows(
            """
            insert into pgcron.queues (name, paused_at) values (%(queue)s, pgcron.clock())
            on conflict (name) do update set paused_at = coalesce(queues.paused_at, excluded.paused_at)
            """,
            {"queue": queue},
        )

    def resume(self, queue: str) -> bool:
        """Let workers claim from `queue` again. Return False if it was not paused."""
        rows = self._rows(
            "delete from pgcron.queues where name = %(queue)s and paused_at is not null returning name",
            {"queue": queue},
        )
        return bool(rows)

    def queues(self) -> list[QueueView]:
        """Return every queue that has live jobs or is paused, with the numbers of its jobs."""
        rows = self._rows(
            """
            with live as (
                select j.queue,
                       count(*) filter (where j.state = 'queued' and j.execute_after <= pgcron.clock()) as due,
                       count(*) filter (where j.state = 'queued' and j.execute_after > pgcron.clock()) as deferred,
                       count(*) filter (where j.state = 'running') as running,
                       min(j.execute_after) filter (
                           where j.state = 'queued' and j.execute_after <= pgcron.clock()
                       ) as oldest
                from pgcron.jobs as j
                group by j.queue
            )
            select coalesce(l.queue, q.name) as name,
                   coalesce(l.due, 0) as due,
                   coalesce(l.deferred, 0) as deferred,
                   coalesce(l.running, 0) as running,
                   coalesce(extract(epoch from pgcron.clock() - l.oldest), 0)::float8 as oldest_seconds,
                   q.paused_at
            from live as l
            full join pgcron.queues as q on q.name = l.queue
            order by name
            """
        )
        return [
            QueueView(r.name, r.due, r.deferred, r.running, max(0.0, r.oldest_seconds), r.paused_at) for r in rows
        ]

    def workers(self) -> list[WorkerView]:
        """Return every worker that has not left or been declared dead, with its longest-running jobs."""
        rows = self._rows(
            """
            select w.id, w.host, w.pid, w.version, w.queues, w.slots, w.mode, w.running, w.stopping,
                   w.started_at, w.beat_at, w.idle_loop,
                   extract(epoch from pgcron.clock() - w.beat_at)::float8 as silent_seconds,
                   j.ids, j.tasks
            from pgcron.workers as w
            cross join lateral (
                select coalesce(array_agg(r.id order by r.claimed_at, r.id), '{}') as ids,
                       coalesce(array_agg(r.task::text order by r.claimed_at, r.id), '{}') as tasks
                from (
                    select h.id, h.task, h.claimed_at
                    from pgcron.jobs as h
                    where h.state = 'running' and h.worker = w.id
                    order by h.claimed_at, h.id
                    limit %(shown)s
                ) as r
            ) as j
            order by w.started_at
            """,
            {"shown": RUNNING_SHOWN},
        )
        return [
            WorkerView(
                id=r.id,
                host=r.host,
                pid=r.pid,
                version=r.version,
                queues=tuple(r.queues),
                slots=r.slots,
                mode=r.mode,
                running=r.running,
                stopping=r.stopping,
                started_at=r.started_at,
                silent_seconds=max(0.0, r.silent_seconds),
                idle_loop=r.idle_loop,
                jobs=tuple(zip(r.ids, r.tasks, strict=True)),
            )
            for r in rows
        ]

    def waiting_tasks(self, queues: Sequence[str] = ("*",)) -> dict[str, int]:
        """Return the number of due jobs of each task, to find tasks that no worker knows."""
        rows = self._rows(
            """
            select j.task, count(*) as due
            from pgcron.jobs as j
            where j.state = 'queued' and j.execute_after <= pgcron.clock()
              and (j.queue = any(%(queues)s) or '*' = any(%(queues)s))
            group by j.task
            """,
            {"queues": list(queues)},
        )
        return {row.task: row.due for row in rows}

    def facts(self) -> dict[str, str]:
        """Return the facts recorded about this database, such as its environment."""
        return {row.name: row.value for row in self._rows("select name, value from pgcron.facts")}

    def note_fact(self, name: str, value: str) -> None:
        """Record a fact about this database, or replace it."""
        self._rows(
            """
            insert into pgcron.facts (name, value) values (%(name)s, %(value)s)
            on conflict (name) do update set value = excluded.value
            """,
            {"name": name, "value": value},
        )

    def server(self) -> dict[str, Any]:
        """Return what a worker logs and checks about the server when it starts."""
        row = self._rows(
            """
            select current_setting('server_version') as version, current_database() as database,
                   current_setting('max_connections')::int as max_connections
            """
        )[0]
        return {"version": row.version, "database": row.database, "max_connections": row.max_connections}

    def _call_off(self, rows: Sequence[Any]) -> None:
        """Record with their ticks that these planned runs will not begin. `watch` would do that later."""
        # The end of a run that has begun, such as one that waits for its next attempt, is recorded by a worker, which
        # also informs its monitor.
        if not rows:
            return
        ids = [row.id for row in rows]
        try:
            self.close_ticks(ids, unbegun=True)
            self.release(ids)
        except PgCronError as error:
            # The caller's change is committed and must not be repeated; only this record is delayed.
            logger.warning("workers will record later which runs of schedules were cancelled: %s", error)
