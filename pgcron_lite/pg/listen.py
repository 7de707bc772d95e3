"""The doorbell's other end: a connection that runs LISTEN, and is lent out while nobody waits for the bell.

It heals itself and proves itself. After each connect, and from time to time, it sends itself a notice by another
connection: a pooler in between swallows LISTEN without an error, a network may lose a connection without a word, and
only the missing notice shows it. Until the proof, and whenever it is down, the worker polls.
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

# How long our own notice may take, and how often it is sent; how long a connection attempt may take (See
# `bounded_connection`).
PROOF_SECONDS, PROOF_EVERY, DIAL_SECONDS = 2.0, 30.0, 15.0
FIRST_PAUSE, MAX_PAUSE, MAX_PAUSE_REFUSED = 0.2, 1.0, 5.0
# Behind a pooler another try is made seldom: what is between us and the server may have changed.
DEAF_PAUSE = 300.0

Condition = Literal["down", "dialing", "unproven", "live", "deaf"]


class Listener:
    """Hears rings of the schema's doorbell. Owned by one thread; `fileno` goes into that thread's sleep."""

    def __init__(
        self,
        address: DatabaseUrl,
        schema: str,
        send: Callable[[str], None],
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.condition: Condition = "down"
        self._address = address
        self._schema = schema
        self._send = send
        self._tell = tell
        self._proof = f"{schema}_{secrets.token_hex(6)}"
        # When our notice must have arrived, and when the next one is sent.
        self._proof_due: float | None = None
        self._prove_at = 0.0
        self._next_try = 0.0
        self._pause = FIRST_PAUSE
        self._dial: Dial | None = None
        self._link: Connection | None = None
        self._said_down = self._said_deaf = False

    @property
    def is_live(self) -> bool:
        """Can be relied on to hear the bell."""
        return self.condition == "live"

    @property
    def busy_seconds(self) -> float:
        """How long the statement under way has taken so far."""
        connection = self._link
        since = connection.busy_since if connection is not None else None
        return 0.0 if since is None else monotonic() - since

    def cut(self) -> None:
        """End a statement that hangs, from another thread."""
        connection = self._link
        if connection is not None:
            connection.cut()

    def fileno(self) -> int | None:
        """What to watch while asleep; None when there is nothing."""
        return self._link.fileno() if self._link is not None and self._link.is_open else None

    def step(self) -> tuple[bool, float]:
        """Look after the connection and take what has arrived: (was the bell rung?, seconds until the next look).

        A fresh connection counts as a ring: what was missed while nobody listened is found by looking once.
        """
        now = monotonic()
        if self.condition in ("down", "deaf"):
            if now < self._next_try:
                return False, self._next_try - now
            self._dial = Dial(Connection(self._address, self._schema, hears=True), self._proof, self._tell)
            self.condition = "dialing"
        if self.condition == "dialing":
            return self._answered(now)
        rung = self._drain()
        if self.condition == "unproven" and self._is_overdue:
            rung = self._ask_the_server() or rung
        self._ask_for_proof()
        return rung, self._until_next_look()

    def lent(self) -> Connection | None:
        """The connection, for who turns the listener and is not waiting for the bell; None if it is not sure."""
        return self._link if self.is_live and self._link is not None and self._link.is_ours else None

    def rest(self, seconds: float) -> None:
        """Let go of the connection for a while: others of this process need it more."""
        self.close()
        self._next_try = monotonic() + seconds

    def close(self) -> None:
        """Let go of the connection."""
        if self._dial is not None:
            self._dial.abandon()
        if self._link is not None:
            self._link.close()
        self._dial = self._link = self._proof_due = None
        self.condition = "down"

    def _answered(self, now: float) -> tuple[bool, float]:
        """Is the connection there? The worker goes on meanwhile: a host that does not answer takes its time."""
        dial = self._dial
        assert dial is not None
        if not dial.is_over:
            if now < dial.deadline:
                return False, dial.deadline - now
            self._fell(f"no answer from {self._address} in {DIAL_SECONDS:g} s")
        elif dial.error is not None:
            self._fell(dial.error)
        else:
            self._dial, self._link = None, dial.connection
            self.condition, self._prove_at = "unproven", 0.0
            self._ask_for_proof()
            return True, self._until_next_look()
        return False, self._until_next_look()

    def _drain(self) -> bool:
        """Take every notice that has arrived; some may have come with a statement, and the socket is silent again."""
        rung = False
        try:
            if self._link is None or not self._link.is_open:
                raise DatabaseUnavailable("the connection is closed")
            for channel in self._link.notices():
                if channel == self._proof:
                    self._proven()
                else:
                    # Who sent it, and what it says, does not matter: anybody may. It only means "look".
                    rung = True
        except (PgCronError, psycopg.Error, OSError) as error:
            self._fell(error)
        return rung

    @property
    def _is_overdue(self) -> bool:
        return self._proof_due is not None and monotonic() >= self._proof_due

    def _ask_the_server(self) -> bool:
        """Find out whether the server answers at all, before a missing notice is taken for the work of a pooler.

        The notices it has for us arrive before its answer. Returns whether the bell was rung.
        """
        assert self._link is not None
        try:
            with within(PROOF_SECONDS):
                self._link.alone("select")
        except PgCronError as error:
            self._fell(error)
            return False
        return self._drain()

    def _ask_for_proof(self) -> None:
        """Send ourselves a notice when it is time, and draw the conclusion when it does not come."""
        if self.condition not in ("unproven", "live"):
            return
        now = monotonic()
        if self._is_overdue:
            if self.condition == "unproven":
                self._give_up()
            else:
                self._fell(f"its own notice did not come back in {PROOF_SECONDS:g} s")
        elif self._proof_due is None and now >= self._prove_at:
            try:
                self._send(self._proof)
            except PgCronError as error:
                self._fell(error)
            else:
                self._proof_due = monotonic() + PROOF_SECONDS

    def _proven(self) -> None:
        self._proof_due, self._prove_at = None, monotonic() + PROOF_EVERY
        if self.condition != "unproven":
            return
        assert self._link is not None
        # Proven to be ours alone until we close it, so it may be told not to end for being silent.
        self._link.alone(
            "select set_config(name, '0', false) from pg_settings where name = 'idle_session_timeout'"
        )
        self.condition, self._pause, self._said_deaf = "live", FIRST_PAUSE, False
        if self._said_down:
            logger.info("listening again")
        self._said_down = False

    def _give_up(self) -> None:
        if not self._said_deaf:
            logger.warning(
                "LISTEN is accepted but nothing arrives: a transaction pooler is in between. Polling instead;"
                " set PGCRON_DIRECT_URL to a URL that goes to the server itself."
            )
        self._said_deaf = True
        connection, self._link = self._link, None
        if connection is not None:
            threading.Thread(target=self._hang_up, args=[connection], name="pgcron-listener", daemon=True).start()
        self.rest(DEAF_PAUSE)
        self.condition = "deaf"

    def _hang_up(self, connection: Connection) -> None:
        """Take LISTEN back before closing: the pooler gives the session to others next."""
        with contextlib.suppress(PgCronError):
            connection.alone("unlisten pgcron")
            connection.alone(sql.SQL("unlisten {}").format(sql.Identifier(self._proof)))
        connection.close()

    def _fell(self, why: object) -> None:
        if not self._said_down:
            logger.warning("not listening, polling until that works again: %s", " ".join(str(why).split()))
        self._said_down = True
        self.rest(self._pause * random.uniform(0.5, 1.0))
        # A refused login is repeated at longer intervals: whoever counts them locks us out.
        longest = MAX_PAUSE_REFUSED if isinstance(why, LoginRefused) else MAX_PAUSE
        self._pause = min(self._pause * 2, longest)

    def _until_next_look(self) -> float:
        moments = {"live": self._prove_at, "unproven": 0.0}
        moment = self._proof_due or moments.get(self.condition, self._next_try)
        return max(0.0, moment - monotonic())


class Dial:
    """One attempt to connect and LISTEN, in a thread of its own."""

    def __init__(self, connection: Connection, proof: str, tell: Callable[[], None]) -> None:
        self.connection = connection
        self.error: BaseException | None = None
        self.is_over = False
        self.deadline = monotonic() + DIAL_SECONDS
        self._proof = proof
        self._tell = tell
        self._abandoned = False
        try:
            threading.Thread(target=self._run, name="pgcron-listener", daemon=True).start()
        except RuntimeError as error:
            # This process may start no more threads. The worker polls.
            self.error, self.is_over = error, True

    def abandon(self) -> None:
        """Nobody waits for it any more. It closes what it opened."""
        self._abandoned = True
        self.connection.cut()
        if self.is_over:
            self.connection.close()

    def _run(self) -> None:
        try:
            self.connection.alone("listen pgcron")
            self.connection.alone(sql.SQL("listen {}").format(sql.Identifier(self._proof)))
        except BaseException as error:
            self.error = error
        self.is_over = True
        if self._abandoned or self.error is not None:
            self.connection.close()
        self._tell()
