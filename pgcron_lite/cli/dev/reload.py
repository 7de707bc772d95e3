"""A watcher for changed Python files, in a thread.

It watches folders, not the modules of a running program: a program that an error keeps from starting has no modules,
and it must be restarted at the next change.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

LOOK_SECONDS = 0.7
# Folders with third-party code, or without code.
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist"})

Times = dict[str, tuple[int, int]]


class Changes:
    """A watcher of the Python files below some folders. It calls `tell`, from its thread, when any has changed."""

    def __init__(self, folders: Iterable[Path], tell: Callable[[], None]) -> None:
        self._folders = [str(folder) for folder in folders]
        self._tell = tell
        self._changed: set[str] = set()
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pgcron-reload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def take(self) -> list[str]:
        """Return the files that changed since the last call."""
        with self._changing:
            changed, self._changed = sorted(self._changed), set()
        return changed

    def _watch(self) -> None:
        source = _events(self._folders, self._stop) or _looks(self._folders, self._stop)
        for changed in source:
            if changed:
                with self._changing:
                    self._changed |= changed
                self._tell()


def _events(folders: list[str], stop: threading.Event) -> Iterator[set[str]] | None:
    """Return an iterator of the changes that the operating system reports; None without the package `watchfiles`."""
    try:
        import watchfiles
    except ImportError:
        return None
    wanted = watchfiles.PythonFilter(ignore_paths=[])
    return (
        {path for _, path in changes if not _is_skipped(path, folders)}
        for changes in watchfiles.watch(
            *folders, watch_filter=wanted, stop_event=stop, rust_timeout=500, yield_on_timeout=True,
            raise_interrupt=False,
        )
    )


def _looks(folders: list[str], stop: threading.Event) -> Iterator[set[str]]:
    """Yield the changes found by polling the modification time and size of every file."""
    before = _times(folders)
    while not stop.wait(LOOK_SECONDS):
        now = _times(folders)
        yield {path for path, _ in before.items() ^ now.items()}
        before = now


def _times(folders: list[str]) -> Times:
    found: Times = {}
    for folder in folders:
        for place, inside, files in os.walk(folder):
            inside[:] = [name for name in inside if not _is_foreign(name)]
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(place, name)
                    try:
                        status = os.stat(path)
                    except OSError:
                        continue
                    found[path] = (status.st_mtime_ns, status.st_size)
    return found


def _is_skipped(path: str, folders: list[str]) -> bool:
    """Return True if `path` is in a foreign folder. Only the part below the watched folder counts."""
    below = [Path(path).relative_to(folder) for folder in folders if Path(path).is_relative_to(folder)]
    return not any(all(not _is_foreign(part) for part in place.parts[:-1]) for place in below)


def _is_foreign(name: str) -> bool:
    return name in SKIPPED or (name.startswith(".") and name not in (".", ".."))
