"""Flask for background jobs: a queue and a cron in the PostgreSQL you already run."""

from .app import PgCron as PgCron
from .blueprint import TaskBlueprint as TaskBlueprint
from .context import current_job as current_job
from .errors import AppNotFound as AppNotFound
from .errors import ConfigError as ConfigError
from .errors import DatabaseRefused as DatabaseRefused
from .errors import DatabaseUnavailable as DatabaseUnavailable
from .errors import EmbeddedDatabaseError as EmbeddedDatabaseError
from .errors import JobCancelled as JobCancelled
from .errors import JobEnded as JobEnded
from .errors import JobFailed as JobFailed
from .errors import LatePatch as LatePatch
from .errors import LoginRefused as LoginRefused
from .errors import NotRegistered as NotRegistered
from .errors import OptionError as OptionError
from .errors import PayloadError as PayloadError
from .errors import PgCronError as PgCronError
from .errors import SchemaMismatch as SchemaMismatch
from .errors import SetupFinished as SetupFinished
from .errors import UnknownJob as UnknownJob
from .errors import UnknownSchedule as UnknownSchedule
from .errors import UnknownTask as UnknownTask
from .errors import WaitTimeout as WaitTimeout
from .handle import Handle as Handle
from .job import Job as Job
from .retry import Backoff as Backoff
from .retry import Cancel as Cancel
from .retry import Retry as Retry
from .retry import RetryOn as RetryOn
from .retry import Snooze as Snooze
from .schedules.timing import Cron as Cron
from .schedules.timing import Every as Every
from .task import Task as Task

__version__ = "0.1.0"
