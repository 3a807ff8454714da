from django.db import migrations

# Of a Zenzefi server, below its base path: what managing certificates needs.
PATTERNS = (
    "certificates/filter",
    "certificates/details/…",
    "certificates/export/…",
    "certificates/import/…",
    "certificates/remove",
    "certificates/restore",
    "certificates/activeForTesting",
    "certificates/activeForTesting/activate/…",
    "certificates/activeForTesting/deactivate/…",
    "certificates/activeForTesting/enhanced",
    "certificates/activeForTesting/options/…",
    "certificates/activeForTesting/usecases/…",
    "certificates/update/…",
    "certificates/update/cancel",
    "certificates/update/metrics",
    "certificates/checkSystemIntegrityReport",
    "certificates/checkSystemIntegrityLog",
    "certificates/checkSystemIntegrityLogExistance",
    "configurations/certificatesColumnOrder",
    "configurations/certificatesColumnVisibility",
)


def create(apps, schema_editor):
    rules = apps.get_model("proxy", "ScopeRule").objects.using(schema_editor.connection.alias)
    rules.bulk_create(rules.model(scope_id="certificates_only", pattern=pattern) for pattern in PATTERNS)


class Migration(migrations.Migration):
    dependencies = [("proxy", "0001_initial"), ("tokens", "0002_prices_and_scopes")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
