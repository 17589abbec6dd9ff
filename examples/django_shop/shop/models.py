"""The orders."""

from django.db import models


class Order(models.Model):
    """An order of some boxes."""

    boxes = models.PositiveIntegerField()
    packed = models.PositiveIntegerField(default=0)
    job = models.CharField(max_length=200, blank=True)

    def __str__(self):
        return f"order {self.pk}"
