"""The test database: what the migrations put into it survives the flushes, and flushing is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.db.models.signals import post_migrate

#: Data migrations, in their order, each with the model it fills.
REFERENCE_DATA = [
    ("wallet.migrations.0002_system_accounts", "wallet.Account"),
    ("wallet.migrations.0004_currencies", "wallet.Currency"),
    ("tokens.migrations.0002_prices_and_scopes", "tokens.Scope"),
    ("proxy.migrations.0002_certificate_rules", "proxy.ScopeRule"),
    ("bundles.migrations.0002_first_bundles", "bundles.Bundle"),
]


def _restore_reference_data(*, sender: Any, **_: Any) -> None:
    """Run the data migrations again where a flush emptied their tables; Django sends this after both."""
    if sender.label != "wallet":
        return
    for module, model in REFERENCE_DATA:
        if not apps.get_model(model)._default_manager.exists():
            import_module(module).create(apps, SimpleNamespace(connection=connection))


def guard_names() -> list[str]:
    """Return the database names of the triggers that refuse TRUNCATE."""
    with connection.cursor() as cursor:
        # Bit 5 of tgtype is TRUNCATE.
        cursor.execute("SELECT tgname FROM pg_trigger WHERE tgtype & 32 <> 0 AND NOT tgisinternal")
        return [name for (name,) in cursor.fetchall()]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Let transactional tests flush by TRUNCATE, which the append-only tables refuse.

    Only this database is told so, through the setting by which the triggers can be ignored.
    """
    with django_db_blocker.unblock():
        names = ",".join(guard_names())
        assert names
        with connection.cursor() as cursor:
            database = connection.ops.quote_name(connection.settings_dict["NAME"])
            cursor.execute(f"ALTER DATABASE {database} SET pgtrigger.ignore = '{{{names}}}'")
        # The setting reaches new connections only.
        connection.close()
        connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's wrapper has it
    post_migrate.connect(_restore_reference_data)
    yield
    post_migrate.disconnect(_restore_reference_data)
