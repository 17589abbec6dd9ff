"""The web application: ``uvicorn examples.fastapi_thumbnails.web:api``."""

import re
import secrets
import shutil
from pathlib import Path
from typing import Annotated

from fastapi import Cookie, FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse

from celery_statemanager import Job, JobNotFound
from examples.fastapi_thumbnails.tasks import HOME, states, thumbnail

PAGE = Path(__file__).with_name("index.html").read_text(encoding="utf-8")
Owner = Annotated[str | None, Cookie()]
api = FastAPI()


def authorize(request: Request, _action: str, job: Job | None) -> bool:
    """Allow each visitor his own jobs. Nobody may list all of them."""
    owner = request.cookies.get("owner")
    return job is not None and owner is not None and job.metadata.get("owner") == owner


api.mount("/jobs", states.web(authorize=authorize))


@api.get("/", response_class=HTMLResponse)
def upload_page() -> str:
    """Show the form."""
    return PAGE.replace("{job}", "")


@api.post("/folders")
def upload(files: list[UploadFile], owner: Owner = None) -> Response:
    """Store the files of a folder, and submit a job with a row for each."""
    owner, job_id = owner or secrets.token_urlsafe(), f"folder-{secrets.token_hex(6)}"
    folder = HOME / job_id
    (folder / "thumbnails").mkdir(parents=True)
    names = [f"{number:05}-{safe(file.filename)}" for number, file in enumerate(files)]
    for name, file in zip(names, files, strict=True):
        store(file, folder / name)
    tasks = (thumbnail.s(str(folder / name), str(folder / "thumbnails" / f"{name}.jpg")) for name in names)
    states.submit(tasks, job_id=job_id, metadata={"owner": owner, "title": f"{len(names)} pictures"})
    response = RedirectResponse(f"/folders/{job_id}", status_code=303)
    response.set_cookie("owner", owner, httponly=True, samesite="lax")
    return response


@api.get("/folders/{job_id}", response_class=HTMLResponse)
def show(job_id: str, owner: Owner = None) -> str:
    """Show the bar of a folder."""
    return PAGE.replace("{job}", own_job(job_id, owner).id)


@api.put("/folders/{job_id}/{row}")
def replace(job_id: str, row: int, file: UploadFile, owner: Owner = None) -> dict[str, str]:
    """Replace the file of one row, and run again what failed."""
    job = own_job(job_id, owner)
    (member,) = job.members([row])
    store(file, Path(member.stages[0].args[0]))
    return {"rows": str(job.rerun("failed").rows)}


def own_job(job_id: str, owner: str | None) -> Job:
    """Return a job of a visitor. Raises: HTTPException."""
    try:
        job = states.job(job_id)
    except (JobNotFound, ValueError):
        raise HTTPException(404) from None
    if owner is None or job.metadata.get("owner") != owner:
        raise HTTPException(404)
    return job


def store(file: UploadFile, target: Path) -> None:
    """Write an uploaded file."""
    with target.open("wb") as output:
        shutil.copyfileobj(file.file, output)


def safe(name: str | None) -> str:
    """Return a name without folders and special characters."""
    return re.sub(r"[^\w.-]+", "_", Path(name or "file").name)[-80:]
