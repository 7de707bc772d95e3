"""The passage of time, from one moment at which something happens to the next."""

from __future__ import annotations

from datetime import datetime

from .crank import Crank
from .outlook import Outlook
from .timeline import Timeline


class Passage:
    """Moves the time of the test, and has everything happen that falls due on the way."""

    def __init__(self, timeline: Timeline, outlook: Outlook, crank: Crank) -> None:
        self._timeline = timeline
        self._outlook = outlook
        self._crank = crank

    def until(self, end: datetime) -> None:
        """Let time pass, `end` included."""
        while True:
            self._crank.turn()
            following = self._next_moment()
            if following is None or following > end:
                break
            self._timeline.move(following)
            self._crank.come_to_a_moment()
        self._timeline.move(end)

    def _next_moment(self) -> datetime | None:
        post = self._crank.post
        if post.worker is None:
            # Nobody is there for whom it would happen.
            return None
        return self._outlook.next_moment(post.worker, post.tasks, self._crank.wait, post.slots.next_end)
