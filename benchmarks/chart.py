"""Chart of standings: an SVG with a panel of bars for each workload, two panels in a row."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .catalogue import Kind
from .results import Standing
from .table import number

COLOURS: dict[Kind, str] = {"ours": "#2563eb", "neighbour": "#94a3b8", "limit": "url(#hatch)"}
MEANINGS: dict[Kind, str] = {
    "ours": "pgcron_lite",
    "neighbour": "neighbours",
    "limit": "bare SQL, a bound without leases, retries, logs",
}
INK, FAINT, PAPER = "#0f172a", "#64748b", "#ffffff"

MARGIN, GAP, HEAD = 32, 40, 116
PANEL, NAME, VALUE = 460, 150, 62
LINE, BAR, TITLE = 24, 15, 46


@dataclass(frozen=True, slots=True)
class Bar:
    """A contestant's line in a panel. Without a value its `trouble` is shown."""

    name: str
    kind: Kind
    value: float | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        return TITLE + LINE * len(self.bars)


def chart(standings: Sequence[Standing], about: Mapping[str, Any], kinds: Mapping[str, Kind]) -> str:
    """Return the SVG of all standings. `kinds` has the kind of each contestant."""
    panels = [panel for standing in standings for panel in panels_of(standing, kinds)]
    rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    width = 2 * MARGIN + 2 * PANEL + GAP
    height = HEAD + sum(max(p.height for p in row) + GAP for row in rows) + MARGIN - GAP
    svg = ET.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}", "width": str(width),
        "height": str(height), "font-family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
    })  # fmt: skip
    _hatch(svg)
    ET.SubElement(svg, "rect", {"width": str(width), "height": str(height), "fill": PAPER})
    _head(svg, about, {bar.kind for panel in panels for bar in panel.bars})
    top = HEAD
    for row in rows:
        for column, panel in enumerate(row):
            _panel(svg, panel, MARGIN + column * (PANEL + GAP), top)
        top += max(panel.height for panel in row) + GAP
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def panels_of(standing: Standing, kinds: Mapping[str, Kind]) -> list[Panel]:
    """Return a panel for each figure of the workload that the chart shows, with the best contestant on top."""
    workload, panels = standing.workload, []
    for figure, title in workload.panels or (("", workload.title),):
        bars = []
        for score in standing.scores:
            value = score.medians().get(figure) if figure else score.main()
            bars.append(Bar(score.contestant, kinds.get(score.contestant, "neighbour"), value, score.trouble))
        sign = 1 if workload.less_is_better else -1
        bars.sort(key=lambda bar: (bar.value is None, sign * (bar.value or 0.0)))
        unit = figure or workload.unit
        panels.append(Panel(title, unit + (", less is better" if workload.less_is_better else ""), bars))
    return panels


def _head(svg: ET.Element, about: Mapping[str, Any], kinds: set[Kind]) -> None:
    _text(svg, MARGIN, 42, "Background jobs in PostgreSQL, measured side by side", size=22, weight="700")
    postgres = about.get("postgres", {})
    facts = [
        f"PostgreSQL {postgres.get('server_version', '?')}, fsync {postgres.get('fsync', '?')},"
        f" synchronous_commit {postgres.get('synchronous_commit', '?')}",
        f"{about.get('processors', '?')} processors shared by clients, workers and server",
        f"medians of {about['rounds']}" if about.get("rounds", 1) > 1 else "one round",
        str(about.get("date", ""))[:10],
    ]
    _text(svg, MARGIN, 63, " · ".join(facts), size=12, fill=FAINT)
    x = MARGIN
    for kind, meaning in MEANINGS.items():
        if kind in kinds:
            _rect(svg, x, 74, 11, 11, COLOURS[kind])
            _text(svg, x + 17, 84, meaning, size=12, fill=FAINT)
            x += 36 + 7 * len(meaning)


def _panel(svg: ET.Element, panel: Panel, left: int, top: int) -> None:
    _text(svg, left, top + 14, panel.title, size=14, weight="600")
    _text(svg, left, top + 31, panel.unit, size=11, fill=FAINT)
    most = max((bar.value for bar in panel.bars if bar.value), default=1.0)
    room = PANEL - NAME - VALUE
    for index, bar in enumerate(panel.bars):
        y = top + TITLE + index * LINE
        weight, ink = ("700", COLOURS["ours"]) if bar.kind == "ours" else ("400", INK)
        _text(svg, left + NAME - 10, y + 12, bar.name, size=12, anchor="end", weight=weight, fill=ink)
        if bar.value is None:
            _text(svg, left + NAME, y + 12, _short(bar.trouble), size=11, fill=FAINT)
            continue
        length = max(1.5, room * bar.value / most)
        _rect(svg, left + NAME, y, length, BAR, COLOURS[bar.kind])
        _text(svg, left + NAME + length + 6, y + 12, number(bar.value), size=12, weight=weight)


def _short(text: str, most: int = 46) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _hatch(svg: ET.Element) -> None:
    pattern = ET.SubElement(ET.SubElement(svg, "defs"), "pattern", {
        "id": "hatch", "width": "6", "height": "6", "patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)",
    })  # fmt: skip
    ET.SubElement(pattern, "rect", {"width": "6", "height": "6", "fill": "#f1f5f9"})
    ET.SubElement(pattern, "rect", {"width": "2", "height": "6", "fill": "#94a3b8"})


def _rect(svg: ET.Element, x: float, y: float, width: float, height: float, fill: str) -> None:
    ET.SubElement(svg, "rect", {
        "x": f"{x:g}", "y": f"{y:g}", "width": f"{width:.1f}", "height": f"{height:g}", "rx": "2", "fill": fill,
    })  # fmt: skip


def _text(
    svg: ET.Element, x: float, y: float, text: str, *, size: int, weight: str = "400", fill: str = INK,
    anchor: str = "start",
) -> None:  # fmt: skip
    element = ET.SubElement(svg, "text", {
        "x": f"{x:.1f}", "y": f"{y:g}", "font-size": str(size), "font-weight": weight, "fill": fill,
        "text-anchor": anchor,
    })  # fmt: skip
    element.text = text
