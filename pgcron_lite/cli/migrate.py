"""`pgcron migrate`: create the tables, or bring them up to date."""

from __future__ import annotations

import click

from . import FAILED, MISFIT, Refusal, output
from .context import chosen


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when the schema is behind.")
@click.option("--sql", is_flag=True, help="Print the SQL instead of running it. Needs no database.")
@click.option("--since", type=click.IntRange(0), metavar="N", help="With --sql: only the migrations after number N.")
@click.option("--to", type=click.IntRange(1), metavar="N", help="Stop after migration number N.")
@click.option("--environment", metavar="NAME",
              help="Label this database: only apps with PGCRON_ENVIRONMENT=NAME will use it.")
@click.pass_context
def migrate(
    ctx: click.Context, check: bool, sql: bool, since: int | None, to: int | None, environment: str | None
) -> None:
    """Create the tables, or bring them up to date.

    Safe to run repeatedly, and by several at once. Run it before the new code starts: older workers keep working.
    """
    from ..pg import migrate as migrating

    if check + sql + (to is not None) > 1 or (since is not None and not sql) or (environment and (check or sql)):
        raise click.UsageError(
            "--check, --sql (or --sql --since) and --to exclude one another, and --environment the first two"
        )
    if environment is not None and (not environment or environment != environment.strip()):
        # PGCRON_ENVIRONMENT without a value counts as not set: no process could ever have this label.
        raise click.BadParameter(
            f"{environment!r}: expected a name without blanks around it, such as production", param_hint="--environment"
        )
    app = chosen(ctx).app_or_bare()
    schema = app.settings.schema
    if sql:
        output.echo(output.Styled(migrating.script(schema, since or 0).rstrip("\n")))
        return
    if app.settings.is_memory:
        output.echo("memory:// has no tables; there is nothing to do")
        return
    from ..pg.url import parse_url

    # The direct connection, if there is one: a pooler may close a session that waits long for a lock.
    where = parse_url(
        app.settings.direct_url or app.settings.url(),
        application="pgcron migrate",
        source=app._source_of("direct_url" if app.settings.direct_url else "database_url"),
    )
    if check:
        _check(migrating.state(where, schema), schema)
        return
    applied = migrating.migrate(where, schema, to)
    for migration in applied:
        output.echo(f"applied {migration}")
    state = migrating.state(where, schema)
    output.echo(f"schema {schema!r} at {where} is at {state.have}/{state.want}{'' if applied else ', nothing to do'}")
    if environment is not None:
        store = app._open_store("pgcron migrate", size=1)
        try:
            store.note_fact("environment", environment)
        finally:
            store.close()
        setting = f"PGCRON_ENVIRONMENT={output.argument(environment)}"
        output.echo(f"it belongs to the environment {environment!r}: apps need {setting}")


def _check(state: object, schema: str) -> None:
    from ..pg.migrate import SchemaState

    assert isinstance(state, SchemaState)
    refusal = state.refusal(schema)
    if state.is_behind:
        raise Refusal(str(refusal), FAILED)
    if refusal is not None:
        raise Refusal(refusal, MISFIT)
    output.echo(f"schema {schema!r} is at {state.have}/{state.want}: up to date")
