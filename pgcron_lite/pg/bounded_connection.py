"""A psycopg connection that gives up on a server that has fallen silent.

A frozen backend, or a proxy that accepts bytes and passes none on, keeps TCP alive: keepalives and TCP_USER_TIMEOUT
see nothing wrong, and statement_timeout is counted by the very process that does not run. So the client counts too,
while it waits and without a thread of its own. This bounds every wait of the synchronous driver, under gevent too,
because all of them go through `Connection.wait`.
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

# All that bounds a wait for the server, in seconds, and the order that `tests/test_waits.py` holds:
#
#     LOCK_SECONDS        2  lock_timeout: the server answers that nothing was done, before a client gives up
#     LOOKUP_SECONDS      8  `lookup`: finding the address of a host name. It leaves `HOST_SECONDS` to connect
#     OPENING_SECONDS    10  here: looking up and connecting, then the first answer
#     SILENT_SECONDS     10  `enqueue`: no answer to a producer. Two of them, and one to connect, fit into the 30 s of
#                            web servers
#     DIAL_SECONDS       15  `listen`: one attempt to listen. Longer than connecting, so that it ends by itself
#     HANG_SECONDS       20  `process`: the guard of a worker cuts its statements and those of its listener. First, as
#                            it counts in a thread of its own, also where the driver does not wait
#     STATEMENT_SECONDS  30  statement_timeout: what the guard has cut, the server may still commit until here, so
#     UNCERTAIN_SECONDS  30  `claiming`: a claim without an answer is in doubt for at least as long
#     + ANSWER_MARGIN    35  no answer to any other statement. After the server's own limit, whose error says more
#
LOCK_SECONDS = 2.0
STATEMENT_SECONDS = 30.0
ANSWER_MARGIN = 5.0

# For all hosts of a URL until one has let us in. Then again until the first answer: a pooler may keep a client waiting
# for a connection to the server.
OPENING_SECONDS = 10.0
# The least that the driver gives a host. More than five are given more than `OPENING_SECONDS` in all.
HOST_SECONDS = 2

# The driver wakes up ten times a second while it waits. A longer gap means that this process stood still: it was
# frozen, or the hub was blocked. The answer may have arrived meanwhile, so such a gap counts as this much at most.
MAX_TICK = 1.0

# What the driver raises when its own `timeout` is over; None before psycopg 3.3, which has no such option.
_TIMEOUT: type[psycopg.Error] | None = (
    getattr(pg_errors, "_WaitTimeout", None) if "timeout" in signature(psycopg.Connection.wait).parameters else None
)
QUICK_SECONDS = 0.1

_limit: ContextVar[float] = ContextVar("pgcron_silence_limit", default=float("inf"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Lower the limit of silence for the statements of this block, in this thread or greenlet."""
    token = lower(seconds)
    try:
        yield
    finally:
        restore(token)


def lower(seconds: float) -> Token[float]:
    """Begin what `within` does for a block, at a tenth of its cost; `restore` ends it."""
    return _limit.set(min(seconds, _limit.get()))


def restore(token: Token[float]) -> None:
    """Set the limit to what it was before `lower` returned `token`."""
    _limit.reset(token)


def connect(kind: type[Conn], address: DatabaseUrl, **options: Any) -> Conn:
    """Connect to the first host that answers. The time for all of them, and all addresses of their names, is bounded.

    An error contains no value of the URL except where it leads, and as whom; neither does its traceback.
    """
    connected = _connected(kind, address, options)
    if isinstance(connected, psycopg.Error):
        # Not within an `except` block: the driver's error would become its context, and quotes what it cannot read.
        raise unreachable(address, connected)
    return connected


def _connected(kind: type[Conn], address: DatabaseUrl, options: dict[str, Any]) -> Conn | psycopg.Error:
    try:
        given = conninfo_to_dict(address.conninfo)
        most = timeout_from_conninfo(given)
        until = monotonic() + max(OPENING_SECONDS, most)
        attempts = attempts_to_connect(given, address.conninfo)
    except psycopg.Error as error:
        return error
    failures: list[psycopg.Error] = []
    for index, attempt in enumerate(attempts):
        share = int((until - monotonic()) / (len(attempts) - index))
        attempt["connect_timeout"] = min(most, max(HOST_SECONDS, share))
        try:
            return kind.connect(make_conninfo("", **attempt), **options)
        except psycopg.Error as error:
            failures.append(error)
    if len(failures) == 1:
        return failures[0]
    hosts = (f"{a.get('hostaddr') or a.get('host')}:{a.get('port') or 5432}" for a in attempts)
    return psycopg.OperationalError("; ".join(f"{h}: {f}" for h, f in zip(hosts, failures, strict=True)))


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when nothing moves on it for `max_silence` seconds while an answer is awaited."""

    max_silence: float = OPENING_SECONDS

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        if _TIMEOUT is not None and not args and not options:
            # Nearly every answer comes at once, and the driver counts in C. It can go on where it was interrupted.
            try:
                return super().wait(gen, timeout=QUICK_SECONDS)
            except _TIMEOUT:
                pass
        if _TIMEOUT is None:
            # Before psycopg 3.3 the wait function in C tells `gen` nothing while nothing is ready; this one does.
            return psycopg.waiting.wait_poll(self._bounded(gen), self.pgconn.socket, 0.1)
        return super().wait(self._bounded(gen), *args, **options)

    def _bounded(self, gen: PQGen[RV]) -> PQGen[RV]:
        """Run `gen`, which is told by whoever waits for the socket what is ready; nothing, ten times a second."""
        # The driver's own `timeout` would end a long answer that is still arriving, and psycopg 3.2 has none.
        silent, looked_at = 0.0, None
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    silent, looked_at = 0.0, None
                else:
                    now = monotonic()
                    silent += 0.0 if looked_at is None else min(now - looked_at, MAX_TICK)
                    looked_at = now
                    if silent > (limit := min(self.max_silence, _limit.get())):
                        self._give_up(limit)
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: RV = end.value
            return answer

    def _give_up(self, limit: float) -> None:
        # At once, so that nothing waits for the same server again: neither a rollback nor the end of a pipeline.
        self.pgconn.finish()
        raise pg_errors.ConnectionTimeout(f"the server has been silent for {limit:g} s in the middle of a statement")
