"""Look-ups of the host names in a URL, each in a separate thread, so that connecting takes a limited time.

`getaddrinfo` takes as long as the system's resolver: five seconds for each name server that does not answer, for each
domain that is searched. It cannot be interrupted. So a look-up that takes too long continues, and the next attempt to
connect waits for the same one. A slow resolver succeeds in the end, and a resolver that hangs occupies one thread.
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

# Together with the minimum that the driver allows for a host, this fits into the time for connecting (see
# `bounded_connection`).
LOOKUP_SECONDS = 8.0
# Seconds for which the answer of a look-up is kept if every attempt to connect has given up waiting for it.
KEPT_SECONDS = 15.0
FIRST_PAUSE, MAX_PAUSE = 0.001, 0.05


def attempts_to_connect(given: Mapping[str, Any], purpose: str) -> list[dict[str, Any]]:
    """Return the hosts in `given`, the options of a URL, each with an address.

    Look-ups with the same `purpose` are shared. Threads with different event loops must not share one: under gevent a
    look-up continues only while the event loop runs in which it was started.
    """
    if not has_names(given):
        return conninfo_attempts(given)
    # A forked child has none of its parent's threads.
    key = (os.getpid(), purpose)
    lookup = _in_progress.setdefault(key, Lookup(given))
    if lookup.is_stale:
        lookup = _in_progress[key] = Lookup(given)
    try:
        lookup.start()
    except RuntimeError:
        # This process cannot start more threads.
        _in_progress.pop(key, None)
        return conninfo_attempts(given)
    if not lookup.wait(LOOKUP_SECONDS):
        raise psycopg.OperationalError(
            f"the look-up of the host name {given.get('host')!r} has not ended within {LOOKUP_SECONDS:g} s"
        )
    if _in_progress.get(key) is lookup:
        _in_progress.pop(key, None)
    return lookup.answer()


def has_names(given: Mapping[str, Any]) -> bool:
    """Return True if a host has to be looked up: it is neither an address nor the directory of a socket."""
    if given.get("hostaddr") or os.environ.get("PGHOSTADDR"):
        return False
    hosts = str(given.get("host") or os.environ.get("PGHOST") or "").split(",")
    return any(host and not host.startswith(("/", "@")) and not _is_address(host) for host in hosts)


class Lookup:
    """One look-up, for which any number of threads or greenlets can wait."""

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
        """Start the look-up, unless that was done before."""
        with suppress(IndexError):
            # `pop` is atomic, so only one of two threads can succeed.
            self._starts.pop().start()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for its end. Return False if it has not ended."""
        # No event, because a gevent event cannot be shared by threads with different event loops.
        deadline, pause = monotonic() + seconds, FIRST_PAUSE
        while self._answer is None and monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)
        return self._answer is not None

    def answer(self) -> list[dict[str, Any]]:
        """Return the hosts with their addresses, or raise the error of the look-up."""
        assert self._answer is not None
        if isinstance(self._answer, BaseException):
            raise self._answer
        # Return copies, because the caller changes them.
        return [dict(attempt) for attempt in self._answer]

    def _run(self) -> None:
        try:
            self._answer = conninfo_attempts(self._given)
        except psycopg.Error as error:
            self._answer = error
        except BaseException as error:
            self._answer = psycopg.OperationalError(f"the look-up of the host name failed: {type(error).__name__}")
        self._ended_at = monotonic()


_in_progress: dict[tuple[int, str], Lookup] = {}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
