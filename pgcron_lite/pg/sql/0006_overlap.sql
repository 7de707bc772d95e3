-- pgcron: ticks that become due while runs of their schedule are in progress, or late.
-- oldest code: 3
--
-- `admit` keeps its signature, so that workers of the previous version keep working.

-- Return the due ticks of these schedules whose runs are not over, each with the reason to skip it that does not depend
-- on which worker runs it and on other runs in progress; null if there is none. This is the only place in SQL with this
-- rule. The memory store has its own in `memory/verdicts.py`, and the differential test compares the two.
--
-- With overlap "queue", a tick that waits for an earlier run of its own schedule is not missed, however long that run
-- takes. It is missed only if nothing of its schedule ran for a minute, counted from when it could have begun. The
-- number of waiting ticks is limited instead: ticks beyond the limit are skipped, with the overlap as their reason.
--
-- A run is outdated while its job is queued under another task or queue than its schedule has now. There may be no
-- worker left that knows that task, so it blocks no other run; a worker that still knows it may run it in its turn.
create function pgcron.due_ticks(names text[]) returns table (
    schedule text, tick timestamptz, kind text, due_at timestamptz, planned_at timestamptz, started_at timestamptz,
    job_id bigint, overlap text, catch_up text, ready_at timestamptz, reason text, later bigint, is_outdated boolean
)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    moment constant timestamptz := pgcron.clock();
    late constant interval := '60 seconds';
    -- The number of on-time ticks of a schedule that wait for their turn, not counting those that are caught up with.
    most_waiting constant int := 100;
    most_waiting_for_all constant int := 1000;
begin
    return query
        with rules as (
            select s.name,
                   case
                       when s.paused_at is not null then 'paused'
                       when s.retired_at is not null then 'the schedule was removed'
                   end                                                          as stopped,
                   s.definition ->> 'overlap'                                   as overlap,
                   s.definition ->> 'catch_up'                                  as catch_up,
                   make_interval(secs => (s.definition ->> 'start_within')::float8) as start_within,
                   -- A run may have ended without its end being recorded yet.
                   greatest(s.last_end, max(h.finished_at))                     as last_end,
                   count(r.tick) filter (where not coalesce(
                       l.state = 'queued' and (
                           l.task <> s.definition ->> 'task' or l.queue <> coalesce(s.definition ->> 'queue', 'default')
                       ), false
                   )) > 0                                                       as is_running,
                   s.definition ->> 'task'                                      as task,
                   coalesce(s.definition ->> 'queue', 'default')                as queue
            from pgcron.schedules as s
            left join pgcron.ticks as r on r.schedule = s.name and r.outcome is null and r.started_at is not null
            left join pgcron.history as h on h.id = r.job_id
            left join pgcron.jobs as l on l.id = r.job_id
            where s.name = any(names)
            group by s.name
        ),
        found as (
            select t.schedule, t.tick, t.kind, t.due_at, t.planned_at, t.started_at, t.job_id,
                   r.stopped, r.overlap, r.catch_up, r.start_within, r.is_running, r.last_end,
                   coalesce(j.state = 'queued' and (j.task <> r.task or j.queue <> r.queue), false) as is_outdated
            from rules as r
            join pgcron.ticks as t on t.schedule = r.name and t.outcome is null and t.due_at <= moment
            join pgcron.jobs as j on j.id = t.job_id
        ),
        open as (
            select t.*,
                   t.kind = 'tick' and t.started_at is null                             as is_waiting,
                   -- When it could have begun: runs that take turns begin after the previous one.
                   greatest(t.due_at, case
                       when t.overlap = 'queue' or (t.overlap = 'skip' and t.kind <> 'tick') then t.last_end
                   end)                                                                 as ready_at,
                   -- An outdated tick replaces only other outdated ones.
                   max(t.tick) filter (where t.kind = 'tick') over (
                       partition by t.schedule order by t.is_outdated
                   )                                                                    as newest
            from found as t
        ),
        fated as (
            select o.*,
                   case
                       when not o.is_waiting then null
                       -- `withdraw` could not reach its job, because a worker was claiming it.
                       when o.stopped is not null then o.stopped
                       when moment > o.due_at + o.start_within then 'too late'
                       -- A tick whose turn has come, or comes when the current run ends, is not missed.
                       when o.overlap = 'queue' and (o.is_running or moment <= o.ready_at + late) then null
                       when o.catch_up = 'skip' and moment > o.due_at + late then 'missed'
                       when o.catch_up = 'latest' and o.tick < o.newest then 'missed; a later tick stands for it'
                   end as fate
            from open as o
        ),
        counted as (
            select f.*,
                   f.is_waiting and f.planned_at <= f.due_at as is_fresh,
                   count(*) filter (
                       where f.is_waiting and f.planned_at <= f.due_at and f.fate is null and not f.is_outdated
                   ) over (
                       partition by f.schedule order by f.due_at, f.tick
                   ) as waiting,
                   count(*) filter (where f.is_waiting and f.fate is null) over (
                       partition by f.schedule order by f.due_at desc, f.tick desc
                   ) as later,
                   case when f.catch_up = 'all' then most_waiting_for_all else most_waiting end as most
            from fated as f
        )
        select c.schedule, c.tick, c.kind, c.due_at, c.planned_at, c.started_at, c.job_id, c.overlap, c.catch_up,
               c.ready_at,
               case
                   when c.fate is not null then c.fate
                   when c.overlap = 'queue' and c.is_fresh and not c.is_outdated and c.waiting > c.most
                   then format('overlap: %s runs were waiting already', c.most)
               end,
               -- The number of runs that are not skipped and wait from this one on, including this one.
               c.later, c.is_outdated
        from counted as c;
end
$$;

-- Roles that may call `admit` call this function through it.
revoke execute on function pgcron.due_ticks(text[]) from public;
do $$
declare
    role record;
begin
    for role in
        select distinct case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as name
        from pg_proc as p
        cross join lateral aclexplode(p.proacl) as a
        where p.oid = 'pgcron.admit(bigint[])'::regprocedure and a.grantee <> p.proowner
    loop
        execute format('grant execute on function pgcron.due_ticks(text[]) to %s', role.name);
    end loop;
end
$$;
-- Decide whether the jobs of these ticks may begin. Decided under the lock of their schedules, with a snapshot taken
-- after it, so two runs that must not overlap cannot both be admitted.
--
-- A run that is not skipped begins, or waits for its turn. Whoever ends a run releases the next one; asking again after
-- `wait` seconds is for the case that no worker does.
--
-- Outdated runs are passed over. If one had begun before its worker returned it to the queue, it loses its place to the
-- run that passes it: it counts as not begun, and waits or is skipped like all others when a worker claims it. A claim
-- that commits after this snapshot calls this function next, waits for the lock of the schedule, and finds the newer
-- run.
--
-- With catch_up "all" and overlap "skip", a tick is not skipped because of a run that is late itself, or that a late
-- run has delayed. It waits for its turn, since otherwise catching up with old ticks would lose new ones. To recognise
-- a delayed run it is enough to check the last run before it, because such runs follow one another.
create or replace function pgcron.admit(ids bigint[]) returns table (
    job_id bigint, verdict text, reason text, wait float8, previous timestamptz, kind text, is_late boolean, ping text
)
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    moment constant timestamptz := pgcron.clock();
    late constant interval := '60 seconds';
    ask_again constant float8 := 600;
    names constant text[] := array(select distinct t.schedule from pgcron.ticks as t where t.job_id = any(ids));
begin
    perform from pgcron.schedules as s where s.name = any(names) order by s.name for update;
    -- `withdraw` would have skipped these if a worker had not just claimed them.
    update pgcron.ticks as t
    set outcome = 'skipped', reason = 'the schedule was removed', finished_at = moment
    where t.job_id = any(ids) and t.outcome is null and t.started_at is null and t.kind = 'tick'
      and not exists (select from pgcron.schedules as s where s.name = t.schedule);

    return query
        with due as materialized (
            select d.*,
                   d.is_outdated and d.job_id <> all(ids)                          as is_passed,
                   -- The first of those that are not skipped, and the first of them that has begun, if any has.
                   first_value(d.tick) over in_turn                                as first_tick,
                   first_value(d.tick) over begun_first                            as begun_tick,
                   first_value(d.started_at) over begun_first is not null          as has_begun
            from pgcron.due_ticks(names) as d
            window in_turn as (
                       partition by d.schedule, d.is_outdated and d.job_id <> all(ids)
                       order by d.reason is not null, d.due_at, d.tick
                   ),
                   begun_first as (
                       partition by d.schedule, d.is_outdated and d.job_id <> all(ids)
                       order by d.started_at is null, d.due_at, d.tick
                   )
        ),
        placed as (
            select d.*,
                   -- The first run that blocks it.
                   case when d.first_tick <> d.tick then d.first_tick when d.has_begun then d.begun_tick end
                       as earlier_tick
            from due as d
            where d.job_id = any(ids)
        ),
        judged as (
            select o.*,
                   case
                       when o.reason is not null then 'skip'
                       when o.started_at is not null or o.overlap = 'allow' or o.earlier_tick is null then 'go'
                       when o.overlap = 'queue' then 'wait'
                       -- Runs that were requested, by hand or by catching up with all ticks, are not skipped but wait
                       -- for their turn.
                       when o.kind <> 'tick' then 'wait'
                       when o.catch_up = 'all' and (o.planned_at > o.due_at or moment > o.due_at + late) then 'wait'
                       -- Runs that are on time wait as well, if they follow runs that are not.
                       when o.catch_up = 'all' and exists (
                           select
                           from due as e
                           where e.schedule = o.schedule and e.tick <> o.tick and e.kind in ('tick', 'backfill')
                             and e.reason is null and not e.is_passed
                             and (e.started_at is not null or (e.due_at, e.tick) < (o.due_at, o.tick))
                             and (e.kind = 'backfill' or e.started_at is null or e.started_at > o.due_at
                                  or e.planned_at > e.due_at or e.started_at > e.due_at + late
                                  or e.due_at < (
                                      select p.finished_at
                                      from pgcron.ticks as p
                                      where p.schedule = e.schedule and p.tick < e.tick and p.started_at is not null
                                      order by p.tick desc
                                      limit 1
                                  ))
                       ) then 'wait'
                       else 'skip'
                   end as verdict
            from placed as o
        ),
        noted as (
            update pgcron.ticks as t
            set started_at  = case when j.verdict = 'go' then coalesce(t.started_at, moment) end,
                -- The deadline of a run that has waited for its turn counts from the time when it could begin.
                late_at     = case
                    when j.verdict = 'go' and t.started_at is null then t.late_at + (j.ready_at - t.due_at)
                    else t.late_at
                end,
                outcome     = case when j.verdict = 'skip' then 'skipped' end,
                finished_at = case when j.verdict = 'skip' then moment end,
                reason      = case
                    when j.verdict = 'skip' then coalesce(
                        j.reason,
                        format('overlap: the run of %s was still going on', pgcron.as_text(j.earlier_tick))
                    )
                end
            from judged as j
            where t.schedule = j.schedule and t.tick = j.tick
            returning t.schedule, t.tick, t.job_id, t.kind, t.started_at, t.reason, j.ready_at, j.verdict
        ),
        passed as (
            update pgcron.ticks as t
            set started_at = null
            from due as d
            where d.is_passed and d.started_at is not null and t.schedule = d.schedule and t.tick = d.tick
              and exists (
                  select
                  from judged as j
                  where j.schedule = d.schedule and j.verdict = 'go' and j.started_at is null and j.overlap <> 'allow'
              )
        ),
        skipped as (
            select n.schedule, count(*) as times from noted as n where n.verdict = 'skip' group by n.schedule
        ),
        given_back as (
            -- A skipped run does not count; and a schedule that counts from the end of its last run can plan the next
            -- one. Other schedules use the end of a run.
            update pgcron.schedules as s
            set runs = greatest(0, s.runs - k.times), revision = s.revision + 1,
                plan_at = case when s.retired_at is null then coalesce(s.plan_at, moment) end,
                last_end = case
                    when (s.definition ->> 'after_finish')::boolean then greatest(s.last_end, moment)
                    else s.last_end
                end
            from skipped as k
            where s.name = k.schedule
        )
        select n.job_id, n.verdict, n.reason,
               case when n.verdict = 'wait' then ask_again end,
               (
                   select max(p.tick) from pgcron.ticks as p
                   where p.schedule = n.schedule and p.tick < n.tick and p.outcome = 'done'
               ),
               n.kind, coalesce(n.started_at, moment) > n.ready_at + late,
               s.definition ->> 'ping'
        from noted as n
        join pgcron.schedules as s on s.name = n.schedule
        union all
        -- Decided before, and the job still exists: the reply was lost, or the job was retried by hand. Or its schedule
        -- was removed since. A job that is not in the answer belongs to no tick, whatever its headers say.
        select t.job_id, case when t.outcome = 'skipped' then 'skip' else 'go' end, t.reason, null, null, t.kind, false,
               null
        from pgcron.ticks as t
        where t.job_id = any(ids)
          and (t.outcome is not null or not exists (select from pgcron.schedules as s where s.name = t.schedule));
end
$$;
