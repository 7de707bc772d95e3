"""Statements that a session knows by name: what they carry, what they say when they fail, and how often they travel."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import errors

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


def test_texts_numbers_moments_and_nothing_arrive_as_they_are(conn: Any, prepared: Prepared) -> None:
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


def test_a_statement_that_fails_at_first_is_right_the_next_time(conn: Any, prepared: Prepared) -> None:
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
def test_an_error_of_the_commit_is_the_statements(conn: Any, prepared: Prepared, uses: int) -> None:
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
def test_what_follows_fails_on_its_own(conn: Any, prepared: Prepared, then: Any, times: int) -> None:
    conn.execute("insert into public.things values (9)")

    for number in range(times):
        assert isinstance(prepared.run_then(INSERT, thing(number), then), psycopg.Error)

    assert [row[0] for row in things(conn)] == [*range(times), 9]
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert prepared.run_then(INSERT, thing(8), "select") is None
