"""Definition of a workload: its name, its measurement, and the figures that this returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .trial import Trial

# Figures by name. The first is the one that is compared.
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of all measurements."""

    seconds: float = 3.0
    bulk: int = 100_000
    beats: int = 300
    idle_seconds: float = 30.0
    starts: int = 5
    deep: int = 1_000_000
    due: int = 20_000
    passing: int = 500_000
    schedules: int = 1000
    # Each of them is due once in this many seconds.
    tick_seconds: int = 10
    rounds: int = 3
    kept: int = 10_000


QUICK = Size(
    seconds=0.7, bulk=20_000, beats=40, idle_seconds=6.0, starts=2, deep=100_000, due=10_000, passing=50_000,
    schedules=1000, rounds=1,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing that is measured, the same way for every contestant."""

    name: str
    title: str
    unit: str
    measure: Callable[[Trial, Size], Figures]
    less_is_better: bool = False
    # Figures that get a panel of the chart each, with its title. By default only the first figure gets one.
    panels: tuple[tuple[str, str], ...] = ()
    is_quick: bool = False
