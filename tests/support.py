"""What tests share that is not a fixture: waiting for facts, and running Python beside us."""

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
    """The first true answer of `fact`; fails the test when there is none `within` that many seconds."""
    __tracebackhide__ = True
    # Not time.monotonic(), which freezegun stops: a deadline that never comes is a test that hangs.
    begun = time.clock_gettime(time.CLOCK_MONOTONIC)
    while not (answer := fact()):
        waited = time.clock_gettime(time.CLOCK_MONOTONIC) - begun
        if waited > within:
            pytest.fail(f"still not true after {within:g} s: {_words(fact)}; it last answered {answer!r}")
        # Most facts are statements, and six tests that wait side by side would keep a processor busy with asking.
        time.sleep(0.02 if waited < 1 else 0.05)
    return answer


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def python(program: str, *args: object, interpreter: str = sys.executable, **how: Any) -> str:
    """What `program` prints, run to its end in a Python of its own; if it fails, so does the test."""
    __tracebackhide__ = True
    how = {"capture_output": True, "text": True, "check": False, **_surely(how)}
    answer = subprocess.run(_command(interpreter, program, args), **how)
    if answer.returncode != 0:
        pytest.fail(f"the program ended with {answer.returncode}:\n{answer.stdout}{answer.stderr}")
    return answer.stdout


@contextlib.contextmanager
def running(program: str, *args: object, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """`program` in a Python of its own, with its output to read; killed at the end if it still runs."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(_command(sys.executable, program, args), **pipes, **_surely(how)) as process:
        try:
            yield process
        finally:
            process.kill()


def _command(interpreter: str, program: str, args: tuple[object, ...]) -> list[str]:
    return [interpreter, "-c", textwrap.dedent(program), *map(str, args)]


def _surely(how: Mapping[str, Any]) -> dict[str, Any]:
    """The environment in which a child imports the very package we test, wherever it starts."""
    env = {**os.environ, **how.get("env", {})}
    paths = [str(Path(pgcron_lite.__file__).parents[1]), env.get("PYTHONPATH", "")]
    return {**how, "env": {**env, "PYTHONPATH": os.pathsep.join(filter(None, paths))}}


def _words(fact: Callable[[], object]) -> str:
    code = getattr(fact, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else repr(fact)
