"""A connection to the simulated server on which statements are lost, delayed and repeated.

A statement arrives, is evaluated, commits, and its reply comes back. By the seed each may happen late, twice or
never, and the caller may have given up in between. What can happen is what a real server, pooler or network can do:

- A statement whose bytes arrive late is evaluated then, on the tables as they are then.
- A statement that commits late was evaluated in time. Until the commit its rows are locked: a claim passes over them,
  and any other write waits for them, `LOCK_SECONDS` at most.
- After an error the connection is a new one, and `generation` says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pgcron_lite.errors import DatabaseUnavailable, PgCronError
from pgcron_lite.job import Outcome, PipelineReply
from pgcron_lite.schedules import ticks

from .database import Blocked, Effects
from .world import Freezable, Pause, World

LOCK_SECONDS = 2.0
LOCK_POLL = 0.1
# Verbs whose effects the server can evaluate in time and commit late. The tables of time cannot be held back.
HELD = {
    "claim", "claim_suspect", "settle", "insert", "insert_again", "insert_unless_ended", "insert_where_free", "reap",
    "beat", "register", "forget",
}  # fmt: skip
# Answered without asking the server.
LOCAL = {"describe", "shrink", "close", "now", "start_over"}


@dataclass(slots=True)
class Fate:
    """What happens to one statement. Times are seconds from its sending; None is never."""

    name: str = "ok"
    arrives: float | None = 0.001
    # Seconds between evaluation and commit.
    commits: float = 0.0
    replies: bool = True
    # When the caller is told that the connection broke, whatever the server does.
    breaks: float | None = None
    # When the same bytes arrive again.
    again: float | None = None


class Connection:
    """The store as one process sees it over one connection. Verbs of the store are attributes, as in the store."""

    rings = True
    schema = "simulated"

    def __init__(
        self, world: World, name: str, owner: Freezable, *, patience: float, on_effects: Callable[[Effects], None]
    ) -> None:
        self.name = name
        self.busy_seconds = 0.0
        # Tokens of claims whose caller still waits for the reply.
        self.asking: list[Any] = []
        self._world = world
        self._owner = owner
        self._patience = patience
        self._on_effects = on_effects
        self._generation = 1
        self._era = world.era

    def __getattr__(self, verb: str) -> Any:
        target = getattr(self._world.database, verb)
        if verb.startswith("_") or verb in LOCAL or not callable(target):
            return target
        return partial(self._ask, verb)

    @property
    def generation(self) -> int:
        return self._generation

    def ring(self) -> None:
        """Wake the workers. Never raises; `World` decides who hears it."""
        if not self._is_away:
            self._world.database.ring()

    def cut(self) -> None:
        """The guard is modelled by `patience`."""

    def start_over(self) -> None:
        """Every claim looks at everything."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        """As PostgreSQL's: what ends in one statement, and what goes back in another behind it."""
        settled: set[int] = set()
        for part in _parts(outcomes):
            settled |= self._ask("settle", part)
        return settled

    @contextmanager
    def settle_and_claim(
        self, outcomes: Sequence[Outcome], worker: Any, claim: Any, *of: Any
    ) -> Iterator[PipelineReply]:
        """Settle and claim at the same time, on a connection each."""
        reply = PipelineReply()
        ends, again = _halves(outcomes)
        asked = self._send("claim", (worker, claim, *of), {})
        writing = self._send("settle", (ends,), {}) if ends else None
        yield reply
        jobs = self._answer(asked)
        reply.settled = set(self._answer(writing)) if writing is not None else set()
        if again:
            reply.settled |= self._ask("settle", again)
        reply.count, reply.jobs = len(jobs), lambda: jobs

    def plan(self, decide: Any, name: str | None = None, **options: Any) -> Any:
        """The planner decides between two statements of one transaction, so what arrives late was decided before."""
        return self._ask("plan", decide, name, **options)

    # One statement

    def _ask(self, verb: str, *args: Any, **options: Any) -> Any:
        return self._answer(self._send(verb, args, options))

    def _send(self, verb: str, args: tuple[Any, ...], options: dict[str, Any]) -> Statement:
        if self._era != self._world.era:
            self._reconnect()
        statement = Statement(self, verb, args, options, self._fate(verb))
        statement.send()
        return statement

    def _answer(self, statement: Statement) -> Any:
        world = self._world
        token = statement.args[1] if statement.verb in ("claim", "claim_suspect") else None
        self.asking.append(token)
        try:
            deadline = statement.sent_at + self._patience
            if not world.wait(deadline - world.now, self._owner, statement.reply):
                statement.give_up()
                world.say(self.name, "%s: the guard cuts the connection after %g s", statement, self._patience)
                self._reconnect()
                raise DatabaseUnavailable("the guard has cut the connection")
        finally:
            self.asking.remove(token)
        if isinstance(statement.answer, DatabaseUnavailable) and statement.broke:
            self._reconnect()
        if isinstance(statement.answer, BaseException):
            raise statement.answer
        return statement.answer

    def _reconnect(self) -> None:
        self._generation += 1
        self._era = self._world.era

    @property
    def _is_away(self) -> bool:
        return self._world.now < self._world.away_until

    def _fate(self, verb: str) -> Fate:
        world, random = self._world, self._world.random
        soon = random.expovariate(2000.0)
        fate = Fate(arrives=soon)
        if self._is_away:
            return Fate("no server", arrives=None, breaks=0.001)
        if not world.is_stormy or random.random() >= world.storm.chance:
            return fate
        if not world.of_statements:
            return fate
        name = random.choice(world.of_statements)
        if name == "commits_late" and verb not in HELD:
            return fate
        fate.name = name
        # Short enough to come between two turns, long enough to outlast the guard, or the lease.
        span = random.choice((random.uniform(0.01, 1.0), random.uniform(1.0, 19.0), random.uniform(20.5, 70.0)))
        if name == "refused":
            fate.arrives, fate.breaks = None, 0.002
        elif name == "lost":
            fate.replies, fate.breaks = False, soon + 0.002
        elif name == "silent":
            fate.arrives, fate.replies = random.choice((soon, None)), False
        elif name == "late":
            fate.arrives, fate.breaks = span, random.choice((None, 0.002))
        elif name == "commits_late":
            fate.commits, fate.breaks = span, random.choice((None, soon + 0.002))
        elif name == "twice":
            fate.again = span
        else:
            fate.arrives = span
        world.trouble(max(fate.arrives or 0.0, fate.commits, fate.again or 0.0, self._patience))
        return fate


class Statement:
    """One statement on its way to the server and back."""

    def __init__(
        self, connection: Connection, verb: str, args: tuple[Any, ...], options: dict[str, Any], fate: Fate
    ) -> None:
        self.verb = verb
        self.args = args
        self.reply = Pause()
        self.answer: Any = None
        # Is the connection gone, rather than the statement refused?
        self.broke = False
        self._link = connection
        self._world = connection._world
        self._options = options
        self._fate = fate
        self.sent_at = self._world.now
        self._era = self._world.era
        self._blocked_since: float | None = None
        self._has_given_up = False

    def __str__(self) -> str:
        return f"{self.verb}({_shown(self._world, self.args)})"

    def send(self) -> None:
        world, fate = self._world, self._fate
        if fate.name != "ok":
            world.say(self._link.name, "%s meets: %s", self, _worded(fate))
        if self.verb == "plan" and (fate.name in ("late", "twice")):
            self._decide_now()
        if fate.arrives is not None:
            self._deliver(fate.arrives)
        if fate.again is not None:
            self._deliver(fate.again)
        if fate.breaks is not None:
            world.after(fate.breaks, self._break)

    def give_up(self) -> None:
        """The caller has stopped waiting."""
        self._has_given_up = True

    def _deliver(self, seconds: float) -> None:
        self._world.on_their_way += 1
        self._world.after(seconds, self._arrive)

    def _arrive(self) -> None:
        world = self._world
        if self._era != world.era:
            world.on_their_way -= 1
            return self._break()
        try:
            answer, effects = world.database.execute(self.verb, self._link.name, self.args, self._options)
        except Blocked:
            return self._wait_for_lock()
        except PgCronError as error:
            world.on_their_way -= 1
            world.say("server", "%s of %s is refused: %s", self, self._link.name, error)
            return self._reply(error)
        if self._fate.commits and effects.can_wait:
            world.database.hold(effects)
            world.after(self._fate.commits, lambda: self._commit(answer, effects))
            return
        self._committed(answer, effects)

    def _wait_for_lock(self) -> None:
        world = self._world
        since = world.now if self._blocked_since is None else self._blocked_since
        self._blocked_since = since
        if world.now - since < LOCK_SECONDS:
            world.after(LOCK_POLL, self._arrive)
            return
        world.on_their_way -= 1
        self._blocked_since = None
        self._reply(DatabaseUnavailable("canceling statement due to lock timeout"))

    def _commit(self, answer: Any, effects: Effects) -> None:
        world = self._world
        if self._era != world.era:
            world.database.roll_back(effects)
            world.on_their_way -= 1
            return self._break()
        world.database.commit(effects)
        self._committed(answer, effects)

    def _committed(self, answer: Any, effects: Effects) -> None:
        world = self._world
        world.on_their_way -= 1
        if world.trace is not None and (effects.jobs or self._fate.name != "ok"):
            world.say("server", "%s of %s%s", self, self._link.name, _changes(effects))
        self._link._on_effects(effects)
        if self._fate.replies:
            self._reply(answer)

    def _reply(self, answer: Any) -> None:
        if self.reply.is_over or self._has_given_up:
            return
        self.answer = answer
        self.reply.end()

    def _break(self) -> None:
        self.broke = True
        self._reply(DatabaseUnavailable(f"the connection broke ({self._fate.name})"))

    def _decide_now(self) -> None:
        """Take down what the planner decides now; it is written when the bytes arrive."""
        decide, name, *rest = self.args
        moves: dict[str, ticks.Move] = {}

        def look(entry: ticks.Entry, now: Any) -> ticks.Move:
            moves[entry.name] = decide(entry, now)
            return ticks.Move(entry.name, -1, entry.last_tick, None)

        self._world.database.plan(look, name, **self._options)
        nothing = partial(ticks.Move, revision=-1, plan_at=None)

        def decided(entry: ticks.Entry, now: Any) -> ticks.Move:
            return moves.get(entry.name) or nothing(name=entry.name, last_tick=entry.last_tick)

        self.args = (decided, name, *rest)


def _halves(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Those that end their job, and those after which it runs again."""
    return [o for o in outcomes if o.state != "queued"], [o for o in outcomes if o.state == "queued"]


def _parts(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    return [part for part in _halves(outcomes) if part]


def _worded(fate: Fate) -> str:
    words = [fate.name]
    if fate.arrives is None:
        words.append("never arrives")
    elif fate.arrives > 0.01:
        words.append(f"arrives after {fate.arrives:.3f} s")
    if fate.commits:
        words.append(f"commits after {fate.commits:.3f} s")
    if not fate.replies:
        words.append("no reply")
    if fate.breaks is not None:
        words.append("the connection breaks at once")
    if fate.again is not None:
        words.append(f"arrives again after {fate.again:.3f} s")
    return ", ".join(words)


def _shown(world: World, args: Sequence[Any]) -> str:
    shown = []
    for arg in args:
        if isinstance(arg, uuid.UUID):
            shown.append(world.name(arg, "id-"))
        elif isinstance(arg, list) and arg and isinstance(arg[0], Outcome):
            shown.append(", ".join(f"#{o.id} {world.name(o.claim, 'id-')} {o.state}" for o in arg))
        elif isinstance(arg, (int, list)) and not isinstance(arg, bool):
            shown.append(str(arg) if not isinstance(arg, list) or all(isinstance(n, int) for n in arg) else "…")
    return ", ".join(shown)


def _changes(effects: Effects) -> str:
    words = []
    for change in effects.jobs[:8]:
        before = "-" if change.before is None else change.before.state
        after = "-" if change.after is None else change.after.state
        words.append(f"#{change.job_id} {before}→{after}")
    return ": " + ", ".join(words) if words else ": nothing changed"
