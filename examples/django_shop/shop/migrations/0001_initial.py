"""The table of orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first migration."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("boxes", models.PositiveIntegerField()),
                ("packed", models.PositiveIntegerField(default=0)),
                ("job", models.CharField(blank=True, max_length=200)),
            ],
        ),
    )
