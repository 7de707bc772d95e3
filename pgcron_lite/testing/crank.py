"""The crank: it turns the worker until there is nothing more to do at this moment, and runs the jobs that it claims."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import PgCronError
from ..worker import Worker
from .here import Here
from .outlook import NoOutlook, Outlook
from .post import Post
from .run import Run
from .turns import Turns

if TYPE_CHECKING:
    from ..app import Store

# So many runs while no time passes are a circle.
MOST_AT_ONCE = 100_000


class Crank:
    """Turns whoever fills the post. `runs` grows by what has run."""

    def __init__(
        self, store: Store, post: Post, outlook: Outlook | NoOutlook, turns: Turns, runs: list[Run]
    ) -> None:
        self.store = store
        self.post = post
        # How long runs of a task last that take their time.
        self.spans: dict[str, timedelta] = {}
        # For how many seconds the worker would sleep now.
        self.wait = 0.0
        self._outlook = outlook
        self._turns = turns
        self._runs = runs
        self._first = self._at_once = 0
        self._raises = False
        self._error: BaseException | None = None

    def begin(self, *, raises: bool) -> None:
        """A turn of the test begins: it may have registered, enqueued and changed whatever it likes."""
        self._outlook.forget()
        self.post.keep_up()
        self._first, self._raises, self._error = len(self._runs), raises, None
        self.come_to_a_moment()

    @property
    def ran(self) -> list[Run]:
        """What has run since `begin`."""
        return self._runs[self._first :]

    def come_to_a_moment(self) -> None:
        """It is another moment, at which other things are due."""
        self._at_once = 0
        if self.post.worker is not None:
            self._outlook.point_out(self.post.worker)

    def turn(self) -> None:
        """Turn the worker until it has nothing more to do at this moment."""
        asked_again = False
        while (worker := self.post.worker) is not None:
            slots = self.post.slots
            self._end_what_is_over(slots)
            self.wait = worker.step()
            self._let_out(slots)
            if slots.waiting:
                asked_again = False
                self._serve_all(worker, slots)
            elif slots.ended:
                continue
            elif not asked_again and self._outlook.is_something_due(self.wait):
                # Once: what cannot be done now, as its queue is paused, stays due.
                asked_again = True
                worker.look_soon()
            elif self._outlook.has_undecided_ticks:
                worker.scheduler.due_at = 0.0
            elif self._outlook.is_over(worker):
                return

    def _end_what_is_over(self, slots: Here) -> None:
        if slots.next_end is not None:
            for run in slots.end_until(self.store.now()):
                self._heed(run)

    def _serve_all(self, worker: Worker, slots: Here) -> None:
        """What was claimed together is written together, as a worker does."""
        while slots.waiting and self.post.worker is worker and self._error is None:
            self._serve(slots)

    def _serve(self, slots: Here) -> None:
        """Run one job to its end, or to the end of its worker."""
        self._refuse_a_circle()
        self._turns.serving = job = slots.next_job
        try:
            run = slots.begin(self.store.now(), self.spans.get(job.task))
        finally:
            self._turns.serving = None
        self._runs.append(run)
        if run.state == "crashed":
            self.post.bury()
        elif run.state != "running":
            self._heed(run)

    def _refuse_a_circle(self) -> None:
        self._at_once += 1
        if self._at_once > MOST_AT_ONCE:
            raise PgCronError(
                f"{MOST_AT_ONCE:,} jobs have run and no time has passed: what is due enqueues, retries or snoozes"
                f" itself without a delay. The last was {self._runs[-1]}."
            )

    # What comes out to the test

    def _heed(self, run: Run) -> None:
        """A run is over: keep the first error that the test is to see."""
        if self._error is None and run.is_trouble and (self._raises or _is_for_the_test(run.error)):
            self._error = run.error

    def _let_out(self, slots: Here) -> None:
        """Raise that error, now that it is written what became of the job."""
        if self._error is not None and not slots.ended:
            error, self._error = self._error, None
            raise error


def _is_for_the_test(error: BaseException | None) -> bool:
    """Ctrl-C, and what `pytest.fail()` raises, or a plugin that watches over the time, are not meant for the job."""
    if isinstance(error, Exception):
        return False
    pytest = sys.modules.get("pytest")
    ends = () if pytest is None else (pytest.fail.Exception, pytest.skip.Exception, pytest.exit.Exception)
    return isinstance(error, (KeyboardInterrupt, *ends))
