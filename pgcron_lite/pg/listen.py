"""Listener for the doorbell: a connection that runs LISTEN, and that a busy worker uses for other statements.

It reconnects by itself, and tests itself. After each connect, and every 30 s, it sends itself a notification through
another connection. A pooler accepts LISTEN without effect and without an error, and a network may drop a connection
silently; only the missing notification shows either. Until the first test has succeeded, and whenever the listener is
down, the worker polls.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import threading
from collections.abc import Callable
from typing import Literal

import psycopg
from psycopg import sql

from ..clock import monotonic
from ..errors import DatabaseUnavailable, LoginRefused, PgCronError
from .bounded_connection import within
from .connection import Connection
from .url import DatabaseUrl

logger = logging.getLogger(__name__)

# Seconds within which our own notification must arrive, seconds between two of them, and seconds that an attempt to
# connect may take. `bounded_connection` lists all such limits.
PROOF_SECONDS, PROOF_EVERY, DIAL_SECONDS = 2.0, 30.0, 15.0
FIRST_PAUSE, MAX_PAUSE, MAX_PAUSE_REFUSED = 0.2, 1.0, 5.0
# Behind a pooler the next attempt follows after this many seconds: the route to the server may have changed.
DEAF_PAUSE = 300.0

Condition = Literal["down", "dialing", "unproven", "live", "deaf"]


class Listener:
    """Receives the rings of a schema's doorbell. Used by one thread, which sleeps on `fileno`."""

    def __init__(
        self,
        address: DatabaseUrl,
        schema: str,
        send: Callable[[str], None],
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.condition: Condition = "down"
        self._address = address
        self._schema = schema
        self._send = send
        self._wake = wake
        self._proof = f"{schema}_{secrets.token_hex(6)}"
        # The time by which our notification must have arrived, and the time to send the next one.
        self._proof_due: float | None = None
        self._prove_at = 0.0
        self._next_try = 0.0
        self._pause = FIRST_PAUSE
        self._dial: Dial | None = None
        self._connection: Connection | None = None
        self._logged_down = self._logged_deaf = False

    @property
    def is_live(self) -> bool:
        """True if every ring is received."""
        return self.condition == "live"

    @property
    def busy_seconds(self) -> float:
        """Seconds that the running statement has taken so far."""
        connection = self._connection
        since = connection.busy_since if connection is not None else None
        return 0.0 if since is None else monotonic() - since

    def cut(self) -> None:
        """End a statement that hangs, from another thread."""
        connection = self._connection
        if connection is not None:
            connection.cut()

    def fileno(self) -> int | None:
        """Return the descriptor to sleep on; None while there is no connection."""
        return self._connection.fileno() if self._connection is not None and self._connection.is_open else None

    def step(self) -> tuple[bool, float]:
        """Maintain the connection and read notifications. Return (True if the bell rang, seconds until the next step).

        A new connection counts as a ring: a poll finds the jobs whose rings were missed before.
        """
        now = monotonic()
        if self.condition in ("down", "deaf"):
            if now < self._next_try:
                return False, self._next_try - now
            self._dial = Dial(Connection(self._address, self._schema, listens=True), self._proof, self._wake)
            self.condition = "dialing"
        if self.condition == "dialing":
            return self._await_dial(now)
        rung = self._drain()
        if self.condition == "unproven" and self._is_overdue:
            rung = self._check_server() or rung
        self._prove()
        return rung, self._until_next_step()

    def spare_connection(self) -> Connection | None:
        """Return the connection for other statements of the thread that uses this listener, while it does not sleep.

        None unless it is live and leads to the server itself.
        """
        connection = self._connection
        return connection if self.is_live and connection is not None and connection.is_direct else None

    def rest(self, seconds: float) -> None:
        """Close the connection for `seconds`, because other parts of this process need connections more."""
        self.close()
        self._next_try = monotonic() + seconds

    def close(self) -> None:
        """Close the connection, or give up the attempt to connect."""
        if self._dial is not None:
            self._dial.abandon()
        if self._connection is not None:
            self._connection.close()
        self._dial = self._connection = self._proof_due = None
        self.condition = "down"

    def _await_dial(self, now: float) -> tuple[bool, float]:
        """Check whether the attempt to connect has ended. The worker continues meanwhile, as it may take long."""
        dial = self._dial
        assert dial is not None
        if not dial.is_over:
            if now < dial.deadline:
                return False, dial.deadline - now
            self._disconnected(f"no answer from {self._address} in {DIAL_SECONDS:g} s")
        elif dial.error is not None:
            self._disconnected(dial.error)
        else:
            self._dial, self._connection = None, dial.connection
            self.condition, self._prove_at = "unproven", 0.0
            self._prove()
            return True, self._until_next_step()
        return False, self._until_next_step()

    def _drain(self) -> bool:
        """Read all notifications. Return True if the bell rang.

        They are read even if the socket has no data: some may have arrived together with the answer to a statement.
        """
        rung = False
        try:
            if self._connection is None or not self._connection.is_open:
                raise DatabaseUnavailable("the connection is closed")
            for channel in self._connection.notices():
                if channel == self._proof:
                    self._proven()
                else:
                    # Ignore the sender and the payload: any role may send it. It only means that a poll is worthwhile.
                    rung = True
        except (PgCronError, psycopg.Error, OSError) as error:
            self._disconnected(error)
        return rung

    @property
    def _is_overdue(self) -> bool:
        return self._proof_due is not None and monotonic() >= self._proof_due

    def _check_server(self) -> bool:
        """Check that the server answers at all, before concluding from a missing notification that there is a pooler.

        Its notifications for us arrive before its answer. Return True if the bell rang.
        """
        assert self._connection is not None
        try:
            with within(PROOF_SECONDS):
                self._connection.autocommit("select")
        except PgCronError as error:
            self._disconnected(error)
            return False
        return self._drain()

    def _prove(self) -> None:
        """Send ourselves a notification when it is time, and give the connection up if the last one did not arrive."""
        if self.condition not in ("unproven", "live"):
            return
        now = monotonic()
        if self._is_overdue:
            if self.condition == "unproven":
                self._give_up()
            else:
                self._disconnected(f"its own notice did not come back in {PROOF_SECONDS:g} s")
        elif self._proof_due is None and now >= self._prove_at:
            try:
                self._send(self._proof)
            except PgCronError as error:
                self._disconnected(error)
            else:
                self._proof_due = monotonic() + PROOF_SECONDS

    def _proven(self) -> None:
        self._proof_due, self._prove_at = None, monotonic() + PROOF_EVERY
        if self.condition != "unproven":
            return
        assert self._connection is not None
        # It is proven that no other client shares this session, so the timeout for idle sessions can be switched off.
        self._connection.autocommit(
            "select set_config(name, '0', false) from pg_settings where name = 'idle_session_timeout'"
        )
        self.condition, self._pause, self._logged_deaf = "live", FIRST_PAUSE, False
        if self._logged_down:
            logger.info("listening again")
        self._logged_down = False

    def _give_up(self) -> None:
        if not self._logged_deaf:
            logger.warning(
                "LISTEN is accepted but nothing arrives: a transaction pooler is in between. Polling instead;"
                " set PGCRON_DIRECT_URL to a URL that goes to the server itself."
            )
        self._logged_deaf = True
        connection, self._connection = self._connection, None
        if connection is not None:
            threading.Thread(target=self._unlisten, args=[connection], name="pgcron-listener", daemon=True).start()
        self.rest(DEAF_PAUSE)
        self.condition = "deaf"

    def _unlisten(self, connection: Connection) -> None:
        """Run UNLISTEN before closing, because the pooler gives the session to other clients next."""
        with contextlib.suppress(PgCronError):
            connection.autocommit("unlisten pgcron")
            connection.autocommit(sql.SQL("unlisten {}").format(sql.Identifier(self._proof)))
        connection.close()

    def _disconnected(self, why: object) -> None:
        if not self._logged_down:
            logger.warning("not listening, polling until that works again: %s", " ".join(str(why).split()))
        self._logged_down = True
        self.rest(self._pause * random.uniform(0.5, 1.0))
        # Repeat a refused login at longer intervals: a server or proxy that counts them may lock us out.
        max_pause = MAX_PAUSE_REFUSED if isinstance(why, LoginRefused) else MAX_PAUSE
        self._pause = min(self._pause * 2, max_pause)

    def _until_next_step(self) -> float:
        times = {"live": self._prove_at, "unproven": 0.0}
        next_time = self._proof_due or times.get(self.condition, self._next_try)
        return max(0.0, next_time - monotonic())


class Dial:
    """One attempt to connect and LISTEN, in a separate thread."""

    def __init__(self, connection: Connection, proof: str, wake: Callable[[], None]) -> None:
        self.connection = connection
        self.error: BaseException | None = None
        self.is_over = False
        self.deadline = monotonic() + DIAL_SECONDS
        self._proof = proof
        self._wake = wake
        self._abandoned = False
        try:
            threading.Thread(target=self._run, name="pgcron-listener", daemon=True).start()
        except RuntimeError as error:
            # This process cannot start more threads. The worker polls.
            self.error, self.is_over = error, True

    def abandon(self) -> None:
        """Give the attempt up. Its thread closes the connection if it still opens one."""
        self._abandoned = True
        self.connection.cut()
        if self.is_over:
            self.connection.close()

    def _run(self) -> None:
        try:
            self.connection.autocommit("listen pgcron")
            self.connection.autocommit(sql.SQL("listen {}").format(sql.Identifier(self._proof)))
        except BaseException as error:
            self.error = error
        self.is_over = True
        if self._abandoned or self.error is not None:
            self.connection.close()
        self._wake()
