"""Commands that run at the same time: `python side_by_side.py ONE -- TWO -- THREE`.

One computes while another waits, which takes less time than one after the other. The output of the first is shown as
it comes, that of the others when they have ended. Fails if any of them fails.
"""

import itertools
import subprocess
import sys
import tempfile
from contextlib import ExitStack


def split(words: list[str]) -> list[list[str]]:
    """The words between the `--`."""
    return [[*group] for is_end, group in itertools.groupby(words, "--".__eq__) if not is_end]


def run(commands: list[list[str]]) -> int:
    """Run all, print what they say, and return the first exit code that is not 0."""
    first, *others = commands
    with ExitStack() as files:
        outputs = [files.enter_context(tempfile.TemporaryFile()) for _ in others]
        beside = [
            subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            for command, output in zip(others, outputs, strict=True)
        ]
        codes = [subprocess.run(first, check=False).returncode, *(process.wait() for process in beside)]
        for command, output in zip(others, outputs, strict=True):
            output.seek(0)
            print("\n$", *command, flush=True)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(run(split(sys.argv[1:])))
