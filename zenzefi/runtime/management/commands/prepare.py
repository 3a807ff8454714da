"""``manage.py prepare``: bring the database to the state this version needs."""

from __future__ import annotations

from typing import Any

import psycopg
from django.conf import settings
from django.core.management import call_command, get_commands
from django.core.management.base import BaseCommand

# Any number nobody else locks.
PREPARATION_LOCK = 0x7A656E7A


class Command(BaseCommand):
    help = "Migrate and seed the database; of several that start at once, one works and the others wait."

    def handle(self, *args: Any, **options: Any) -> None:
        with psycopg.connect(settings.DATABASE_URL, autocommit=True) as guard:
            guard.execute("SELECT pg_advisory_lock(%s)", [PREPARATION_LOCK])
            call_command("migrate", interactive=False, verbosity=0)
            if "seed" in get_commands():
                call_command("seed")
