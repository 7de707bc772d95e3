"""The embedded database: a real PostgreSQL server for `pgcron dev` and for tests, with nothing to configure.

`server` owns one cluster per home folder, `programs` finds the server's programs, `system` has the calls of the
operating system for both. Importing this package loads no driver. POSIX only.
"""

from .programs import find_binaries as find_binaries
from .server import EmbeddedPostgres as EmbeddedPostgres
