"""Statements that one session knows by name: for what is sent thousands of times a second.

They go past psycopg's cursors, which take longer over such a statement than it takes to be sent. The waiting is left to
psycopg, so that a greenlet waits like a greenlet and Ctrl-C ends it.
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

# Texts, numbers, moments and None, and lists of them: what PostgreSQL reads as Python writes it.
Values = Mapping[str, Any]

PARAMETER = re.compile(r"%\((\w+)\)s")


@dataclass(slots=True)
class Answer:
    """The rows of a statement, once they are there; decoded on demand, which takes as long as to get them."""

    count: int = 0
    rows: Callable[[], list[tuple[Any, ...]]] = list


@dataclass(slots=True)
class Statement:
    """A statement, the name it goes by, and its parameters in the order of their numbers."""

    name: bytes
    text: bytes
    parameters: list[str]
    is_known: bool = False


class Prepared:
    """What a connection that is ours alone has been told."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._statements: dict[str, Statement] = {}
        self._encoding = encoding_of(conn)

    def run(self, query: LiteralString, values: Values) -> int:
        """Run a statement of whose answer, unless it is an error, only the number of rows is of interest."""
        statement = self._statement(query)
        if statement.is_known:
            self._call(statement, values)()
            results = self._conn.wait(execute(self._pgconn))
        else:
            (results,) = self._run_together((statement, values))
        self._check(results)
        return results[-1].command_tuples or 0

    @contextmanager
    def asking(self, query: LiteralString, values: Values) -> Iterator[Answer]:
        """Send a statement. The server works on it during the block, and the answer is there when it is over."""
        statement, answer = self._statement(query), Answer()
        if statement.is_known:
            self._call(statement, values)()
            # What does not fit into the socket now is sent when the answer is waited for.
            self._pgconn.flush()
            yield answer
            results = self._conn.wait(execute(self._pgconn))
        else:
            # Only the first time: it is sent with its text, behind the block, and in one trip all the same.
            yield answer
            (results,) = self._run_together((statement, values))
        self._check(results)
        answer.count, answer.rows = results[-1].ntuples, self._reader(results[-1])

    def run_then(
        self, query: LiteralString, values: Values, then: LiteralString
    ) -> tuple[int, psycopg.Error | None]:
        """`run`, and with the same trip a second transaction behind its commit: what went wrong there is returned."""
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
        """Sends it. What cannot be sent at all is refused before."""
        texts = self._texts(statement, values)
        return partial(self._pgconn.send_query_prepared, statement.name, texts, result_format=Format.BINARY)

    def _texts(self, statement: Statement, values: Values) -> list[bytes | None]:
        encoding = self._encoding
        texts = [
            None if (value := values[name]) is None
            else (value if value.__class__ is str else _written(value)).encode(encoding)
            for name in statement.parameters
        ]
        if b"\0" in b"".join(filter(None, texts)):
            # It would be taken for the end of the text.
            raise psycopg.DataError("PostgreSQL cannot store a NUL character in a text")
        return texts

    def _run_together(self, *calls: tuple[Statement, Values]) -> list[list[PGresult]]:
        """Run statements in a transaction each, all sent in one trip: the answers to each."""
        commands: deque[Callable[[], None]] = deque()
        for statement, values in calls:
            if not statement.is_known:
                commands.append(partial(self._pgconn.send_prepare, statement.name, statement.text))
            commands.append(self._call(statement, values))
            commands.append(self._pgconn.pipeline_sync)
        answers = self._answers(commands, len(calls))
        for (statement, _), results in zip(calls, answers, strict=True):
            # Known even if it then failed: the first answer is that to its text.
            statement.is_known = statement.is_known or results[0].status == ExecStatus.COMMAND_OK
        return answers

    def _answers(self, commands: deque[Callable[[], None]], transactions: int) -> list[list[PGresult]]:
        self._pgconn.enter_pipeline_mode()
        arrived = self._conn.wait(pipeline_communicate(self._pgconn, commands))
        # It leaves what does not fit into the socket to whoever writes next, and that is us, for we only read now.
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
        """Decodes the rows when it is called. The connection, which tells how, may be closed by then."""
        return rows_of(self._conn, result)

    def _check(self, results: Iterable[PGresult]) -> None:
        if error := self._refusal(results):
            raise error

    def _refusal(self, results: Iterable[PGresult]) -> psycopg.Error | None:
        """The error among the answers to a transaction: that of its statement, or of the commit behind it."""
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                return psycopg.errors.error_from_result(result, encoding=self._encoding)
        return None


def _written(value: Any) -> str:
    """A value as PostgreSQL reads it."""
    return array(value) if isinstance(value, list) else str(value)


def array(items: Sequence[Any]) -> str:
    """Values, or None, as PostgreSQL writes an array of them."""
    return "{" + ",".join("null" if item is None else _quoted(str(item)) for item in items) + "}"


def _quoted(item: str) -> str:
    escaped = item.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def encoding_of(conn: psycopg.Connection[Any]) -> str:
    """How texts go over this connection."""
    # What psycopg calls ASCII is a database that takes any bytes.
    return "utf-8" if conn.info.encoding == "ascii" else conn.info.encoding
