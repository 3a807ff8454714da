from django.db import migrations, models

# Every token there was until now was bought alone.
BOUGHT_ALONE = "UPDATE tokens_accesstoken SET purchase_source = 'token:' || id"


class Migration(migrations.Migration):
    dependencies = [("tokens", "0002_prices_and_scopes")]

    operations = [
        migrations.AddField(
            model_name="accesstoken",
            name="purchase_source",
            field=models.CharField(default="", editable=False, max_length=128),
        ),
        migrations.RunSQL(BOUGHT_ALONE, migrations.RunSQL.noop),
    ]
