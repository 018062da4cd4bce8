"""The report room, on made-up runs whose numbers are known."""

import base64
import io
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image, ImageFont
from rich.console import Console

from dfkd.engine.measures import Measure
from dfkd.engine.records import Agreement, Estimate, Evaluation, Observer, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.methods.kd3 import KD3
from dfkd.report import charts, files, grid, observers, page, sheets, summary
from dfkd.report.console import Progress, cells, table
from dfkd.report.conversion import Conversion
from dfkd.report.files import StoredRun, read_rounds, read_run, record_line, write_run
from dfkd.report.gallery import Figure, Gallery
from dfkd.report.page import warnings_of
from dfkd.report.summary import Row, known_measures, rows_of
from dfkd.report.trial_page import write_search_page
from dfkd.report.trials import Trial, write_trials
from dfkd.report.verdict import verdict_of

NAN, INF = math.nan, math.inf


def an_evaluation(accuracy: float = 0.9, agreement: float = 0.95, classes: int = 3) -> Evaluation:
    return Evaluation(accuracy, agreement, 0.25, 360, (accuracy,) * classes, (agreement,) * classes)


def an_info(classes: int = 3, names: tuple[str, ...] = (), measures: dict[str, Measure] | None = None) -> RunInfo:
    return RunInfo(
        method="NAYER",
        settings={"steps": 30, "noise": "nl", "capacity": None, "warm": {"rounds": 2, "on": True}},
        plan={"rounds": 4, "warmup": 1, "lr": 0.1},
        teacher={"name": "big", "parameters": 4000, "macs": 1_000_000, "bytes": 16_500, "sha256": "ab" * 32},
        student={"name": "small", "parameters": 1000, "macs": 250_000, "bytes": 4_100},
        image_shape=(1, 8, 8),
        classes=classes,
        names=names,
        text={"prompt": "a photo of a {}"},
        provenance={"torch": "2.13.0", "seed": 0},
        measures=measures or {},
    )


def a_record(round: int = 0, rounds: int = 5, evaluation: Evaluation | None = None, **metrics: float) -> RoundRecord:
    return RoundRecord(round, rounds, round < 1, 2.0, {"loss/bn": 3.0 - round, **metrics}, evaluation)


def an_estimate(*kinds: str, signals: dict[str, float] | None = None) -> Estimate:
    held = Agreement(0.875, 0.8, 0.93, 128, 0.1, (0.9, 0.8, 0.9))
    return Estimate(dict.fromkeys(kinds, held), signals or {}, 0.1)


def a_result(info: RunInfo | None = None, rounds: int = 5) -> RunResult:
    records = [a_record(r, rounds, an_evaluation(0.5 + 0.1 * r), pool=64.0 * r, lr=0.1) for r in range(rounds)]
    info = an_info() if info is None else info
    final = an_evaluation(0.9, 0.95, info.classes)
    teacher = an_evaluation(0.99, 1.0, info.classes)
    return RunResult(info, records, final, teacher, 93.4, {"student": "student.safetensors"})


def some_samples(classes: int = 3, each: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(classes).repeat_interleave(each)
    images = (40 * labels + 10).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return images, labels


# JSON -----------------------------------------------------------------------------------------------------------


def strict(text: str) -> object:
    """Parse as the standard demands: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_a_record_comes_back_from_its_line() -> None:
    record = a_record(3, 9, an_evaluation(), pool=128.0, lr=0.1)
    line = record_line(replace(record, samples=some_samples()))
    assert "\n" not in line
    assert files.record_from(json.loads(line)) == record


def test_numbers_that_are_not_finite_become_null_and_nan() -> None:
    record = a_record(0, 1, replace(an_evaluation(), accuracy=NAN, class_accuracy=(NAN, 0.5, 1.0)), bad=INF, worse=-INF)
    row = strict(record_line(record))
    assert isinstance(row, dict)
    assert row["metrics"] == {"loss/bn": 3.0, "bad": None, "worse": None}
    back = files.record_from(row)
    assert math.isnan(back.metrics["bad"])
    assert math.isnan(back.metrics["worse"])
    assert back.evaluation is not None
    assert math.isnan(back.evaluation.accuracy)
    assert math.isnan(back.evaluation.class_accuracy[0])
    assert back.evaluation.class_accuracy[1:] == (0.5, 1.0)


def test_a_run_comes_back_from_its_folder(tmp_path: Path) -> None:
    result = a_result(an_info(names=("a", "ü", "</script>"), measures=dict(KD3.measures)))
    everyone: list[Observer] = [observers.RunFile(tmp_path), observers.JsonLines(tmp_path / "metrics.jsonl")]
    for observer in everyone:
        observer.started(result.info)
    assert read_run(tmp_path) == StoredRun(result.info, [], None, "running")
    for observer in everyone:
        observer.stepped(0, "synthesis", 1, 2)
        for record in result.rounds:
            observer.rounded(record)
        observer.finished(result)
    assert read_run(tmp_path) == StoredRun(result.info, result.rounds, result, "finished")
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "metrics.jsonl"}


def test_an_interrupted_run_keeps_its_status(tmp_path: Path) -> None:
    write_run(tmp_path, an_info(), None, "interrupted")
    assert read_run(tmp_path).status == "interrupted"
    strict((tmp_path / "run.json").read_text())


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"info": {}, "result": null, "status": "running"}', "\x00"])
def test_a_folder_without_a_run_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"^a run's folder needs") as caught:
        read_run(tmp_path)
    assert "run.json" in str(caught.value)


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, an_info(), None, "running")
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace('"running"', '"sleeping"'))
    with pytest.raises(UserError, match="got something else"):
        read_run(tmp_path)


def test_a_torn_last_line_is_left_out_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = record_line(a_record(0))
    path.write_text(good + "\n" + good[:40])
    assert read_rounds(path) == [a_record(0)]
    path.write_text(good[:40] + "\n" + good + "\n")
    with pytest.raises(UserError, match="line 1"):
        read_rounds(path)


def test_resuming_drops_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(record_line(a_record(r)) + "\n" for r in range(4)) + '{"round": 4, "rou')
    writer = observers.JsonLines(path, resume_at=2)
    writer.started(an_info())
    assert [record.round for record in read_rounds(path)] == [0, 1]
    writer.rounded(a_record(2))
    assert [record.round for record in read_rounds(path)] == [0, 1, 2]
    assert path.read_text().endswith("\n")


def test_a_new_run_begins_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    observers.JsonLines(path).started(an_info())
    assert path.read_text() == ""
    path.write_text(record_line(a_record(0)) + "\n")
    observers.JsonLines(path).started(an_info())
    assert path.read_text() == ""


def test_an_unwritable_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="the run needs to write"):
        observers.JsonLines(tmp_path / "metrics.jsonl").rounded(a_record())


# Grids ----------------------------------------------------------------------------------------------------------


def test_a_grid_places_every_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 4, 6), generator=generator).to(torch.uint8)
    labels = torch.tensor([2, 0, 2, 2, 0])
    sheet = grid.image_grid(images, labels, columns=2, tile=10)
    factor, down, across = 2, 10, 14  # the longer side 6 grows to 12
    assert sheet.mode == "RGBA"
    assert sheet.size == (2 * across, 2 * down)
    rows = [[1, 4], [0, 2]]
    for y in range(sheet.height):
        for x in range(sheet.width):
            image = images[rows[y // down][x // across]]
            inner_y, inner_x = y % down - 1, x % across - 1
            inside = 0 <= inner_y < 8 and 0 <= inner_x < 12
            colour = image[:, inner_y // factor, inner_x // factor].tolist() if inside else [0, 0, 0]
            assert sheet.getpixel((x, y)) == (*colour, 255 if inside else 0)


@pytest.mark.parametrize(("channels", "taken"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_channels_shows(channels: int, taken: list[int]) -> None:
    images = torch.arange(channels, dtype=torch.uint8).mul(50)[None, :, None, None].expand(1, -1, 4, 4)
    sheet = grid.image_grid(images, torch.tensor([0]), columns=1, tile=4)
    assert sheet.getpixel((2, 2)) == (*[50 * channel for channel in taken], 255)


def test_a_class_without_images_leaves_its_row_empty() -> None:
    images, labels = some_samples(classes=1, each=1)
    sheet = grid.image_grid(images, labels, columns=2, classes=[1, 0])
    assert sheet.size == (100, 100)
    alpha = torch.tensor(list(sheet.getchannel("A").tobytes())).view(100, 100)
    assert alpha[:50].sum() == 0
    assert alpha[50:, :50].sum() == 255 * 48 * 48
    assert alpha[50:, 50:].sum() == 0


def test_bad_grids_are_refused() -> None:
    images, labels = some_samples()
    with pytest.raises(UserError, match="uint8"):
        grid.image_grid(images.float(), labels, 1)
    with pytest.raises(UserError, match="5 labels"):
        grid.image_grid(images, labels[:5], 1)
    with pytest.raises(UserError, match="a class and a column"):
        grid.image_grid(images[:0], labels[:0], 1)
    with pytest.raises(UserError, match="0 columns"):
        grid.image_grid(images, labels, 0)


@pytest.mark.parametrize(
    ("shape", "classes", "rows", "columns"),
    [((1, 8, 8), 10, 10, 10), ((3, 32, 32), 100, 20, 10), ((3, 224, 224), 1000, 3, 5), ((1, 8, 8), 2, 2, 10)],
)
def test_the_layout_keeps_sheets_small(shape: tuple[int, int, int], classes: int, rows: int, columns: int) -> None:
    chosen = grid.layout(shape, classes)
    assert (len(chosen.classes), chosen.columns) == (rows, columns)
    assert len(set(chosen.classes)) == rows
    assert min(chosen.classes) == 0
    assert max(chosen.classes) < classes
    assert rows * grid.row_height(shape) * columns * (shape[2] * grid.magnification(*shape[1:]) + 2) <= 1_000_000


def test_a_huge_image_still_has_a_sheet() -> None:
    assert grid.layout((3, 2000, 3000), 10) == ((0,), 1)


def test_samples_are_written_by_rounds_done(tmp_path: Path) -> None:
    writer = observers.Samples(tmp_path)
    writer.started(an_info())
    writer.rounded(a_record(3))
    writer.rounded(replace(a_record(4), samples=(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0).long())))
    assert list(tmp_path.iterdir()) == []
    writer.stepped(9, "synthesis", 1, 1)
    writer.rounded(replace(a_record(9), samples=some_samples()))
    writer.finished(a_result())
    assert [path.name for path in tmp_path.iterdir()] == ["round_0010.png"]
    with Image.open(tmp_path / "round_0010.png") as image:
        assert image.size == (500, 150)
        assert [image.getpixel((25, 25 + 50 * k)) for k in range(3)] == [(10 + 40 * k,) * 3 + (255,) for k in range(3)]


# Sentences ------------------------------------------------------------------------------------------------------


def kinds(records: list[RoundRecord], classes: int) -> list[str]:
    return [concern.kind for concern in warnings_of(records, classes)]


def test_a_sound_run_has_no_warnings() -> None:
    records = [a_record(r, 5, an_evaluation(), class_entropy=2.2, pairwise_distance=0.3) for r in range(5)]
    assert kinds(records, 10) == []
    assert kinds([], 10) == []


def test_low_entropy_warns_on_one_side_of_half_log_k() -> None:
    half = 0.5 * math.log(10)
    assert kinds([a_record(class_entropy=half - 1e-6)], 10) == ["entropy"]
    assert kinds([a_record(class_entropy=half)], 10) == []
    # The mean of the last three counts, and rounds without the metric (or with NaN) do not.
    high, low = a_record(class_entropy=2.3), a_record(class_entropy=0.1)
    assert kinds([high, low], 10) == []
    assert kinds([low, high, high, a_record(), a_record(class_entropy=NAN)], 10) == []
    assert kinds([high, low, low], 10) == ["entropy"]
    assert kinds([low, low, high, high, high], 10) == []


def test_selected_images_of_few_classes_get_advice_on_selecting() -> None:
    record = a_record(class_entropy=0.1)
    assert "synthetic" in warnings_of([record], 10)[0].text
    told = warnings_of([record], 10, known_measures(an_info(measures=dict(KD3.measures))))[0].text
    assert "selected" in told
    assert "the entropy of these is 0.10 nats, balanced classes have 2.30; loosen the selection" in told


def test_equal_images_warn() -> None:
    assert kinds([a_record(pairwise_distance=0.0199)], 10) == ["distance"]
    assert kinds([a_record(pairwise_distance=0.3, within_class_distance=0.001)], 10) == ["class"]
    assert kinds([a_record(pairwise_distance=0.001, within_class_distance=0.001)], 10) == ["distance", "class"]
    assert kinds([a_record(pairwise_distance=0.3, within_class_distance=0.05)], 10) == []
    assert kinds([a_record(pairwise_distance=0.0201)], 10) == []


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_warns_and_says_when(bad: float) -> None:
    records = [a_record(0), replace(a_record(1), metrics={"loss/bn": 1.0, "loss/student": bad}), a_record(2)]
    concerns = warnings_of(records, 10)
    assert [concern.kind for concern in concerns] == ["nonfinite"]
    assert "'student'" in concerns[0].text
    assert "round 2;" in concerns[0].text


def test_other_metrics_may_be_nan() -> None:
    metrics = {"loss/bn": 1.0, "pool": NAN, "lr": NAN, "seconds/student": NAN}
    assert kinds([replace(a_record(), metrics=metrics)], 10) == []


def test_chance_warns_after_a_quarter_of_the_run() -> None:
    guess = 0.1
    edge = guess + 0.05 * 0.9 + 3 * math.sqrt(guess * (1 - guess) / 360)
    below, above = an_evaluation(0.1, edge - 1e-6), an_evaluation(0.1, edge + 1e-6)
    assert kinds([a_record(1, 4, below)], 10) == ["chance"]
    assert kinds([a_record(1, 4, above)], 10) == []
    assert kinds([a_record(0, 4, below)], 10) == []
    assert kinds([a_record(1, 4, below), a_record(2, 4, above)], 10) == []
    assert kinds([a_record(2, 4, replace(below, agreement=NAN))], 10) == []


@pytest.mark.parametrize(
    ("accuracy", "level"), [(0.99, "good"), (0.9604, "good"), (0.9602, "fair"), (0.8911, "fair"), (0.8909, "poor")]
)
def test_the_verdict_weighs_the_share_of_the_teachers_accuracy(accuracy: float, level: str) -> None:
    result = replace(a_result(), final=an_evaluation(accuracy))
    verdict = verdict_of(result.info, result.rounds, result)
    assert verdict.level == level
    assert summary.percent(accuracy) in verdict.text
    assert "of 360 test images" in verdict.text
    assert "25 % of the teacher's parameters" in verdict.text
    assert f"keeps {100 * accuracy / 0.99:.1f} %" in verdict.text


def test_the_verdict_without_labels_or_teacher_or_anything() -> None:
    result = a_result()
    unlabelled = replace(result, final=an_evaluation(NAN, 0.98), teacher_evaluation=None)
    verdict = verdict_of(result.info, result.rounds, unlabelled)
    assert verdict.level == "good"
    assert "same class as the teacher on 98.00 %" in verdict.text
    unmatched = replace(result, teacher_evaluation=None)
    assert "agrees with the teacher on 95.00 %" in verdict_of(result.info, result.rounds, unmatched).text


@pytest.mark.parametrize(
    ("test_images", "told"),
    [
        (0, "is on real images: no test images were given."),
        (360, "is on real images: it has not been evaluated yet."),
        (None, "is on real images: it has not been evaluated on test images."),  # of an older run nobody knows
    ],
)
def test_the_verdict_says_why_nothing_is_known_and_what_is(test_images: int | None, told: str) -> None:
    info = replace(an_info(), test_images=test_images)
    verdict = verdict_of(info, [a_record()], None)
    assert (verdict.level, verdict.text.partition("parameters, ")[2]) == ("open", told)
    measured = verdict_of(info, [replace(a_record(), estimate=an_estimate("inverted"))], None)
    assert measured.text == f"{verdict.text} On held-out synthetic ones it chooses the teacher's class for 87.50 %."


def test_where_a_run_was_stopped_is_said_where_it_is_known() -> None:
    assert summary.stop_sentence([a_record(2, 9)], "enough") == "stopped after round 3 of 9: enough"
    assert summary.stop_sentence([], "enough") == "stopped: enough"  # of an adapted student, without its rounds


def test_rows_of_finished_and_running_runs() -> None:
    result = a_result()
    teacher, student = rows_of(result.info, result.rounds, result)
    assert teacher == Row("teacher (big)", 0.99, 1.0, 4000, 1_000_000, 16_500, None)
    assert student == Row("student (small)", 0.9, 0.95, 1000, 250_000, 4_100, 93.4)
    teacher, student = rows_of(result.info, result.rounds[:3], None)
    assert teacher.accuracy is None
    assert student.accuracy == pytest.approx(0.7)
    assert student.seconds == 6.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (summary.percent(0.97254), "97.25 %"),
        (summary.percent(NAN), "–"),
        (summary.percent(0.0), "0.00 %"),
        (summary.count(175066), "175,066"),
        (summary.count(None), "–"),
        (summary.operations(0), "0"),
        (summary.operations(3_812_345), "3.81 M"),
        (summary.operations(999_600), "1 M"),
        (summary.operations(4.2e9), "4.2 G"),
        (summary.file_size(712_345), "712 kB"),
        (summary.file_size(2_800_123), "2.8 MB"),
        (summary.file_size(12), "12 B"),
        (summary.file_size(999_999), "1 MB"),
        (summary.file_size(5e12), "5,000 GB"),
        (summary.duration(0.04), "0.0 s"),
        (summary.duration(48.4), "48 s"),
        (summary.duration(59.7), "1 min 00 s"),
        (summary.duration(192), "3 min 12 s"),
        (summary.duration(7500), "2 h 05 min"),
        (summary.duration(INF), "–"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_images_per_second_are_measured_or_counted() -> None:
    assert summary.images_per_second([]) is None
    assert summary.images_per_second([a_record(images_per_second=12.5)]) == 12.5
    before = a_record(0, images=100.0)
    after = replace(a_record(1), metrics={"images": 400.0, "seconds/synthesis": 1.5})
    assert summary.images_per_second([before, after]) == 200.0
    assert summary.images_per_second([after]) is None


# Terminal -------------------------------------------------------------------------------------------------------


def told(width: int = 200, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=terminal, color_system=None), out


def converted(console: Console, *, quiet: bool = False) -> None:
    """8,000 images in 80 seconds."""
    now = [0.0]
    with Conversion(console, quiet=quiet, clock=lambda: now[0]) as watch:
        for seconds in (1.0, 10.0, 20.0, 50.0, 80.0):
            now[0] = seconds
            watch(round(100 * seconds), 8000)


def test_a_long_conversion_is_told() -> None:
    console, out = told(120)
    converted(console)
    assert out.getvalue().splitlines() == [  # not in the first 3 seconds, and 30 seconds apart
        "converting web images, once: 1,000 of 8,000, 1 min 10 s left",
        "converting web images, once: 5,000 of 8,000, 30 s left",
    ]
    console, out = told(120, terminal=True)
    converted(console)
    assert "5,000 of 8,000, 30 s left" in out.getvalue()
    console, out = told(120, terminal=True)
    converted(console, quiet=True)
    assert not out.getvalue()


def test_shards_are_counted_without_a_total() -> None:
    now = [0.0]
    console, out = told(120)
    with Conversion(console, clock=lambda: now[0]) as watch:
        now[0] = 5.0
        watch(1234, None)
    assert out.getvalue() == "converting web images, once: 1,234\n"


def play(progress: Progress, result: RunResult) -> None:
    with progress:
        progress.started(result.info)
        for record in result.rounds:
            progress.stepped(record.round, "synthesis", 3, 30)
            progress.rounded(record)
        progress.finished(result)


def test_plain_lines_where_there_is_no_terminal() -> None:
    console, out = told()
    play(Progress(console, interval=0.0), a_result())
    lines = out.getvalue().splitlines()
    assert lines[0] == "NAYER: big -> small, 3 classes, images 1x8x8"
    assert lines[1].startswith("round 1/5  warm-up  bn 3  pool 0  accuracy 50.00 %  agreement 95.00 %")
    assert lines[1].endswith("  end of the warm-up")
    assert lines[2].endswith("  6.0 s left")
    assert lines[5].startswith("round 5/5  bn -1  pool 256  accuracy 90.00 %")
    assert "left" not in lines[5]
    assert lines[6] == "done in 1 min 33 s"
    assert len(lines) == 7


def test_the_time_left_of_a_warm_up_says_nothing_of_the_rounds_after_it() -> None:
    console, out = told()
    info = replace(an_info(), plan={"rounds": 4, "warmup": 3})
    with Progress(console, interval=0.0) as progress:
        progress.started(info)
        progress.rounded(a_record(0, 7))
    assert out.getvalue().splitlines()[1].endswith("  4.0 s left of the warm-up")


def test_few_lines_when_rounds_are_fast_and_none_when_quiet() -> None:
    console, out = told()
    play(Progress(console, interval=1e6), a_result())
    assert [line[:9] for line in out.getvalue().splitlines() if line.startswith("round")] == ["round 1/5", "round 5/5"]
    console, out = told()
    play(Progress(console, quiet=True), a_result())
    assert out.getvalue() == ""


def test_a_long_name_takes_two_lines_before_a_number_loses_a_digit() -> None:
    console, out = told(80)
    name = "student (torchvision:" + "mobilenet_v3_small" * 2 + ")"
    row = Row(name, 0.98, 0.97, 123456.0, 3.2e9, 6.2e6, 93.0)
    console.print(table([row]))
    shown = out.getvalue()
    assert all(cell in shown for cell in (*cells(row), "agreement"))
    assert "".join(line[:20].strip() for line in shown.splitlines()[1:]).startswith("student")
    assert "…" not in shown


def test_warnings_are_said_once() -> None:
    console, out = told(400)
    result = a_result()
    sick = [replace(record, metrics={"loss/bn": NAN}) for record in result.rounds]
    play(Progress(console), replace(result, rounds=sick))
    assert out.getvalue().count("warning:") == 1


def test_the_live_display_shows_everything_and_closes() -> None:
    console, out = told(160, terminal=True)
    progress = Progress(console)
    play(progress, a_result())
    shown = out.getvalue()
    for text in ("round 5/5", "all rounds done", "bn -1", "pool 256", "agreement 95.00 %", "done in 1 min 33 s"):
        assert text in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    progress.close()


def test_the_live_display_names_the_phase_and_the_time_left() -> None:
    console, out = told(160, terminal=True)
    with Progress(console) as progress:
        progress.started(an_info())
        progress.rounded(a_record(0))
        progress.rounded(a_record(1))
        progress.stepped(2, "student", 7, 60)
        console.print(progress._render())
    assert "round 2/5" in out.getvalue()
    assert "student 7/60  6.0 s left" in out.getvalue()


def test_the_table_has_every_number() -> None:
    result = a_result()
    rows = [*rows_of(result.info, result.rounds, result), Row("fed [noise]")]
    console, out = told(100)
    console.print(table(rows))
    lines = out.getvalue().splitlines()
    assert lines[1].split("  ")[0] == "teacher (big)"
    for text in ("99.00 %", "100.00 %", "4,000", "2 M", "16.5 kB", "–"):
        assert text in lines[1]
    for text in ("90.00 %", "95.00 %", "1,000", "500 k", "4.1 kB", "1 min 33 s"):
        assert text in lines[2]
    assert lines[3].startswith("fed [noise]")
    assert cells(rows[2]) == ("–",) * 6


# TensorBoard ----------------------------------------------------------------------------------------------------


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = observers.TensorBoard(tmp_path)
    writer.rounded(a_record())
    writer.started(an_info())
    writer.stepped(0, "synthesis", 1, 1)
    estimate = an_estimate("inverted", signals={"confidence": 0.75, "within": NAN})
    first = replace(a_record(0, 2, an_evaluation(0.5, NAN), bad=NAN), samples=some_samples(), estimate=estimate)
    writer.rounded(first)
    writer.rounded(a_record(1, 2))
    writer.finished(a_result())
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    measured = {"heldout/inverted/agreement", "signals/confidence"}
    assert set(events.Tags()["scalars"]) == {"loss/bn", "test/accuracy", "test/loss"} | measured
    assert events.Scalars("heldout/inverted/agreement")[0].value == 0.875
    assert [(event.step, event.value) for event in events.Scalars("loss/bn")] == [(1, 3.0), (2, 2.0)]
    assert events.Scalars("test/accuracy")[0].value == 0.5
    assert events.Images("samples")[0].width == 500


def test_tensorboard_missing_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"run `pip install 'tensorboard>=.*' 'torch==[0-9.]+'`"):
        observers.TensorBoard(tmp_path).started(an_info())


# Charts ---------------------------------------------------------------------------------------------------------


def test_a_chart_is_one_clean_svg() -> None:
    line = charts.Line("x", [(1, 0.4), (2, NAN), (3, 0.7), (4, INF), (5, 1.0)])
    svg = charts.line_chart('of <b> & "q" $x$', [line], levels=(0.9,), as_percent=True)
    assert svg.startswith("<svg ")
    assert svg.rstrip().endswith("</svg>")
    assert 'aria-label="of &lt;b&gt; &amp; &quot;q&quot; $x$"' in svg
    assert "60 %" in svg
    for unwanted in ("http", "<style", "DejaVu", "#0102", "metadata", ' id="axes'):
        assert unwanted not in svg
    assert "var(--first" in svg
    assert svg == charts.line_chart('of <b> & "q" $x$', [line], levels=(0.9,), as_percent=True)


@pytest.mark.parametrize("points", [[], [(1, NAN)], [(1, INF), (2, -INF)]])
def test_nothing_to_draw_is_no_chart(points: list[tuple[int, float]]) -> None:
    assert charts.line_chart("empty", [charts.Line("x", points)]) == ""


def test_charts_of_one_round_constant_and_huge_values() -> None:
    for values in ([0.5], [0.5, 0.5], [1e30, -1e30], [0.0] * 300):
        assert charts.line_chart("t", [charts.Line("x", list(enumerate(values)))])


@pytest.mark.parametrize("size", [charts.WIDE, charts.NARROW, (2.9, 1.55)])
@pytest.mark.parametrize("values", [[0.99981, 0.99985], [1e30, -1e30], [-12345.6, 3.0], [1e-9, 5e-9], [0.5]])
def test_labels_of_a_chart_lie_inside_it(values: list[float], size: tuple[float, float]) -> None:
    svg = charts.line_chart("t", [charts.Line("x", [(50_000 * i, x) for i, x in enumerate(values)])], size=size)
    box = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert box
    width, height = map(float, box.groups())
    ticks = re.findall(r'text-anchor: (\w+)[^>]* x="(\S+)" y="(\S+)"[^>]*>([^<]*)<', svg)
    assert len(ticks) >= 3
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 80)  # ten times 8
    for anchor, x, y, text in ticks:
        long = font.getlength(text) / 10
        left = float(x) - {"start": 0.0, "middle": long / 2, "end": long}[anchor]
        assert left >= 0
        assert left + long <= width
        assert 5 <= float(y) <= height - 1  # of the base line; the letters are some 6 high


def test_measures_of_a_method_have_charts_with_their_titles_and_levels() -> None:
    records = [a_record(r, selected_classes=2.0, selected=9.0, odd_thing=1.0) for r in range(3)]
    told = page.render(StoredRun(an_info(measures=dict(KD3.measures)), records, None, "running"))
    assert "Classes among the selected images" in told
    assert "dashed: all 3" in told
    assert "Odd thing" in told  # what nobody declared
    assert "Web images selected" not in told  # minor
    assert "Selected classes" in page.render(StoredRun(an_info(), records, None, "running"))  # of an older run


def test_charts_of_records() -> None:
    result = a_result()
    assert charts.loss_names([a_record(0, b=1.0), replace(a_record(1), metrics={"loss/a": 1.0, "pool": 3.0})]) == [
        "loss/bn",
        "loss/a",
    ]
    svg = charts.quality_chart(result.rounds, result.teacher_evaluation)
    assert "var(--first" in svg
    assert "var(--second" in svg
    assert "var(--third" in svg
    assert "var(--third" not in charts.quality_chart(result.rounds, None)
    assert charts.quality_chart([a_record()], None) == ""
    assert charts.metric_chart(result.rounds, "pool", 2.0)
    assert charts.metric_chart(result.rounds, "missing") == ""


# The page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text by place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def run_folder(folder: Path, result: RunResult, status: files.Status = "finished") -> Path:
    files_of_a_run: list[Observer] = [
        observers.RunFile(folder),
        observers.JsonLines(folder / "metrics.jsonl"),
        observers.Samples(folder / "samples"),
    ]
    for observer in files_of_a_run:
        observer.started(result.info)
        for record in result.rounds:
            observer.rounded(replace(record, samples=some_samples()))
        if status == "finished":
            observer.finished(result)
    return folder


def test_the_page_of_a_folder_says_it_all(tmp_path: Path) -> None:
    out = page.write_page(run_folder(tmp_path, a_result()), others=[Row("student fed noise", 0.1028, 0.1139)])
    assert out == tmp_path / "report.html"
    seen = Page(out.read_text("utf-8"))
    for text in (
        "big → small",
        "finished",
        "3 classes · images 1 × 8 × 8 · 5 of 5 rounds",
        "This went fairly well: the student, with 25 % of the teacher's parameters, gets 90.00 % of 360 test images",
        "teacher (big) 99.00 % 100.00 % 4,000 2 M 16.5 kB –",
        "student (small) 90.00 % 95.00 % 1,000 500 k 4.1 kB 1 min 33 s",
        "student fed noise 10.28 % 11.39 %",
        "warm.rounds 2 warm.on true",
        "capacity null",
        "sha256 " + "ab" * 32,
        "torch 2.13.0 seed 0",
        "prompt a photo of a {}",
        "student.load_state_dict(load_file('student.safetensors'))",
        "No sign of collapse",
    ):
        assert text in seen.text, text
    assert "Look at this first" not in seen.text
    assert seen.tags.count("img") == 5
    assert seen.tags.count("svg") == 5  # quality (wide, narrow), one loss, pool, learning rate


@pytest.mark.parametrize(
    ("inputs", "distillation", "images"),
    [
        ({}, "distillation without training data", "Synthetic images"),
        ({"web images": "60 of 1x8x8"}, "distillation with unlabelled images from elsewhere", "Web images"),
        ({"real images": "60 of 1x8x8"}, "distillation with training images", "Real training images"),
    ],
)
def test_the_page_says_which_images_were_learnt_from(
    tmp_path: Path, inputs: dict[str, str], distillation: str, images: str
) -> None:
    info = replace(an_info(), inputs={"frozen parameters of the student": "none", **inputs})
    seen = Page(page.write_page(run_folder(tmp_path, a_result(info))).read_text("utf-8"))
    assert f"NAYER · {distillation} finished" in seen.text
    assert f"{images}, one row per class" in seen.text
    assert ("alt", f"{images} after round 5") in seen.attributes
    others = [told for told in ("without training data", "synthetic") if told not in f"{distillation} {images}".lower()]
    assert not any(told in (seen.text + str(seen.attributes)).lower() for told in others)


def test_the_legend_names_the_curves_that_are_there() -> None:
    names = {"own": "images of the run&#39;s method", "inverted": "images made from the teacher alone"}
    for kinds in (["inverted"], ["own", "inverted"]):
        records = [replace(a_record(r), estimate=an_estimate(*kinds)) for r in range(3)]
        told = page.render(StoredRun(an_info(), records, None, "running"))
        assert [kind for kind, name in names.items() if f"</i>{name}</li>" in told] == [k for k in names if k in kinds]
        assert "var(--second" in told


def test_the_page_of_a_search_names_the_best_recipe_once_there_is_one(tmp_path: Path) -> None:
    command = f"dfkd distill {tmp_path}/best.yaml --out best"
    about = {"ranges": {"plan.lr": "0.1:1"}, "settings": {"sizes": 0.123456789}, "pair": {}, "next": command}
    (tmp_path / "search.json").write_text(json.dumps(about))
    trial = Trial(0, "complete", {"plan.lr": 0.123456789}, True, 0.9, 0.85, 0.95, 64, 1, 1)
    write_trials(tmp_path, [trial, Trial(1, "running", {"plan.lr": 0.2})])
    seen = Page(write_search_page(tmp_path).read_text())
    assert command not in seen.text
    assert "sizes 0.123456789" in seen.text
    (tmp_path / "best.yaml").touch()
    assert command in Page(write_search_page(tmp_path).read_text()).text


def test_numbers_of_figures_that_are_not_finite_are_dashes() -> None:
    figure = Figure("one", "", b"<svg/>", "", {"a": NAN, "b": INF, "c": 0.5, "d": 12345.0})
    told = page.render(StoredRun(an_info(), [a_record()], None, "running"), gallery=Gallery([figure]))
    assert "a: – · b: – · c: 0.5 · d: 12,345" in told


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = page.write_page(run_folder(tmp_path, a_result())).read_text("utf-8")
    seen = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(seen.tags)
    for name, value in seen.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value.startswith(("data:image/png;base64,", "#")), value
        assert not name.startswith("on")
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_the_pictures_on_the_page_are_those_of_the_folder(tmp_path: Path) -> None:
    text = page.write_page(run_folder(tmp_path, a_result(rounds=9))).read_text("utf-8")
    found = re.findall(r"base64,([^\"]+)", text)
    # Six of nine, evenly spread, the first and the last among them.
    assert re.findall(r"<figcaption>round (\d+)<", text) == ["1", "3", "4", "6", "7", "9"]
    assert base64.b64decode(found[-1]) == (tmp_path / "samples" / "round_0009.png").read_bytes()


@pytest.mark.parametrize("field", ["names", "method", "teacher", "settings", "metric", "file", "load"])
def test_text_from_the_run_is_never_markup(tmp_path: Path, field: str) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}$x_$"
    info = an_info(names=(evil, "b", "c") if field == "names" else ())
    if field == "method":
        info = replace(info, method=evil)
    if field == "teacher":
        info = replace(info, teacher={**info.teacher, "name": evil})
    if field == "settings":
        info = replace(info, settings={evil: {evil: [evil]}})
    if field == "load":
        info = replace(info, student={**info.student, "load": evil})
    result = a_result(info)
    if field == "metric":
        rounds = [replace(record, metrics={evil: 1.0 + record.round}) for record in result.rounds]
        result = replace(result, rounds=rounds)
    if field == "file":
        result = replace(result, files={evil: evil})
    seen = Page(page.write_page(run_folder(tmp_path, result)).read_text("utf-8"))
    assert "script" not in seen.tags
    assert not any(name == "onerror" for name, _ in seen.attributes)
    assert seen.tags.count("img") == 5
    shown = seen.text + " ".join(value for _, value in seen.attributes)
    assert "alert(1)" in shown
    assert "49" not in shown.split("{{ 7*7 }}")[0][-5:]


def test_the_page_of_a_result_needs_a_place(tmp_path: Path) -> None:
    result = a_result()
    with pytest.raises(UserError, match="needs a file to write to"):
        page.write_page(result)
    rounds = [replace(record, samples=some_samples() if record.round == 4 else None) for record in result.rounds]
    out = page.write_page(replace(result, rounds=rounds), tmp_path / "new" / "x.html")
    assert Page(out.read_text("utf-8")).tags.count("img") == 1


def test_the_page_of_an_unfinished_run(tmp_path: Path) -> None:
    text = Page(page.write_page(run_folder(tmp_path, a_result(), "running")).read_text("utf-8")).text
    assert "unfinished" in text
    assert "This run has not finished" in text
    assert "student (small) 90.00 % 95.00 %" in text
    assert "teacher (big) – – 4,000" in text


def test_the_page_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_run(tmp_path, an_info(), None, "interrupted")
    seen = Page(page.write_page(tmp_path).read_text("utf-8"))
    assert "no round done yet" in seen.text
    assert "Nothing says yet" in seen.text
    assert "svg" not in seen.tags


def test_nan_everywhere_still_makes_a_page_with_warnings(tmp_path: Path) -> None:
    result = a_result()
    nothing = Evaluation(NAN, NAN, NAN, 0, (NAN,) * 3, (NAN,) * 3)
    rounds = [
        replace(record, seconds=NAN, evaluation=nothing, metrics={"loss/bn": NAN, "pool": INF, "class_entropy": NAN})
        for record in result.rounds
    ]
    sick = replace(result, rounds=rounds, final=nothing, teacher_evaluation=nothing, seconds=NAN)
    seen = Page(page.write_page(run_folder(tmp_path, sick)).read_text("utf-8"))
    assert "Look at this first" in seen.text
    assert "The loss 'bn' was not a finite number in round 1" in seen.text
    assert not re.search(r"\b(nan|inf)\b", seen.text.lower())
    assert "No sign of collapse" not in seen.text


def test_many_classes_show_the_weakest(tmp_path: Path) -> None:
    info = an_info(classes=100, names=tuple(f"class-{k:03d}" for k in range(100)))
    agreement = tuple((k * 37 % 100) / 100 for k in range(100))
    final = replace(an_evaluation(classes=100), class_agreement=agreement)
    text = page.render(StoredRun(info, [], replace(a_result(info, 0), final=final), "finished"))
    weakest = [f"class-{k:03d}" for k in sorted(range(100), key=lambda k: agreement[k])[:40]]
    assert re.findall(r'class="name" title="([^"]*)"', text) == weakest
    assert "the 40 of 100 classes" in text


def test_a_false_picture_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, a_result())
    (folder / "samples" / "round_0005.png").write_bytes(b"GIF89a no picture")
    (folder / "samples" / "round_x.png").write_bytes(b"not ours")
    with pytest.raises(UserError, match="round 5"):
        page.write_page(folder)


def test_rows_are_named_only_where_the_sheet_is_ours(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, a_result(an_info(names=("ant", "bee", "cat"))))
    assert page.write_page(folder).read_text().count('<span title="bee">') == 5
    Image.new("RGB", (20, 20)).save(folder / "samples" / "round_0005.png")
    assert page.write_page(folder).read_text().count('<span title="bee">') == 4


def test_heavy_pictures_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "SHEET_BYTES", 25)
    found = [(k, b"x" * 10) for k in range(6)]
    assert [rounds for rounds, _ in sheets.sheets_within_limits(found)] == [0, 5]
    monkeypatch.setattr(sheets, "SHEET_BYTES", 5)
    assert [rounds for rounds, _ in sheets.sheets_within_limits(found)] == [5]


@pytest.mark.parametrize(
    ("items", "most", "expected"),
    [(0, 6, []), (3, 6, [0, 1, 2]), (9, 6, [0, 2, 3, 5, 6, 8]), (9, 2, [0, 8]), (9, 1, [8])],
)
def test_spread(items: int, most: int, expected: list[int]) -> None:
    assert sheets.spread(range(items), most) == expected


def test_the_room_is_light_to_import() -> None:
    import subprocess

    code = (
        "import sys, dfkd.report.observers, dfkd.report.page, dfkd.report.console; "
        "print(sorted({'matplotlib', 'jinja2', 'tensorboard', 'torchvision'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
