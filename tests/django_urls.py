"""The URLs of Django in tests."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("shop/jobs/", include("celery_statemanager.contrib.django.urls")),
]
