"""The operator's desk: looking at jobs, queues and workers, and the few things one does to them by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ..job import Job, QueueView, WorkerView
from .rows import as_job
from .statements import Statements


class Desk(Statements):
    """The verbs of people."""

    def get(self, job_id: int) -> Job | None:
        """The job, live or ended."""
        rows = self._rows(
            """
            select id, task, queue, priority, state, args::text as args, headers, tags, execute_after, attempt,
                   max_attempts, crashes, max_crashes, alone, claim, worker, created_at, claimed_at, errors,
                   finished_at, result::text as result
            from pgcron.all_jobs
            where id = %(id)s
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
    ) -> list[Job]:
        """The newest jobs that fit, up to `limit`; `before` continues below an id."""
        rows = self._rows(
            """
            select id, task, queue, priority, state, args::text as args, headers, tags, execute_after, attempt,
                   max_attempts, crashes, max_crashes, alone, claim, worker, created_at, claimed_at, errors,
                   finished_at, result::text as result
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
            },
        )
        return [as_job(row) for row in rows]

    def cancel(self, job_id: int, reason: str = "cancelled by hand") -> bool:
        """End a job that has not begun. False if it is running, ended, or unknown."""
        rows = self._rows(
            """
            with waiting as (
                delete from pgcron.jobs as j
                where j.id = %(id)s and j.state = 'queued'
                returning j.*
            )
            insert into pgcron.history (
                id, task, queue, priority, state, args, headers, tags, execute_after, attempt, max_attempts, crashes,
                max_crashes, claimed_at, errors, created_at, finished_at
            )
            select w.id, w.task, w.queue, w.priority, 'cancelled', w.args, w.headers, w.tags, w.execute_after,
                   w.attempt, w.max_attempts, w.crashes, w.max_crashes, w.claimed_at,
                   w.errors || jsonb_build_object(
                       'attempt', w.attempt, 'at', pgcron.clock(), 'error', %(reason)s::text
                   ),
                   w.created_at, pgcron.clock()
            from waiting as w
            returning id
            """,
            {"id": job_id, "reason": reason},
        )
        return bool(rows)

    def retry(self, job_id: int) -> bool:
        """Queue a failed or cancelled job again, due now, under its own id and with all its attempts."""
        rows = self._rows(
            """
            with ended as (
                delete from pgcron.history as h
                where h.id = %(id)s and h.state in ('failed', 'cancelled')
                returning h.*
            )
            insert into pgcron.jobs (
                id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes, errors,
                created_at
            )
            select e.id, e.task, e.queue, e.priority, e.args, e.headers, e.tags, pgcron.clock(), e.max_attempts,
                   e.max_crashes, e.errors, e.created_at
            from ended as e
            returning id
            """,
            {"id": job_id},
        )
        return bool(rows)

    def delete(self, job_id: int) -> bool:
        """Remove a job without a trace, unless it is running."""
        rows = self._rows(
            """
            with live as (
                delete from pgcron.jobs where id = %(id)s and state = 'queued' returning id
            ),
            ended as (
                delete from pgcron.history where id = %(id)s returning id
            )
            select id from live union all select id from ended
            """,
            {"id": job_id},
        )
        return bool(rows)

    def clear(self, queue: str, limit: int = 1000) -> int:
        """Cancel up to `limit` waiting jobs of a queue. Returns how many; call again until it is 0."""
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
                max_crashes, claimed_at, errors, created_at, finished_at
            )
            select w.id, w.task, w.queue, w.priority, 'cancelled', w.args, w.headers, w.tags, w.execute_after,
                   w.attempt, w.max_attempts, w.crashes, w.max_crashes, w.claimed_at,
                   w.errors || jsonb_build_object('attempt', w.attempt, 'at', pgcron.clock(), 'error', 'queue cleared'),
                   w.created_at, pgcron.clock()
            from waiting as w
            returning id
            """,
            {"queue": queue, "limit": limit},
        )
        return len(rows)

    def pause(self, queue: str) -> None:
        """No worker claims from `queue` until it is resumed; jobs keep coming in and running ones finish."""
        self._rows(
            """
            insert into pgcron.queues (name, paused_at) values (%(queue)s, pgcron.clock())
            on conflict (name) do update set paused_at = coalesce(queues.paused_at, excluded.paused_at)
            """,
            {"queue": queue},
        )

    def resume(self, queue: str) -> bool:
        """Let workers claim from `queue` again. False if it was not paused."""
        rows = self._rows(
            "delete from pgcron.queues where name = %(queue)s and paused_at is not null returning name",
            {"queue": queue},
        )
        return bool(rows)

    def queues(self) -> list[QueueView]:
        """Every queue that has live jobs or is paused, and how it stands."""
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
        """Every worker that has not left and has not been buried."""
        rows = self._rows(
            """
            select w.id, w.host, w.pid, w.version, w.queues, w.slots, w.mode, w.running, w.stopping,
                   w.started_at, w.beat_at, w.idle_loop,
                   extract(epoch from pgcron.clock() - w.beat_at)::float8 as silent_seconds
            from pgcron.workers as w
            order by w.started_at
            """
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
            )
            for r in rows
        ]

    def waiting_tasks(self, queues: Sequence[str] = ("*",)) -> dict[str, int]:
        """How many jobs of each task are due: to find those that no worker knows."""
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
        """What is written down about this database."""
        return {row.name: row.value for row in self._rows("select name, value from pgcron.facts")}

    def note_fact(self, name: str, value: str) -> None:
        self._rows(
            """
            insert into pgcron.facts (name, value) values (%(name)s, %(value)s)
            on conflict (name) do update set value = excluded.value
            """,
            {"name": name, "value": value},
        )

    def server(self) -> dict[str, Any]:
        """What a worker says about the server when it starts, and what decides whether it may."""
        row = self._rows(
            """
            select current_setting('server_version') as version, current_database() as database,
                   current_setting('max_connections')::int as max_connections
            """
        )[0]
        return {"version": row.version, "database": row.database, "max_connections": row.max_connections}
