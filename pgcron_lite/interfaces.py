"""Interfaces of the app and of its test harness, for the modules that `app` itself imports.

They cannot import `app`: the import would be a circle. So each interface lists what these modules use.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .admin import Jobs
from .config import Settings
from .job import NewJob
from .serialization.arguments import Arguments

if TYPE_CHECKING:
    from .store import Store


class App(Protocol):
    """The app, as its tasks, handles and running jobs use it. Implemented by `app.PgCron`."""

    @property
    def _harness(self) -> Harness | None: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def store(self) -> Store: ...

    @property
    def jobs(self) -> Jobs: ...

    @property
    def tasks(self) -> Mapping[str, RegisteredTask]: ...

    def find_task(self, name: str) -> RegisteredTask: ...

    def _headers_for(self, task: NamedTask, given: Mapping[str, str]) -> Mapping[str, str]: ...

    def _enqueue(self, jobs: Sequence[NewJob], conn: Any = None) -> list[int]: ...

    def _complete(self, conn: Any, job_id: int, claim: uuid.UUID, result: str) -> bool: ...


class NamedTask(Protocol):
    """A task that is known by its name, whether this process can run it or not."""

    @property
    def name(self) -> str: ...


class RegisteredTask(NamedTask, Protocol):
    """A task, as its jobs and their handles use it. Implemented by `task.Task`."""

    @property
    def arguments(self) -> Arguments: ...


class Harness(Protocol):
    """The test block that an app stands in, as the app and its handles use it. Implemented by `testing.harness`."""

    @property
    def store(self) -> Store: ...

    def enqueued_on(self, conn: Any) -> None: ...

    def wait_for(self, job_id: int) -> None: ...
