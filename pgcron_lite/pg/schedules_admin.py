"""Operator queries and actions on schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from ..schedules.ticks import ScheduleView, TickView
from .pool import RunStatement, Statements
from .schedules_planning import FROZEN_MILLISECONDS, OUTDATED


class SchedulesAdmin(Statements):
    """The methods for operators, about schedules."""

    def schedules(self, name: str | None = None) -> list[ScheduleView]:
        """Return all schedules, ordered by name, or only the one called `name`."""
        rows = self._rows(
            """
            select s.name, s.definition::text as definition, s.origin, s.app, s.paused_at, s.retired_at,
                   next.tick as next_tick, last.tick as last_tick, last.outcome as last_outcome, s.runs, s.alarm,
                   s.alarm_tick, s.trouble, s.last_tick as last_planned, next.due_at as next_due_at,
                   exists (
                       select
                       from pgcron.ticks as t
                       where t.schedule = s.name and t.outcome is null and t.started_at is not null
                   ) as is_running
            from pgcron.schedules as s
            left join lateral (
                select t.tick, t.due_at
                from pgcron.ticks as t
                left join pgcron.jobs as j on j.id = t.job_id
                where t.schedule = s.name and t.outcome is null and t.started_at is null
                order by
            """  # noqa: S608
            + OUTDATED
            + """, t.due_at, t.tick
                limit 1
            ) as next on true
            left join lateral (
                select t.tick, coalesce(t.outcome, 'running') as outcome
                from pgcron.ticks as t
                where t.schedule = s.name and (t.started_at is not null or t.outcome is not null)
                order by t.tick desc
                limit 1
            ) as last on true
            where %(name)s::text is null or s.name = %(name)s
            order by s.name
            """,
            {"name": name},
        )
        return [ScheduleView(*row) for row in rows]

    def ticks(
        self, schedule: str, *, before: datetime | None = None, until: datetime | None = None, limit: int = 50
    ) -> list[TickView]:
        """Return the ticks of a schedule and their outcomes, newest first; `before` continues below a tick.

        `until` leaves out later ticks, except those that have ended already because they were cancelled.
        """
        rows = self._rows(
            """
            select t.schedule, t.tick, t.kind, t.due_at, t.planned_at, t.started_at, t.finished_at, t.outcome,
                   t.reason, t.job_id
            from pgcron.ticks as t
            where t.schedule = %(schedule)s and (%(before)s::timestamptz is null or t.tick < %(before)s)
              and (%(until)s::timestamptz is null or t.tick <= %(until)s or t.outcome is not null)
            order by t.tick desc
            limit %(limit)s
            """,
            {"schedule": schedule, "before": before, "until": until, "limit": limit},
        )
        return [TickView(*row) for row in rows]

    def put_schedule(
        self, name: str, app: str, definition: str, *, replace: bool
    ) -> Literal["added", "replaced", "exists", "missing", "code"]:
        """Add a schedule made by hand, or replace its definition. Return what was done, or why it was not."""
        params = {"name": name, "app": app, "definition": definition}
        with self._transaction() as run:
            if not replace:
                added = run(
                    """
                    insert into pgcron.schedules (name, origin, app, definition)
                    values (%(name)s, 'hand', %(app)s, %(definition)s)
                    on conflict (name) do nothing
                    returning name
                    """,
                    params,
                )
                return "added" if added else "exists"
            origin = _origin(run, name)
            if origin != "hand":
                return origin or "missing"
            run("select pgcron.withdraw(%(name)s, false, 'the schedule was replaced')", params)
            run(
                """
                update pgcron.schedules as s
                set definition = %(definition)s, app = %(app)s, plan_at = pgcron.clock(), trouble = null,
                    revision = s.revision + 1
                where s.name = %(name)s
                """,
                params,
            )
            return "replaced"

    def remove_schedule(self, name: str) -> Literal["removed", "missing", "code"]:
        """Remove a schedule made by hand, with its jobs that have not begun. Its finished jobs stay in history.

        If the code in force declares a schedule with that name, which was ignored until now, it takes effect.
        """
        with self._transaction() as run:
            # Lock the planner first, as `pgcron.reconcile` does, which is called below; otherwise there could be a
            # deadlock. New code that is declared meanwhile waits, and sees the state after the removal.
            run(
                """
                select set_config('idle_in_transaction_session_timeout', %(frozen)s, true)
                from pgcron.planner as p
                for update of p
                """,
                {"frozen": FROZEN_MILLISECONDS},
            )
            origin = _origin(run, name)
            if origin != "hand":
                return origin or "missing"
            run("select pgcron.withdraw(%(name)s, true, 'the schedule was removed')", {"name": name})
            run("delete from pgcron.schedules as s where s.name = %(name)s", {"name": name})
            run("select r.what from pgcron.reconcile(%(name)s) as r", {"name": name})
            return "removed"

    def pause_schedule(self, name: str) -> bool:
        """Start no more runs of a schedule. Return False if there is none with that name."""
        with self._transaction() as run:
            if _origin(run, name) is None:
                return False
            run("select pgcron.withdraw(%(name)s, true, 'paused')", {"name": name})
            run(
                """
                update pgcron.schedules as s
                set paused_at = coalesce(s.paused_at, pgcron.clock()), revision = s.revision + 1, alarm = null,
                    alarm_tick = null, plan_at = case when s.retired_at is null then pgcron.clock() end
                where s.name = %(name)s
                """,
                {"name": name},
            )
            return True

    def resume_schedule(self, name: str) -> bool:
        """Continue with the ticks from now on. Return False if the schedule was not paused."""
        rows = self._rows(
            """
            update pgcron.schedules as s
            set paused_at = null, revision = s.revision + 1,
                plan_at = case when s.retired_at is null then pgcron.clock() end
            where s.name = %(name)s and s.paused_at is not null
            returning true
            """,
            {"name": name},
        )
        return bool(rows)


def _origin(run: RunStatement, name: str) -> Literal["code", "hand"] | None:
    """Lock the schedule until the end of the transaction, and return its origin; None if there is none."""
    rows = run("select s.origin from pgcron.schedules as s where s.name = %(name)s for update", {"name": name})
    return rows[0].origin if rows else None
