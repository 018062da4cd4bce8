"""Open a file of weights, whoever wrote it, without running anything it holds.

What a checkpoint holds beside its weights (settings, dates, a whole pickled network) becomes an inert stand-in: the
names that a file mentions are read first, and none of them is imported.
"""

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dfkd.data._kinds import kind_of
from dfkd.data._limits import zip_members
from dfkd.data._pickles import names_in_pickle
from dfkd.errors import UserError

__all__ = ["Extra", "kind_in_words", "named_parts", "open_weights"]

_RENAME = "save net.state_dict() with torch.save or safetensors"
# What to do with a file that is no checkpoint.
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "an exported program": "it is a program without a state dict; " + _RENAME,
        "a TorchScript archive": "save torch.jit.load(FILE).state_dict() with torch.save where its code is trusted",
        "an ONNX model": "dfkd needs the PyTorch network: " + _RENAME + " before the conversion",
        "an ONNX Runtime model": "dfkd needs the PyTorch network: " + _RENAME + " before the conversion",
        "an HTML page": "the download saved a web page; fetch the file itself (on GitHub or Hugging Face: raw)",
        "a git-lfs pointer": "fetch the file it stands for with `git lfs pull`",
        "an HDF5 file": "it is of Keras or TensorFlow; convert the network to PyTorch, and " + _RENAME,
        "a Keras model": "convert the network to PyTorch, and " + _RENAME,
        "a TensorFlow model": "convert the network to PyTorch, and " + _RENAME,
        "a TensorFlow checkpoint": "convert the network to PyTorch, and " + _RENAME,
        "a TensorFlow Lite model": "convert the network to PyTorch, and " + _RENAME,
        "a Core ML package": "dfkd needs the PyTorch network: " + _RENAME + " before the conversion",
        "a GGUF file": "it holds a quantized language model; give an image classifier of PyTorch",
        "a GGML file": "it holds a quantized language model; give an image classifier of PyTorch",
        "a gzip archive": "unpack it first",
        "a bzip2 archive": "unpack it first",
        "an xz archive": "unpack it first",
        "a 7z archive": "unpack it first",
        "a RAR archive": "unpack it first",
        "a zstd archive": "unpack it first",
        "a zip archive": "unpack it first",
        "a tar archive": "unpack it first; what torch 0.1 saved, torch 1 can load and save again",
        "a pickle": "it was not written by torch.save; where you trust it, load it and " + _RENAME,
        "an empty file": "fetch it again",
        "a file of zeros": "the download or the disk failed; fetch it again",
        "a truncated checkpoint or zip archive": "fetch it again",
        "the index of a sharded checkpoint": "join its parts: load them all and save the one state dict",
        "a NumPy array": "turn the arrays into tensors, and save the state dict with torch.save or safetensors",
        "a NumPy .npz archive": "turn the arrays into tensors, and save the state dict with torch.save or safetensors",
    }
)
_OTHERWISE = "give a .safetensors, .pt or .pth file with net.state_dict()"
_READABLE = frozenset({"a torch checkpoint", "an old torch checkpoint"})

# Modules and functions that no data need: a file that mentions them wants to run something.
# fmt: off
_ACTIVE = frozenset((
    "builtins", "os", "posix", "nt", "sys", "subprocess", "commands", "runpy", "importlib", "shutil", "socket", "pty",
    "ctypes", "code", "codeop", "webbrowser", "pickle", "_pickle", "marshal", "timeit", "bdb", "pdb", "pip", "signal",
    "urllib", "http", "ftplib", "smtplib",
))
_HARMLESS = frozenset((
    "set", "frozenset", "complex", "slice", "range", "list", "dict", "tuple", "object", "int", "float", "str", "bool",
    "bytes", "getattr",  # as some versions of Python store an Enum
))
# fmt: on


class Extra:
    """Stands for an object whose class is not asked: its name, how it was called, and its state."""

    kind = "object"

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, Mapping):
                self.__dict__.update({str(key): value for key, value in part.items()})


def open_weights(path: Path, role: str) -> Any:
    """What the file holds: mappings, tensors, and :class:`Extra` for whatever is neither.

    Raises:
        UserError: no checkpoint (it says what it is and what to do), or one that is damaged or wants to run code.
    """
    try:
        kind = kind_of(path)
    except OSError as error:
        raise UserError(
            f"{role} needs a readable file, got {path} ({error.strerror}); check its permissions"
        ) from error
    if kind == "a safetensors file":
        return _safetensors(path, role)
    if kind not in _READABLE:
        advice = ADVICE.get(kind, _OTHERWISE)
        beside = path.with_suffix(".safetensors")
        if kind == "an exported program" and beside.is_file():
            advice = f"give {beside}, which lies beside it"
        raise UserError(f"{role} needs a state dict of PyTorch, got {path}, which is {kind}; {advice}")
    return _torch(path, role)


def named_parts(value: object) -> Iterator[tuple[str, Any]]:
    """The named parts of a mapping or a stand-in."""
    parts = value if isinstance(value, Mapping) else vars(value) if isinstance(value, Extra) else {}
    yield from ((str(key), part) for key, part in parts.items())


def kind_in_words(value: object) -> str:
    """What a value is, in words."""
    if isinstance(value, Extra):
        return f"a pickled {value.kind}"
    return f"a {type(value).__name__}"


def _safetensors(path: Path, role: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{role} needs a whole .safetensors file, got {path} ({error}); fetch it again") from error


def _torch(path: Path, role: str) -> Any:
    try:
        names = _names_in(path)
        if active := sorted(filter(_active, names)):
            raise UserError(
                f"{role} needs a file of tensors only, got {path}, which asks to run code ({active[0]}); "
                "save net.state_dict() with torch.save or safetensors, where you trust it"
            )
        return _load(path, names)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{role} needs a file of tensors only, got {path}, which is no checkpoint or asks for what only its own "
            "code can build; save net.state_dict() with torch.save or safetensors"
        ) from error
    except Exception as error:  # damaged files make the readers raise almost anything
        raise UserError(
            f"{role} needs a whole checkpoint, got {path} ({_reason(error)}: it is truncated or no checkpoint); "
            "fetch it again"
        ) from error


def _active(name: str) -> bool:
    module, _, attribute = name.partition(".")
    return module in _ACTIVE and not (module == "builtins" and attribute in _HARMLESS)


def _reason(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, ValueError) and len(text) < 120 and text.isprintable() else type(error).__name__


def _names_in(path: Path) -> frozenset[str]:
    """What the pickles of a checkpoint would import. Raises ValueError and what zipfile raises on a damaged file."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:  # magic number, version, sizes, the object itself, keys; then bytes
            return frozenset().union(*(names_in_pickle(stream) for _ in range(5)))
    members = [member.filename for member in zip_members(path) if member.filename.endswith("data.pkl")]
    with zipfile.ZipFile(path) as archive:
        return frozenset().union(*(names_in_pickle(io.BytesIO(archive.read(name))) for name in members))


def _load(path: Path, names: frozenset[str]) -> Any:
    """torch's own reader of tensors; every name it does not know by itself leads to a stand-in."""
    try:
        return _read_stored(path, [(_stand_in(name), name) for name in names])
    except pickle.UnpicklingError as error:
        if "SETITEM" not in str(error):
            raise
    # A dict of a kind of its own: the reader fills no other than these.
    return _read_stored(path, [(_stand_in(name) if name.startswith("numpy") else _Plain, name) for name in names])


def _read_stored(path: Path, stand_ins: list[Any]) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins), path.open("rb") as stream:
        warnings.simplefilter("ignore")
        return torch.load(stream, map_location="cpu", weights_only=True)  # of a path the name would count


def _stand_in(name: str) -> type[Extra]:
    return type("Extra", (Extra,), {"kind": name})


class _Plain:
    """Makes a plain dict in place of one of another kind."""

    def __new__(cls, *arguments: object) -> Any:
        return OrderedDict()
