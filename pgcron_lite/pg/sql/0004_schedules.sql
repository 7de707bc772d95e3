-- pgcron: schedules and their ticks.
-- oldest code: 3
--
-- A schedule is a row with its definition and the last tick that is decided. A tick is a row too: one due time of a
-- schedule, with its job, or with the reason why it has none. (schedule, tick) is the key. The tick, its job and the
-- new `last_tick` of the schedule are written in one transaction, and only if `revision` has not changed. So a tick
-- fires once, whoever decides it and however often. `last_tick` never goes back behind a tick that is due.
--
-- Schedules declared in code are stored by the workers that run that code. A generation is one such set of
-- declarations. For each schedule, the newest generation with a live worker applies. So a rolling deploy changes each
-- schedule once, and a rollback changes it back when the last worker of the newer code is gone.

create table pgcron.generations (
    id          text primary key,
    -- The order in which they were first seen, which defines which one is newer.
    number      bigint generated always as identity,
    app         text        not null,
    definitions json        not null check (json_typeof(definitions) = 'object'),
    declared_at timestamptz not null default pgcron.clock()
);

-- The code that a worker runs.
alter table pgcron.workers add column generation text;

-- One row with the state that the planners of all processes share.
create table pgcron.planner (
    is_only     boolean primary key default true check (is_only),
    -- The generations whose declarations are in force.
    generations text[]      not null default '{}',
    -- When a worker last searched for runs that are missed, late, or over and not recorded.
    watched_at  timestamptz not null default '-infinity',
    pruned_at   timestamptz not null default '-infinity'
);
insert into pgcron.planner default values;

create table pgcron.schedules (
    name       text primary key check (name <> '' and length(name) <= 200),
    -- Declared in code, or made at run time.
    origin     text        not null check (origin in ('code', 'hand')),
    app        text        not null,
    generation text,
    definition json        not null check (json_typeof(definition) = 'object'),
    -- Incremented by every change of what follows, so that a decision is written only if the row has not changed.
    revision   bigint      not null default 0,
    last_tick  timestamptz not null default pgcron.clock(),
    -- When to decide the next ticks. Null: never again, or when a run ends, or when something changes.
    plan_at    timestamptz default pgcron.clock(),
    -- The time since which new code requests one run at its start. The next decision of ticks creates it.
    starts_at  timestamptz,
    runs       bigint      not null default 0 check (runs >= 0),
    last_end   timestamptz,
    paused_at  timestamptz,
    -- No live worker's code declares it any more. The row is kept in case one does again.
    retired_at timestamptz,
    alarm      text check (alarm in ('missed', 'late')),
    alarm_tick timestamptz,
    -- The reason why no ticks can be found for it.
    trouble    text,
    created_at timestamptz not null default pgcron.clock(),

    check ((alarm is null) = (alarm_tick is null)),
    check (retired_at is null or plan_at is null),
    -- A requested run at the start must not be forgotten.
    check (starts_at is null or (origin = 'code' and plan_at is not null))
);

create index schedules_due on pgcron.schedules (plan_at) where plan_at is not null;

create table pgcron.ticks (
    -- The name and not a reference: past ticks are kept when the schedule is deleted.
    schedule    text        not null,
    tick        timestamptz not null,
    kind        text        not null default 'tick' check (kind in ('tick', 'start', 'manual', 'backfill')),
    -- The tick with its jitter; for runs requested by hand, the time of the request.
    due_at      timestamptz not null,
    late_at     timestamptz,
    job_id      bigint,
    planned_at  timestamptz not null default pgcron.clock(),
    started_at  timestamptz,
    finished_at timestamptz,
    outcome     text check (outcome in ('done', 'failed', 'cancelled', 'deleted', 'skipped')),
    reason      text,

    primary key (schedule, tick),
    check (job_id is not null or outcome = 'skipped'),
    check ((outcome = 'skipped') = (reason is not null)),
    check ((outcome is null) = (finished_at is null))
);

create index ticks_job on pgcron.ticks (job_id);
create index ticks_open on pgcron.ticks (schedule, due_at) where outcome is null;
create index ticks_age on pgcron.ticks (tick);

-- Withdraw the jobs of a schedule that have not begun: those of future ticks or, with `entirely`, also overdue ones,
-- which are recorded as skipped. Runs that have begun are not changed.
create function pgcron.withdraw(schedule_name text, entirely boolean, why text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    moment constant timestamptz := pgcron.clock();
    gone bigint[];
begin
    -- Lock a schedule before its jobs and its ticks, as every statement does.
    perform from pgcron.schedules as s where s.name = schedule_name for update;
    with withdrawn as (
        delete from pgcron.jobs as j
        using pgcron.ticks as t
        where t.schedule = schedule_name and t.outcome is null and t.started_at is null and t.kind = 'tick'
          and (entirely or t.tick > moment)
          and j.id = t.job_id and j.state = 'queued' and j.attempt = 0
        returning j.id
    )
    select coalesce(array_agg(w.id), '{}') into gone from withdrawn as w;
    delete from pgcron.ticks as t
    where t.schedule = schedule_name and t.tick > moment and t.job_id = any(gone);
    update pgcron.ticks as t
    set outcome = 'skipped', reason = why, finished_at = moment
    where t.schedule = schedule_name and t.tick <= moment and t.job_id = any(gone);
    update pgcron.schedules as s
    set runs = greatest(0, s.runs - cardinality(gone)),
        revision = s.revision + 1,
        -- The last tick that is left, or now: ticks that were decided and are due stay decided.
        last_tick = greatest(
            least(s.last_tick, moment),
            (select max(t.tick) from pgcron.ticks as t where t.schedule = schedule_name and t.kind = 'tick')
        )
    where s.name = schedule_name;
end
$$;

-- Update the schedules declared in code to the code of the workers that are live now, or only `schedule_name`, when
-- another schedule with that name was removed. Returns the changes.
--
-- Every transaction that locks the planner's row locks it before any schedule, and a schedule before its jobs. This
-- includes the removal of a schedule, which locks both. So the second transaction holds no lock while it waits, and
-- sees what the first has written.
create function pgcron.reconcile(schedule_name text default null) returns table (name text, what text)
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    moment constant timestamptz := pgcron.clock();
    living text[];
    before text[];
    said record;
begin
    select p.generations into before from pgcron.planner as p for update;
    living := array(
        select distinct w.generation from pgcron.workers as w where w.generation is not null order by w.generation
    );
    if schedule_name is not null then
        -- Code whose workers were away for a while is not new when they return.
        living := living || before;
    elsif living = before then
        return;
    end if;
    -- In the order of their names, in which `admit` locks them too.
    perform
    from pgcron.schedules as s
    where s.origin = 'code' and (schedule_name is null or s.name = schedule_name)
    order by s.name
    for update;
    for said in
        with declared as (
            select distinct on (d.key) d.key as name, d.value as definition, g.id as generation, g.app
            from pgcron.generations as g
            cross join lateral json_each(g.definitions) as d (key, value)
            where g.id = any(living) and (schedule_name is null or d.key = schedule_name)
            order by d.key, g.number desc
        )
        select d.name, d.definition, d.generation, d.app,
               s.name is null                                     as is_new,
               coalesce(s.origin = 'hand', false)                 as is_taken,
               s.retired_at,
               s.definition::text is distinct from d.definition::text as is_changed,
               s.generation is distinct from d.generation         as is_others,
               case
                   -- Only new code requests a run, and not a removal that makes room for an existing declaration.
                   when coalesce((d.definition ->> 'run_on_start')::boolean, false)
                        and not d.generation = any(before) and schedule_name is null
                   then greatest(moment, (
                       -- A time that no other run has, even if the clock stands still, as in tests.
                       select max(t.tick) + interval '1 microsecond'
                       from pgcron.ticks as t
                       where t.schedule = d.name and t.tick between moment and moment + interval '1 millisecond'
                   ))
               end                                                as starts_at
        from declared as d
        left join pgcron.schedules as s on s.name = d.name
        order by d.name
    loop
        if said.is_new then
            insert into pgcron.schedules (name, origin, app, generation, definition, starts_at)
            values (said.name, 'code', said.app, said.generation, said.definition, said.starts_at);
            return query select said.name, 'new';
        elsif said.is_taken then
            return query select said.name, 'taken';
        elsif said.is_changed or said.retired_at is not null then
            perform pgcron.withdraw(said.name, false, 'the schedule was changed');
            update pgcron.schedules as s
            set definition = said.definition, generation = said.generation, app = said.app, retired_at = null,
                trouble = null, plan_at = moment, starts_at = said.starts_at, revision = s.revision + 1,
                -- After a restart of everything, missed ticks are caught up with; after a longer absence the schedule
                -- starts anew.
                last_tick = case
                    when said.retired_at < moment - interval '1 hour' then greatest(s.last_tick, moment)
                    else s.last_tick
                end
            where s.name = said.name;
            return query select said.name, 'changed';
        elsif said.starts_at is not null then
            if (said.definition ->> 'after_finish')::boolean then
                -- The run at the start is the next one, and the following one counts from its end.
                perform pgcron.withdraw(said.name, false, 'the code was started');
            end if;
            update pgcron.schedules as s
            set generation = said.generation, plan_at = moment, starts_at = said.starts_at, revision = s.revision + 1
            where s.name = said.name;
            return query select said.name, 'started';
        elsif said.is_others then
            update pgcron.schedules as s set generation = said.generation where s.name = said.name;
        end if;
    end loop;
    if schedule_name is not null then
        -- The other schedules, and the update of the live generations, are left to a worker.
        return;
    end if;
    for said in
        select s.name
        from pgcron.schedules as s
        where s.origin = 'code' and s.retired_at is null
          -- Its own app is live and does not declare it any more. Nothing is known about an app that is down.
          and exists (select from pgcron.generations as g where g.id = any(living) and g.app = s.app)
          and not exists (
              select
              from pgcron.generations as g
              cross join lateral json_object_keys(g.definitions) as d (key)
              where g.id = any(living) and d.key = s.name
          )
        order by s.name
    loop
        perform pgcron.withdraw(said.name, true, 'the schedule was removed');
        update pgcron.schedules as s
        set retired_at = moment, plan_at = null, starts_at = null, alarm = null, alarm_tick = null, trouble = null,
            revision = s.revision + 1
        where s.name = said.name;
        return query select said.name, 'retired';
    end loop;
    update pgcron.planner as p set generations = living;
end
$$;

-- Decide whether the jobs of these ticks may begin. Decided under the lock of their schedules, with a snapshot taken
-- after it, so two runs that must not overlap cannot both be admitted.
create function pgcron.admit(ids bigint[]) returns table (
    job_id bigint, verdict text, reason text, wait float8, previous timestamptz, kind text, is_late boolean, ping text
)
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    moment constant timestamptz := pgcron.clock();
    late constant interval := '60 seconds';
begin
    perform
    from pgcron.schedules as s
    where s.name in (select t.schedule from pgcron.ticks as t where t.job_id = any(ids))
    order by s.name
    for update;

    return query
        with rules as (
            select s.name,
                   s.definition ->> 'catch_up'                                             as catch_up,
                   s.definition ->> 'overlap'                                              as overlap,
                   make_interval(secs => coalesce((s.definition ->> 'start_within')::float8, 0)) as start_within,
                   s.definition ->> 'start_within' is not null                             as has_start_within,
                   s.definition ->> 'ping'                                                 as ping
            from pgcron.schedules as s
            where s.name in (select t.schedule from pgcron.ticks as t where t.job_id = any(ids))
        ),
        -- All due runs of these schedules that are not over, each with its fate if there were no others.
        open as (
            select t.schedule, t.tick, t.due_at, t.planned_at, t.job_id, t.kind, t.started_at, r.overlap, r.catch_up,
                   case
                       when t.started_at is not null or t.kind <> 'tick' then 'go'
                       when r.has_start_within and moment > t.due_at + r.start_within then 'too late'
                       when r.catch_up = 'skip' and moment > t.due_at + late then 'missed'
                       when r.catch_up = 'latest' and exists (
                           select
                           from pgcron.ticks as later
                           where later.schedule = t.schedule and later.outcome is null and later.kind = 'tick'
                             and later.due_at <= moment and later.tick > t.tick
                       ) then 'missed; a later tick stands for it'
                       else 'go'
                   end as fate
            from rules as r
            join pgcron.ticks as t on t.schedule = r.name and t.outcome is null and t.due_at <= moment
            where exists (select from pgcron.jobs as j where j.id = t.job_id)
        ),
        judged as (
            select o.*,
                   case
                       when o.fate <> 'go' then 'skip'
                       when o.started_at is not null or o.overlap = 'allow' or earlier.tick is null then 'go'
                       -- Runs that were requested, by hand or by catching up with all ticks, are not skipped but wait
                       -- for their turn.
                       when o.overlap = 'skip' and o.kind = 'tick'
                            and not (o.catch_up = 'all' and moment > o.due_at + case
                                when o.planned_at > o.due_at then interval '0' else late
                            end) then 'skip'
                       else 'wait'
                   end as verdict,
                   earlier.tick as earlier_tick
            from open as o
            left join lateral (
                select e.tick
                from open as e
                where e.schedule = o.schedule and e.fate = 'go' and e.job_id <> o.job_id
                  and (e.started_at is not null or (e.due_at, e.tick) < (o.due_at, o.tick))
                order by e.due_at, e.tick
                limit 1
            ) as earlier on true
            where o.job_id = any(ids)
        ),
        noted as (
            update pgcron.ticks as t
            set started_at  = case when j.verdict = 'go' then coalesce(t.started_at, moment) end,
                outcome     = case when j.verdict = 'skip' then 'skipped' end,
                finished_at = case when j.verdict = 'skip' then moment end,
                reason      = case
                    when j.verdict <> 'skip' then null
                    when j.fate <> 'go' then j.fate
                    else format('overlap: the run of %s was still going on', pgcron.as_text(j.earlier_tick))
                end
            from judged as j
            where t.schedule = j.schedule and t.tick = j.tick
            returning t.schedule, t.tick, t.due_at, t.job_id, t.kind, t.started_at, t.reason, j.verdict
        ),
        skipped as (
            select n.schedule, count(*) as times from noted as n where n.verdict = 'skip' group by n.schedule
        ),
        given_back as (
            -- A skipped run does not count; and a schedule that counts from the end of its runs can plan the next one.
            update pgcron.schedules as s
            set runs = greatest(0, s.runs - k.times), plan_at = coalesce(s.plan_at, moment), revision = s.revision + 1,
                last_end = greatest(s.last_end, moment)
            from skipped as k
            where s.name = k.schedule
        )
        select n.job_id, n.verdict, n.reason,
               case when n.verdict = 'wait'
                   then least(60, greatest(1, extract(epoch from moment - n.due_at) / 10))::float8
               end,
               (
                   select max(p.tick) from pgcron.ticks as p
                   where p.schedule = n.schedule and p.tick < n.tick and p.outcome = 'done'
               ),
               n.kind, coalesce(n.started_at, moment) > n.due_at + late,
               r.ping
        from noted as n
        join rules as r on r.name = n.schedule
        union all
        -- Decided before, and the job still exists: the reply was lost, or the job was retried by hand.
        select t.job_id, case when t.outcome = 'skipped' then 'skip' else 'go' end, t.reason, null, null, t.kind, false,
               null
        from pgcron.ticks as t
        where t.job_id = any(ids) and t.outcome is not null;
end
$$;

-- A time as people write it, in UTC.
create function pgcron.as_text(moment timestamptz) returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
    as $$ select to_char(moment at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"') $$;

-- The parts of `allow`, with the new objects.
create or replace function pgcron.allow(role_name name, part text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    enqueue_columns constant text :=
        'id, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes, created_at';
begin
    if part not in ('producer', 'reader', 'worker', 'admin') then
        raise exception 'there is no part %; the parts are producer, reader, worker and admin', quote_literal(part)
            using errcode = 'invalid_parameter_value';
    end if;
    execute format('grant usage on schema pgcron to %I', role_name);
    execute format('grant select on pgcron.migrations, pgcron.facts to %I', role_name);
    execute format('grant execute on function pgcron.clock() to %I', role_name);
    if part in ('reader', 'worker', 'admin') then
        execute format(
            'grant select on pgcron.jobs, pgcron.history, pgcron.all_jobs, pgcron.workers, pgcron.queues, '
            'pgcron.schedules, pgcron.ticks, pgcron.generations, pgcron.planner to %I', role_name);
    end if;
    if part in ('producer', 'worker') then
        -- Of the columns to write, only those that a caller may choose; of those to read, only the id, so that a
        -- repeated enqueue can check whether its first try was committed.
        execute format('grant insert (%s), select (id) on pgcron.jobs to %I', enqueue_columns, role_name);
        execute format('grant select (id) on pgcron.history to %I', role_name);
        execute format('grant usage on sequence pgcron.jobs_id_seq to %I', role_name);
        execute format(
            'grant execute on function '
            'pgcron.enqueue(text, json, text, int, timestamptz, int, jsonb, text[], int, boolean), '
            'pgcron.enqueue_many(json, boolean) to %I', role_name);
    end if;
    if part in ('worker', 'admin') then
        execute format('grant insert, update, delete on pgcron.jobs, pgcron.history, pgcron.queues, '
                       'pgcron.schedules, pgcron.ticks to %I', role_name);
        execute format('grant update on pgcron.planner to %I', role_name);
        execute format('grant usage on sequence pgcron.jobs_id_seq to %I', role_name);
        execute format('grant execute on function pgcron.withdraw(text, boolean, text), pgcron.reconcile(text), '
                       'pgcron.as_text(timestamptz) to %I', role_name);
    end if;
    if part = 'worker' then
        execute format('grant insert, update, delete on pgcron.workers, pgcron.generations to %I', role_name);
        execute format('grant execute on function pgcron.levels(), pgcron.complete(bigint, uuid, json), '
                       'pgcron.admit(bigint[]) to %I', role_name);
    end if;
    execute format('grant execute on function pgcron.ring() to %I', role_name);
end
$$;

revoke all on all tables in schema pgcron from public;
revoke all on all sequences in schema pgcron from public;
revoke execute on all functions in schema pgcron from public;
