"""The page in a real browser: no error, no request, every link has a target, no text is cut off or covered."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
pytestmark = needs_browser
WIDTHS = {"phone": 390, "laptop": 1366, "print": 794}  # CSS pixels; A4 is 794 wide

FAULTS, CONTRAST = (Path(__file__).with_name(f"page_{what}.js").read_text() for what in ("faults", "contrast"))
TWICE = """() => {
  const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
  return ids.filter((id, index) => ids.indexOf(id) !== index);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, out: Path) -> Iterator[Any]:
    """The report's page; `problems`: errors and warnings, `requests`: requested URLs."""
    context = browser.new_context(viewport={"width": 1366, "height": 900}, offline=True)
    page = context.new_page()
    page.problems, page.requests = [], []
    page.on(
        "console", lambda message: page.problems.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto((out / "index.html").as_uri())
    yield page
    context.close()


def test_no_script_error_and_no_request_to_the_network(page: Any, out: Path) -> None:
    page.wait_for_load_state("networkidle")
    assert page.problems == []
    other = [url for url in page.requests if not url.startswith("data:")]
    assert other == [(out / "index.html").as_uri()]


def test_every_link_on_the_page_has_a_target(page: Any) -> None:
    lost = page.evaluate(
        """() => [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1))
           .filter(id => !document.getElementById(id))"""
    )
    assert lost == []
    twice = page.evaluate(TWICE)
    assert twice == []


def test_from_a_number_to_its_job_and_the_command_that_recomputes_it(page: Any) -> None:
    """Two clicks, and the folded part is open."""
    page.click("a.value:has-text('61.5')")
    number = page.locator("tbody:target")
    assert number.is_visible() and "60.00, 63.00" in number.inner_text()
    assert "jigclu run table8 --scale mini --seeds 2 --cells m=2" in number.inner_text()
    number.locator("a[href^='#job-']").nth(1).click()
    job = page.locator("details.job:has(:target)")
    assert job.get_attribute("open") is not None
    text = job.inner_text()
    assert "jigclu run table8 --only bbbbbbbbbb00" in text
    assert "c0ffee" * 6 in text and "linear/bbbbbbbbbb00/logs/" in text and "backbone: resnet18" in text
    assert job.locator("a[href*='/runs/']").count() == 1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("unfolded", [False, True], ids=["folded", "unfolded"])
def test_no_text_is_cut_off_or_covered(width: str, unfolded: bool, page: Any) -> None:
    page.set_viewport_size({"width": WIDTHS[width], "height": 900})
    page.emulate_media(media="print" if width == "print" else "screen")
    if unfolded:
        page.evaluate("() => document.querySelectorAll('details').forEach(element => element.open = true)")
    assert page.evaluate(FAULTS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_with_its_background(scheme: str, page: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []


def test_the_page_prints(page: Any) -> None:
    assert page.pdf(format="A4").startswith(b"%PDF")
