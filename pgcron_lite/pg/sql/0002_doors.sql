-- pgcron: the functions that enqueue jobs, for every driver and language.
--
-- They run in the caller's transaction: the job and the data it is about are committed together, or not at all.

-- Wake the workers. The notification is delivered when the transaction commits.
create function pgcron.ring() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- When the notification queue is full, every commit with a NOTIFY fails. A doorbell must never fail the caller's
    -- transaction: workers also poll every few seconds. Reading the usage also frees a queue that would stay full after
    -- its cause is gone.
    if pg_notification_queue_usage() < 0.25 then
        perform pg_notify('pgcron', '');
    end if;
end
$$;

-- Enqueue one job and return its id.
--
--     select pgcron.enqueue('mail.send', '{"to": "ada@example.org"}', execute_after => now() + interval '10 min');
--
-- `args` is an object of named arguments or an array of positional ones. New parameters get defaults and are added at
-- the end, so that older callers keep working.
create function pgcron.enqueue(
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
    job_id bigint;
begin
    insert into pgcron.jobs (task, args, queue, priority, execute_after, max_attempts, headers, tags, max_crashes)
    values (
        enqueue.task, enqueue.args, enqueue.queue, enqueue.priority,
        coalesce(enqueue.execute_after, pgcron.clock()),
        enqueue.max_attempts, enqueue.headers, enqueue.tags, enqueue.max_crashes
    )
    returning id into job_id;
    if enqueue.ring then
        perform pgcron.ring();
    end if;
    return job_id;
end
$$;

-- Enqueue many jobs in one statement, and return their ids in the order of `jobs`, an array of objects with the keys
-- task, args, queue, priority, execute_after or delay (seconds), max_attempts, headers, tags, max_crashes.
create function pgcron.enqueue_many(jobs json, ring boolean default true) returns setof bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    asked_at constant timestamptz := pgcron.clock();
begin
    return query
        with asked as (
            select (j.value ->> 'task')                                as task,
                   coalesce(j.value -> 'args', '{}')                   as args,
                   coalesce(j.value ->> 'queue', 'default')            as queue,
                   coalesce((j.value ->> 'priority')::smallint, 0::smallint) as priority,
                   coalesce(
                       (j.value ->> 'execute_after')::timestamptz,
                       asked_at + make_interval(secs => coalesce((j.value ->> 'delay')::float8, 0))
                   )                                                   as execute_after,
                   coalesce((j.value ->> 'max_attempts')::smallint, 5::smallint) as max_attempts,
                   coalesce((j.value ->> 'headers')::jsonb, '{}')      as headers,
                   coalesce(
                       (select array_agg(t.tag order by t.position)
                        from json_array_elements_text(j.value -> 'tags') with ordinality as t (tag, position)),
                       '{}'
                   )                                                   as tags,
                   coalesce((j.value ->> 'max_crashes')::smallint, 3::smallint) as max_crashes
            from json_array_elements(enqueue_many.jobs) with ordinality as j (value, position)
            order by j.position
        )
        insert into pgcron.jobs (task, args, queue, priority, execute_after, max_attempts, headers, tags,
                                 max_crashes, created_at)
        select a.task, a.args, a.queue, a.priority, a.execute_after, a.max_attempts, a.headers, a.tags,
               a.max_crashes, asked_at
        from asked as a
        -- Ids are drawn one after the other as the rows are inserted, so they are returned in the order of the input.
        returning id;
    if enqueue_many.ring then
        perform pgcron.ring();
    end if;
end
$$;

-- End a running job in the caller's transaction: the effect and the completion are committed together, so the effect
-- happens exactly once. Returns false if the claim is no longer the caller's, who must then roll back.
create function pgcron.complete(job_id bigint, claim uuid, result json default null) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    with ended as (
        delete from pgcron.jobs as j
        where j.id = complete.job_id and j.claim = complete.claim and j.state = 'running'
        returning j.*
    )
    insert into pgcron.history (id, task, queue, priority, state, args, headers, tags, execute_after, attempt,
                                max_attempts, crashes, max_crashes, claim, worker, claimed_at, errors, created_at,
                                finished_at, result)
    select id, task, queue, priority, 'done', args, headers, tags, execute_after, attempt,
           max_attempts, crashes, max_crashes, ended.claim, worker, claimed_at, errors, created_at,
           pgcron.clock(), complete.result
    from ended;
    return found;
end
$$;

revoke execute on all functions in schema pgcron from public;
