"""Due ticks: admission of their jobs, the end of their runs, and alarms for missed and late runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from ..errors import PgCronError
from ..schedules.ticks import LATE, MAX_LEFT_DUE, WATCH_EVERY, Admission, Alarm, Closing
from .pool import Statements
from .schedules_planning import IS_BUSY, OUTDATED

logger = logging.getLogger(__name__)


class SchedulesTicks(Statements):
    """The methods of workers that run the jobs of ticks."""

    def admit(self, job_ids: Sequence[int]) -> dict[int, Admission]:
        """Decide which jobs of ticks may begin. A job that belongs to no tick may, and is not in the answer."""
        # The admission, which is the SQL function `pgcron.admit` (migration 0006).
        #
        # It must never let two runs begin that must not overlap, and must begin, skip or put back each due run as the
        # schedule says: too late, replaced by a later tick, or in the way of another run. This cannot be known before
        # the moment of the start, so a worker asks for each tick's job after claiming it and before running it.
        #
        # The function locks the schedules, by name, and reads afterwards, with a snapshot taken under the lock, so of
        # two workers the second sees the decision of the first. The statement here cannot do that itself: one
        # statement has one snapshot, which is taken before its locks. So this is one call of a function with several
        # statements, and one round trip.
        #
        # A repeated call, after a lost reply, returns the decision that is written with the tick. The worker that ends
        # a run releases the next one; `wait` is only for the case that no worker does.
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

    def close_ticks(self, job_ids: Sequence[int], *, unbegun: bool = False) -> list[Closing]:
        """Record the end of runs whose jobs have ended or were deleted; with `unbegun`, only if they never began."""
        rows = self._rows(
            """
            with over as materialized (
                select t.schedule, t.tick, t.job_id, t.outcome as before, coalesce(h.state, 'deleted') as outcome,
                       coalesce(h.finished_at, pgcron.clock()) as finished_at,
                       t.kind = 'tick' and t.started_at is null and t.outcome is null
                           and coalesce(h.state, 'deleted') in ('cancelled', 'deleted') as is_called_off,
                       extract(epoch from h.finished_at - t.started_at)::float8 as seconds
                from pgcron.ticks as t
                left join pgcron.history as h on h.id = t.job_id
                where t.job_id = any(%(ids)s)
                  and not (%(unbegun)s and (t.started_at is not null or t.outcome is not null))
                  and not exists (select from pgcron.jobs as j where j.id = t.job_id)
                  -- A failed job may have been retried by an operator. A job created after the run had ended is another
                  -- job, with the id of a deleted one.
                  and (t.outcome is null or (
                      t.outcome in ('failed', 'cancelled') and h.state = 'done' and h.created_at <= t.finished_at
                  ))
            ),
            -- Lock a schedule before its ticks, as every statement does.
            before as materialized (
                select s.name, s.definition ->> 'ping' as ping, s.alarm_tick,
                       s.retired_at is null and (s.definition ->> 'after_finish')::boolean as goes_on
                from pgcron.schedules as s
                where s.name in (select o.schedule from over as o)
                order by s.name
                for update of s
            ),
            closed as (
                update pgcron.ticks as t
                set outcome = o.outcome, finished_at = o.finished_at
                from over as o
                where t.schedule = o.schedule and t.tick = o.tick
                  -- If another transaction recorded the end after this statement began, it has counted it.
                  and t.outcome is not distinct from o.before
                  and (select count(*) from before) >= 0
                returning o.schedule, o.tick, o.job_id, o.outcome, o.finished_at, o.is_called_off, o.seconds
            ),
            summed as materialized (
                select c.schedule, b.ping, b.goes_on, max(c.finished_at) as finished_at,
                       max(c.tick) filter (where c.outcome = 'done') as done,
                       max(c.tick) filter (where c.outcome = 'done') >= b.alarm_tick as recovered,
                       count(*) filter (where c.is_called_off) as called_off
                from closed as c
                join before as b on b.name = c.schedule
                group by c.schedule, b.ping, b.goes_on, b.alarm_tick
            ),
            went_on as (
                update pgcron.schedules as s
                set last_end = greatest(s.last_end, u.finished_at),
                    revision = s.revision + 1,
                    -- A run that was cancelled before it began does not count, and the next tick has to be decided.
                    runs = greatest(0, s.runs - u.called_off),
                    plan_at = case
                        when u.goes_on or (u.called_off > 0 and s.retired_at is null) then pgcron.clock()
                        else s.plan_at
                    end,
                    alarm = case when u.recovered then null else s.alarm end,
                    alarm_tick = case when u.recovered then null else s.alarm_tick end
                from summed as u
                where s.name = u.schedule
            )
            select c.schedule, c.tick, c.job_id, c.outcome, c.seconds, u.ping,
                   coalesce(u.recovered and c.tick = u.done, false) as recovered, coalesce(u.goes_on, false) as goes_on
            from closed as c
            left join summed as u on u.schedule = c.schedule
            order by c.finished_at, c.schedule, c.tick
            """,
            {"ids": list(job_ids), "unbegun": unbegun},
        )
        return [Closing(*row) for row in rows]

    def release(self, job_ids: Sequence[int] | None = None) -> bool:
        """Make the next waiting run due, in the schedules of these jobs or in all. Return True if there was one.

        Call it after a run has ended, and after one was put back to wait. The later of the two calls sees what the
        other has written, so a run that is put back while the previous one ends does not keep waiting.
        """
        rows = self._rows(
            """
            with waiting as (
                select t.schedule from pgcron.ticks as t where t.job_id = any(%(ids)s)
                union
                select t.schedule
                from pgcron.ticks as t
                where %(ids)s::bigint[] is null
                  and t.outcome is null and t.started_at is null and t.due_at <= pgcron.clock()
            )
            update pgcron.jobs as j
            set execute_after = pgcron.clock()
            where j.id = any(array(
                select w.id
                from waiting as a
                left join pgcron.schedules as s on s.name = a.schedule
                cross join lateral (
                    -- Runs that have begun come first, and all runs behind one of them keep waiting. The first outdated
                    -- run waits too, but no other run waits for it.
                    select distinct on (o.is_outdated) o.job_id, o.is_begun or o.is_taken as has_begun
                    from (
                        select d.*, bool_or(d.is_begun and not d.is_outdated) over () as is_taken
                        from (
                            select t.job_id, t.due_at, t.tick, t.started_at is not null as is_begun,
            """  # noqa: S608
            + OUTDATED
            + """                  as is_outdated
                            from pgcron.ticks as t
                            join pgcron.jobs as j on j.id = t.job_id
                            where t.schedule = a.schedule and t.outcome is null and t.due_at <= pgcron.clock()
                        ) as d
                    ) as o
                    where not (o.is_outdated and o.is_begun)
                    order by o.is_outdated, not o.is_begun, o.due_at, o.tick
                ) as first
                join pgcron.jobs as w on w.id = first.job_id
                where not first.has_begun and w.state = 'queued' and w.execute_after > pgcron.clock()
                order by w.id
                for update of w skip locked
            ))
            returning j.id
            """,
            {"ids": None if job_ids is None else list(job_ids)},
        )
        return bool(rows)

    def watch(self) -> tuple[list[Closing], list[Alarm]]:
        """Find runs whose end was not recorded, and runs that are missed or late.

        Every worker may call it at any time: one of them does the work every few seconds, for the others it is empty.
        """
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
        alarms = self._alarms()
        try:
            # The worker that should have released these runs may have died.
            self.release()
            self._skip_overdue()
            self._plan_past_outdated()
        except PgCronError as error:
            # The closings and alarms above are committed and reported once, by the caller, so do not lose them by
            # raising. The next call tries this part again.
            logger.warning("could not skip overdue ticks; is a schedule edited by hand? %s", error)
        return closings, alarms

    def raise_alarm(self, schedule: str, tick: datetime) -> bool:
        """Record that a tick was missed. Return True if the schedule has no alarm yet, since it last recovered."""
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
        """Delete up to `limit` ended ticks that are older than `keep`. Return their number."""
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
                      when t.started_at is null
                      then t.due_at + %(late)s < pgcron.clock() and not exists (
                          -- A newer run has begun in its place.
                          select
                          from pgcron.schedules as s
                          join pgcron.jobs as j on j.id = t.job_id
                          join pgcron.ticks as n on n.schedule = s.name and n.tick > t.tick and n.started_at is not null
                          where s.name = t.schedule and
            """  # noqa: S608
            + OUTDATED
            + """
                      ) and not exists (
                          -- A run that has to wait for another one is not missed; the other one may be late.
                          select
                          from pgcron.schedules as q
                          where q.name = t.schedule
                            and (q.definition ->> 'overlap' = 'queue' or (
                                q.definition ->> 'overlap' = 'skip'
                                and (t.kind <> 'tick' or q.definition ->> 'catch_up' = 'all')
                            ))
                            and (q.last_end + %(late)s >= pgcron.clock() or exists (
                                select
                                from pgcron.ticks as r
                                where r.schedule = q.name and r.outcome is null and r.started_at is not null
                            ))
                      )
                      else t.late_at < pgcron.clock()
                  end
                union all
                -- The ticks of the schedule were not decided for a while: no scheduler is running.
                select s.name, s.plan_at, null, 'missed'
                from pgcron.schedules as s
                where s.plan_at + 2 * %(late)s < pgcron.clock()
            ),
            first as (
                select distinct on (u.schedule) u.* from trouble as u order by u.schedule, u.tick, u.job_id
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

    def _plan_past_outdated(self) -> None:
        """Have the next tick of `after_finish` schedules decided if only an outdated run is left to wait for."""
        self._rows(
            """
            update pgcron.schedules as s
            set plan_at = pgcron.clock()
            where s.plan_at is null and s.retired_at is null and (s.definition ->> 'after_finish')::boolean
              and exists (select from pgcron.ticks as t where t.schedule = s.name and t.outcome is null)
              and not
            """  # noqa: S608
            + IS_BUSY
        )

    def _skip_overdue(self) -> None:
        """Skip the ticks that have been due for a while and that `admit` would no longer let begin.

        No worker runs the jobs of these schedules, or it would have called `admit`. But workers of other apps keep
        planning their ticks, and the jobs would pile up. The reason recorded for each tick is the one of `admit`.
        """
        # Jobs that are being claimed are locked or no longer queued, and are left to `admit`. So are locked schedules:
        # the transaction that holds the lock is changing the ticks.
        self._rows(
            """
            with overdue as materialized (
                select s.name
                from pgcron.schedules as s
                where s.name in (
                    select t.schedule
                    from pgcron.ticks as t
                    where t.outcome is null and t.started_at is null and t.kind = 'tick'
                      and t.due_at + %(late)s < pgcron.clock()
                )
                order by s.name
                for update skip locked
            ),
            judged as materialized (
                select d.schedule, d.tick, d.job_id,
                       case
                           when d.reason is not null then d.reason
                           when d.catch_up = 'all' and d.later > %(left_due)s
                           then format('missed, and %%s later ones as well', %(left_due)s::int)
                       end as reason
                from pgcron.due_ticks(array(select o.name from overdue as o)) as d
                where d.kind = 'tick' and d.started_at is null
            ),
            withdrawn as (
                delete from pgcron.jobs as j
                where j.id = any(array(
                    select w.id
                    from pgcron.jobs as w
                    join judged as g on g.job_id = w.id
                    where g.reason is not null and w.state = 'queued' and w.attempt = 0
                    for update of w skip locked
                ))
                returning j.id
            ),
            noted as (
                update pgcron.ticks as t
                set outcome = 'skipped', reason = g.reason, finished_at = pgcron.clock()
                from judged as g
                join withdrawn as w on w.id = g.job_id
                where t.schedule = g.schedule and t.tick = g.tick
                returning t.schedule
            )
            update pgcron.schedules as s
            set runs = greatest(0, s.runs - n.times), revision = s.revision + 1,
                plan_at = case when s.retired_at is null then coalesce(s.plan_at, pgcron.clock()) end
            from (select n.schedule, count(*) as times from noted as n group by n.schedule) as n
            where s.name = n.schedule
            """,
            {"late": LATE, "left_due": MAX_LEFT_DUE},
        )
