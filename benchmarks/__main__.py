"""`python -m benchmarks`: the choice of workloads, contestants and rounds, and the output of the results."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from . import chart, machine, venvs
from .catalogue import Contestant, UnknownName, choose, contestants
from .contest import Contest
from .results import Standing
from .server import Server
from .table import table
from .workload import QUICK, Size
from .workloads import ALL

# Us, the bare limit and two neighbours.
QUICK_CONTESTANTS = ("pgcron", "raw", "pgqueuer", "procrastinate")


@click.command()
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--with", "names", metavar="NAME[,NAME]", help="Only these contestants.")
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="How often each is measured. [3; quick: 1]")
@click.option("--seconds", type=click.FloatRange(0.1), metavar="S",
              help="Approximate duration of the measurement of a rate. [3; quick: 1]")
@click.option("--quick", is_flag=True, help="A few workloads and contestants, small: less than two minutes.")
@click.option("--here", is_flag=True,
              help="Build no environments: run all in this interpreter, with what is installed in it.")
@click.option("--pg", "version", type=int, metavar="MAJOR", help="The PostgreSQL to start. [the newest there is]")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Where environments are kept. [$XDG_CACHE_HOME/pgcron_lite/benchmarks, or .venv-bench here]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Write results.json, results.txt and results.svg there.")
@click.option("--list", "lists", is_flag=True, help="List workloads and contestants, and exit.")
def main(
    workloads: tuple[str, ...],
    names: str | None,
    rounds: int | None,
    seconds: float | None,
    quick: bool,
    here: bool,
    version: int | None,
    cache: Path | None,
    out: Path | None,
    lists: bool,
) -> None:
    """Measure pgcron_lite beside its neighbours and beside the bare database: all WORKLOADs, or those named."""
    known = contestants()
    if lists:
        click.echo(_catalogue(known))
        return
    try:
        wanted = workloads or [w.name for w in ALL.values() if w.is_quick or not quick]
        chosen_workloads = choose("workload", wanted, ALL)
        chosen = choose("contestant", _names(names, known, quick), known)
    except UnknownName as error:
        raise click.UsageError(str(error)) from None
    size = QUICK if quick else Size()
    if seconds:
        size = dataclasses.replace(size, seconds=seconds)
    say = Progress()
    # On SIGTERM too, end the server and the workers that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def prepare(contestant: Contestant) -> venvs.Environment:
        if here:
            return venvs.here(contestant.family)
        return venvs.build(contestant.family, cache or venvs.default_cache(), say)

    place = Path("/var/tmp")
    with (
        # Not the usual folder for temporary files, which may be in memory: nothing is durable there.
        tempfile.TemporaryDirectory(prefix="pgcron-bench-", dir=place if place.is_dir() else None) as folder,
        Server(Path(folder) / "pg", version) as server,
    ):
        turns = rounds or (1 if quick else 3)
        about = {
            **machine.describe(), "postgres": server.settings(), "rounds": turns, "size": dataclasses.asdict(size),
        }  # fmt: skip
        click.echo(_lines(about) + "\n")
        contest = Contest(chosen, server, prepare, size, turns, say)
        contest.admit()
        standings = []
        for workload in chosen_workloads:
            standings.append(contest.run(workload))
            click.echo("\n" + table(standings[-1]) + "\n")
            if out:
                _write(out, {**about, "versions": contest.versions}, standings, known)


class Progress:
    """Lines on stderr, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        click.echo(f"{time.monotonic() - self._began:6.0f}  {line}", err=True)


def _names(names: str | None, known: dict[str, Contestant], quick: bool) -> list[str]:
    if names is not None:
        return [name.strip() for name in names.split(",")]
    return [name for name in known if not quick or name in QUICK_CONTESTANTS]


def _catalogue(known: dict[str, Contestant]) -> str:
    width = max(map(len, [*ALL, *known]))
    return "\n".join([
        "Workloads:", *(f"  {w.name:<{width}}  {w.title}" for w in ALL.values()),
        "Contestants:", *(f"  {c.name:<{width}}  {c.family.note}" for c in known.values()),
    ])  # fmt: skip


def _lines(about: dict[str, Any]) -> str:
    """Return the facts that apply to all figures, one on each line."""
    texts = {
        name: ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        for name, value in about.items()
    }
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def _write(out: Path, about: dict[str, Any], standings: list[Standing], known: dict[str, Contestant]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    results = {**about, "standings": [standing.as_json() for standing in standings]}
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    (out / "results.txt").write_text("\n\n".join([_lines(about), *map(table, standings)]) + "\n")
    (out / "results.svg").write_text(chart.chart(standings, about, {c.name: c.kind for c in known.values()}))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
