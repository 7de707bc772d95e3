"""The contest: every workload in rounds, in each round every contestant once (A B C, A B C ...), one at a time.

So changes of the machine's speed affect all contestants, and the figures of a workload can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from .catalogue import Contestant
from .redis import NoRedis
from .results import Score, Standing
from .server import Server
from .table import number
from .trial import Failed, Trial
from .venvs import BuildFailed, Environment
from .workload import Size, Workload

Prepare = Callable[[Contestant], Environment]
Say = Callable[[str], None]


class Contest:
    """A contest on one server. A contestant that fails is excluded from the workload, with the reason."""

    def __init__(
        self, contestants: Sequence[Contestant], server: Server, prepare: Prepare, size: Size, rounds: int, say: Say
    ) -> None:
        self.versions: dict[str, dict[str, str]] = {}
        self._contestants = contestants
        self._server = server
        self._prepare = prepare
        self._size = size
        self._rounds = rounds
        self._say = say
        self._environments: dict[str, Environment] = {}
        self._templates: dict[str, tuple[str, dict[str, Any]]] = {}
        # Contestants that cannot take part at all, with the reasons.
        self._absent: dict[str, str] = {}

    def admit(self) -> None:
        """Prepare every contestant: its environment, and a database with its tables to be copied."""
        for contestant in self._contestants:
            try:
                self._environments[contestant.name] = self._prepare(contestant)
                self._set_up(contestant)
            except (BuildFailed, Failed, NoRedis) as error:
                self._absent[contestant.name] = f"not here: {error}"
                self._say(f"{contestant.name} is left out: {error}")

    def run(self, workload: Workload) -> Standing:
        """Measure all contestants that take part in `workload`."""
        scores = {c.name: Score(c.name) for c in self._contestants if c.takes_part_in(workload.name)}
        for name in scores.keys() & self._absent.keys():
            scores[name].trouble = self._absent[name]
        playing = [c for c in self._contestants if c.name in scores]
        for turn in range(self._rounds):
            for contestant in playing:
                score = scores[contestant.name]
                if not score.trouble:
                    self._measure(workload, contestant, score, turn)
        return Standing(workload, list(scores.values()))

    def _measure(self, workload: Workload, contestant: Contestant, score: Score, turn: int) -> None:
        began = time.monotonic()
        try:
            with self._trial(contestant) as trial:
                score.rounds.append(workload.measure(trial, self._size))
            said = f"{number(score.runs()[-1])} {workload.unit}"
        except (Failed, NoRedis) as error:
            said = score.trouble = str(error)
        took = time.monotonic() - began
        self._say(f"{workload.name:<17} {turn + 1}/{self._rounds}  {contestant.name:<18} {said}  ({took:.0f} s)")

    def _trial(self, contestant: Contestant) -> Trial:
        template, known = self._templates.get(contestant.family.name, ("template0", {}))
        return Trial(contestant, self._environments[contestant.name], self._server, template, known)

    def _set_up(self, contestant: Contestant) -> None:
        """Set up the tables once for each family: its contestants differ in how they run, not in their tables."""
        family = contestant.family.name
        if family in self._templates:
            return
        with self._trial(contestant) as trial:
            answer = trial.call("setup")
            self.versions[family] = answer.get("versions", {})
            if trial.database:
                trial.conn.close()
                self._templates[family] = (self._server.create(f"template_{family}", trial.database), answer)
            else:
                # A Redis is empty each time, and there is nothing to copy.
                self._templates[family] = ("", {})
