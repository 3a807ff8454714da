from django.db import migrations


def create(apps, schema_editor):
    apps.get_model("proxy", "GatewaySwitch").objects.using(schema_editor.connection.alias).create(pk=1)


class Migration(migrations.Migration):
    dependencies = [("proxy", "0005_limits_and_switch")]

    operations = [migrations.RunPython(create, migrations.RunPython.noop)]
