"""Checks of who owns a schema, made before anything in it is read or called.

A role that may create schemas can create one called `pgcron` before the first migration. A view in place of a table, or
a function, then runs with the rights of the role that reads or calls it. So a schema is used only if its owner is
trusted and its objects are of the kinds that our migrations create.

The trusted roles are the current role, superusers, the owner of the database, and the roles that the current one is a
member of. Membership is read from `pg_auth_members`, because `pg_has_role` reports a superuser as a member of every
role.

A role that cannot create schemas, such as one with the part `producer` or `worker`, accepts another owner as well,
because that owner has granted its rights. To migrate, the owner must be trusted in any case.
"""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg

from ..errors import ConfigError

# Every name is looked up in `pg_catalog`, and both sides of each comparison have the same type. So even if others can
# write to the search path, no function or operator of theirs can match better. Relations are looked up by name and
# schema, the key of the catalogue's index, because a database may have a hundred thousand of them.
_LOOKUP: LiteralString = """
    with recursive membership (role) as (
        select r.oid from pg_catalog.pg_roles as r where r.rolname = current_user
        union
        select m.roleid from pg_catalog.pg_auth_members as m join membership as s on m.member = s.role
    ),
    trusted (role) as (
        select m.role from membership as m
        union
        select r.oid from pg_catalog.pg_roles as r where r.rolsuper
        union
        select d.datdba from pg_catalog.pg_database as d where d.datname = pg_catalog.current_database()
    ),
    ours (id, owner, is_trusted) as (
        select n.oid, n.nspowner, n.nspowner in (select t.role from trusted as t)
        from pg_catalog.pg_namespace as n
        where n.nspname = 'pgcron'
    ),
    kinds (name, kind) as (
        values ('migrations'::pg_catalog.name, 'r'::"char"), ('facts', 'r'), ('jobs', 'r'), ('history', 'r'),
               ('workers', 'r'), ('queues', 'r'), ('generations', 'r'), ('planner', 'r'), ('schedules', 'r'),
               ('ticks', 'r'), ('all_jobs', 'v'), ('jobs_id_seq', 'S')
    ),
    relations (name, owner, is_right) as (
        select c.relname, c.relowner,
               -- A rule of a table rewrites what is written to it; a view is one rule.
               c.relkind = k.kind and not c.relrowsecurity and (k.kind = 'v' or not c.relhasrules)
        from ours as o
        cross join kinds as k
        join pg_catalog.pg_class as c on c.relname = k.name and c.relnamespace = o.id
    ),
    functions (name, owner) as (
        select p.proname, p.proowner
        from ours as o
        join pg_catalog.pg_proc as p on p.pronamespace = o.id and p.proname = any(array[
            'clock', 'levels', 'ring', 'enqueue', 'enqueue_many', 'complete', 'admit', 'reconcile', 'withdraw',
            'as_text', 'allow', 'deny', 'check_id', 'check_ids', 'check_role', 'next_id', 'draw_ids',
            'mend_sequence', 'into_history', 'due_ticks'
        ]::pg_catalog.name[])
    )
"""

# The check of the kinds and owners of those of our objects that exist; null if nothing is wrong.
_PARTS: LiteralString = """
    (
        select pg_catalog.concat('has ', pg_catalog.quote_literal(r.name::pg_catalog.text),
                                 ' of another kind than the migrations make')
        from relations as r
        where not r.is_right
        order by r.name
        limit 1
    ),
    (
        select pg_catalog.concat('has ', pg_catalog.quote_literal(p.name::pg_catalog.text), ', which is owned by ',
                                 pg_catalog.quote_literal(pg_catalog.pg_get_userbyid(p.owner)::pg_catalog.text))
        from (select r.name, r.owner from relations as r union all select f.name, f.owner from functions as f) as p
        where p.owner <> o.owner and p.owner not in (select t.role from trusted as t)
        order by p.name
        limit 1
    )
"""

_OWNED: LiteralString = """
    pg_catalog.concat(
        'is owned by ', pg_catalog.quote_literal(pg_catalog.pg_get_userbyid(o.owner)::pg_catalog.text),
        ', whom ', pg_catalog.quote_literal(current_user::pg_catalog.text), ' does not trust: neither a superuser, nor'
        ' the owner of the database, nor a role that it is a member of'
    )
"""

# Why the schema must not be used, or null; no row if there is no schema.
USE_REFUSAL: LiteralString = (
    _LOOKUP  # noqa: S608
    + """
    select case
        when not o.is_trusted
             and pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') then
    """
    + _OWNED
    + " else coalesce("
    + _PARTS
    + ") end as reason from ours as o"
)

# Why the schema must not be migrated, or null. A migration would revoke the rights of PUBLIC on objects of others, and
# our functions could call theirs.
MIGRATE_REFUSAL: LiteralString = (
    _LOOKUP  # noqa: S608
    + """,
    objects (name, owner) as (
        select c.relname, c.relowner from ours as o join pg_catalog.pg_class as c on c.relnamespace = o.id
        union all
        select p.proname, p.proowner from ours as o join pg_catalog.pg_proc as p on p.pronamespace = o.id
        union all
        select t.typname, t.typowner from ours as o join pg_catalog.pg_type as t on t.typnamespace = o.id
        -- Types of tables and arrays are left out: the names of their tables and element types are checked.
        where t.typrelid = '0' and t.typelem = '0'
    )
    select case when not o.is_trusted then
    """
    + _OWNED
    + " else coalesce("
    + _PARTS
    + """,
        (
            select pg_catalog.concat('has ', pg_catalog.quote_literal(j.name::pg_catalog.text),
                                     ', which no migration made')
            from objects as j
            where not exists (select from relations as r where r.name = 'migrations')
               or j.owner not in (select t.role from trusted as t)
            order by j.name
            limit 1
        )
    ) end as reason from ours as o"""
)

# The same check as a statement that fails, for scripts.
MIGRATE_CHECK: LiteralString = (
    "do $check$\ndeclare\n    refusal text;\nbegin\n    select checked.reason into refusal from ("  # noqa: S608
    + MIGRATE_REFUSAL
    + """) as checked;
    if refusal is not null then
        raise exception 'the schema pgcron %', refusal using errcode = 'insufficient_privilege';
    end if;
end
$check$;
"""
)


def check(conn: psycopg.Connection[Any], query: LiteralString, schema: str) -> bool:
    """Raise `ConfigError` if `query`, one of the above, returns a reason. Return False if there is no schema.

    `query` must contain the actual name of the schema, see `in_schema`.
    """
    rows = conn.execute(query).fetchall()
    for (reason,) in rows:
        if reason is not None:
            raise ConfigError(
                f"the schema {schema!r} {reason}. If it was made by `pgcron migrate` with another role, use the URL of"
                " that role, or the role that it gave rights to by pgcron.allow. Otherwise it is not a schema of"
                " pgcron_lite that may be trusted: set PGCRON_SCHEMA to another name. An empty schema of yours becomes"
                f" usable by: alter schema {schema} owner to the role that migrates"
            )
    return bool(rows)
