"""`dfkd doctor`."""

import importlib.util
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dfkd import __version__
from dfkd.cli.config import Doctor
from dfkd.errors import UserError
from dfkd.extras import install_core, install_extra
from dfkd.nets.vision import SYMPTOM, import_torchvision

__all__ = ["Finding", "examine", "run"]

EXTRAS = {
    "text": "sentence_transformers",
    "clip": "open_clip",
    "timm": "timm",
    "hf": "transformers",
    "tensorboard": "tensorboard",
    "quant": "brevitas",
    "onnx": "onnxruntime",
    "hub": "huggingface_hub",
    "search": "optuna",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "e2e": "playwright",
}
PACKAGES = (
    "numpy",
    "lightning-fabric",
    "jsonargparse",
    "safetensors",
    "rich",
    "jinja2",
    "matplotlib",
    "scikit-learn",
    "PyYAML",
    "MarkupSafe",
    "filelock",
)


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is "ok", "absent" (optional) or "broken"; ``repair`` one command, or empty."""

    what: str
    state: str
    text: str
    repair: str = ""


def run(settings: Doctor) -> int:
    """Print what is there; the exit code is 2 where something needed is broken."""
    findings = examine()
    if settings.json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = {"ok": "ok", "absent": "--", "broken": "!!"}[finding.state]
            print(
                f"{mark}  {finding.what:<18}{finding.text}" + (f"\n{'':<22}{finding.repair}" if finding.repair else "")
            )
    return 2 if any(finding.state == "broken" for finding in findings) else 0


def examine() -> list[Finding]:
    """Look at everything; nothing is changed."""
    torches = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return [
        Finding("dfkd", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
        if torches >= (2, 11)
        else Finding("torch", "broken", f"{torch.__version__} is older than 2.11", "pip install 'torch>=2.11'"),
        _devices(),
        _torchvision(),
        *(_package(name) for name in PACKAGES),
        *(_extra(extra, module) for extra, module in EXTRAS.items()),
        _data(),
    ]


def _devices() -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("devices", "ok", f"CUDA {torch.version.cuda}: {', '.join(names)}")
    if torch.version.cuda is None:
        return Finding("devices", "ok", "CPU only: this torch is built without CUDA")
    return Finding(
        "devices", "absent", f"no CUDA device, though torch is built for CUDA {torch.version.cuda}", "nvidia-smi"
    )


def _torchvision() -> Finding:
    try:
        module = importlib.import_module("torchvision")
        return Finding("torchvision", "ok", f"{module.__version__} (optional)")
    except ImportError:
        return Finding("torchvision", "absent", "not installed (optional)", install_extra("torchvision"))
    except RuntimeError as error:
        if SYMPTOM not in str(error):
            return Finding("torchvision", "broken", str(error).splitlines()[0], "pip uninstall torchvision")
    try:
        module = import_torchvision()
    except (UserError, RuntimeError) as error:
        return Finding("torchvision", "broken", str(error).splitlines()[0], "pip uninstall torchvision")
    text = f"{module.__version__} belongs to another torch; worked around"
    return Finding("torchvision", "absent", text, install_extra("torchvision"))


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        if name == "lightning-fabric" and importlib.util.find_spec("lightning_fabric") is not None:
            return Finding(name, "ok", "comes with another package")
        return Finding(name, "broken", "not installed", install_core(name))


def _extra(extra: str, module: str) -> Finding:
    if importlib.util.find_spec(module) is not None:
        return Finding(f"extra {extra}", "ok", f"{module} is there")
    return Finding(f"extra {extra}", "absent", "not installed (optional)", install_extra(extra))


def _data() -> Finding:
    folder = Path(os.environ.get("DFKD_DATA", "data")).expanduser()
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        return Finding("data folder", "ok", f"{folder}: {', '.join(names[:8]) or 'empty'}")
    return Finding("data folder", "absent", f"{folder} is not there", "export DFKD_DATA=/where/your/data/is")
