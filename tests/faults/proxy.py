"""A TCP proxy that fails on demand: what networks, routers and poolers do to a connection, and when a test wants it.

    with Proxy(pg_url) as proxy:
        store = PostgresStore(address(proxy.url, application="test"))
        proxy.freeze()

It knows nothing about PostgreSQL. Both ends stay real sockets, so what a client notices is what it would notice.
"""

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65536
_RST = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on a loopback port and passes everything on to the server of `url`, until told otherwise."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listening: socket.socket | None = None
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self.flowing = threading.Event()
        self.flowing.set()
        # Seconds that every chunk to the client is late, and how many bytes pass in a second.
        self.delay = 0.0
        self.rate: float | None = None
        # After so many more bytes to clients, the connection that gets the last of them is reset.
        self.bytes_left: int | None = None
        # A client that sends this is not answered any more.
        self.swallow_from: bytes | None = None
        # What the first client that sends this has sent, and what it sends later, arrives when it is let go.
        self.hold_from: bytes | None = None
        self.is_holding = threading.Event()
        self._let_go = threading.Event()
        self.accept()
        self.port = self._listening_port()
        credentials, at, _ = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len([pair for pair in self._pairs if pair.is_open])

    def freeze(self) -> None:
        """Nothing moves any more, in either direction; no connection ends. New ones are accepted and hang too."""
        self.flowing.clear()

    def thaw(self) -> None:
        """What was held back goes on its way."""
        self.flowing.set()

    def black_hole(self) -> None:
        """The other end is gone without a word, for the connections there are: half-open. New ones work."""
        for pair in self._all():
            pair.swallows = True

    def let_go(self) -> None:
        """What was held back arrives, and then the end of its connection, if the client has closed it."""
        self._let_go.set()

    def hold(self, chunk: bytes) -> None:
        """Wait with a chunk that is to be held back."""
        if self.hold_from is not None and self.hold_from in chunk:
            self.hold_from = None
            self.is_holding.set()
            self._let_go.wait()

    def reset(self) -> None:
        """Every connection ends with an RST."""
        for pair in self._all():
            pair.reset()

    def refuse(self) -> None:
        """The server is down: connections end, new ones are refused."""
        listening, self._listening = self._listening, None
        if listening is not None:
            # Closing alone does not wake a thread that accepts.
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        self.reset()

    def accept(self) -> None:
        """The server is up (again), on the same port."""
        if self._listening is not None:
            return
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", getattr(self, "port", 0)))
        listening.listen(64)
        self._listening = listening
        threading.Thread(target=self._serve, args=[listening], name="proxy", daemon=True).start()

    def cut_after(self, count: int) -> None:
        """Let `count` more bytes through to clients, then reset: a message ends in the middle."""
        self.bytes_left = count

    def close(self) -> None:
        self.refuse()
        self.thaw()
        self.let_go()
        for pair in self._all():
            pair.join()

    def allowance(self, wanted: int) -> int:
        """How many of `wanted` bytes may pass; fewer means that the connection is to break after them."""
        with self._lock:
            if self.bytes_left is None:
                return wanted
            allowed = min(wanted, self.bytes_left)
            self.bytes_left -= allowed
            if allowed < wanted:
                self.bytes_left = None
            return allowed

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _close_with_rst(client)
                continue
            with self._lock:
                self._pairs = [pair for pair in self._pairs if pair.is_open]
                self._pairs.append(_Pair(self, client, server))

    def _all(self) -> list["_Pair"]:
        with self._lock:
            return list(self._pairs)

    def _listening_port(self) -> int:
        assert self._listening is not None
        port: int = self._listening.getsockname()[1]
        return port


class _Pair:
    """One client's connection and ours to the server on its behalf."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self.swallows = False
        self.is_open = True
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pumps = [
            threading.Thread(target=self._pump, args=ends, name="proxy-pump", daemon=True)
            for ends in ((client, server), (server, client))
        ]
        for pump in self._pumps:
            pump.start()

    def reset(self) -> None:
        self.is_open = False
        _close_with_rst(self._client)
        _close_with_rst(self._server)

    def join(self) -> None:
        for pump in self._pumps:
            pump.join(5)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(CHUNK):
                self._proxy.flowing.wait()
                if sink is self._server and self._proxy.swallow_from and self._proxy.swallow_from in chunk:
                    self.swallows = True
                if self.swallows:
                    continue
                if sink is self._client and not self._to_client(chunk):
                    return self.reset()
                if sink is self._server:
                    self._proxy.hold(chunk)
                    sink.sendall(chunk)
        except OSError:
            pass
        if self.is_open and not self.swallows:
            self.is_open = False
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _to_client(self, chunk: bytes) -> bool:
        """Send, as slowly as asked for. False when the connection is to break now."""
        if self._proxy.delay:
            time.sleep(self._proxy.delay)
        if self._proxy.rate:
            time.sleep(len(chunk) / self._proxy.rate)
        allowed = self._proxy.allowance(len(chunk))
        self._client.sendall(chunk[:allowed])
        return allowed == len(chunk)


def _close_with_rst(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    with contextlib.suppress(OSError):
        # Wakes a thread that reads from it, which would otherwise keep the descriptor alive.
        end.shutdown(socket.SHUT_RD)
    end.close()
