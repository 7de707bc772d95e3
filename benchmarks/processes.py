"""Process statistics of Linux: sessions, CPU time and memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, slots=True)
class Stat:
    """A line of /proc/PID/stat, as far as it is used here."""

    pid: int
    parent: int
    session: int
    cpu_seconds: float
    children_cpu_seconds: float
    threads: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes held: `resident` with what is shared, `own` without."""

    resident: float
    own: float


def all_stats() -> Iterator[Stat]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(*_GONE):
                yield stat(int(folder.name))


def stat(pid: int) -> Stat:
    # The name is in parentheses and may contain any character.
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Stat(
        pid=pid,
        parent=int(words[1]),
        session=int(words[3]),
        cpu_seconds=(int(words[11]) + int(words[12])) * _TICK,
        children_cpu_seconds=(int(words[13]) + int(words[14])) * _TICK,
        threads=int(words[17]),
    )


def of_sessions(leaders: Iterable[int]) -> list[Stat]:
    """Return the processes of these sessions: the leaders, and all that they have started."""
    wanted = set(leaders)
    return [s for s in all_stats() if s.session in wanted]


def family_cpu_seconds(parent: int) -> float:
    """Return the CPU time of the children of `parent`, including those that have ended."""
    children = [s for s in all_stats() if s.parent == parent]
    return stat(parent).children_cpu_seconds + sum(s.cpu_seconds for s in children)


def memory(pid: int) -> Memory:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in (line.split() for line in lines)}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"] + kilobytes.get("Private_Hugetlb", 0)
    return Memory(kilobytes["Rss"] / 1024, own / 1024)
