"""The files of a student: weights, description and program, to be used without this library."""

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.engine.checkpoint import write_aside
from dfkd.engine.probe import Probe
from dfkd.engine.records import Picked, RunInfo
from dfkd.engine.sharing import widening_of
from dfkd.identity import VERSION
from dfkd.nets.bare import bare_network
from dfkd.report.files import plain
from dfkd.weights import without_wrappers

__all__ = ["save_picked", "save_student", "weights_to_save"]

PICKED_FILE = "picked.safetensors"


def save_student(
    folder: Path, student: Probe, spec: Mapping[str, object] | None, info: RunInfo, export: bool = True
) -> dict[str, str]:
    """Write the student so that it loads without this library; returns what was written, by role.

    ``student.safetensors`` holds the state dict, ``student.json`` how to rebuild the network and normalise its input,
    ``student.pt2`` (``torch.export``) the whole program from images in [0, 1] to what the student itself returns,
    normalisation included.
    """
    from safetensors.torch import save_file

    weights = weights_to_save(student.net)
    write_aside(folder / "student.safetensors", lambda path: save_file(weights, path))
    about = {
        "network": _network(bare_network(student.net), spec),
        "image_shape": list(info.image_shape),
        "classes": info.classes,
        "names": list(info.names),
        "mean": student.mean.flatten().tolist(),
        "std": (1 / student.scale).flatten().tolist(),
        "outputs": student.outputs,
        "method": info.method,
        "teacher_sha256": info.teacher.get("sha256"),
        "dfkd": VERSION,
    }
    text = json.dumps(plain(about), indent=1)
    write_aside(folder / "student.json", lambda path: path.write_text(text))
    files = {"weights": "student.safetensors", "description": "student.json"}
    if export and _export(student, info.image_shape, folder / "student.pt2"):
        files["program"] = "student.pt2"
    return files


def save_picked(
    folder: Path, student: nn.Module, picked: Picked | None, weights: Mapping[str, Tensor] | None
) -> dict[str, str]:
    """Write the student of the picked round beside the last one, described likewise; returns what was written, by role.

    ``weights`` are those of that round, under the names that ``student`` gives them. Without one, what an earlier start
    of the run wrote is removed.
    """
    from safetensors.torch import save_file

    file = folder / PICKED_FILE
    beside = file.with_suffix(".json")
    if picked is None or weights is None:
        for path in (file, beside):
            path.unlink(missing_ok=True)
        return {}
    names = _own_names(student)
    own_weights = {names[name]: tensor for name, tensor in weights.items()}
    write_aside(file, lambda path: save_file(own_weights, path))
    about = {**json.loads((folder / "student.json").read_text("utf-8")), "picked": plain(picked)}
    write_aside(beside, lambda path: path.write_text(json.dumps(about, indent=1)))
    return {"picked": PICKED_FILE}


def weights_to_save(net: nn.Module) -> dict[str, Tensor]:
    """Contiguous copies on the CPU of the state dict's tensors, under the names that the network's own class gives."""
    names = _own_names(net)
    return {
        names[name]: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _own_names(net: nn.Module) -> dict[str, str]:
    """Every name in the state dict, and what the network's own class calls it."""
    own_names = map(without_wrappers, bare_network(net).state_dict())
    return dict(zip(net.state_dict(), own_names, strict=True))


def _network(net: nn.Module, spec: Mapping[str, object] | None) -> dict[str, object]:
    """How to build the network again: as it was named, or its class; and how it was widened."""
    kind = {"class": f"{type(net).__module__}.{type(net).__qualname__}"}
    projector = widening_of(net)
    return {**(spec or kind), **({} if projector is None else {"projector": projector})}


class _Whole(nn.Module):
    """Images in [0, 1] to what the network returns: normalisation and network, without hooks."""

    mean: Tensor
    scale: Tensor

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.net = probe.net
        self.register_buffer("mean", probe.mean.clone())
        self.register_buffer("scale", probe.scale.clone())

    def forward(self, images: Tensor) -> Any:
        return self.net((images - self.mean) * self.scale)


def _export(student: Probe, image_shape: tuple[int, int, int], path: Path) -> bool:
    """Write the exported program; False (with a warning) for a network that cannot be exported."""
    import copy

    net = student.release()
    program_net = _Whole(student).eval()
    example = torch.rand(2, *image_shape)
    try:
        _renew(net, image_shape)
        program_net.net = copy.deepcopy(bare_network(net)).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        program_net = program_net.to("cpu").requires_grad_(False)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = torch.export.Dim("n", min=1, max=65536)
            program = torch.export.export(program_net, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # copying and export fail in as many ways as networks can be written
        reason = str(error).strip().splitlines()
        warnings.warn(
            f"the student was not exported to {path.name}: {reason[0] if reason else type(error).__name__}",
            stacklevel=2,
        )
        return False
    packed = _pack(program)
    write_aside(path, lambda aside: aside.write_bytes(packed.getbuffer()))
    return True


@torch.no_grad()
def _renew(net: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Weights that layers compute in every pass (weight_norm, spectral_norm) without the graph that forbids a copy."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    net.eval()(torch.zeros(1, *image_shape, device=device))


def _pack(program: Any) -> io.BytesIO:
    """The file's content, packed in memory: a write that fails below torch's packer ends the process."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer
