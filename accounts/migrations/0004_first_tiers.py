from decimal import Decimal

from django.db import migrations

# Slug, name, ZNC a month, API and proxied requests a minute.
TIERS = [
    ("free", "Free", "0.00", None, None),
    ("premium", "Premium", "10.00", 500, 5000),
    ("enterprise", "Enterprise", "50.00", 2000, 20000),
]


def create(apps, schema_editor):
    tiers = apps.get_model("accounts", "Tier").objects.using(schema_editor.connection.alias)
    for slug, name, price, api, proxy in TIERS:
        tiers.create(
            slug=slug,
            name=name,
            monthly_price=Decimal(price),
            api_requests_per_minute=api,
            proxy_requests_per_minute=proxy,
        )


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_tiers")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
