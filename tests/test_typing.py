"""The types a user sees: what must pass `mypy --strict`, and what must not."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pgcron_lite

SAMPLES = Path(__file__).parent / "typing"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="needs mypy, which `tox -e types` has and the other lines need not"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[tuple[int, str]]]:
    """What mypy says about each sample: the number of the line, and the name of the error."""
    folder = tmp_path_factory.mktemp("mypy")
    package = Path(pgcron_lite.__file__).parents[1]
    run = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty",
            "--follow-imports=silent", "--config-file=", "--cache-dir", str(folder),
            *map(str, sorted(SAMPLES.glob("*.py"))),
        ],
        cwd=folder,
        # An installed package is found without a path, and mypy refuses to be given site-packages as one.
        env={**os.environ, "MYPYPATH": "" if "site-packages" in package.parts else str(package)},
        capture_output=True, text=True, check=False, timeout=300,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    assert not run.stderr, run.stderr
    lines = re.findall(r"^(.+)\.py:(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE)
    return {sample.stem: {(int(n), code) for name, n, code in lines if Path(name).stem == sample.stem}
            for sample in SAMPLES.glob("*.py")}


@pytest.mark.timeout(300)
def test_correct_programs_type_check(found):
    assert found["accepted"] == set()


@pytest.mark.timeout(300)
def test_wrong_programs_are_refused_where_they_are_wrong(found):
    lines = (SAMPLES / "refused.py").read_text("utf-8").splitlines()

    expected = {(n, m[1]) for n, line in enumerate(lines, 1) if (m := re.search(r"# refused: ([\w-]+)", line))}

    assert found["refused"] == expected
