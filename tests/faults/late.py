"""A TCP proxy by which one statement is committed late: after its client has given it up and gone on.

    with Late(url, "open_levels as materialized", "frozen", queue) as late:
        worker = workers.start(url=late.url)
        eventually(late.has_tripped.is_set)
        ...
        late.go_on()
"""

import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from support import eventually
from tripwire import Tripwire

# Its backend is stopped before it reads the statement; the statement lies in the network; or the backend has run the
# statement, holds its locks, and does not get the word to commit.
How = Literal["frozen", "held", "open"]


class Late(Tripwire):
    """Holds up the first statement that contains `words`, from when `is_armed`, until `go_on`.

    When the client hangs up meanwhile, the server hears of that only behind the statement, as it does in a network.
    """

    def __init__(
        self, url: str, words: str, how: How, ask: Callable[..., list[Any]], is_armed: bool = True
    ) -> None:
        self.is_armed = is_armed
        self._how = how
        self._ask = ask
        # The process that serves the connection of the statement, and whether its client has hung up.
        self.backend: int | None = None
        self.is_given_up = threading.Event()
        self._frozen: int | None = None
        self._going_on = threading.Event()
        super().__init__(url, words, "before the statement", lambda: None)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.go_on()
        super().__exit__(kind, error, traceback)

    def go_on(self) -> None:
        """Let the statement take its course."""
        self._going_on.set()
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            os.kill(frozen, signal.SIGCONT)

    def _to_server(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        try:
            while chunk := client.recv(65536):
                if self._words in chunk and self.is_armed and not self.has_tripped.is_set():
                    self._hold_up(chunk, client, server)
                else:
                    server.sendall(chunk)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _hold_up(self, chunk: bytes, client: socket.socket, server: socket.socket) -> None:
        self.backend = self._backend_of(server)
        sent = chunk
        if self._how == "frozen":
            os.kill(self.backend, signal.SIGSTOP)
            self._frozen = self.backend
        elif self._how == "held":
            sent = b""
        else:
            while (end := self._end_of_statement(chunk)) is None:
                chunk += client.recv(65536)
            sent = chunk[:end]
        server.sendall(sent)
        self.has_tripped.set()
        while not self._going_on.wait(0.02):
            if _has_hung_up(client):
                self.is_given_up.set()
        server.sendall(chunk[len(sent) :])

    def _backend_of(self, server: socket.socket) -> int:
        port = server.getsockname()[1]
        rows = eventually(lambda: self._ask("select pid from pg_stat_activity where client_port = %s", port))
        return int(rows[0].pid)


def _has_hung_up(client: socket.socket) -> bool:
    """Whether the client has closed its end, though bytes of it are still to be read."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))
