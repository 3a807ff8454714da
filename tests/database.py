"""The test database: after a transactional test it is as the migrations left it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TransactionTestCase
from psycopg import sql

#: Django's own, the same in every test and referred to by much.
_KEPT = {"auth_permission", "django_content_type"}


def guard_names() -> list[str]:
    """Return the names of the triggers that refuse TRUNCATE."""
    # Bit 5 of tgtype is TRUNCATE.
    return _trigger_names("tgtype & 32 <> 0")


def _trigger_names(condition: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND {condition}")
        return [name for (name,) in cursor.fetchall()]


class Reset:
    """Empties what a test has filled and puts back what the migrations had put there.

    Django's flush truncates every table and announces a migration: a third of a second for what a test's few rows
    need a hundredth of. Rows are deleted here, past the triggers that refuse it, which only this transaction ignores.
    """

    def __init__(self) -> None:
        tables = sorted(
            set(connection.introspection.django_table_names(only_existing=True, include_views=False)) - _KEPT
        )
        filled = _filled(tables)
        self._probe = _probe([table for table in tables if table not in filled])
        triggers = ",".join(_trigger_names("true"))
        self._ignore = sql.SQL("SET LOCAL pgtrigger.ignore = {}").format(sql.Literal(f"{{{triggers}}}"))
        self._restore = sql.SQL(";").join(
            sql.SQL("DELETE FROM {0}; INSERT INTO {0} TABLE reference.{0}").format(sql.Identifier(table))
            for table in filled
        )
        with connection.cursor() as cursor:
            # Left behind where the database is used again.
            cursor.execute("DROP SCHEMA IF EXISTS reference CASCADE")
            cursor.execute("CREATE SCHEMA reference")
            for table in filled:
                cursor.execute(sql.SQL("CREATE TABLE reference.{0} AS TABLE public.{0}").format(sql.Identifier(table)))

    def __call__(self, *_: Any) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(self._probe)
            statements = [sql.SQL("DELETE FROM {}").format(sql.Identifier(table)) for (table,) in cursor.fetchall()]
            # Foreign keys are checked at the transaction's end, so the order of the tables does not matter.
            cursor.execute(sql.SQL(";").join([self._ignore, *statements, self._restore]))


def _probe(tables: list[str]) -> sql.Composed:
    """Return a query for those of the tables that have rows."""
    return sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(sql.Literal(table), sql.Identifier(table))
        for table in tables
    )


def _filled(tables: list[str]) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(_probe(tables))
        return [table for (table,) in cursor.fetchall()]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[Reset | None]:
    """Make transactional tests clean up quickly. Its value is for what cleans up later, at a module's end."""
    if not str(connection.settings_dict["NAME"]).startswith("test_"):
        # No test that was chosen asks for a database, so pytest-django made none: this is the real one.
        yield None
        return
    with django_db_blocker.unblock():
        reset = Reset()
        connection.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", reset)
        yield reset
