"""Telling a monitor of cron jobs how runs go, in the manner of healthchecks.io, without ever being in a run's way.

Who sends only puts a ping into a queue; a thread of ours, started with the first one, does the rest. Pings of one url
arrive in order. A url that does not answer holds up its own pings and, for ten seconds at a time, others.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import string
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib import parse

from .clock import monotonic
from .plan import check_url

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

logger = logging.getLogger(__name__)

Kind = Literal["start", "success", "failure"]

MOST_QUEUED, MOST_TEXT, MOST_REDIRECTS = 1_000, 10_000, 5
TIMEOUT_SECONDS = 10.0
# Before a ping is sent again, as often as there are pauses.
PAUSES = (1.0, 5.0)
_REDIRECTS = (301, 302, 303, 307, 308)
_ENDINGS: dict[Kind, str] = {"start": "/start", "success": "", "failure": "/fail"}


class Pings:
    """What is to be sent, and the thread that sends it."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._queued = 0
        self._is_closed = self._is_full = False

    def send(self, url: str, kind: Kind, text: str = "") -> None:
        """Report to `url` that a run has begun, or how it has ended. Returns at once, and never raises."""
        # First: in a fork, the lock may be held by a thread that is not there.
        if self._is_a_copy():
            return
        ping = _Ping(kind, _cut(text))
        with self._changed:
            if self._is_closed:
                return
            if self._queued < MOST_QUEUED:
                self._queued += 1
                self._lines.setdefault(url, _Line(url, monotonic())).waiting.append(ping)
                trouble = self._see_to_the_thread()
                self._changed.notify()
            else:
                trouble = "" if self._is_full else f"{MOST_QUEUED} of them are waiting; what comes on top is dropped"
                self._is_full = True
        if trouble:
            logger.warning("pings: %s", trouble)

    def close(self, seconds: float) -> None:
        """Send what is queued, for at most so long, and nothing from now on."""
        if self._is_a_copy():
            return
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            # One wait, and no loop around a clock that a test may have stopped.
            thread.join(max(0.0, seconds))
        with self._changed:
            left, self._queued = self._queued, 0
            self._lines.clear()
        if left:
            logger.warning("pings: %d of them could not be sent before the end", left)

    def _is_a_copy(self) -> bool:
        """Are we in a fork of the process that sends? What is queued here is sent there."""
        return self._thread is not None and self._process != os.getpid()

    def _see_to_the_thread(self) -> str:
        """Start it, if it does not run; returns what stands against that."""
        if self._thread is not None and self._thread.is_alive():
            return ""
        thread = threading.Thread(target=self._run, name="pgcron-pings", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            return f"this process may not start a thread for them: {error}"
        # In this order: others look at both without the lock.
        self._process = os.getpid()
        self._thread = thread
        return ""

    # In the thread

    def _run(self) -> None:
        while (line := self._next()) is not None:
            self._settle(line, self._deliver(line.url, line.waiting[0]))

    def _next(self) -> _Line | None:
        """The url whose turn it is; None when all is sent that ever will be."""
        with self._changed:
            while True:
                line = min(filter(_has_pings, self._lines.values()), key=_due, default=None)
                now = monotonic()
                if line is not None and (line.due <= now or self._is_closed):
                    return line
                if self._is_closed:
                    return None
                self._changed.wait(None if line is None else line.due - now)

    def _deliver(self, url: str, ping: _Ping) -> _Trouble | None:
        """Send it once, wherever that leads."""
        from http.client import HTTPException

        text: bytes | None = ping.text
        try:
            address = _address(url, ping.kind)
            for _ in range(MOST_REDIRECTS + 1):
                status, target = _post(self._opener, address, text)
                if status < 300:
                    return None
                if status not in _REDIRECTS or target is None:
                    return _Trouble(f"HTTP {status}", passes=status >= 500)
                address, text = _elsewhere(address, target), None if status == 303 else text
        except (OSError, HTTPException) as error:
            return _Trouble(_words(error), passes=True)
        except Exception as error:
            # A url that nobody has checked, or one that a redirect has made up; what that raises has no common name.
            return _Trouble(_words(error), passes=False)
        return _Trouble(f"more than {MOST_REDIRECTS} redirects", passes=False)

    @functools.cached_property
    def _opener(self) -> OpenerDirector:
        return _opener()

    def _settle(self, line: _Line, trouble: _Trouble | None) -> None:
        """Take a ping off its line, or let it wait to be sent again."""
        with self._changed:
            again = trouble is not None and trouble.passes and line.repeats < len(PAUSES) and not line.is_down
            line.due = monotonic() + (PAUSES[line.repeats] if again else 0.0)
            line.repeats = line.repeats + 1 if again else 0
            if again:
                return
            # After one that could not be sent the others are tried once each, or the queue would only grow.
            was_down, line.is_down = line.is_down, trouble is not None
            line.waiting.popleft()
            self._forget(line)
        if trouble is not None:
            logger.log(
                logging.DEBUG if was_down else logging.WARNING,
                "a ping to %s was not taken: %s. The next are tried once each; not all are logged.",
                line.host, trouble.what,
            )  # fmt: skip
        elif was_down:
            logger.info("pings to %s are taken again", line.host)

    def _forget(self, line: _Line) -> None:
        if self._lines.get(line.url) is line:
            self._queued -= 1
            if not line.waiting and not line.is_down:
                del self._lines[line.url]
        if not self._queued:
            self._is_full = False


@dataclass(frozen=True, slots=True)
class _Ping:
    kind: Kind
    text: bytes


@dataclass(slots=True)
class _Line:
    """The pings of one url, in order. The first one is being sent, or was and will be sent again."""

    url: str
    due: float
    waiting: collections.deque[_Ping] = field(default_factory=collections.deque)
    repeats: int = 0
    is_down: bool = False

    @property
    def host(self) -> str:
        try:
            return parse.urlsplit(self.url).hostname or "?"
        except ValueError:
            return "?"


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a ping was not taken, in words without its url, and whether that may pass."""

    what: str
    passes: bool


def _has_pings(line: _Line) -> bool:
    return bool(line.waiting)


def _due(line: _Line) -> float:
    return line.due


def _cut(text: str) -> bytes:
    told = text[:MOST_TEXT].encode("utf-8", "backslashreplace")[:MOST_TEXT]
    return told.decode("utf-8", "ignore").encode()


def _address(url: str, kind: Kind) -> str:
    """`https://host/id?rid=1` with `/start` or `/fail` behind the id."""
    if not _ENDINGS[kind]:
        return url
    parts = parse.urlsplit(url)
    return parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + _ENDINGS[kind]))


def _opener() -> OpenerDirector:
    # Imported here: it takes its time, and loads ssl, which gevent has to have patched before.
    import ssl
    from urllib import request

    opener = request.OpenerDirector()
    # Not build_opener(): that also opens files, and turns a POST that is redirected into a GET.
    for handler in (request.ProxyHandler(), request.UnknownHandler(), request.HTTPHandler()):
        opener.add_handler(handler)
    opener.add_handler(request.HTTPSHandler(context=ssl.create_default_context()))
    return opener


def _post(opener: OpenerDirector, url: str, text: bytes | None) -> tuple[int, str | None]:
    """The status of the answer, and where it points to. The rest of it is not read: it may never end."""
    from urllib.request import Request

    request = Request(url, text, {"User-Agent": "pgcron_lite", "Content-Type": "text/plain; charset=utf-8"})
    with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
        return answer.status, answer.headers.get("Location")


def _elsewhere(url: str, target: str) -> str:
    """The url that `target` in an answer from `url` stands for, if that is one of ours."""
    return check_url(parse.urljoin(url, parse.quote(target, safe=string.punctuation, encoding="latin-1")))


def _words(error: Exception) -> str:
    """What is wrong, without a url: that of a request is part of some texts."""
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, Exception) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    return type(cause).__name__
