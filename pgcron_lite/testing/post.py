"""The post of the worker: who fills it is hired with what the app knows then, dismissed, or buried when it is dead.

One worker follows the other, as processes do; between two of them the post may be vacant.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from .. import plan
from ..clock import Clock
from ..config import Settings
from ..errors import PgCronError
from ..job import WorkerCard
from ..ping import Kind, Pings
from ..start import version
from ..worker import Worker
from .here import Here
from .outlook import NoOutlook, Outlook

if TYPE_CHECKING:
    from ..app import PgCron, Store

STOPPED = "the worker is stopped; t.start_worker() starts another"


class Post:
    """There is one worker, or none."""

    def __init__(
        self,
        app: PgCron,
        store: Store,
        outlook: Outlook | NoOutlook,
        clock: Clock,
        *,
        keeps_schedules: bool,
        sent: list[tuple[str, Kind, str]],
    ) -> None:
        self.worker: Worker | None = None
        # What the worker knows of the app's.
        self.tasks: tuple[str, ...] = ()
        self._generation: str | None = None
        self._settings: Settings | None = None
        self._app = app
        self._store = store
        self._outlook = outlook
        self._clock = clock
        self._keeps_schedules = keeps_schedules
        self._pings = _Noted(sent)

    @property
    def slots(self) -> Here:
        """Where the worker's jobs run."""
        assert self.worker is not None
        assert isinstance(self.worker.slots, Here)
        return self.worker.slots

    def present(self, what: str) -> Worker:
        """The worker, which `what` cannot do without."""
        if self.worker is None:
            raise PgCronError(f"{what}: {STOPPED}")
        return self.worker

    def hire(self) -> None:
        app, store = self._app, self._store
        generation, self.tasks, self._settings = self._knowledge()
        self._generation = generation
        card = WorkerCard(
            uuid.uuid4(), "testing", os.getpid(), ("*",), self._settings.slots, "inline", version(), generation
        )
        if self._keeps_schedules:
            store.declare(app.name, generation, app.definitions)
        store.register(card)
        self._outlook.disturb()
        self.worker = Worker(
            app, store, card, plans_ticks=self._keeps_schedules, slots=Here, clock=self._clock,
            spread=self._outlook.spread, pings=self._pings,
        )  # fmt: skip
        if self._keeps_schedules:
            self.worker.scheduler.step()

    def dismiss(self) -> None:
        """The worker hands back what it runs, and leaves."""
        if self.worker is None:
            return
        self.slots.give_up("released")
        worker, self.worker = self.worker, None
        worker.stop()
        worker.step()
        worker.release(0.0)
        worker.store.forget(worker.id)

    def bury(self) -> None:
        """The worker is dead; another takes its place."""
        self.slots.give_up("crashed")
        self.hire()

    def abandon(self) -> None:
        """Another thread is still turning the worker; it ends with what it runs now, and nobody writes that down."""
        self.worker = None

    def keep_up(self) -> None:
        """What has been registered meanwhile comes with a worker that knows it, as by a deploy."""
        if self.worker is not None and self._knowledge() != (self._generation, self.tasks, self._settings):
            self.dismiss()
            self.hire()

    def _knowledge(self) -> tuple[str, tuple[str, ...], Settings]:
        app = self._app
        definitions = app.definitions if self._keeps_schedules else {}
        return plan.generation(app.name, definitions), tuple(app.tasks), app.settings


class _Noted(Pings):
    """Reports to monitors that are noted and not sent."""

    def __init__(self, sent: list[tuple[str, Kind, str]]) -> None:
        super().__init__()
        self._sent = sent

    def send(self, url: str, kind: Kind, text: str = "") -> None:
        self._sent.append((url, kind, text))

    def close(self, seconds: float) -> None:
        """Nothing is on its way."""
