"""The test database: what the migrations put into it survives the flushes, and flushing is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core import serializers
from django.db import connection, transaction
from django.db.models.signals import post_migrate

#: Django's own, which it fills again itself.
_NOT_OURS = {"auth", "contenttypes", "sessions", "admin"}


class ReferenceData:
    """Every row that the migrations left behind, put back where a flush has emptied its table."""

    def __init__(self) -> None:
        models = [model for model in apps.get_models() if model._meta.app_label not in _NOT_OURS]
        rows = (row for model in models for row in model._default_manager.order_by("pk"))
        self._rows = serializers.serialize("json", rows)

    def restore(self, *, sender: Any, **_: Any) -> None:
        """Receive ``post_migrate``, which Django sends for each app after a flush; the first time puts all back."""
        if sender.label != "wallet":
            return
        filled: dict[Any, bool] = {}
        # In one transaction: foreign keys are checked at its end, so the order of the tables does not matter.
        with transaction.atomic():
            for row in serializers.deserialize("json", self._rows):
                model = type(row.object)
                if model not in filled:
                    filled[model] = model._default_manager.exists()
                if not filled[model]:
                    row.save()


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
        reference_data = ReferenceData()
    post_migrate.connect(reference_data.restore)
    yield
    post_migrate.disconnect(reference_data.restore)
