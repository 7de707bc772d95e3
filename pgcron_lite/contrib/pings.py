"""Pings to a monitor of cron jobs, by the protocol of healthchecks.io. They never block a run or make it fail.

`send` only puts a ping into a queue; a thread, started with the first one, sends it. Pings of one url arrive in order.
A url that does not answer delays its own pings and, for at most ten seconds at a time, others.
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

from ..clock import monotonic
from ..schedules.schedule import check_url

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

logger = logging.getLogger(__name__)

PingKind = Literal["start", "success", "failure"]

MAX_QUEUED, MAX_TEXT, MAX_REDIRECTS = 1_000, 10_000, 5
TIMEOUT_SECONDS = 10.0
# Seconds before each retry of a ping. There are no further retries.
PAUSES = (1.0, 5.0)
_REDIRECTS = (301, 302, 303, 307, 308)
_ENDINGS: dict[PingKind, str] = {"start": "/start", "success": "", "failure": "/fail"}


class Pings:
    """A queue of pings, and the thread that sends them."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._queued = 0
        self._is_closed = self._is_full = False

    def send(self, url: str, kind: PingKind, text: str = "") -> None:
        """Queue a ping to `url` that a run has begun, or how it has ended. Return at once, and never raise."""
        # First: in a fork, the lock may be held by a thread that does not exist there.
        if self._is_a_copy():
            return
        ping = _Ping(kind, _cut(text))
        with self._changed:
            if self._is_closed:
                return
            if self._queued < MAX_QUEUED:
                self._queued += 1
                self._lines.setdefault(url, _Line(url, monotonic())).waiting.append(ping)
                trouble = self._see_to_the_thread()
                self._changed.notify()
            else:
                trouble = "" if self._is_full else f"{MAX_QUEUED} of them are waiting; further ones are dropped"
                self._is_full = True
        if trouble:
            logger.warning("pings: %s", trouble)

    def close(self, seconds: float) -> None:
        """Send what is queued, for at most `seconds`, and accept no more pings."""
        if self._is_a_copy():
            return
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            # A single wait: a loop would need a clock, which a test may have frozen.
            thread.join(max(0.0, seconds))
        with self._changed:
            left, self._queued = self._queued, 0
            self._lines.clear()
        if left:
            logger.warning("pings: %d of them could not be sent before the end", left)

    def _is_a_copy(self) -> bool:
        """Return True in a fork of the process that sends: that process sends what is queued here."""
        return self._thread is not None and self._process != os.getpid()

    def _see_to_the_thread(self) -> str:
        """Start the thread if it does not run. Return the reason if that is not possible, else an empty text."""
        if self._thread is not None and self._thread.is_alive():
            return ""
        thread = threading.Thread(target=self._run, name="pgcron-pings", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            return f"this process may not start a thread for them: {error}"
        # In this order: other threads read both without the lock.
        self._process = os.getpid()
        self._thread = thread
        return ""

    # In the thread

    def _run(self) -> None:
        while (line := self._next()) is not None:
            self._settle(line, self._deliver(line.url, line.waiting[0]))

    def _next(self) -> _Line | None:
        """Wait for the next url to send to, and return it; None when this is closed and everything is sent."""
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
        """Send a ping once, and follow redirects on the same host. All of that takes at most `TIMEOUT_SECONDS`."""
        from http.client import HTTPException

        from .http_post import post

        text: bytes | None = ping.text
        until = monotonic() + TIMEOUT_SECONDS
        try:
            address = _address(url, ping.kind)
            for _ in range(MAX_REDIRECTS + 1):
                if (left := until - monotonic()) <= 0:
                    raise TimeoutError
                status, target = post(self._opener, address, text, left)
                if status < 300:
                    return None
                if status not in _REDIRECTS or target is None:
                    return _Trouble(f"HTTP {status}", passes=status >= 500)
                there = _elsewhere(address, target)
                if not _is_same_host(address, there):
                    return _Trouble("it redirects to another host or from https to http; give the url it redirects to",
                                    passes=False)  # fmt: skip
                address, text = there, None if status == 303 else text
        except (OSError, HTTPException) as error:
            return _Trouble(_words(error), passes=True)
        except Exception as error:
            # A url that was not checked, or that of a redirect. The errors that it may raise have no common class.
            return _Trouble(_words(error), passes=False)
        return _Trouble(f"more than {MAX_REDIRECTS} redirects", passes=False)

    @functools.cached_property
    def _opener(self) -> OpenerDirector:
        # Imported here: it takes time, and loads ssl, which gevent must have patched before.
        from .http_post import opener

        return opener()

    def _settle(self, line: _Line, trouble: _Trouble | None) -> None:
        """Remove a ping from its line, or let it wait for a retry."""
        with self._changed:
            again = trouble is not None and trouble.passes and line.repeats < len(PAUSES) and not line.is_down
            line.due = monotonic() + (PAUSES[line.repeats] if again else 0.0)
            line.repeats = line.repeats + 1 if again else 0
            if again:
                return
            # After a failed ping the others are tried only once each, as the queue would grow otherwise.
            was_down, line.is_down = line.is_down, trouble is not None
            line.waiting.popleft()
            self._forget(line)
        if trouble is not None:
            logger.log(
                logging.DEBUG if was_down else logging.WARNING,
                "a ping to %s failed: %s. The next are tried once each; not all are logged.",
                line.host, trouble.what,
            )  # fmt: skip
        elif was_down:
            logger.info("pings to %s succeed again", line.host)

    def _forget(self, line: _Line) -> None:
        if self._lines.get(line.url) is line:
            self._queued -= 1
            if not line.waiting and not line.is_down:
                del self._lines[line.url]
        if not self._queued:
            self._is_full = False


@dataclass(frozen=True, slots=True)
class _Ping:
    kind: PingKind
    text: bytes


@dataclass(slots=True)
class _Line:
    """The pings of one url, in order. The first one is being sent, or waits for a retry."""

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
    """The reason of a failed ping, without its url; `passes` if a retry may succeed."""

    what: str
    passes: bool


def _has_pings(line: _Line) -> bool:
    return bool(line.waiting)


def _due(line: _Line) -> float:
    return line.due


def _cut(text: str) -> bytes:
    told = text[:MAX_TEXT].encode("utf-8", "backslashreplace")[:MAX_TEXT]
    return told.decode("utf-8", "ignore").encode()


def _address(url: str, kind: PingKind) -> str:
    """Return `https://host/id?rid=1` with `/start` or `/fail` after the id."""
    if not _ENDINGS[kind]:
        return url
    parts = parse.urlsplit(url)
    return parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + _ENDINGS[kind]))


def _elsewhere(url: str, target: str) -> str:
    """Return the absolute url of the redirect from `url` to `target`. Raise if `check_url` refuses it."""
    return check_url(parse.urljoin(url, parse.quote(target, safe=string.punctuation, encoding="latin-1")))


def _is_same_host(url: str, there: str) -> bool:
    """Return True if a ping to `url` may be sent to `there`: path and text are meant for one recipient only."""
    one, other = parse.urlsplit(url), parse.urlsplit(there)
    if one.hostname != other.hostname:
        return False
    if (one.scheme, other.scheme) == ("http", "https"):
        return True
    return one.scheme == other.scheme and _port(one) == _port(other)


def _port(parts: parse.SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _words(error: Exception) -> str:
    """Return the reason without a url: the texts of some errors contain that of the request."""
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, Exception) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    return type(cause).__name__
