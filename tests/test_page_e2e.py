"""The report in a real browser: headless Chromium opens the file and complains about nothing."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.engine.records import Evaluation, RoundRecord, RunInfo, RunResult
from dfkd.report.comparison import write_comparison
from dfkd.report.observers import JsonLines, RunFile, Samples
from dfkd.report.page import write_page

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra e2e (playwright) is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(a_result(), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    result = a_result()
    for k in range(8):
        info = replace(result.info, plan={"rounds": 6, "warmup": 0, "lr": 0.1 * k}, names=("ant", "bee", "cat"))
        run = folder / f"a-run-with-a-rather-long-name-{k}"
        watchers = [RunFile(run), JsonLines(run / "metrics.jsonl"), Samples(run / "samples")]
        for watcher in watchers:
            watcher.started(info)
        for record, watcher in product(result.rounds, watchers):
            watcher.rounded(record)
        for watcher in watchers:
            watcher.finished(replace(result, info=info))
    return write_comparison(sorted(folder.iterdir()), folder / "compare.html")


def a_result() -> RunResult:
    names = ("ant", "<script>document.title='pwned'</script>", "cat")
    info = RunInfo(
        method="NAYER",
        settings={"steps": 30},
        plan={"rounds": 6, "warmup": 0},
        teacher={"name": "big", "parameters": 4000, "macs": 1_000_000, "bytes": 16_500},
        student={"name": "small", "parameters": 1000, "macs": 250_000, "bytes": 4_100},
        image_shape=(1, 8, 8),
        classes=3,
        names=names,
    )
    labels = torch.arange(3).repeat_interleave(10)
    images = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    seen = Evaluation(0.9, 0.95, 0.2, 360, (0.9, 0.8, 1.0), (0.95, 0.9, 1.0))
    rounds = [
        RoundRecord(r, 6, False, 1.0, {"loss/bn": 6.0 - r, "class_entropy": 0.2}, seen, (images, labels))
        for r in range(6)
    ]
    teacher = replace(seen, accuracy=0.99, agreement=1.0)
    return RunResult(info, rounds, seen, teacher, 6.0, {"student": "student.safetensors"})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_opens_without_complaints(browser: Any, report: Path, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.title() == "big to small by NAYER"
    assert page.locator("h1").inner_text() == "big → small"
    assert page.locator("#warnings li").count() == 1
    assert page.locator("#numbers tbody tr").count() == 2
    assert page.locator("#classes li").count() == 3
    assert page.locator("svg:visible").count() == 3  # of the first chart one of two sizes shows
    assert page.locator("script").count() == 0
    # Nothing is wider than the window, and the pictures are there.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 500)")
    assert page.evaluate("document.images.length") == 6
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    assert dark == (scheme == "dark")
    page.close()


def test_rows_and_their_names_are_level(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(report.as_uri())
    picture = page.locator(".sheet img").first.bounding_box()
    rows = page.locator(".sheet").first.locator("li")
    for k in range(3):
        box = rows.nth(k).bounding_box()
        middle = box["y"] + box["height"] / 2
        assert abs(middle - (picture["y"] + picture["height"] * (k + 0.5) / 3)) < 2
    page.close()


@pytest.mark.parametrize("width", [360, 390, 800, 1200])
def test_no_number_is_cut_and_no_chart_is_a_strip(browser: Any, report: Path, comparison: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    for file in (report, comparison):
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        # Cells lie within the window, or (between phone and desktop) in a part that scrolls by keyboard.
        right = page.evaluate(
            "Math.max(...[...document.querySelectorAll('#numbers td')].map(c => c.getBoundingClientRect().right))"
        )
        if width <= 640 or (width >= 1200 and file == report):
            assert right <= width
        heights = page.evaluate(
            "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height).filter(h => h)"
        )
        assert min(heights) > 130
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_comparison_opens_without_complaints(browser: Any, comparison: Path, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(comparison.as_uri())
    assert complaints == []
    assert page.locator("#numbers tbody tr").count() == 8
    assert page.locator("#legend li").count() == 8
    assert page.locator("#differing tbody tr").count() == 1
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 500)")
    # Tones of the runs differ from each other and from the paper.
    line = "i => getComputedStyle(i).borderTopColor + getComputedStyle(i).borderTopStyle"
    colours = page.evaluate(f"[...document.querySelectorAll('#legend i')].map({line})")
    assert len(set(colours)) == 8
    page.close()


def test_what_scrolls_is_reached_by_keyboard(browser: Any, comparison: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(comparison.as_uri())
    labels = []
    for _ in range(2):
        page.keyboard.press("Tab")
        labels.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert labels == ["Numbers", "Settings that differ"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = page.evaluate("document.activeElement.scrollLeft")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.activeElement.scrollLeft > before", arg=before)
    page.close()
