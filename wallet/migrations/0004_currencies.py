import uuid
from datetime import UTC, datetime
from decimal import Decimal

from django.db import migrations

# Must agree with wallet.services.accounts.system_account_id.
NAMESPACE = uuid.UUID("6d0d2c0e-6f0c-5a52-9d0b-6a1f3f0f2b77")
GATEWAYS = ["gateway:stripe", "gateway:yookassa"]

# Code, name, and how many ZNC cost how much of it. Staff add newer rates; these are where it starts.
CURRENCIES = [
    ("RUB", "Russian rouble", "1", "10.00"),
    ("USD", "US dollar", "9.30", "1"),
    ("EUR", "Euro", "10.8375", "1"),
]
START = datetime(2025, 1, 1, tzinfo=UTC)


def create(apps, schema_editor):
    using = schema_editor.connection.alias
    accounts = apps.get_model("wallet", "Account").objects.using(using)
    for name in GATEWAYS:
        accounts.get_or_create(id=uuid.uuid5(NAMESPACE, name), defaults={"system": name})
    currencies = apps.get_model("wallet", "Currency").objects.using(using)
    rates = apps.get_model("wallet", "ExchangeRate").objects.using(using)
    for code, name, znc, cost in CURRENCIES:
        currency = currencies.create(code=code, name=name, minor_unit_digits=2)
        rates.create(
            currency=currency,
            znc_amount=Decimal(znc),
            currency_amount=Decimal(cost),
            effective_from=START,
        )


class Migration(migrations.Migration):
    dependencies = [("wallet", "0003_payments")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
