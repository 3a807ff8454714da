from decimal import Decimal

from django.db import migrations

PRICES = {1: "1.00", 12: "10.00", 24: "18.00", 168: "100.00", 720: "300.00"}
SCOPES = {
    "full": "Everything the upstream offers",
    "certificates_only": "Certificate management only",
}


def create(apps, schema_editor):
    alias = schema_editor.connection.alias
    scopes = apps.get_model("tokens", "Scope").objects.using(alias)
    for slug, description in SCOPES.items():
        scopes.create(slug=slug, description=description)
    prices = apps.get_model("tokens", "TokenPrice").objects.using(alias)
    for duration_hours, price in PRICES.items():
        prices.create(duration_hours=duration_hours, price=Decimal(price))


class Migration(migrations.Migration):
    dependencies = [("tokens", "0001_initial")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
