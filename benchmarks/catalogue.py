"""The catalogue of contestants, read from the descriptions beside their programs."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pgcron_lite.hints import near_miss

PLACE = Path(__file__).parent / "contestants"
OURS = "pgcron"

# A limit is hand-written SQL without leases, retries or logs: a bound, not a rival.
Kind = Literal["ours", "limit", "neighbour"]
KINDS: dict[str, Kind] = {OURS: "ours", "raw": "limit"}

T = TypeVar("T")


class UnknownName(ValueError):
    """A requested contestant or workload does not exist."""


@dataclass(frozen=True, slots=True)
class Family:
    """One program, and the requirements of its environment."""

    name: str
    runtime: Literal["python", "node"]
    requirements: tuple[str, ...]
    database: Literal["postgres", "redis"] = "postgres"
    imports: str = ""
    promise: str = ""
    note: str = ""

    @property
    def program(self) -> Path:
        return PLACE / f"{self.name}.{'py' if self.runtime == 'python' else 'mjs'}"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A name in the tables: a program with certain options."""

    name: str
    family: Family
    pace: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    workloads: tuple[str, ...] | None = None

    @property
    def kind(self) -> Kind:
        return KINDS.get(self.family.name, "neighbour")

    def takes_part_in(self, workload: str) -> bool:
        return self.workloads is None or workload in self.workloads

    def jobs(self, kind: str, seconds: float, *, least: int = 200, most: int = 1_000_000) -> int:
        """Return the number of jobs that take about `seconds`, by the rate in the contestant's description."""
        return round(min(max(self.pace.get(kind, 1000) * seconds, least), most))


def contestants(place: Path = PLACE) -> dict[str, Contestant]:
    """Return all contestants: this project, then the bare limits, then the neighbours by name."""
    found = [c for path in place.glob("*.toml") for c in read(path)]
    found.sort(key=lambda c: (["ours", "limit", "neighbour"].index(c.kind), c.family.name))
    return {c.name: c for c in found}


def read(path: Path) -> list[Contestant]:
    """Return the contestants of one description."""
    described = tomllib.loads(path.read_text())
    family = Family(
        name=path.stem,
        runtime=described["runtime"],
        requirements=tuple(described["requirements"]),
        database=described.get("database", "postgres"),
        imports=described.get("import", ""),
        promise=described.get("promise", ""),
        note=described.get("note", ""),
    )
    return [
        Contestant(
            name=name,
            family=family,
            pace=entry.get("pace", {}),
            options=entry.get("options", {}),
            workloads=tuple(entry["workloads"]) if "workloads" in entry else None,
        )
        for name, entry in described["contestants"].items()
    ]


def choose(what: str, wanted: Sequence[str], known: dict[str, T]) -> list[T]:
    """Return the named values in the order of `known`. An unknown name is an error that suggests the near miss."""
    for name in wanted:
        if name not in known:
            raise UnknownName(f"there is no {what} {name!r}{near_miss(name, known) or '; see --list'}")
    return [value for name, value in known.items() if name in wanted]
