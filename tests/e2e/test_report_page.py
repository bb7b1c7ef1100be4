"""The run report in a real browser: it draws, its own script runs, and nothing a task wrote does."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from orchestra.reporting.html import render_html
from orchestra.testing.samples import hostile_run, large_run, some_run

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
)

pytestmark = pytest.mark.xdist_group("browser")


def browse(folder: Path, page: str, *flags: str) -> str:
    """Opens the page in a browser with an empty profile and returns what it printed."""
    assert BROWSER is not None, "chromium is missing; scripts/setup.sh --test installs it"
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout


def dom_of(folder: Path, page: str) -> str:
    return browse(folder, page, "--dump-dom")


def title_of(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom, re.S)
    return found[1] if found else ""


def drive(page: str, script: str) -> str:
    """Returns the page without its content policy and with a script of the test's that runs last."""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    return free.replace("</body>", f"<script>{script}</script></body>")


def test_the_page_is_drawn(tmp_path: Path) -> None:
    data = some_run()
    dom = dom_of(tmp_path, render_html(data))
    assert len(re.findall(r'<g class="box ', dom)) == len(data.plan.tasks)
    assert len(re.findall(r'<g class="bar ', dom)) == sum(len(detail.attempts) for detail in data.details)
    assert len(re.findall(r'<rect class="verify"', dom)) > 5
    assert re.search(r'<div class="tools">', dom), "the page's own script has run: the filter is no longer hidden"


def test_bars_have_a_place_on_the_screen(tmp_path: Path) -> None:
    count = "document.title = [...document.querySelectorAll('.bar .body')].filter((bar) => bar.getBoundingClientRect().width >= 1).length;"
    data = some_run()
    dom = dom_of(tmp_path, drive(render_html(data), count))
    assert title_of(dom) == str(sum(len(detail.attempts) for detail in data.details))


def test_the_filter_hides_rows(tmp_path: Path) -> None:
    use = (
        "const input = document.querySelector('.tools input'); input.value = 'finished DOCS'.split(' ')[1]; input.dispatchEvent(new Event('input'));"
        "document.querySelector('.tools button[data-s=failed]').click();"
        "document.title = [...document.querySelectorAll('#tasks tbody tr')].filter((row) => !row.hidden)"
        ".map((row) => row.querySelector('bdi').textContent).join(',');"
    )
    assert title_of(dom_of(tmp_path, drive(render_html(some_run()), use))) == "docs"


def test_hovering_marks_the_task_everywhere(tmp_path: Path) -> None:
    use = (
        "document.querySelector('.bar').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));"
        "document.title = [...document.querySelectorAll('.hot')].map((each) => each.tagName.toLowerCase()).sort().join(',');"
    )
    assert title_of(dom_of(tmp_path, drive(render_html(some_run()), use))) == "g,g,tr"


def test_hostile_text_does_not_run(tmp_path: Path) -> None:
    dom = dom_of(tmp_path, render_html(hostile_run()))
    assert title_of(dom) != "owned"
    assert title_of(dom).endswith(": 1 failed of 2")
    assert len(re.findall(r"<script", dom)) == 1
    assert "<img" not in dom
    assert "\x1b" not in dom
    assert "\u202e" not in dom


def test_the_policy_holds_if_escaping_ever_fails(tmp_path: Path) -> None:
    hole = (
        "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\"></svg>"
    )
    page = render_html(some_run())
    assert title_of(dom_of(tmp_path, page.replace("</main>", f"{hole}</main>"))) != "owned"
    without = drive(page, "").replace("</main>", f"{hole}</main>")
    assert title_of(dom_of(tmp_path, without)) == "owned", "the hole is real"


def test_a_thousand_tasks_open(tmp_path: Path) -> None:
    dom = dom_of(tmp_path, render_html(large_run(1000)))
    assert len(re.findall(r'<g class="bar ', dom)) == 1000
    assert len(re.findall(r'<tr id="t\d+"', dom)) == 1000


def test_a_picture_can_be_taken(tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    browse(tmp_path, render_html(some_run()), "--window-size=1280,1600", f"--screenshot={picture}")
    body = picture.read_bytes()
    assert body.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", body[16:24]) == (1280, 1600)
    assert len(body) > 50_000, "an empty page is a tenth of that"
