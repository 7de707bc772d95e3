"""Description of the machine of a measurement."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pgcron_lite


def describe() -> dict[str, Any]:
    """Return the machine and the versions that are the same for all contestants."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "pgcron_lite": pgcron_lite.__version__,
        "processor": _first(Path("/proc/cpuinfo"), "model name"),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(_first(Path("/proc/meminfo"), "MemTotal").split()[0]) / 1024**2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "node": _node(),
    }


def _first(path: Path, name: str) -> str:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "unknown")


def _node() -> str | None:
    node = shutil.which("node")
    return node and subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
