"""The pages of the shop."""

from django.db import transaction
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from shop.celery import states
from shop.models import Order
from shop.tasks import pack, ship


def index(request):
    """Show the orders, the newest first."""
    return render(request, "shop/index.html", {"orders": Order.objects.order_by("-id")[:20]})


@require_POST
@transaction.atomic
def place(request):
    """Create an order and its job in one transaction."""
    order = Order.objects.create(boxes=min(int(request.POST["boxes"]), 500))
    boxes = [pack.s(order.pk, number) for number in range(order.boxes)]
    job = states.submit(boxes, using="default", on_success=ship.s(), metadata={"title": str(order)})
    order.job = job.id
    order.save()
    return redirect("order", order.pk)


def show(request, order_id):
    """Show an order with the live bars of its job."""
    return render(request, "shop/order.html", {"order": get_object_or_404(Order, pk=order_id)})
