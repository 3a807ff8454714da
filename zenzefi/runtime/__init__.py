"""Runs the platform on a bare machine: its own PostgreSQL and Redis, the supervisor of ``make run``."""
