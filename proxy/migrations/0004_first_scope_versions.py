from itertools import groupby

from django.db import migrations


def create(apps, schema_editor):
    alias = schema_editor.connection.alias
    rules = apps.get_model("proxy", "ScopeRule").objects.using(alias)
    version = apps.get_model("proxy", "ScopeVersion").objects.using(alias)
    fields = ("action", "method", "pattern", "description")
    rows = rules.order_by("scope_id", "action", "pattern", "method").values("scope_id", *fields)
    for scope_id, group in groupby(rows, key=lambda row: row["scope_id"]):
        version.create(
            scope_id=scope_id,
            number=1,
            rules=[{name: row[name] for name in fields} for row in group],
            reason="The rules in force when versions began",
        )


class Migration(migrations.Migration):
    dependencies = [("proxy", "0003_upstream_targets_and_scope_versions")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
