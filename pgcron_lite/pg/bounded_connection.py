"""A psycopg connection that gives up on a silent server.

A frozen backend, or a proxy that accepts bytes and forwards none, keeps TCP alive: keepalives and TCP_USER_TIMEOUT
detect nothing, and statement_timeout is measured by the process that does not run. So the client measures too, while
it waits, and without an additional thread. This bounds every wait of the synchronous driver, also under gevent, because
all of them call `Connection.wait`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from inspect import signature
from typing import Any, TypeVar

import psycopg
import psycopg.waiting
from psycopg import errors as pg_errors
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from ..clock import monotonic
from .errors import unreachable
from .lookup import attempts_to_connect
from .url import DatabaseUrl

RV = TypeVar("RV")
Conn = TypeVar("Conn", bound="psycopg.Connection[Any]")

# Everything that bounds a wait for the server, in seconds. `tests/test_waits.py` checks the order:
#
#     LOCK_SECONDS        2  lock_timeout: the server reports that nothing was done before a client gives up
#     LOOKUP_SECONDS      8  `lookup`: resolving a host name. It leaves `HOST_SECONDS` to connect
#     OPENING_SECONDS    10  here: resolving and connecting, then the first answer
#     SILENT_SECONDS     10  `enqueue`: no answer to a producer. Two of them, and one to connect, fit into the 30 s of
#                            web servers
#     DIAL_SECONDS       15  `listen`: one attempt to listen. Longer than connecting, so that the attempt ends itself
#     HANG_SECONDS       20  `process`: the guard of a worker cuts its statements and those of its listener. The first
#                            to act, because it measures in another thread, and also while the driver does not wait
#     STATEMENT_SECONDS  30  statement_timeout: the server may still commit a statement that was cut until this time, so
#     UNCERTAIN_SECONDS  30  `claiming`: a claim without an answer is in doubt for at least as long
#     + ANSWER_MARGIN    35  no answer to any other statement. Longer than the server's limit, whose error says more
#
LOCK_SECONDS = 2.0
STATEMENT_SECONDS = 30.0
ANSWER_MARGIN = 5.0

# For all hosts of a URL together, until one has accepted the connection. Then the same time again for the first answer:
# a pooler may keep a client waiting for a connection to the server.
OPENING_SECONDS = 10.0
# The minimum that the driver allows for one host. With more than five hosts, the sum exceeds `OPENING_SECONDS`.
HOST_SECONDS = 2

# The driver wakes up ten times a second while it waits. A longer gap means that this process did not run: it was
# frozen, or the hub was blocked. The answer may have arrived meanwhile, so such a gap counts as this many seconds at
# most.
MAX_TICK = 1.0

# The driver's exception for its own `timeout`; None before psycopg 3.3, which has no such option.
_TIMEOUT: type[psycopg.Error] | None = (
    getattr(pg_errors, "_WaitTimeout", None) if "timeout" in signature(psycopg.Connection.wait).parameters else None
)
QUICK_SECONDS = 0.1

_limit: ContextVar[float] = ContextVar("pgcron_silence_limit", default=float("inf"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Lower the limit for a silent server during the block, in this thread or greenlet."""
    token = lower(seconds)
    try:
        yield
    finally:
        restore(token)


def lower(seconds: float) -> Token[float]:
    """Lower the limit as `within` does, at a tenth of its cost. Pass the result to `restore`."""
    return _limit.set(min(seconds, _limit.get()))


def restore(token: Token[float]) -> None:
    """Restore the limit from before the call of `lower` that returned `token`."""
    _limit.reset(token)


def connect(kind: type[Conn], address: DatabaseUrl, **options: Any) -> Conn:
    """Connect to the first host that answers, within one limit for all hosts and all their addresses.

    Neither the error nor its traceback contains any value of the URL but the host, port, database and user.
    """
    connected = _connected(kind, address, options)
    if isinstance(connected, psycopg.Error):
        # Raised outside the `except` block: otherwise the driver's error, which quotes malformed values, would become
        # its context.
        raise unreachable(address, connected)
    return connected


def _connected(kind: type[Conn], address: DatabaseUrl, options: dict[str, Any]) -> Conn | psycopg.Error:
    try:
        given = conninfo_to_dict(address.conninfo)
        max_seconds = timeout_from_conninfo(given)
        until = monotonic() + max(OPENING_SECONDS, max_seconds)
        attempts = attempts_to_connect(given, address.conninfo)
    except psycopg.Error as error:
        return error
    failures: list[psycopg.Error] = []
    for index, attempt in enumerate(attempts):
        share = int((until - monotonic()) / (len(attempts) - index))
        attempt["connect_timeout"] = min(max_seconds, max(HOST_SECONDS, share))
        try:
            return kind.connect(make_conninfo("", **attempt), **options)
        except psycopg.Error as error:
            failures.append(error)
    if len(failures) == 1:
        return failures[0]
    hosts = (f"{a.get('hostaddr') or a.get('host')}:{a.get('port') or 5432}" for a in attempts)
    return psycopg.OperationalError("; ".join(f"{h}: {f}" for h, f in zip(hosts, failures, strict=True)))


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed if nothing is sent or received for `max_silence` seconds during a wait."""

    max_silence: float = OPENING_SECONDS

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        if _TIMEOUT is not None and not args and not options:
            # Nearly every answer arrives quickly, and the driver measures its own timeout in C. After the timeout, the
            # same generator can be continued below.
            try:
                return super().wait(gen, timeout=QUICK_SECONDS)
            except _TIMEOUT:
                pass
        if _TIMEOUT is None:
            # Before psycopg 3.3 the wait function in C does not resume `gen` while nothing is ready; this one does.
            return psycopg.waiting.wait_poll(self._bounded(gen), self.pgconn.socket, 0.1)
        return super().wait(self._bounded(gen), *args, **options)

    def _bounded(self, gen: PQGen[RV]) -> PQGen[RV]:
        """Run `gen` and measure the silence. The wait function sends it what is ready, or 0 ten times a second."""
        # The driver's own `timeout` would end a long answer that is still arriving, and psycopg 3.2 has none.
        silent, checked_at = 0.0, None
        try:
            event = next(gen)
            while True:
                ready = yield event
                if ready:
                    silent, checked_at = 0.0, None
                else:
                    now = monotonic()
                    silent += 0.0 if checked_at is None else min(now - checked_at, MAX_TICK)
                    checked_at = now
                    if silent > (limit := min(self.max_silence, _limit.get())):
                        self._give_up(limit)
                event = gen.send(ready)
        except StopIteration as end:
            answer: RV = end.value
            return answer

    def _give_up(self, limit: float) -> None:
        # Close it at once, so that neither a rollback nor the end of a pipeline waits for the same server again.
        self.pgconn.finish()
        raise pg_errors.ConnectionTimeout(f"the server has been silent for {limit:g} s in the middle of a statement")
