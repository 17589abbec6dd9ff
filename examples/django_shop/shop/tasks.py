"""The tasks of an order."""

import time

from celery_statemanager import StatefulTask
from shop.celery import app
from shop.models import Order


@app.task(base=StatefulTask, bind=True, tag="pack", acks_late=True)
def pack(self, order_id, number):
    """Pack one box of an order."""
    for step in range(5):
        self.state.progress(step, 5)
        time.sleep(0.05)
    return f"box {number} of {Order.objects.get(pk=order_id)}"


@app.task(tag="ship")
def ship(job_id):
    """Note that all boxes of an order are packed."""
    for order in Order.objects.filter(job=job_id):
        order.packed = order.boxes
        order.save(update_fields=["packed"])
