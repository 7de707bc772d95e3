"""Entry point of `pgcron`. Only this module patches gevent: that must precede the import of anything that waits."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence


def main() -> None:
    """Patch gevent if the command requires it, then run the command."""
    if wants_gevent(sys.argv[1:], os.environ):
        from gevent import monkey

        monkey.patch_all()
    from .cli import main as run

    run()


def wants_gevent(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Return True for a worker that runs its jobs in greenlets. Called before the command line can be parsed."""
    command = _command(words)
    if command == "dev-worker" or command == "worker":
        said = environ.get("PGCRON_GEVENT", "").lower() in ("1", "true", "yes", "on", "t", "y")
        return "--gevent" in words or said
    return False


def _command(words: Sequence[str]) -> str | None:
    """Return the first word that is neither an option of `pgcron` itself nor the value of one."""
    is_value = False
    for word in words:
        if is_value or word.startswith("-"):
            is_value = not is_value and word in ("-A", "--app")
        else:
            return word
    return None


if __name__ == "__main__":
    main()
