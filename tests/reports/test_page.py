"""The page in a real browser: nothing fails, nothing is fetched, every link leads somewhere, no text is cut or covered."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.report import out, own_tracking, store  # noqa: F401  fixtures

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
pytestmark = needs_browser
WIDTHS = {"phone": 390, "laptop": 1366, "print": 794}  # CSS pixels; A4 is 794 wide

FAULTS, CONTRAST = (Path(__file__).with_name(f"page_{what}.js").read_text() for what in ("faults", "contrast"))
TWICE = """() => {
  const ids = [...document.querySelectorAll('[id]')].map(one => one.id);
  return ids.filter((id, place) => ids.indexOf(id) !== place);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, out: Path) -> Iterator[Any]:
    """test_report's; `said`: what went wrong, `asked`: what was fetched."""
    context = browser.new_context(viewport={"width": 1366, "height": 900}, offline=True)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto((out / "index.html").as_uri())
    yield page
    context.close()


def test_no_script_error_and_no_request_to_the_network(page: Any, out: Path) -> None:
    page.wait_for_load_state("networkidle")
    assert page.said == []
    elsewhere = [url for url in page.asked if not url.startswith("data:")]
    assert elsewhere == [(out / "index.html").as_uri()]


def test_every_link_in_the_page_leads_to_something(page: Any) -> None:
    lost = page.evaluate(
        """() => [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1))
           .filter(id => !document.getElementById(id))"""
    )
    assert lost == []
    twice = page.evaluate(TWICE)
    assert twice == []


def test_from_a_number_to_its_job_and_the_command_that_recomputes_it(page: Any) -> None:
    """Two clicks, and what was folded away is open."""
    page.click("a.value:has-text('61.5')")
    made = page.locator("tbody:target")
    assert made.is_visible() and "60.00, 63.00" in made.inner_text()
    assert "python orchestrate/run.py table8 --scale mini --seeds 2 --cells m=2" in made.inner_text()
    made.locator("a[href^='#job-']").nth(1).click()
    job = page.locator("details.job:has(:target)")
    assert job.get_attribute("open") is not None
    told = job.inner_text()
    assert "python orchestrate/run.py table8 --only bbbbbbbbbb00" in told
    assert "c0ffee" * 6 in told and "linear/bbbbbbbbbb00/logs/" in told and "backbone: resnet18" in told
    assert job.locator("a[href*='/runs/']").count() == 1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("unfolded", [False, True], ids=["folded", "unfolded"])
def test_no_text_is_cut_or_covered(width: str, unfolded: bool, page: Any) -> None:
    page.set_viewport_size({"width": WIDTHS[width], "height": 900})
    page.emulate_media(media="print" if width == "print" else "screen")
    if unfolded:
        page.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(FAULTS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str, page: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []


def test_the_page_prints(page: Any) -> None:
    assert page.pdf(format="A4").startswith(b"%PDF")
