"""The doorbell of a queue in memory."""

from __future__ import annotations

from collections.abc import Callable


class MemoryBell:
    """The doorbell within one process: a ring ends the worker's sleep."""

    is_live = True
    busy_seconds = 0.0

    def __init__(self, bells: list[Callable[[], None]], tell: Callable[[], None]) -> None:
        self._bells = bells
        self._tell = tell
        self._rung = True
        bells.append(self._ring)

    def fileno(self) -> int | None:
        return None

    def step(self) -> tuple[bool, float]:
        rung, self._rung = self._rung, False
        return rung, 3600.0

    def cut(self) -> None:
        """There is no statement that could hang."""

    def rest(self, seconds: float) -> None:
        """There is no connection that others could need."""

    def close(self) -> None:
        self._bells.remove(self._ring)

    def _ring(self) -> None:
        self._rung = True
        self._tell()
