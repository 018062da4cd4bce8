"""Checkpoints as people have them: each kind loads, or is called by its name with what to do. Nothing is executed."""

import argparse
import datetime
import gzip
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dfkd.cli.main import main
from dfkd.data import _limits
from dfkd.errors import UserError
from dfkd.weights import load_weights, read_weights

State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class Holder(nn.Module):
    """A network that has another one under a name of its own, as classes of Lightning do."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Colour(Enum):
    RED = 1


class Settings(dict[str, object]):
    """A dict of a kind of its own, as EasyDict and Munch are."""


def network(seed: int = 0, width: int = 4) -> Net:
    torch.manual_seed(seed)
    net = Net(width)
    net(torch.rand(8, 3, 6, 6))  # statistics that are not those of a fresh layer
    return net


def weights(seed: int = 0) -> State:
    return network(seed).state_dict()


def under(prefix: str, state: State | None = None) -> State:
    return {prefix + name: tensor for name, tensor in (state or weights()).items()}


def saved(content: object, name: str = "a.pth", **settings: Any) -> Path:
    torch.save(content, name, **settings)
    return Path(name)


def optimised(state: State) -> dict[str, Any]:
    """As Adam's state dict is."""
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": t, "exp_avg_sq": t} for i, t in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": list(moments)}]}


def averaged() -> Path:
    return saved(AveragedModel(network()).state_dict())


def repacked() -> Path:
    """A checkpoint whose zip archive was unpacked and packed anew, deflated."""
    saved(weights())
    with zipfile.ZipFile("a.pth") as old, zipfile.ZipFile("b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item.filename))
    return Path("b.pth")


def safe(state: State, name: str = "a.safetensors") -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, name)
    return Path(name)


LIGHTNING = {
    "epoch": 3,
    "global_step": 1200,
    "pytorch-lightning_version": "2.4.0",
    "state_dict": {**under("model."), "accuracy.total": torch.tensor(3), "loss.weight": torch.ones(5)},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9)}},
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.1},
}
NUMBERS = {"accuracy": np.float64(0.93), "top": np.float32(1.5), "n": np.int64(3), "curve": np.arange(4.0)}

# Each of these is the network of seed 0, and loads as such.
LOADS: dict[str, Callable[[], Path]] = {
    "state dict": lambda: saved(weights()),
    "state dict, old format": lambda: saved(weights(), _use_new_zipfile_serialization=False),
    "safetensors": lambda: safe(weights()),
    "safetensors named .pth": lambda: safe(weights(), "a.pth"),
    "torch named .safetensors": lambda: saved(weights(), "a.safetensors"),
    "torch named .bin": lambda: saved(weights(), "pytorch_model.bin"),
    "torch named .ckpt": lambda: saved(weights(), "last.ckpt"),
    "torch named .tar": lambda: saved({"epoch": 1, "state_dict": under("module.")}, "best.pth.tar"),
    "zip packed anew": repacked,
    "without BatchNorm counters": lambda: saved({k: v for k, v in weights().items() if "num_batches" not in k}),
    "half precision": lambda: saved({k: v.half() if v.is_floating_point() else v for k, v in weights().items()}),
    "parameters instead of tensors": lambda: saved({k: nn.Parameter(v, False) for k, v in weights().items()}),
    "container state_dict": lambda: saved({"epoch": 3, "state_dict": weights()}),
    "container model_state_dict": lambda: saved({"model_state_dict": weights(), "loss": 0.3}),
    "container model": lambda: saved({"model": weights()}),
    "container net": lambda: saved({"net": weights(), "acc": 93.1, "epoch": 199}),
    "container with any name": lambda: saved({"my_weights": weights()}),
    "containers within containers": lambda: saved({"run": {"best": {"net": weights()}}}),
    "tuple beside": lambda: saved({"model": weights(), "image_size": (3, 32, 32), "best": torch.tensor(3.0)}),
    "module.": lambda: saved(under("module.")),
    "model.": lambda: saved(under("model.")),
    "net.": lambda: saved(under("net.")),
    "_orig_mod.": lambda: saved(under("_orig_mod.")),
    "module._orig_mod.": lambda: saved({"model": under("module._orig_mod.")}),
    "_orig_mod. in the middle": lambda: saved(
        {k.replace("conv.", "conv._orig_mod."): v for k, v in under("model.").items()}
    ),
    "module.module.": lambda: saved(under("module.module.")),
    "fully sharded": lambda: saved(under("_fsdp_wrapped_module.")),
    "averaged model": averaged,
    "averaged model of a compiled one": lambda: saved({"n_averaged": torch.tensor(2), **under("module._orig_mod.")}),
    "Lightning": lambda: saved(LIGHTNING, "last.ckpt"),
    "training state": lambda: saved(
        {"model": weights(), "optimizer": optimised(weights()), "epoch": 3, "lr_scheduler": {"last_epoch": 3}}
    ),
    "argparse.Namespace": lambda: saved({"model": weights(), "args": argparse.Namespace(lr=0.1, path="/data")}),
    "NumPy scalars": lambda: saved({"model": weights(), **NUMBERS}),
    "dates": lambda: saved({"model": weights(), "date": datetime.datetime(2024, 5, 1), "took": datetime.timedelta(3)}),
    "paths": lambda: saved({"model": weights(), "data": PurePosixPath("/data"), "out": Path("runs")}),
    "enum, set, slice, complex": lambda: saved(
        {"model": weights(), "colour": Colour.RED, "seen": {1, 2}, "part": slice(1, 3), "z": 1j}
    ),
    "partial and a class": lambda: saved({"model": weights(), "norm": partial(Net, width=3), "kind": Net}),
    "defaultdict and a dict of its own": lambda: saved(
        {"model": weights(), "log": defaultdict(list, loss=[1.0]), "cfg": Settings(lr=0.1), "best": np.float64(0.3)}
    ),
    "ordered dict": lambda: saved({"state_dict": OrderedDict(weights())}),
    "a whole network": lambda: saved(network(), "whole.pt"),
    "a whole network, wrapped": lambda: saved({"model": nn.DataParallel(network()), "epoch": 3}),
    "a whole network beside its weights": lambda: saved({"net": network(), "state_dict": weights()}),
}
# Raw weights of seed 0 beside an average of seed 1: (what the warning says was taken, which key takes the average).
AVERAGES: dict[str, tuple[Callable[[], Path], str, str]] = {
    "timm": (lambda: saved({"state_dict": weights(), "state_dict_ema": weights(1)}), "state_dict", "state_dict_ema"),
    "torchvision": (
        lambda: saved({"model_ema": under("module.", weights(1)), "model": weights()}),
        "model",
        "model_ema",
    ),
    "nested": (lambda: saved({"ema": {"shadow": weights(1)}, "net": weights()}), "net", "ema.shadow"),
    "flat": (
        lambda: saved({"state_dict": {**under("model."), **under("ema_model.", weights(1))}}),
        "state_dict.model",
        "state_dict.ema_model",
    ),
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def same(net: nn.Module, seed: int, close: bool = False) -> bool:
    mine, theirs = net.state_dict(), weights(seed)
    names = [name for name in theirs if "num_batches" not in name]
    return all(torch.allclose(mine[k], theirs[k], atol=1e-3 if close else 0.0, rtol=0) for k in names)


def refused(path: Path, net: nn.Module | None = None, key: str | None = None) -> str:
    before = weights(7)
    net = net or network(7)
    with pytest.raises(UserError) as caught:
        load_weights(net, path, "teacher", key)
    said = str(caught.value)
    assert " needs " in said
    assert "got" in said
    assert "\n" not in said
    if isinstance(net, Net) and net.fc.in_features == 4:
        assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)  # unchanged
    return said


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.filterwarnings("ignore:.*belong to no layer")
def test_checkpoints_load(kind: str) -> None:
    path = LOADS[kind]()
    net = network(7)
    load_weights(net, path)
    assert same(net, 0, close=kind == "half precision")


@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_beside_the_weights(kind: str) -> None:
    make, taken, key = AVERAGES[kind]
    path, net = make(), network(7)
    with pytest.warns(UserWarning, match=f"took '{taken}' .* average '{key}', which --teacher.key {key}"):
        load_weights(net, path, "teacher")
    assert same(net, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_weights(net, path, "teacher", key=key)
    assert same(net, 1)
    assert f"got 'nowhere'; weights are under '{taken.partition('.')[0]}" in refused(path, key="nowhere").replace(
        f"'{key.partition('.')[0]}', ", ""
    ).replace("'ema.shadow', ", "")


def test_the_average_alone_is_taken() -> None:
    net = network(7)
    load_weights(net, saved({"state_dict_ema": weights(1), "epoch": 3}))
    assert same(net, 1)


def test_two_sets_that_fit_ask_for_a_key() -> None:
    path = saved({"teacher": weights(), "student": weights(1)})
    assert "got 2 that fit in a.pth: 'teacher', 'student'; choose by --teacher.key teacher" in refused(path)
    net = network(7)
    load_weights(net, path, key="student")
    assert same(net, 1)
    narrow = network(2, width=3)
    load_weights(narrow, saved({"teacher": weights(), "student": network(5, width=3).state_dict()}))  # shapes decide
    assert torch.equal(narrow.fc.weight, network(5, width=3).fc.weight)


def test_a_network_that_wraps_another_takes_its_weights() -> None:
    holder = Holder(model=network(7))
    load_weights(holder, saved(weights()))
    assert same(holder.get_submodule("model"), 0)
    load_weights(holder, saved(under("model.", weights(1))))
    assert same(holder.get_submodule("model"), 1)


def test_what_is_left_out_is_said() -> None:
    with pytest.warns(UserWarning, match=r"accuracy.total, loss.weight in last.ckpt belong to no layer"):
        load_weights(network(7), LOADS["Lightning"]())


def test_read_weights_without_a_network() -> None:
    assert read_weights(saved({"epoch": torch.tensor(3), "state_dict": under("module.")})).keys() == weights().keys()
    assert read_weights(LOADS["training state"]()).keys() == weights().keys()


# ---- what is no checkpoint of PyTorch -------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


class Evaluates:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("__import__('os').mkdir('executed')",)


def written(name: str, content: bytes) -> Path:
    Path(name).write_bytes(content)
    return Path(name)


def exported() -> Path:
    program = torch.export.export(network().eval(), (torch.rand(2, 3, 6, 6),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, "a.pt2")
    return Path("a.pt2")


def scripted() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network().eval(), torch.rand(2, 3, 6, 6)), "a.ts")
    return Path("a.ts")


def zipped(name: str, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(name, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return Path(name)


def arrays(name: str) -> Path:
    if name.endswith(".npz"):
        np.savez(name, a=np.ones(3))
    else:
        np.save(name, np.ones(3))
    return Path(name)


def tarred() -> Path:
    Path("storages").write_bytes(b"x" * 100)
    with tarfile.open("old.pth", "w") as archive:
        archive.add("storages")
    return Path("old.pth")


def cut() -> Path:
    content = saved(weights()).read_bytes()
    return written("cut.pth", content[: len(content) // 2])


def cut_safetensors() -> Path:
    return written("cut.safetensors", safe(weights()).read_bytes()[:-10])


def shared_tuples() -> bytes:
    """A pickle of 300 bytes whose only key takes 2**60 steps to hash."""
    twice = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    return b"\x80\x02}K\x01" + twice + b"K\x01s."


def inside(data: bytes) -> Path:
    return zipped("a.pth", {"a/data.pkl": data, "a/version": b"3\n", "a/byteorder": b"little"})


def quantized() -> Path:
    state = weights()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved({**state, "fc.weight": torch.quantize_per_tensor(state["fc.weight"], 0.1, 0, torch.qint8)})


ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x10\x0a\x02ab" + bytes(60)
SAYS: dict[str, tuple[Callable[[], Path], str]] = {
    "exported program": (exported, "is an exported program"),
    "exported program beside its weights": (
        lambda: [safe(weights()), exported()][1],
        "give a.safetensors, which lies beside it",
    ),
    "TorchScript": (scripted, "is a TorchScript archive; save torch.jit.load(FILE).state_dict()"),
    "ONNX": (lambda: written("a.onnx", ONNX), "is an ONNX model; dfkd needs the PyTorch network"),
    "ONNX named .pt": (lambda: written("a.pt", ONNX), "is an ONNX model"),
    "HTML": (lambda: written("a.pth", b"\n<!DOCTYPE html><html><body>Sign in"), "is an HTML page; the download saved"),
    "git-lfs": (
        lambda: written("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"),
        "is a git-lfs pointer; fetch the file it stands for with `git lfs pull`",
    ),
    "Keras": (lambda: written("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(90)), "is an HDF5 file"),
    "Keras 3": (lambda: zipped("a.keras", {"config.json": b"{}", "model.weights.h5": b""}), "is a Keras model"),
    "TensorFlow": (lambda: written("saved_model.pb", b"\x08\x01\x12\x80\x80serve" + bytes(9)), "PyTorch"),
    "TensorFlow checkpoint": (lambda: written("m.ckpt.data-00000-of-00001", bytes(range(90))), "TensorFlow checkpoint"),
    "TensorFlow Lite": (lambda: written("a.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(90)), "TensorFlow Lite model"),
    "GGUF": (lambda: written("a.gguf", b"GGUF\x03" + bytes(90)), "is a GGUF file; it holds a quantized language model"),
    "Core ML": (lambda: zipped("a.mlpackage", {"a/Manifest.json": b"{}"}), "is a Core ML package"),
    "NumPy array": (lambda: arrays("a.npy"), "is a NumPy array; turn the arrays"),
    "NumPy archive": (lambda: arrays("a.npz"), "is a NumPy .npz archive"),
    "empty": (lambda: written("a.pth", b""), "is an empty file; fetch it again"),
    "zeros": (lambda: written("a.pth", bytes(5000)), "is a file of zeros"),
    "text": (lambda: written("a.pth", b"no checkpoint at all"), "is a text file"),
    "shard index": (lambda: written("a.json", b'{"metadata": {}, "weight_map": {}}'), "index of a sharded checkpoint"),
    "gzip": (lambda: written("a.pth", gzip.compress(saved(weights()).read_bytes())), "is a gzip archive; unpack it"),
    "tar": (tarred, "is a tar archive"),
    "zip": (lambda: zipped("a.zip", {"weights.pth": b"x"}), "is a zip archive; unpack it first"),
    "pickle": (lambda: written("a.pkl", pickle.dumps({"a": 1})), "is a pickle; it was not written by torch.save"),
    "picture": (lambda: written("a.pth", b"\x89PNG\r\n\x1a\n" + bytes(90)), "is a picture"),
    "noise": (lambda: written("a.pth", bytes(range(128, 256))), "is something else; give a .safetensors"),
    "cut": (cut, "fetch it again"),
    "cut safetensors": (cut_safetensors, "needs a whole .safetensors file"),
    "optimizer only": (lambda: saved({"lr": 0.1, "betas": (0.9, 0.99)}), "something else under 'lr'"),
    "list": (lambda: saved([weights()]), "a list"),
    "quantized tensors": (quantized, "quantized values in fc.weight"),
    "meta tensors": (lambda: saved({k: v.to("meta") for k, v in weights().items()}), "no values in conv.weight"),
    "integers": (lambda: saved({k: v.to(torch.int8) for k, v in weights().items()}), "of torch.float32, got (4, 3, 3"),
    "another network": (lambda: saved(nn.Linear(4, 5).state_dict()), "without conv.weight, norm.weight, norm.bias"),
    "code": (lambda: saved({"state_dict": weights(), "x": Evil()}), "asks to run code (posix.mkdir)"),
    "code, evaluated": (lambda: saved({"state_dict": weights(), "x": Evaluates()}), "asks to run code (builtins.eval)"),
    "code, old format": (
        lambda: saved({"state_dict": weights(), "x": Evil()}, _use_new_zipfile_serialization=False),
        "asks to run code (posix.mkdir)",
    ),
    "code in a raw pickle": (lambda: written("a.pth", pickle.dumps(Evil())), "is a pickle"),
    "endless key": (lambda: inside(shared_tuples()), "tuples within tuples without measure"),
    "deep tuples": (lambda: inside(b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x01s."), "tuples within tuples"),
    "no pickle": (lambda: inside(b"\x00\x01\x02"), "truncated or no checkpoint"),
}


@pytest.mark.parametrize("kind", SAYS)
def test_files_that_are_named_and_refused(kind: str) -> None:
    make, says = SAYS[kind]
    path = make()
    assert says in refused(path)
    assert not Path("executed").exists()


def test_a_zip_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "MOST_SMALL", 2**22)
    with zipfile.ZipFile("a.pth", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as member:
        for _ in range(20):
            member.write(bytes(2**20))
    assert Path("a.pth").stat().st_size < 2**16
    assert "it unpacks to 20,971,520 bytes" in refused(Path("a.pth"))


def test_the_table_is_long() -> None:
    assert len(LOADS) + len(AVERAGES) + len(SAYS) >= 60


def test_a_folder_of_transformers_is_named() -> None:
    Path("vit").mkdir()
    Path("vit/config.json").write_text("{}")
    assert "of a folder of transformers give --teacher.name hf:vit instead" in refused(Path("vit"))


# ---- from the shell -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``nets:make`` builds the network of these tests."""
    import sys

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("own_nets_of_checkpoints.py").write_text("from test_checkpoint_files import Net as make\n")
    yield
    sys.modules.pop("own_nets_of_checkpoints", None)


@pytest.mark.filterwarnings("always:.*took 'state_dict'")
def test_the_key_from_the_shell(own_module: None, capsys: pytest.CaptureFixture[str]) -> None:
    AVERAGES["timm"][0]()
    words = ["inspect", "own_nets_of_checkpoints:make", "--teacher.weights", "a.pth", "--data.image_size", "3,8,8"]
    words += ["--data.classes", "5"]
    assert main(words) == 0
    assert "warning: teacher: took 'state_dict' of a.pth" in capsys.readouterr().err
    assert main([*words, "--teacher.key", "state_dict_ema"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*words, "--teacher.key", "nothing"]) == 2
    assert "weights are under 'state_dict', 'state_dict_ema'" in capsys.readouterr().err


def test_weights_without_a_name_say_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    saved(weights(), "plain.pth")
    assert main(["inspect", "--teacher", "plain.pth", "--data", "cifar10"]) == 2
    told = capsys.readouterr().err
    assert "teacher needs the name of the network whose weights these are, got plain.pth" in told
    assert "--teacher.name resnet18 --teacher.weights plain.pth" in told


@pytest.mark.parametrize(
    "told",
    [
        {"network": {"name": 3}},
        {"network": {"name": ["a"]}},
        {"classes": 1e400},
        {"classes": 10**30},
        {"image_shape": [3, 10**30, 8]},
        {"image_shape": 3},
        {"mean": ["x"]},
        {"std": [1e400]},
        {"names": "abc"},
        {"network": {"name": "wrn16-1", "projector": {"evil": 3}}},
        {"network": {"name": "wrn16-1", "projector": {"features": 1e30}}},
    ],
    ids=str,
)
def test_damaged_descriptions(told: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    saved(weights(), "a.pth")
    Path("a.json").write_text(json.dumps(told).replace("Infinity", "1e400"))
    assert main(["inspect", "a.pth"]) == 2
    assert "a.pth needs a sound description beside it, got a.json" in capsys.readouterr().err


def test_a_deep_description(capsys: pytest.CaptureFixture[str]) -> None:
    saved(weights(), "a.pth")
    Path("a.json").write_text('{"network": ' + "[" * 100_000)
    assert main(["inspect", "a.pth"]) == 2
    assert "needs a sound description beside it" in capsys.readouterr().err
