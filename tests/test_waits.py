"""The order of all that bounds a wait for the server: see the comment in `pgcron_lite/pg/bounded_connection.py`."""

import re
from pathlib import Path

from pgcron_lite.pg import bounded_connection, enqueue, listen, lookup
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.url import LIVELINESS, parse_url
from pgcron_lite.worker import claiming, process

# After this, web servers and routers end a request.
REQUEST = 30.0


def test_the_bounds_of_a_wait_are_in_the_order_they_depend_on() -> None:
    assert bounded_connection.LOCK_SECONDS < enqueue.SILENT_SECONDS
    assert lookup.LOOKUP_SECONDS + bounded_connection.HOST_SECONDS <= bounded_connection.OPENING_SECONDS
    assert int(LIVELINESS["connect_timeout"]) <= bounded_connection.OPENING_SECONDS < listen.DIAL_SECONDS
    assert 2 * enqueue.SILENT_SECONDS + bounded_connection.OPENING_SECONDS <= REQUEST
    assert (
        listen.DIAL_SECONDS < process.HANG_SECONDS < bounded_connection.STATEMENT_SECONDS <= claiming.UNCERTAIN_SECONDS
    )


def test_a_link_has_the_bounds_of_the_order() -> None:
    link = Connection(parse_url("postgresql://host/shop", application="test"), "pgcron")

    assert (link.lock_seconds, link.statement_seconds) == (
        bounded_connection.LOCK_SECONDS,
        bounded_connection.STATEMENT_SECONDS,
    )
    assert bounded_connection.ANSWER_MARGIN > 0


def test_the_comment_has_the_values_of_the_code() -> None:
    modules = (enqueue, listen, lookup, process, claiming, bounded_connection)
    there = {name: value for module in modules for name, value in vars(module).items()}
    written = re.findall(
        r"^#     ([A-Z]+_SECONDS) +([0-9]+)  ", Path(bounded_connection.__file__).read_text(), re.MULTILINE
    )

    assert len(written) == 8
    assert {name: float(value) for name, value in written} == {name: there[name] for name, _ in written}
