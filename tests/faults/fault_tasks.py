"""The app that the fault tests run in worker processes of their own: `python fault_tasks.py '{"slots": 4}'`.

What a task does it notes in a journal, a file and not a table, so that it can be read whatever has become of the
database and of the process.
"""

import atexit
import builtins
import concurrent.futures
import contextlib
import ctypes
import gc
import json
import logging
import os
import random
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgcron_lite import PgCron, Snooze, current_job
from pgcron_lite.worker.exits import leave
from pgcron_lite.worker.heartbeat import Heartbeat

app = PgCron("faults")
app.enable_shell()


@atexit.register
def note_the_exit() -> None:
    """What Sentry, OpenTelemetry and coverage do: something that is lost if exit handlers do not run."""
    if seconds := os.environ.get("FAULTS_EXIT_SECONDS"):
        time.sleep(float(seconds))
    if path := os.environ.get("FAULTS_EXITS"):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
    if os.environ.get("FAULTS_EXIT_HANGS"):
        time.sleep(3600)


def note(what: str) -> None:
    """One line of the journal, written at once and whole."""
    entry = {
        "job": current_job.id,
        "attempt": current_job.attempt,
        "pid": os.getpid(),
        "at": time.clock_gettime(time.CLOCK_MONOTONIC),
        "what": what,
    }
    line = json.dumps(entry) + "\n"
    journal = os.open(os.environ["FAULTS_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, line.encode())
    os.close(journal)


@contextlib.contextmanager
def noted():
    note("begin")
    yield
    note("end")


def journal_lines() -> list[str]:
    journal = Path(os.environ["FAULTS_JOURNAL"])
    return journal.read_text().splitlines() if journal.exists() else []


@app.task
def nap(seconds: float = 0.0) -> str:
    """Work that waits."""
    with noted():
        time.sleep(seconds)
    return "slept"


@app.task
def pass_on() -> int:
    """Enqueue another job on the app's own connection."""
    with noted():
        return nap.delay().id


@app.task
def wait_for_ever() -> None:
    """Read from a socket that never says anything, without a timeout."""
    with noted():
        ours, _ = socket.socketpair()
        ours.recv(1)


@app.task
def leak() -> None:
    """Take memory until there is none."""
    kept = []
    with noted():
        while True:
            kept.append(bytes(8 << 20))


@app.task
def spin(seconds: float) -> None:
    """Work that computes, in Python."""
    with noted():
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sum(range(1000))


@app.task
def hold_the_gil(seconds: float) -> None:
    """A call of C that lets no other thread of Python run. Run alone, which is after a rescue, it is quick."""
    with noted():
        ctypes.PyDLL(None).usleep(1 if current_job.job.alone else int(seconds * 1_000_000))


@app.task
def backtrack(letters: int) -> None:
    """The regular expression that never ends; `re` keeps the GIL."""
    with noted():
        re.match(r"(a+)+$", "a" * letters + "b")


@app.task
def die(how: str = "exit") -> None:
    """Take the whole process along."""
    note("begin")
    if how == "exit":
        os._exit(70)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "out of memory":
        # What the kernel's OOM killer does, without making the machine run out of memory.
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
def leave_quietly() -> None:
    """End the process with the exit code of a process that is done."""
    note("begin")
    os._exit(0)


@app.task
def become_another_program() -> None:
    """Replace the process by one that is no worker, at the first attempt."""
    begun = sum(entry["job"] == current_job.id for entry in map(json.loads, journal_lines()))
    note("begin")
    if not begun:
        os.execv("/bin/sleep", ["sleep", "600"])


@app.task
def nap_and_leave(seconds: float) -> None:
    """As `leave_quietly`, a little later."""
    note("begin")
    time.sleep(seconds)
    os._exit(0)


@app.task
def run_a_worker() -> int:
    """What a task may not do."""
    return app.run_worker(drain=True)


@app.task
def ignore_signals() -> None:
    """Ignore the signals where Python does not see it."""
    libc = ctypes.CDLL(None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        libc.signal(int(number), ctypes.c_void_p(1))
    if threading.current_thread() is threading.main_thread() or "gevent" in sys.modules:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])


@app.task
def close_the_streams() -> None:
    """Close what the others print to."""
    sys.stdout.close()
    sys.stderr.close()


@app.task
def speak(text: str) -> None:
    """Print."""
    print(text)
    print(text, file=sys.stderr)


executor = concurrent.futures.ThreadPoolExecutor(2)


@app.task
def use_an_executor() -> int:
    """Leave threads behind that end when the interpreter exits, and not before."""
    return executor.submit(int, 1).result()


@app.task
def die_at_first(deaths: int, code: int = 70) -> str:
    """End the first processes that run this with exit code `code`, then return."""
    note("begin")
    begun = [e for e in map(json.loads, Path(os.environ["FAULTS_JOURNAL"]).read_text().splitlines())
             if e["job"] == current_job.id and e["what"] == "begin"]
    if len(begun) <= deaths:
        os._exit(code)
    return "well"


@app.task(max_attempts=1)
def once(seconds: float) -> None:
    """Work that may not fail even once."""
    with noted():
        time.sleep(seconds)


@app.task
def doze(times: int) -> None:
    """Put itself off a few times."""
    if random.random() < 0.5 and times:
        raise Snooze("0.1s")


@app.task
def answer(what: str) -> object:
    """Work that is done, with an answer that nobody can keep."""
    note("begin")
    return {
        "huge": "x" * 1_000_000,
        "nan": float("nan"),
        "object": object(),
        "nul": "a\0b",
        "surrogate": "\ud800",
    }[what]


@app.task
def throw(what: str) -> None:
    """Raise what is not an `Exception`."""
    if what == "GreenletExit":
        from greenlet import GreenletExit

        raise GreenletExit
    raise getattr(builtins, what)


class Untold(Exception):
    """An error whose text is an ambush."""

    def __str__(self) -> str:
        what = self.args[0]
        if what == "str raises":
            raise ValueError("no text")
        if what == "str exits":
            sys.exit(3)
        return Liar("lies")


class Liar(str):
    """Text that cannot be formatted, cut or looked at."""

    def __format__(self, how: str) -> str:
        raise RuntimeError("not to be formatted")

    def __len__(self) -> int:
        raise RuntimeError("not to be measured")


@app.task
def err(what: str) -> None:
    """Raise an error that is hard to write down."""
    if what in ("str raises", "str exits", "str lies"):
        raise Untold(what)
    if what == "deep recursion":
        return err(what)
    if what == "loop":
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        raise one
    if what == "deep chain":
        error = ValueError("the first")
        for number in range(3000):
            following = ValueError(number)
            following.__cause__, error = error, following
        raise error
    raise ValueError({"nul": "a\0b", "surrogate": "\ud800", "huge text": "x" * 50_000_000}[what])


@app.task
def forget_a_timeout(seconds: float) -> None:
    """Set a deadline and never cancel it."""
    import gevent

    gevent.Timeout(seconds).start()


@app.task
def kill_greenlets() -> None:
    """What a test helper or a careless clean-up does: kill every greenlet there is."""
    import gc

    import gevent

    for each in gc.get_objects():
        if isinstance(each, gevent.Greenlet) and each is not gevent.getcurrent():
            each.kill(block=False)


@app.task
def close_descriptors() -> None:
    """Close every descriptor of the process but the standard three."""
    note("begin")
    os.closerange(3, 256)


@app.task
def change_the_process(folder: str) -> None:
    """Leave the process different from how it was found."""
    os.chdir(folder)
    os.umask(0o777)
    os.environ["TZ"] = "Pacific/Chatham"
    time.tzset()
    if threading.current_thread() is threading.main_thread() or "gevent" in sys.modules:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    note("end")


@app.task
def leave_a_thread_behind() -> None:
    """Start something that never ends, and is no daemon."""
    threading.Thread(target=threading.Event().wait, name="left-behind", daemon=False).start()


def plain(name: str, module: str = "os") -> Callable[..., Any]:
    """A function as it is without gevent, whose `os.waitpid` now and then misses the end of the first child."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(sys.modules[module], name)


@app.task
def fork(how: str) -> str:
    """Fork, and let the child end by `how`; ends when the child has."""
    reader, writer = os.pipe()
    child = plain("fork")()
    if child == 0:
        if how == "close":
            app.close()
            os._exit(0)
        if how == "sys.exit":
            sys.exit(3)
        if how == "raise":
            raise RuntimeError("in the child")
        if how == "wait for SIGTERM":
            os.write(writer, b"!")
            while True:
                time.sleep(60)
        os._exit(0)
    if how == "wait for SIGTERM":
        os.read(reader, 1)
        os.kill(child, signal.SIGTERM)
    _, status = plain("waitpid")(child, 0)
    note("end")
    return str(status)


@app.task
def stop_the_heart() -> None:
    """Raise an exception in the heartbeat's thread that nobody foresaw."""
    heartbeat = next(o for o in gc.get_objects() if isinstance(o, Heartbeat))
    heartbeat._report = lambda: 1 / 0
    with noted():
        time.sleep(1.0)


@app.task
def throw_into_all_threads() -> None:
    """What a library for timeouts does to one thread: to all but this and the main one."""
    spared = {plain("get_ident", "_thread")(), threading.main_thread().ident}
    # Not those of `threading`, which under gevent are greenlets.
    for each in sys._current_frames():
        if each not in spared:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(each), ctypes.py_object(TimeoutError))


@app.on("job_done")
def dawdle(job) -> None:
    """A receiver that holds the loop up, as long as the job's header says."""
    time.sleep(float(job.headers.get("dawdle", "0")))


@app.on("worker_started")
def allow_no_more_threads() -> None:
    if os.environ.get("FAULTS_THREADS") == "slots":
        threading.stack_size(ENORMOUS)


# More than any address space has, so that no thread can be started.
ENORMOUS = 1 << 46

if __name__ == "__main__":
    if os.environ.get("FAULTS_THREADS") == "none":
        threading.stack_size(ENORMOUS)
    if space := int(os.environ.get("FAULTS_ADDRESS_SPACE", "0")):
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    if most := int(os.environ.get("FAULTS_OPEN_FILES", "0")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + 200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for _ in range(most):
            os.open(os.devnull, os.O_RDONLY)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # As `pgcron worker` does.
    leave(app.run_worker(**json.loads(sys.argv[1])))
