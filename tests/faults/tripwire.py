"""A TCP proxy with a tripwire: something happens when a given statement passes, or when its reply comes back.

So a process can be killed or frozen in the one moment that matters: before the server has heard a statement, with the
statement run and its transaction open, or after the server has committed it and before the client knows.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

Moment = Literal["before the statement", "within the transaction", "after the commit"]


class Tripwire:
    """Passes everything on to the server of `url`; calls `trip` once, in the given moment of the first statement that
    contains `words`. After that its connection is cut, or left hanging within the transaction: the client never learns
    how it ended."""

    def __init__(self, url: str, words: str, moment: Moment, trip: Callable[[], None]) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._words, self._moment, self._trip = words.encode(), moment, trip
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.has_tripped = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        credentials = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        self._start(self._serve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for each in (self._listening, *self._sockets):
            _shut(each)
        for thread in self._threads:
            thread.join(5)
        for each in (self._listening, *self._sockets):
            each.close()

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, name="tripwire", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
                self._sockets += client, server
                armed = threading.Event()
                self._start(self._to_server, client, server, armed)
                self._start(self._to_client, client, server, armed)

    def _to_server(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := client.recv(65536):
                if self._words in chunk and not self.has_tripped.is_set():
                    if self._moment == "before the statement":
                        return self._spring(client, server)
                    if self._moment == "within the transaction":
                        server.sendall(self._statement_from(chunk, client))
                        self.has_tripped.set()
                        return self._trip()
                    armed.set()
                server.sendall(chunk)
        _shut(server)

    def _statement_from(self, chunk: bytes, client: socket.socket) -> bytes:
        """All up to the end of the statement, which a client may send in pieces."""
        while (end := self._end_of_statement(chunk)) is None:
            if not (more := client.recv(65536)):
                break
            chunk += more
        return chunk[:end]

    def _end_of_statement(self, sent: bytes) -> int | None:
        """Where, in messages as the client sends them (a letter, a length, the rest), what follows it begins."""
        place, found, bound = 0, False, False
        while place < len(sent):
            kind, size = sent[place : place + 1], int.from_bytes(sent[place + 1 : place + 5], "big") + 1
            # Parse, or a Bind of what was parsed before, is how a statement begins; Sync may commit.
            if found and (kind == b"P" or (kind in b"BS" and bound)):
                return place
            found = found or self._words in sent[place : place + size]
            bound = found and (bound or kind == b"B")
            place += size
        return None

    def _to_client(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while chunk := server.recv(65536):
                if not armed.is_set():
                    client.sendall(chunk)
                    continue
                held += chunk
                if _is_committed(held):
                    return self._spring(client, server)
        _shut(client)

    def _spring(self, client: socket.socket, server: socket.socket) -> None:
        self.has_tripped.set()
        self._trip()
        _shut(client)
        _shut(server)


def _is_committed(reply: bytes) -> bool:
    """Has a statement been completed, and does the server say that no transaction is open?"""
    place, completed = 0, False
    while place + 5 < len(reply):
        kind, size = reply[place : place + 1], int.from_bytes(reply[place + 1 : place + 5], "big") + 1
        completed = completed or kind == b"C"
        if completed and reply[place : place + size] == b"Z\0\0\0\5I":
            return True
        place += size
    return False


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
