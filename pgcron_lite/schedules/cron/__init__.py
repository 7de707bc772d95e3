"""Cron expressions: their parser, calendar and description."""
