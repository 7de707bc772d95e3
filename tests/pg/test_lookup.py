"""Host names that take the resolver long, or forever: connecting ends in time, and a late answer is used."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import python

from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.pg.lookup import LOOKUP_SECONDS, has_names
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url


class Resolver:
    """A resolver that answers when the test lets it."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked = 0
        self.real = socket.getaddrinfo

    def getaddrinfo(self, *given: Any, **named: Any) -> Any:
        self.asked += 1
        self.answers.wait(120)
        return self.real(*given, **named)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.answers.set()


@pytest.mark.row(49)
def test_a_slow_look_up_ends_the_attempt_and_the_next_one_waits_for_it(
    pg_url: str, resolver: Resolver
) -> None:
    url = pg_url.replace("@127.0.0.1:", "@localhost:")
    store = PostgresStore(parse_url(url, application="pgcron test"))
    began = time.monotonic()

    with pytest.raises(DatabaseUnavailable, match="the look-up of the host name 'localhost' has not ended within 8 s"):
        store.now()

    assert LOOKUP_SECONDS - 0.5 < time.monotonic() - began < LOOKUP_SECONDS + 10
    resolver.answers.set()
    assert store.now() is not None
    store.close()
    assert resolver.asked == 1


@pytest.mark.row(49)
def test_look_ups_work_under_gevent_inside_and_outside_the_hub(pg_url: str) -> None:
    url = pg_url.replace("@127.0.0.1:", "@localhost:")

    output = python(
        """
        from gevent import monkey
        monkey.patch_all()
        import socket, sys, time
        from gevent.threadpool import ThreadPool
        real, hangs = socket.getaddrinfo, [True]

        def slow(*given, **named):
            while hangs:
                time.sleep(0.1)
            return real(*given, **named)

        socket.getaddrinfo = slow
        from pgcron_lite.errors import DatabaseUnavailable
        from pgcron_lite.pg.url import parse_url
        from pgcron_lite.pg.store import PostgresStore

        def connect(store):
            try:
                store.now()
            except DatabaseUnavailable as error:
                return "has not ended within 8 s" in str(error)
            return "connected"

        here, beside = (PostgresStore(parse_url(sys.argv[1], application=name)) for name in ("here", "beside"))
        pool = ThreadPool(1)
        began = time.monotonic()
        waiting = pool.spawn(connect, beside)
        print(connect(here), waiting.get(), time.monotonic() - began < 20)
        hangs.clear()
        print(connect(here), pool.spawn(connect, beside).get())
        """,
        url,
        timeout=120,
    )

    assert output.splitlines() == ["True True True", "connected connected"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("db", True), ("db.example.org", True), ("10.0.0.1,db", True), ("10.0.0.1", False), ("::1", False),
        ("fe80::1%eth0", False), ("/run/postgresql", False), ("", False), ("10.0.0.1,::1", False),
    ],
)
def test_only_names_are_looked_up(host: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    monkeypatch.delenv("PGHOSTADDR", raising=False)

    assert has_names({"host": host}) is expected
    assert has_names({"host": host, "hostaddr": "10.0.0.1"}) is False
