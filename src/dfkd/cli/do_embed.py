"""`dfkd embed`."""

from pathlib import Path

import torch
from torch import Tensor

from dfkd.cli.config import Embed
from dfkd.data.text import TextEmbedding
from dfkd.engine.checkpoint import write_aside
from dfkd.errors import UserError
from dfkd.inputs import facts_of
from dfkd.prepare import embedding_of
from dfkd.settings import Images
from dfkd.visible import visible

__all__ = ["nearest", "run"]


def run(settings: Embed) -> int:
    """Make one vector for each class, show which classes are near each other, and write the vectors."""
    if settings.classes is None:
        raise UserError("embed needs classes, got none; give names, their number or a list: `dfkd embed cifar10`")
    if settings.nearest < 0:
        raise UserError(f"embed needs --nearest of at least 0, got {settings.nearest}; raise it")
    out = None if settings.out is None else _checked_path(Path(settings.out))
    facts = facts_of(Images(classes=settings.classes), spared=("image_size", "mean", "std"))
    embedding = embedding_of(settings.text, facts.names, facts.classes)
    source = embedding.source
    origin = (
        f"{source.get('encoder')}, prompt {source.get('prompt')!r}" if "prompt" in source else source.get("encoder")
    )
    print(f"{len(embedding.vectors)} classes x {embedding.vectors.shape[1]}, {origin}")
    names = facts.names or tuple(str(k) for k in range(facts.classes))
    for a, b, cosine in nearest(embedding.vectors, settings.nearest):
        print(f"  {cosine:.3f}  {visible(names[a])} - {visible(names[b])}")
    if out is not None:
        print(f"written {_write(out, embedding)}")
    return 0


def nearest(vectors: Tensor, pairs: int) -> list[tuple[int, int, float]]:
    """The ``pairs`` most similar pairs of rows (K, d), by cosine, most similar first."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    cosine = (unit[first] * unit[second]).sum(dim=1)
    top = cosine.topk(min(pairs, len(cosine))).indices.tolist()
    return [(int(first[i]), int(second[i]), float(cosine[i])) for i in top]


def _checked_path(path: Path) -> Path:
    """Refuse, before anything is embedded, a file that cannot be written."""
    if path.suffix != ".safetensors":
        raise UserError(f"embed needs --out to end in .safetensors, got {path}; rename it")
    if path.exists():
        raise UserError(f"embed needs a new file, got {path}, which is there; choose another name")
    return path


def _write(path: Path, embedding: TextEmbedding) -> Path:
    from safetensors.torch import save_file

    vectors = {"vectors": embedding.vectors.contiguous()}
    write_aside(path, lambda aside: save_file(vectors, aside, metadata=embedding.source))
    return path
