"""Every Python block, command line, message and link in the documents is valid."""

import configparser
import functools
import logging
import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from celery import Celery
from celery.bin.celery import celery as celery_command
from celery.signals import worker_init
from django_kit import set_up_django

from celery_statemanager import State, errors
from celery_statemanager.integration.body import WITHOUT_BODY
from celery_statemanager.integration.outbox.values import too_large
from celery_statemanager.integration.submission.results import WITHOUT_RESULTS

ROOT = Path(__file__).parents[2]
EAGER = {"task_always_eager": True, "statemanager_store_url": "memory://"}
DOCS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = ["README.md", "design.md", *DOCS]


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def example(**names):
    """Run the README's example without its waits, and return its names."""
    code, waits = re.subn(r"time\.sleep\(.+?\)", "time.sleep(0)", blocks("README.md", "python")[0])
    assert waits == 1
    exec(compile(code, "README.md", "exec"), names)
    return names


def run(page, names):
    """Run a page's Python blocks in order. A block that creates an app leaves the names of the others unchanged.

    Blocks that begin with the name of a file are run by test_testing.py.
    """
    for number, block in enumerate(blocks(page, "python"), 1):
        if re.match(r"# \w+\.py\n", block):
            continue
        own_app = block.startswith("app = Celery(")
        exec(compile(block, f"{page} block {number}", "exec"), {**names} if own_app else names)


PAGES_WITH_CODE = [page for page in DOCS if blocks(page, "python")]
EXAMPLES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "examples").glob("*/README.md"))]
ROOT_PAGES = ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", *EXAMPLES]


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Yield the names of the README's example, which the other pages continue."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker_init, "receivers", [*worker_init.receivers])  # other tests start workers in this process
    names = example(__name__=f"readme_{uuid.uuid4().hex}")  # Celery registers tasks by module name
    names["app"].conf.update(EAGER)
    set_up_django()
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield names
    root.handlers[:] = handlers  # Litestar has configured them
    root.setLevel(level)


def test_the_readme_has_one_example_near_its_top():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150
    assert len(blocks("README.md", "python")) == 1
    assert text.index("```python") < len("\n".join(text.splitlines()[:30]))


def test_the_example_calls_back_when_all_have_finished(names, capsys):
    job = names["start"](["a", "b"])
    assert capsys.readouterr().out == f"all done: {job.id}\n"
    assert {(state.tag, state.finished) for state in job.list_states()} == {("resize", True)}


def test_the_example_run_as_a_script_prints_the_job_to_watch(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("celery.Celery", functools.partial(Celery, config_source=EAGER))
    example(__name__="__main__")
    assert re.fullmatch(r"all done: (job-\w+)\n\1\n", capsys.readouterr().out)
    console = "".join(blocks("README.md", "console"))
    assert "$ python shop.py" in console
    assert re.search(r"^(job-\w+)\n\$ celery -A shop monitor-state \1 ", console, re.MULTILINE)


def test_every_block_of_the_guide_runs(names, capsys):
    run("docs/guide.md", names)
    job = names["run"](["a", "b"])
    assert job.summary("resize").finished == 2
    names["follow"](job.id)
    assert "replay resize 0" in capsys.readouterr().out
    loaded = names["states"].submit([names["load"].s("x"), names["load"].s("")])
    assert loaded.summary().finished == 1
    assert loaded.get_state().status == -42
    assert names["Manager"].open(names["store"], "etl-42").summary("ingest").finished == 1


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_every_block_of_a_page_runs(page, names):
    run(page, names)


def test_coming_from_shows_what_it_describes(names, capsys):
    run("docs/coming-from.md", names)
    names["add_prices"]()
    names["count_words"]()
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"job-\w+ 2", out[0])
    assert out[1] == "3"
    job = names["start"](["a"])
    assert names["progress_view"](None, job.id) == {"percent": 100, "message": "a", "failed": 0}


def test_a_chord_returns_what_its_page_describes(names, capsys):
    run("docs/from-chord.md", names)
    assert names["count_words"](["one two", "three"]) == "words: 3"
    assert names["publish_counts"](["one two"]).body_result(1) == "announced: words: 2"
    failed = names["publish_counts"]([None])
    assert capsys.readouterr().out.startswith(
        f"{failed.manager.ref.incarnation}.0.0 failed: task 0 of job '{failed.id}'"
    )


def test_the_formatter_shows_the_cell_of_a_log_line(names):
    run("docs/logging-and-metrics.md", names)
    record = logging.makeLogRecord({"msg": "lost", "job_id": "etl-42", "tag": "ingest", "task_index": 3})
    assert names["Cell"]().format(record) == "etl-42/ingest/3 lost"
    assert names["Cell"]().format(logging.makeLogRecord({"msg": "swept"})) == "swept"


COMMANDS = [
    pytest.param(line.removeprefix("$ ").partition("  #")[0].strip(), id=f"{page}-{number}")
    for page in PAGES
    if not page.startswith("docs/tutorial/")
    for number, line in enumerate("".join(blocks(page, "console")).splitlines())
    if line.startswith("$ ")
]


PREPARATIONS = {
    "python3 -m venv .venv && . .venv/bin/activate",
    ". .venv/bin/activate",
    "python shop.py",
    "pip install fastapi",
    "uvicorn web:api --workers 2 --timeout-graceful-shutdown 5",
    "prometheus --web.enable-otlp-receiver",
}
"""Commands of other programs. Those of the tutorial are executed by its own test."""


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_is_valid(line):
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "celery":
        words = words[3:] if words[1] == "-A" else words[1:]
        command = celery_command.commands[words[0]]
        obj = SimpleNamespace(app=Celery("shop", set_as_current=False), no_color=False)
        assert isinstance(command.make_context(words[0], words[1:], obj=obj), click.Context)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        extras = re.search(r"(?:celery-statemanager|\.)\[([\w,]+)\]", line)
        if extras is None:
            assert line in PREPARATIONS
            return
        known = re.search(r"optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
        assert all(re.search(rf"^{extra} = ", known, re.MULTILINE) for extra in extras[1].split(","))
    elif words[:2] == ["docker", "compose"]:
        compose = (ROOT / "docker-compose.yml").read_text()
        assert f"profiles: [{words[3]}]" in compose
    else:
        assert line in PREPARATIONS


def test_every_link_leads_to_a_file():
    missing = [f"{page}: {target}" for page, target, _ in links() if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


def test_every_anchor_is_a_heading():
    wrong = []
    for page, target, anchor in links():
        path = (ROOT / page).parent / target if target else ROOT / page
        if anchor and path.suffix == ".md" and path.exists() and anchor not in anchors(path):
            wrong.append(f"{page}: {target}#{anchor}")
    assert not wrong


def links():
    for page in [*PAGES, *ROOT_PAGES]:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text_of(page)):
            yield page, target, anchor


def anchors(path):
    """Return the anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_of_a_configuration_can_be_read():
    texts = [block for page in DOCS for block in blocks(page, "yaml")]
    units = [block for page in DOCS for block in blocks(page, "ini")]
    assert texts
    assert units
    for text in texts:
        assert isinstance(yaml.safe_load(text), dict)
    for unit in units:
        parsed = configparser.ConfigParser(interpolation=None)
        parsed.read_string(unit)
        assert parsed.has_option("Service", "ExecStart")


FAILED = State("etl-42", 3, "ingest", -1, "disk full")
MESSAGES = [
    errors.JobNotFound("etl-42"),
    errors.JobNotCommitted("etl-42"),
    errors.JobExists("etl-42"),
    errors.AttemptSuperseded("etl-42", "ingest", 3, 1, 2),
    errors.BeginRefused("etl-42", "ingest", 3, "closed"),
    errors.JobCancelled("etl-42", "user asked"),
    errors.TaskMismatch("etl-42", 3, 5),
    errors.ReadOnlyManager("etl-42"),
    errors.SubmitFailed("etl-42", 12, "EncodeError: Object of type Connection is not JSON serializable"),
    errors.SynchronizeTimeout("etl-42", "ingest", 10, "3,17-20", (), 60),
    errors.SynchronizeFailed("etl-42", "ingest", 10, FAILED),
    errors.WaitTimeout("etl-42", 60),
    errors.TaskFailed("etl-42", 12, "resize", -1, "OSError: no space left"),
    errors.TaskFailed("etl-42", -1, "body 2 of 3", -1, "ValueError: no words"),
    errors.ResultUnavailable("etl-42", None, WITHOUT_RESULTS),
    errors.ResultUnavailable("etl-42", None, WITHOUT_BODY),
    errors.ResultUnavailable("etl-42", 12, too_large(300_014, 262_144)),
    errors.SubscriptionLost("etl-42", "no connection for 300 s: connection refused"),
]


def test_the_faq_quotes_error_messages_verbatim():
    quoted = re.findall(r"^    (.+)$", text_of("docs/faq.md"), re.MULTILINE)
    assert sorted(quoted) == sorted(map(str, MESSAGES))


def test_the_faq_describes_every_error():
    headings = " ".join(re.findall(r"^### (.+)$", text_of("docs/faq.md"), re.MULTILINE))
    raised_by_users, bases = {"StateError"}, {"StateManagerError", "StoreError"}
    named = {name for name, each in vars(errors).items() if isinstance(each, type) and not name.startswith("_")}
    missing = {name for name in named - raised_by_users - bases if name not in headings}
    assert not {name for name in missing if issubclass(getattr(errors, name), errors.StateManagerError)}


def test_the_faq_quotes_log_messages_verbatim():
    sources = " ".join(path.read_text() for path in sorted((ROOT / "celery_statemanager").rglob("*.py")))
    joined = re.sub(r'"\s*"', "", sources)
    rows = re.findall(r"^\| (`.+`) \|", text_of("docs/faq.md").partition("## In the log")[2], re.MULTILINE)
    quoted = [part for row in rows for each in re.findall("`(.+?)`", row) for part in each.split("…")]
    assert len(quoted) > 12
    assert not [part for part in quoted if part.strip() not in joined]


def test_the_table_of_settings_is_current():
    script = ROOT / "scripts" / "document_settings.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False, timeout=60)
    assert done.returncode == 0, "make docs"


def test_the_table_of_metrics_is_current():
    from opentelemetry.sdk.metrics import MeterProvider

    from celery_statemanager.telemetry import OpenTelemetry

    names = {instrument.name for instrument in vars(OpenTelemetry(MeterProvider(shutdown_on_exit=False))).values()}
    page = text_of("docs/logging-and-metrics.md")
    assert set(re.findall(r"^\| `(statemanager\.[\w.]+)` \|", page, re.MULTILINE)) == names
