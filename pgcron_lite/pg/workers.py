"""Workers' rows: registration, heartbeats, the periodic poll of the table, and the rescue of dead workers' jobs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from ..job import MAX_ERRORS, Job, Look, WorkerCard
from ..schedules.ticks import WATCH_EVERY
from .pool import Statements
from .rows import as_job


class Workers(Statements):
    """The methods of heartbeats and reapers."""

    def register(self, card: WorkerCard, instead_of: uuid.UUID | None = None) -> None:
        """Register a worker. Jobs that run under its previous id, `instead_of`, are moved to the new one."""
        # After a freeze, a worker may have claimed under its old id before it learned that it was declared dead.
        self._rows(
            """
            with moved as (
                update pgcron.jobs as j
                set worker = %(id)s
                where j.state = 'running' and j.worker = %(instead_of)s
            )
            insert into pgcron.workers (id, host, pid, version, queues, slots, mode, generation)
            values (%(id)s, %(host)s, %(pid)s, %(version)s, %(queues)s, %(slots)s, %(mode)s, %(generation)s)
            on conflict (id) do nothing
            """,
            {
                "id": card.id,
                "instead_of": instead_of,
                "host": card.host,
                "pid": card.pid,
                "version": card.version,
                "queues": list(card.queues),
                "slots": card.slots,
                "mode": card.mode,
                "generation": card.generation,
            },
        )

    def beat(self, worker: uuid.UUID, running: int = 0, idle_loop: float = 0.0, stopping: bool = False) -> bool:
        """Record a heartbeat. Return False if the worker has been declared dead and no longer holds its jobs."""
        rows = self._rows(
            """
            update pgcron.workers
            set beat = beat + 1, beat_at = pgcron.clock(), running = %(running)s, idle_loop = %(idle_loop)s,
                stopping = %(stopping)s
            where id = %(worker)s
            returning beat
            """,
            {"worker": worker, "running": running, "idle_loop": idle_loop, "stopping": stopping},
        )
        return bool(rows)

    def forget(self, worker: uuid.UUID) -> None:
        """Delete the row of a worker that has ended and holds no jobs."""
        self._rows("delete from pgcron.workers where id = %(worker)s", {"worker": worker})

    def look(self, queues: Sequence[str], tasks: Sequence[str], worker: uuid.UUID | None = None) -> Look:
        """Return everything that a worker polls for every few seconds, with one statement."""
        # The jobs that `worker` holds are counted by claim: there may be thousands of jobs, but only a few claims.
        rows = self._rows(
            """
            with next (execute_after) as (
                select first.execute_after
                from pgcron.levels() as l
                cross join lateral (
                    select j.execute_after
                    from pgcron.jobs as j
                    where j.state = 'queued' and not j.alone
                      and j.queue = l.queue and j.priority = l.priority
                      and j.task = any(%(tasks)s)
                    order by j.execute_after
                    limit 1
                ) as first
                where (l.queue = any(%(queues)s) or '*' = any(%(queues)s))
                  and not exists (select from pgcron.queues as q where q.name = l.queue and q.paused_at is not null)
                union all
                select j.execute_after
                from pgcron.jobs as j
                where j.state = 'queued' and j.alone
                  and (j.queue = any(%(queues)s) or '*' = any(%(queues)s))
                  and not exists (select from pgcron.queues as q where q.name = j.queue and q.paused_at is not null)
                  and j.task = any(%(tasks)s)
            ),
            pulses (worker, beat) as (
                select w.id, w.beat from pgcron.workers as w
                union all
                select distinct j.worker, -1
                from pgcron.jobs as j
                where j.state = 'running' and not exists (select from pgcron.workers as w where w.id = j.worker)
            ),
            held (claim, jobs) as materialized (
                select j.claim, count(*)
                from pgcron.jobs as j
                where j.state = 'running' and j.worker = %(worker)s::uuid
                group by j.claim
            )
            select (select extract(epoch from min(n.execute_after) - pgcron.clock())::float8 from next as n) as due_in,
                   (select array_agg(p.worker order by p.worker) from pulses as p) as workers,
                   (select array_agg(p.beat order by p.worker) from pulses as p) as beats,
                   (select array_agg(h.claim order by h.claim) from held as h) as claims,
                   (select array_agg(h.jobs order by h.claim) from held as h) as counts,
                   -- 0 if live workers declare other schedules than are in force; otherwise, when the next ticks are to
                   -- be decided.
                   case
                       when p.generations <> array(
                           select distinct w.generation from pgcron.workers as w where w.generation is not null
                           order by w.generation
                       ) then 0
                       else (select extract(epoch from min(s.plan_at) - pgcron.clock()) from pgcron.schedules as s)
                   end::float8 as plan_in,
                   p.watched_at <= pgcron.clock() - %(watch)s
                   and exists (select from pgcron.schedules as s where s.retired_at is null) as ticks_want_watching
            from pgcron.planner as p
            """,
            {"queues": list(queues), "tasks": list(tasks), "worker": worker, "watch": WATCH_EVERY},
        )
        seen = rows[0]
        pulses: dict[uuid.UUID, int] = dict(zip(seen.workers or (), seen.beats or (), strict=True))
        held: dict[uuid.UUID, int] = dict(zip(seen.claims or (), seen.counts or (), strict=True))
        return Look(seen.due_in, pulses, seen.plan_in, seen.ticks_want_watching, held)

    def reap(self, silent: Iterable[tuple[uuid.UUID, int | None]]) -> list[Job]:
        """Delete the workers whose heartbeat is still the one given and rescue their jobs.

        A heartbeat of None stands for a worker that is known to be dead. Return the rescued jobs as they are now:
        queued again, or failed because they have killed too many workers.
        """
        suspected = list(silent)
        if not suspected:
            return []
        # The reap.
        #
        # It must return every job of a dead worker to the queue, or fail it, and must never take one from a live
        # worker. It is one statement, so no transaction sees a worker deleted and its jobs still running. Any number of
        # reapers may run it at the same time, and repeating it changes nothing.
        #
        # A worker is dead if its heartbeat has not changed since the reaper saw it, and this is compared again on the
        # locked row: a worker that sends a heartbeat meanwhile keeps its row and its jobs. A worker without a row,
        # which a reaper deleted or which left, is dead as well if the caller says so. Rows that are locked are skipped:
        # a heartbeat that hangs in its transaction locks its own row, and must not stop the rescue of other workers.
        #
        # A death counts against a job only if the job was a suspect and the only one that its worker held; otherwise
        # the cause is unknown, and the jobs become suspects, which run with no others from then on. No attempt is used
        # up. Pauses of queues do not apply to a rescue.
        #
        # The plan it needs: workers and jobs are found by key and by `jobs_held`, the index of running jobs by worker.
        # tests/pg/test_plans.py checks that a dead worker without jobs costs no row of the table of jobs.
        rows = self._rows(
            """
            with silent as (
                select * from unnest(%(workers)s::uuid[], %(beats)s::bigint[]) as s (worker, beat)
            ),
            gone as materialized (
                select w.id
                from pgcron.workers as w
                join silent as s on s.worker = w.id and w.beat = coalesce(s.beat, w.beat)
                order by w.id
                for update of w skip locked
            ),
            deleted as (
                delete from pgcron.workers as w
                where w.id in (select g.id from gone as g)
                returning w.id
            ),
            dead (worker) as (
                select d.id from deleted as d
                union
                select s.worker from silent as s
                where (s.beat = -1 or s.beat is null)
                  and not exists (select from pgcron.workers as w where w.id = s.worker)
            ),
            with_one_job (worker) as (
                select j.worker
                from pgcron.jobs as j
                where j.state = 'running' and j.worker in (select d.worker from dead as d)
                group by j.worker
                having count(*) = 1
            ),
            orphans as (
                select j.id,
                       (j.alone and j.worker in (select o.worker from with_one_job as o)) as is_cause
                from pgcron.jobs as j
                where j.state = 'running' and j.worker in (select d.worker from dead as d)
                order by j.id
                for update of j skip locked
            ),
            rescued as (
                update pgcron.jobs as j
                set state = 'queued', claim = null, worker = null, claimed_at = null, attempt = j.attempt - 1,
                    alone = true, crashes = j.crashes + o.is_cause::int,
                    errors = case
                        when not o.is_cause then j.errors
                        when jsonb_array_length(j.errors) >= %(most)s then (j.errors - 0) || died.error
                        else j.errors || died.error
                    end
                from orphans as o
                cross join lateral (
                    select jsonb_build_object(
                        'attempt', (select r.attempt from pgcron.jobs as r where r.id = o.id),
                        'at', pgcron.clock(),
                        'error', 'the worker died while running this job'
                    ) as error
                ) as died
                where j.id = o.id and not (o.is_cause and j.crashes + 1 >= j.max_crashes)
                returning j.*
            ),
            given_up as (
                delete from pgcron.jobs as j
                using orphans as o
                where j.id = o.id and o.is_cause and j.crashes + 1 >= j.max_crashes
                returning j.*
            ),
            failed as (
                insert into pgcron.history (
                    id, task, queue, priority, state, args, headers, tags, execute_after, attempt, max_attempts,
                    crashes, max_crashes, claim, worker, claimed_at, errors, created_at, finished_at, nonce
                )
                select h.history_id, p.task, p.queue, p.priority, 'failed', p.args, h.history_headers, p.tags,
                       p.execute_after,
                       p.attempt, p.max_attempts, p.crashes + 1, p.max_crashes, p.claim, p.worker, p.claimed_at,
                       (case when jsonb_array_length(p.errors) >= %(most)s then p.errors - 0 else p.errors end)
                       || jsonb_build_object(
                           'attempt', p.attempt,
                           'at', pgcron.clock(),
                           'error', format('the worker died %%s times while running this job alone', p.crashes + 1)
                       ),
                       p.created_at, pgcron.clock(), p.nonce
                from given_up as p
                cross join lateral pgcron.into_history(p.id, p.claim, p.headers) as h
                returning *
            )
            select r.id, r.task, r.queue, r.priority, r.state, r.args::text as args, r.headers, r.tags,
                   r.execute_after, r.attempt, r.max_attempts, r.crashes, r.max_crashes, r.alone, r.claim,
                   r.worker, r.created_at, r.claimed_at, r.errors, null::timestamptz as finished_at
            from rescued as r
            union all
            select f.id, f.task, f.queue, f.priority, f.state, f.args::text, f.headers, f.tags,
                   f.execute_after, f.attempt, f.max_attempts, f.crashes, f.max_crashes, false, f.claim,
                   f.worker, f.created_at, f.claimed_at, f.errors, f.finished_at
            from failed as f
            order by id
            """,
            {
                "workers": [worker for worker, _ in suspected],
                "beats": [beat for _, beat in suspected],
                "most": MAX_ERRORS,
            },
        )
        return [as_job(row) for row in rows]
