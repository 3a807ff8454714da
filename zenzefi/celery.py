"""The Celery application. Each app keeps its tasks, and their schedule, in its own ``tasks.py``."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from celery import Celery
from celery.signals import setup_logging
from django.apps import apps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")

app = Celery("zenzefi")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def _keep_django_logging(**_: Any) -> None:
    """Connecting this signal keeps Celery from replacing the project's LOGGING."""


@app.on_after_finalize.connect
def _collect_schedules(sender: Celery, **_: Any) -> None:
    """Merge the ``SCHEDULE`` dictionaries of every app's ``tasks`` module into beat's schedule."""
    schedule: dict[str, Any] = {}
    for config in apps.get_app_configs():
        name = f"{config.name}.tasks"
        if find_spec(name) is not None:
            schedule.update(getattr(import_module(name), "SCHEDULE", {}))
    sender.conf.beat_schedule = schedule
