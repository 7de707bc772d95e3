"""The driver's errors: which to try again, which cost the connection, and how each is worded."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors as pg_errors

from ..errors import ConfigError, DatabaseRefused, DatabaseUnavailable, LoginRefused, PgCronError
from .url import DatabaseUrl

# Errors after which the same statement may be right a moment later.
TRY_AGAIN: tuple[type[psycopg.Error], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg_errors.ReadOnlySqlTransaction,
    pg_errors.FeatureNotSupported,
    pg_errors.InFailedSqlTransaction,
    pg_errors.IdleInTransactionSessionTimeout,
)

# Errors after which this very connection is no longer worth having: a standby, a plan that no longer fits
# ("cached plan must not change result type" would be repeated for ever), a prepared statement a pooler lost.
LEAVE: tuple[type[psycopg.Error], ...] = (
    pg_errors.ReadOnlySqlTransaction,
    pg_errors.FeatureNotSupported,
    pg_errors.InvalidSqlStatementName,
    pg_errors.DuplicatePreparedStatement,
)

WRONG_SCHEMA: tuple[type[psycopg.Error], ...] = (
    pg_errors.UndefinedTable,
    pg_errors.UndefinedColumn,
    pg_errors.UndefinedFunction,
    pg_errors.InvalidSchemaName,
)


# What refuses an id: another job has it, or the sequence, which was set back, has not drawn it yet.
REFUSES_IDS = ("jobs_pkey", "history_pkey", "jobs_id_is_drawn")


# What the constraints on the values of a job mean.
UNFIT = {
    "task_name_check": "its task has no name, or one of more than 200 characters",
    "queue_name_check": "its queue has no name, or one of more than 100 characters",
    "arguments_check": "its arguments are neither a JSON array nor an object",
    "arguments_are_at_most_1_mb": "its arguments take more than 1 MB of JSON. Keep the data in a table and pass its id",
    "headers_check": "its headers are not a JSON object of texts",
    "headers_are_at_most_64_kb": "its headers take more than 64 kB",
    "tags_are_up_to_100_words": "its tags are more than 100, or have more than 10000 characters together",
    "priority_is_from_minus_100_to_100": "its priority is not from -100 to 100",
    "due_time_check": "its execute_after is not between the years 2000 and 9000",
    "from_one_check": "its max_crashes is below 1",
    "max_crashes_is_at_most_100": "its max_crashes is above 100",
}


class JobUnfit(DatabaseRefused):
    """A job with a value that the table does not take."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the database does not store this job: {reason}")
        self.reason = reason


class IdTaken(DatabaseRefused):
    """An id that may not be used: it is in `jobs` or in `history` already, or is ahead of the sequence."""


class IdHeld(DatabaseUnavailable):
    """An id under which a transaction that is still open has inserted a job: nothing was stored.

    Never raised by a repeat, which could take its own first try for another's: `on conflict` waits for the table's row.
    """


def trouble(error: psycopg.Error) -> DatabaseUnavailable:
    """The exception for a statement that may be right a moment later."""
    # The words around the name of the index depend on the language of the server.
    if isinstance(error, pg_errors.LockNotAvailable) and "jobs_pkey" in (error.diag.context or ""):
        return IdHeld(worded(error))
    return DatabaseUnavailable(worded(error))


def refusal(error: psycopg.Error) -> DatabaseRefused:
    """The exception for a statement that would be refused again."""
    if error.diag.constraint_name in REFUSES_IDS:
        return IdTaken(worded(error))
    if error.diag.constraint_name in UNFIT:
        return JobUnfit(UNFIT[error.diag.constraint_name])
    if isinstance(error, pg_errors.InsufficientPrivilege):
        # The first line alone: the driver adds the statement and a caret below it.
        (refused, *_) = str(error).splitlines() or [type(error).__name__]
        return DatabaseRefused(
            f"{refused}. A database role gets its rights by part; as the owner of the schema, run:"
            " select pgcron.allow('ROLE', 'worker'), or 'producer', 'reader', 'admin' in the place of 'worker'"
        )
    return DatabaseRefused(worded(error))


def no_schema(schema: str, error: BaseException) -> str:
    """The sentence for a statement that did not find our tables or functions."""
    # The first line alone: the driver adds the statement and a caret below it.
    (found, *_) = str(error).splitlines() or [type(error).__name__]
    return f"the schema {schema!r} is not in this database, or does not fit this version: {found}. Run: pgcron migrate"


def interruption(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """What was thrown in from outside, a deadline's or a killed greenlet's, when psycopg raised `error` in its place.

    It tidies its pipeline up, and cannot in the middle of a statement. What was `handled` before is no interruption.
    """
    earlier = error.__context__
    while isinstance(earlier, Exception) and earlier is not handled:
        earlier = earlier.__context__
    return None if earlier is handled else earlier


def unreachable(address: DatabaseUrl, error: psycopg.Error) -> PgCronError:
    """What a failed connection attempt means. psycopg knows no error codes here, only the server's words."""
    words = address.without_values(worded(error))
    if pools_statements(error):
        return pooled_by_statement(address)
    if re.search("too many (clients|connections)|remaining connection slots|no more connections", words):
        return DatabaseUnavailable(
            f"cannot connect to {address} (from {address.source}): {words}. A worker process uses up to 4 connections"
            " and can do with 2, a web process up to PGCRON_CONNECTIONS"
        )
    if re.search("authentication failed|no pg_hba.conf entry|not permitted to log in|role .* does not exist", words):
        return LoginRefused(f"cannot connect to {address} (from {address.source}): {words}")
    return DatabaseUnavailable(f"cannot connect to {address} (from {address.source}): {words}")


def pools_statements(error: BaseException) -> bool:
    """Return True if PgBouncer has refused a transaction because it gives each statement another connection."""
    return "not allowed in statement pooling mode" in str(error)


def pooled_by_statement(address: DatabaseUrl) -> ConfigError:
    """The refusal of a pooler with which nothing of several statements can be committed together."""
    return ConfigError(
        f"the pooler at {address} (from {address.source}) runs with pool_mode=statement, which forbids transactions of"
        " several statements, and pgcron needs them. Set pool_mode=transaction (or session) for this database in"
        " PgBouncer, or give a URL that goes to the server itself."
    )


def worded(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
