"""The figures of a run: what is drawn, that nothing is disturbed by it, and the files they become."""

import hashlib
import io
import json
import math
import shlex
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dfkd
from dfkd.cli.main import main
from dfkd.data.readers import STATISTICS
from dfkd.engine.checkpoint import pools_of
from dfkd.engine.core import State, Task
from dfkd.engine.driver import run
from dfkd.engine.recombine import Recombine
from dfkd.engine.records import Evaluation, RoundRecord
from dfkd.errors import UserError
from dfkd.identity import weights_hash
from dfkd.methods.kd3 import KD3State
from dfkd.nets.zoo import build
from dfkd.report import figures
from dfkd.report.cams import cam_report
from dfkd.report.curves import accuracy_panel, comparison, loss_panels, measure_panels
from dfkd.report.drawers import DRAWERS, class_sheet, one_of_each
from dfkd.report.figures import curves_of, figures_of
from dfkd.report.gallery import Figure, Gallery, read_gallery, write_gallery
from dfkd.report.grid import with_names
from dfkd.report.page import render
from dfkd.report.scene import newest_images
from settings import SETTINGS, Setting, mostly_slow, tiny_plan, tiny_task

EXPECTED = {
    "NAYER": {"classes", "attention", "features", "codes"},
    "SpaceshipNet": {"classes", "attention", "features", "exchange"},
    "DFND": {"classes", "attention", "selection", "selection-classes", "features"},
    "KD3": {"classes", "attention", "selection", "selection-classes", "features"},
    "STTS": {"classes", "features", "target-maximum", "soft-labels", "soft-labels-by-class"},
}


def finished(row: Setting) -> tuple[Task, State]:
    task = tiny_task(row)
    return task, run(task, row.method, row.plan)


def some_tests(row: Setting, n: int = 30) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(5)
    return torch.randint(256, (n, *row.image_shape), dtype=torch.uint8, generator=stream), torch.arange(n) % row.classes


def is_picture(figure: Figure) -> bool:
    if figure.png:
        return Image.open(io.BytesIO(figure.data)).width > 50
    return ET.fromstring(figure.data).tag.endswith("svg")


def everything(task: Task, state: State) -> tuple[Any, ...]:
    """Whatever a run continues from, in a form that can be compared."""
    nets = [weights_hash(net) for net in (task.teacher, task.student, state.joint)]
    modes = [module.training for probe in (task.teacher, task.student, state.joint) for module in probe.modules()]
    asks = [parameter.requires_grad for parameter in (*task.teacher.parameters(), *task.student.parameters())]
    streams = [hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in task.runtime.streams().values()]
    return nets, modes, asks, streams, {name: pool.added for name, pool in pools_of(state).items()}


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, "NAYER", "KD3", "VanillaKD"))
def test_every_method_has_its_figures_and_is_left_alone(name: str) -> None:
    row = SETTINGS[name]
    task, state = finished(row)
    task.student.train()
    before = everything(task, state)
    gallery = figures_of(task, row.method, row.plan, state, some_tests(row))
    assert everything(task, state) == before
    assert {figure.name for figure in gallery.figures} == EXPECTED.get(name, {"classes", "attention", "features"})
    assert all(is_picture(figure) and figure.caption and figure.alt for figure in gallery.figures)
    assert all(math.isfinite(value) for figure in gallery.figures for value in figure.numbers.values())
    assert set(gallery.skipped) == ({"attention"} if name == "STTS" else set())  # LeNet pools nothing
    again = figures_of(task, row.method, row.plan, state, some_tests(row))
    assert [figure.data for figure in again.figures] == [figure.data for figure in gallery.figures]


def test_without_test_images_their_figure_is_named_with_a_reason() -> None:
    row = SETTINGS["NAYER"]
    task, state = finished(row)
    gallery = figures_of(task, row.method, row.plan, state)
    assert [figure.name for figure in gallery.figures] == ["classes", "attention", "codes"]
    assert list(gallery.skipped) == ["features"]
    assert "\n" not in gallery.skipped["features"]


def test_a_figure_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scene: object) -> Figure:
        raise RuntimeError("no such luck\nat all")

    row = SETTINGS["D3K"]
    task, state = finished(row)
    monkeypatch.setattr(figures, "DRAWERS", MappingProxyType({"odd": broken, "classes": DRAWERS["classes"]}))
    gallery = figures_of(task, row.method, row.plan, state)
    assert [figure.name for figure in gallery.figures] == ["classes"]
    assert gallery.skipped == {"odd": "RuntimeError: no such luck"}


def test_the_newest_images_of_the_pool_are_shown() -> None:
    row = SETTINGS["NAYER"]
    task, state = finished(row)
    images, labels = newest_images(task, row.method, row.plan, state)
    rows = pools_of(state)["pool"].newest(32)
    assert torch.equal(images, rows["images"].flip(0))
    assert torch.equal(labels, rows["labels"].flip(0))
    assert len(newest_images(task, row.method, row.plan, None)[0]) == 0


def test_the_sheet_has_a_row_for_each_class() -> None:
    images = torch.arange(1, 7, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8) * 40
    figure = class_sheet((images, torch.tensor([2, 0, 0, 1, 1, 1])), ("ant", "bee", "cat", "dog"))
    picture = np.asarray(Image.open(io.BytesIO(figure.data)))
    left = picture.shape[1] - 10 * 50  # ten columns of 48 pixels and their borders
    seen = [[tuple(picture[25 + 50 * i, left + 25 + 50 * j, [0, 3]]) for j in range(4)] for i in range(4)]
    nothing = (0, 0)
    assert seen == [
        [(80, 255), (120, 255), nothing, nothing],
        [(160, 255), (200, 255), (240, 255), nothing],
        [(40, 255), nothing, nothing, nothing],
        [nothing] * 4,
    ]
    share = np.array([2, 3, 1]) / 6
    assert figure.numbers["class entropy (nats)"] == pytest.approx(float(-(share * np.log(share)).sum()), abs=1e-5)
    assert figure.numbers["classes that occur"] == 3
    assert (picture[:, :left, 3] > 0).any()  # the names
    with pytest.raises(UserError, match="needs some"):
        class_sheet((images[:0], torch.zeros(0, dtype=torch.int64)), ("ant",))


def test_names_make_room_for_themselves() -> None:
    plain = Image.new("RGB", (100, 60), "red")
    sheet = with_names(plain, ["a", "b", "a name that is much too long for any margin"], ["x", "y"], most=50)
    assert sheet.size == (50 + 6 + 100, 13 + 6 + 60)
    assert sheet.getpixel((56, 19)) == (255, 0, 0, 255)
    margin = np.asarray(sheet)[19:, :56, 3]
    assert all(band.any() for band in np.split(margin[:60], 3))
    assert np.asarray(sheet)[:19, 56:, 3].any()
    assert with_names(plain).size == plain.size


def test_one_image_of_each_class_comes_first() -> None:
    labels = torch.tensor([3, 3, 1, 0, 1, 2])
    assert one_of_each(labels, 5).tolist() == [3, 2, 5, 0, 1]
    assert one_of_each(labels, 2).tolist() == [3, 5]
    assert one_of_each(labels[:1], 5).tolist() == [0]


def test_attention_is_measured_on_what_the_student_learnt_from() -> None:
    row = SETTINGS["SpaceshipNet"]
    task, state = finished(row)
    exam = some_tests(row)
    figure = next(f for f in figures_of(task, row.method, row.plan, state, exam).figures if f.name == "attention")
    for key, value in cam_report(task, exam[0]).items():
        assert figure.numbers[f"test/{key}"] == pytest.approx(value)
    assert list(figure.numbers)[:4] == ["mae", "mse", "test/mae", "test/mse"]


def test_the_selection_is_counted() -> None:
    row = SETTINGS["KD3"]
    task, state = finished(row)
    assert isinstance(state, KD3State)
    made = {figure.name: figure for figure in figures_of(task, row.method, row.plan, state).figures}
    counts = np.bincount(state.predicted.numpy(), minlength=row.classes)
    share = counts[counts > 0] / counts.sum()
    told = made["selection-classes"].numbers
    assert told["most of one class"] == counts.max()
    assert told["fewest of one class"] == counts.min()
    assert told["class entropy (nats)"] == pytest.approx(float(-(share * np.log(share)).sum()), abs=1e-5)
    assert made["selection"].numbers["share"] == len(state.chosen) / row.web
    assert b"original" not in made["features"].data
    assert b"not selected" in made["features"].data


def test_a_recombined_method_shows_what_the_maker_of_its_images_shows() -> None:
    kd3, nayer = SETTINGS["KD3"], SETTINGS["NAYER"].method
    images: Any = replace(cast(Any, kd3.method), share_head=False)
    task, method = tiny_task(kd3), Recombine(images, replace(cast(Any, nayer), alpha_bn=0.0))
    state = run(task, method, kd3.plan)
    made = {figure.name for figure in figures_of(task, method, kd3.plan, state).figures}
    assert made >= EXPECTED["KD3"]
    assert method.all_measures() == images.all_measures()


# ---- curves ---------------------------------------------------------------------------------------------------------


def a_record(round: int, accuracy: float | None, **metrics: float) -> RoundRecord:
    seen = None if accuracy is None else Evaluation(accuracy, 0.5, 0.1, 10)
    return RoundRecord(round, 3, False, 2.0, metrics, seen)


def test_curves_show_what_there_is() -> None:
    records = [
        a_record(0, None, lr=0.1, **{"loss/bn": math.nan, "seconds/student": 1.0}),
        a_record(1, 0.7, lr=0.1, **{"loss/bn": 1.5, "threshold/low": 0.2}),
    ]
    assert accuracy_panel(records, None).lines["accuracy of the student"] == [(2.0, 0.7)]
    assert [panel.title for panel in loss_panels(records)] == ["bn"]
    assert [panel.title for panel in measure_panels(records)] == ["learning rate of the student", "threshold/low"]
    assert [figure.name for figure in curves_of(records, None)] == ["accuracy", "losses", "measures"]
    assert curves_of([], None) == []
    assert all(figure.png for figure in curves_of(records, None, "png"))


def test_runs_beside_each_other_count_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("dfkd.report.curves._draw", lambda axes, panel, legend=True: drawn.append(panel))
    comparison({"a": [a_record(0, None), a_record(1, 0.5), a_record(2, 0.6)]})
    assert [panel.lines for panel in drawn] == [{"a": [(2.0, 0.5), (3.0, 0.6)]}, {"a": [(4.0, 0.5), (6.0, 0.6)]}]


def test_more_runs_than_tones_have_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    looks: list[tuple[Any, ...]] = []
    plot = Axes.plot

    def noting(self: Axes, *points: Any, **style: Any) -> Any:
        looks.append((style["color"], style["linestyle"]))
        return plot(self, *points, **style)

    monkeypatch.setattr(Axes, "plot", noting)
    comparison({f"run {k}": [a_record(0, 0.1 * k)] for k in range(8)})
    assert len(set(looks)) == 8
    assert len(looks) == 2 * 8  # each run looks the same in both panels
    assert len({color for color, style in looks if style == "-"}) == 6


@pytest.mark.parametrize("folders", [["a", "."], ["x/a", "y/a"]])
def test_every_run_has_a_name_in_the_legend(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_comparison import a_run, an_info

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in folders:
        a_run(Path(folder), an_info(), 0.9)
    assert main(["plot", "--compare", ",".join(folders), "--out", "drawn"]) == 0
    text = "".join(ET.fromstring(Path("drawn/comparison.svg").read_bytes()).itertext())
    assert all(name in text for name in (["a", "here"] if "." in folders else folders))


# ---- files ----------------------------------------------------------------------------------------------------------


def a_figure(name: str = "one", *, png: bool = False, numbers: dict[str, float] | None = None) -> Figure:
    data = b"<svg/>" if not png else b"\x89PNG\r\n\x1a\n" + bytes(20)
    return Figure(name, f"<b>{name}</b>", data, f"what {name} shows", numbers or {})


def test_figures_come_back_from_their_folder(tmp_path: Path) -> None:
    assert read_gallery(tmp_path) == Gallery()
    gallery = Gallery([a_figure(numbers={"mae": 1.5}), a_figure("two", png=True)], {"three": "no reason"})
    write_gallery(tmp_path / "f", gallery)
    assert read_gallery(tmp_path / "f") == gallery
    (tmp_path / "f" / "mine.txt").write_text("stays")
    write_gallery(tmp_path / "f", Gallery([a_figure("two")]))
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"index.json", "two.svg", "mine.txt"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"figures": 3, "skipped": {}}',
        '{"figures": [{}], "skipped": {}}',
        '{"figures": [{"name": "a", "file": "../run.json", "caption": "", "alt": "", "numbers": {}}], "skipped": {}}',
        '{"figures": [{"name": "a", "file": "gone.png", "caption": "", "alt": "", "numbers": {}}], "skipped": {}}',
        '{"figures": [{"name": "a", "file": "one.svg", "caption": "", "alt": "", "numbers": 3}], "skipped": {}}',
    ],
)
def test_a_damaged_index_is_one_sentence(text: str, tmp_path: Path) -> None:
    write_gallery(tmp_path, Gallery([a_figure()]))
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"needs a list of figures in .*; draw them again with `dfkd plot`"):
        read_gallery(tmp_path)
    write_gallery(tmp_path, Gallery([a_figure()]))
    assert len(read_gallery(tmp_path).figures) == 1


# ---- the page and the command line ----------------------------------------------------------------------------------

TINY = shlex.split(
    """
    --student wrn10-1 --data digits --data.test digits --plan.rounds 2 --plan.steps 2 --plan.batch_size 16
    --method.pad 1 --method.flip false --watch.quiet --watch.export false --runtime.device cpu --runtime.threads 1
    """
)
NAYER = shlex.split(
    """
    --plan.warmup 1 --method.steps 2 --method.synthesis_batch 20 --method.batches 1 --method.warmup_batches 1
    --method.width 8 --method.channels 4
    """
)


@pytest.fixture
def here(tmp_path: Path, digits_weights: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`distill` from a teacher in the current folder, which is empty but for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    shutil.copy(digits_weights, "teacher.pt")
    return ["distill", "--teacher", "wrn16-1", "--teacher.weights", "teacher.pt", *TINY]


def index(folder: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((Path(folder) / "index.json").read_text())
    return held


@pytest.mark.slow
def test_a_run_draws_its_figures_and_plot_draws_the_same(here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*here, *NAYER, "--out", "a"]) == 0
    rows = index("a/figures")["figures"]
    assert [row["name"] for row in rows] == ["classes", "attention", "features", "codes"]
    assert {row["file"] for row in rows} | {"index.json"} == {path.name for path in Path("a/figures").iterdir()}
    page = Path("a/report.html").read_text()
    assert 'id="figure-attention"' in page
    assert 'id="figure-features"' in page
    assert 'id="figure-classes"' not in page  # the last sheet of samples shows the same
    assert f'alt="{rows[1]["alt"]}"'.replace("'", "&#39;") in page
    capsys.readouterr()
    assert main(["plot", "a", "--out", "again"]) == 0
    assert [row["name"] for row in index("again")["figures"]][:3] == ["accuracy", "losses", "measures"]
    assert "not drawn" not in capsys.readouterr().out
    for row in rows:
        assert (Path("again") / row["file"]).read_bytes() == (Path("a/figures") / row["file"]).read_bytes()
    assert main(["plot", "a", "--format", "png"]) == 0
    assert not list(Path("a/figures").glob("*.svg"))
    assert main(["report", "a"]) == 0
    assert 'id="figure-accuracy"' not in Path("a/report.html").read_text()  # the page draws its own


@pytest.mark.slow
def test_plot_does_with_what_is_left(here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*here, *NAYER, "--out", "a", "--watch.figures", "false"]) == 0
    assert not Path("a/figures").exists()
    Path("teacher.pt").rename("moved.pt")
    assert main(["plot", "a", "--out", "b"]) == 0
    assert [row["name"] for row in index("b")["figures"]] == ["accuracy", "losses", "measures", "classes"]
    assert list(index("b")["skipped"]) == ["networks"]
    assert main(["plot", "a", "--teacher.weights", "moved.pt", "--out", "c"]) == 0
    assert "attention" in [row["name"] for row in index("c")["figures"]]
    shutil.rmtree("a/checkpoint")
    capsys.readouterr()
    assert main(["plot", "a", "--teacher.weights", "moved.pt"]) == 0
    assert "not drawn: plot needs the checkpoint of the run" in capsys.readouterr().out
    assert main(["plot", "a"]) == 0
    assert list(index("a/figures")["skipped"]) == ["networks", "classes"]
    capsys.readouterr()
    assert main(["plot", "a", "--out", "moved.pt"]) == 2
    assert "plot needs a folder to write to, got the file moved.pt" in capsys.readouterr().err
    shutil.copytree("a", "z")
    assert main(["plot", "--compare", "a,z"]) == 0
    assert Path("comparison.svg").exists()
    for alone in (["--compare", "a"], ["--compare", "a,./a"], ["a", "--compare", "a"]):
        capsys.readouterr()
        assert main(["plot", *alone]) == 2
        assert "plot --compare needs at least two runs, got only" in capsys.readouterr().err
    assert main(["plot"]) == 2
    assert main(["plot", "moved.pt"]) == 2


def test_a_generator_read_from_a_checkpoint_makes_the_same_images(here: list[str]) -> None:
    more = "--method SpaceshipNet --method.steps 2 --method.synthesis_batch 20 --method.width 8 --method.channels 4"
    assert main([*here, *shlex.split(more), "--out", "s"]) == 0
    assert main(["plot", "s", "--out", "again"]) == 0
    for row in index("s/figures")["figures"]:
        assert (Path("again") / row["file"]).read_bytes() == (Path("s/figures") / row["file"]).read_bytes()


@pytest.mark.slow
def test_what_was_drawn_before_the_checkpoint_went_stays(here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*here, *NAYER, "--out", "a"]) == 0
    before = Path("a/figures/attention.png").read_bytes()
    shutil.rmtree("a/checkpoint")
    assert main(["plot", "a"]) == 0
    assert "attention" not in capsys.readouterr().out.split("student a/student.safetensors")[-1]
    assert Path("a/figures/attention.png").read_bytes() == before
    assert {"accuracy", "attention", "classes"} <= {row["name"] for row in index("a/figures")["figures"]}
    assert main(["plot", "a", "--out", "b"]) == 0
    assert "attention" not in [row["name"] for row in index("b")["figures"]]
    Path("a/figures/index.json").write_text("[]")
    assert main(["plot", "a"]) == 0


def test_a_selection_is_drawn(here: list[str]) -> None:
    stream = np.random.default_rng(0)
    np.save("web.npy", stream.integers(0, 256, (60, 8, 8), dtype=np.uint8))
    words = [*here, "--method", "KD3", "--method.v_th", "0.1", "--data.web", "web.npy", "--out", "k"]
    assert main(words) == 0
    rows = {row["name"]: row for row in index("k/figures")["figures"]}
    assert rows.keys() >= {"selection", "selection-classes", "features"}
    metrics = json.loads(Path("k/metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    assert rows["selection"]["numbers"]["selected"] == metrics["selected"]
    page = Path("k/report.html").read_text()
    assert 'id="figure-selection-classes"' in page
    assert "Web images selected" in page
    Path("k/figures/index.json").write_text("{")
    assert main(["report", "k"]) == 2


def test_a_finished_run_does_not_fail_because_of_its_figures(
    digits_teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("the run needs to write here, got no space; free some")

    monkeypatch.setattr("dfkd.api.write_gallery", refuse)
    mean, std = STATISTICS["digits"]
    method, plan = SETTINGS["NAYER"].method, tiny_plan(rounds=1, warmup=1)
    student, settings = build("resnet8", 10, 1).net, {"image_size": (1, 8, 8), "mean": mean, "std": std}
    with pytest.warns(UserWarning, match="the figures were not written"):
        dfkd.distill(
            digits_teacher,
            student,
            method,
            plan=plan,
            out=tmp_path / "r",
            progress=False,
            export=False,
            **settings,  # type: ignore[arg-type]
        )
    assert json.loads((tmp_path / "r/run.json").read_text())["status"] == "finished"


def test_captions_on_the_page_are_text_and_few_numbers_stand_below(tmp_path: Path) -> None:
    from dfkd.report.files import StoredRun
    from test_report import a_result

    result = a_result()
    run = StoredRun(result.info, result.rounds, result, "finished")
    many = {f"n{i}": 1000.0 * i for i in range(9)}
    page = render(run, gallery=Gallery([a_figure("classes", numbers=many)], {"odd": "<i>because</i>"}))
    assert "&lt;b&gt;classes&lt;/b&gt;" in page
    assert "&lt;i&gt;because&lt;/i&gt;" in page
    assert "n1: 1,000 · n2: 2,000" in page
    assert "n6" not in page
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+"' in page
