"""The table of recipes: complete, buildable, and honest about what was run."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from dfkd.cli.config import PRESETS, Distill
from dfkd.cli.setup import settled
from dfkd.data.text import class_list
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.nets.zoo import check_image_shape, find
from dfkd.recipes import Row, names, reached, recipe, rows, yaml_of
from dfkd.recipes import find as find_row
from dfkd.recipes.ablations import ABLATIONS
from dfkd.recipes.table import ROWS


def test_names_are_unique_and_every_method_has_one() -> None:
    assert len(set(names())) == len(names())
    assert {row.method for row in ROWS} == set(METHODS)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_every_recipe_fits_its_types(row: Row) -> None:
    settings, method, plan = settled(Distill, yaml.safe_load(yaml_of(recipe(row.name))))
    assert type(method).__name__ == row.method
    assert settings.student.name == row.student
    shape = settings.data.image_size or PRESETS[row.data]
    for net in (row.teacher, row.student):
        if ":" not in net:
            assert find(net) is not None
            check_image_shape(net, shape)
    assert class_list(row.data)
    for key, value in row.plan.items():
        assert getattr(plan, key) == (tuple(value) if isinstance(value, list) else value)


def test_published_rows_of_nayer() -> None:
    published = {row.name: row.paper for row in rows() if row.method == "NAYER"}
    assert published["nayer/cifar10-resnet34-resnet18"] == 95.21
    assert published["nayer/cifar100-wrn40-2-wrn16-2"] == 71.72
    assert recipe("nayer/cifar100-wrn40-2-wrn16-2")["method"]["steps"] == 40


def test_yaml_reads_back() -> None:
    tree = recipe("nayer/tiny-imagenet-resnet34-resnet18")
    text = yaml_of(tree, ["first line", ""])
    assert text.startswith("# first line\n#\nteacher:")
    assert yaml.safe_load(text) == tree


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="did you mean nayer/cifar10-resnet34-resnet18"):
        find_row("nayer/cifar10-resnet34-resnet17")
    with pytest.raises(UserError, match="dfkd recipes"):
        find_row("zzzz")


def test_only_records_with_the_same_settings_count(tmp_path: Path) -> None:
    row = find_row("nayer/digits-wrn16-2-wrn16-1")
    _, method, plan = settled(Distill, recipe(row.name))
    record = {
        "method": "NAYER",
        "data": "digits",
        "teacher": {"name": "wrn16-2"},
        "student": "wrn16-1",
        "settings": asdict(method),  # type: ignore[call-overload]
        "plan": asdict(plan),
        "accuracy": 0.98,
        "seconds": 60.0,
    }
    other = {**record, "settings": {**record["settings"], "steps": 3}, "accuracy": 0.1, "seed": 9}
    for name, one in {"a": {**record, "seed": 0}, "b": {**record, "seed": 1, "accuracy": 0.96}, "c": other}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    (tmp_path / "torn.json").write_text("{")
    had = reached(row, tmp_path)
    assert had is not None
    assert sorted(had.accuracies) == [0.96, 0.98]
    assert had.mean == pytest.approx(0.97)
    assert had.seconds == 60
    (tmp_path / "empty").mkdir()
    assert reached(row, tmp_path / "empty") is None


def test_ablations_change_their_base_and_nothing_else() -> None:
    plain = {row.name: row for row in ROWS}
    seen = set()
    for row in ABLATIONS:
        told = row.name.split("+")
        assert told[1:] == [row.variant]
        if row.variant == "self":  # another pair
            continue
        base = plain[told[0]]
        assert (row.settings, row.plan, row.text) != (base.settings, base.plan, base.text), row.name
        assert row.inputs == base.inputs
        assert row.paper is not None or row.note
        key = repr((told[0], sorted(row.settings.items()), sorted(row.plan.items()), dict(row.text)))
        assert key not in seen, f"{row.name} is there twice"
        seen.add(key)


def test_ablations_of_the_papers_tables() -> None:
    tree = recipe("nayer/cifar10-wrn40-2-wrn16-2+text-plus-0.1-noise")
    assert tree["method"] == {"name": "NAYER", "code": "sum", "beta": 0.1}
    assert tree["plan"] == {"rounds": 100}
    assert find_row("spaceshipnet/cifar100-resnet34-resnet18+cfe").paper == 48.18
    assert find_row("kd3/cifar100-vgg16-vgg13+pool5").settings == {"pool_share": 0.05}
    assert find_row("stts/mnist-lenet5-lenet5-half+targets").settings["sigma"] == 1.5
    assert recipe("nayer/cifar100-wrn40-2-wrn16-2+p3")["text"] == {"prompt": "P3"}
    assert len(ABLATIONS) > 80
