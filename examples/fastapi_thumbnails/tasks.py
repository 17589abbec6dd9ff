"""The Celery app: one task makes the thumbnail of one picture."""

import os
from pathlib import Path

from celery import Celery
from PIL import Image

from celery_statemanager import StatefulTask, StateManager
from examples import broker

HOME = Path(os.environ.get("THUMBNAILS_DIR", ".thumbnails")).resolve()
HOME.mkdir(parents=True, exist_ok=True)
SIZE = (160, 160)

app = Celery("thumbnails")
app.conf.update(statemanager_store_url=f"sqlite:///{HOME}/states.db", task_ignore_result=True)
if "CELERY_BROKER_URL" not in os.environ:
    app.conf.update(broker.settings(HOME))
states = StateManager(app)


@app.task(base=StatefulTask, tag="thumbnail", on_lost="requeue")
def thumbnail(source: str, target: str) -> None:
    """Make a thumbnail. It may run twice, because the second run writes the same file."""
    with Image.open(source) as image:
        image.thumbnail(SIZE)
        image.convert("RGB").save(target, "JPEG")
