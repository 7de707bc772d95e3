"""Exceptions that users of the library may want to catch.

::

    PgCronError
    ├── OptionError           an invalid option (also a ValueError)
    ├── PayloadError          an argument or a result that cannot be stored (also a TypeError)
    ├── ConfigError           an invalid setting or URL (also a ValueError)
    ├── SetupFinished         registering on an app that already runs
    ├── NotRegistered         a task whose blueprint no app has registered (also an AttributeError)
    ├── UnknownTask           a name that no registered task has
    ├── UnknownSchedule       a name that no schedule in the database has
    ├── UnknownJob            an id that is not in the database (any more)
    ├── AppNotFound           the command line could not find your app
    ├── LatePatch             gevent patched after the database driver was loaded
    ├── DatabaseUnavailable   the database cannot be reached now
    │   └── LoginRefused      the server does not accept the user or the password
    ├── DatabaseRefused       the database rejected the request, and would reject it again
    ├── SchemaMismatch        the schema is missing, older or newer than this code
    ├── EmbeddedDatabaseError the development database cannot be found or started
    ├── WaitTimeout           the job has not ended within the timeout (also a TimeoutError)
    └── JobEnded              what ``handle.result()`` raises when the job ended without a result
        ├── JobFailed
        └── JobCancelled

`Retry`, `Snooze` and `Cancel` are raised *by* tasks to steer a job. They are not errors and are in `retry`.
"""

from __future__ import annotations


class PgCronError(Exception):
    """Base class of all errors of this library."""


class OptionError(PgCronError, ValueError):
    """An option of a task, a call or a worker is invalid."""


class PayloadError(PgCronError, TypeError):
    """A value cannot be stored, or a stored one cannot be read; the message names its path."""


class ConfigError(PgCronError, ValueError):
    """A setting is invalid."""


class SetupFinished(PgCronError, RuntimeError):
    """The app is running; tasks and hooks are registered before that."""


class NotRegistered(PgCronError, AttributeError):
    """The task belongs to a blueprint that no app has registered yet, so it has no app."""


class UnknownTask(PgCronError, LookupError):
    """No task of that name is registered on the app."""


class UnknownSchedule(PgCronError, LookupError):
    """No schedule has that name."""


class UnknownJob(PgCronError, LookupError):
    """No job has that id: it never existed, was deleted, or its history was pruned."""


class AppNotFound(PgCronError):
    """The command line could not find an app to run."""


class LatePatch(PgCronError, RuntimeError):
    """gevent was patched too late or incompletely; greenlets would block each other."""


class DatabaseUnavailable(PgCronError):
    """The database cannot be reached or does not answer now. A later retry may succeed."""


class LoginRefused(DatabaseUnavailable):
    """The server does not accept our user or password; a new URL may be needed."""


class DatabaseRefused(PgCronError):
    """The database rejected the request. A retry would not succeed."""


class SchemaMismatch(PgCronError):
    """The tables are missing, older or newer than this code expects."""


class EmbeddedDatabaseError(PgCronError):
    """The development database cannot be found or started."""


class JobEnded(PgCronError):
    """The job has ended, and has no result to return."""


class JobFailed(JobEnded):
    """The job failed for good; the message is its last error."""


class JobCancelled(JobEnded):
    """The job was cancelled; the message is the reason."""


class WaitTimeout(PgCronError, TimeoutError):
    """The job has not ended within the timeout, which does not affect the job."""
