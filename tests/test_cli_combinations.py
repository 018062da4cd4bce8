"""Methods made of other methods, from the command line and from recipe files."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dfkd.cli.config import Distill
from dfkd.cli.main import main
from dfkd.cli.parse import flags, read_yaml
from dfkd.cli.setup import inner_method_fields, method_settings, resolve, with_recipe
from dfkd.engine.exchange import Exchange
from dfkd.engine.recombine import Recombine
from dfkd.errors import UserError
from dfkd.methods import COMBINATIONS, D3K, METHODS, NAYER, SpaceshipNet

TINY = """
    --student wrn10-1 --data digits --data.test digits
    --method.images_from.of.steps 2 --method.images_from.of.synthesis_batch 20 --method.images_from.of.batches 1
    --method.images_from.of.warmup_batches 1 --method.images_from.of.width 8 --method.images_from.of.channels 4
    --method.images_from.of.pad 1 --method.images_from.of.flip false
    --plan.rounds 3 --plan.warmup 1 --plan.steps 2 --plan.batch_size 16
    --watch.quiet --watch.export false --watch.figures false --watch.samples_every 2
    --runtime.device cpu --runtime.threads 1
"""
CHOSEN = (
    "--method recombine --method.images_from exchange --method.images_from.of nayer --method.loss_from spaceshipnet"
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def distil(digits_weights: Path) -> list[str]:
    """`distill` with NAYER's exchanged features and Spaceship-Net's loss, everything but --out."""
    return shlex.split(f"distill --teacher wrn16-1 --teacher.weights {digits_weights} {CHOSEN} {TINY}")


def chosen(line: str) -> Any:
    """The method that these flags ask for."""
    return resolve(Distill, with_recipe(flags(shlex.split(line), Distill, "recipe", ["method"])))[1]


def _same(a: str, b: str) -> bool:
    x, y = (load_file(Path(folder) / "student.safetensors") for folder in (a, b))
    return all(torch.equal(x[key], y[key]) for key in x)


@pytest.mark.slow
def test_a_run_its_recipe_and_its_resume(
    distil: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*distil, "--out", "whole"]) == 0
    settings = json.loads(Path("whole/run.json").read_text())["info"]["settings"]
    assert settings["images_from"]["method"] == "Exchange"
    assert settings["images_from"]["of"]["method"] == "NAYER"
    assert settings["images_from"]["of"]["steps"] == 2
    held = yaml.safe_load(Path("whole/recipe.yaml").read_text())["method"]
    assert (held["name"], held["loss_from"]["name"], held["images_from"]["of"]["name"]) == (
        "Recombine",
        "SpaceshipNet",
        "NAYER",
    )
    assert "images_from.of.steps" in Path("whole/report.html").read_text()
    assert main(["distill", "whole/recipe.yaml", "--out", "again"]) == 0
    assert _same("whole", "again")

    calls, original = [0], Exchange.batch

    def stop_at_four(self: Exchange, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "batch", stop_at_four)
        assert main([*distil, "--out", "cut"]) == 130
    capsys.readouterr()
    assert main(["distill", "--resume", "cut", "--method.images_from.of.steps", "3"]) != 0
    assert "got method.images_from.of.steps = 3 instead of 2" in capsys.readouterr().err
    assert main(["distill", "--resume", "cut"]) == 0
    assert _same("whole", "cut")
    assert main(["synthesize", "--run", "cut", "--count", "20", "--format", "safetensors", "--out", "made"]) == 0
    assert load_file("made/images.safetensors")["images"].shape == (20, 1, 8, 8)


def test_the_order_of_flags_does_not_matter() -> None:
    words = [
        "--method.images_from nayer",
        "--method.images_from.steps 7",
        "--method recombine",
        "--method.loss_from D3K",
    ]
    wanted = Recombine(NAYER(steps=7), METHODS["D3K"]())
    assert chosen(" ".join(words)) == chosen(" ".join(reversed(words))) == wanted


def test_flags_go_over_a_recipe() -> None:
    text = "method: {name: Recombine, images_from: {name: Exchange, of: NAYER, p: 0.5}, loss_from: SpaceshipNet}"
    Path("my.yaml").write_text(text)
    assert chosen("my.yaml") == Recombine(Exchange(NAYER(), p=0.5), SpaceshipNet())
    finer = chosen("my.yaml --method.images_from.of.steps 3 --method.loss_from.constraint at")
    assert finer == Recombine(Exchange(NAYER(steps=3), p=0.5), SpaceshipNet(constraint="at"))
    # A method named anew begins with its own defaults.
    assert chosen("my.yaml --method.images_from spaceshipnet").images_from == SpaceshipNet()


def test_the_recipe_of_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs/recombining.md").read_text()
    Path("mixed.yaml").write_text(page.split('```yaml title="mixed.yaml"\n')[1].split("```")[0])
    nayer = NAYER(steps=40, synthesis_batch=200, batches=1, pad=1, flip=False)
    wanted = Recombine(Exchange(nayer), SpaceshipNet(pad=1, flip=False))  # as digits want it
    assert chosen("mixed.yaml --method.images_from.of.steps 40") == wanted


def test_the_data_set_decides_about_mirroring_where_nothing_is_said() -> None:
    assert chosen("--data digits") == NAYER(flip=False, pad=1)
    assert chosen("--data svhn --method D3K") == D3K(flip=False)
    assert chosen("--data cifar10") == NAYER()
    assert chosen("--data digits --method noiseinput") == METHODS["NoiseInput"]()
    assert chosen("--data digits --method.flip true --method.pad 2") == NAYER(pad=2)
    assert chosen("--data digits --data.image_size 1,32,32") == NAYER(flip=False)
    assert chosen("--data mnist --method exchange --method.of nayer") == Exchange(NAYER(flip=False))
    parts = "--method recombine --method.images_from nayer --method.images_from.flip true --method.loss_from D3K"
    assert chosen(f"--data mnist {parts}") == Recombine(NAYER(), D3K(flip=False))
    Path("my.yaml").write_text("data: digits\nmethod: {name: NAYER, flip: true}\n")
    assert chosen("my.yaml") == NAYER(pad=1)


def test_class_paths_and_own_classes() -> None:
    own = "from dfkd.methods import NAYER\n\n\nclass Quick(NAYER):\n    pass\n"
    Path("quick_method.py").write_text(own)
    Path("my.yaml").write_text(
        "method:\n  class_path: dfkd.Recombine\n  init_args:\n"
        "    images_from: {class_path: quick_method.Quick, init_args: {steps: 4}}\n    loss_from: VanillaKD\n"
    )
    with pytest.raises(UserError, match=r"add --method.images_from quick_method.Quick if you trust that code"):
        chosen("my.yaml")
    own_code = "--method.images_from quick_method.Quick"
    made = chosen(f"my.yaml {own_code}")
    assert (type(made.images_from).__name__, made.images_from.steps) == ("Quick", 4)
    told = method_settings(made)
    assert told["images_from"]["name"] == "quick_method:Quick"
    Path("again.yaml").write_text(yaml.safe_dump({"method": json.loads(json.dumps(told))}))
    again = chosen("again.yaml --method.images_from quick_method:Quick")
    assert again == made
    assert read_yaml(Path("again.yaml"))["method"]["loss_from"] == {"name": "VanillaKD", **vars(made.loss_from)}


def test_the_plan_is_that_of_the_method_that_makes_the_images() -> None:
    tree = flags(shlex.split(f"{CHOSEN} --plan.rounds 9"), Distill, "recipe", ["method"])
    plan = resolve(Distill, tree)[2]
    assert (plan.rounds, plan.warmup, plan.lr) == (9, NAYER.default_plan.warmup, NAYER.default_plan.lr)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--method recombine", "method.images_from needs the name of a method, got none; give --method.images_from"),
        ("--method recombine --method.images_from nayer", "method.loss_from needs the name of a method, got none"),
        ("--method recombine --method.images_from.steps 3", "method.images_from needs the name of a method"),
        (
            "--method recombine --method.images_from NAYR --method.loss_from nayer",
            "method needs a name it knows, got NAYR; did you mean NAYER",
        ),
        (
            "--method recombine --method.images_from nayer --method.images_from.stepz 3 --method.loss_from nayer",
            "got method.images_from.stepz; did you mean method.images_from.steps",
        ),
        (
            "--method recombine --method.images_from nayer --method.images_from.lr x --method.loss_from nayer",
            "method.images_from.lr needs a number, got 'x'",
        ),
        ("--method exchange --method.of nayer --method.p 3", "Exchange needs p from 0 to 1, got 3"),
        ("--method exchange --method.of.of nayer", "method.of needs the name of a method"),
        ("--method nayer --method.images_from nayer", "needs a setting it knows, got method.images_from"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(line: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")) as caught:
        chosen(line)
    assert "\n" not in str(caught.value)


def test_a_method_without_a_staged_generator_is_refused_and_leaves_nothing(
    digits_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"distill --teacher wrn16-1 --teacher.weights {digits_weights} --student wrn10-1 --data digits"
    more = "--method exchange --method.of D3K --plan.rounds 1 --watch.quiet --runtime.device cpu --out r"
    assert main(shlex.split(f"{line} {more}")) != 0
    assert "Exchange needs a method that keeps a generator in stages" in capsys.readouterr().err
    assert not Path("r/run.json").exists()


def test_the_list_of_methods_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    for name, kind in COMBINATIONS.items():
        assert f"\n{name} " in listed
        assert main(["methods", name.lower()]) == 0
        out = capsys.readouterr().out
        for part in inner_method_fields(kind):
            assert f"--method.{part}" in out
    assert inner_method_fields(Recombine) == ("images_from", "loss_from")
    assert inner_method_fields(Exchange) == ("of",)
    assert all(inner_method_fields(kind) == () for kind in METHODS.values())


def test_another_method_over_a_recipe_has_its_own_settings(tmp_path: Path) -> None:
    """Steps and rates of one method mean something else in another; the plan is the recipe's."""
    recipe = tmp_path / "n.yaml"
    recipe.write_text("method: {name: NAYER, steps: 7, lr: 0.123, pad: 3}\nplan: {rounds: 5}\n")
    with pytest.warns(UserWarning, match="the recipe's settings of NAYER are left out, for the method is D3K"):
        tree = with_recipe(flags([str(recipe), "--method", "D3K", "--method.pad", "1"], Distill, "recipe", ["method"]))
    _, method, plan = resolve(Distill, tree)
    assert method == D3K(pad=1)
    assert plan.rounds == 5
    assert chosen(f"{recipe} --method nayer --method.pad 1") == NAYER(steps=7, lr=0.123, pad=1)
