"""Schedules: their timing, the jobs they enqueue, and the outcome of each tick."""
