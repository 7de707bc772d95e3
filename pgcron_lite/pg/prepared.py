"""Prepared statements of one session, for statements that are sent thousands of times a second.

They bypass psycopg's cursors, whose overhead for such a statement is larger than sending it. psycopg still does the
waiting, so that greenlets yield and Ctrl-C interrupts it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, LiteralString

import psycopg
from psycopg.generators import execute, fetch_many, pipeline_communicate, send
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from .rows import rows_of

# Texts, numbers, datetimes, None, and lists of them: values whose `str` PostgreSQL can read.
Values = Mapping[str, Any]

PARAMETER = re.compile(r"%\((\w+)\)s")


@dataclass(slots=True)
class Answer:
    """Rows of a statement, set when they have arrived. `rows()` decodes them, which takes as long as receiving them."""

    count: int = 0
    rows: Callable[[], list[tuple[Any, ...]]] = list


@dataclass(slots=True)
class Statement:
    """A statement, the name it is prepared under, and its parameters in the order of their numbers."""

    name: bytes
    text: bytes
    parameters: list[str]
    is_known: bool = False


class Prepared:
    """Prepared statements of a direct connection, whose session no other client shares."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._statements: dict[str, Statement] = {}
        self._encoding = encoding_of(conn)

    def run(self, query: LiteralString, values: Values) -> int:
        """Run a statement and return the number of its rows."""
        statement = self._statement(query)
        if statement.is_known:
            self._call(statement, values)()
            results = self._conn.wait(execute(self._pgconn))
        else:
            (results,) = self._run_together((statement, values))
        self._check(results)
        return results[-1].command_tuples or 0

    @contextmanager
    def sending(self, query: LiteralString, values: Values) -> Iterator[Answer]:
        """Send a statement and run the block while the server works on it. The answer is complete after the block."""
        statement, answer = self._statement(query), Answer()
        if statement.is_known:
            self._call(statement, values)()
            # What does not fit into the socket's buffer now is sent while waiting for the answer.
            self._pgconn.flush()
            yield answer
            results = self._conn.wait(execute(self._pgconn))
        else:
            # Only the first time: prepare and execute it after the block, in one round trip.
            yield answer
            (results,) = self._run_together((statement, values))
        self._check(results)
        answer.count, answer.rows = results[-1].ntuples, self._reader(results[-1])

    def run_then(
        self, query: LiteralString, values: Values, then: LiteralString
    ) -> tuple[int, psycopg.Error | None]:
        """Run `query` as `run` does and, in the same round trip, `then` in a second transaction after its commit.

        Return the number of rows, and the error of the second transaction, if it failed.
        """
        first, second = self._run_together((self._statement(query), values), (self._statement(then), {}))
        self._check(first)
        return first[-1].command_tuples or 0, self._refusal(second)

    def _statement(self, query: LiteralString) -> Statement:
        known = self._statements.get(query)
        if known is None:
            parameters = list(dict.fromkeys(PARAMETER.findall(query)))
            text = PARAMETER.sub(lambda found: f"${parameters.index(found[1]) + 1}", query).encode()
            known = Statement(b"pgcron_%d" % len(self._statements), text, parameters)
            self._statements[query] = known
        return known

    def _call(self, statement: Statement, values: Values) -> Callable[[], None]:
        """Return a function that sends the statement. Values that cannot be sent are refused here."""
        texts = self._texts(statement, values)
        return partial(self._pgconn.send_query_prepared, statement.name, texts, result_format=Format.BINARY)

    def _texts(self, statement: Statement, values: Values) -> list[bytes | None]:
        encoding = self._encoding
        texts = [
            None if (value := values[name]) is None
            else (value if value.__class__ is str else _as_text(value)).encode(encoding)
            for name in statement.parameters
        ]
        if b"\0" in b"".join(filter(None, texts)):
            # libpq would read it as the end of the text.
            raise psycopg.DataError("PostgreSQL cannot store a NUL character in a text")
        return texts

    def _run_together(self, *calls: tuple[Statement, Values]) -> list[list[PGresult]]:
        """Run each statement in a separate transaction, all in one round trip. Return the results of each."""
        commands: deque[Callable[[], None]] = deque()
        for statement, values in calls:
            if not statement.is_known:
                commands.append(partial(self._pgconn.send_prepare, statement.name, statement.text))
            commands.append(self._call(statement, values))
            commands.append(self._pgconn.pipeline_sync)
        answers = self._answers(commands, len(calls))
        for (statement, _), results in zip(calls, answers, strict=True):
            # The first result is that of preparing it, which may succeed although the execution failed.
            statement.is_known = statement.is_known or results[0].status == ExecStatus.COMMAND_OK
        return answers

    def _answers(self, commands: deque[Callable[[], None]], transactions: int) -> list[list[PGresult]]:
        self._pgconn.enter_pipeline_mode()
        arrived = self._conn.wait(pipeline_communicate(self._pgconn, commands))
        # It leaves unsent what did not fit into the socket's buffer. Send that now, because only reads follow.
        self._conn.wait(send(self._pgconn))
        answers: list[list[PGresult]] = [[]]
        while len(answers) <= transactions:
            for result in arrived.pop(0) if arrived else self._conn.wait(fetch_many(self._pgconn)):
                if result.status == ExecStatus.PIPELINE_SYNC:
                    answers.append([])
                else:
                    answers[-1].append(result)
        self._pgconn.exit_pipeline_mode()
        return answers[:-1]

    def _reader(self, result: PGresult) -> Callable[[], list[tuple[Any, ...]]]:
        """Return a function that decodes the rows. It works even if the connection is closed by then."""
        return rows_of(self._conn, result)

    def _check(self, results: Iterable[PGresult]) -> None:
        if error := self._refusal(results):
            raise error

    def _refusal(self, results: Iterable[PGresult]) -> psycopg.Error | None:
        """Return the error among the results of a transaction: that of its statement, or of its commit."""
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                return psycopg.errors.error_from_result(result, encoding=self._encoding)
        return None


def _as_text(value: Any) -> str:
    """Return a value in PostgreSQL's text format."""
    return array(value) if isinstance(value, list) else str(value)


def array(items: Sequence[Any]) -> str:
    """Return a list in PostgreSQL's text format for arrays. None becomes null."""
    return "{" + ",".join("null" if item is None else _quoted(str(item)) for item in items) + "}"


def _quoted(item: str) -> str:
    escaped = item.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def encoding_of(conn: psycopg.Connection[Any]) -> str:
    """Return the encoding of texts on this connection."""
    # psycopg reports ASCII for a database with the encoding SQL_ASCII, which accepts any bytes.
    return "utf-8" if conn.info.encoding == "ascii" else conn.info.encoding
