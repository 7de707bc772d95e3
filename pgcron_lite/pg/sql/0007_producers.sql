-- pgcron: a producer can only produce.
-- oldest code: 3
--
-- A row inserted by a role that may do nothing else must not stop, slow down or mislead a worker or an operator. So the
-- values that such a role may choose are bounded here, for every way to enqueue.
--
-- The bounds are on domains and are not checked for existing rows ("not valid"): those rows stay as they are, and end
-- like all others. A domain is checked when a value is written to its column; a claim changes other columns and does
-- not check it. So an old row that violates a new bound stops nothing.

-- The type of a column changes without a rewrite of the table only while its domain has no constraint.
create domain pgcron.priority_number as smallint;
create domain pgcron.tag_names as text[];

-- The type of a column cannot change while a view reads it. The view keeps its grants and dependent objects: it is
-- replaced by an empty one for a moment, and then gets its definition back.
do $$
declare
    definition constant text := pg_get_viewdef('pgcron.all_jobs'::regclass);
    columns text;
begin
    select string_agg(format('null::%s as %I', format_type(a.atttypid, a.atttypmod), a.attname), ', ' order by a.attnum)
    into columns
    from pg_attribute as a
    where a.attrelid = 'pgcron.all_jobs'::regclass and a.attnum > 0;
    execute 'create or replace view pgcron.all_jobs as select ' || columns;
    alter table pgcron.jobs
        alter column priority type pgcron.priority_number,
        alter column tags type pgcron.tag_names;
    execute 'create or replace view pgcron.all_jobs as ' || definition;
end
$$;

-- Bounded because the claim reads each priority in use.
alter domain pgcron.priority_number
    add constraint priority_is_from_minus_100_to_100 check (value between -100 and 100) not valid;
-- Bounds the number of times that a job may kill its worker.
alter domain pgcron.from_one add constraint max_crashes_is_at_most_100 check (value <= 100) not valid;
-- Bounded because a worker that decodes arguments does nothing else meanwhile.
alter domain pgcron.arguments
    add constraint arguments_are_at_most_1_mb check (octet_length(value::text) <= 1048576) not valid;
-- Concatenated with an empty value, its size is that of the value as it is read, and not of its compressed form.
alter domain pgcron.headers
    add constraint headers_are_at_most_64_kb check (value = '{}' or pg_column_size(value || '{}') <= 65536) not valid;
alter domain pgcron.tag_names
    add constraint tags_are_up_to_100_words check (
        cardinality(value) = 0
        or (
            array_ndims(value) = 1
            and cardinality(value) <= 100
            and array_position(value, null) is null
            and length(array_to_string(value, '')) <= 10000
        )
    ) not valid;

-- Check the id of a job that a producer inserts. A producer chooses it, so that it can repeat an enqueue whose reply
-- was lost. It must have drawn the id from the sequence: otherwise it could occupy ids that others are about to draw.
-- It must not be the id of a job that has ended: two jobs would have that id, and an operator could retry neither.
create function pgcron.check_id() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if tg_when = 'BEFORE' then
        raise exception 'the id % was not drawn from the sequence pgcron.jobs_id_seq; leave the id out', new.id
            using errcode = 'invalid_parameter_value', constraint = 'jobs_id_is_drawn';
    elsif exists (select from pgcron.history as h where h.id = new.id) then
        raise exception 'the id % is that of a job that has ended; leave the id out', new.id
            using errcode = 'unique_violation', constraint = 'jobs_pkey';
    end if;
    return null;
end
$$;

-- Have the ids of producers checked, as soon as there is a producer: a trigger takes a tenth of the time of each insert
-- of a job, whoever inserts it, and roles that may change jobs are trusted with their ids anyway.
create function pgcron.check_ids() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not exists (
        select from pg_trigger as t
        where t.tgrelid = 'pgcron.jobs'::regclass and t.tgname = 'jobs_id_is_drawn'
    ) then
        -- Before the row is inserted: otherwise others who draw its id would wait for the row until the statement ends.
        create trigger jobs_id_is_drawn before insert on pgcron.jobs
            for each row
            when (
                not has_table_privilege('pgcron.jobs', 'update')
                and new.id not between 1 and coalesce(pg_sequence_last_value('pgcron.jobs_id_seq'::regclass), 0)
            )
            execute function pgcron.check_id();
        -- After the insert, because a job with that id that was ending meanwhile is in history now.
        create trigger jobs_id_is_unused after insert on pgcron.jobs
            for each row
            when (not has_table_privilege('pgcron.jobs', 'update'))
            execute function pgcron.check_id();
    end if;
end
$$;

do $$
begin
    if exists (
        select
        from pg_attribute as a
        cross join lateral aclexplode(a.attacl) as acl
        where a.attrelid = 'pgcron.jobs'::regclass and a.attname = 'id' and acl.privilege_type = 'INSERT'
    ) then
        perform pgcron.check_ids();
    end if;
end
$$;

-- Unchanged, except that the types of the result are written out.
create or replace function pgcron.levels() returns table (queue text, priority smallint)
    language plpgsql stable rows 10
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query
        with recursive walk (queue, priority) as (
            (
                select j.queue, j.priority
                from pgcron.jobs as j
                where j.state = 'queued' and not j.alone
                order by j.queue, j.priority desc
                limit 1
            )
            union all
            select next.queue, next.priority
            from walk as w
            cross join lateral (
                (
                    select j.queue, j.priority
                    from pgcron.jobs as j
                    where j.state = 'queued' and not j.alone and j.queue = w.queue and j.priority < w.priority
                    order by j.priority desc
                    limit 1
                )
                union all
                (
                    select j.queue, j.priority
                    from pgcron.jobs as j
                    where j.state = 'queued' and not j.alone and j.queue > w.queue
                    order by j.queue, j.priority desc
                    limit 1
                )
                order by queue, priority desc
                limit 1
            ) as next
        )
        select walk.queue::text, walk.priority::smallint from walk;
end
$$;

-- Return why a job would not be stored, and what to do; null if it would be stored. The constraints above check the
-- same for roles that insert rows, but report only their names. Without a search path, so that it is inlined into its
-- callers.
create function pgcron.refusal(
    task text, args json, queue text, priority int, execute_after timestamptz, max_attempts int, headers jsonb,
    tags text[], max_crashes int
) returns text[]
    language sql stable parallel safe
    as $$
select case
    when task is null or task = '' or length(task) > 200 then array[
        format('task => %L: expected the name of a task, of 1 to 200 characters', left(task, 50)),
        'It is the name that the task is registered under, as ''mail.send''.'
    ]
    when args is null or json_typeof(args) not in ('object', 'array') then array[
        format('args => %L: expected a JSON array or object of arguments', left(args::text, 50)),
        'An array has them by position: ''[7]'', an object by name: ''{"user_id": 7}''.'
    ]
    when octet_length(args::text) > 1048576 then array[
        format('the arguments take %s bytes of JSON; up to 1048576 are stored with a job', octet_length(args::text)),
        'Keep the data in a table and pass its id.'
    ]
    when queue is null or queue = '' or length(queue) > 100 then array[
        format('queue => %L: expected a name of 1 to 100 characters', left(queue, 50)),
        'Leave it out for ''default''.'
    ]
    when priority is null or priority not between -100 and 100 then array[
        format('priority => %s: expected a number from -100 to 100', coalesce(priority::text, 'NULL')),
        'Higher runs earlier, 0 is usual.'
    ]
    when execute_after not between '2000-01-01' and '9000-01-01' then array[
        format('execute_after => %L: expected a time between the years 2000 and 9000', execute_after),
        'For a delay, pass now() + interval ''10 min''.'
    ]
    when max_attempts is null or max_attempts not between 1 and 32767 then array[
        format('max_attempts => %s: expected a number from 1 to 32767', coalesce(max_attempts::text, 'NULL')),
        'It counts all executions, the first one too.'
    ]
    when headers is null or not (
        headers = '{}'
        or jsonb_typeof(headers) = 'object'
           and not jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")', '{}', true)
    ) then array[
        format('headers => %L: expected a JSON object of texts', left(headers::text, 50)),
        'As in ''{"trace": "7f3a"}''; what the task needs goes into args.'
    ]
    when headers <> '{}' and pg_column_size(headers || '{}') > 65536 then array[
        format('the headers take %s bytes; up to 65536 are stored with a job', pg_column_size(headers || '{}')),
        'Keep the data in a table and pass its id.'
    ]
    when tags is null or cardinality(tags) > 0 and (
        array_ndims(tags) <> 1 or cardinality(tags) > 100 or array_position(tags, null) is not null
        or length(array_to_string(tags, '')) > 10000
    ) then array[
        format('tags => %s of them: expected up to 100 texts in a plain array, of up to 10000 characters together',
               coalesce(cardinality(tags)::text, 'NULL in place')),
        'As in array[''nightly'', ''eu''].'
    ]
    when max_crashes is null or max_crashes not between 1 and 100 then array[
        format('max_crashes => %s: expected a number from 1 to 100', coalesce(max_crashes::text, 'NULL')),
        'It counts the deaths of a worker that ran this job alone, 3 is usual.'
    ]
end
$$;

-- Raise the refusal. Strict, so that it is not called if there is none.
create function pgcron.refuse(reason text[], place text default '') returns text
    language plpgsql strict
    set search_path = pg_catalog, pg_temp
    as $$
begin
    raise exception '%', place || reason[1] using errcode = 'check_violation', hint = reason[2];
end
$$;

-- Unchanged, except that it explains the bounds, and has no parameter `created_at`, which no caller has to choose.
create or replace function pgcron.enqueue(
    task          text,
    args          json        default '{}',
    queue         text        default 'default',
    priority      int         default 0,
    execute_after timestamptz default null,
    max_attempts  int         default 5,
    headers       jsonb       default '{}',
    tags          text[]      default '{}',
    max_crashes   int         default 3,
    ring          boolean     default true
) returns bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    -- The caller's transaction must not fail because the sequence is behind.
    job_id constant bigint := (pgcron.draw_ids(1))[1];
    refused constant text[] := pgcron.refusal(
        enqueue.task, enqueue.args, enqueue.queue, enqueue.priority, enqueue.execute_after, enqueue.max_attempts,
        enqueue.headers, enqueue.tags, enqueue.max_crashes
    );
begin
    if refused is not null then
        perform pgcron.refuse(refused);
    end if;
    insert into pgcron.jobs (id, task, args, queue, priority, execute_after, max_attempts, headers, tags, max_crashes)
    values (
        job_id, enqueue.task, enqueue.args, enqueue.queue, enqueue.priority,
        coalesce(enqueue.execute_after, pgcron.clock()),
        enqueue.max_attempts, enqueue.headers, enqueue.tags, enqueue.max_crashes
    );
    if enqueue.ring then
        perform pgcron.ring();
    end if;
    return job_id;
end
$$;

create or replace function pgcron.enqueue_many(jobs json, ring boolean default true) returns setof bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    asked_at constant timestamptz := pgcron.clock();
    most_seconds constant numeric := 2e11;
    ids bigint[];
    entry record;
    refused text[];
begin
    if enqueue_many.jobs is null or json_typeof(enqueue_many.jobs) <> 'array' then
        perform pgcron.refuse(array[
            format('jobs => %L: expected a JSON array of jobs', left(enqueue_many.jobs::text, 50)),
            'As in ''[{"task": "mail.send", "args": [7]}]''.'
        ]);
    end if;
    -- Refuse values of another type than their column before they are converted. A number may be given as a text, as
    -- before.
    for entry in
        select e.value, e.position, case when json_typeof(e.value) = 'object' then (
            select k.key
            from json_object_keys(e.value) as k (key)
            where k.key not in ('task', 'args', 'queue', 'priority', 'execute_after', 'delay', 'max_attempts',
                                'headers', 'tags', 'max_crashes')
            limit 1
        ) end as other
        from json_array_elements(enqueue_many.jobs) with ordinality as e (value, position)
    loop
        refused := case
            when json_typeof(entry.value) <> 'object' then null
            when entry.other is not null then array[
                format('%s: there is no such key', left(entry.other, 50)),
                'The keys are task, args, queue, priority, execute_after or delay, max_attempts, headers, tags and '
                'max_crashes.'
            ]
            when json_typeof(entry.value -> 'task') not in ('string', 'null') then array[
                format('task => %L: expected the name of a task', left(entry.value ->> 'task', 50)),
                'It is the name that the task is registered under, as "mail.send".'
            ]
            when json_typeof(entry.value -> 'queue') not in ('string', 'null') then array[
                format('queue => %L: expected a name of 1 to 100 characters', left(entry.value ->> 'queue', 50)),
                'Leave it out for "default".'
            ]
            when entry.value ->> 'priority' !~ '^[+-]?[0-9]{1,9}$' then array[
                format('priority => %L: expected a whole number from -100 to 100', left(entry.value ->> 'priority', 50)),
                'Higher runs earlier, 0 is usual.'
            ]
            when entry.value ->> 'max_attempts' !~ '^[+-]?[0-9]{1,9}$' then array[
                format('max_attempts => %L: expected a whole number from 1 to 32767',
                       left(entry.value ->> 'max_attempts', 50)),
                'It counts all executions, the first one too.'
            ]
            when entry.value ->> 'max_crashes' !~ '^[+-]?[0-9]{1,9}$' then array[
                format('max_crashes => %L: expected a whole number from 1 to 100', left(entry.value ->> 'max_crashes', 50)),
                'It counts the deaths of a worker that ran this job alone, 3 is usual.'
            ]
            when case
                when entry.value ->> 'delay' ~ '^[+-]?[0-9]{1,20}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?$'
                then abs((entry.value ->> 'delay')::numeric) > most_seconds
                else entry.value ->> 'delay' is not null
            end then array[
                format('delay => %L: expected a number of seconds', left(entry.value ->> 'delay', 50)),
                'As in 600 for ten minutes; for a time, use the key execute_after.'
            ]
            when json_typeof(entry.value -> 'headers') not in ('object', 'null') then array[
                format('headers => %L: expected a JSON object of texts', left(entry.value ->> 'headers', 50)),
                'As in {"trace": "7f3a"}; what the task needs goes into args.'
            ]
            when json_typeof(entry.value -> 'tags') <> 'array' then array[
                format('tags => %L: expected an array of texts', left(entry.value ->> 'tags', 50)),
                'As in ["nightly", "eu"]; leave it out for none.'
            ]
        end;
        if refused is null and entry.value ->> 'execute_after' is not null then
            -- Only the conversion itself accepts every way to write a time.
            begin
                perform (entry.value ->> 'execute_after')::timestamptz;
            exception when data_exception then
                refused := array[
                    format('execute_after => %L: expected a time', left(entry.value ->> 'execute_after', 50)),
                    'As in "2026-03-01T02:30:00Z"; for a delay, use the key delay with the number of seconds.'
                ];
            end;
        end if;
        if refused is not null then
            perform pgcron.refuse(refused, concat('jobs[', entry.position - 1, ']: '));
        end if;
    end loop;
    ids := pgcron.draw_ids(json_array_length(enqueue_many.jobs));
    return query
        -- Materialized, so that the JSON is parsed once.
        with asked as materialized (
            select ids[j.position]                                     as id,
                   j.position,
                   (j.value ->> 'task')                                as task,
                   coalesce(j.value -> 'args', '{}')                   as args,
                   coalesce(j.value ->> 'queue', 'default')            as queue,
                   coalesce((j.value ->> 'priority')::int, 0)           as priority,
                   coalesce(
                       (j.value ->> 'execute_after')::timestamptz,
                       asked_at + make_interval(secs => coalesce((j.value ->> 'delay')::float8, 0))
                   )                                                   as execute_after,
                   coalesce((j.value ->> 'max_attempts')::int, 5)       as max_attempts,
                   coalesce((j.value ->> 'headers')::jsonb, '{}')      as headers,
                   coalesce(
                       (select array_agg(t.tag order by t.position)
                        from json_array_elements_text(j.value -> 'tags') with ordinality as t (tag, position)),
                       '{}'
                   )                                                   as tags,
                   coalesce((j.value ->> 'max_crashes')::int, 3)        as max_crashes
            from json_array_elements(enqueue_many.jobs) with ordinality as j (value, position)
            order by j.position
        )
        insert into pgcron.jobs (id, task, args, queue, priority, execute_after, max_attempts, headers, tags,
                                 max_crashes)
        select a.id, a.task, a.args, a.queue, a.priority, a.execute_after, a.max_attempts, a.headers, a.tags,
               a.max_crashes
        from asked as a
        where pgcron.refuse(
            pgcron.refusal(a.task, a.args, a.queue, a.priority, a.execute_after, a.max_attempts, a.headers, a.tags,
                           a.max_crashes),
            concat('jobs[', a.position - 1, ']: ')
        ) is null
        -- Rows are inserted and returned in the order of the input.
        returning id;
    if enqueue_many.ring then
        perform pgcron.ring();
    end if;
end
$$;

-- Refuse a role that must not be granted anything: PUBLIC is everyone who can connect, and the predefined roles of
-- PostgreSQL stand for groups of others.
create function pgcron.check_role(role_name name) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if lower(btrim(role_name::text)) in ('public', 'current_user', 'current_role', 'session_user', 'none')
       or role_name like 'pg\_%' then
        raise exception '% is not a role of one program; expected a role made with CREATE ROLE',
            quote_literal(role_name)
            using errcode = 'invalid_parameter_value';
    end if;
    if not exists (select from pg_roles as r where r.rolname = role_name) then
        raise exception 'role % does not exist', quote_literal(role_name) using errcode = 'undefined_object';
    end if;
end
$$;

-- The parts of `allow`. Called again for a producer, it revokes `created_at`, which was granted before.
create or replace function pgcron.allow(role_name name, part text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    enqueue_columns constant text :=
        'id, nonce, task, queue, priority, args, headers, tags, execute_after, max_attempts, max_crashes';
begin
    perform pgcron.check_role(role_name);
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
    if part = 'producer' then
        perform pgcron.check_ids();
    end if;
    if part in ('producer', 'worker') then
        -- Of the columns to write, only those that a caller may choose; of those to read, only the id and the nonce, so
        -- that a repeated enqueue can check whether its first try was committed.
        execute format('revoke insert (created_at) on pgcron.jobs from %I', role_name);
        execute format('grant insert (%s), select (id, nonce) on pgcron.jobs to %I', enqueue_columns, role_name);
        execute format('grant select (id, nonce) on pgcron.history to %I', role_name);
        execute format('grant usage on sequence pgcron.jobs_id_seq to %I', role_name);
        execute format(
            'grant execute on function '
            'pgcron.enqueue(text, json, text, int, timestamptz, int, jsonb, text[], int, boolean), '
            'pgcron.enqueue_many(json, boolean), pgcron.refuse(text[], text), '
            'pgcron.refusal(text, json, text, int, timestamptz, int, jsonb, text[], int) to %I', role_name);
    end if;
    if part in ('producer', 'worker', 'admin') then
        execute format('grant execute on function pgcron.next_id(), pgcron.draw_ids(int) to %I', role_name);
    end if;
    if part in ('worker', 'admin') then
        execute format('grant insert, update, delete on pgcron.jobs, pgcron.history, pgcron.queues, '
                       'pgcron.schedules, pgcron.ticks to %I', role_name);
        execute format('grant update on pgcron.planner to %I', role_name);
        execute format('grant usage on sequence pgcron.jobs_id_seq to %I', role_name);
        execute format('grant execute on function pgcron.withdraw(text, boolean, text), pgcron.reconcile(text), '
                       'pgcron.as_text(timestamptz), pgcron.into_history(bigint, uuid, jsonb), '
                       'pgcron.mend_sequence() to %I', role_name);
    end if;
    if part = 'worker' then
        execute format('grant insert, update, delete on pgcron.workers, pgcron.generations to %I', role_name);
        execute format('grant execute on function pgcron.levels(), pgcron.complete(bigint, uuid, json), '
                       'pgcron.due_ticks(text[]), pgcron.admit(bigint[]) to %I', role_name);
    end if;
    execute format('grant execute on function pgcron.ring() to %I', role_name);
end
$$;

-- Revoke a part. A part contains others: worker contains all, admin contains reader. Denying a part also revokes the
-- parts that it contains, because nothing records which of them were also granted separately; grant those again that
-- the role is to keep. A part that contains the denied one stays complete: deny that one instead.
create function pgcron.deny(role_name name, part text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    role_id oid;
    held text[] := '{}';
    kept text;
begin
    perform pgcron.check_role(role_name);
    if part not in ('producer', 'reader', 'worker', 'admin') then
        raise exception 'there is no part %; the parts are producer, reader, worker and admin', quote_literal(part)
            using errcode = 'invalid_parameter_value';
    end if;
    select r.oid into role_id from pg_roles as r where r.rolname = role_name;
    -- The rights that were granted to the role itself. Those that it has through another role belong to that role.
    if exists (
        select from pg_proc as p cross join lateral aclexplode(p.proacl) as a
        where p.oid = 'pgcron.levels()'::regprocedure and a.grantee = role_id and a.privilege_type = 'EXECUTE'
    ) then
        held := '{worker}';
    else
        if exists (
            select from pg_proc as p cross join lateral aclexplode(p.proacl) as a
            where p.oid = 'pgcron.enqueue_many(json, boolean)'::regprocedure and a.grantee = role_id
              and a.privilege_type = 'EXECUTE'
        ) then
            held := held || array['producer'];
        end if;
        if exists (
            select from pg_class as c cross join lateral aclexplode(c.relacl) as a
            where c.oid = 'pgcron.jobs'::regclass and a.grantee = role_id and a.privilege_type = 'DELETE'
        ) then
            held := held || array['admin'];
        elsif exists (
            select from pg_class as c cross join lateral aclexplode(c.relacl) as a
            where c.oid = 'pgcron.jobs'::regclass and a.grantee = role_id and a.privilege_type = 'SELECT'
        ) then
            held := held || array['reader'];
        end if;
    end if;
    execute format('revoke all on all tables in schema pgcron from %I', role_name);
    execute format('revoke all on all sequences in schema pgcron from %I', role_name);
    execute format('revoke all on all functions in schema pgcron from %I', role_name);
    execute format('revoke all on schema pgcron from %I', role_name);
    foreach kept in array held loop
        if kept <> part then
            perform pgcron.allow(role_name, kept);
        end if;
    end loop;
end
$$;

revoke execute on all functions in schema pgcron from public;

-- Roles that may enqueue keep working without being allowed again.
do $$
declare
    role record;
begin
    for role in
        select distinct case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as name
        from pg_proc as p
        cross join lateral aclexplode(p.proacl) as a
        where p.oid = 'pgcron.enqueue_many(json, boolean)'::regprocedure and a.privilege_type = 'EXECUTE'
    loop
        execute format(
            'grant execute on function pgcron.refuse(text[], text), '
            'pgcron.refusal(text, json, text, int, timestamptz, int, jsonb, text[], int) to %s',
            role.name
        );
    end loop;
end
$$;
