"""A few links for callers from any thread: the client side of a web process, or the tasks of a worker."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..clock import monotonic
from ..errors import DatabaseUnavailable
from .link import Link


class Links:
    """Up to `size` links, opened when needed, the last used first; nothing runs in the background."""

    def __init__(self, make: Callable[[], Link], size: int) -> None:
        self.size = size
        self._make = make
        self._all: list[Link] = []
        self._free: list[Link] = []
        # Taken when everything was to be closed: closed on their return, for a call must not lose its socket.
        self._retired: list[Link] = []
        self._returned = threading.Condition()
        _all_links.add(self)

    @contextmanager
    def take(self, patience: float = 30.0) -> Iterator[Link]:
        """A link for the time of the block; waits for one at most `patience` seconds."""
        link = self._take(monotonic() + patience, patience)
        try:
            yield link
        finally:
            self._give_back(link)

    @property
    def generation(self) -> int:
        """Changes whenever a connection was opened: what was watched before was not watched without a break."""
        return sum(link.generation for link in self._all)

    @property
    def busy_seconds(self) -> float:
        """How long the longest call that is under way has lasted."""
        # Read once each: other threads begin and end calls meanwhile.
        started = [since for link in list(self._all) if (since := link.busy_since) is not None]
        return monotonic() - min(started) if started else 0.0

    def cut(self) -> None:
        """End calls that hang, from another thread."""
        for link in list(self._all):
            if link.busy_since is not None:
                link.cut()

    def close(self) -> None:
        """Close what is free now, and what is in use when it comes back. What is taken later is opened again."""
        with self._returned:
            for link in self._free:
                link.close()
            self._retired = [link for link in self._all if link not in self._free]

    def shrink(self, size: int) -> None:
        """Keep at most `size` links from now on; what is in use beyond that is closed when it comes back."""
        with self._returned:
            self.size = min(size, self.size)
            while self._free and len(self._all) > self.size:
                self._let_go(self._free.pop(0))

    def start_over(self) -> None:
        """In a forked child: whoever held a link, or the lock, does not exist here."""
        self._free, self._retired = list(self._all), []
        self._returned = threading.Condition()

    def _give_back(self, link: Link) -> None:
        with self._returned:
            if len(self._all) > self.size:
                self._let_go(link)
                return
            if link in self._retired:
                self._retired.remove(link)
                link.close()
            self._free.append(link)
            self._returned.notify()

    def _let_go(self, link: Link) -> None:
        self._all.remove(link)
        link.close()

    def _take(self, deadline: float, patience: float) -> Link:
        with self._returned:
            while True:
                if self._free:
                    return self._free.pop()
                if len(self._all) < self.size:
                    link = self._make()
                    self._all.append(link)
                    return link
                remaining = deadline - monotonic()
                if remaining <= 0:
                    raise DatabaseUnavailable(
                        f"all {self.size} connections of this process have been busy for {patience:g} s;"
                        " PGCRON_CONNECTIONS allows more"
                    )
                self._returned.wait(remaining)


_all_links: weakref.WeakSet[Links] = weakref.WeakSet()


def _after_fork() -> None:
    for links in list(_all_links):
        links.start_over()


os.register_at_fork(after_in_child=_after_fork)
