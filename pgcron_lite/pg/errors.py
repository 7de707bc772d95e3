"""Translation of the driver's errors: which are retried, which close the connection, and the message of each."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors as pg_errors

from ..errors import ConfigError, DatabaseRefused, DatabaseUnavailable, LoginRefused, PgCronError
from .url import DatabaseUrl

# Errors after which the same statement may succeed a moment later.
RETRY: tuple[type[psycopg.Error], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg_errors.ReadOnlySqlTransaction,
    pg_errors.FeatureNotSupported,
    pg_errors.InFailedSqlTransaction,
    pg_errors.IdleInTransactionSessionTimeout,
)

# Errors after which the connection must be replaced: it leads to a standby, a cached plan no longer fits ("cached plan
# must not change result type" would be repeated for ever), or a pooler has lost a prepared statement.
RECONNECT: tuple[type[psycopg.Error], ...] = (
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


# The constraints that refuse an id: another job has it, or the sequence, which was set back, has not drawn it yet.
REFUSES_IDS = ("jobs_pkey", "history_pkey", "jobs_id_is_drawn")


# The reason for each constraint on the values of a job.
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
    """A job with a value that the table does not accept."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the database does not store this job: {reason}")
        self.reason = reason


class IdTaken(DatabaseRefused):
    """An id that cannot be used: it is in `jobs` or `history` already, or the sequence has not drawn it yet."""


class IdHeld(DatabaseUnavailable):
    """An id under which another transaction, which is still open, has inserted a job. Nothing was stored.

    Never raised by a repeated insert, which could mistake its own first try for another job: `on conflict` waits for
    the row in the table.
    """


def unavailable(error: psycopg.Error) -> DatabaseUnavailable:
    """Return the exception for a statement that may succeed a moment later."""
    # Only the name of the index can be compared: the words around it depend on the language of the server.
    if isinstance(error, pg_errors.LockNotAvailable) and "jobs_pkey" in (error.diag.context or ""):
        return IdHeld(one_line(error))
    return DatabaseUnavailable(one_line(error))


def refusal(error: psycopg.Error) -> DatabaseRefused:
    """Return the exception for a statement that would be refused again."""
    if error.diag.constraint_name in REFUSES_IDS:
        return IdTaken(one_line(error))
    if error.diag.constraint_name in UNFIT:
        return JobUnfit(UNFIT[error.diag.constraint_name])
    if isinstance(error, pg_errors.InsufficientPrivilege):
        # Only the first line: the driver adds the statement and a caret below it.
        (refused, *_) = str(error).splitlines() or [type(error).__name__]
        return DatabaseRefused(
            f"{refused}. A database role gets its rights by part; as the owner of the schema, run:"
            " select pgcron.allow('ROLE', 'worker'), or 'producer', 'reader', 'admin' in the place of 'worker'"
        )
    return DatabaseRefused(one_line(error))


def no_schema(schema: str, error: BaseException) -> str:
    """Return the message for a statement that did not find our tables or functions."""
    # Only the first line: the driver adds the statement and a caret below it.
    (found, *_) = str(error).splitlines() or [type(error).__name__]
    return f"the schema {schema!r} is not in this database, or does not fit this version: {found}. Run: pgcron migrate"


def interruption(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """Return the exception that interrupted psycopg, such as a timeout or a killed greenlet, or None.

    psycopg then tries to end its pipeline, cannot do so in the middle of a statement, and raises `error` in place of
    the interruption. `handled`, the exception that was being handled before, is no interruption.
    """
    earlier = error.__context__
    while isinstance(earlier, Exception) and earlier is not handled:
        earlier = earlier.__context__
    return None if earlier is handled else earlier


def unreachable(address: DatabaseUrl, error: psycopg.Error) -> PgCronError:
    """Return the exception for a failed connection attempt. psycopg gives no error code here, only the message."""
    words = address.without_values(one_line(error))
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
    """Return the error for a pooler in statement mode, which cannot commit several statements together."""
    return ConfigError(
        f"the pooler at {address} (from {address.source}) runs with pool_mode=statement, which forbids transactions of"
        " several statements, and pgcron needs them. Set pool_mode=transaction (or session) for this database in"
        " PgBouncer, or give a URL that goes to the server itself."
    )


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line."""
    return " ".join(str(error).split()) or type(error).__name__
