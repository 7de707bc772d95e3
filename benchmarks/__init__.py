"""Measures pgcron_lite beside its neighbours and beside the bare database: `python -m benchmarks --help`."""
