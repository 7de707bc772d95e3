"""Seconds that pass: the clock by which machines and deadlines go. Nobody sets it, and no test freezes it by accident.

Libraries that freeze time stop `time.monotonic()` as well, and a deadline that never comes is a loop that never ends.
What time it is belongs to the database. A machine takes its clock as an argument, so that a test may bring its own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

Clock = Callable[[], float]
# A number between two, as `random.uniform` draws it: machines spread what all of them do, so that they do not do it
# together.
Spread = Callable[[float, float], float]

monotonic: Clock = (
    functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic
)
