"""All workloads, in the order in which they are measured."""

from ..workload import Workload
from . import deep, drain, enqueue, idle, latency, passing, schedules

ALL: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        *enqueue.WORKLOADS, *drain.WORKLOADS, *latency.WORKLOADS, *idle.WORKLOADS, *deep.WORKLOADS,
        *passing.WORKLOADS, *schedules.WORKLOADS,
    )
}  # fmt: skip
