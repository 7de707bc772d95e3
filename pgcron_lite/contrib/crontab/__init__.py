"""Crontab import, and the task that runs shell commands."""
