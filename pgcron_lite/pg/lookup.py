"""Look-ups of the host names in a URL, each in a thread of its own, so that whoever connects waits a limited time.

`getaddrinfo` takes as long as the system's resolver likes: five seconds for each name server that does not answer, for
each domain that is searched. It cannot be interrupted. So a look-up that takes too long goes on, and the next attempt
to connect waits for the same one; a slow resolver is used at last, and a resolver that hangs holds one thread.
"""

from __future__ import annotations

import ipaddress
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_attempts

from ..clock import monotonic

# With the least that the driver gives a host, this fits into the time for connecting (see `bounded_connection`).
LOOKUP_SECONDS = 8.0
# How long the answer of a look-up is kept that nobody was waiting for any more.
KEPT_SECONDS = 15.0
FIRST_NAP, MAX_NAP = 0.001, 0.05


def attempts_to_connect(given: Mapping[str, Any], purpose: str) -> list[dict[str, Any]]:
    """Return the hosts in `given`, the options of a URL, each with an address.

    Look-ups for one `purpose` are shared. It must not be that of threads of two kinds: under gevent a look-up goes on
    only while the event loop runs in which it was begun.
    """
    if not has_names(given):
        return conninfo_attempts(given)
    # A forked child has none of its parent's threads.
    key = (os.getpid(), purpose)
    lookup = _under_way.setdefault(key, Lookup(given))
    if lookup.is_stale:
        lookup = _under_way[key] = Lookup(given)
    try:
        lookup.start()
    except RuntimeError:
        # This process may start no more threads.
        _under_way.pop(key, None)
        return conninfo_attempts(given)
    if not lookup.wait(LOOKUP_SECONDS):
        raise psycopg.OperationalError(
            f"the look-up of the host name {given.get('host')!r} has not ended within {LOOKUP_SECONDS:g} s"
        )
    if _under_way.get(key) is lookup:
        _under_way.pop(key, None)
    return lookup.answer()


def has_names(given: Mapping[str, Any]) -> bool:
    """Return True if a host has to be looked up: it is neither an address nor the folder of a socket."""
    if given.get("hostaddr") or os.environ.get("PGHOSTADDR"):
        return False
    hosts = str(given.get("host") or os.environ.get("PGHOST") or "").split(",")
    return any(host and not host.startswith(("/", "@")) and not _is_address(host) for host in hosts)


class Lookup:
    """One look-up, waited for by any number of threads or greenlets."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._answer: list[dict[str, Any]] | BaseException | None = None
        self._ended_at = math.inf
        self._starts = [threading.Thread(target=self._run, name="pgcron-lookup", daemon=True)]

    @property
    def is_stale(self) -> bool:
        """True if it ended too long ago to be of use."""
        return monotonic() - self._ended_at > KEPT_SECONDS

    def start(self) -> None:
        """Begin, unless that was done before."""
        with suppress(IndexError):
            # One operation, so that of two threads only one can succeed.
            self._starts.pop().start()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for its end. Return False if it goes on."""
        # Not for an event: those of gevent are not for threads of two event loops.
        deadline, nap = monotonic() + seconds, FIRST_NAP
        while self._answer is None and monotonic() < deadline:
            time.sleep(nap)
            nap = min(nap * 2, MAX_NAP)
        return self._answer is not None

    def answer(self) -> list[dict[str, Any]]:
        """Return what was found, or raise what went wrong."""
        assert self._answer is not None
        if isinstance(self._answer, BaseException):
            raise self._answer
        # For each one its own: who connects changes them.
        return [dict(attempt) for attempt in self._answer]

    def _run(self) -> None:
        try:
            self._answer = conninfo_attempts(self._given)
        except psycopg.Error as error:
            self._answer = error
        except BaseException as error:
            self._answer = psycopg.OperationalError(f"the look-up of the host name failed: {type(error).__name__}")
        self._ended_at = monotonic()


_under_way: dict[tuple[int, str], Lookup] = {}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
