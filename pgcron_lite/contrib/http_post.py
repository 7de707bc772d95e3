"""HTTP requests with one deadline for all steps: connecting, TLS, sending, and reading the headers of the response.

The timeout of `urllib` applies to each socket call, so a server that sends a byte now and then delays a request without
limit. Here every call waits only for the time that is left. Only the name lookup is the system's, with the system's own
timeouts.

Imported on first use: it loads ssl, which gevent must have patched before.
"""

from __future__ import annotations

import functools
import http.client
import io
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar
from urllib import request

from ..clock import monotonic

T = TypeVar("T")


def post(opener: request.OpenerDirector, url: str, text: bytes | None, seconds: float) -> tuple[int, str | None]:
    """Send `text`, and return the status and the Location of the response. Its body is not read: it may never end."""
    headers = {"User-Agent": "pgcron_lite", "Content-Type": "text/plain; charset=utf-8"}
    with opener.open(request.Request(url, text, headers), timeout=seconds) as answer:
        return answer.status, answer.headers.get("Location")


def opener() -> request.OpenerDirector:
    """Return an opener for http and https that uses the proxies of the environment."""
    made = request.OpenerDirector()
    # Not build_opener(): that also opens files, and turns a POST that is redirected into a GET.
    for handler in (request.ProxyHandler(), request.UnknownHandler(), _Plain(), _Secure(ssl.create_default_context())):
        made.add_handler(handler)
    return made


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._at = monotonic() + seconds

    def left(self) -> float:
        left = self._at - monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def wait(self, sock: socket.socket, event: int) -> None:
        """Wait until `sock` can be read from or written to."""
        poller = select.poll()
        poller.register(sock, event)
        poller.poll(int(self.left() * 1000) + 1)


class _Stream:
    """A connected socket for http.client. Every call ends by the deadline."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self.socket = sock
        self._deadline = deadline
        sock.setblocking(False)

    def handshake(self) -> None:
        assert isinstance(self.socket, ssl.SSLSocket)
        self._patiently(self.socket.do_handshake, select.POLLIN)

    def sendall(self, data: Any) -> None:
        left = memoryview(data)
        while left:
            sent = self._patiently(functools.partial(self.socket.send, left), select.POLLOUT)
            if not sent:  # with gevent: TLS would block
                self._deadline.wait(self.socket, select.POLLOUT)
            left = left[sent:]

    def recv(self, size: int) -> bytes:
        return self._patiently(lambda: self.socket.recv(size), select.POLLIN)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self.socket.close()

    def _patiently(self, call: Callable[[], T], usually: int) -> T:
        """Repeat `call` until it does not block; wait for the socket in between."""
        while True:
            self._deadline.left()
            try:
                return call()
            except ssl.SSLWantReadError:
                event = select.POLLIN
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
            except BlockingIOError:
                event = usually
            self._deadline.wait(self.socket, event)


class _Reader(io.RawIOBase):
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class _Connection(http.client.HTTPConnection):
    sock: Any

    def __init__(self, host: str, *, timeout: float = 10.0, **how: Any) -> None:
        super().__init__(host, timeout=timeout, **how)
        self._deadline = _Deadline(timeout)

    def connect(self) -> None:
        self.sock = _Stream(_connected(self.host, self.port, self._deadline), self._deadline)
        if self._tunnel_host:  # type: ignore[attr-defined]
            self._tunnel()  # type: ignore[attr-defined]


class _SecureConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, **how: Any) -> None:
        self._context: ssl.SSLContext = how.pop("context")
        super().__init__(host, **how)

    def connect(self) -> None:
        super().connect()
        name = self._tunnel_host or self.host  # type: ignore[attr-defined]
        secure = self._context.wrap_socket(self.sock.socket, server_hostname=name, do_handshake_on_connect=False)
        self.sock = _Stream(secure, self._deadline)
        self.sock.handshake()


def _connected(host: str, port: int, deadline: _Deadline) -> socket.socket:
    """Connect to the first address of `host` that answers."""
    trouble: OSError = OSError(f"no address of {host}")
    addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, where) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            # Each address gets a share of the time: one may not answer, such as IPv6 without a route.
            sock.settimeout(deadline.left() / (len(addresses) - number))
            sock.connect(where)
            return sock
        except OSError as error:
            sock.close()
            trouble = error
        except BaseException:
            sock.close()
            raise
    raise trouble


class _Plain(request.HTTPHandler):
    def http_open(self, req: request.Request) -> Any:
        return self.do_open(_Connection, req)


class _Secure(request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._for_all = context

    def https_open(self, req: request.Request) -> Any:
        return self.do_open(_SecureConnection, req, context=self._for_all)
