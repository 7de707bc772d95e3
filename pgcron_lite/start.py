"""What a worker checks before it begins, and the first lines it says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .errors import ConfigError
from .job import WorkerCard

if TYPE_CHECKING:
    from .app import PgCron, Store

logger = logging.getLogger("pgcron_lite")

# There may be thousands of schedules.
MOST_NAMES = 20


def check(app: PgCron, store: Store) -> None:
    """Refuse a database whose schema this code does not know, or that belongs to another environment."""
    store.check_schema()
    label, mine = store.facts().get("environment"), app.settings.environment
    if label is not None and label != mine:
        have = f"PGCRON_ENVIRONMENT={mine}" if mine else "PGCRON_ENVIRONMENT not set"
        raise ConfigError(
            f"this database belongs to the environment {label!r}, and this process has {have}. Is it a copy?"
            " Its jobs would be run a second time. If it is meant to be used here, run:"
            f" pgcron migrate --environment {mine or 'NAME'}"
        )


def introduce(app: PgCron, store: Store, card: WorkerCard, *, plans_ticks: bool = True) -> None:
    """The first lines of a worker: everything one needs to know when something is wrong."""
    what = "worker" if card.queues else "scheduler"
    logger.info("pgcron_lite %s, app %s, %s %s", card.version, app.name, what, str(card.id)[:8])
    logger.info("  database: %s", store.describe())
    if card.queues:
        tasks = ", ".join(sorted(app.tasks)) or "none: is the module that defines them imported?"
        logger.info("  queues:   %s; %d slots, %s, pid %d", ", ".join(card.queues), card.slots, card.mode, card.pid)
        logger.info("  tasks:    %s", tasks)
    else:
        logger.info("  keeps schedules and runs no jobs, pid %d", card.pid)
    if not plans_ticks:
        logger.info("  keeps no schedules: another worker, or pgcron scheduler, has to")
    elif app.declared:
        names = sorted(app.declared)
        more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
        logger.info("  declares: %s%s", ", ".join(names[:MOST_NAMES]), more)


def version() -> str:
    from . import __version__

    return __version__
