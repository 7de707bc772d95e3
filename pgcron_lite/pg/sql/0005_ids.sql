-- pgcron: ids that are already in use.
-- oldest code: 3
--
-- Ids come from one sequence, and none is drawn twice as long as the sequence only moves forward. It does not always: a
-- standby that was promoted without the last commits, a restore, a logical replica (sequences are not replicated) and
-- setval() all leave a sequence that is behind. Then an id is drawn that is already in `jobs` or `history`, and:
--
--   - a producer draws another one, by next_id(); a single job or a batch is stored completely or not at all;
--   - a job whose id is in history when it ends is stored there under a new id, see into_history();
--   - the sequence is moved forward, by mend_sequence(): workers do it when they connect, and so does `pgcron migrate`.
--
-- The nonce, a random number for each call that enqueues, identifies who has drawn an id. A producer whose connection
-- broke before the reply recognises by it whether an existing row is its own.

alter table pgcron.jobs add column nonce bigint;
alter table pgcron.history add column nonce bigint;

-- Draw an id that is neither in `jobs` nor in `history`.
create function pgcron.next_id() returns bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    fresh bigint;
begin
    loop
        fresh := nextval('pgcron.jobs_id_seq');
        exit when not exists (select from pgcron.jobs as j where j.id = fresh)
              and not exists (select from pgcron.history as h where h.id = fresh);
    end loop;
    return fresh;
end
$$;

-- Draw several ids, in ascending order. Checks all of them with one query, which almost always suffices.
create function pgcron.draw_ids(how_many int) returns bigint[]
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    ids bigint[] := array(select nextval('pgcron.jobs_id_seq') from generate_series(1, how_many));
begin
    -- Drawn together, they are adjacent, and usually no other id is between the first and the last.
    if (
        exists (select from pgcron.jobs as j where j.id between ids[1] and ids[how_many])
        and exists (select from pgcron.jobs as j where j.id = any(ids))
    ) or (
        exists (select from pgcron.history as h where h.id between ids[1] and ids[how_many])
        and exists (select from pgcron.history as h where h.id = any(ids))
    ) then
        ids := array(select pgcron.next_id() from generate_series(1, how_many));
    end if;
    return ids;
end
$$;

-- Move the sequence forward to the newest id in use. Returns by how much it was behind, 0 if it was not. Call it again
-- until it returns 0, because a role that may not set the sequence moves it by a million at a time.
create function pgcron.mend_sequence() returns bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    ids constant regclass := 'pgcron.jobs_id_seq';
    portion constant bigint := 1000000;
    -- A role that inserts a row may choose its id. Ids above this limit were chosen; following them could exhaust the
    -- sequence.
    beyond constant bigint := 9007199254740992;
    last constant bigint := pg_sequence_last_value(ids);
    newest bigint;
    behind bigint;
begin
    -- The query that a worker runs each minute. It reads only ids above the last value, of which there are usually
    -- none. Finding the newest id would read the entries of all deleted rows while a long transaction is open.
    if not exists (select from pgcron.jobs as j where j.id > last and j.id < beyond)
       and not exists (select from pgcron.history as h where h.id > last and h.id < beyond)
       and last is not null then
        return 0;
    end if;
    newest := greatest(
        (select max(j.id) from pgcron.jobs as j where j.id < beyond),
        (select max(h.id) from pgcron.history as h where h.id < beyond)
    );
    -- The last value is null until the first id is drawn, wherever the sequence begins.
    behind := newest - coalesce(pg_sequence_last_value(ids), case when newest is not null then nextval(ids) end);
    if behind is null or behind <= 0 then
        return 0;
    end if;
    if behind > portion and has_sequence_privilege(ids, 'update')
       and has_table_privilege('pgcron.migrations', 'update') then
        -- Never move it back, which would cause the very problem. No lock that we could take stops nextval(), but
        -- others would have to draw a million ids between the query above and this statement. The lock serialises
        -- concurrent calls of this function. Only the owner can hold it.
        lock table pgcron.migrations in share update exclusive mode;
        perform setval(ids, greatest(newest, pg_sequence_last_value(ids)));
    else
        -- Drawing ids only moves the sequence forward, whoever else draws, and needs no other right.
        perform count(nextval(ids)) from generate_series(1, least(behind, portion));
    end if;
    return behind;
end
$$;

-- Return the id and the headers under which a job that ends is stored in history: usually its own. If another job is in
-- history under that id, this one gets a new id, and a header contains the earlier one, so neither is lost. Returns no
-- row if the same end of the same job is in history already.
create function pgcron.into_history(job_id bigint, claim uuid, headers jsonb)
    returns table (history_id bigint, history_headers jsonb)
    language plpgsql rows 1
    set search_path = pg_catalog, pg_temp
    as $$
declare
    there record;
begin
    select h.claim into there from pgcron.history as h where h.id = into_history.job_id;
    history_id := into_history.job_id;
    history_headers := into_history.headers;
    if not found then
        return next;
    elsif there.claim is distinct from into_history.claim or there.claim is null then
        history_id := pgcron.next_id();
        -- Concatenated, because the name of the schema would replace its first part.
        history_headers := history_headers
            || jsonb_build_object(concat('pg', 'cron-earlier-id'), into_history.job_id::text);
        update pgcron.ticks as t
        set job_id = into_history.history_id
        where t.job_id = into_history.job_id and t.outcome is null
          and exists (select from jsonb_each_text(into_history.headers) as h where h.value = t.schedule);
        raise warning 'job % has ended, and history has another job of that id: it is stored under the id %',
            into_history.job_id, history_id
            using errcode = '01P0C',
                  hint = 'The sequence of ids was behind, as after a failover or a restore. Workers move it on.';
        return next;
    end if;
end
$$;

-- End a running job in the caller's transaction: the effect and the completion are committed together, so the effect
-- happens exactly once. Returns false if the claim is no longer the caller's, who must then roll back.
create or replace function pgcron.complete(job_id bigint, claim uuid, result json default null) returns boolean
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
                                finished_at, result, nonce)
    select h.history_id, task, queue, priority, 'done', args, h.history_headers, tags, execute_after, attempt,
           max_attempts, crashes, max_crashes, ended.claim, worker, claimed_at, errors, created_at,
           pgcron.clock(), complete.result, nonce
    from ended
    cross join lateral pgcron.into_history(ended.id, ended.claim, ended.headers) as h;
    return found;
end
$$;

revoke execute on function pgcron.next_id(), pgcron.draw_ids(int), pgcron.mend_sequence(),
                           pgcron.into_history(bigint, uuid, jsonb) from public;

-- Roles that may enqueue or work keep working without being allowed again.
do $$
declare
    role record;
begin
    for role in
        select distinct case when g.grantee = 'PUBLIC' then 'public' else quote_ident(g.grantee) end as name
        from information_schema.column_privileges as g
        where g.table_schema = 'pgcron' and g.table_name = 'jobs' and g.column_name = 'id'
          and g.privilege_type = 'INSERT'
    loop
        execute format('grant insert (nonce), select (nonce) on pgcron.jobs to %s', role.name);
        execute format('grant select (nonce) on pgcron.history to %s', role.name);
        execute format('grant execute on function pgcron.next_id(), pgcron.draw_ids(int) to %s', role.name);
    end loop;
    for role in
        select distinct case when g.grantee = 'PUBLIC' then 'public' else quote_ident(g.grantee) end as name
        from information_schema.table_privileges as g
        where g.table_schema = 'pgcron' and g.table_name = 'history' and g.privilege_type = 'INSERT'
    loop
        execute format(
            'grant execute on function pgcron.into_history(bigint, uuid, jsonb), pgcron.mend_sequence() to %s',
            role.name
        );
    end loop;
end
$$;
