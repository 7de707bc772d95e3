"""Maintenance: the checks and log lines at the start of a worker, and what it does once a minute.

Once a minute a worker checks that the schema still fits its version, prunes the history and logs due jobs of tasks that
it does not know. With each new connection it checks that the sequence of ids is ahead of the ids in use.
"""

from __future__ import annotations

import logging
import random
import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..clock import Clock, Spread, monotonic
from ..errors import ConfigError
from ..hints import near_miss
from ..job import WorkerCard

if TYPE_CHECKING:
    from ..app import PgCron
    from ..store import Store

logger = logging.getLogger(__name__)

EVERY_SECONDS = 60.0


class Maintenance:
    """Periodic work. Each method does nothing until it is due; the times are jittered to spread the workers' load."""

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
        self._warn_at = 0.0
        self._generation = -1

    def check_schema(self) -> None:
        """Raise `SchemaMismatch` if the schema was changed and no longer works with this version."""
        if self._clock() >= self.check_at:
            self._store.check_schema()
            self.check_at = self._clock() + EVERY_SECONDS * self._spread(0.8, 1.2)
            # A pooler keeps our connection when its server is replaced, so this may be the sequence of another server.
            self._generation = -1

    def prune(self) -> None:
        """Delete old finished jobs, one batch at a time."""
        if self._clock() >= self.prune_at:
            # Set before the statement, so that a refused one is not repeated at once.
            self.prune_at = self._clock() + EVERY_SECONDS
            gone = self._store.prune(self._app.settings.keep_done, self._app.settings.keep_failed)
            # A full batch means there is more.
            pause = 1.0 if gone >= 1000 else EVERY_SECONDS * self._spread(0.8, 1.2)
            self.prune_at = self._clock() + pause

    def mend_sequence(self) -> None:
        """Advance the sequence of ids if it is behind: a new connection may lead to another server."""
        if self._store.generation != self._generation:
            self._generation = self._store.generation
            if self._store.mend_sequence():
                # One call advances it by a limited amount only: repeat in the next turn until it is no longer behind.
                self._generation = -1

    def warn_unknown_tasks(self) -> None:
        """Log the due jobs of tasks that this worker does not know. They stay queued for a worker that does."""
        if self._clock() < self._warn_at:
            return
        self._warn_at = self._clock() + EVERY_SECONDS
        for name, count in self._store.waiting_tasks(self._queues).items():
            if name not in self._app.tasks:
                logger.warning(
                    "%d due job%s of %r: this worker does not know that task%s It is left for one that does.",
                    count, "" if count == 1 else "s", name, near_miss(name, list(self._app.tasks)) or ".",
                )


start_logger = logging.getLogger("pgcron_lite")

# Pipes, up to four connections, an event loop for each thread that has one, and a few for tasks.
MIN_FILES = 40
# The maximum number of schedules to list in the log: an app may have thousands.
MAX_NAMES = 20


def check_limits() -> None:
    """Refuse a process that may not open the files that a worker needs."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < MIN_FILES:
        raise ConfigError(
            f"this process may have {files} open files, and a worker needs {MIN_FILES} and those of its tasks. Raise"
            " the limit where the worker is started: `ulimit -n 1024`, LimitNOFILE=1024 in a systemd unit"
        )


def check_start(app: PgCron, store: Store) -> None:
    """Refuse a database whose schema this code does not know, or that belongs to another environment."""
    store.check_schema()
    app.settings.check_label(store.facts().get("environment"))


def log_start(app: PgCron, store: Store, card: WorkerCard, *, plans_ticks: bool = True) -> None:
    """Log the first lines of a worker: the configuration that one needs to diagnose a problem."""
    what = "worker" if card.queues else "scheduler"
    start_logger.info("pgcron_lite %s, app %s, %s %s", card.version, app.name, what, str(card.id)[:8])
    start_logger.info("  database: %s", store.describe())
    if card.queues:
        tasks = ", ".join(sorted(app.tasks)) or "none: is the module that defines them imported?"
        start_logger.info(
            "  queues:   %s; %d slots, %s, pid %d", ", ".join(card.queues), card.slots, card.mode, card.pid
        )
        start_logger.info("  tasks:    %s", tasks)
    else:
        start_logger.info("  keeps schedules and runs no jobs, pid %d", card.pid)
    if not plans_ticks:
        start_logger.info("  keeps no schedules: another worker, or pgcron scheduler, has to")
    elif app.declared:
        names = sorted(app.declared)
        more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
        start_logger.info("  declares: %s%s", ", ".join(names[:MAX_NAMES]), more)


def version() -> str:
    from .. import __version__

    return __version__
