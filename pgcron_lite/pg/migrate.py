"""Migrations of the schema: numbered SQL files, applied in order, each in a separate transaction.

Two processes may migrate at the same time. A lock serialises them that ends with the transaction, so it works through
a pooler as well; it is a lock on the table of migrations, which only the owner can take. A migration that cannot get
its table locks within a few seconds gives up and tries again, so that other statements do not queue up behind it.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from importlib import resources
from typing import LiteralString

import psycopg
from psycopg import errors as pg_errors
from psycopg import sql

from ..clock import monotonic
from ..config import SHARED_SCHEMAS
from ..errors import ConfigError, DatabaseRefused, DatabaseUnavailable, SchemaMismatch
from . import ownership, sequence
from .bounded_connection import connect
from .connection import in_schema
from .errors import pooled_by_statement, pools_statements
from .url import DatabaseUrl

logger = logging.getLogger(__name__)

LOCK_SECONDS = 3.0
PATIENCE_SECONDS = 60.0
# The migration that adds `mend_sequence`.
SEQUENCE_MIGRATION = 5

# Errors that end when another transaction ends: one that holds a lock, or one that creates the same schema. The latter
# cannot be serialised, because there is no table to lock yet.
RETRY: tuple[type[psycopg.Error], ...] = (
    pg_errors.LockNotAvailable,
    pg_errors.DeadlockDetected,
    pg_errors.DuplicateSchema,
    pg_errors.DuplicateFunction,
    pg_errors.UniqueViolation,
)

STATE: LiteralString = """
    select coalesce(max(number), 0) as have, coalesce(max(oldest_code), 0) as code from pgcron.migrations
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file. `oldest_code` is the oldest schema number whose code may run on the result."""

    number: int
    name: str
    text: str

    @property
    def oldest_code(self) -> int:
        declared = re.search(r"^-- oldest code: (\d+)$", self.text, re.MULTILINE)
        return int(declared.group(1)) if declared else self.number

    def __str__(self) -> str:
        return f"{self.number:04} {self.name}"


def migrations() -> list[Migration]:
    """Return all migrations of this version of the code, in order."""
    found = []
    for file in resources.files("pgcron_lite.pg").joinpath("sql").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text("utf-8")))
    return sorted(found, key=lambda m: m.number)


def newest() -> int:
    """Return the schema number that this code is written for."""
    return migrations()[-1].number


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The number of the schema that a database has, 0 for none, and of the one that this code needs."""

    have: int
    want: int
    oldest_code: int

    @property
    def is_behind(self) -> bool:
        return self.have < self.want

    def refusal(self, schema: str) -> str | None:
        """Return why this code cannot use the schema, with the command to run; None if it can."""
        if self.have == 0:
            return f"the schema {schema!r} is not there yet. Run: pgcron migrate"
        if self.is_behind:
            return f"the schema {schema!r} is at {self.have}, this version needs {self.want}. Run: pgcron migrate"
        if self.oldest_code > self.want:
            return (
                f"the schema {schema!r} is at {self.have} and no longer works with this version, which knows"
                f" {self.want}. Run: pip install --upgrade pgcron_lite"
            )
        return None


def state(address: DatabaseUrl, schema: str = "pgcron") -> SchemaState:
    """Return the state of the schema in a database. Changes nothing."""
    try:
        with _connect(address) as conn:
            return state_on(conn, schema)
    except pg_errors.InsufficientPrivilege as error:
        raise DatabaseRefused(f"cannot read the number of schema {schema!r}: {error}") from error


def migrate(address: DatabaseUrl, schema: str = "pgcron", to: int | None = None) -> list[Migration]:
    """Apply the missing migrations up to number `to`. Return those that were applied."""
    known = migrations()
    check_name(schema)
    target = known[-1].number if to is None else to
    if target not in {m.number for m in known}:
        raise ConfigError(f"there is no migration {target}; the known ones are 1 to {known[-1].number}")
    found = state(address, schema)
    have = found.have
    if not found.is_behind and (refusal := found.refusal(schema)) is not None:
        # There is nothing to apply, and success would be reported for a schema that this code cannot use.
        raise SchemaMismatch(refusal)
    if to is not None and have > to:
        raise SchemaMismatch(f"the schema {schema!r} is at {have} already; migrations only go forward")
    applied = []
    for migration in known:
        if migration.number <= target and _apply(address, schema, migration):
            applied.append(migration)
    if target >= SEQUENCE_MIGRATION:
        _repair_sequence(address, schema)
    return applied


def script(schema: str = "pgcron", since: int = 0) -> str:
    """Return the SQL that `migrate` would run on a database at number `since`, for applying it by hand."""
    check_name(schema)
    parts = []
    if since == 0:
        parts.append(in_schema("create schema if not exists pgcron;", schema))
    for migration in migrations():
        if migration.number > since:
            record = (
                "insert into pgcron.migrations (number, name, oldest_code)"  # noqa: S608
                f" values ({migration.number}, '{migration.name}', {migration.oldest_code});"
            )
            begin = "begin;\nset local search_path = pg_catalog, pg_temp;"
            # In each transaction, because a client that continues after an error would run the next ones.
            check = in_schema(ownership.MIGRATE_CHECK, schema)
            parts.append("\n".join([begin, check, in_schema(migration.text + record, schema), "commit;"]))
    return "\n\n".join(parts) + "\n"


def check_name(schema: str) -> None:
    """Refuse a schema that is shared with others, such as `public`."""
    if schema in SHARED_SCHEMAS:
        raise ConfigError(f"the schema {schema!r} belongs to others as well; choose a separate one, such as pgcron")


def _apply(address: DatabaseUrl, schema: str, migration: Migration) -> bool:
    """Apply one migration, unless it is applied already. Waits for locks repeatedly, for a short time each."""
    deadline = monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return _try_to_apply(address, schema, migration)
        except RETRY as error:
            if monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"migration {migration} waited {PATIENCE_SECONDS:.0f} s for a lock that others hold: {error}"
                ) from error
            logger.info("migration %s waits for a lock that others hold; trying again", migration)
            time.sleep(0.5)
        except psycopg.OperationalError as error:
            if pools_statements(error):
                raise pooled_by_statement(address) from error
            raise DatabaseUnavailable(f"migration {migration} was cut off, run it again: {error}") from error
        except psycopg.Error as error:
            raise DatabaseRefused(f"migration {migration} was refused, nothing of it has been done: {error}") from error


def _repair_sequence(address: DatabaseUrl, schema: str) -> None:
    """Move the sequence of ids forward if it is behind, and log that: `migrate` is often run after a restore."""
    try:
        with _connect(address) as conn:
            while behind := _number(conn.execute(in_schema(sequence.MEND, schema)).fetchone()):
                sequence.warn(behind)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"the sequence of job ids could not be checked, run it again: {error}") from error
    except psycopg.Error as error:
        raise DatabaseRefused(f"the sequence of job ids could not be checked: {error}") from error


def _number(row: object) -> int:
    assert isinstance(row, tuple)
    return int(row[0])


def _try_to_apply(address: DatabaseUrl, schema: str, migration: Migration) -> bool:
    with _connect(address) as conn, conn.transaction():
        conn.execute("select set_config('lock_timeout', %s, true)", [f"{LOCK_SECONDS * 1000:.0f}"])
        conn.execute("select set_config('statement_timeout', '0', true)")
        # Names in defaults, constraints and the view refer to the same functions whatever role migrates.
        conn.execute("set local search_path = pg_catalog, pg_temp")
        ownership.check(conn, in_schema(ownership.MIGRATE_REFUSAL, schema), schema)
        if _is_begun(conn, schema):
            conn.execute(in_schema("lock table pgcron.migrations in share update exclusive mode", schema))
        if state_on(conn, schema).have >= migration.number:
            return False
        if migration.number == 1:
            _create_schema(conn, schema)
        conn.execute(in_schema(migration.text, schema))
        conn.execute(
            in_schema(
                "insert into pgcron.migrations (number, name, oldest_code) values (%(number)s, %(name)s, %(code)s)",
                schema,
            ),
            {"number": migration.number, "name": migration.name, "code": migration.oldest_code},
        )
        return True


def _create_schema(conn: psycopg.Connection[object], schema: str) -> None:
    plain = conn.execute("select quote_ident(%s) = %s", [schema, schema]).fetchone()
    if plain != (True,):
        raise ConfigError(f"schema {schema!r} is a reserved word of SQL; choose another name")
    # An empty schema may have been created for a role that has no right to create one.
    if conn.execute("select from pg_namespace where nspname = %s", [schema]).rowcount == 0:
        conn.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))


def state_on(conn: psycopg.Connection[object], schema: str) -> SchemaState:
    """Return the state of the schema on an open connection."""
    ownership.check(conn, in_schema(ownership.USE_REFUSAL, schema), schema)
    if not _is_begun(conn, schema):
        return SchemaState(0, newest(), 0)
    row = conn.execute(in_schema(STATE, schema)).fetchone()
    assert isinstance(row, tuple)
    return SchemaState(row[0], newest(), row[1])


def _is_begun(conn: psycopg.Connection[object], schema: str) -> bool:
    """Return True if the first migration has been applied."""
    table = conn.execute("select to_regclass(%s)", [in_schema("pgcron.migrations", schema)]).fetchone()
    return table != (None,)


def _connect(address: DatabaseUrl) -> psycopg.Connection[object]:
    conn: psycopg.Connection[object] = connect(psycopg.Connection, address, autocommit=True)
    conn.prepare_threshold = None
    conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    conn.read_only = False
    return conn
