"""Benchmarks of pgcron_lite, its neighbours and the bare database: `python -m benchmarks --help`."""
