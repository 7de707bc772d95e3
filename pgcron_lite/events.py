"""Events: their names, the values that each one passes, and the dispatcher.

A receiver is called after the fact, with those of the event's values that it names as parameters. Its exceptions are
logged and never affect a job. Only `job_enqueuing` is sent before the fact, so that receivers can add headers.
"""

from __future__ import annotations

import inspect
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, get_args

from .errors import OptionError
from .hints import foreign_signal, near_miss

logger = logging.getLogger(__name__)

Receiver = Callable[..., object]

EventName = Literal[
    "job_enqueuing", "job_enqueued", "job_started", "job_done", "job_retrying", "job_snoozed", "job_failed",
    "job_cancelled", "job_released", "job_lost", "job_rescued", "schedule_missed", "schedule_late",
    "schedule_recovered", "worker_started", "worker_stopping", "worker_stopped",
]

# Each event, with the values that its receivers may take.
EVENTS: dict[str, tuple[str, ...]] = {
    "job_enqueuing": ("task", "headers"),
    "job_enqueued": ("task", "job_id"),
    "job_started": ("job",),
    "job_done": ("job", "seconds"),
    "job_retrying": ("job", "seconds", "error", "delay"),
    "job_snoozed": ("job", "seconds", "delay"),
    "job_failed": ("job", "seconds", "error"),
    "job_cancelled": ("job", "seconds", "reason"),
    "job_released": ("job",),
    "job_lost": ("job",),
    "job_rescued": ("job",),
    "schedule_missed": ("schedule", "tick"),
    "schedule_late": ("schedule", "tick", "job_id"),
    "schedule_recovered": ("schedule", "tick"),
    "worker_started": ("worker",),
    "worker_stopping": ("worker",),
    "worker_stopped": ("worker",),
}
assert set(EVENTS) == set(get_args(EventName))


class Events:
    """The receivers of each event."""

    def __init__(self) -> None:
        self._receivers: dict[str, list[tuple[Receiver, tuple[str, ...] | None]]] = defaultdict(list)

    def add(self, event: str, receiver: Receiver) -> None:
        if event not in EVENTS:
            near = foreign_signal(event) or near_miss(event, EVENTS) or "."
            raise OptionError(f"there is no event {event!r}{near} The events: {', '.join(EVENTS)}")
        self._receivers[event].append((receiver, _wanted(event, receiver)))

    def send(self, event: str, **values: Any) -> None:
        """Call every receiver. Their exceptions are logged and not propagated."""
        for receiver, wanted in self._receivers.get(event, ()):
            try:
                receiver(**(values if wanted is None else {name: values[name] for name in wanted}))
            except KeyboardInterrupt:
                raise
            except BaseException:
                # Not Exception: a receiver may raise gevent.Timeout or call sys.exit, and that must not end the
                # worker's loop.
                logger.exception("the receiver %s of %s failed", _name(receiver), event)

    def wants(self, event: str) -> bool:
        """Return True if `event` has receivers. If not, the sender need not prepare the values."""
        return bool(self._receivers.get(event))


def _wanted(event: str, receiver: Receiver) -> tuple[str, ...] | None:
    """Return the values that a receiver takes, by the names of its parameters; None for all of them."""
    if not callable(receiver):
        raise OptionError(f"a receiver of {event!r} must be callable, got {receiver!r}")
    parameters = inspect.signature(receiver).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            raise OptionError(f"{_name(receiver)} takes {p.name!r} by position; receivers are called with keywords")
        if p.name not in EVENTS[event] and p.default is p.empty:
            raise OptionError(
                f"{_name(receiver)} takes {p.name!r}, which {event!r} does not pass"
                f"{near_miss(p.name, EVENTS[event]) or '.'} It passes: {', '.join(EVENTS[event])}"
            )
    return tuple(p.name for p in parameters if p.name in EVENTS[event] and p.kind is not p.POSITIONAL_ONLY)


def _name(receiver: Receiver) -> str:
    return getattr(receiver, "__qualname__", repr(receiver))
