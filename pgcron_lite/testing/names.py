"""The names by which a test asks for tasks and schedules.

What nobody is called is refused: a list of nothing would look like an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import OptionError, UnknownTask
from ..task import Task
from .block import Block

if TYPE_CHECKING:
    from ..app import PgCron


class Names:
    """Those of an app, and of what has run in its block."""

    def __init__(self, app: PgCron, block: Block) -> None:
        self._app = app
        self._block = block

    def task(self, asked: Task[..., Any] | str) -> Task[..., Any]:
        """The task of this app that is asked for."""
        app = self._app
        name = asked.name if isinstance(asked, Task) else asked
        if not isinstance(name, str):
            raise OptionError(f"expected a task of {app!r} or its name, got {asked!r}")
        if name not in app.tasks and name in app.declared:
            meant = app.declared[name].task
            raise UnknownTask(f"no task named {name!r} on app {app.name!r}: that is a schedule, of task {meant!r}")
        return app.find_task(name)

    def schedule(self, name: str) -> str:
        """`name`, if it is that of a schedule; the near miss is suggested."""
        if not isinstance(name, str):
            raise OptionError(f"expected the name of a schedule, got {name!r}")
        if not self.is_schedule(name) and not self._block.crank.store.schedules(name):
            self._app.schedules.get(name)  # says so
        return name

    def is_schedule(self, name: str) -> bool:
        """Does the code declare it, or has it run?"""
        return name in self._app.declared or any(run.schedule == name for run in self._block.runs)
