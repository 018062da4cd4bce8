"""The committed tables are those of the committed records, and every experiment can be built."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import deploy, quantize, recipes
from benchmarks.estimate import FILE as ESTIMATES
from benchmarks.estimate import cases, method_for
from benchmarks.estimate_plot import draw
from benchmarks.estimate_tables import judge
from benchmarks.experiments import EXPERIMENTS
from benchmarks.false_alarms import count_alarms, runs
from benchmarks.records import RESULTS
from benchmarks.run import main, slug
from benchmarks.speed_table import speed_page
from benchmarks.stopping import FILE as STOPS
from benchmarks.stopping import cases as stop_cases
from benchmarks.stopping import tables_of as stopping_tables
from benchmarks.table import page, records

from dfkd.cli.config import Distill
from dfkd.cli.setup import resolve
from dfkd.data.text import embed
from dfkd.methods.nayer import NAYER
from dfkd.recipes import find, names, recipe
from dfkd.recipes.figures import RESULTS as PACKAGED

NAME = "nayer/digits-wrn16-2-wrn16-1"


def test_the_results_page_is_that_of_the_records() -> None:
    assert (RESULTS / "README.md").read_text() == page(), "run `python -m benchmarks.table --write`"


def test_the_packaged_figures_are_those_of_the_records() -> None:
    assert PACKAGED.read_text() == recipes.text(), "run `python -m benchmarks.table --write`"
    held = json.loads(PACKAGED.read_text())
    assert set(held) <= set(names())
    # The experiment of the demo's settings, file by file; runs compiled or in bfloat16 are not among them.
    seeds = [json.loads((RESULTS / f"digits/nayer-seed{seed}.json").read_text()) for seed in (0, 1, 2)]
    assert [run["accuracy"] for run in held[NAME]] == pytest.approx([r["accuracy"] for r in seeds], abs=1e-6)
    assert [run["seed"] for run in held[NAME]] == [0, 1, 2]


def _record(of: str = NAME, **changed: Any) -> dict[str, Any]:
    """A run of a recipe with digits."""
    _, method, plan = resolve(Distill, recipe(of))
    where = {"date": "2026-01-01", "hardware": "a machine, 2 cores", "threads": 1, "commit": "abc"}
    record = {
        "seed": 0,
        "method": type(method).__name__,
        "data": "digits",
        "image_size": [1, 8, 8],
        "teacher": {"name": "wrn16-2"},
        "student": "wrn16-1",
        "settings": asdict(method),  # type: ignore[call-overload]
        "plan": asdict(plan),
        "accuracy": 0.98,
        "seconds": 60.0,
        "provenance": where,
    }
    return {**json.loads(json.dumps(record)), **changed}


def test_a_record_belongs_to_the_recipe_whose_settings_it_has() -> None:
    row, plain = find(NAME), _record()
    assert recipes.is_of(plain, row)
    assert recipes.is_of(_record(precision="fp32", compile=False, variant="fp32"), row)
    assert recipes.is_of({**_record(experiment="digits"), "image_size": None}, row)  # records before it was kept
    others: list[dict[str, Any]] = [
        {"method": "D3K"},
        {"data": "mnist"},
        {"student": "wrn10-1"},
        {"teacher": {"name": "wrn16-1"}},
        {"settings": {**plain["settings"], "steps": 3}},
        {"plan": {**plain["plan"], "rounds": 3}},
        {"accuracy": None},
        {"precision": "bf16"},
        {"variant": "bf16"},
        {"variant": "compiled"},
        {"compile": True},
        {"image_size": [1, 16, 16]},
        {"image_size": None, "experiment": "mnist-bn"},
        {"image_size": None},
    ]
    for changed in others:
        assert not recipes.is_of(_record(**changed), row), changed
    assert not recipes.is_of(plain, find("nayer/cifar10-wrn40-2-wrn16-2+clip"))


def test_a_record_in_bits_belongs_to_the_recipe_of_these_bits() -> None:
    tree = {key: value for key, value in recipe("nayer/digits-wrn16-2-w4a4").items() if key != "bits"}
    _, method, plan = resolve(Distill, tree)
    settings = json.loads(json.dumps({"settings": asdict(method), "plan": asdict(plan)}))  # type: ignore[call-overload]
    record = _record(student="wrn16-2", bits="W4A4", **settings)
    held = [name for name in names() if recipes.is_of(record, find(name))]
    assert held == ["nayer/digits-wrn16-2-w4a4"]
    assert not recipes.is_of({**record, "bits": ""}, find(held[0]))


def test_the_tables_of_deployment_are_those_of_the_records() -> None:
    text = (Path(__file__).parent.parent / "docs/deploy.md").read_text()
    exported, adapted = deploy.tables()
    tables = {"quantized networks": quantize.table(), "exported networks": exported, "adapted students": adapted}
    for title, table in tables.items():
        shown = text.partition(f"<!-- table: {title} -->\n\n")[2].partition("\n\n<!-- end of table -->")[0]
        assert shown == table.strip(), "put what `python -m benchmarks.quantize table` and `deploy table` print there"
    for path in (RESULTS / quantize.FOLDER).glob("*.json"):
        record = json.loads(path.read_text())
        assert recipes.is_of(record, find(record["recipe"])), path


def test_a_record_names_the_text_it_used() -> None:
    row, digits = find(NAME), [str(digit) for digit in range(10)]
    shipped = embed(digits, 10).source
    assert recipes.is_of(_record(text=shipped), row)
    assert not recipes.is_of(_record(text=embed(digits, 10, prompt="P3").source), row)
    assert not recipes.is_of(_record(text={**shipped, "encoder": "CLIP ViT-B/32"}), row)
    clip = replace(row, text={"encoder": "clip"})
    assert recipes.is_of(_record(text={**shipped, "encoder": "CLIP ViT-B/32"}), clip)
    assert not recipes.is_of(_record(), clip)  # records before text was kept used the shipped vectors


def test_a_record_names_the_stages_it_compared() -> None:
    name = "spaceshipnet/digits-wrn16-2-wrn16-1"
    row, zoo = find(name), ["stages.0", "stages.1", "relu"]
    assert recipes.stages_of(row) == {"teacher": zoo, "student": zoo}
    assert recipes.is_of(_record(name, stages={"teacher": zoo, "student": zoo}), row)
    assert not recipes.is_of(_record(name), row)
    other = ["stages.1.0.before", "stages.2.0.before", "relu"]
    assert not recipes.is_of(_record(name, stages={"teacher": other, "student": other}), row)
    named = replace(row, stages=("stages.0", "stages.1", "stages.2", "relu"))
    assert recipes.stages_of(named)["student"] == ["stages.0", "stages.1", "stages.2", "relu"]


def test_a_setting_younger_than_a_record_had_its_default() -> None:
    row, plain = find(NAME), _record()
    older = {key: value for key, value in plain["settings"].items() if key != "text_scale"}
    assert recipes.is_of(_record(settings=older), row)
    assert not recipes.is_of(_record(settings=older), replace(row, settings={**row.settings, "text_scale": 2.0}))


def test_one_run_a_seed_the_newer_one(tmp_path: Path) -> None:
    older, newer = _record()["provenance"], {**_record()["provenance"], "date": "2026-02-01", "threads": 2}
    for file, changed in {
        "a": {"accuracy": 0.97, "provenance": newer},
        "b": {"accuracy": 0.96, "provenance": older},
        "c": {"seed": 1},
        "d": {"seed": 2, "precision": "bf16"},
    }.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(_record(**changed)))
    (tmp_path / "other.json").write_text('{"seconds": 3}')
    (runs,) = recipes.figures(tmp_path).values()
    assert [(run["seed"], run["accuracy"]) for run in runs] == [(0, 0.97), (1, 0.98)]
    assert [run["hardware"] for run in runs] == ["a machine, 2 cores, 2 threads", "a machine, 2 cores, 1 thread"]
    assert json.loads(recipes.text(tmp_path)) == {NAME: runs}


def test_the_speed_page_is_that_of_the_records() -> None:
    assert (RESULTS / "speed.md").read_text() == speed_page(), "run `python -m benchmarks.speed_table --write`"


@pytest.mark.parametrize("experiment", sorted(EXPERIMENTS))
def test_rows_have_different_names_and_records_belong_to_a_row(experiment: str) -> None:
    data, rows = EXPERIMENTS[experiment]
    labels = [slug(row.label) for row in rows()]
    assert len(set(labels)) == len(labels)
    for record in records(experiment):
        assert slug(record["row"]) in labels
        assert record["data"] == data.name
        assert {"commit", "date", "hardware", "torch"} <= record["provenance"].keys()


def test_accuracies_quoted_in_the_text_are_those_of_the_tables() -> None:
    root = RESULTS.parent.parent
    tables = (RESULTS / "README.md").read_text()
    section = re.search(r"\n## Which orders .*?(?=\n## )", (root / "docs/benchmarks.md").read_text(), re.DOTALL)
    assert section is not None
    quoted = {value for text in (section[0], *_cards(root)) for value in re.findall(r"\b\d\d\.\d\d\b", text)}
    assert len(quoted) > 20
    assert {value for value in quoted if not re.search(rf"(?<![\d.]){value}(?![\d])", tables)} == set()


def test_claims_stand_in_the_tables_with_their_standard_errors() -> None:
    rows = (RESULTS / "README.md").read_text().splitlines()
    section = re.search(
        r"\n## Which claims .*?(?=\n## )", (RESULTS.parent.parent / "docs/papers.md").read_text(), re.DOTALL
    )
    assert section is not None
    quoted = re.findall(r"(\d+\.\d\d) ± (\d+\.\d\d)", section[0])
    assert len(quoted) > 20
    wrong = [pair for pair in quoted if not any(f"| {pair[0]} ± " in row and f" | {pair[1]} | " in row for row in rows)]
    assert wrong == []


def _cards(root: Path) -> list[str]:
    """The sentences of the methods' pages that name a table of ours."""
    texts = [path.read_text() for path in sorted((root / "docs/methods").glob("*.md"))]
    points = [point for text in texts for point in re.split(r"\n(?=- |\n|#)", text)]
    return [point for point in points if re.search(r"`(mnist|cifar10|digits)-", point)]


def test_records_are_sound_json() -> None:
    for path in RESULTS.rglob("*.json"):
        assert isinstance(json.loads(path.read_text()), dict), path


def test_the_page_of_the_estimate_has_the_tables_of_the_records() -> None:
    text = (Path(__file__).parent.parent / "docs/estimate.md").read_text()
    shown = text.partition("judge -->\n\n")[2].partition("\n\n<!-- end of tables -->")[0]
    assert shown == judge(ESTIMATES).strip(), "put what `python -m benchmarks.estimate judge` prints into the page"
    assert f"{len(ESTIMATES.read_text().splitlines())} of the planned {len(cases())} runs" in text


def test_a_short_run_of_the_study_gives_a_line() -> None:
    method = method_for("NAYER", "wild synthesis", (1, 8, 8))
    assert isinstance(method, NAYER)
    assert (method.lr, method.pad, method.flip) == (3.0, 1, False)
    assert len(set(cases())) == len(cases()) >= 150


def test_no_good_run_of_the_records_is_warned_of() -> None:
    good = count_alarms(runs())["good"]
    assert good["runs"] >= 84
    assert good["warned_of"] == []


def test_the_page_on_stopping_has_the_tables_of_the_records() -> None:
    text = (Path(__file__).parent.parent / "docs/stopping.md").read_text()
    shown = text.partition("judge -->\n\n")[2].partition("\n\n<!-- end of tables -->")[0]
    assert shown == stopping_tables(STOPS).strip(), (
        "put into the page what `python -m benchmarks.stopping judge` prints"
    )
    assert f"{len(STOPS.read_text().splitlines())} of {len(stop_cases())} runs" in text


def test_the_picture_of_the_estimate_is_that_of_the_records(tmp_path: Path) -> None:
    """A point for every run and kind of images, in the picture of the page as in one that is drawn now."""
    drawn = draw(ESTIMATES, tmp_path / "estimate.svg").read_text()
    rows = [row for row in map(json.loads, ESTIMATES.read_text().splitlines()) if row.get("estimate")]
    shown = (Path(__file__).parent.parent / "docs/assets/estimate.svg").read_text()
    points = sum(row["estimate"]["sets"].get(kind) is not None for row in rows for kind in ("inverted", "own"))
    for picture in (drawn, shown):
        assert picture.count("<use ") >= points
        for word in ("digits", "mnist", "cifar10", "cifar20", "wrong mean and std"):
            assert word in picture


def test_a_label_that_no_row_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run", "digits", "--rows", "NAYER", "Nayer"])
    with pytest.raises(SystemExit):
        main()
    assert "--rows needs labels of the experiments, got Nayer; there are CMI, " in capsys.readouterr().err
