"""The application for servers of ASGI."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = ASGIStaticFilesHandler(get_asgi_application())  # in production, a web server sends the static files
