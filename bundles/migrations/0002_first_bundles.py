from decimal import Decimal

from django.db import migrations

# name, tokens, hours, scope, discount in percent, base price, total price, for sale, description
BUNDLES = [
    ("Starter Pack", 5, 24, "full", 10, "90.00", "81.00", True, "Five one-day tokens to get going."),
    ("Developer Pack", 10, 168, "full", 15, "1000.00", "850.00", True, "Ten one-week tokens for regular work."),
    ("Team Pack", 25, 168, "full", 20, "2500.00", "2000.00", True, "One-week tokens for a whole team."),
    ("Enterprise Pack", 50, 720, "full", 25, "15000.00", "11250.00", True, "Fifty thirty-day tokens."),
    ("Pro Bundle", 10, 24, "full", 15, "180.00", "153.00", False, "Ten one-day tokens."),
    ("Ultimate Package", 20, 168, "full", 20, "2000.00", "1600.00", False, "Twenty one-week tokens."),
    (
        "Certificates Bundle",
        10,
        24,
        "certificates_only",
        15,
        "180.00",
        "153.00",
        False,
        "Ten one-day tokens for certificate management.",
    ),
]


def create(apps, schema_editor):
    bundles = apps.get_model("bundles", "Bundle").objects.using(schema_editor.connection.alias)
    for name, count, hours, scope, discount, base, total, active, description in BUNDLES:
        bundles.create(
            name=name,
            description=description,
            token_count=count,
            duration_hours=hours,
            scope_id=scope,
            discount_percent=Decimal(discount),
            base_price=Decimal(base),
            total_price=Decimal(total),
            is_active=active,
        )


class Migration(migrations.Migration):
    dependencies = [("bundles", "0001_initial"), ("tokens", "0002_prices_and_scopes")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
