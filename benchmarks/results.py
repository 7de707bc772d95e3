"""Results: the figures of every round, their medians, and their ratios to ours."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from .catalogue import OURS
from .workload import Figures, Workload


@dataclass(slots=True)
class Score:
    """One contestant in one workload."""

    contestant: str
    rounds: list[Figures] = field(default_factory=list)
    # The reason why figures are missing.
    trouble: str = ""

    def runs(self) -> list[float]:
        """Return the main figure of each round."""
        return [next(iter(figures.values())) for figures in self.rounds]

    def medians(self) -> Figures:
        """Return the median of each figure."""
        names = dict.fromkeys(name for figures in self.rounds for name in figures)
        return {name: statistics.median([f[name] for f in self.rounds if name in f]) for name in names}

    def main(self) -> float | None:
        """Return the median that is compared; None without any."""
        return statistics.median(self.runs()) if self.rounds else None


@dataclass(slots=True)
class Standing:
    """All contestants in one workload."""

    workload: Workload
    scores: list[Score] = field(default_factory=list)

    def ranked(self) -> list[Score]:
        """Return the scores, best first; those without a figure at the end."""

        def rank(score: Score) -> tuple[bool, float]:
            main = score.main()
            sign = 1 if self.workload.less_is_better else -1
            return main is None, 0.0 if main is None else sign * main

        return sorted(self.scores, key=rank)

    def ours(self) -> float | None:
        return next((score.main() for score in self.scores if score.contestant == OURS), None)

    def ratio(self, score: Score) -> float | None:
        """Return the figure of `score` as a multiple of ours."""
        ours, main = self.ours(), score.main()
        return main / ours if ours and main is not None else None

    def as_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload.name,
            "title": self.workload.title,
            "unit": self.workload.unit,
            "less_is_better": self.workload.less_is_better,
            "scores": [
                {**asdict(score), "median": score.main(), "medians": score.medians(), "ratio_to_us": self.ratio(score)}
                for score in self.ranked()
            ],
        }
