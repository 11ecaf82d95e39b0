"""The page in a real browser: Debian's chromium, driven by selenium; `apt-get install chromium chromium-driver`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.report_runs import CRITERIA, finished_row, sweep, write_results, write_scores

from consensus_cli.report.page import write_report

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
SIZES = {"phone": 390, "desktop": 1280}
MARKUP = "<img src=x onerror=document.title=1>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    rows = [
        *sweep(),
        finished_row("hostile", criterion=MARKUP, overrides=f"seed=0 {MARKUP}", ratio=0.7),
    ]
    rows.append({"run_id": "dead", "status": "failed", "started_at": "2025-02-01T00:00:00+00:00", "error": "killed"})
    write_scores(folder, "run-0000")
    write_report(write_results(folder, rows), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(params=SIZES)
def browser(request: pytest.FixtureRequest) -> Iterator[Chrome]:
    yield from launch(SIZES[request.param])


def launch(width_px: int) -> Iterator[Chrome]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": width_px < 600}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield chrome
    chrome.quit()


def open_page(browser: Chrome, page: Path) -> None:
    """Opens the page and waits until its first chart stands."""
    browser.get(page.as_uri())
    wait(browser, "return performance.getEntriesByName('report-ready').length > 0")


def wait(browser: Chrome, script: str) -> Any:
    """Returns the value of a script as soon as it is truthy."""
    give_up_s = time.monotonic() + 20
    while time.monotonic() < give_up_s:
        if value := browser.execute_script(script):
            return value
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}")


def requests(browser: Chrome) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def points_drawn(browser: Chrome, chart: str = "chart-0") -> int:
    return int(browser.execute_script(f"return document.querySelectorAll('#{chart} .mark-symbol path').length"))


def shown_runs(browser: Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('#table tbody tr:not([hidden])')].map(r => r.cells[0].textContent)"
    return list(browser.execute_script(script))


def test_everything_draws_without_network_or_complaint(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script("document.getElementById('networks').scrollIntoView()")
    wait(browser, "return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg'))")
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]
    assert browser.title == "Pruning report: results.csv"
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    # Wide tables scroll by themselves; the page does not.
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_legend_isolates_in_every_chart_and_gives_back(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    wait(browser, "return document.querySelector('#chart-1 svg')")
    everything = [points_drawn(browser, chart) for chart in ("chart-0", "chart-1")]
    button = "document.querySelector('.legend button[data-series=\"cka\"]')"
    browser.execute_script(f"{button}.click()")
    # 6 runs and 2 means; the Pareto ring of a cka point, if it has one, stays with it.
    wait(browser, "return document.querySelectorAll('#chart-1 .mark-symbol path').length === 8")
    assert points_drawn(browser) in (8, 9, 10)
    assert browser.execute_script(f"return {button}.getAttribute('aria-pressed')") == "true"
    browser.execute_script(f"{button}.click()")
    wait(browser, f"return document.querySelectorAll('#chart-1 .mark-symbol path').length === {everything[1]}")
    assert points_drawn(browser) == everything[0]


def test_pointing_at_a_run_shows_its_command_as_text(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    wait(browser, "return document.querySelector('#chart-0 svg')")
    browser.execute_script("document.getElementById('chart-0').scrollIntoView({block: 'center'})")
    script = """
      const centre = (box) => [box.x + box.width / 2, box.y + box.height / 2];
      const paths = [...document.querySelectorAll('#chart-0 .runs_marks path')];
      const runs = paths.map(path => [path, centre(path.getBoundingClientRect())]);
      return runs.find(([run, at]) => document.elementFromPoint(...at) === run)[1];"""
    x, y = browser.execute_script(script)
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    text = wait(browser, "const tip = document.getElementById('tip'); return !tip.hidden && tip.textContent")
    assert "consensus run model=resnet20 criterion=" in text
    assert "accuracy after (%): " in text
    box = browser.execute_script("return document.getElementById('tip').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= browser.execute_script("return innerWidth")


def test_table_sorts_and_filters(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    heading = "[...document.querySelectorAll('#table th button')].find(b => b.textContent === 'accuracy after (%)')"
    column = f"const k = {heading}.closest('th').cellIndex; "
    cells = column + "return [...document.querySelectorAll('#table tbody tr')].map(row => row.cells[k].textContent)"
    for descending in (False, True):
        browser.execute_script(f"{heading}.click()")
        values = browser.execute_script(cells)
        # The failed run has no accuracy: it is last in both directions.
        assert values[-1] == "–"
        numbers = [float(value) for value in values[:-1]]
        assert numbers == sorted(numbers, reverse=descending)
    fill = "const f = document.getElementById('filter'); f.value = '{}'; f.dispatchEvent(new Event('input'))"
    browser.execute_script(fill.format("CKA ratio=0.5"))
    assert len(shown_runs(browser)) == 3
    assert browser.execute_script("return document.getElementById('shown').textContent") == "3 of 26 runs"
    browser.execute_script(fill.format(""))
    select = "const s = document.getElementById('status'); s.value = 'failed'; s.dispatchEvent(new Event('change'))"
    browser.execute_script(select)
    assert shown_runs(browser) == ["dead"]


def test_steps_show_what_goes(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script("document.getElementById('networks').scrollIntoView()")
    wait(browser, "return document.querySelector('#order svg')")
    assert "layer1.1 goes" in browser.execute_script("return document.getElementById('step-text').textContent")
    move = "const s = document.getElementById('step'); s.value = 2; s.dispatchEvent(new Event('input'))"
    browser.execute_script(move)
    assert "2 of 2: layer2.1 goes" in browser.execute_script("return document.getElementById('step-text').textContent")
    wait(browser, "return document.querySelectorAll('#ranks .mark-rect.role-mark path').length === 6")
    gone = "return [...document.querySelectorAll('#blocks .gone')].map(block => block.textContent)"
    assert browser.execute_script(gone) == ["1.layer1.1", "2.layer2.1"]
    other = "const n = document.getElementById('network'); n.value = 1; n.dispatchEvent(new Event('change'))"
    browser.execute_script(other)
    assert browser.execute_script("return !document.getElementById('no-steps').hidden")


def test_theme_follows_the_system_and_the_button(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    paper = "return getComputedStyle(document.body).backgroundColor"
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert browser.execute_script(paper) == "rgb(22, 24, 28)"
    label = "return getComputedStyle(document.querySelector('#chart-0 .role-axis-label text')).fill"
    assert browser.execute_script(label) == "rgb(236, 236, 236)"
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(paper) == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", **dark})
    assert browser.execute_script(paper) == "rgb(255, 255, 255)"
    assert browser.execute_script(label) == "rgb(0, 0, 0)"


def test_what_was_never_scrolled_to_is_there_to_be_printed(browser: Chrome, page: Path) -> None:
    open_page(browser, page)
    top = "return document.getElementById('networks').getBoundingClientRect().top"
    assert browser.execute_script(top) > browser.execute_script("return innerHeight + 200")
    wait(browser, "return document.querySelectorAll('#order .mark-rect.role-mark path').length > 0")


def test_1500_runs_open_with_the_latest_200_shown(tmp_path: Path) -> None:
    rows = sweep([i / 26 for i in range(1, 26)], 3, [*CRITERIA, *(f"metric_{i}" for i in range(16))])
    page = tmp_path / "report.html"
    write_report(write_results(tmp_path, rows), page)
    for browser in launch(SIZES["desktop"]):
        open_page(browser, page)
        assert len(shown_runs(browser)) == 200
        browser.execute_script("document.getElementById('more').click()")
        assert len(shown_runs(browser)) == 1500
