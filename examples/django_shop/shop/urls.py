"""The URLs of the shop."""

from django.contrib import admin
from django.urls import include, path

from shop import views

urlpatterns = [
    path("", views.index, name="index"),
    path("place", views.place, name="place"),
    path("orders/<int:order_id>", views.show, name="order"),
    path("jobs/", include("celery_statemanager.contrib.django.urls")),
    path("admin/", admin.site.urls),
]
