"""What the driver's errors mean: whether to try again, whether the connection is worth keeping, and in which words."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors as pg_errors

from ..errors import DatabaseUnavailable, LoginRefused
from .address import Address

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


def interruption(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """What was thrown in from outside, a deadline's or a killed greenlet's, when psycopg raised `error` in its place.

    It tidies its pipeline up, and cannot in the middle of a statement. What was `handled` before is no interruption.
    """
    earlier = error.__context__
    while isinstance(earlier, Exception) and earlier is not handled:
        earlier = earlier.__context__
    return None if earlier is handled else earlier


def unreachable(address: Address, error: psycopg.Error) -> DatabaseUnavailable:
    """What a failed connection attempt means. psycopg knows no error codes here, only the server's words."""
    words = worded(error)
    if re.search("too many (clients|connections)|remaining connection slots|no more connections", words):
        return DatabaseUnavailable(
            f"cannot connect to {address}: {words}. A worker process uses up to 4 connections and can do with 2, a web"
            " process up to PGCRON_CONNECTIONS"
        )
    if re.search("authentication failed|no pg_hba.conf entry|not permitted to log in|role .* does not exist", words):
        return LoginRefused(f"cannot connect to {address}: {words}")
    return DatabaseUnavailable(f"cannot connect to {address}: {words}")


def worded(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
