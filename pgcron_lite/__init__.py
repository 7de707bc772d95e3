"""Flask for background jobs: a queue and a cron in the PostgreSQL you already run."""

from .app import PgCron as PgCron
from .current import current_job as current_job
from .errors import JobCancelled as JobCancelled
from .errors import JobEnded as JobEnded
from .errors import JobFailed as JobFailed
from .errors import PgCronError as PgCronError
from .errors import WaitTimeout as WaitTimeout
from .handle import Handle as Handle
from .job import Job as Job
from .retry import Backoff as Backoff
from .retry import Cancel as Cancel
from .retry import Retry as Retry
from .retry import RetryOn as RetryOn
from .retry import Snooze as Snooze
from .task import Task as Task

__version__ = "0.1.0"
