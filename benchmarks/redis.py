"""An empty Redis with its defaults, for the contestants that need one. Nothing in it is durable."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .requests import Requests


class NoRedis(Exception):
    """No Redis could be started."""


class Redis:
    """A redis-server on a free port of the loopback address, with its files in `folder`."""

    def __init__(self, program: str | None, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def __enter__(self) -> Redis:
        if self._program is None:
            raise NoRedis("redis-server is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        words = [self._program, "--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise NoRedis(f"{self._program} did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def connections(self) -> int:
        # Without the connection of this query.
        return self._info()["connected_clients"] - 1

    @contextlib.contextmanager
    def requests(self) -> Iterator[Requests]:
        """Count the commands that are sent from now on."""
        # INFO is a command too, and counts itself.
        asked = 0

        def commands() -> int:
            nonlocal asked
            asked += 1
            return self._info()["total_commands_processed"] - asked

        yield Requests(lambda: {"statements": commands()})

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False

    def _info(self) -> dict[str, int]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=5) as connection:
            connection.sendall(b"INFO everything\r\n")
            reply = connection.makefile("rb")
            text = reply.read(int(reply.readline()[1:])).decode()
        pairs = (line.partition(":") for line in text.splitlines())
        return {name: int(value) for name, _, value in pairs if value.isdigit()}
