"""What any worker does once a minute: see whether the schema still fits, prune the history, name unknown tasks."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .clock import Clock, Spread, monotonic
from .errors import near_miss

if TYPE_CHECKING:
    from .app import PgCron, Store

logger = logging.getLogger(__name__)

EVERY_SECONDS = 60.0


class Chores:
    """Each is done when it is time and left alone otherwise. Jittered, so that workers do not do them together."""

    def __init__(
        self,
        app: PgCron,
        store: Store,
        queues: Sequence[str],
        clock: Clock = monotonic,
        spread: Spread = random.uniform,
    ) -> None:
        self._app = app
        self._store = store
        self._queues = queues
        self._clock = clock
        self._spread = spread
        self.check_at = clock() + EVERY_SECONDS
        self.prune_at = clock() + spread(0, EVERY_SECONDS)
        self._complain_at = 0.0

    def check_schema(self) -> None:
        """Claim nothing from a schema that was changed under us and no longer works with this version."""
        if self._clock() >= self.check_at:
            self._store.check_schema()
            self.check_at = self._clock() + EVERY_SECONDS * self._spread(0.8, 1.2)

    def prune(self) -> None:
        """Delete what ended long ago, a batch at a time."""
        if self._clock() >= self.prune_at:
            gone = self._store.prune(self._app.settings.keep_done, self._app.settings.keep_failed)
            # A full batch means there is more.
            pause = 1.0 if gone >= 1000 else EVERY_SECONDS * self._spread(0.8, 1.2)
            self.prune_at = self._clock() + pause

    def complain(self) -> None:
        """Say which jobs are due that no task of ours fits. They are left for a worker that knows them."""
        if self._clock() < self._complain_at:
            return
        self._complain_at = self._clock() + EVERY_SECONDS
        for name, count in self._store.waiting_tasks(self._queues).items():
            if name not in self._app.tasks:
                logger.warning(
                    "%d due job%s of %r: this worker does not know that task%s It is left for one that does.",
                    count, "" if count == 1 else "s", name, near_miss(name, list(self._app.tasks)) or ".",
                )
