"""``manage.py up``: the whole platform with one command."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from zenzefi.runtime.supervisor import Supervisor


class Command(BaseCommand):
    help = "Start PostgreSQL and Redis if needed, migrate, seed, and serve until Ctrl-C."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        Supervisor().run()
