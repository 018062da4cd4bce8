"""Bad input: one sentence, exit code 2, no traceback, and nothing on disk that was not there."""

import errno
import json
import os
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from dfkd.cli.main import main
from dfkd.errors import UserError
from dfkd.nets.zoo import build
from test_cli import TINY


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _files(folder: Path = Path()) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _refused(words: list[str], says: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The command is refused in one sentence that has all of ``says``, and leaves every file as it was."""
    before = _files()
    capsys.readouterr()
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    assert "Traceback" not in told
    assert " needs " in told
    assert "got" in told
    for part in says:
        assert part in told, told
    assert _files() == before
    return told


def _distil(weights: object, *more: str) -> list[str]:
    return ["distill", "--teacher", "wrn16-1", "--teacher.weights", str(weights), *TINY, "--out", "runs/x", *more]


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_torn:Mine", "got SyntaxError"),
        ("own_lacking:Mine", "got ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("own_nowhere:Mine", "needs an importable module own_nowhere"),
        ("own_sound:mine", "needs a subclass of dfkd.Method"),
        (":Mine", "Empty module name"),
    ],
)
def test_a_method_of_ones_own_that_cannot_be_imported(
    name: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("own_torn.py").write_text("def mine(:\n")
    Path("own_lacking.py").write_text("import no_such_package_at_all\n")
    Path("own_sound.py").write_text("mine = 3\n")
    _refused(["methods", name], ["method", says], capsys)


def test_hostile_pickles_never_run(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": _Evil()}, "evil.pth")
    Path("raw.pth").write_bytes(pickle.dumps(_Evil()))
    for name in ("evil.pth", "raw.pth"):
        _refused(_distil(name), [name, "state_dict"], capsys)
    assert not Path("executed").exists()


def test_damaged_weights(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = digits_weights.read_bytes()
    Path("cut.pt").write_bytes(held[: len(held) // 2])
    Path("empty.pt").write_bytes(b"")
    Path("text.pt").write_text("no checkpoint at all")
    Path("text.safetensors").write_text("no checkpoint at all")
    save_file({"a": torch.zeros(100)}, "whole.safetensors")
    Path("cut.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-10])
    for name in ("cut.pt", "empty.pt", "text.pt", "text.safetensors", "cut.safetensors"):
        _refused(_distil(name), ["teacher needs", name], capsys)
    _refused(_distil("nowhere.pt"), ["nowhere.pt", "not there"], capsys)
    Path("folder").mkdir()
    _refused(_distil("folder"), ["weights.safetensors", "folder"], capsys)


def test_weights_of_something_else(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = torch.load(digits_weights, weights_only=True)
    torch.save([1, 2], "list.pt")
    _refused(_distil("list.pt"), ["state dict", "a list"], capsys)
    torch.save({key: value for key, value in held.items() if "head" not in key}, "missing.pt")
    _refused(_distil("missing.pt"), ["without head.weight, head.bias"], capsys)
    torch.save({**held, "more.weight": torch.zeros(1)}, "extra.pt")
    _refused(_distil("extra.pt"), ["unknown more.weight"], capsys)
    torch.save(build("wrn16-2", 10, 1).net.state_dict(), "wider.pt")
    _refused(_distil("wider.pt"), ["unknown stages.0.0.shortcut"], capsys)
    torch.save({**held, "head.bias": torch.zeros(7), "head.weight": torch.zeros(7, 64)}, "seven.pt")
    _refused(_distil("seven.pt"), ["head.weight of shape (10, 64), got (7, 64)", "1 more"], capsys)
    torch.save({**held, "head.bias": torch.full((10,), float("nan"))}, "nan.pt")
    _refused(_distil("nan.pt"), ["finite weights", "head.bias"], capsys)
    Path("side.pt").write_bytes(digits_weights.read_bytes())
    Path("side.json").write_text("{")
    _refused(_distil("side.pt"), ["side.json"], capsys)


def test_wrapped_weights_are_found(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = torch.load(digits_weights, weights_only=True)
    bare = {f"module.{key}": value for key, value in held.items() if "num_batches_tracked" not in key}
    torch.save({"epoch": 3, "state_dict": bare}, "wrapped.pth")
    assert main([*_distil("wrapped.pth"), "--print_config"]) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--data.classes", "12"], ["head", "12", "classes"]),
        (["--data.std", "0"], ["std above 0"]),
        (["--data.mean", "0.1,0.2"], ["one mean and std per channel", "2"]),
        (["--data.image_size", "1,10,10"], ["multiple of 4"]),
        (["--student", "vgg8", "--data.image_size", "1,9,9"], ["multiples of 8", "9 by 9"]),
        (["--student", "resnet17"], ["resnet17", "try"]),
        (["--teacher.head", "haed"], ["teacher needs", "'haed'; try head"]),
        (["--student.stages", "stages.0,stages.11"], ["student needs", "'stages.11'; try stages.1"]),
        (["--method", "NAYR"], ["did you mean NAYER?"]),
        (["--method", "nowhere.Class"], ["nowhere"]),
        (["--method.stepz", "3"], ["method.stepz", "did you mean method.steps?"]),
        (["--method.steps", "many"], ["method.steps needs a whole number", "'many'"]),
        (["--method.keep", "bes"], ["did you mean best?"]),
        (["--plan.rouns", "3"], ["did you mean --plan.rounds?"]),
        (["--rounds", "3"], ["did you mean --plan.rounds?"]),
        (["--plan.rounds", "0"], ["plan needs rounds", "at least 1"]),
        (["--plan.rounds", "2.5"], ["plan.rounds needs a whole number"]),
        (["--plan.optimizer", "sdg"], ["did you mean sgd?"]),
        (["--data", "cifar11"], ["did you mean cifar10"]),
        (["--data.image_size", "8,8"], ["data.image_size needs 3 whole numbers"]),
        (["--data.test", "folder:nothing"], ["read_images needs"]),
        (["--data.test", "mnist:nowhere"], ["nowhere"]),
        (["--text.file", "nothing.npy"], ["nothing.npy"]),
        (["--runtime.threads", "0"], ["at least one thread"]),
        (["--runtime.devices", "0"], ["at least one process"]),
        (["--runtime.precision", "fp8"], ["runtime.precision needs fp32 | bf16"]),
        (["--plan.rounds"], ["--plan.rounds needs a value"]),
        (["word"], ["recipe needs", "word"]),
        (["-x"], ["two dashes"]),
        (["--method", "KD3"], ["method."]),
        (["--method.lr", "-1"], ["NAYER needs lr above 0 and finite, got -1.0"]),
        (
            ["--method.betas", "[0.5,1.5]"],
            ["NAYER needs betas to be two numbers, each at least 0 and below 1, got (0.5, 1.5)"],
        ),
        (["--method.momentum", "2"], ["NAYER needs momentum from 0 to 1, got 2"]),
        (["--method.pad", "-3"], ["NAYER needs pad of at least 0, got -3"]),
        (["--watch.evaluate_every", "-5"], ["watch needs evaluate_every of at least 1, got -5"]),
        (["--watch.metrics_every", "0"], ["watch needs metrics_every of at least 1, got 0"]),
        (["--watch.samples_every", "-5"], ["watch needs samples_every of at least 0, got -5"]),
        (["--watch.save_every", "-5"], ["watch needs save_every of at least 0, got -5"]),
        (["--watch.save_every", "-5", "--dry-run"], ["watch needs save_every of at least 0, got -5"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings(more: list[str], says: list[str], digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(_distil(digits_weights, *more), says, capsys)
    assert not Path("runs").exists()


def test_the_pair_must_fit_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build("lenet5", 10, 1).net.state_dict(), "lenet.pt")
    words = shlex.split(
        "distill --teacher lenet5 --teacher.weights lenet.pt --student lenet5-half --data mnist --out runs/x"
    )
    _refused(
        [*words, "--watch.quiet"], ["NAYER needs a teacher with BatchNorm", "these fit: DAFL, NoiseInput, STTS"], capsys
    )
    _refused([*words, "--method", "VanillaKD"], ["VanillaKD needs real training images"], capsys)
    assert not Path("runs").exists()


def test_missing_parts(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(["distill"], ["teacher needs a network"], capsys)
    _refused(["distill", "--teacher", "wrn16-1"], ["data.image_size"], capsys)
    _refused(shlex.split("distill --teacher wrn16-1 --data digits --student wrn10-1"), ["dfkd teach wrn16-1"], capsys)
    given = ["--teacher", "wrn16-1", "--teacher.weights", str(digits_weights), "--data", "digits"]
    _refused(["distill", *given], ["student needs a network"], capsys)
    _refused(["distil"], ["did you mean distill?"], capsys)
    _refused(["teach"], ["teach needs a network"], capsys)
    _refused(["teach", "wrn10-1"], ["training images"], capsys)
    _refused(["evaluate"], ["labelled images"], capsys)
    _refused(["report", "nowhere"], ["nowhere"], capsys)
    _refused(["embed"], ["classes"], capsys)
    _refused(["synthesize", "--run", "nowhere"], ["--out"], capsys)
    _refused(["synthesize", "--run", "nowhere", "--out", "x"], ["nowhere"], capsys)


def test_inspect_names_layers_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    line = "inspect wrn16-1 --data digits"
    _refused(shlex.split(f"{line} --teacher.head nope"), ["'nope'; its linear layers are head"], capsys)
    _refused(shlex.split(f"{line} --teacher.stages stages.0,head"), ["return maps", "'head'"], capsys)


@pytest.mark.parametrize("command", ["inspect", "distill --student wrn10-1 --teacher", "bench --teacher"])
def test_what_is_neither_a_network_nor_a_path_is_said_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("teachers/r34").mkdir(parents=True)
    Path("mine.pt").touch()
    for name, hint in {
        "teachers/r43": "try teachers/r34",
        "mime.pt": "try mine.pt",
        "wrn-16-1": "try wrn16-1",
        "nowhere/qqqq": "check the path, or take a name that `dfkd inspect` lists",
    }.items():
        said = f"teacher needs the name of a network or the path of weights, got '{name}', which is neither; {hint}"
        _refused([*shlex.split(command), name], [said], capsys)
    told = _refused(shlex.split(f"{command} renset18 --teacher.weights mine.pt"), ["'renset18'; try resnet18"], capsys)
    assert "path of weights" not in told
    _refused(shlex.split(f"{command} wrn16-1 --student wrn161"), ["student needs", "'wrn161'", "try wrn16-1"], capsys)


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("teach renset18 --data digits", "network"),
        ("evaluate --network.name renset18 --data digits", "network"),
        ("evaluate --network.name wrn16-1 --teacher renset18 --data digits", "teacher"),
    ],
)
def test_a_mistyped_network_to_teach_or_evaluate(command: str, role: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = "" if command.startswith("teach") else " --data.test digits"
    _refused(shlex.split(command + data), [f"{role} needs the name of a network", "'renset18'", "try resnet18"], capsys)


def test_recipe_files(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"teacher": {"name": "wrn16-1"}, "plan": {"rounds": 3}}
    cases: dict[str, tuple[object, list[str]]] = {
        "key.yaml": ({**good, "studnt": {"name": "x"}}, ["studnt", "did you mean"]),
        "inner.yaml": ({**good, "data": {"imagesize": [1, 8, 8]}}, ["data.imagesize", "data.image_size"]),
        "plan.yaml": ({**good, "plan": 3}, ["plan needs settings"]),
        "type.yaml": ({**good, "plan": {"rounds": "lots"}}, ["plan.rounds needs a whole number"]),
        "section.yaml": ({**good, "runtime": 3}, ["runtime needs settings"]),
        "list.yaml": ([1, 2], ["sections"]),
    }
    for name, (held, says) in cases.items():
        Path(name).write_text(yaml.safe_dump(held))
        _refused(["distill", name], says, capsys)
    Path("torn.yaml").write_text("a: [1, 2\nb: }")
    _refused(["distill", "torn.yaml"], ["torn.yaml", "line"], capsys)
    _refused(["distill", "none.yaml"], ["none.yaml"], capsys)
    _refused(["distill", "nayer/digits-wrn16-2-wrn16-9"], ["did you mean nayer/digits-wrn16-2-wrn16-1?"], capsys)


def test_run_folders(digits_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_distil(digits_weights)) == 0
    _refused(_distil(digits_weights), ["runs/x", "holds one"], capsys)
    _refused(["distill", "--resume", "runs/x", "--plan.rounds", "9"], ["plan.rounds", "9", "3"], capsys)
    _refused(["distill", "--resume", "runs/x", "--method.steps", "9"], ["method.steps"], capsys)
    _refused(["distill", "--resume", "runs/x", "--runtime.seed", "9"], ["seed"], capsys)
    _refused(["distill", "--resume", "runs/x", "--out", "y"], ["neither"], capsys)
    _refused(["distill", "--resume", "nowhere"], ["nowhere"], capsys)
    Path("other").mkdir()
    Path("other/file").write_text("mine")
    _refused([*_distil(digits_weights), "--out", "other"], ["empty or new folder"], capsys)
    _refused([*_distil(digits_weights), "--out", "other/file"], ["got the file"], capsys)
    Path("t").mkdir()
    Path("t/file").write_text("mine")
    _refused(shlex.split("teach wrn10-1 --data digits --out t"), ["new or empty folder"], capsys)
    _refused(shlex.split("synthesize --run runs/x --out other"), ["new folder"], capsys)
    _refused(shlex.split("synthesize --run runs/x --count 0 --out z"), ["--count"], capsys)
    Path("runs/x/checkpoint/commit-before.json").unlink()
    for text in ("{", "[]", '{"rounds": 4}', "\x00\xff"):
        Path("runs/x/checkpoint/commit.json").write_text(text, encoding="latin-1")
        says = ["synthesize needs a readable checkpoint, got runs/x/checkpoint/commit.json"]
        _refused(shlex.split("synthesize --run runs/x --out z"), says, capsys)


def test_disk_full_then_resume(
    digits_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, original = [0], torch.save

    def full(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main(_distil(digits_weights)) == 2
    told = capsys.readouterr().err
    assert "No space left" in told
    assert told.count("\n") == 1
    assert not list(Path("runs/x").rglob("*.tmp"))
    assert json.loads(Path("runs/x/checkpoint/commit.json").read_text())["rounds"] >= 1
    assert main(["distill", "--resume", "runs/x"]) == 0
    assert Path("runs/x/student.safetensors").exists()


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="did you mean distill"):
        main(["distil", "--debug"])


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(settings: object) -> int:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("dfkd.cli.do_doctor.run", broken)
    assert main(["doctor"]) == 1
    assert "ZeroDivisionError: by zero; --debug" in capsys.readouterr().err
