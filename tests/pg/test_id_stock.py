"""The stock of ids of a process: a silent server does not make threads wait for one another's limits."""

import threading

import pytest

from pgcron_lite.errors import DatabaseUnavailable
from pgcron_lite.pg import enqueue


def test_a_thread_does_not_wait_for_the_limits_of_all_threads_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueue, "SILENT_SECONDS", 0.1)
    stock = enqueue.IdStock(lambda: 1)
    asked, answer = threading.Event(), threading.Event()

    def silent(count: int) -> list[int]:
        asked.set()
        answer.wait(10)
        return list(range(count))

    first = threading.Thread(target=stock.take, args=(1, silent))
    first.start()
    try:
        assert asked.wait(10)
        with pytest.raises(DatabaseUnavailable, match="no answer"):
            stock.take(1, lambda count: list(range(count)))
    finally:
        answer.set()
        first.join()
