"""Ticks that are due: whether their jobs may begin, what became of them, and whether somebody ought to be told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from ..ticks import LATE, WATCH_EVERY, Admission, Alarm, Closing
from .statements import Statements


class Ticking(Statements):
    """The verbs of workers that run the jobs of ticks."""

    def admit(self, job_ids: Sequence[int]) -> dict[int, Admission]:
        """May the jobs of these ticks begin? What is no tick's job is not in the answer, and may."""
        rows = self._rows(
            """
            select a.job_id, a.verdict, a.reason, a.wait, a.previous, a.kind, a.is_late, a.ping
            from pgcron.admit(%(ids)s::bigint[]) as a
            """,
            {"ids": list(job_ids)},
        )
        return {
            row.job_id: Admission(refusal=row.reason)
            if row.verdict == "skip"
            else Admission(row.previous, row.kind, row.is_late, row.wait, ping=row.ping)
            for row in rows
        }

    def close_ticks(self, job_ids: Sequence[int]) -> list[Closing]:
        """Note the end of the runs whose jobs have ended, or are gone."""
        rows = self._rows(
            """
            with over as materialized (
                select t.schedule, t.tick, t.job_id, coalesce(h.state, 'deleted') as outcome,
                       coalesce(h.finished_at, pgcron.clock()) as finished_at,
                       extract(epoch from h.finished_at - t.started_at)::float8 as seconds
                from pgcron.ticks as t
                left join pgcron.history as h on h.id = t.job_id
                where t.job_id = any(%(ids)s)
                  and not exists (select from pgcron.jobs as j where j.id = t.job_id)
                  -- A failed job may have been queued again by hand.
                  and (t.outcome is null or (t.outcome in ('failed', 'cancelled') and h.state = 'done'))
            ),
            closed as (
                update pgcron.ticks as t
                set outcome = o.outcome, finished_at = o.finished_at
                from over as o
                where t.schedule = o.schedule and t.tick = o.tick
            ),
            summed as (
                select o.schedule, max(o.finished_at) as finished_at,
                       max(o.tick) filter (where o.outcome = 'done') as done
                from over as o
                group by o.schedule
            ),
            woken as (
                -- The first of those that wait for one another is not to find out by itself, a while later.
                update pgcron.jobs as j
                set execute_after = pgcron.clock()
                from (
                    select distinct on (t.schedule) t.job_id
                    from summed as u
                    join pgcron.ticks as t on t.schedule = u.schedule and t.outcome is null and t.started_at is null
                    where t.due_at <= pgcron.clock() and t.job_id <> all(%(ids)s)
                    order by t.schedule, t.due_at, t.tick
                ) as first
                where j.id = first.job_id and j.state = 'queued' and j.execute_after > pgcron.clock()
            ),
            before as materialized (
                select s.name, s.definition ->> 'ping' as ping, u.done >= s.alarm_tick as recovered, u.done,
                       s.retired_at is null and (s.definition ->> 'after_finish')::boolean as goes_on
                from summed as u
                join pgcron.schedules as s on s.name = u.schedule
                order by s.name
                for update of s
            ),
            went_on as (
                update pgcron.schedules as s
                set last_end = greatest(s.last_end, u.finished_at),
                    revision = s.revision + 1,
                    plan_at = case when b.goes_on then pgcron.clock() else s.plan_at end,
                    alarm = case when b.recovered then null else s.alarm end,
                    alarm_tick = case when b.recovered then null else s.alarm_tick end
                from summed as u
                join before as b on b.name = u.schedule
                where s.name = u.schedule
            )
            select o.schedule, o.tick, o.job_id, o.outcome, o.seconds, b.ping,
                   coalesce(b.recovered and o.tick = b.done, false) as recovered, coalesce(b.goes_on, false) as goes_on
            from over as o
            left join before as b on b.name = o.schedule
            order by o.finished_at, o.tick
            """,
            {"ids": list(job_ids)},
        )
        return [Closing(*row) for row in rows]

    def watch(self) -> tuple[list[Closing], list[Alarm]]:
        """Every few seconds, one worker of all: find runs whose end nobody noted, and those that are missed or late."""
        turn = self._rows(
            """
            update pgcron.planner as p
            set watched_at = pgcron.clock()
            where p.watched_at <= pgcron.clock() - %(every)s
            returning true
            """,
            {"every": WATCH_EVERY},
        )
        if not turn:
            return [], []
        over = self._rows(
            """
            select t.job_id
            from pgcron.ticks as t
            where t.outcome is null and t.job_id is not null
              and not exists (select from pgcron.jobs as j where j.id = t.job_id)
            """
        )
        closings = self.close_ticks([row.job_id for row in over]) if over else []
        return closings, self._alarms()

    def raise_alarm(self, schedule: str, tick: datetime) -> bool:
        """A tick was missed. True if nobody has said so of this schedule before it recovers."""
        rows = self._rows(
            """
            update pgcron.schedules as s
            set alarm = 'missed', alarm_tick = %(tick)s
            where s.name = %(schedule)s and s.alarm is null
            returning true
            """,
            {"schedule": schedule, "tick": tick},
        )
        return bool(rows)

    def prune_ticks(self, keep: timedelta, limit: int = 1000) -> int:
        """Forget up to `limit` ticks that are over for longer than `keep`. Returns how many went."""
        rows = self._rows(
            """
            delete from pgcron.ticks as t
            where (t.schedule, t.tick) in (
                select o.schedule, o.tick
                from pgcron.ticks as o
                where o.tick < pgcron.clock() - %(keep)s and o.outcome is not null
                order by o.tick
                limit %(limit)s
            )
            returning true
            """,
            {"keep": keep, "limit": limit},
        )
        return len(rows)

    def _alarms(self) -> list[Alarm]:
        rows = self._rows(
            """
            with trouble as (
                select t.schedule, t.tick, t.job_id,
                       case when t.started_at is null then 'missed' else 'late' end as kind
                from pgcron.ticks as t
                where t.outcome is null
                  and case
                      when t.started_at is null then t.due_at + %(late)s < pgcron.clock()
                      else t.late_at < pgcron.clock()
                  end
                union all
                -- Nobody has decided its ticks for a while: no scheduler runs anywhere.
                select s.name, s.plan_at, null, 'missed'
                from pgcron.schedules as s
                where s.plan_at + 2 * %(late)s < pgcron.clock()
            ),
            first as (
                select distinct on (u.schedule) u.* from trouble as u order by u.schedule, u.tick
            )
            update pgcron.schedules as s
            set alarm = f.kind, alarm_tick = f.tick
            from first as f
            where s.name = f.schedule and s.alarm is null and s.paused_at is null and s.retired_at is null
            returning f.schedule, f.tick, f.kind, f.job_id
            """,
            {"late": LATE},
        )
        return [Alarm(*row) for row in rows]
