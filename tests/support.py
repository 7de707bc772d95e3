"""Helper functions of tests: waiting for a condition, and running Python programs."""

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

import pgcron_lite

T = TypeVar("T")


def eventually(fact: Callable[[], T], within: float = 10.0) -> T:
    """Call `fact` until its result is true, and return the result. Fail the test after `within` seconds."""
    __tracebackhide__ = True
    # Not time.monotonic(): freezegun stops it, the deadline would never be reached, and the test would hang.
    begun = time.clock_gettime(time.CLOCK_MONOTONIC)
    while not (answer := fact()):
        waited = time.clock_gettime(time.CLOCK_MONOTONIC) - begun
        if waited > within:
            pytest.fail(f"still not true after {within:g} s: {_location(fact)}; the last result was {answer!r}")
        # Most facts are SQL statements. Six tests that poll in parallel without a pause would keep a processor busy.
        time.sleep(0.02 if waited < 1 else 0.05)
    return answer


def free_port() -> int:
    """Return an unused port of the loopback address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def python(program: str, *args: object, interpreter: str = sys.executable, **how: Any) -> str:
    """Run `program` in a new Python process and return its output. Fail the test if the program fails."""
    __tracebackhide__ = True
    how = {"capture_output": True, "text": True, "check": False, **_with_package(how)}
    answer = subprocess.run(_command(interpreter, program, args), **how)
    if answer.returncode != 0:
        pytest.fail(f"the program ended with {answer.returncode}:\n{answer.stdout}{answer.stderr}")
    return answer.stdout


@contextlib.contextmanager
def running(program: str, *args: object, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `program` in a new Python process with a pipe for its output. Kill it at the end if it still runs."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(_command(sys.executable, program, args), **pipes, **_with_package(how)) as process:
        try:
            yield process
        finally:
            process.kill()


def _command(interpreter: str, program: str, args: tuple[object, ...]) -> list[str]:
    return [interpreter, "-c", textwrap.dedent(program), *map(str, args)]


def _with_package(how: Mapping[str, Any]) -> dict[str, Any]:
    """Add an environment in which the child imports the package under test, whatever its working directory."""
    env = {**os.environ, **how.get("env", {})}
    paths = [str(Path(pgcron_lite.__file__).parents[1]), env.get("PYTHONPATH", "")]
    return {**how, "env": {**env, "PYTHONPATH": os.pathsep.join(filter(None, paths))}}


def _location(fact: Callable[[], object]) -> str:
    code = getattr(fact, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else repr(fact)
