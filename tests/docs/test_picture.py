"""The script that renders the README's picture."""

import html
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]


def test_the_script_renders_the_live_display_as_svg(tmp_path):
    target = tmp_path / "images" / "live.svg"
    script = ROOT / "scripts" / "render_readme_picture.py"
    done = subprocess.run([sys.executable, script, target], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    svg = target.read_text(encoding="utf-8")
    assert ET.fromstring(svg).tag.endswith("svg")
    text = html.unescape(re.sub(r"<[^>]+>", " ", svg)).replace("\N{NO-BREAK SPACE}", " ")
    assert "celery -A shop monitor-state" in text
    for expected in (" resize ", " upload ", "running", "ETA", "attempt 2", "ConnectionError"):
        assert expected in text
