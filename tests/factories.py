"""Objects for tests, stored through the same managers as the real ones."""

from __future__ import annotations

from typing import Any

import factory
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password

#: The password of every user made here; good enough for the validators.
PASSWORD = "correct horse battery"


class UserFactory(factory.django.DjangoModelFactory[Any]):
    class Meta:
        model = get_user_model()

    email = factory.Sequence(lambda n: f"user{n}@example.com")
    username = factory.Sequence(lambda n: f"user{n}")
    password = factory.LazyFunction(lambda: make_password(PASSWORD))
    # Loaded, as signing in by a session brings it along.
    tier = factory.LazyFunction(lambda: apps.get_model("accounts.Tier").objects.get(pk="free"))


class StaffFactory(UserFactory):
    is_staff = True


class SuperuserFactory(StaffFactory):
    is_superuser = True
