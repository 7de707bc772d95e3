"""Statements that one session knows by name: for what is sent thousands of times a second.

They go past psycopg's cursors, which take longer over such a statement than it takes to be sent. The waiting is left to
psycopg, so that a greenlet waits like a greenlet and Ctrl-C ends it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, LiteralString

import psycopg
from psycopg.generators import execute, fetch_many, pipeline_communicate
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

# Texts, numbers, moments and None: what PostgreSQL reads as Python writes it.
Values = Mapping[str, Any]

PARAMETER = re.compile(r"%\((\w+)\)s")


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

    def run(self, query: LiteralString, values: Values) -> None:
        """Run a statement whose answer, unless it is an error, says nothing."""
        statement = self._statement(query)
        if statement.is_known:
            self._pgconn.send_query_prepared(statement.name, self._texts(statement, values))
            self._check(self._conn.wait(execute(self._pgconn)))
        else:
            self._check(*self._run_together((statement, values)))

    def run_then(self, query: LiteralString, values: Values, then: LiteralString) -> psycopg.Error | None:
        """`run`, and with the same trip a second transaction behind its commit: what went wrong there is returned."""
        first, second = self._run_together((self._statement(query), values), (self._statement(then), {}))
        self._check(first)
        return self._refusal(second)

    def _statement(self, query: LiteralString) -> Statement:
        known = self._statements.get(query)
        if known is None:
            parameters = list(dict.fromkeys(PARAMETER.findall(query)))
            text = PARAMETER.sub(lambda found: f"${parameters.index(found[1]) + 1}", query).encode()
            known = Statement(b"pgcron_%d" % len(self._statements), text, parameters)
            self._statements[query] = known
        return known

    def _texts(self, statement: Statement, values: Values) -> list[bytes | None]:
        given = [values[name] for name in statement.parameters]
        texts = [None if value is None else str(value).encode(self._encoding) for value in given]
        if b"\0" in b"".join(text for text in texts if text):
            # It would be taken for the end of the text.
            raise psycopg.DataError("PostgreSQL cannot store a NUL character in a text")
        return texts

    def _run_together(self, *calls: tuple[Statement, Values]) -> list[list[PGresult]]:
        """Run statements in a transaction each, all sent in one trip: the answers to each."""
        commands: deque[Callable[[], None]] = deque()
        for statement, values in calls:
            if not statement.is_known:
                commands.append(partial(self._pgconn.send_prepare, statement.name, statement.text))
            commands.append(
                partial(self._pgconn.send_query_prepared, statement.name, self._texts(statement, values))
            )
            commands.append(self._pgconn.pipeline_sync)
        answers = self._answers(commands, len(calls))
        for (statement, _), results in zip(calls, answers, strict=True):
            # Known even if it then failed: the first answer is that to its text.
            statement.is_known = statement.is_known or results[0].status == ExecStatus.COMMAND_OK
        return answers

    def _answers(self, commands: deque[Callable[[], None]], transactions: int) -> list[list[PGresult]]:
        self._pgconn.enter_pipeline_mode()
        arrived = self._conn.wait(pipeline_communicate(self._pgconn, commands))
        answers: list[list[PGresult]] = [[]]
        while len(answers) <= transactions:
            for result in arrived.pop(0) if arrived else self._conn.wait(fetch_many(self._pgconn)):
                if result.status == ExecStatus.PIPELINE_SYNC:
                    answers.append([])
                else:
                    answers[-1].append(result)
        self._pgconn.exit_pipeline_mode()
        return answers[:-1]

    def _check(self, results: Iterable[PGresult]) -> None:
        if error := self._refusal(results):
            raise error

    def _refusal(self, results: Iterable[PGresult]) -> psycopg.Error | None:
        """The error among the answers to a transaction: that of its statement, or of the commit behind it."""
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                return psycopg.errors.error_from_result(result, encoding=self._encoding)
        return None


def encoding_of(conn: psycopg.Connection[Any]) -> str:
    """How texts go over this connection."""
    # What psycopg calls ASCII is a database that takes any bytes.
    return "utf-8" if conn.info.encoding == "ascii" else conn.info.encoding
