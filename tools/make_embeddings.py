"""Make the shipped class names and text vectors (``names.json``, ``embeddings.safetensors``).

    python tools/make_embeddings.py names --data .data --timm SITE/timm/data/_info --tiny wnids.txt
    python tools/make_embeddings.py vectors

``names`` takes CIFAR's names from the published metadata in DATA, ImageNet's from the synset tables of the
timm wheel, and Tiny-ImageNet's from its list of 200 WordNet ids (``wnids.txt`` of the data set). ``vectors``
needs the ``text`` extra.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dfkd.data._encoders import minilm
from dfkd.data.readers import read_images
from dfkd.data.text import SHIPPED, shipped_texts

NAMES = SHIPPED.with_name("names.json")
# Imagenette's ten classes of ImageNet (its folders).
IMAGENETTE = [
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
]
# Two synsets of ImageNet have the same lemma; equal prompts would give two classes one vector.
DISTINCT = {"n02012849": "crane, wading bird", "n03126707": "crane, lifting machine"}


def lemmas(folder: Path) -> dict[str, str]:
    """WordNet id to its comma-separated lemmas, as timm's table has them."""
    rows = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    return {**dict(row.split("\t", 1) for row in rows), **DISTINCT}


def make_names(data: Path, timm: Path, tiny: Path) -> None:
    """Write names.json."""
    words = lemmas(timm)
    digits = [str(digit) for digit in range(10)]
    wnids = {
        "tiny-imagenet": sorted(tiny.read_text(encoding="utf-8").split()),
        "imagenet": (timm / "imagenet_synsets.txt").read_text(encoding="utf-8").split(),
    }
    if wnids["imagenet"] != sorted(wnids["imagenet"]) or [len(ids) for ids in wnids.values()] != [200, 1000]:
        raise SystemExit("the lists of WordNet ids are not the published ones")
    lists: dict[str, list[str]] = {"digits": digits, "mnist": digits, "svhn": digits}
    for name in ("cifar10", "cifar100"):
        lists[name] = list(read_images(f"{name}:{data}").names)
    lists["cinic10"] = lists["cifar10"]
    wnids["imagenette"] = IMAGENETTE  # last, so that it moves no row of the vectors
    lists |= {name: [words[wnid] for wnid in ids] for name, ids in wnids.items()}
    NAMES.write_text(json.dumps({"lists": lists, "wnids": wnids}, indent=0) + "\n", encoding="utf-8")


def make_vectors() -> None:
    """Write embeddings.safetensors: float16, one row for each of ``shipped_texts``."""
    vectors, about = minilm(shipped_texts())
    header = {key: value for key, value in about.items() if key != "origin"}
    notes = {
        "prompt": "a photo of {name} | a photo of {index} | a class of {name}",
        "rows": "dfkd.data.text.shipped_texts()",
    }
    save_file({"vectors": vectors.to(torch.float16)}, SHIPPED, metadata={**header, **notes})
    print(SHIPPED, tuple(vectors.shape), SHIPPED.stat().st_size, "bytes")


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    names = steps.add_parser("names")
    for flag in ("--data", "--timm", "--tiny"):
        names.add_argument(flag, type=Path, required=True)
    steps.add_parser("vectors")
    given = parser.parse_args()
    if given.step == "names":
        make_names(given.data, given.timm, given.tiny)
    else:
        make_vectors()


if __name__ == "__main__":
    main()
