"""The pool: taking connections, waiting for them, cutting and closing them."""

import threading
import time
from collections.abc import Iterator

import pytest
from support import eventually, python

from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.pool import Pool
from pgcron_lite.pg.url import parse_url


@pytest.fixture
def pool(pg_url: str) -> Iterator[Pool]:
    pool = Pool(lambda: Connection(parse_url(pg_url, application="pgcron test"), "pgcron"), 2)
    yield pool
    pool.close()


def test_the_connection_used_last_is_used_next(pool: Pool) -> None:
    with pool.take() as first:
        pass

    with pool.take() as second:
        assert second is first


def test_a_second_caller_gets_a_second_connection(pool: Pool) -> None:
    with pool.take() as one, pool.take() as two:
        assert one is not two


def test_a_caller_waits_while_all_connections_are_taken(pool: Pool) -> None:
    taken = threading.Event()
    got: list[Connection] = []

    def wait_for_one() -> None:
        taken.set()
        with pool.take() as connection:
            got.append(connection)

    with pool.take(), pool.take() as last:
        thread = threading.Thread(target=wait_for_one)
        thread.start()
        taken.wait()
        assert got == []
    thread.join()

    assert got
    assert got[0] in (last, *pool._all)


@pytest.mark.row(52)
def test_a_wait_that_times_out_names_the_setting_to_change(pool: Pool) -> None:
    with pool.take(), pool.take(), pytest.raises(DatabaseUnavailable, match="PGCRON_CONNECTIONS"):  # noqa: SIM117
        with pool.take(patience=0.05):
            pass


def test_a_connection_is_returned_even_after_an_error(pool: Pool) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), pool.take():
            raise ZeroDivisionError

    assert len(pool._all) == 1


def test_the_duration_of_the_longest_call_is_known_and_it_can_be_cut(pool: Pool) -> None:
    assert pool.busy_seconds == 0.0
    errors: list[BaseException] = []

    def hang() -> None:
        with pool.take() as connection:
            try:
                # The server keeps sleeping after the client has gone.
                connection.rows("select pg_sleep(3)")
            except DatabaseUnavailable as error:
                errors.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    eventually(lambda: pool.busy_seconds > 0.2)

    began = time.monotonic()
    pool.cut()
    thread.join()

    assert len(errors) == 1
    assert time.monotonic() - began < 10
    assert pool.busy_seconds == 0.0
    with pool.take() as connection:
        assert connection.rows("select 1 as one")[0].one == 1


def test_an_idle_connection_is_not_cut(pool: Pool) -> None:
    with pool.take() as connection:
        connection.rows("select 1")
        pid = connection.rows("select pg_backend_pid() as pid")[0].pid

        pool.cut()

        assert connection.rows("select pg_backend_pid() as pid")[0].pid == pid


def test_a_new_connection_changes_the_generation(pool: Pool) -> None:
    with pool.take() as connection:
        connection.rows("select 1")
        before = pool.generation
        connection.rows("select 1")
        assert pool.generation == before

        connection.close()
        connection.rows("select 1")

    assert pool.generation == before + 1


@pytest.mark.row(27)
def test_a_forked_child_opens_its_own_connections_and_keeps_its_parents_open(pg_url: str) -> None:
    output = python(
        """
        import os, sys
        from pgcron_lite.pg.url import parse_url
        from pgcron_lite.pg.store import PostgresStore
        store = PostgresStore(parse_url(sys.argv[1], application="pgcron test"), size=1)

        def pid():
            with store.pool.take(patience=5) as connection:
                return connection.rows("select pg_backend_pid() as pid")[0].pid

        mine = pid()
        with store.pool.take():
            # Forked while another thread holds the only connection.
            child = os.fork()
            if child == 0:
                childs = pid()
                store.close()
                os._exit(0 if childs != mine else 1)
            _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), pid() == mine)
        store.close()
        """,
        pg_url,
    )

    assert output.split() == ["0", "True"]


def test_close_closes_connections_in_use_when_they_are_returned(pool: Pool) -> None:
    with pool.take() as used:
        used.rows("select 1")
        pool.close()
        still_open = used.is_open
        again = used.rows("select 2 as two")

    assert still_open
    assert again[0].two == 2
    assert not used.is_open


def test_shrink_closes_surplus_connections_when_they_are_returned(pool: Pool) -> None:
    with pool.take() as one, pool.take() as two:
        one.rows("select 1")
        two.rows("select 1")
        pool.shrink(1)

    assert [one.is_open, two.is_open].count(True) == 1
    assert pool.size == 1
