"""The HTML page in headless Chromium, light and dark, on a phone: its console, its width, its links."""

from __future__ import annotations

import html as escape
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reports.judge.judgement import judge
from reports.render import html
from tests.reports.runs import FORWARD, diagnosis, run
from tests.reports.runs import claim as recorded

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr")  # fmt: skip
# The page itself has no script: it is looked at from around, in a frame of a phone's width.
AROUND = """<!doctype html>
<iframe id=page style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const frame = document.getElementById("page"), inside = frame.contentDocument, root = inside.documentElement
  const links = [...inside.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute("href").slice(1))
  const there = id => inside.getElementById(decodeURIComponent(id))
  const wide = [...inside.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > {width} + 1
    && !e.closest("pre, .scroll, table, svg, details:not([open])")).map(e => e.tagName + "." + e.className)
  const seen = {{scrolls: root.scrollWidth, links: links.length, dead: links.filter(id => !there(id)), wide,
    background: getComputedStyle(inside.body).backgroundColor, text: getComputedStyle(inside.body).color}}
  document.body.textContent = "SEEN" + JSON.stringify(seen) + "END"
}})
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def page() -> str:
    """A review with findings of two kinds, long names and a case of many numbers."""
    long = "the subject raised " + "averyveryverylongname_" * 12
    return html.render(
        judge(
            run(
                recorded(
                    FORWARD, "delora", outcome="fail", ratio=90.0, threshold=30.0, diagnosis=diagnosis()
                ),
                recorded("save_load.round_trip", "lora", outcome="error", reason=long),
                recorded("init.identity", "lora", ratio=1.0, threshold=30.0),
            )
        )
    )


def looked_at(text: str, folder: Path, width: int, *options: str) -> tuple[dict[str, Any], list[str]]:
    """What the page comes to in a frame of ``width`` pixels, and what it wrote on the console."""
    around = folder / "around.html"
    around.write_text(AROUND.format(width=width, page=escape.escape(text)), encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        *options,
        "--dump-dom",
        around.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"SEEN(.*)END", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(escape.unescape(found[1])), console


@pytest.mark.parametrize(
    "options", [(), ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")], ids=["light", "dark"]
)
def test_a_phone_shows_the_page(options: tuple[str, ...], tmp_path: Path) -> None:
    """At 390 pixels nothing scrolls sideways, every link within the page has its place, and the console is empty."""
    seen, console = looked_at(page(), tmp_path, 390, *options)
    assert console == []
    assert seen["scrolls"] <= 390, seen["wide"]
    assert seen["links"] > 5
    assert seen["dead"] == []


def test_the_survey_fits_a_phone(tmp_path: Path) -> None:
    """So does the page of docs/ that people look at."""
    seen, console = looked_at((ROOT / "docs" / "survey.html").read_text(encoding="utf-8"), tmp_path, 390)
    assert (console, seen["dead"]) == ([], [])
    assert seen["scrolls"] <= 390, seen["wide"]


def test_dark_is_another_page_than_light(tmp_path: Path) -> None:
    """The colours follow what the reader's system prefers."""
    text = page()
    light, _ = looked_at(text, tmp_path, 390)
    dark, _ = looked_at(text, tmp_path, 390, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert light["background"] != dark["background"]
    assert light["text"] != dark["text"]


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    """A page that is too wide, has a dead link and an error of its own is told apart."""
    broken = page().replace(
        "</body>",
        '<div style="width:900px">x</div><a href="#nowhere">x</a><script>throw Error("no")</script></body>',
    )
    seen, console = looked_at(broken, tmp_path, 390)
    assert seen["scrolls"] >= 900
    assert seen["dead"] == ["nowhere"]
    assert any("no" in line for line in console)
