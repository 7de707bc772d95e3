"""Encoding of jobs for a binary COPY, where the server parses no text and no value needs quoting.

The columns are in the order of `COLUMNS`. The encoding of fields that many jobs share is cached.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from ..errors import DatabaseRefused
from ..job import NewJob
from .rows import as_json

COLUMNS = "id, task, queue, priority, max_attempts, max_crashes, nonce, execute_after, args, headers, tags"

BLOCK = 1000

_BEGIN = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
_END = struct.pack("!h", -1)
# The number of columns and the first column; an int2; an int8. Each value is preceded by its length.
_count_and_id = struct.Struct("!hiq").pack
_int2 = struct.Struct("!ih").pack
_int8 = struct.Struct("!iq").pack
_length = struct.Struct("!i").pack
_FIELDS = COLUMNS.count(",") + 1
_TEXT_TYPE = 25
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def records(
    ids: Sequence[int], jobs: Sequence[NewJob], nonce: int, now: datetime, encoding: str
) -> Iterator[bytes]:
    """Yield the data for `jobs` with their `ids`, in blocks. `encoding` is that of texts on the connection."""
    due_now, key = _timestamp(now), _int8(8, nonce)
    yield _BEGIN
    for start in range(0, len(jobs), BLOCK):
        block: list[bytes] = []
        for job_id, job in zip(ids[start : start + BLOCK], jobs[start : start + BLOCK], strict=True):
            args = job.args.encode(encoding)
            block += (
                _count_and_id(_FIELDS, 8, job_id),
                _shared(job.task, job.queue, job.priority, job.max_attempts, job.max_crashes, key, encoding),
                due_now if job.execute_after is None else _timestamp(_due(job.execute_after, now)),
                _length(len(args)),
                args,
                _headers(job.headers, encoding) if job.headers else _NO_HEADERS,
                _tags(job.tags, encoding) if job.tags else _NO_TAGS,
            )
        yield b"".join(block)
    yield _END


@lru_cache(maxsize=64)
def _shared(task: str, queue: str, priority: int, attempts: int, crashes: int, key: bytes, encoding: str) -> bytes:
    try:
        numbers = [_int2(2, number) for number in (priority, attempts, crashes)]
    except struct.error as error:
        raise DatabaseRefused(f"{priority=}, max_attempts={attempts}, max_crashes={crashes}: {error}") from None
    return b"".join([_text(task, encoding), _text(queue, encoding), *numbers, key])


def _text(text: str, encoding: str) -> bytes:
    content = text.encode(encoding)
    return _length(len(content)) + content


def _headers(headers: Mapping[str, str], encoding: str) -> bytes:
    content = as_json(dict(headers)).encode(encoding)
    # The 1 is the version of the format.
    return _length(1 + len(content)) + b"\1" + content


def _tags(tags: Sequence[str], encoding: str) -> bytes:
    # The header of an array: one dimension, no nulls, the type, the length, and the lower bound.
    content = struct.pack("!iiIii", 1, 0, _TEXT_TYPE, len(tags), 1) + b"".join(_text(tag, encoding) for tag in tags)
    return _length(len(content)) + content


def _timestamp(when: datetime) -> bytes:
    return _int8(8, (when - _EPOCH) // _MICROSECOND)


def _due(due: datetime | timedelta, now: datetime) -> datetime:
    try:
        return due if isinstance(due, datetime) else now + due
    except OverflowError:
        raise DatabaseRefused(f"there is no valid date {due} from now") from None


_NO_HEADERS = _headers({}, "ascii")
_NO_TAGS = _length(12) + struct.pack("!iiI", 0, 0, _TEXT_TYPE)
