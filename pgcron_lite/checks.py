"""Checks of values that tasks, calls, schedules and commands have in common. Each returns the value, or raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from . import job as bounds
from .errors import OptionError
from .hints import near_miss
from .job import State
from .serialization.json_codec import short

STATES: tuple[State, ...] = get_args(State)


def written_name(value: object, option: str = "name") -> str:
    """Return `value` if it is a valid explicit name of a task."""
    if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable() or value != value.strip():
        raise OptionError(f"{option}={value!r}: expected 1 to 200 printable characters, such as 'mail.send'")
    if value.split(".")[0] == "__main__":
        raise OptionError(f"{option}={value!r}: __main__ is another module in each process; leave it out of the name")
    return value


def queue_name(value: object) -> str:
    """Return `value` if it is a valid name of a queue."""
    if not isinstance(value, str) or not value or len(value) > 100 or not value.isprintable() or value == "*":
        raise OptionError(f"queue={value!r}: expected a name of 1 to 100 printable characters (* is for workers)")
    if "," in value or value != value.strip():
        raise OptionError(f"queue={value!r}: a queue's name has no comma and no spaces around it")
    return value


def priority_number(value: object) -> int:
    """Return `value` if it is a valid priority."""
    lowest, highest = bounds.LOWEST_PRIORITY, bounds.HIGHEST_PRIORITY
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise OptionError(
            f"priority={value!r}: expected a whole number from {lowest} to {highest}; higher runs earlier, 0 is usual"
        )
    return value


def tag_names(value: Sequence[str]) -> tuple[str, ...]:
    """Return the tags in `value`."""
    if not isinstance(value, list | tuple) or not all(isinstance(t, str) and t and t.isprintable() for t in value):
        raise OptionError(f"tags={value!r}: expected a list of words, such as tags=['import']")
    if len(value) > bounds.MAX_TAGS or any(len(t) > bounds.MAX_TAG for t in value):
        raise OptionError(
            f"tags={short(value)}: expected up to {bounds.MAX_TAGS} words of up to {bounds.MAX_TAG} characters"
            " each"
        )
    return tuple(value)


def header_texts(value: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of the headers in `value`."""
    if not isinstance(value, Mapping):
        raise OptionError(f"headers={value!r}: expected a dict of texts")
    for name, text in value.items():
        if not (is_storable(name) and is_storable(text)):
            raise OptionError(f"headers: {name!r}: {text!r}: expected text for both, without NUL")
    # A character takes up to four bytes, and an entry has some overhead.
    if sum(4 * len(name) + 4 * len(text) + 16 for name, text in value.items()) > bounds.MAX_HEADERS_SIZE:
        raise OptionError(
            f"headers: {len(value):,} headers with {sum(map(len, [*value, *value.values()])):,} characters in total are"
            f" too large; up to {bounds.MAX_HEADERS_SIZE // 1024} kB are stored with a job. Pass the data as an"
            " argument."
        )
    return dict(value)


def checked_id(job_id: object, where: str) -> int:
    """Return `job_id` if it is a job's id."""
    if not isinstance(job_id, int) or isinstance(job_id, bool):
        raise OptionError(f"app.{where}({job_id!r}): expected the job's id as a whole number, which is handle.id")
    return job_id


def is_storable(value: object) -> bool:
    """Return True for a text that PostgreSQL can store: without NUL and without lone surrogates."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def checked_text(value: str | None, option: str) -> str | None:
    """Return `value` if it is a text that a stored one can be compared with."""
    if value is not None and not is_storable(value):
        raise OptionError(f"{option}={value!r}: expected a text, such as {option}='mail'")
    return value


def checked_states(state: State | Sequence[State] | None) -> tuple[State, ...] | None:
    """Return the states that `state` names; None for any."""
    if state is None:
        return None
    states = tuple(state) if isinstance(state, list | tuple | set | frozenset) else (state,)
    for each in states:
        if each not in STATES:
            raise OptionError(
                f"state={each!r}: expected one of {', '.join(STATES)}{near_miss(str(each), STATES)}"
            )
    return states
