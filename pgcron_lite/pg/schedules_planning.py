"""Planning of schedules: the declarations of code, the decision of ticks, and the jobs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString

from ..schedules.ticks import EARLY, Change, Entry, Move, Tick
from .pool import RunStatement, Statements
from .rows import as_json

# The transaction of a frozen planner is ended after this time, because others wait for it.
FROZEN_MILLISECONDS = "5000"
# True if the run of job `j` is outdated: the job is queued under another task or queue than its schedule `s` has now.
# An outdated run blocks no other run. `pgcron.due_ticks` uses the same condition.
OUTDATED: LiteralString = """
    coalesce(
        j.state = 'queued' and (
            j.task <> s.definition ->> 'task' or j.queue <> coalesce(s.definition ->> 'queue', 'default')
        ), false
    )
"""
# True if a run of schedule `s` is in progress or planned.
IS_BUSY: LiteralString = (
    """
    exists (
        select
        from pgcron.ticks as t
        left join pgcron.jobs as j on j.id = t.job_id
        where t.schedule = s.name and t.outcome is null and not
    """
    + OUTDATED
    + ")"
)


class SchedulesPlanning(Statements):
    """The methods of a scheduler."""

    def declare(self, app: str, generation: str, definitions: Mapping[str, str]) -> None:
        """Store the schedules that this process's code declares. They come into force with the first worker of it."""
        self._rows(
            """
            insert into pgcron.generations (id, app, definitions)
            values (%(id)s, %(app)s, %(definitions)s)
            on conflict (id) do nothing
            """,
            {"id": generation, "app": app, "definitions": _object(definitions)},
        )

    def reconcile(self) -> list[Change]:
        """Update the schedules to what the code of live workers declares. Return the changes."""
        return [Change(row.name, row.what) for row in self._rows("select r.name, r.what from pgcron.reconcile() as r")]

    def plan(
        self,
        decide: Callable[[Entry, datetime], Move],
        name: str | None = None,
        *,
        limit: int = 200,
        gives_way: bool = True,
    ) -> list[Move] | None:
        """Decide the next ticks of the schedules that are due for it, or of the one called `name`.

        Return the moves that were written: a move is written only if the row has not changed since `decide` was called.
        Return None if another planner is active and `gives_way` is true.
        """
        with self._transaction() as run:
            if not _leads(run) and gives_way and name is None:
                return None
            rows = _due(run, limit) if name is None else _by_name(run, name)
            moves = [decide(_entry(row), row.now) for row in rows]
            made = _write_moves(run, moves) if moves else set()
            return [move for move in moves if move.name in made]

    def add_ticks(self, schedule: str, ticks: Sequence[Tick]) -> dict[datetime, int]:
        """Add runs that were not planned. Return the ids of their jobs. A tick that ran or will run is not changed."""
        with self._transaction() as run:
            # Lock the schedule before its ticks, in the same order as a planner does.
            run("select s.name from pgcron.schedules as s where s.name = %(name)s for update", {"name": schedule})
            return _write_ticks(run, [(schedule, tick) for tick in ticks])


# The steps of `plan`, in one transaction


def _leads(run: RunStatement) -> bool:
    """Try to become the leader until the transaction ends. That only avoids duplicate work; see `plan`."""
    # A lock of the transaction and not of the session, so that it works behind a pooler.
    row = run(
        """
        select set_config('idle_in_transaction_session_timeout', %(frozen)s, true) as frozen,
               -- There may be thousands of ticks in one statement, and its parameters have no index to join by.
               set_config('enable_hashjoin', 'on', true) as joins,
               pg_try_advisory_xact_lock(hashtextextended('pgcron planner', 7090)) as leads
        """,
        {"frozen": FROZEN_MILLISECONDS},
    )[0]
    return bool(row.leads)


def _due(run: RunStatement, limit: int) -> list[Any]:
    return run(
        """
        select s.name, s.definition::text as definition, s.revision, s.last_tick, s.runs, s.last_end, s.starts_at,
               s.paused_at is not null as is_paused, pgcron.clock() as now,
        """  # noqa: S608
        + IS_BUSY
        + """ as is_busy,
               exists (
                   select
                   from pgcron.ticks as t
                   where t.schedule = s.name and t.outcome is null and t.kind = 'tick' and t.tick > pgcron.clock()
               ) as is_planned
        from pgcron.schedules as s
        where s.plan_at <= pgcron.clock() + %(early)s
        order by s.plan_at, s.name
        limit %(limit)s
        for update of s skip locked
        """,
        {"limit": limit, "early": EARLY},
    )


def _by_name(run: RunStatement, name: str) -> list[Any]:
    return run(
        """
        select s.name, s.definition::text as definition, s.revision, s.last_tick, s.runs, s.last_end, s.starts_at,
               s.paused_at is not null as is_paused, pgcron.clock() as now,
        """  # noqa: S608
        + IS_BUSY
        + """ as is_busy,
               exists (
                   select
                   from pgcron.ticks as t
                   where t.schedule = s.name and t.outcome is null and t.kind = 'tick' and t.tick > pgcron.clock()
               ) as is_planned
        from pgcron.schedules as s
        where s.name = %(name)s and s.retired_at is null
        for update of s
        """,
        {"name": name},
    )


def _write_moves(run: RunStatement, moves: Sequence[Move]) -> set[str]:
    rows = run(
        """
        update pgcron.schedules as s
        set last_tick = greatest(s.last_tick, m.last_tick), plan_at = m.plan_at, trouble = m.trouble,
            -- The start is decided too, unless the schedule is in trouble.
            starts_at = case when m.trouble is not null then s.starts_at end,
            revision = s.revision + 1
        from unnest(%(names)s::text[], %(revisions)s::bigint[], %(last_ticks)s::timestamptz[],
                    %(plan_ats)s::timestamptz[], %(troubles)s::text[])
             as m (name, revision, last_tick, plan_at, trouble)
        where s.name = m.name and s.revision = m.revision
        returning s.name
        """,
        {
            "names": [m.name for m in moves],
            "revisions": [m.revision for m in moves],
            "last_ticks": [m.last_tick for m in moves],
            "plan_ats": [m.plan_at for m in moves],
            "troubles": [m.trouble for m in moves],
        },
    )
    made = {row.name for row in rows}
    ticks = [(move.name, tick) for move in moves if move.name in made for tick in move.ticks]
    if ticks:
        _write_ticks(run, ticks)
    return made


def _write_ticks(run: RunStatement, ticks: Sequence[tuple[str, Tick]]) -> dict[datetime, int]:
    """Write ticks and their jobs in one statement, so that neither exists without the other."""
    rows = run(
        """
        with asked as materialized (
            select a.*, case when a.task is not null then pgcron.next_id() end as job_id
            from unnest(
                %(schedules)s::text[], %(ticks)s::timestamptz[], %(kinds)s::text[], %(due_ats)s::timestamptz[],
                %(late_ats)s::timestamptz[], %(reasons)s::text[], %(tasks)s::text[], %(args)s::json[],
                %(queues)s::text[], %(priorities)s::smallint[], %(max_attempts)s::smallint[],
                %(max_crashes)s::smallint[], %(headers)s::jsonb[], %(tags)s::json[]
            ) as a (schedule, tick, kind, due_at, late_at, reason, task, args, queue, priority, max_attempts,
                    max_crashes, headers, tags)
        ),
        noted as (
            insert into pgcron.ticks as t (schedule, tick, kind, due_at, late_at, job_id, outcome, reason,
                                           finished_at)
            select a.schedule, a.tick, a.kind, a.due_at, a.late_at, a.job_id,
                   case when a.job_id is null then 'skipped' end, a.reason,
                   case when a.job_id is null then pgcron.clock() end
            from asked as a
            on conflict (schedule, tick) do update
            set kind = excluded.kind, due_at = excluded.due_at, late_at = excluded.late_at,
                job_id = excluded.job_id, planned_at = excluded.planned_at, outcome = null, reason = null,
                finished_at = null
            -- A tick that was skipped may be run by a backfill. Nothing else runs twice.
            where t.outcome = 'skipped' and excluded.kind = 'backfill'
            returning t.schedule, t.tick, t.kind, t.job_id
        ),
        counted as (
            update pgcron.schedules as s
            set runs = s.runs + n.times
            from (
                select n.schedule, count(*) as times
                from noted as n
                where n.job_id is not null and n.kind = 'tick'
                group by n.schedule
            ) as n
            where s.name = n.schedule
        ),
        added as (
            insert into pgcron.jobs (id, task, args, queue, priority, execute_after, max_attempts, max_crashes,
                                     headers, tags)
            select a.job_id, a.task, a.args, a.queue, a.priority, a.due_at, a.max_attempts, a.max_crashes,
                   a.headers,
                   coalesce((select array_agg(w.tag) from json_array_elements_text(a.tags) as w (tag)), '{}')
            from noted as n
            join asked as a on a.job_id = n.job_id
        )
        select n.tick, n.job_id from noted as n where n.job_id is not null
        """,
        _columns(ticks),
    )
    return {row.tick: row.job_id for row in rows}


def _entry(row: Any) -> Entry:
    return Entry(
        row.name, row.definition, row.revision, row.last_tick, row.runs, row.is_paused, row.is_busy, row.last_end,
        row.starts_at, row.is_planned,
    )


def _columns(ticks: Sequence[tuple[str, Tick]]) -> dict[str, Any]:
    jobs = [tick.job for _, tick in ticks]
    return {
        "schedules": [name for name, _ in ticks],
        "ticks": [tick.tick for _, tick in ticks],
        "kinds": [tick.kind for _, tick in ticks],
        "due_ats": [tick.due_at for _, tick in ticks],
        "late_ats": [tick.late_at for _, tick in ticks],
        "reasons": [tick.reason for _, tick in ticks],
        "tasks": [job and job.task for job in jobs],
        "args": [job and job.args for job in jobs],
        "queues": [job and job.queue for job in jobs],
        "priorities": [job and job.priority for job in jobs],
        "max_attempts": [job and job.max_attempts for job in jobs],
        "max_crashes": [job and job.max_crashes for job in jobs],
        "headers": [job and as_json(dict(job.headers)) for job in jobs],
        "tags": [job and as_json(list(job.tags)) for job in jobs],
    }


def _object(definitions: Mapping[str, str]) -> str:
    """Return a JSON object of the definitions, whose text is not changed: definitions are compared as text."""
    return "{" + ",".join(f"{as_json(name)}:{text}" for name, text in sorted(definitions.items())) + "}"
