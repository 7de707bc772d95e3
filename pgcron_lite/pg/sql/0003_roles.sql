-- pgcron: the rights of roles.
--
-- Nothing is granted to PUBLIC. Roles belong to the server and are created by you. This function grants them one of
-- four parts. It may be called again after every migration (`pgcron migrate` reports when that is necessary):
--
--     select pgcron.allow('web', 'producer');
--
--     producer   can enqueue, and nothing else: it cannot read arguments, not even of its own jobs
--     reader     can read everything
--     worker     can run jobs: everything that a worker process does, including enqueueing
--     admin      can operate: read, retry, cancel, delete, pause
--
-- Only the owner of the schema can migrate, truncate and alter.

create function pgcron.allow(role_name name, part text) returns void
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
            'grant select on pgcron.jobs, pgcron.history, pgcron.all_jobs, pgcron.workers, pgcron.queues to %I',
            role_name);
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
        execute format('grant insert, update, delete on pgcron.jobs, pgcron.history, pgcron.queues to %I',
                       role_name);
    end if;
    if part = 'worker' then
        execute format('grant insert, update, delete on pgcron.workers to %I', role_name);
        execute format('grant execute on function pgcron.levels(), pgcron.complete(bigint, uuid, json) to %I',
                       role_name);
    end if;
    execute format('grant execute on function pgcron.ring() to %I', role_name);
end
$$;

revoke execute on all functions in schema pgcron from public;
