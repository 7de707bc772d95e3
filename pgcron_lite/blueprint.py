"""Blueprints: tasks and schedules of a module that does not import the app. `app.register` adds them to it.

So a large application can spread its tasks over modules that the module of the app imports, without import circles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .checks import written_name
from .declarations import Declarations, task_name
from .errors import NotRegistered, OptionError
from .hints import BLUEPRINT_METHODS, refuse_attribute
from .interfaces import App
from .schedules.schedule import Schedule
from .task import Task


class RegisteringApp(App, Protocol):
    """The app, as its blueprints use it. Implemented by `app.PgCron`."""

    def _add_task(self, task: Task[..., Any]) -> None: ...

    def _add_schedule(self, schedule: Schedule) -> None: ...

    def _check_task(self, task: Task[..., Any]) -> None: ...

    def _check_schedule(self, schedule: Schedule) -> None: ...

    def _check_open(self, what: str) -> None: ...


class TaskBlueprint(Declarations):
    """Tasks and schedules that an app registers later: `mail = TaskBlueprint("mail")`, `app.register(mail)`.

    A function `send` becomes the task `mail.send`, unless its decorator has `name=`, which is used as it is. Tasks can
    be enqueued once the blueprint is registered. A blueprint belongs to one app.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = written_name(name)
        self._app: RegisteringApp | None = None
        # Modules may be imported, and so declare tasks, while another thread registers the blueprint.
        self._changing = threading.RLock()

    def __repr__(self) -> str:
        return f"<TaskBlueprint {self.name!r}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(self, name, "a blueprint", "blueprint", BLUEPRINT_METHODS)

    def _bind(self, app: RegisteringApp) -> None:
        """Add everything declared so far to `app`, or nothing if a name is taken there."""
        with self._changing:
            if self._app is app:
                return
            if self._app is not None:
                raise OptionError(
                    f"{self!r} is registered on {self._app!r} already, where its tasks are enqueued. A process has one"
                    " PgCron for its blueprints, which init_app() connects with each Flask app"
                )
            app._check_open(f"register {self!r}")
            for task in self.tasks.values():
                app._check_task(task)
            for schedule in self.declared.values():
                app._check_schedule(schedule)
            for task in self.tasks.values():
                app._add_task(task)
            for schedule in self.declared.values():
                app._add_schedule(schedule)
            self._app = app

    def _add_task(self, task: Task[..., Any]) -> None:
        with self._changing:
            if self._app is not None:
                self._check_task(task)
                self._app._add_task(task)
            super()._add_task(task)

    def _add_schedule(self, schedule: Schedule) -> None:
        with self._changing:
            if self._app is not None:
                self._check_schedule(schedule)
                self._app._add_schedule(schedule)
            super()._add_schedule(schedule)

    def _bound_app(self) -> App:
        if self._app is None:
            raise NotRegistered(
                f"the tasks of {self!r} cannot be enqueued yet: no app has registered it. Import the module that calls"
                " app.register(...) with it, or call that where the app is made"
            )
        return self._app

    def _name_for(self, function: Callable[..., Any]) -> str:
        # For its check that the function has a name at all.
        task_name(function)
        return written_name(f"{self.name}.{function.__name__}")

    def _check_open(self, what: str) -> None:
        if self._app is not None:
            self._app._check_open(what)
