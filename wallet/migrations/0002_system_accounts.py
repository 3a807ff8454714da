import uuid

from django.db import migrations

# Must agree with wallet.services.accounts.system_account_id.
NAMESPACE = uuid.UUID("6d0d2c0e-6f0c-5a52-9d0b-6a1f3f0f2b77")
NAMES = ["revenue", "promotions", "adjustments", "gateway:mock"]


def create(apps, schema_editor):
    accounts = apps.get_model("wallet", "Account").objects.using(schema_editor.connection.alias)
    for name in NAMES:
        accounts.create(id=uuid.uuid5(NAMESPACE, name), system=name)


class Migration(migrations.Migration):
    dependencies = [("wallet", "0001_initial")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
