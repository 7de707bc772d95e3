"""Monotonic clock for machines and deadlines. Neither a change of the system time nor a frozen test clock affects it.

Libraries that freeze time also stop `time.monotonic()`: a deadline would never pass, and its loop would never end.
The time of day comes from the database. A machine takes its clock as an argument, so that a test can pass another.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

Clock = Callable[[], float]
# Returns a random number between two bounds, as `random.uniform` does. Machines use it to spread periodic work that
# all of them would otherwise do at the same moment.
Spread = Callable[[float, float], float]

monotonic: Clock = (
    functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic
)
