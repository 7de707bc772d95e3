"""The watchdog: ends a process that can run no Python, after its tracebacks, and leaves every other one alone."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import eventually, running

from pgcron_lite.worker import watchdog

HOLD = """
import ctypes, os, sys, threading, time
from pgcron_lite.worker.heartbeat import Guard
from pgcron_lite.worker.watchdog import Watchdog
watchdog = Watchdog(float(sys.argv[1]))
guard = Guard(lambda: (), pulse=watchdog.pulse)
guard.start()
def hold_the_lock():
    # Without using any processor time.
    ctypes.PyDLL(None).usleep(60_000_000)
print(os.getpid(), flush=True)
sys.stdin.readline()
if sys.argv[2] == "hold":
    hold_the_lock()
guard.stop()
watchdog.close()
print("went on", flush=True)
"""


def test_a_process_that_keeps_the_interpreter_lock_ends_with_the_tracebacks_of_its_threads() -> None:
    with running(HOLD, 1, "hold", stderr=subprocess.PIPE) as process:
        out, err = process.communicate("go\n", timeout=60)

    assert process.returncode == -signal.SIGABRT
    assert "went on" not in out
    assert "could run no Python" in err
    assert "in hold_the_lock" in err


def test_a_process_that_was_stopped_for_longer_than_the_limit_continues() -> None:
    with running(HOLD, 1, "end", stderr=subprocess.PIPE) as process, running(HOLD, 1, "hold") as measure:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)

        # Twice as long as it takes to end a process that hangs.
        measure.communicate("go\n", timeout=60)
        with running(HOLD, 1, "hold") as again:
            again.communicate("go\n", timeout=60)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate("go\n", timeout=60)

    assert (process.returncode, out, err) == (0, "went on\n", "")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors of others cannot be seen")
@pytest.mark.parametrize("same", [False, True], ids=["another program", "the same program"])
def test_a_program_that_replaced_the_process_is_left_alone_even_if_a_child_keeps_the_pipe(same: bool) -> None:
    program = """
    import os, sys, time
    if "again" not in sys.argv:
        from pgcron_lite.worker.watchdog import Watchdog
        watchdog = Watchdog(1.0)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()
        words = sys.orig_argv + ["again"] if sys.argv[1] == "True" else [
            sys.executable, "-c", "import sys; print('began', flush=True); sys.stdin.readline(); print('went on')"
        ]
        os.execv(sys.executable, words)
    print("began", flush=True)
    sys.stdin.readline()
    print("went on", flush=True)
    """
    with running(program, same, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            [watchdog_pid] = eventually(lambda: len(found := watchdogs_of(process.pid)) == 1 and found)
            eventually(lambda: os.getsid(watchdog_pid) == watchdog_pid)
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "began\n"

            # It has ended before the limit for the worker is over.
            eventually(lambda: not is_running(watchdog_pid))
            out, err = process.communicate("go\n", timeout=60)
        finally:
            os.kill(child, signal.SIGKILL)

    assert (process.returncode, out, err) == (0, "went on\n", "")


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_watchdog_ends_with_the_watch_and_with_its_process(how: str) -> None:
    with running(HOLD, 60, "end") as process:
        assert process.stdout is not None
        process.stdout.readline()
        # It forks once more before it starts.
        [pid] = eventually(lambda: len(found := watchdogs_of(process.pid)) == 1 and found)
        eventually(lambda: os.getsid(pid) == pid)
        if how == "killed":
            process.kill()
        process.communicate("go\n", timeout=60)

        eventually(lambda: not is_running(pid))


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="a process 1 needs a namespace")
def test_the_first_process_of_a_container_ends_too() -> None:
    # Default actions of signals do not end it.
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", HOLD, "1", "hold"]

    answer = subprocess.run(command, input="go\n", capture_output=True, text=True, timeout=60, check=False)

    if "unshare" in answer.stderr:
        pytest.skip(answer.stderr)
    assert answer.stdout.startswith("1\n")
    assert "went on" not in answer.stdout
    assert answer.returncode == signal.SIGABRT
    assert "in hold_the_lock" in answer.stderr


def test_a_descriptor_that_is_no_longer_the_watchdogs_is_not_written_to() -> None:
    program = """
    import os
    from pgcron_lite.worker.watchdog import Watchdog
    watchdog = Watchdog(60.0)
    os.close(watchdog._writer)
    reader, writer = os.pipe()
    other = os.dup2(writer, watchdog._writer)
    os.set_blocking(reader, False)
    watchdog.pulse()
    try:
        print(os.read(reader, 10))
    except BlockingIOError:
        print("nothing")
    """

    with running(program) as process:
        out, _ = process.communicate(timeout=60)

    assert out == "nothing\n"


def test_the_watchdog_is_not_a_child_that_a_task_could_wait_for() -> None:
    program = """
    import os
    from pgcron_lite.worker.watchdog import Watchdog
    watchdog = Watchdog(60.0)
    try:
        print(os.waitpid(-1, 0))
    except ChildProcessError:
        print("no children")
    watchdog.close()
    """

    with running(program) as process:
        out, _ = process.communicate(timeout=60)

    assert out == "no children\n"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count it")
def test_a_process_that_waits_for_a_processor_is_distinguished_from_one_that_hangs() -> None:
    spin = "while True: pass"
    cpu = {min(os.sched_getaffinity(0))}
    with running(spin) as one, running(spin) as other, running("input()") as idle:
        for each in (one, other):
            os.sched_setaffinity(each.pid, cpu)

        for each in (one, other):
            eventually(lambda pid=each.pid: watchdog.waited_for_processors(pid) > 0.5, within=60)

        assert watchdog.waited_for_processors(idle.pid) < watchdog.waited_for_processors(one.pid)


def watchdogs_of(pid: int) -> list[int]:
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = each.read_bytes().split(b"\0")
            # Compared by name: the program may import this checkout, and the test the installed package.
            if any(word.endswith(b"/watchdog.py") for word in words) and str(pid).encode() in words:
                found.append(int(each.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
