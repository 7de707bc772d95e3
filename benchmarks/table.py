"""Standings as text tables."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Standing


def table(standing: Standing) -> str:
    """Return a line for each contestant, best first: the median, its ratio to ours, every run, the other figures."""
    ranked = standing.ranked()
    others = list(dict.fromkeys(name for score in ranked for name in list(score.medians())[1:]))
    unit = standing.workload.unit
    rows = [["", f"median {unit}", "ratio to us", "runs", *others]]
    for score in ranked:
        main, medians = score.main(), score.medians()
        if main is None:
            rows.append([score.contestant, "-"])
            continue
        ratio = standing.ratio(score)
        rows.append([
            score.contestant,
            number(main),
            "-" if ratio is None else f"{ratio:.2f}",
            " ".join(map(number, score.runs())),
            *(number(medians[name]) if name in medians else "-" for name in others),
        ])  # fmt: skip
    less = ", less is better" if standing.workload.less_is_better else ""
    troubles = [f"{score.contestant}: {score.trouble}" for score in ranked if score.trouble]
    return "\n".join([f"{standing.workload.title} [{standing.workload.name}{less}]", *_aligned(rows), *troubles])


def number(value: float) -> str:
    """Return `value` with at most three significant digits after rounding, and all digits from 1,000 on."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows with names aligned to the left and figures to the right."""
    width = max(len(row) for row in rows)
    full = [[*row, *[""] * (width - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in full) for i in range(width)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in full
    ]
    return [f"  {line}".rstrip() for line in lines]
