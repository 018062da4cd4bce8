"""Class names to vectors, for methods that condition a generator on text (NAYER, section 3.1 of its paper).

The vectors of the usual class lists are shipped with the package, so the core needs no text encoder. They
come from all-MiniLM-L6-v2 (the paper uses CLIP ViT-B/32, the ``clip`` extra); the header names the weights.
"""

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from dfkd.data._encoders import clip, has_minilm, minilm
from dfkd.errors import UserError
from dfkd.extras import install_extra

PROMPTS = {"P1": "a class of {name}", "P2": "a photo of {name}", "P3": "a photo of {index}"}
ENCODERS = ("auto", "shipped", "minilm", "clip", "file", "index")
SHIPPED = Path(__file__).with_name("embeddings.safetensors")


@dataclass(frozen=True)
class TextEmbedding:
    """One vector per class, in label order.

    ``vectors`` is float32, K x d, on the CPU, just as the encoder gives it (MiniLM ends in a unit norm, CLIP
    does not). ``source`` says where it comes from: encoder, prompt, hash of the weights, licence, origin.
    """

    vectors: Float[Tensor, "k d"]
    source: dict[str, str]


class _Texts(NamedTuple):
    prompts: tuple[str, ...]
    template: str


def class_list(name: str) -> tuple[str, ...]:
    """The class names of a known data set, in label order.

    Known: digits, mnist, svhn, cifar10, cifar100, cinic10, tiny-imagenet, imagenet, imagenette. The last three are in
    the order of the sorted WordNet ids (the folder order), and keep all synonyms of a class.
    """
    lists = _names()["lists"]
    if name not in lists:
        raise UserError(f"class_list needs one of {', '.join(lists)}, got {name!r}; pass your own names instead")
    return tuple(lists[name])


def clean(name: str) -> str:
    """A class name as prompts use it: "_" and "-" become spaces, runs of white space become one space."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


@functools.cache
def wordnet() -> Mapping[str, str]:
    """The name of each WordNet id of ImageNet's classes; those of Tiny-ImageNet and Imagenette are among them."""
    table = _names()
    return MappingProxyType(dict(zip(table["wnids"]["imagenet"], table["lists"]["imagenet"], strict=True)))


def embed(
    names: Sequence[str] | None,
    classes: int,
    encoder: str = "auto",
    prompt: str = "P2",
    file: str | Path | None = None,
) -> TextEmbedding:
    """K x d vectors for K classes.

    Args:
        names: class names in label order (WordNet ids of ImageNet are resolved); None uses index prompts.
        classes: K.
        encoder: "auto" takes the shipped vectors where they cover all names, else MiniLM where the ``text``
            extra is installed, else index prompts (with a warning where there are names). "shipped", "minilm"
            (extra ``text``) and "clip" (extra ``clip``, downloads weights) insist; "file" reads ``file``; "index"
            ignores the names.
        prompt: "P1", "P2" or "P3", NAYER's three prompts (P3 uses the class index and needs no names).
        file: .safetensors, .npy or .pt holding one K x d tensor; with "auto" it is used too.

    Raises:
        UserError: unknown encoder or prompt, a wrong number of names, names equal once cleaned, names
            the shipped file lacks, an extra that is not installed, or an unfit file.
    """
    if encoder not in ENCODERS:
        raise UserError(f"embed needs encoder to be one of {', '.join(ENCODERS)}, got {encoder!r}; choose one of them")
    if prompt not in PROMPTS:
        raise UserError(f"embed needs prompt to be one of {', '.join(PROMPTS)}, got {prompt!r}; choose one of them")
    if encoder == "file" or (encoder == "auto" and file is not None):
        return _from_file(None if file is None else Path(file), classes)
    if file is not None:
        raise UserError(f"embed needs encoder 'file' to read {file}, got {encoder!r}; drop one of the two")
    texts = _texts(None if encoder == "index" else names, classes, prompt)
    if encoder == "minilm":
        return _encode(texts, *minilm(texts.prompts))
    if encoder == "clip":
        return _encode(texts, *clip(texts.prompts))
    return _shipped_or_next(texts, classes, insist=encoder != "auto")


def shipped_texts() -> tuple[str, ...]:
    """The prompts whose vectors are shipped, in row order: P2 of all names, P3 of 0..999, P1 of all but ImageNet's."""
    lists = _names()["lists"]
    names = dict.fromkeys(clean(name) for names in lists.values() for name in names)
    fewer = dict.fromkeys(clean(name) for title, names in lists.items() if title != "imagenet" for name in names)
    prompts = [PROMPTS["P2"].format(name=name) for name in names]
    indices = [PROMPTS["P3"].format(index=index) for index in range(1000)]
    return tuple(dict.fromkeys(prompts + indices + [PROMPTS["P1"].format(name=name) for name in fewer]))


@functools.cache
def _names() -> dict[str, dict[str, list[str]]]:
    tables: dict[str, dict[str, list[str]]] = json.loads(
        Path(__file__).with_name("names.json").read_text(encoding="utf-8")
    )
    return tables


def _texts(names: Sequence[str] | None, classes: int, prompt: str) -> _Texts:
    """The K prompts; index prompts where there are no names."""
    if classes < 1:
        raise UserError(f"embed needs at least one class, got {classes}; pass the number of the teacher's logits")
    if names is not None and len(names) != classes:
        raise UserError(f"embed needs one name for each of {classes} classes, got {len(names)}; check the list")
    if names is None or prompt == "P3":
        return _Texts(tuple(PROMPTS["P3"].format(index=index) for index in range(classes)), PROMPTS["P3"])
    wordnet_names = wordnet()
    words = [clean(wordnet_names.get(name, name)) for name in names]
    _refuse_twins(words)
    return _Texts(tuple(PROMPTS[prompt].format(name=name) for name in words), PROMPTS[prompt])


def _refuse_twins(names: list[str]) -> None:
    """Classes with one prompt would get one vector. Case does not count: MiniLM and CLIP ignore it."""
    lowercase = {""}
    for index, name in enumerate(names):
        if name.lower() in lowercase:
            raise UserError(
                f"embed needs names that differ and are not empty, got {name!r} for class {index}; "
                "rename it, or use encoder='index'"
            )
        lowercase.add(name.lower())


def _shipped_or_next(texts: _Texts, classes: int, insist: bool) -> TextEmbedding:
    # The shipped encoder does not tell upper from lower case.
    rows = {text.lower(): row for row, text in enumerate(shipped_texts())}
    missing = [text for text in texts.prompts if text.lower() not in rows]
    if not missing:
        index = torch.tensor([rows[text.lower()] for text in texts.prompts])
        vectors, header = _read_tensor(SHIPPED, "vectors")
        about = {key: header[key] for key in ("encoder", "weights_sha256", "licence")}
        return TextEmbedding(vectors[index].float(), {**about, "prompt": texts.template, "origin": "shipped"})
    if not insist and has_minilm():
        return _encode(texts, *minilm(texts.prompts))
    if not insist and texts.template != PROMPTS["P3"]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        warnings.warn(
            f"there is no vector for {missing[0]!r}{more} in the package, so the texts are class indices, not names; "
            f"run `{install_extra('text')}`, or give vectors of your own with --text.file (text=)",
            stacklevel=2,
        )
        return _shipped_or_next(_texts(None, classes, "P3"), classes, insist=True)
    raise UserError(
        f"embed needs shipped vectors for every prompt, got none for {missing[0]!r}; "
        f"run `{install_extra('text')}`, or pass vectors with encoder='file'"
    )


def _encode(texts: _Texts, vectors: Tensor, about: dict[str, str]) -> TextEmbedding:
    return TextEmbedding(vectors.float(), {**about, "prompt": texts.template})


def _from_file(file: Path | None, classes: int) -> TextEmbedding:
    if file is None:
        raise UserError("embed needs file=PATH for encoder 'file', got None; pass a K x d .safetensors, .npy or .pt")
    vectors, header = _read_tensor(file)
    if vectors.ndim != 2 or vectors.shape[0] != classes or vectors.shape[1] == 0:
        raise UserError(
            f"embed needs {classes} x d numbers in {file}, got shape {tuple(vectors.shape)}; "
            "store one row for each class, in label order"
        )
    vectors = vectors.detach().float()
    if not bool(torch.isfinite(vectors).all()):
        raise UserError(f"embed needs finite numbers in {file}, got NaN or infinity; make the file again")
    return TextEmbedding(vectors, {"encoder": "file", **header, "origin": str(file)})


def _read_tensor(file: Path, key: str | None = None) -> tuple[Tensor, dict[str, str]]:
    """The one tensor of a file (or the one named ``key``) and its header; runs no code from the file."""
    if file.suffix not in _LOADERS:
        raise UserError(f"embed needs a .safetensors, .npy or .pt file, got {file}; convert it first")
    try:
        content, header = _LOADERS[file.suffix](file)
    except Exception as error:  # damaged or hostile files make the loaders raise almost any kind of error
        kind = type(error).__name__
        raise UserError(f"embed needs a readable file of vectors, got {file} ({kind}); check it") from error
    if isinstance(content, dict):
        content = content.get(key) if key in content else next(iter(content.values())) if len(content) == 1 else None
    if not isinstance(content, Tensor) or content.is_complex() or content.dtype == torch.bool:
        raise UserError(f"embed needs one tensor of numbers in {file}, got something else; store only that tensor")
    return content, header


def _safetensors(file: Path) -> tuple[object, dict[str, str]]:
    with safe_open(file, framework="pt") as file_content:
        names = list(file_content.keys())
        return {name: file_content.get_tensor(name) for name in names}, dict(
            sorted((file_content.metadata() or {}).items())
        )


def _numpy(file: Path) -> tuple[object, dict[str, str]]:
    return torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32)), {}


def _torch(file: Path) -> tuple[object, dict[str, str]]:
    return torch.load(file, map_location="cpu", weights_only=True), {}


_LOADERS = {".safetensors": _safetensors, ".npy": _numpy, ".pt": _torch, ".pth": _torch}
