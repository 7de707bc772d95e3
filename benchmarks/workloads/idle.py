"""Cost of an idle worker, and the time until a new worker runs its first job."""

from __future__ import annotations

import statistics
import subprocess
import time

from .. import processes
from ..trial import Failed, Trial
from ..workload import Figures, Size, Workload

# Pools fill, caches warm up, and the statistics of the server are up to a second late.
SETTLE_SECONDS = 3.0


def idle(trial: Trial, size: Size) -> Figures:
    """Return statements and transactions per second, CPU, connections and memory of a worker that has run a job."""
    with trial.requests() as requests:
        trial.call("fill", count=1, task="noop")
        worker = trial.start("work", task="noop", slots=None)
        trial.until(lambda: trial.marked().bodies >= 1, "its first job has run")
        time.sleep(SETTLE_SECONDS)
        requests.restart()
        cpu, began = trial.worker_cpu_seconds(), time.monotonic()
        time.sleep(size.idle_seconds)
        took = time.monotonic() - began
        used, counted = trial.worker_cpu_seconds() - cpu, requests.read()
    worker.must_live()
    stats = trial.workers()
    memory = [processes.memory(stat.pid) for stat in stats]
    figures = {
        **{f"{name}/s": number / took for name, number in counted.items()},
        "CPU %": used / took * 100,
        "connections": trial.connections(),
        "RSS MB": sum(m.resident for m in memory),
        "USS MB": sum(m.own for m in memory),
        "processes": len(stats),
        "threads": sum(stat.threads for stat in stats),
    }
    worker.stop()
    return figures


def start(trial: Trial, size: Size) -> Figures:
    """Return the seconds from starting a worker to the body of a waiting job, and the import time of a producer."""
    took = []
    for _ in range(size.starts):
        trial.clear_marks()
        trial.call("fill", count=1, task="noop")
        worker = trial.start("work", task="noop", slots=None)
        trial.until(lambda: trial.marked().bodies >= 1, "its first job has run")
        took.append(trial.marked().first - worker.began)
        trial.until(lambda: trial.remaining() == 0, "its tables say that the job is finished")
        worker.stop()
    figures = {"start s": statistics.median(took)}
    python, imports = trial.environment.python(), trial.contestant.family.imports
    if python and imports:
        bare, whole = (_runs(python, code, size.starts) for code in ("pass", f"import {imports}"))
        figures["import ms"] = (whole - bare) * 1000
    return figures


def _runs(python: str, code: str, times: int) -> float:
    took = []
    for _ in range(times + 1):
        began = time.monotonic()
        answer = subprocess.run([python, "-P", "-c", code], check=False, capture_output=True, text=True)
        took.append(time.monotonic() - began)
        if answer.returncode != 0:
            raise Failed(answer.stderr.strip().splitlines()[-1])
    # The first one may have to compile.
    return statistics.median(took[1:])


WORKLOADS = (
    Workload("idle", "Cost of an idle worker", "statements/s", idle, less_is_better=True, is_quick=True,
             panels=(("statements/s", "Statements of an idle worker"), ("RSS MB", "Memory of an idle worker"))),
    Workload("start", "From starting a worker to its first job", "s", start, less_is_better=True),
)  # fmt: skip
