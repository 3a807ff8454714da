"""Runs the platform on a bare machine: its own PostgreSQL and Redis, and the supervisor behind ``make run``."""
