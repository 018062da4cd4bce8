"""Nothing that a file names runs, unless the command line names it, too."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

import dfkd
from dfkd.cli.main import main
from dfkd.cli.trust import refuse_code, to_repeat
from dfkd.nets.zoo import build
from test_cli import TINY

CODE = """
from pathlib import Path
Path("executed").touch()
from dfkd.methods.noise import NoiseInput
from dfkd.nets.zoo import build as make
Mine = NoiseInput

def build(classes, channels):
    return make("wrn10-1", classes, channels).net
"""


@pytest.fixture(autouse=True)
def _helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("strange_helper.py").write_text(CODE)
    sys.modules.pop("strange_helper", None)
    yield
    sys.modules.pop("strange_helper", None)


def weights() -> None:
    """Weights with a description that names code."""
    torch.manual_seed(0)
    torch.save(build("wrn10-1", 10, 1).net.state_dict(), "w.pt")
    about = {"network": {"name": "strange_helper:build"}, "image_shape": [1, 8, 8], "classes": 10}
    Path("w.json").write_text(json.dumps({**about, "mean": [0.3], "std": [0.37], "names": list("0123456789")}))


def recipe(**sections: object) -> None:
    held = {"teacher": {"name": "wrn10-1", "weights": "w.pt"}, "student": "wrn10-1", "data": "digits", **sections}
    Path("r.yaml").write_text(yaml.safe_dump(held))


def run_folder() -> None:
    """A folder that claims to be a run, with code in its recipe."""
    Path("run").mkdir()
    recipe(teacher={"name": "strange_helper:build", "weights": str(Path("w.pt").resolve())})
    Path("r.yaml").rename("run/recipe.yaml")


# What is there, the command, and what it has to repeat to run the code.
CASES: dict[str, tuple[Callable[[], None], str, str]] = {
    "evaluate": (weights, "evaluate w.pt --data.test digits", "--network strange_helper:build"),
    "inspect": (weights, "inspect w.pt", "--teacher strange_helper:build --teacher.weights w.pt"),
    "teacher of a run": (weights, "distill --teacher.weights w.pt --print_config --student wrn10-1", "--teacher"),
    "student of a run": (
        weights,
        "distill --teacher wrn10-1 --teacher.weights w.pt --student.weights w.pt --print_config",
        "--student",
    ),
    "recipe": (lambda: recipe(student="strange_helper:build"), "distill r.yaml --print_config", "--student"),
    "recipe, teacher": (
        lambda: recipe(teacher={"name": "strange_helper:build"}),
        "bench r.yaml --rounds 1",
        "--teacher",
    ),
    "method": (lambda: recipe(method={"name": "strange_helper:Mine"}), "distill r.yaml --print_config", "--method"),
    "method by path": (
        lambda: recipe(method={"class_path": "strange_helper.Mine"}),
        "distill r.yaml --print_config",
        "--method",
    ),
    "method within a method": (
        lambda: recipe(method={"name": "Recombine", "images": {"name": "strange_helper:Mine"}, "student": "NAYER"}),
        "synthesize r.yaml --out x",
        "--method.images",
    ),
    "resume": (run_folder, "distill --resume run", "--teacher"),
}


@pytest.mark.parametrize("name", CASES)
def test_code_named_in_a_file_does_not_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, command, repeat = CASES[name]
    if make is not weights:
        torch.save(build("wrn10-1", 10, 1).net.state_dict(), "w.pt")
    make()
    assert main(shlex.split(command)) == 2
    told = capsys.readouterr().err
    assert not Path("executed").exists()
    assert "needs its code to be named on the command line, got strange_helper" in told
    assert f"add {repeat.split()[0]} strange_helper" in told


def test_all_names_of_code_are_asked_for_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    recipe(teacher="strange_helper:build", student="strange_helper:build")
    assert main(["distill", "r.yaml"]) == 2
    told = capsys.readouterr().err
    assert "each of teacher and student needs its code to be named on the command line" in told
    assert "add --teacher strange_helper:build --student strange_helper:build if you trust" in told


def test_repeated_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    weights()
    assert main(shlex.split("evaluate w.pt --data.test digits --network strange_helper:build")) == 0
    assert Path("executed").exists()
    recipe(method={"class_path": "strange_helper.Mine"}, student="strange_helper:build")
    own = "--method strange_helper.Mine --student strange_helper:build"
    assert main(shlex.split(f"distill r.yaml --print_config {own}")) == 0
    tree = yaml.safe_load(capsys.readouterr().out.partition("\n")[2])
    assert to_repeat(tree) == " --student strange_helper:build --method strange_helper.Mine"


def test_a_run_with_code_of_ones_own_goes_on_when_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(build("wrn10-1", 10, 1).net.state_dict(), "w.pt")
    words = ["distill", "--teacher", "wrn10-1", "--teacher.weights", "w.pt", *TINY, "--data.test", "null"]
    assert main([*words, "--student", "strange_helper:build", "--out", "x"]) == 0
    assert "--resume x --student strange_helper:build" in Path("x/recipe.yaml").read_text()
    capsys.readouterr()
    assert main(["plot", "x"]) == 0
    assert "student needs its code to be named" in capsys.readouterr().out
    assert main(["distill", "--resume", "x"]) == 2
    assert "student needs its code to be named" in capsys.readouterr().err
    assert main(["distill", "--resume", "x", "--student", "strange_helper:build"]) == 0
    with pytest.raises(dfkd.UserError, match="load needs code to be named by you, got strange_helper:build only"):
        dfkd.load("x")
    images = dfkd.read_images("digits").images[:5] / 255
    assert dfkd.load("x", network="strange_helper:build")(images).shape == (5, 10)


def test_names_that_import_only_installed_packages_are_no_code() -> None:
    for name in ("resnet18", "timm:resnet10t", "torchvision:resnet18", "hf:microsoft/resnet-18"):
        refuse_code({"teacher": name, "student": {"name": name}}, {}, "a file")
    refuse_code({"method": {"name": "Recombine", "images": "NAYER", "student": {"name": "STTS"}}}, {}, "a file")


def test_code_of_a_model_from_elsewhere_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask on the terminal whether to run the code of a repository."""
    from dfkd.nets import adapters

    asked: dict[str, object] = {}

    class Auto:
        @staticmethod
        def from_pretrained(name: str, **settings: object) -> torch.nn.Module:
            asked.update(settings)
            raise OSError("no such place")

    class Transformers:
        AutoModelForImageClassification = Auto

    monkeypatch.setattr(adapters, "_import", lambda package, extra: Transformers)
    with pytest.raises(dfkd.UserError, match="hf: needs a folder or repository"):
        build("hf:some/model", 10, 3)
    assert asked == {"trust_remote_code": False}


def test_a_part_of_a_method_by_a_dotted_name_is_code_too() -> None:
    told = {"name": "Recombine", "images_from": "strange_helper.Mine", "loss_from": "VanillaKD"}
    with pytest.raises(dfkd.UserError, match=r"add --method.images_from strange_helper.Mine if you trust"):
        refuse_code({"method": told}, {}, "r.yaml")
    refuse_code({"method": told}, {"method": {"images_from": "strange_helper.Mine"}}, "r.yaml")
    refuse_code({"method": {"name": "dfkd.Recombine", "images_from": "NAYER"}}, {}, "r.yaml")
    refuse_code({"method": {"name": "STTS", "layer": "fc.2"}}, {}, "r.yaml")
