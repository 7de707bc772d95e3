"""Every exception a user of the library may want to catch.

::

    PgCronError
    ├── OptionError           an option that cannot be right (also a ValueError)
    ├── PayloadError          an argument or a result that cannot be stored (also a TypeError)
    ├── ConfigError           a setting or a URL that cannot be right (also a ValueError)
    ├── SetupFinished         registering on an app that already runs
    ├── UnknownTask           a name no registered task answers to
    ├── UnknownSchedule       a name the database has no schedule of
    ├── UnknownJob            an id the database does not know (any more)
    ├── AppNotFound           the command line could not find your app
    ├── LatePatch             gevent patched after the database driver was loaded
    ├── DatabaseUnavailable   the database cannot be reached, or not now
    │   └── LoginRefused      it can, and does not let us in
    ├── DatabaseRefused       the database will not store this, now or later
    ├── SchemaMismatch        the schema is missing, older or newer than this code
    ├── EmbeddedDatabaseError the development database cannot be found or started
    └── JobEnded              what ``handle.wait()`` raises when there is no result
        ├── JobFailed
        ├── JobCancelled
        └── WaitTimeout       not ended yet (also a TimeoutError)

`Retry`, `Snooze` and `Cancel` are raised *by* tasks to steer a job. They are not errors and live in `retry`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PgCronError(Exception):
    """The root of everything that can go wrong here."""


class OptionError(PgCronError, ValueError):
    """An option of a task, a call or a worker cannot be right."""


class PayloadError(PgCronError, TypeError):
    """A value cannot be stored, or a stored one cannot be read; the message names its path."""


class ConfigError(PgCronError, ValueError):
    """A setting cannot be right."""


class SetupFinished(PgCronError, RuntimeError):
    """The app is running; tasks and hooks are registered before that."""


class UnknownTask(PgCronError, LookupError):
    """No task of that name is registered on the app."""


class UnknownSchedule(PgCronError, LookupError):
    """There is no schedule of that name."""


class UnknownJob(PgCronError, LookupError):
    """No such job: it was never there, was deleted, or its history was pruned."""


class AppNotFound(PgCronError):
    """The command line could not find an app to run."""


class LatePatch(PgCronError, RuntimeError):
    """gevent was patched too late, or half; greenlets would block each other."""


class DatabaseUnavailable(PgCronError):
    """The database cannot be reached or will not answer now; trying again later is right."""


class LoginRefused(DatabaseUnavailable):
    """The server does not accept our user or password; a new URL may be needed."""


class DatabaseRefused(PgCronError):
    """The database answered, and the answer is no; trying again would not help."""


class SchemaMismatch(PgCronError):
    """The tables are missing, older or newer than this code expects."""


class EmbeddedDatabaseError(PgCronError):
    """The development database cannot be found or started."""


class JobEnded(PgCronError):
    """There is no result to return."""


class JobFailed(JobEnded):
    """The job gave up; the message is its last error."""


class JobCancelled(JobEnded):
    """The job was cancelled; the message is the reason."""


class WaitTimeout(JobEnded, TimeoutError):
    """The job has not ended within the time given; it goes on."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """The words `; did you mean 'x'?` when one of `known` is close to `name`, else nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
