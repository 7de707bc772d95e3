"""The application under simulation. The outcome of a task is drawn at random when it runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from pgcron_lite import Cancel, PgCron, Retry, Snooze
from pgcron_lite.retry import Backoff

LEASE_SECONDS = 30.0
TICK_SECONDS = 20

app = PgCron("simulation", url="memory://", lease=timedelta(seconds=LEASE_SECONDS))


class Script:
    """The random outcome of the current execution."""

    draw: Callable[[], str] = staticmethod(lambda: "done")


@app.task(name="work", backoff=Backoff("2s", jitter=0.0, max="5s"))
def work(nonce: int) -> int:
    """The task of ordinary jobs of producers."""
    return _end(nonce)


@app.task(name="poison")
def poison(nonce: int) -> None:
    """Task that kills its worker. The worker is killed before it calls this function."""
    raise AssertionError("a poison pill has come to an end")


@app.every(f"{TICK_SECONDS}s", name="grid", overlap="allow")
@app.task(name="grid", backoff=Backoff("1s", jitter=0.0, max="2s"))
def grid() -> None:
    """The task of the schedule."""
    _end(0)


def _end(nonce: int) -> int:
    end = Script.draw()
    if end == "error":
        raise ValueError("drawn")
    if end == "retry":
        raise Retry("1s")
    if end == "snooze":
        raise Snooze("1s")
    if end == "cancel":
        raise Cancel("drawn")
    return nonce
