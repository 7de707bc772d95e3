"""The listener: it tests itself, reconnects, and does not block the worker."""

import logging
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from faults.proxy import Proxy
from support import eventually, free_port

from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.job import NewJob
from pgcron_lite.pg import listen
from pgcron_lite.pg.listen import Listener
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url


@pytest.fixture
def store(pg_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(parse_url(pg_url, application="the store"))
    yield store
    store.close()


@contextmanager
def a_listener(url: str, send: Callable[[str], None], schema: str = "pgcron") -> Iterator[Listener]:
    listener = Listener(parse_url(url, application="the listener"), schema, send)
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture
def listener(pg_url: str, store: PostgresStore) -> Iterator[Listener]:
    """Return a live listener with no notifications left to read."""
    with a_listener(pg_url, store.notify) as listener:
        eventually(lambda: turned(listener).is_live)
        listener.step()
        yield listener


def turned(listener: Listener) -> Listener:
    listener.step()
    return listener


def has_rung(listener: Listener) -> bool:
    return listener.step()[0]


def condition_after_steps(listener: Listener, condition: str, within: float = 10.0) -> None:
    eventually(lambda: turned(listener).condition == condition, within)


def backends(url: str, application: str = "the listener") -> list[Any]:
    with psycopg.connect(url) as conn:
        return conn.execute(
            "select pid, query from pg_stat_activity where application_name = %s and datname = current_database()",
            [application],
        ).fetchall()


def end_backends(url: str, application: str = "the listener") -> None:
    with psycopg.connect(url) as conn:
        conn.execute(
            """
            select pg_terminate_backend(pid) from pg_stat_activity
            where application_name = %s and datname = current_database()
            """,
            [application],
        )
    eventually(lambda: not backends(url, application))


def test_it_is_live_only_after_it_has_received_its_own_notification(pg_url: str) -> None:
    sent: list[str] = []
    with a_listener(pg_url, sent.append) as listener:
        condition_after_steps(listener, "unproven")
        assert not listener.is_live

        with psycopg.connect(pg_url, autocommit=True) as conn:
            conn.execute("select pg_notify(%s, '')", sent)

        condition_after_steps(listener, "live")


def test_a_new_connection_counts_as_a_ring(pg_url: str, store: PostgresStore) -> None:
    with a_listener(pg_url, store.notify) as listener:
        assert listener.condition == "down"

        assert eventually(lambda: has_rung(listener))


def test_a_ring_is_received(listener: Listener, store: PostgresStore) -> None:
    store.ring()

    assert eventually(lambda: has_rung(listener))
    assert not has_rung(listener)


def test_a_ring_ends_a_sleep_on_its_socket(listener: Listener, store: PostgresStore) -> None:
    descriptor = listener.fileno()
    assert descriptor is not None
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(0) == []

    store.ring()

    assert poller.poll(10_000)


def test_a_ring_received_during_a_statement_is_not_lost(listener: Listener, store: PostgresStore) -> None:
    # psycopg reads it while a statement runs on the same connection: the socket has no data afterwards.
    assert listener._connection is not None
    store.ring()
    eventually(lambda: backends_wrote(listener))
    listener._connection.autocommit("select 1")

    assert has_rung(listener)


def backends_wrote(listener: Listener) -> bool:
    descriptor = listener.fileno()
    assert descriptor is not None
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


def test_it_receives_only_the_rings_of_its_schema(pg_url: str, store: PostgresStore) -> None:
    with a_listener(pg_url, store.notify, schema="elsewhere") as listener:
        condition_after_steps(listener, "live")
        listener.step()

        store.ring()
        eventually(lambda: not store.pool._all[0].busy_since)

        assert not has_rung(listener)


@pytest.mark.row(111)
def test_channels_of_the_longest_schema_name_are_not_truncated(
    pg_url: str, store: PostgresStore
) -> None:
    with a_listener(pg_url, store.notify, schema="s" * 40) as listener:
        assert len(listener._proof) <= 63

        condition_after_steps(listener, "live")


@pytest.mark.row(112)
@pytest.mark.parametrize("payload", ["", "drop table pgcron.jobs", "\N{SNOWMAN}" * 2000])
@pytest.mark.row("S19")
def test_a_notification_of_another_role_only_causes_a_poll(listener: Listener, pg_url: str, payload: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("select pg_notify('pgcron', %s)", [payload])

    assert eventually(lambda: has_rung(listener))
    assert listener.is_live


@pytest.mark.row(113)
def test_many_rings_of_one_transaction_cause_one_poll(listener: Listener, pg_url: str) -> None:
    with psycopg.connect(pg_url) as conn:
        for _ in range(100):
            conn.execute("select pgcron.ring()")

    assert eventually(lambda: has_rung(listener))
    assert not has_rung(listener)


@pytest.mark.row(42)
@pytest.mark.row(105)
def test_a_lost_connection_is_replaced_and_counts_as_a_ring(
    listener: Listener, store: PostgresStore, pg_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    end_backends(pg_url)
    condition_after_steps(listener, "down")

    # This ring is not received. The new connection counts as a ring, so its job is found.
    store.enqueue([NewJob("lost", "{}")])

    assert eventually(lambda: has_rung(listener))
    condition_after_steps(listener, "live")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("not listening, polling until that works again: ")
    assert messages[1] == "listening again"


def test_an_outage_of_any_length_is_logged_once(
    pg_url: str, store: PostgresStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(listen, "MAX_PAUSE", 0.02)
    caplog.set_level(logging.INFO)
    with Proxy(pg_url) as proxy, a_listener(proxy.url, store.notify) as listener:
        condition_after_steps(listener, "live")
        proxy.refuse()
        tries: set[float] = set()

        def has_tried_often() -> bool:
            tries.add(turned(listener)._next_try)
            return len(tries) > 10

        eventually(has_tried_often)
        assert [record.levelname for record in caplog.records] == ["WARNING"]

        proxy.accept()
        condition_after_steps(listener, "live")

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_the_pause_between_tries_never_exceeds_a_second(store: PostgresStore) -> None:
    with a_listener(f"postgresql://nobody@127.0.0.1:{free_port()}/none", store.notify) as listener:
        pauses = []
        for _ in range(10):
            listener._next_try = 0.0
            listener.step()
            condition_after_steps(listener, "down")
            pauses.append(listener._next_try - time.monotonic())

    assert 0.4 < max(pauses) <= 1


@pytest.mark.row(64)
def test_refused_logins_of_the_listener_are_repeated_at_growing_intervals(pg_url: str, store: PostgresStore) -> None:
    host = pg_url.partition("@")[2]
    with a_listener(f"postgresql://postgres:wrong@{host}", store.notify) as listener:
        pauses = []
        for _ in range(8):
            listener._next_try = 0.0
            listener.step()
            condition_after_steps(listener, "down")
            pauses.append(listener._next_try - time.monotonic())

    assert 2 < max(pauses) <= 5


@pytest.mark.row(43)
def test_a_silently_lost_connection_is_detected(
    pg_url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "PROOF_EVERY", 0.2)
    with Proxy(pg_url) as proxy, a_listener(proxy.url, store.notify) as listener:
        condition_after_steps(listener, "live")

        proxy.black_hole()

        condition_after_steps(listener, "down")
        condition_after_steps(listener, "live")
    assert "its own notice did not come back in 2 s" in caplog.text


@pytest.mark.row(49)
def test_a_host_that_does_not_answer_does_not_block_the_worker(
    pg_url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "DIAL_SECONDS", 1.0)
    with Proxy(pg_url) as proxy, a_listener(proxy.url, store.notify) as listener:
        proxy.freeze()
        slowest = 0.0

        def has_given_up() -> bool:
            nonlocal slowest
            began = time.monotonic()
            listener.step()
            slowest = max(slowest, time.monotonic() - began)
            return listener.condition == "down"

        eventually(has_given_up)
        assert slowest < 0.5
        proxy.thaw()

        condition_after_steps(listener, "live", within=20)


@pytest.mark.row(74)
def test_an_idle_timeout_does_not_end_it_once_it_is_proven(pg_url: str, store: PostgresStore) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        if conn.info.server_version < 140000:
            pytest.skip("the timeout exists since PostgreSQL 14")
        conn.execute(
            """
            do $$ begin
                execute format('alter database %I set idle_session_timeout = 500', current_database());
            end $$
            """
        )
    with a_listener(pg_url, store.notify) as listener:
        condition_after_steps(listener, "live")
        first = backends(pg_url)

        ended = time.monotonic() + 1.5
        eventually(lambda: turned(listener).is_live and time.monotonic() > ended)

        assert [pid for pid, _ in backends(pg_url)] == [pid for pid, _ in first]


def test_rest_closes_the_connection_for_a_while(listener: Listener, pg_url: str) -> None:
    listener.rest(60)

    eventually(lambda: not backends(pg_url))
    rung, wait = listener.step()
    assert (rung, listener.condition, listener.fileno()) == (False, "down", None)
    assert 50 < wait <= 60


def test_closing_during_an_attempt_to_connect_leaves_no_connection(pg_url: str, store: PostgresStore) -> None:
    with Proxy(pg_url) as proxy:
        proxy.delay = 0.1
        with a_listener(proxy.url, store.notify) as listener:
            listener.step()
            assert listener.condition == "dialing"

        eventually(lambda: not backends(pg_url))
        eventually(lambda: proxy.connections == 0)


def test_a_failing_test_notification_ends_the_connection(pg_url: str, caplog: pytest.LogCaptureFixture) -> None:
    def send(channel: str) -> None:
        raise DatabaseUnavailable("the server's notify queue is filling up")

    with a_listener(pg_url, send) as listener:
        condition_after_steps(listener, "dialing")
        condition_after_steps(listener, "down")

        assert not listener.is_live
    assert caplog.text.count("the server's notify queue is filling up") == 1


def test_a_hanging_statement_can_be_cut_from_another_thread(listener: Listener) -> None:
    connection = listener._connection
    assert connection is not None
    assert listener.busy_seconds == 0.0
    ended: list[str] = []

    def hang() -> None:
        try:
            connection.autocommit("select pg_sleep(2)")
        except DatabaseUnavailable as error:
            ended.append(str(error))

    hanging = threading.Thread(target=hang)
    hanging.start()
    eventually(lambda: listener.busy_seconds > 0.1)
    listener.cut()
    hanging.join(10)

    assert len(ended) == 1
    condition_after_steps(listener, "live")
