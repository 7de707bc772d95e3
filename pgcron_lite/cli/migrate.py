"""`pgcron migrate`: make the tables, or bring them up to date."""

from __future__ import annotations

import click

from . import FAILED, MISFIT, Refusal
from .opening import chosen


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when the schema is behind.")
@click.option("--sql", is_flag=True, help="Print the SQL instead of running it. Needs no database.")
@click.option("--since", type=click.IntRange(0), metavar="N", help="With --sql: only what comes after number N.")
@click.option("--to", type=click.IntRange(1), metavar="N", help="Stop after migration number N.")
@click.option("--environment", metavar="NAME",
              help="Write down whose database this is: only apps with PGCRON_ENVIRONMENT=NAME will use it.")
@click.pass_context
def migrate(
    ctx: click.Context, check: bool, sql: bool, since: int | None, to: int | None, environment: str | None
) -> None:
    """Create the tables, or bring them up to date.

    May be run again and again, and by several at once. Run it before the new code starts: older workers go on.
    """
    from ..pg import migrate as migrating

    if check + sql + (to is not None) > 1 or (since is not None and not sql) or (environment and (check or sql)):
        raise click.UsageError(
            "--check, --sql (or --sql --since) and --to exclude one another, and --environment the first two"
        )
    app = chosen(ctx).app_or_bare()
    schema = app.settings.schema
    if sql:
        click.echo(migrating.script(schema, since or 0), nl=False)
        return
    if app.settings.is_memory:
        click.echo("memory:// has no tables; there is nothing to do")
        return
    from ..pg.address import address

    # The direct connection, if there is one: a pooler may cut off what waits long for a lock.
    where = address(app.settings.direct_url or app.settings.url(), application="pgcron migrate")
    if check:
        _check(migrating.state(where, schema), schema)
        return
    applied = migrating.migrate(where, schema, to)
    for migration in applied:
        click.echo(f"applied {migration}")
    state = migrating.state(where, schema)
    click.echo(f"schema {schema!r} at {where} is at {state.have}/{state.want}{'' if applied else ', nothing to do'}")
    if environment is not None:
        store = app.open_store("pgcron migrate", size=1)
        try:
            store.note_fact("environment", environment)
        finally:
            store.close()
        click.echo(f"it belongs to the environment {environment!r}: apps need PGCRON_ENVIRONMENT={environment}")


def _check(state: object, schema: str) -> None:
    from ..pg.migrate import SchemaState

    assert isinstance(state, SchemaState)
    refusal = state.refusal(schema)
    if state.is_behind:
        raise Refusal(str(refusal), FAILED)
    if refusal is not None:
        raise Refusal(refusal, MISFIT)
    click.echo(f"schema {schema!r} is at {state.have}/{state.want}: up to date")
