"""``manage.py seed``: the first users of an empty installation, with passwords nobody has chosen."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import connection, transaction

from accounts.services import register_user
from wallet.services import top_up_mock

ADMIN_EMAIL = "admin@example.com"
DEMO_EMAIL = "demo@example.com"
DEMO_BALANCE = Decimal("100.00")
# Two first starts beside each other: one seeds, the other waits and finds it done. Any number nobody else uses.
_LOCK = 0x7A656E73


class Command(BaseCommand):
    help = (
        "On an empty installation creates a superuser and a demo user with balance, and prints their passwords once. "
        "Does nothing afterwards, and nothing in production: use createsuperuser there."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.ENVIRONMENT == "production":
            self.stderr.write("Production is not seeded; manage.py createsuperuser makes the first administrator.")
            return
        admin_password, demo_password = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        with transaction.atomic(durable=True):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            if get_user_model().objects.exists():
                return
            get_user_model().objects.create_superuser(email=ADMIN_EMAIL, username="admin", password=admin_password)
            demo = register_user(email=DEMO_EMAIL, username="demo", password=demo_password)
            if "mock" in settings.PAYMENT_PROVIDERS:
                top_up_mock(user=demo, amount=DEMO_BALANCE, reference="seed")
            # Before the commit: users whose passwords nobody has seen would be worse than none.
            self._print(admin_password, demo_password)

    def _print(self, admin_password: str, demo_password: str) -> None:
        rule = "=" * 64
        self.stdout.write(
            f"{rule}\n"
            "First start: these passwords are shown once, now.\n"
            f"  Admin      {ADMIN_EMAIL}  {admin_password}\n"
            f"  Demo user  {DEMO_EMAIL}   {demo_password}\n"
            f"{rule}"
        )
        self.stdout.flush()
