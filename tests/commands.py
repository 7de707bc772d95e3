"""Running `pgcron` as people do: in a folder with their app, in an environment of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import pgcron_lite
from pgcron_lite.cli import pgcron
from pgcron_lite.cli.find_app import find_app
from pgcron_lite.worker.process import run_worker

ROOT = Path(__file__).parents[1]
# Where the package under test lies: with tox not in this checkout, but where it was installed and compiled.
PACKAGES = Path(pgcron_lite.__file__).parents[1]

Answer = subprocess.CompletedProcess[str]
Run = Callable[..., Answer]


def environment(url: str | None, **more: str) -> dict[str, str]:
    others = {"DATABASE_URL", "FLASK_APP", "DYNO"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PGCRON_") and k not in others}
    given = {} if url is None else {"DATABASE_URL": url}
    # An app that a test writes twice within a second has one date, and could be read as it was compiled the first time.
    return {**kept, "PYTHONPATH": str(PACKAGES), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", **given, **more}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "pgcron_lite", *map(str, words)]


def runner(folder: Path, request: pytest.FixtureRequest) -> Run:
    """Runs `pgcron` to its end in `folder`, on the database of the test if it has one.

    In this process, which is faster, but for workers, whose work outlives a call, and whenever the environment counts.
    """

    def run(*words: object, url: str | None = "", stdin: str = "", **more: str) -> Answer:
        if url == "":
            url = request.getfixturevalue("pg_url") if "pg_url" in request.fixturenames else None
        env = environment(url, **more)
        if not {"worker", "scheduler"} & set(words) and not more:
            return _in_this_process([str(word) for word in words], folder, env, stdin)
        return subprocess.run(
            command(*words), cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def _in_this_process(words: list[str], folder: Path, env: dict[str, str], stdin: str) -> Answer:
    out, err, code = io.StringIO(), io.StringIO(), None
    with _surroundings(folder, env) as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            pgcron.main(words, prog_name="pgcron")
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(words, int(code or 0), out.getvalue(), err.getvalue())


@contextmanager
def _surroundings(folder: Path, env: dict[str, str]) -> Iterator[pytest.MonkeyPatch]:
    """The folder and the environment of a process of its own, in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "environ", os.environ.copy())
        for name in set(os.environ) - set(env):
            del os.environ[name]
        os.environ.update(env)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)
        try:
            yield patch
        finally:
            for name in ("shop", "app"):
                sys.modules.pop(name, None)


def drain(folder: Path, url: str) -> None:
    """Run every due job of the app in `folder` and put its schedules in force, as `pgcron worker --drain` does.

    In this process, for tests that need what a worker leaves in the tables and not the worker.
    """
    with _surroundings(folder, environment(url)):
        app = find_app()
        try:
            assert run_worker(app, drain=True) == 0
        finally:
            app.close()


def objects(answer: Answer) -> list[dict[str, Any]]:
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def names(answer: Answer) -> list[str]:
    return [each["schedule"] for each in objects(answer)]
