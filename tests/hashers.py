"""Password hashing for tests."""

from django.contrib.auth.hashers import Argon2PasswordHasher


class CheapArgon2PasswordHasher(Argon2PasswordHasher):
    """Argon2 with the smallest parameters: the same code path in a millisecond."""

    time_cost = 1
    memory_cost = 8
    parallelism = 1
