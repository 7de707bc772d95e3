"""The only sleep of a worker: what ends it, and the end of a process whose descriptors were closed."""

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support import running

from pgcron_lite.worker.wake import Wake


@pytest.fixture
def wake() -> Iterator[Wake]:
    wake = Wake()
    yield wake
    wake.close()


def slept(wake: Wake, seconds: float, sockets: tuple[int, ...] = ()) -> float:
    began = time.monotonic()
    wake.wait(seconds, sockets)
    return time.monotonic() - began


def test_a_sleep_lasts_as_long_as_requested(wake: Wake) -> None:
    assert slept(wake, 0.05) >= 0.05


def test_a_sleep_of_zero_seconds_returns_at_once(wake: Wake) -> None:
    assert slept(wake, 0.0) < 5


def test_a_ring_before_the_sleep_ends_it(wake: Wake) -> None:
    wake.ring()

    assert slept(wake, 60) < 5


def test_a_ring_from_another_thread_ends_the_sleep(wake: Wake) -> None:
    threading.Timer(0.05, wake.ring).start()

    assert slept(wake, 60) < 5


def test_many_rings_end_one_sleep_and_not_the_next(wake: Wake) -> None:
    for _ in range(100_000):
        wake.ring()
    wake.wait(60)

    assert slept(wake, 0.05) >= 0.05


def test_a_readable_socket_ends_the_sleep(wake: Wake) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"notice")

        assert slept(wake, 60, (ours.fileno(),)) < 5


@pytest.mark.row(34)
def test_descriptors_beyond_a_thousand_can_be_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip(f"this system allows {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        wake = Wake()
        wake.ring()

        assert slept(wake, 60) < 5

        wake.close()
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_ring_after_close_is_ignored_and_written_nowhere() -> None:
    wake = Wake()
    wake.close()
    reader, writer = os.pipe()  # gets the same numbers
    os.set_blocking(reader, False)

    wake.ring()

    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


@pytest.mark.row(25)
@pytest.mark.parametrize("then", ["pass", "a, b, c, d = *os.pipe(), *os.pipe()"], ids=["closed", "taken over"])
def test_a_process_whose_descriptors_were_closed_ends_at_once(then: str) -> None:
    program = f"""
    import os
    from pgcron_lite.worker.wake import Wake
    wake = Wake()
    os.closerange(3, 64)
    {then}
    wake.wait(0.1)
    print("went on")
    """

    with running(program, stderr=-1) as process:
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (70, "")
    assert "closed descriptors that were not its own" in err
