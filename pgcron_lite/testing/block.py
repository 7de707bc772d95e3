"""The block, from `with` to its end: the app stands on a queue of its own, and the machines that turn it are set up."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ..clock import monotonic
from ..errors import ConfigError, DatabaseUnavailable, PgCronError
from ..memory import MemoryStore
from ..moment import LONGEST
from .crank import Crank
from .outlook import NoOutlook, Outlook
from .passage import Passage
from .post import Post
from .run import Run
from .timeline import Timeline
from .turns import Turns

if TYPE_CHECKING:
    from ..app import PgCron, Store
    from ..ping import Kind
    from .stage import Stage

# How long its end waits for a job that another thread still runs.
LEAVE_SECONDS = 10.0


class Block:
    """Begins and ends once. With a `timeline` the queue is in memory, and without one in the database of `settings`."""

    def __init__(self, app: PgCron, timeline: Timeline | None, settings: dict[str, Any], keeps_schedules: bool) -> None:
        self.turns = Turns()
        self.runs: list[Run] = []
        self.sent: list[tuple[str, Kind, str]] = []
        self._app = app
        self._timeline = timeline
        self._settings = settings
        self._keeps_schedules = keeps_schedules
        self._crank: Crank | None = None
        self._passage: Passage | None = None
        self._exits: contextlib.ExitStack | None = None

    @property
    def is_on(self) -> bool:
        """Has it begun, and not ended?"""
        return self._crank is not None

    @property
    def crank(self) -> Crank:
        if self._crank is not None:
            return self._crank
        if self._exits is None:
            raise PgCronError("this test block has not begun: write with app.testing() as t: ...")
        raise PgCronError("this test block has ended; what it has run can be looked at, its queue is gone")

    @property
    def passage(self) -> Passage:
        """Where time can be moved."""
        assert self._passage is not None
        return self._passage

    def begin(self, stage: Stage) -> None:
        app = self._app
        if app.stage is not None:
            raise PgCronError(
                f"{app!r} is under test already: one app.testing() block of an app does not stand in another."
                " Use the t of the outer one, or end that first."
            )
        if app.is_running:
            raise PgCronError(f"{app!r} has a worker running in this process; testing() would take its queue away")
        if self._exits is not None:
            raise PgCronError("this test block has ended, and the next is another: call app.testing() again")
        with contextlib.ExitStack() as exits:
            exits.enter_context(app.under_test(stage, self._settings))
            exits.callback(self._vacate)
            self._set_up()
            self._exits = exits.pop_all()

    def end(self, *, is_in_trouble: bool) -> None:
        assert self._exits is not None
        with self.turns.last(LEAVE_SECONDS) as came, self._exits:
            if not came:
                self.crank.post.abandon()
        if not came and not is_in_trouble:
            raise PgCronError(
                f"the test block has ended while another thread runs {self.turns.serving or 'jobs'} in it:"
                " join the threads that your test starts before that"
            )

    def _set_up(self) -> None:
        app, timeline = self._app, self._timeline
        store: Store
        outlook: Outlook | NoOutlook
        if timeline is not None:
            store = memory = MemoryStore(timeline)
            outlook = foresight = Outlook(memory, timeline, keeps_schedules=self._keeps_schedules)
        else:
            store, outlook = app.store, NoOutlook()
            store.check_schema()
        clock = monotonic if timeline is None else timeline.seconds
        post = Post(app, store, outlook, clock, keeps_schedules=self._keeps_schedules, sent=self.sent)
        self._crank = Crank(store, post, outlook, self.turns, self.runs)
        if timeline is not None:
            self._passage = Passage(timeline, foresight, self._crank)
        post.hire()
        # What the code under test is about to say, as `init_app` does, is not late: only we have read them.
        app.reread_settings()

    def _vacate(self) -> None:
        """Nobody is left behind in a database; a queue in memory goes with all that was on it."""
        crank = self._crank
        if crank is None:
            return
        try:
            if self._timeline is None:
                # A fixture may have dropped the database already.
                with contextlib.suppress(DatabaseUnavailable):
                    crank.post.dismiss()
        finally:
            self._crank = self._passage = None
            # The app may have closed it, and use another by now.
            crank.store.close()


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """The settings that hold in the block: those given to `app.testing`, where the database is `url`, and ours."""
    named = {"database_url" if name == "url" else name: value for name, value in given.items()}
    settings = {"database_url": "memory://", "keep_done": LONGEST, "keep_failed": LONGEST, **named}
    url = settings["database_url"]
    if not isinstance(url, str) or not url:
        # None would be taken for "as it is", which is the database of production.
        raise ConfigError(
            f"testing(): url={url!r}: expected the URL of a database for tests; leave it out for a queue in memory"
        )
    if not url.startswith("memory:"):
        settings.setdefault("direct_url", url)
    return settings
