"""The commands of a tox line that run at the same time."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("side_by_side.py")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_commands_that_wait_for_each_other_both_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"

    answer = run("sh", "-c", f"mkfifo {pipe}; cat {pipe}", "--", "sh", "-c",
                 f"until [ -p {pipe} ]; do sleep 0.02; done; echo met > {pipe}; echo second")  # fmt: skip

    assert answer.returncode == 0
    assert answer.stdout.startswith("met\n")
    assert answer.stdout.endswith("\nsecond\n")


def test_one_that_fails_fails_all_and_cuts_no_other_short() -> None:
    first, second = (run(*words) for words in (
        ("sh", "-c", "exit 3", "--", "echo", "whole"), ("echo", "whole", "--", "sh", "-c", "exit 4"),
    ))  # fmt: skip

    assert (first.returncode, second.returncode) == (3, 4)
    assert "whole\n" in first.stdout
    assert "whole\n" in second.stdout
