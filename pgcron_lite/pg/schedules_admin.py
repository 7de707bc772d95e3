"""Operator queries and actions on schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from ..schedules.ticks import ScheduleView, TickView
from .pool import RunStatement, Statements
from .schedules_planning import FROZEN_MILLISECONDS, OUTDATED


class SchedulesAdmin(Statements):
    """The verbs of people, about schedules."""

    def schedules(self, name: str | None = None) -> list[ScheduleView]:
        """All schedules by name, or the one."""
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
        """What became of the ticks of a schedule, the newest first; `before` continues below a tick.

        `until` leaves out those that are still to come, and keeps one of them that has ended: it was called off.
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
        """Add a schedule made by hand, or put another definition in its place. Says why not, if not."""
        said = {"name": name, "app": app, "definition": definition}
        with self._transaction() as run:
            if not replace:
                added = run(
                    """
                    insert into pgcron.schedules (name, origin, app, definition)
                    values (%(name)s, 'hand', %(app)s, %(definition)s)
                    on conflict (name) do nothing
                    returning name
                    """,
                    said,
                )
                return "added" if added else "exists"
            origin = _origin(run, name)
            if origin != "hand":
                return origin or "missing"
            run("select pgcron.withdraw(%(name)s, false, 'the schedule was replaced')", said)
            run(
                """
                update pgcron.schedules as s
                set definition = %(definition)s, app = %(app)s, plan_at = pgcron.clock(), trouble = null,
                    revision = s.revision + 1
                where s.name = %(name)s
                """,
                said,
            )
            return "replaced"

    def remove_schedule(self, name: str) -> Literal["removed", "missing", "code"]:
        """Remove a schedule made by hand, with its jobs that have not begun. What has been stays in its history.

        If code in force declares one of that name, which had to stand back, that is in its place now.
        """
        with self._transaction() as run:
            # First, as by `pgcron.reconcile`, which follows below: then nobody waits in a circle. And code that comes
            # to life now finds the name as it is afterwards.
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
        """Start no more runs. False if there is no such schedule."""
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
        """Go on with the ticks from now. False if it was not paused."""
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
    """Where the schedule comes from; nobody else changes it until the transaction ends."""
    rows = run("select s.origin from pgcron.schedules as s where s.name = %(name)s for update", {"name": name})
    return rows[0].origin if rows else None
