"""Prepared statements: parameters, results, errors and round trips."""

import os
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import errors
from support import eventually

from pgcron_lite.pg.prepared import Prepared

INSERT = "insert into public.things values (%(id)s, %(name)s, %(at)s)"


@pytest.fixture
def conn(pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            "create table public.things (id int unique deferrable initially deferred, name text, at timestamptz)"
        )
        yield conn


@pytest.fixture
def prepared(conn: psycopg.Connection[Any]) -> Prepared:
    return Prepared(conn)


def thing(number: int, name: str | None = None, at: datetime | None = None) -> dict[str, Any]:
    return {"id": number, "name": name, "at": at}


def things(conn: psycopg.Connection[Any]) -> list[Any]:
    return conn.execute("select * from public.things order by id").fetchall()


def test_texts_numbers_times_and_none_arrive_unchanged(conn: Any, prepared: Prepared) -> None:
    moment = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)

    for row in [thing(-7, "'\\ \N{GRINNING FACE}"), thing(0, "", moment), thing(2**31 - 1)]:
        prepared.run(INSERT, row)

    assert things(conn) == [(-7, "'\\ \N{GRINNING FACE}", None), (0, "", moment), (2**31 - 1, None, None)]


def test_a_nul_is_refused_and_does_not_end_the_text(conn: Any, prepared: Prepared) -> None:
    with pytest.raises(psycopg.DataError, match="NUL"):
        prepared.run(INSERT, thing(1, "a\0b"))

    prepared.run(INSERT, thing(2, "ab"))
    assert things(conn) == [(2, "ab", None)]


def test_texts_are_sent_in_the_encoding_of_the_connection(conn: Any) -> None:
    conn.execute("set client_encoding to latin1")

    Prepared(conn).run(INSERT, thing(1, "\u00e4\u00df"))

    assert things(conn) == [(1, "\u00e4\u00df", None)]


def test_a_statement_that_fails_the_first_time_can_be_used_again(conn: Any, prepared: Prepared) -> None:
    conn.execute("alter table public.things rename to others")
    with pytest.raises(errors.UndefinedTable):
        prepared.run(INSERT, thing(1))
    conn.execute("alter table public.others rename to things")
    with pytest.raises(errors.NumericValueOutOfRange):
        prepared.run(INSERT, thing(2**40))

    prepared.run(INSERT, thing(1))

    assert [row[0] for row in things(conn)] == [1]
    assert conn.execute("select count(*) from pg_prepared_statements").fetchall() == [(1,)]


@pytest.mark.parametrize("uses", [0, 2])
def test_an_error_of_the_commit_is_raised(conn: Any, prepared: Prepared, uses: int) -> None:
    for number in range(uses):
        prepared.run(INSERT, thing(number))
    conn.execute("insert into public.things values (9)")

    with pytest.raises(errors.UniqueViolation):
        prepared.run(INSERT, thing(9))
    with pytest.raises(errors.UniqueViolation):
        prepared.run_then(INSERT, thing(9), "select")

    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert len(things(conn)) == uses + 1


@pytest.mark.parametrize("then", ["select 1 / 0", "insert into public.things values (9)", "selekt"])
@pytest.mark.parametrize("times", [1, 3])
def test_the_second_transaction_fails_without_the_first(conn: Any, prepared: Prepared, then: Any, times: int) -> None:
    conn.execute("insert into public.things values (9)")

    for number in range(times):
        count, trouble = prepared.run_then(INSERT, thing(number), then)
        assert count == 1
        assert isinstance(trouble, psycopg.Error)

    assert [row[0] for row in things(conn)] == [*range(times), 9]
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert prepared.run_then(INSERT, thing(8), "select") == (1, None)


# Running a block while the server works

ECHO = "select * from unnest(%(texts)s::text[], %(numbers)s::bigint[]) as echo (text, number)"


def asked(prepared: Prepared, texts: list[str | None], numbers: list[int | None]) -> list[tuple[Any, ...]]:
    with prepared.sending(ECHO, {"texts": texts, "numbers": numbers}) as answer:
        pass
    assert answer.count == len(answer.rows())
    return answer.rows()


def test_lists_arrive_unchanged(prepared: Prepared) -> None:
    texts = ["", "null", 'a "quoted" \\ word', "{x,y}", " ", "\n", "\N{GRINNING FACE}", None]
    numbers = [0, -1, 2**63 - 1, -(2**63), None, 5, 6, 7]

    # The first time it is sent with its text, then by its name.
    for _ in range(2):
        assert asked(prepared, texts, numbers) == list(zip(texts, numbers, strict=True))
    assert asked(prepared, [], []) == []


def test_lists_are_sent_and_answers_read_in_the_encoding_of_the_connection(conn: Any) -> None:
    conn.execute("set client_encoding to latin1")
    prepared = Prepared(conn)

    for _ in range(2):
        assert asked(prepared, ["\u00e4\u00df"], [1]) == [("\u00e4\u00df", 1)]


def test_a_nul_in_a_list_is_refused(prepared: Prepared) -> None:
    with pytest.raises(psycopg.DataError, match="NUL"):
        asked(prepared, ["a\0b"], [1])

    assert asked(prepared, ["ab"], [1]) == [("ab", 1)]


def test_the_server_works_while_the_block_runs(conn: Any, prepared: Prepared, pg_url: str) -> None:
    insert = "insert into public.things values (%(id)s, null, null) returning id"
    with prepared.sending(insert, {"id": 1}):
        pass

    with prepared.sending(insert, {"id": 2}) as answer, psycopg.connect(pg_url, autocommit=True) as other:
        eventually(lambda: len(things(other)) == 2)
        assert answer.count == 0

    assert answer.rows() == [(2,)]


@pytest.fixture
def narrow(conn: psycopg.Connection[Any]) -> Prepared:
    """Return prepared statements of a connection with small socket buffers."""
    with socket.socket(fileno=os.dup(conn.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return Prepared(conn)


@pytest.mark.parametrize("uses", [1, 2])
def test_a_statement_larger_than_the_socket_buffer_arrives_complete(conn: Any, narrow: Prepared, uses: int) -> None:
    name = "x" * 300_000

    for number in range(uses):
        narrow.run(INSERT, thing(number, name))
        narrow.run_then(INSERT, thing(10 + number, name), "select")
        assert asked(narrow, [name, name], [1, 2]) == [(name, 1), (name, 2)]

    assert [len(row[1]) for row in things(conn)] == [len(name)] * 2 * uses


def test_an_answer_can_be_decoded_after_the_connection_is_closed(conn: Any, prepared: Prepared) -> None:
    query = """
        select 'ä', 7::int8, '2026-03-01 12:00Z'::timestamptz, '{a,b}'::text[], '{"a": 1}'::jsonb,
               '00000000-0000-0000-0000-000000000001'::uuid
    """
    with prepared.sending(query, {}) as answer:
        pass

    conn.close()

    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert answer.rows() == [("ä", 7, moment, ["a", "b"], {"a": 1}, uuid.UUID(int=1))]


def test_an_error_is_raised_after_the_block_and_the_session_is_kept(prepared: Prepared) -> None:
    divide = "select 1 / %(by)s::int as result"

    for by in (0, 1, 0, 2):
        if by:
            with prepared.sending(divide, {"by": by}) as answer:
                pass
            assert answer.rows() == [(1 // by,)]
        else:
            went_on = []
            with pytest.raises(errors.DivisionByZero), prepared.sending(divide, {"by": by}):
                went_on.append(True)
            assert went_on
