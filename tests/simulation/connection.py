"""Connection to the simulated server on which statements are lost, delayed and repeated.

A statement arrives, is evaluated and committed, and its reply is returned. Depending on the seed, each step may happen
late, twice or never, and the caller may have stopped waiting. Only faults of real servers, poolers and networks occur:

- A statement whose bytes arrive late is evaluated at that time, on the tables as they are then.
- A statement that commits late was evaluated in time. Until the commit its rows are locked: a claim skips them, and any
  other write waits for them, at most `LOCK_SECONDS`.
- After an error the connection is replaced, and `generation` changes.
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
# Methods that the server can evaluate in time and commit late. Changes of the schedule tables cannot be delayed.
HELD = {
    "claim", "claim_suspect", "settle", "insert", "insert_again", "insert_unless_ended", "insert_where_free", "reap",
    "beat", "register", "forget",
}  # fmt: skip
# Methods that send no statement to the server.
LOCAL = {"describe", "shrink", "close", "now", "start_over"}


@dataclass(slots=True)
class Delivery:
    """The faults of one statement. Times are seconds after it was sent; None means never."""

    name: str = "ok"
    arrives: float | None = 0.001
    # Seconds between evaluation and commit.
    commits: float = 0.0
    replies: bool = True
    # When the caller gets the error that the connection broke, whatever the server does.
    breaks: float | None = None
    # When the same bytes arrive a second time.
    again: float | None = None


class Connection:
    """The store over one connection of one process. It has the methods of the store."""

    rings = True
    schema = "simulated"

    def __init__(
        self, world: World, name: str, owner: Freezable, *, patience: float, on_effects: Callable[[Effects], None]
    ) -> None:
        self.name = name
        self.busy_seconds = 0.0
        # Tokens of the claims whose callers wait for a reply.
        self.asking: list[Any] = []
        self._world = world
        self._owner = owner
        self._patience = patience
        self._on_effects = on_effects
        self._generation = 1
        self._era = world.era

    def __getattr__(self, method: str) -> Any:
        target = getattr(self._world.database, method)
        if method.startswith("_") or method in LOCAL or not callable(target):
            return target
        return partial(self._ask, method)

    @property
    def generation(self) -> int:
        return self._generation

    def ring(self) -> None:
        """Wake the workers. Never raises. `Bell` may drop the notification."""
        if not self._is_away:
            self._world.database.ring()

    def cut(self) -> None:
        """Do nothing: the guard is modelled by `patience`."""

    def start_over(self) -> None:
        """Do nothing: every claim searches the whole queue."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Settle in two statements, as the PostgreSQL store does: ended jobs first, then jobs that are queued again."""
        settled: set[int] = set()
        for part in _by_statement(outcomes):
            settled |= self._ask("settle", part)
        return settled

    @contextmanager
    def settle_and_claim(
        self, outcomes: Sequence[Outcome], worker: Any, claim: Any, *of: Any
    ) -> Iterator[PipelineReply]:
        """Settle and claim at the same time, on two connections."""
        reply = PipelineReply()
        ends, again = _final_and_queued(outcomes)
        asked = self._send("claim", (worker, claim, *of), {})
        writing = self._send("settle", (ends,), {}) if ends else None
        yield reply
        jobs = self._answer(asked)
        reply.settled = set(self._answer(writing)) if writing is not None else set()
        if again:
            reply.settled |= self._ask("settle", again)
        reply.count, reply.jobs = len(jobs), lambda: jobs

    def plan(self, decide: Any, name: str | None = None, **options: Any) -> Any:
        """Plan schedules. As in PostgreSQL, a write that arrives late contains decisions that were made earlier."""
        return self._ask("plan", decide, name, **options)

    # One statement

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        return self._answer(self._send(method, args, options))

    def _send(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Statement:
        if self._era != self._world.era:
            self._reconnect()
        statement = Statement(self, method, args, options, self._delivery(method))
        statement.send()
        return statement

    def _answer(self, statement: Statement) -> Any:
        world = self._world
        token = statement.args[1] if statement.method in ("claim", "claim_suspect") else None
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

    def _delivery(self, method: str) -> Delivery:
        world, random = self._world, self._world.random
        soon = random.expovariate(2000.0)
        delivery = Delivery(arrives=soon)
        if self._is_away:
            return Delivery("no server", arrives=None, breaks=0.001)
        if not world.is_stormy or random.random() >= world.storm.chance:
            return delivery
        if not world.of_statements:
            return delivery
        name = random.choice(world.of_statements)
        if name == "commits_late" and method not in HELD:
            return delivery
        delivery.name = name
        # Shorter than a turn of the loop, longer than the guard's limit, or longer than the lease.
        span = random.choice((random.uniform(0.01, 1.0), random.uniform(1.0, 19.0), random.uniform(20.5, 70.0)))
        if name == "refused":
            delivery.arrives, delivery.breaks = None, 0.002
        elif name == "lost":
            delivery.replies, delivery.breaks = False, soon + 0.002
        elif name == "silent":
            delivery.arrives, delivery.replies = random.choice((soon, None)), False
        elif name == "late":
            delivery.arrives, delivery.breaks = span, random.choice((None, 0.002))
        elif name == "commits_late":
            delivery.commits, delivery.breaks = span, random.choice((None, soon + 0.002))
        elif name == "twice":
            delivery.again = span
        else:
            delivery.arrives = span
        world.trouble(max(delivery.arrives or 0.0, delivery.commits, delivery.again or 0.0, self._patience))
        return delivery


class Statement:
    """One statement, from sending it to its reply."""

    def __init__(
        self, connection: Connection, method: str, args: tuple[Any, ...], options: dict[str, Any], delivery: Delivery
    ) -> None:
        self.method = method
        self.args = args
        self.reply = Pause()
        self.answer: Any = None
        # True if the connection broke, False if the server refused the statement.
        self.broke = False
        self._connection = connection
        self._world = connection._world
        self._options = options
        self._delivery = delivery
        self.sent_at = self._world.now
        self._era = self._world.era
        self._blocked_since: float | None = None
        self._has_given_up = False

    def __str__(self) -> str:
        return f"{self.method}({_describe_args(self._world, self.args)})"

    def send(self) -> None:
        world, delivery = self._world, self._delivery
        if delivery.name != "ok":
            world.say(self._connection.name, "%s meets: %s", self, _describe_delivery(delivery))
        if self.method == "plan" and (delivery.name in ("late", "twice")):
            self._decide_now()
        if delivery.arrives is not None:
            self._deliver(delivery.arrives)
        if delivery.again is not None:
            self._deliver(delivery.again)
        if delivery.breaks is not None:
            world.after(delivery.breaks, self._break)

    def give_up(self) -> None:
        """Record that the caller has stopped waiting."""
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
            answer, effects = world.database.execute(self.method, self._connection.name, self.args, self._options)
        except Blocked:
            return self._wait_for_lock()
        except PgCronError as error:
            world.on_their_way -= 1
            world.say("server", "%s of %s is refused: %s", self, self._connection.name, error)
            return self._reply(error)
        if self._delivery.commits and effects.can_wait:
            world.database.hold(effects)
            world.after(self._delivery.commits, lambda: self._commit(answer, effects))
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
        if world.trace is not None and (effects.jobs or self._delivery.name != "ok"):
            world.say("server", "%s of %s%s", self, self._connection.name, _describe_changes(effects))
        self._connection._on_effects(effects)
        if self._delivery.replies:
            self._reply(answer)

    def _reply(self, answer: Any) -> None:
        if self.reply.is_over or self._has_given_up:
            return
        self.answer = answer
        self.reply.end()

    def _break(self) -> None:
        self.broke = True
        self._reply(DatabaseUnavailable(f"the connection broke ({self._delivery.name})"))

    def _decide_now(self) -> None:
        """Decide now, and write the decision when the statement arrives."""
        decide, name, *rest = self.args
        moves: dict[str, ticks.Move] = {}

        def decide_now(entry: ticks.Entry, now: Any) -> ticks.Move:
            moves[entry.name] = decide(entry, now)
            return ticks.Move(entry.name, -1, entry.last_tick, None)

        self._world.database.plan(decide_now, name, **self._options)
        nothing = partial(ticks.Move, revision=-1, plan_at=None)

        def decided(entry: ticks.Entry, now: Any) -> ticks.Move:
            return moves.get(entry.name) or nothing(name=entry.name, last_tick=entry.last_tick)

        self.args = (decided, name, *rest)


def _final_and_queued(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Split outcomes into those that end their job, and those after which it runs again."""
    return [o for o in outcomes if o.state != "queued"], [o for o in outcomes if o.state == "queued"]


def _by_statement(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    return [part for part in _final_and_queued(outcomes) if part]


def _describe_delivery(delivery: Delivery) -> str:
    words = [delivery.name]
    if delivery.arrives is None:
        words.append("never arrives")
    elif delivery.arrives > 0.01:
        words.append(f"arrives after {delivery.arrives:.3f} s")
    if delivery.commits:
        words.append(f"commits after {delivery.commits:.3f} s")
    if not delivery.replies:
        words.append("no reply")
    if delivery.breaks is not None:
        words.append("the connection breaks at once")
    if delivery.again is not None:
        words.append(f"arrives again after {delivery.again:.3f} s")
    return ", ".join(words)


def _describe_args(world: World, args: Sequence[Any]) -> str:
    shown = []
    for arg in args:
        if isinstance(arg, uuid.UUID):
            shown.append(world.name(arg, "id-"))
        elif isinstance(arg, list) and arg and isinstance(arg[0], Outcome):
            shown.append(", ".join(f"#{o.id} {world.name(o.claim, 'id-')} {o.state}" for o in arg))
        elif isinstance(arg, (int, list)) and not isinstance(arg, bool):
            shown.append(str(arg) if not isinstance(arg, list) or all(isinstance(n, int) for n in arg) else "…")
    return ", ".join(shown)


def _describe_changes(effects: Effects) -> str:
    words = []
    for change in effects.jobs[:8]:
        before = "-" if change.before is None else change.before.state
        after = "-" if change.after is None else change.after.state
        words.append(f"#{change.job_id} {before}→{after}")
    return ": " + ", ".join(words) if words else ": nothing changed"
