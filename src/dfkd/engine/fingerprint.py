"""Short names of everything that makes a student: other data, other names or other layers are another student.

A fingerprint is a word to compare and to read: the size, and the SHA-256 of the content. Up to ``FULL_BYTES`` all of
the content counts; of more, 4,096 images at equal distances (at most ``FULL_BYTES``), the first and the last among
them. So a large pool that was made anew is noticed, and one image that was exchanged within it may not be.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from dfkd.data.rows import Rows
from dfkd.engine.core import Method, Need, State, Task

__all__ = ["fingerprint_rows", "fingerprint_tensor", "inputs_of"]

FULL_BYTES = 2**28
SAMPLED = 4096


def inputs_of(task: Task, method: Method[State]) -> dict[str, str]:
    """Fingerprints of what ``method`` is given beside the pair, and what of the pair it reads and trains."""
    needs, prints = method.needs(), {}
    if Need.WEB in needs and task.web is not None:
        prints["web images"] = fingerprint_rows(task.web)
    if Need.REAL in needs and task.real is not None:
        images, labels = task.real
        prints["real images"] = fingerprint_rows(Rows(images))
        prints["real labels"] = fingerprint_tensor(labels)
    if Need.TEXT in needs and task.text is not None:
        prints["text vectors"] = fingerprint_tensor(task.text)
    prints["frozen parameters of the student"] = _frozen_parameters(task.student.net)
    return prints


def fingerprint_tensor(values: Tensor) -> str:
    """Shape, and SHA-256 of type and values."""
    data = values.detach().cpu().contiguous()
    digest = hashlib.sha256(str(data.dtype).encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{'x'.join(map(str, data.shape))}, {digest.hexdigest()[:16]}"


def fingerprint_rows(rows: Rows) -> str:
    """Number and shape of the images, and SHA-256 of them all or, of many, of those at equal distances."""
    size = math.prod(rows.shape)
    most = len(rows) if len(rows) * size <= FULL_BYTES else max(2, min(SAMPLED, FULL_BYTES // size))
    index = torch.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=torch.float64).round().long()
    digest = hashlib.sha256()
    for part in index.split(1024):
        digest.update(rows.take(part).cpu().contiguous().numpy().tobytes())
    return f"{len(rows)} of {'x'.join(map(str, rows.shape))}, {digest.hexdigest()[:16]}"


def _frozen_parameters(net: nn.Module) -> str:
    names = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    if not names:
        return "none"
    return f"{len(names)}, {hashlib.sha256(' '.join(names).encode()).hexdigest()[:16]}"
