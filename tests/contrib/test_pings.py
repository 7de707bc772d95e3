"""Pings arrive in order, whatever the server does, and never hold up who sends them."""

import contextlib
import http.server
import logging
import queue
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import eventually, free_port, python, running

from pgcron_lite.contrib import pings as pings_module
from pgcron_lite.contrib.pings import Pings, check_url
from pgcron_lite.errors import OptionError

PATIENCE = 30.0


class Monitor:
    """A server that notes what it is sent, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str]] = []
        # What to answer to the next requests, in order: a status, with a target, or whatever else is written.
        self.answers: queue.SimpleQueue[int | tuple[int, str] | bytes] = queue.SimpleQueue()
        self.open = threading.Event()
        self.open.set()
        self.is_asked = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="monitor")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.got]

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(monitor) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                monitor.got.append((self.command, self.path, text.decode()))
                monitor.is_asked.set()
                monitor.open.wait(PATIENCE)
                with contextlib.suppress(OSError):
                    self.answer()

            do_GET = do_POST

            def answer(self) -> None:
                try:
                    answer = monitor.answers.get_nowait()
                except queue.Empty:
                    answer = 200
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    self.close_connection = True
                    return
                status, target = answer if isinstance(answer, tuple) else (answer, None)
                self.send_response(status)
                if target is not None:
                    self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitor]:
    monkeypatch.setenv("no_proxy", "*")
    monitor = Monitor()
    yield monitor
    monitor.close()


@pytest.fixture
def pings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pings]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(pings_module, "PAUSES", (0.01, 0.01))
    pings = Pings()
    yield pings
    pings.close(0)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[str]]:
    """What has been logged from that level on."""
    caplog.set_level(logging.DEBUG, "pgcron_lite.contrib.pings")
    return lambda level: [each.getMessage() for each in caplog.records if each.levelno >= level]


# What is sent

def test_a_run_is_reported(monitor, pings):
    pings.send(f"{monitor.url}/check", "start")
    pings.send(f"{monitor.url}/check", "success", "42 rows")
    pings.send(f"{monitor.url}/check", "failure", "ValueError: bad input")
    pings.close(PATIENCE)

    assert monitor.got == [
        ("POST", "/check/start", ""),
        ("POST", "/check", "42 rows"),
        ("POST", "/check/fail", "ValueError: bad input"),
    ]


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("/id?rid=1&create=1", ["/id/start?rid=1&create=1", "/id?rid=1&create=1", "/id/fail?rid=1&create=1"]),
        ("/id/", ["/id/start", "/id/", "/id/fail"]),
        ("", ["/start", "/", "/fail"]),
        ("?key=a", ["/start?key=a", "/?key=a", "/fail?key=a"]),
        ("/a%20b/c", ["/a%20b/c/start", "/a%20b/c", "/a%20b/c/fail"]),
    ],
)
def test_the_kind_stands_behind_the_path_and_before_the_query(monitor, pings, path, paths):
    for kind in ("start", "success", "failure"):
        pings.send(monitor.url + path, kind)
    pings.close(PATIENCE)

    assert monitor.paths() == paths


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * 20_000, "x" * 10_000),
        ("ä" * 10_000, "ä" * 5_000),
        ("xä" + "€" * 9_999, "xä" + "€" * 3_332),
        ("\udc80", "\\udc80"),
    ],
)
def test_a_text_is_bounded_and_stays_text(monitor, pings, text, told):
    pings.send(monitor.url, "failure", text)
    pings.close(PATIENCE)

    assert monitor.got == [("POST", "/fail", told)]


def test_nothing_happens_before_the_first_ping():
    before = threading.active_count()

    pings = Pings()
    pings.close(PATIENCE)

    assert threading.active_count() == before


def test_nothing_is_sent_after_the_end(monitor, pings):
    pings.close(PATIENCE)

    pings.send(monitor.url, "start")

    assert (monitor.got, pings._queued) == ([], 0)


# Repeats

@pytest.mark.parametrize("status", [500, 503])
def test_an_error_of_the_server_is_tried_again(monitor, pings, status, logged):
    monitor.answers.put(status)
    monitor.answers.put(status)

    pings.send(f"{monitor.url}/a", "start")
    pings.send(f"{monitor.url}/a", "success")
    eventually(lambda: len(monitor.got) == 4, within=PATIENCE)

    assert monitor.paths() == ["/a/start", "/a/start", "/a/start", "/a"]
    assert logged(logging.INFO) == []


def test_a_connection_that_breaks_is_tried_again(monitor, pings):
    monitor.answers.put(b"")

    pings.send(f"{monitor.url}/a", "start", "text")
    eventually(lambda: len(monitor.got) == 2, within=PATIENCE)

    assert monitor.got == [("POST", "/a/start", "text")] * 2


def test_there_is_an_end_to_trying(monitor, pings, logged):
    for _ in range(3):
        monitor.answers.put(500)

    pings.send(f"{monitor.url}/a", "start")
    pings.send(f"{monitor.url}/a", "success")
    eventually(lambda: logged(logging.INFO)[1:], within=PATIENCE)

    assert monitor.paths() == ["/a/start"] * 3 + ["/a"]
    assert "failed: HTTP 500" in logged(logging.INFO)[0]
    assert "succeed again" in logged(logging.INFO)[1]


@pytest.mark.parametrize("status", [400, 404, 429, 304])
def test_a_refusal_is_not_tried_again(monitor, pings, status, logged):
    monitor.answers.put(status)

    pings.send(f"{monitor.url}/a", "start")
    pings.close(PATIENCE)

    assert monitor.paths() == ["/a/start"]
    assert f"HTTP {status}" in logged(logging.WARNING)[0]


def test_while_a_url_is_down_each_ping_is_tried_once_and_one_is_logged(monitor, pings, logged):
    for _ in range(3 + 9):
        monitor.answers.put(500)

    for _ in range(10):
        pings.send(f"{monitor.url}/a", "success")
    eventually(lambda: len(monitor.got) == 12, within=PATIENCE)
    pings.send(f"{monitor.url}/a", "success")
    eventually(lambda: len(logged(logging.INFO)) == 2, within=PATIENCE)

    assert len(monitor.got) == 13
    assert len(logged(logging.WARNING)) == 1


def test_a_url_that_recovers_is_tried_as_often_as_before(monitor, pings):
    for status in (500, 500, 500, 200, 500, 200):
        monitor.answers.put(status)

    for path in "abc":
        pings.send(monitor.url + "/same", "success", path)
    eventually(lambda: len(monitor.got) == 6, within=PATIENCE)

    assert [text for _, _, text in monitor.got] == list("aaabcc")


def test_others_are_sent_while_one_waits_to_be_tried_again(monitor, pings, monkeypatch):
    monkeypatch.setattr(pings_module, "PAUSES", (PATIENCE * 10,))
    monitor.answers.put(500)

    pings.send(f"{monitor.url}/a", "start")
    pings.send(f"{monitor.url}/a", "success")
    pings.send(f"{monitor.url}/b", "success")
    eventually(lambda: len(monitor.got) == 2, within=PATIENCE)

    assert monitor.paths() == ["/a/start", "/b"]

    # The end does not wait for the pause.
    pings.close(PATIENCE)
    assert monitor.paths() == ["/a/start", "/b", "/a/start", "/a"]


def test_a_busy_url_does_not_keep_others_waiting(monitor, pings):
    monitor.open.clear()

    for number in range(50):
        pings.send(f"{monitor.url}/busy", "success", str(number))
    pings.send(f"{monitor.url}/quiet", "success")
    monitor.open.set()
    pings.close(PATIENCE)

    assert "/quiet" in monitor.paths()[:4]
    assert [text for _, path, text in monitor.got if path == "/busy"] == [str(number) for number in range(50)]


def test_urls_take_turns_and_new_ones_come_last(monkeypatch):
    monkeypatch.setattr(Pings, "_see_to_the_thread", lambda pings: "")
    pings = Pings()

    def turn() -> str:
        line = pings._next()
        pings._settle(line, None)
        return line.url

    pings.send("b", "start")
    pings.send("b", "success")
    turns = [turn()]
    for url in "acac":
        pings.send(url, "success")
        turns.append(turn())

    assert turns == ["b", "b", "a", "c", "a"]


# Redirects

@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_followed_with_the_text(monitor, pings, status):
    monitor.answers.put((status, "/b?c=d"))

    pings.send(f"{monitor.url}/a", "failure", "why")
    pings.close(PATIENCE)

    assert monitor.got == [("POST", "/a/fail", "why"), ("POST", "/b?c=d", "why")]


def test_a_redirect_to_another_answer_is_followed_without_it(monitor, pings):
    monitor.answers.put((303, f"{monitor.url}/thanks"))

    pings.send(f"{monitor.url}/a", "failure", "why")
    pings.close(PATIENCE)

    assert monitor.got == [("POST", "/a/fail", "why"), ("GET", "/thanks", "")]


def test_redirects_without_end_are_given_up(monitor, pings, logged):
    for _ in range(20):
        monitor.answers.put((302, "/again"))

    pings.send(f"{monitor.url}/a", "start")
    pings.close(PATIENCE)

    assert len(monitor.got) == 6
    assert "redirects" in logged(logging.WARNING)[0]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "mailto:a", "http://[", "//a:b/"])
def test_a_redirect_into_nowhere_is_given_up(monitor, pings, target, logged):
    monitor.answers.put((302, target))

    pings.send(f"{monitor.url}/a", "start")
    pings.send(f"{monitor.url}/a", "success")
    pings.close(PATIENCE)

    assert monitor.paths() == ["/a/start", "/a"]
    assert len(logged(logging.WARNING)) == 1


@pytest.mark.parametrize("target", ["http://localhost:{port}/b", "//localhost:{port}/b", "http://127.0.0.1:{other}/b"])
def test_a_redirect_to_another_host_or_port_is_not_followed(monitor, pings, target, logged):
    other = Monitor()
    try:
        target = target.format(port=monitor.url.rpartition(":")[2], other=other.url.rpartition(":")[2])
        monitor.answers.put((307, target))

        pings.send(f"{monitor.url}/a", "failure", "why")
        pings.close(PATIENCE)
    finally:
        other.close()

    assert (monitor.paths(), other.paths()) == (["/a/fail"], [])
    assert "it redirects to another host" in logged(logging.WARNING)[0]
    assert "localhost" not in logged(logging.WARNING)[0]


@pytest.mark.parametrize(
    ("url", "there", "follows"),
    [
        ("http://a.example/1", "https://a.example/2", True),
        ("http://a.example:8000/1", "https://a.example/2", True),
        ("https://a.example/1", "https://A.example:443/2", True),
        ("https://a.example/1", "http://a.example/1", False),
        ("https://a.example/1", "http://a.example:443/1", False),
        ("https://a.example/1", "https://a.example:8443/1", False),
        ("https://a.example/1", "https://www.a.example/1", False),
        ("https://a.example/1", "https://a.example.org/1", False),
    ],
)
def test_a_ping_stays_on_its_host_and_never_goes_from_https_to_http(url, there, follows):
    assert pings_module._is_same_host(url, there) is follows


# TLS

@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """The url of a server with a certificate of its own, for which the environment vouches, and what it is sent."""
    openssl = shutil.which("openssl") or pytest.skip("needs openssl, to make a certificate")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
    got: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                conn, _ = server.accept()
            except ssl.SSLError:
                continue  # a client that does not trust the certificate
            except OSError:
                return
            with conn:
                packet = b""
                while not packet.endswith(b"why"):
                    packet += conn.recv(10_000)
                got.append(packet)
                conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    thread = threading.Thread(target=serve, name="secure")
    thread.start()
    yield f"https://127.0.0.1:{server.getsockname()[1]}", got
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_a_ping_goes_by_tls_to_a_server_whose_certificate_is_trusted(secure, tmp_path, gevent):
    url, got = secure
    program = """
        import sys
        if sys.argv[2] == "True":
            from gevent import monkey
            monkey.patch_all()
        import logging
        logging.basicConfig()
        from pgcron_lite.contrib.pings import Pings
        pings = Pings()
        pings.send(sys.argv[1], "failure", "why")
        pings.close(30)
    """

    python(program, f"{url}/a", gevent, env={"SSL_CERT_FILE": str(tmp_path / "certificate"), "no_proxy": "*"})

    assert [packet.partition(b"\r\n")[0] for packet in got] == [b"POST /a/fail HTTP/1.1"]


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(secure, pings, monkeypatch, logged):
    monkeypatch.setenv("no_proxy", "*")
    url, got = secure

    pings.send(f"{url}/a", "failure", "why")
    eventually(lambda: logged(logging.WARNING), within=PATIENCE)

    assert got == []


def test_under_gevent_a_server_that_drips_is_left_after_a_while(monitor, dripping):
    slow = dripping()
    tls = dripping(TLS_RECORD)
    program = """
        import sys
        from gevent import monkey
        monkey.patch_all()
        from pgcron_lite.contrib import pings
        pings.TIMEOUT_SECONDS, pings.PAUSES = 0.5, (0.01, 0.01)
        pings = pings.Pings()
        for url in sys.argv[1:]:
            pings.send(url, "start")
        pings.close(30)
        print(pings._queued)
    """
    urls = [f"http://127.0.0.1:{slow.port}/a", f"https://127.0.0.1:{tls.port}/a", f"{monitor.url}/b"]

    python(program, *urls, env={"no_proxy": "*"})

    assert monitor.paths() == ["/b/start"]


# Servers that are none

class Dripping:
    """A server that answers each connection with one byte now and then, for as long as it is there."""

    def __init__(self, begin: bytes = b"HTTP/1.1 200 OK\r\nX: ") -> None:
        self._begin = begin
        self._end = threading.Event()
        self.is_asked = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name="dripping")]
        self._threads[0].start()

    def close(self) -> None:
        self._end.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._socket.accept()
                self.is_asked.set()
                self._threads.append(threading.Thread(target=self._drip, args=(conn,), name="drip"))
                self._threads[-1].start()

    def _drip(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.sendall(self._begin)
            while not self._end.wait(0.05):
                conn.sendall(b"x")


@pytest.fixture
def dripping() -> Iterator[Callable[..., Dripping]]:
    made: list[Dripping] = []

    def make(*args: bytes) -> Dripping:
        made.append(Dripping(*args))
        return made[-1]

    yield make
    for each in made:
        each.close()


TLS_RECORD = b"\x16\x03\x03\x40\x00"


@pytest.mark.parametrize(
    ("scheme", "begin"),
    [("http", b""), ("http", b"HTTP/1.1 200 OK\r\nX: "), ("https", TLS_RECORD), ("https", b"")],
    ids=["status", "header", "tls record", "tls"],
)
def test_a_server_that_drips_is_left_after_a_while(monitor, pings, dripping, monkeypatch, logged, scheme, begin):
    monkeypatch.setattr(pings_module, "TIMEOUT_SECONDS", 0.5)
    slow = dripping(begin)

    pings.send(f"{scheme}://127.0.0.1:{slow.port}/a", "start")
    slow.is_asked.wait(PATIENCE)
    pings.send(f"{monitor.url}/b", "success")
    # While it still drips.
    eventually(monitor.paths, within=PATIENCE)
    eventually(lambda: logged(logging.WARNING), within=PATIENCE)

    assert monitor.paths() == ["/b"]
    # What drips where TLS should begin is not always waited for.
    assert "no answer within 0.5 s" in logged(logging.WARNING)[0] or (scheme, begin) == ("https", b"")


def test_redirects_and_drips_together_are_left_after_a_while(monitor, pings, monkeypatch, logged):
    monkeypatch.setattr(pings_module, "TIMEOUT_SECONDS", 0.5)
    passed = [0.0]

    def clock() -> float:
        passed[0] += 0.2  # each look at the clock is one redirect, and more, later
        return passed[0]

    monkeypatch.setattr(pings_module, "monotonic", clock)
    for _ in range(20):
        monitor.answers.put((302, "/again"))

    trouble = pings._deliver(f"{monitor.url}/a", pings_module._Ping("start", b""))

    assert trouble is not None
    assert trouble.what == "no answer within 0.5 s"
    assert 1 <= len(monitor.got) <= 3


def test_a_proxy_that_drips_is_left_after_a_while(pings, dripping, monkeypatch, logged):
    monkeypatch.setattr(pings_module, "TIMEOUT_SECONDS", 0.5)
    slow = dripping(b"HTTP/1.1 200")
    monkeypatch.delenv("no_proxy")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{slow.port}")

    for scheme in ("http", "https"):
        pings.send(f"{scheme}://monitor.example/a", "start")
    eventually(lambda: len(logged(logging.WARNING)) == 2, within=PATIENCE)

    assert all("no answer within 0.5 s" in line for line in logged(logging.WARNING))


def test_a_proxy_is_used(monitor, pings, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", monitor.url)

    pings.send("http://monitor.example/a", "failure", "why")
    pings.close(PATIENCE)

    assert monitor.got == [("POST", "http://monitor.example/a/fail", "why")]

@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 1000, b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200\r\n" + b"A" * 100_000,
     b"HTTP/1.1 302 x\r\nLocation:\xff\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000,
     b"ICY 200 OK\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"\r\n\r\n"],
)  # fmt: skip
def test_garbage_harms_nobody(monitor, pings, garbage):
    for _ in range(3):
        monitor.answers.put(garbage)

    pings.send(f"{monitor.url}/a", "start")
    eventually(lambda: pings._queued == 0, within=PATIENCE)
    while not monitor.answers.empty():
        monitor.answers.get()
    pings.send(f"{monitor.url}/a", "success")
    pings.close(PATIENCE)

    assert monitor.paths()[-1] == "/a"


def test_an_answer_that_never_ends_is_not_waited_for(monitor, pings):
    monitor.answers.put(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nand so on")

    pings.send(f"{monitor.url}/a", "start")
    pings.send(f"{monitor.url}/a", "success")
    pings.close(PATIENCE)

    assert monitor.paths() == ["/a/start", "/a"]


def test_a_server_that_is_down_harms_nobody(pings, logged):
    pings.send(f"http://127.0.0.1:{free_port()}/secret", "start")
    eventually(lambda: logged(logging.WARNING), within=PATIENCE)

    assert "127.0.0.1" in logged(logging.WARNING)[0]
    assert "Connection refused" in logged(logging.WARNING)[0]


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://[", "https:///x", "http://a b/", "http://ä/", "x:"])
def test_a_url_that_nobody_has_checked_harms_nobody(monitor, pings, url, logged):
    pings.send(url, "start")
    pings.send(f"{monitor.url}/a", "success")
    pings.close(PATIENCE)

    assert monitor.paths() == ["/a"]
    assert len(logged(logging.WARNING)) == 1


def test_a_server_without_tls_harms_nobody(monitor, pings, logged):
    pings.send(monitor.url.replace("http:", "https:"), "start")
    eventually(lambda: logged(logging.WARNING), within=PATIENCE)

    assert monitor.got == []


def test_a_server_that_does_not_answer_is_left_after_a_while(monitor, pings, monkeypatch, logged):
    monkeypatch.setattr(pings_module, "TIMEOUT_SECONDS", 0.2)
    monitor.open.clear()

    pings.send(f"{monitor.url}/a", "start")
    eventually(lambda: logged(logging.WARNING), within=PATIENCE)

    assert "no answer within 0.2 s" in logged(logging.WARNING)[0]
    assert monitor.paths() == ["/a/start"] * 3


@pytest.fixture
def silent_address(monitor) -> Iterator[None]:
    """127.0.0.2 with the port of `monitor` takes no connection and refuses none: its backlog is full."""
    port = int(monitor.url.rpartition(":")[2])
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        while True:
            client = sockets.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(("127.0.0.2", port))
            except TimeoutError:
                break
        yield


def test_an_address_that_does_not_answer_leaves_time_for_the_next(monitor, pings, silent_address, monkeypatch, logged):
    look_up = socket.getaddrinfo

    def two_addresses(host: str, port: int, *how: int) -> list[object]:
        assert host == "monitor.test"
        return [*look_up("127.0.0.2", port, *how), *look_up("127.0.0.1", port, *how)]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    monkeypatch.setattr(pings_module, "TIMEOUT_SECONDS", 4.0)

    pings.send(f"{monitor.url.replace('127.0.0.1', 'monitor.test')}/check", "success")
    pings.close(PATIENCE)

    assert monitor.paths() == ["/check"]
    assert logged(logging.WARNING) == []


def test_a_secret_is_in_no_log(monitor, pings, logged, monkeypatch):
    monkeypatch.setattr(pings_module, "TIMEOUT_SECONDS", 0.2)
    for answer in (404, (302, "file:///secret"), (302, "http://[secret"), *[b"secret"] * 3, 500, 200, 404):
        monitor.answers.put(answer)

    for place in (monitor.url, f"http://127.0.0.1:{free_port()}", "http://x:secret", "secret:secret", "http://[secret/"):
        for kind in ("start", "success", "failure") * 2:
            pings.send(f"{place}/secret?secret\x01", kind, "secret")
            pings.send(f"{place}/secret?secret", kind, "secret")
    eventually(lambda: pings._queued == 0, within=PATIENCE)
    pings.close(0)

    assert len(logged(logging.DEBUG)) > 10
    assert "secret" not in "".join(logged(logging.DEBUG))


# Who sends never waits

def test_thousands_are_taken_in_and_the_rest_is_dropped_with_one_warning(monitor, pings, logged):
    monitor.open.clear()

    for number in range(5_000):
        pings.send(f"{monitor.url}/{number % 7}", "success", str(number))

    assert pings._queued == pings_module.MAX_QUEUED
    assert len(logged(logging.WARNING)) == 1
    assert "1000 of them are waiting" in logged(logging.WARNING)[0]

    monitor.open.set()
    pings.close(PATIENCE * 2)
    assert sorted(int(text) for _, _, text in monitor.got) == list(range(1_000))
    for line in range(7):
        arrived = [int(text) for _, path, text in monitor.got if path == f"/{line}"]
        assert arrived == sorted(arrived)


def test_when_there_was_room_again_the_next_overflow_is_told_as_well(monitor, pings, monkeypatch, logged):
    monkeypatch.setattr(pings_module, "MAX_QUEUED", 3)
    for _ in range(2):
        monitor.open.clear()
        for _ in range(10):
            pings.send(monitor.url, "success")
        monitor.open.set()
        eventually(lambda: pings._queued == 0, within=PATIENCE)

    assert len(logged(logging.WARNING)) == 2


def test_closing_waits_no_longer_than_told(monitor, pings, logged):
    monitor.open.clear()
    pings.send(f"{monitor.url}/a", "start")
    pings.send(f"{monitor.url}/a", "success")
    assert monitor.is_asked.wait(PATIENCE)

    # Would it wait for the answer, there would be none for as long as the test takes.
    pings.close(0.1)

    assert "2 of them" in logged(logging.WARNING)[0]
    monitor.open.set()
    eventually(lambda: not pings._thread.is_alive(), within=PATIENCE)
    assert monitor.paths() == ["/a/start"]
    assert pings._queued == 0


def test_closing_twice_or_from_two_threads_is_no_trouble(monitor, pings):
    pings.send(monitor.url, "success")

    threads = [threading.Thread(target=pings.close, args=(PATIENCE,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    pings.close(0)

    assert monitor.paths() == ["/"]


def test_many_threads_may_send(monitor, pings):
    def send(name: str) -> None:
        for number in range(20):
            pings.send(f"{monitor.url}/{name}", "success", str(number))

    threads = [threading.Thread(target=send, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    pings.close(PATIENCE)

    for name in "abcdefgh":
        assert [text for _, path, text in monitor.got if path == f"/{name}"] == [str(number) for number in range(20)]


def test_a_process_that_may_start_no_thread_goes_on(monitor, pings, monkeypatch, logged):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pings.send(f"{monitor.url}/a", "start")

    assert "may not start a thread" in logged(logging.WARNING)[0]
    pings.send(f"{monitor.url}/a", "success")
    pings.close(PATIENCE)
    assert monitor.paths() == ["/a/start", "/a"]


def test_a_fork_sends_nothing_of_what_is_queued_here(monitor):
    program = """\
        import os, sys
        from pgcron_lite.contrib.pings import Pings

        pings = Pings()
        pings.send(sys.argv[1] + "/parent", "success")
        if not (child := os.fork()):
            pings.send(sys.argv[1] + "/child", "success")
            pings.close(30)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        pings.close(30)
        """

    assert python(program, monitor.url, timeout=60) == "0\n"
    assert monitor.paths() == ["/parent"]


def test_a_fork_of_a_process_that_has_sent_nothing_sends(monitor):
    program = """\
        import os, sys
        from pgcron_lite.contrib.pings import Pings

        pings = Pings()
        if not (child := os.fork()):
            pings.send(sys.argv[1] + "/child", "success")
            pings.close(30)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        """

    assert python(program, monitor.url, timeout=60) == "0\n"
    assert monitor.paths() == ["/child"]


def test_a_process_does_not_stay_for_its_pings(monitor):
    monitor.open.clear()

    program = (
        "import sys; from pgcron_lite.contrib.pings import Pings; Pings().send(sys.argv[1], 'start'); print('ended')"
    )

    assert python(program, monitor.url, timeout=60) == "ended\n"


def test_under_gevent_pings_are_sent_while_others_run(monitor):
    monitor.open.clear()
    program = """\
        import gevent.monkey
        gevent.monkey.patch_all()
        import sys, time
        import gevent
        from pgcron_lite.contrib import pings

        pings = pings.Pings()
        for kind in ("start", "success"):
            pings.send(sys.argv[1] + "/a", kind, "text")
        turns = 0
        for _ in range(20):
            gevent.sleep(0.01)
            turns += 1
        print(turns, flush=True)
        sys.stdin.readline()
        pings.close(30)
        print(pings._queued)
        """
    with running(program, monitor.url) as process:
        # The hub turns while the server does not answer.
        assert process.stdout.readline() == "20\n"
        monitor.open.set()
        assert process.communicate("\n", timeout=PATIENCE)[0] == "0\n"

    assert monitor.got == [("POST", "/a/start", "text"), ("POST", "/a", "text")]


def test_importing_it_loads_nothing_that_gevent_has_to_patch():
    program = (
        "import sys, pgcron_lite.contrib.pings; print({'ssl', 'http.client', 'urllib.request'} & set(sys.modules))"
    )

    assert python(program) == "set()\n"


def test_a_clock_that_stands_still_does_not_hold_up_the_end(monitor, pings, monkeypatch):
    monitor.answers.put(500)
    moment = time.monotonic()
    monkeypatch.setattr(pings_module, "PAUSES", (5.0,))
    monkeypatch.setattr(pings_module, "monotonic", lambda: moment)

    pings.send(f"{monitor.url}/a", "start")
    eventually(lambda: monitor.got, within=PATIENCE)
    pings.close(PATIENCE)

    assert monitor.paths() == ["/a/start"] * 2


# Urls

@pytest.mark.parametrize(
    "url",
    ["https://hc-ping.com/5b", "http://localhost:8", "https://[::1]:8/x?y=z", "HTTPS://Example.org/a%20b", "http://a#b"],
)
def test_a_url_that_pings_can_be_sent_to(url):
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["", "hc-ping.com/secret", "ftp://a/secret", "http://", "http:///secret", "https:secret", "http://a:b/secret",
     "http://a:99999/secret", "http://a:0/secret", "http://[/secret", "http://a/ secret", "http://a/secret\n",
     "http://ä/secret", "http://user:secret@a/", "mailto:secret@a", None, 5, b"http://secret/"],
)  # fmt: skip
def test_a_url_that_they_cannot_is_refused_and_not_shown(url):
    with pytest.raises(OptionError) as refusal:
        check_url(url)

    assert "secret" not in str(refusal.value)
    assert "url of pings" in str(refusal.value)
