"""The session of one `with app.testing()` block: setup and teardown of its parts."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ..clock import monotonic
from ..durations import MAX_DURATION
from ..errors import ConfigError, DatabaseUnavailable, PgCronError
from ..interfaces import Harness
from ..memory import MemoryStore
from .clock import Forecast, ManualClock, NoForecast
from .driver import Driver, TimeDriver, WorkerControl
from .inline_slots import RunLock
from .run_record import RunRecord

if TYPE_CHECKING:
    from ..app import PgCron
    from ..contrib.pings import PingKind
    from ..store import Store

# How long the end of a block waits for a job that another thread still runs.
LEAVE_SECONDS = 10.0


class Session:
    """A session that begins and ends once. Its queue is in memory with a `manual_clock`, else in a database."""

    def __init__(
        self, app: PgCron, manual_clock: ManualClock | None, settings: dict[str, Any], keeps_schedules: bool
    ) -> None:
        self.run_lock = RunLock()
        self.runs: list[RunRecord] = []
        self.sent: list[tuple[str, PingKind, str]] = []
        self._app = app
        self._manual_clock = manual_clock
        self._settings = settings
        self._keeps_schedules = keeps_schedules
        self._driver: Driver | None = None
        self._time_driver: TimeDriver | None = None
        self._exits: contextlib.ExitStack | None = None

    @property
    def is_on(self) -> bool:
        """Return True after its beginning and before its end."""
        return self._driver is not None

    @property
    def driver(self) -> Driver:
        if self._driver is not None:
            return self._driver
        if self._exits is None:
            raise PgCronError("this test block has not begun: write with app.testing() as t: ...")
        raise PgCronError("this test block has ended; its runs can still be read, its queue is gone")

    @property
    def time_driver(self) -> TimeDriver:
        """The driver that moves the clock."""
        assert self._time_driver is not None
        return self._time_driver

    def begin(self, harness: Harness) -> None:
        app = self._app
        if app._harness is not None:
            raise PgCronError(
                f"{app!r} is under test already: app.testing() blocks of one app cannot be nested."
                " Use the t of the outer one, or end that first."
            )
        if app._is_running:
            raise PgCronError(f"{app!r} has a worker running in this process; testing() would replace its queue")
        if self._exits is not None:
            raise PgCronError("this test block has ended, and cannot be entered again: call app.testing() again")
        with contextlib.ExitStack() as exits:
            exits.enter_context(app._under_test(harness, self._settings))
            exits.callback(self._vacate)
            self._set_up()
            self._exits = exits.pop_all()

    def end(self, *, is_in_trouble: bool) -> None:
        assert self._exits is not None
        with self.run_lock.last(LEAVE_SECONDS) as came, self._exits:
            if not came:
                self.driver.control.abandon()
        if not came and not is_in_trouble:
            raise PgCronError(
                f"the test block has ended while another thread runs {self.run_lock.serving or 'jobs'} in it:"
                " join the threads that your test starts before that"
            )

    def _set_up(self) -> None:
        app, manual_clock = self._app, self._manual_clock
        store: Store
        forecast: Forecast | NoForecast
        if manual_clock is not None:
            store = memory = MemoryStore(manual_clock)
            forecast = known = Forecast(memory, manual_clock, keeps_schedules=self._keeps_schedules)
        else:
            store, forecast = app.store, NoForecast()
            store.check_schema()
        clock = monotonic if manual_clock is None else manual_clock.seconds
        control = WorkerControl(app, store, forecast, clock, keeps_schedules=self._keeps_schedules, sent=self.sent)
        self._driver = Driver(store, control, forecast, self.run_lock, self.runs)
        if manual_clock is not None:
            self._time_driver = TimeDriver(manual_clock, known, self._driver)
        control.start()
        # The code under test may still make settings, as `init_app` does: so far only the session has read them.
        app._reread_settings()

    def _vacate(self) -> None:
        """Close the store. On a server the worker is stopped first; a queue in memory is discarded with its worker."""
        driver = self._driver
        if driver is None:
            return
        try:
            if self._manual_clock is None:
                # A fixture may have dropped the database already.
                with contextlib.suppress(DatabaseUnavailable):
                    driver.control.stop()
        finally:
            self._driver = self._time_driver = None
            # The app may have closed it, and use another by now.
            driver.store.close()


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the block: those given to `app.testing`, where the database is `url`, and defaults."""
    named = {"database_url" if name == "url" else name: value for name, value in given.items()}
    settings = {"database_url": "memory://", "keep_done": MAX_DURATION, "keep_failed": MAX_DURATION, **named}
    url = settings["database_url"]
    if not isinstance(url, str) or not url:
        # None would mean "unchanged", which is the database of production.
        raise ConfigError(
            f"testing(): url={url!r}: expected the URL of a database for tests; leave it out for a queue in memory"
        )
    if not url.startswith("memory:"):
        settings.setdefault("direct_url", url)
    return settings
