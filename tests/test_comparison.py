"""The page about several runs: what it says of made-up runs whose numbers are known."""

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from dfkd.cli.main import main
from dfkd.engine.records import Evaluation, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.report.comparison import differing_settings, short_names, verdict_over, write_comparison
from dfkd.report.observers import JsonLines, RunFile, Samples


def an_info(method: str = "NAYER", lr: float = 0.1, seed: int = 0) -> RunInfo:
    return RunInfo(
        method=method,
        settings={"steps": 30, "inner": {"width": 8}},
        plan={"rounds": 4, "warmup": 0, "lr": lr},
        teacher={"name": "big", "parameters": 4000, "macs": 1_000_000, "bytes": 16_500, "sha256": "ab"},
        student={"name": "small", "parameters": 1000, "macs": 250_000, "bytes": 4_100},
        image_shape=(1, 8, 8),
        classes=2,
        provenance={"seed": seed, "date": str(seed), "command": "x"},
    )


def seen(accuracy: float, images: int = 1000) -> Evaluation:
    return Evaluation(accuracy, accuracy, 0.2, images, (accuracy, accuracy), (accuracy, accuracy))


def a_run(folder: Path, info: RunInfo, accuracy: float, images: int = 1000, finished: bool = True) -> Path:
    labels = torch.arange(2).repeat_interleave(10)
    pictures = torch.full((20, 1, 8, 8), 128, dtype=torch.uint8)
    look = seen(accuracy, images)
    rounds = [
        RoundRecord(r, 4, False, 1.0, {"loss/bn": 6.0 - r, "lr": 0.1}, look, (pictures, labels)) for r in range(4)
    ]
    watchers = [RunFile(folder), JsonLines(folder / "metrics.jsonl"), Samples(folder / "samples")]
    for watcher in watchers:
        watcher.started(info)
    for record, watcher in product(rounds, watchers):
        watcher.rounded(record)
    for watcher in watchers if finished else ():
        watcher.finished(RunResult(info, rounds, look, seen(0.99, images), 4.0, {}))
    return folder


def test_the_page_has_every_run_and_what_differs(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / "first", an_info(lr=0.1), 0.9),
        a_run(tmp_path / "<b>", an_info("KD3", lr=0.2, seed=1), 0.7),
        a_run(tmp_path / "third", an_info(), 0.8, finished=False),
    ]
    text = write_comparison(runs, tmp_path / "compare.html").read_text()
    assert "first is best with 90.00 % of 1,000 test images (95 % interval 87.98 % to 91.71 %)" in text
    assert "the others are below by more than chance" in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert text.count("data:image/png") == 3
    assert "4 of 4, running" in text
    for name in ("method.name", "plan.lr", "provenance.seed"):
        assert f'<th scope="row">{name}</th>' in text
    assert "provenance.date" not in text
    assert "method.steps" not in text
    captions = re.findall(r"<figcaption>([^<]*)<", text)
    assert {"Bn loss", "Learning rate of the student"} <= set(captions)
    assert "var(--first" in text
    assert "var(--fourth" in text  # the third run's tone


def test_settings_that_differ_are_all_and_only_those() -> None:
    info = an_info()
    other = replace(info, settings={"steps": 30, "inner": {"width": 16}, "extra": 1})
    expected = [("method.inner.width", ["8", "16"]), ("method.extra", ["–", "1"])]
    assert differing_settings({"a": info, "b": other}) == expected
    assert differing_settings({"a": info, "b": info}) == []


def test_inputs_names_and_code_differ_too(tmp_path: Path) -> None:
    web = [{"web images": f"60 of 1x8x8, {digest}"} for digest in ("ab", "cd")]
    a = replace(
        an_info(), names=("ant", "bee"), inputs=web[0], provenance={"commit": "a1", "date": "1", "command": "x"}
    )
    b = replace(a, names=("bee", "ant"), inputs=web[1], provenance={"commit": "b2", "date": "2", "command": "y"})
    assert differing_settings({"a": a, "b": b}) == [
        ("provenance.commit", ["a1", "b2"]),
        ("data.names", ["ant, bee", "bee, ant"]),
        ("inputs.web images", ["60 of 1x8x8, ab", "60 of 1x8x8, cd"]),
    ]
    many = tuple(f"class {k}" for k in range(100))
    a, b = replace(a, classes=100, names=many), replace(a, classes=100, names=many[::-1])
    ((name, values),) = differing_settings({"a": a, "b": b})
    assert (name, [value[:5] for value in values]) == ("data.names", ["100, ", "100, "])


def test_the_page_says_which_images_were_learnt_from(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / name, an_info(), 0.9) for name in ("a", "b")]
    assert "comparison · distillation without training data" in write_comparison(folders, tmp_path / "x").read_text()
    folders.append(a_run(tmp_path / "c", replace(an_info(), inputs={"web images": "60"}), 0.9))
    text = write_comparison(folders, tmp_path / "x").read_text()
    assert "<span>comparison · distillation</span>" in text
    for name, images in (("a", "synthetic images"), ("c", "web images")):
        assert f'{name}<span class="note">NAYER, {images}, round 4</span>' in text
        assert f'alt="{images.capitalize()} of {name} after round 4"' in text


def test_the_verdict_does_not_tell_apart_what_chance_may_explain() -> None:
    assert verdict_over({"a": seen(0.9), "b": seen(0.89)}).level == "fair"
    assert "do not tell it from b" in verdict_over({"a": seen(0.9), "b": seen(0.89), "c": seen(0.5)}).text
    assert verdict_over({"a": seen(0.9, 100_000), "b": seen(0.89, 100_000)}).level == "good"
    assert verdict_over({"a": seen(0.9), "b": None}).level == "open"
    many = {name: seen(0.9) for name in "abcdefg"}
    assert verdict_over(many).text.endswith("do not tell it from b or c or d or e and 2 more.")
    assert "different test images" in verdict_over({"a": seen(0.9), "b": seen(0.9, 50)}).text


def test_names_are_as_short_as_they_may_be() -> None:
    assert short_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert short_names([Path("/x/a"), Path("/y/a"), Path("/y/b")]) == ["/x/a", "/y/a", "b"]


def test_many_runs_and_too_few(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / f"r{i:02}", an_info(seed=i), 0.5 + i / 100) for i in range(14)]
    text = write_comparison(runs, tmp_path / "compare.html").read_text()
    assert "The 12 runs with the highest accuracy." in text
    assert text.count('<tr role="row"><th role="rowheader"') == 14
    legend = text.partition('id="legend">')[2].partition("</ul>")[0]
    looks = re.findall(r'<i class="([^"]*)"></i>', legend)
    assert len(set(looks)) == len(looks) == 12  # the best are runs 2 to 13: no two look alike
    with pytest.raises(UserError, match="report needs another run to compare with"):
        write_comparison([runs[0], runs[0]], tmp_path / "one.html")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(Path("a"), an_info(), 0.9)
    a_run(Path("b"), replace(an_info(), teacher={"name": "other", "sha256": "cd"}), 0.9)
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "report  compare.html\n"
    assert "do not have one teacher" in Path("compare.html").read_text()
    assert main(["report", "a", "b", "--out", "both.html"]) == 0
    assert main(["report", "a", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert json.loads(Path("a/run.json").read_text())["status"] == "finished"


def test_layers_are_compared_only_where_both_runs_tell_of_them() -> None:
    new = replace(
        an_info(), teacher={**an_info().teacher, "layers": "aa"}, student={**an_info().student, "layers": "b"}
    )
    other = replace(new, student={**new.student, "layers": "c"})
    assert differing_settings({"old": an_info(), "new": new}) == []
    assert differing_settings({"new": new, "other": other}) == [("student.layers", ["b", "c"])]
    newer_torch = replace(other, provenance={**other.provenance, "torch": "9"})
    assert [name for name, _ in differing_settings({"new": new, "newer": newer_torch})] == ["provenance.torch"]
