"""Conversion of rows to values."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection, DataError
from psycopg.abc import Transformer as Reader
from psycopg.adapt import Transformer
from psycopg.pq import Format
from psycopg.pq.abc import PGresult

from ..job import Job, Outcome

# The values for times that Python cannot represent, such as infinity. One day within the limits of Python, so that they
# can be converted to any time zone.
FAR_PAST, FAR_FUTURE = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)

_TEXT, _TIMESTAMPTZ, _JSON, _JSONB = 25, 1184, 114, 3802

# Exceptions for values that cannot be decoded: a time out of range, text in another encoding, invalid JSON.
_UNREADABLE = (DataError, ValueError, OverflowError)

Row = Any
MakeRow = Callable[[Sequence[Any]], Row]


def rows_of(conn: Connection[Any], result: PGresult, make_row: MakeRow = tuple) -> Callable[[], list[Row]]:
    """Return a function that decodes the rows of `result`. It works even if `conn` is closed by then.

    A row that cannot be decoded has an attribute `flaw` with the reason, and does not affect the others.
    """
    reader = Transformer(conn)
    reader.set_pgresult(result)

    def rows() -> list[Row]:
        try:
            return reader.load_rows(0, result.ntuples, make_row)
        except _UNREADABLE:
            return [_read_row(reader, result, number, make_row) for number in range(result.ntuples)]

    return rows


def _read_row(reader: Reader, result: PGresult, number: int, make_row: MakeRow) -> Row:
    try:
        return reader.load_row(number, make_row)
    except _UNREADABLE:
        return _flawed_row(reader, result, number, make_row)


def _flawed_row(reader: Reader, result: PGresult, number: int, make_row: MakeRow) -> Row:
    """Return a row with the values that can be decoded, substitutes for the others, and the reasons in `flaw`."""
    values, flaws = [], []
    for column in range(result.nfields):
        data = result.get_value(number, column)
        oid, form = result.ftype(column), Format(result.fformat(column))
        try:
            values.append(None if data is None else reader.get_loader(oid, form).load(data))
        except _UNREADABLE as error:
            assert data is not None
            values.append(_substitute(oid, form, data))
            flaws.append(f"{(result.fname(column) or b'?').decode()}: {' '.join(str(error).split())}")
    plain = make_row(values)
    return type("FlawedRow", (type(plain),), {"flaw": "; ".join(flaws)})(*_constructor_args(plain, values))


def _constructor_args(plain: Row, values: Sequence[Any]) -> Sequence[Any]:
    # The constructor of a named tuple takes the values as separate arguments, that of a tuple takes one sequence.
    return values if hasattr(plain, "_fields") else [values]


def _substitute(oid: int, form: Format, data: bytes) -> Any:
    if oid == _TIMESTAMPTZ:
        if form == Format.BINARY:
            return FAR_PAST if data[0] & 0x80 else FAR_FUTURE
        return FAR_PAST if data.startswith(b"-") or data.endswith(b"BC") else FAR_FUTURE
    if oid == _TEXT:
        return bytes(data).decode("utf-8", "backslashreplace")
    return None


def as_job(row: Any) -> Job:
    """Return a job from a row with named columns."""
    return Job(
        id=row.id,
        task=row.task,
        queue=row.queue,
        priority=row.priority,
        state=row.state,
        args=row.args,
        headers=row.headers or {},
        tags=_flat(row.tags),
        execute_after=row.execute_after,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        crashes=row.crashes,
        max_crashes=row.max_crashes,
        alone=row.alone,
        claim=row.claim,
        worker=row.worker,
        created_at=row.created_at,
        claimed_at=row.claimed_at,
        errors=tuple(row.errors or ()),
        finished_at=getattr(row, "finished_at", None),
        result=getattr(row, "result", None),
        flaw=getattr(row, "flaw", None),
    )


def as_claimed(row: tuple[Any, ...], claim: uuid.UUID, worker: uuid.UUID) -> Job:
    """Return a job from a row of the claim, which leaves out what the caller knows, and has null for what is empty.

    Values are accessed by position, because this runs for every job, and by name it takes three times as long.
    """
    (job_id, task, queue, priority, args, headers, tags, execute_after, attempt, max_attempts, crashes, max_crashes,
     alone, created_at, claimed_at, errors, _) = row  # fmt: skip
    return Job(
        job_id, task, queue, priority, "running", args, headers or {}, _flat(tags) if tags else (), execute_after,
        attempt, max_attempts, crashes, max_crashes, alone, claim, worker, created_at, claimed_at,
        tuple(errors) if errors else (), None, None, getattr(row, "flaw", None),
    )  # fmt: skip


def _flat(tags: Sequence[Any] | None) -> tuple[str, ...]:
    """Return tags as a flat tuple, also from an array that contains arrays or nulls."""
    words: list[str] = []
    for tag in tags or ():
        if isinstance(tag, list):
            words += _flat(tag)
        elif tag is not None:
            words.append(tag)
    return tuple(words)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def error_text(outcome: Outcome) -> str | None:
    """Return the entry for the job's error history as JSON, or None."""
    return None if outcome.error is None else as_json(outcome.error)
