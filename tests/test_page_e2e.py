"""The report in a real browser: headless Chromium opens the file and complains about nothing."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import dfkd
from dfkd.engine.records import Evaluation, RoundRecord, RunInfo, RunResult
from dfkd.report.comparison import write_comparison
from dfkd.report.observers import JsonLines, RunFile, Samples
from dfkd.report.page import write_page
from dfkd.report.repeat_page import write_repeat_page
from dfkd.report.trial_page import SEARCH_PAGE

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
    some_runs([folder / f"a-run-with-a-rather-long-name-{k}" for k in range(8)])
    return write_comparison(sorted(folder.iterdir()), folder / "compare.html")


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repeat")
    some_runs([folder / f"seed{k}" for k in range(3)])
    return write_repeat_page(folder)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a search of five trials, one of them cut off, with test images."""
    pytest.importorskip("optuna", reason="optuna is not installed")
    stream = torch.Generator().manual_seed(5)
    test = torch.randint(0, 256, (30, 1, 8, 8), generator=stream).to(torch.uint8), torch.arange(30) % 3
    method = dfkd.NAYER(steps=1, synthesis_batch=12, batches=1, warmup_batches=1, width=8, channels=4, pad=1)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr("dfkd.tune.search.HELDOUT", 48)
        torch.manual_seed(0)
        done = dfkd.search(
            dfkd.build("wrn10-1", classes=3, channels=1),
            dfkd.build("resnet8", classes=3, channels=1),
            method,
            {"method.lr": "0.0001:0.1:log", "plan.lr": "0.01:0.5:log", "method.keep": "best,last"},
            out=tmp_path_factory.mktemp("search") / "a-search-with-a-rather-long-name-of-its-own",
            trials=5,
            plan=dfkd.Plan(rounds=2, steps=2, batch_size=12),
            watch=dfkd.Watching(samples_every=1),
            image_size=(1, 8, 8),
            mean=[0.4],
            std=[0.3],
            classes=3,
            test=test,
        )
    return done.folder / SEARCH_PAGE


def some_runs(folders: Sequence[Path]) -> None:
    """Finished runs that differ in their learning rates."""
    result = a_result()
    for k, run in enumerate(folders):
        info = replace(result.info, plan={"rounds": 6, "warmup": 0, "lr": 0.1 * k}, names=("ant", "bee", "cat"))
        watchers = [RunFile(run), JsonLines(run / "metrics.jsonl"), Samples(run / "samples")]
        for watcher in watchers:
            watcher.started(info)
        for record, watcher in product(result.rounds, watchers):
            watcher.rounded(record)
        for watcher in watchers:
            watcher.finished(replace(result, info=info))


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1200])
def test_pages_about_several_runs_open_without_complaints(
    browser: Any, searched: Path, repeated: Path, scheme: str, width: int
) -> None:
    for file, rows, title in (
        (searched, 5, "Search: wrn10-1 → resnet8 by NAYER"),
        (repeated, 3, "3 seeds of one run"),
    ):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
        page.on("pageerror", lambda error, complaints=complaints: complaints.append(str(error)))
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.goto(file.as_uri())
        assert complaints == []
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
        assert page.title() == title
        assert page.locator("#numbers tbody tr").count() == rows
        assert page.locator("#legend li").count() == rows
        assert page.locator("script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        right = "Math.max(...[...document.querySelectorAll('#numbers td')].map(c => c.getBoundingClientRect().right))"
        assert page.evaluate(right) <= width
        heights = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height).filter(h => h)"
        assert min(page.evaluate(heights)) > 130
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
        assert dark == (scheme == "dark")
        page.close()


def test_the_search_says_what_each_setting_does_and_shows_test_images_last(browser: Any, searched: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(searched.as_uri())
    assert page.locator("#settings figure").count() == 3
    complete = 5 - page.locator("#numbers tbody th", has_text="pruned").count()
    assert page.locator("#tested tbody tr").count() == complete > 0
    above = "(id) => document.getElementById(id).getBoundingClientRect().top"
    assert page.evaluate(above, "numbers") < page.evaluate(above, "settings") < page.evaluate(above, "tested")
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
