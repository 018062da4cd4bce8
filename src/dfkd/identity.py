"""Who a run is: its settings as plain values, its networks, and the code and machine it ran on."""

import hashlib
import os
import platform
import subprocess
import sys
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

__all__ = ["VERSION", "network_bytes", "provenance", "run_info", "settings_of", "weights_hash"]

VERSION = "0.1.0"


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
    )


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of names, shapes and values of everything in the state dict: the same weights give the same hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def network_bytes(net: nn.Module) -> int:
    """Bytes of the weights and buffers, which is the size of the weights file within a few kilobytes."""
    return sum(t.numel() * t.element_size() for t in net.state_dict().values() if isinstance(t, Tensor))


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
