"""Who a run is: its settings as plain values, its networks, and the code and machine it ran on."""

import hashlib
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.engine.anatomy import Anatomy
from dfkd.engine.core import Method, Need, Task
from dfkd.engine.fingerprint import inputs_of
from dfkd.engine.plan import Plan
from dfkd.engine.records import RunInfo
from dfkd.engine.runtime import Runtime

__all__ = ["VERSION", "layers_hash", "network_bytes", "provenance", "run_info", "settings_of", "weights_hash"]

VERSION = "0.1.0"
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of a function among a layer's settings


def run_info(
    method: Method[Any],
    plan: Plan,
    task: Task,
    facts: tuple[Anatomy, Anatomy],
    text: dict[str, str],
    names: tuple[str | None, str | None],
) -> RunInfo:
    """What is known of a run before its first round.

    Args:
        method, plan, task: of the run.
        facts: what was found in teacher and student.
        text: what the class embeddings are made of; kept where the method uses them.
        names: by which teacher and student were asked for; None: their class says.
    """
    about = []
    for i, (probe, anatomy) in enumerate(zip((task.teacher, task.student), facts, strict=True)):
        about.append(
            {
                "name": names[i] or anatomy.kind,
                "kind": anatomy.kind,
                "layers": layers_hash(probe.net),
                "parameters": anatomy.parameters,
                "macs": anatomy.macs,
                "bytes": network_bytes(probe.net),
                "head": anatomy.head,
                "stages": list(anatomy.stages),
                "channels_last": probe.channels_last,
                "precision": probe.precision,
                "notes": list(anatomy.notes),
                "norms": anatomy.norms,
                "mean": probe.mean.flatten().tolist(),
                "std": (1 / probe.scale).flatten().tolist(),
            }
        )
    about[0]["sha256"] = weights_hash(task.teacher.net)
    uses_text = Need.TEXT in method.needs()
    return RunInfo(
        type(method).__name__,
        settings_of(method),
        settings_of(plan),
        about[0],
        about[1],
        task.image_shape,
        task.classes,
        task.names,
        text if uses_text else None,
        provenance(task.runtime),
        measures=dict(method.all_measures()),
        inputs={} if task.runtime.rank else inputs_of(task, method),
        identity=uuid.uuid4().hex,
    )


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of names, shapes and values of everything in the state dict: the same weights give the same hash."""
    digest = hashlib.sha256()
    for name, tensor in _named_tensors(net):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in _parts(tensor.detach().cpu()):
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def layers_hash(net: nn.Module) -> str:
    """Sixteen hex digits of paths, kinds and printed settings of all layers: what a state dict does not tell.

    Addresses are left out, and what observers of values print (``torch.ao``), which changes as they observe.
    """
    digest = hashlib.sha256()
    for path, module in net.named_modules():
        is_observer = type(module).__module__.startswith("torch.ao.quantization")
        settings = "" if is_observer else ADDRESS.sub("", module.extra_repr())
        digest.update(f"{path} {type(module).__qualname__}({settings})\n".encode())
    return digest.hexdigest()[:16]


def network_bytes(net: nn.Module) -> int:
    """Bytes of the weights and buffers, which is the size of the weights file within a few kilobytes."""
    return sum(t.numel() * t.element_size() for _, t in _named_tensors(net))


def _named_tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the state dict, sorted by name, those that quantized layers keep packed in tuples too."""
    for name, value in sorted(net.state_dict().items(), key=lambda item: item[0]):
        yield from _tensors_in(value, name)


def _tensors_in(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    for i, part in enumerate(value if isinstance(value, tuple | list) else ()):
        yield from _tensors_in(part, f"{name}.{i}")


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The numbers of a tensor; of a quantized one its integers, scales and zero points."""
    if not tensor.is_quantized:
        yield tensor
    elif tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield from (tensor.int_repr(), torch.tensor([tensor.q_scale(), float(tensor.q_zero_point())]))
    else:
        yield from (tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())


def settings_of(value: Any) -> dict[str, object]:
    """Hyper-parameters of a method or a plan as plain values; a method within a method says which one it is."""
    settings: dict[str, object] = asdict(value)
    for item in fields(value):
        inner = getattr(value, item.name)
        if isinstance(inner, Method):
            settings[item.name] = {"method": type(inner).__name__, **settings_of(inner)}
    return settings


def provenance(runtime: Runtime) -> dict[str, object]:
    """Versions, machine, time, and the code's commit where it runs from a git checkout."""
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else _processor()
    return {
        "dfkd": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(runtime.device),
        "hardware": name,
        "threads": torch.get_num_threads(),
        "processes": runtime.world,
        "precision": runtime.precision,
        "compile": runtime.compiled,
        "compile_mode": runtime.compile_mode,
        "sync_bn": runtime.sync_bn,
        "channels_last": runtime.channels_last,
        "seed": runtime.seed,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _commit() -> str | None:
    """The commit that this file stands in; None where it is installed, be it within a repository of the user's."""
    file = Path(__file__).resolve()
    git = ["git", "-C", str(file.parent)]
    try:
        for command in (["ls-files", "--error-unmatch", file.name], ["rev-parse", "--short=12", "HEAD"]):
            process = subprocess.run([*git, *command], capture_output=True, text=True, timeout=5, check=False)
            if process.returncode:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None


def _processor() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"
