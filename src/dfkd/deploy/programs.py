"""A network as a program of another kind: ``torch.export``, ONNX. What cannot be converted is named."""

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.types import Images

__all__ = ["check_onnx", "metadata_of", "quiet", "session", "write_onnx", "write_program"]

LARGEST_BATCH = 65536
Attempt = Callable[[nn.Module, tuple[Tensor, ...], bool], Any]


def check_onnx() -> None:
    """Refuse, before any work, where the packages are missing.

    Raises:
        UserError: with the command that installs them.
    """
    import importlib.util

    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"export to ONNX needs the package {package}, got none installed; run `{install_extra('onnx')}`"
            )


def write_program(module: nn.Module, example: Images, path: Path, dynamic: bool = True) -> None:
    """``torch.export``: the file needs PyTorch alone.

    Args:
        module: in eval mode, on the CPU.
        example: images (2 or more, c, h, w); as many as every call has, where ``dynamic`` is off.
        path: of the file.
        dynamic: any number of images a call.

    Raises:
        UserError: it cannot be exported; the layer is named.
    """
    program = _convert(_trace, module, example, dynamic, "torch.export")
    packed = io.BytesIO()
    with quiet():
        torch.export.save(program, packed)
    path.write_bytes(packed.getbuffer())


def write_onnx(module: nn.Module, example: Images, path: Path, about: Mapping[str, str], dynamic: bool = True) -> None:
    """ONNX with the input ``images`` and the output ``logits``; ``about`` becomes the model's metadata.

    Raises:
        UserError: it cannot be exported; the layer is named. Or a package is missing.
    """
    check_onnx()
    converted = _convert(_to_onnx, module, example, dynamic, "ONNX")
    model = converted.model_proto
    _strip(model)
    for key, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    import onnx

    onnx.save_model(model, str(path))


def session(path: Path) -> Callable[[Any], Any]:
    """Run an ONNX file on as many threads as torch uses: float32 images as an array in, logits out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    ready = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: ready.run(None, {"images": images})[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Converters warn of their own insides, and log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _shapes(example: tuple[Tensor, ...], dynamic: bool) -> Any:
    if not dynamic:
        return None
    n = torch.export.Dim("n", min=1, max=LARGEST_BATCH)
    return tuple({0: n} if tensor.dim() and len(tensor) == len(example[0]) else None for tensor in example)


def _trace(module: nn.Module, example: tuple[Tensor, ...], dynamic: bool) -> Any:
    return torch.export.export(module, example, dynamic_shapes=_shapes(example, dynamic))


def _to_onnx(module: nn.Module, example: tuple[Tensor, ...], dynamic: bool) -> Any:
    names = ["images"] if len(example) == 1 else [f"input{i}" for i in range(len(example))]
    return torch.onnx.export(
        module,
        example,
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=_shapes(example, dynamic),
    )


def _convert(attempt: Attempt, module: nn.Module, example: Images, dynamic: bool, what: str) -> Any:
    try:
        with torch.no_grad(), quiet():
            return attempt(module, (example,), dynamic)
    except Exception as error:  # conversion fails in as many ways as networks can be written
        layer, reason = _culprit(attempt, module, example, dynamic, error)
        advice = "write that layer with other operations"
        if dynamic and _succeeds(attempt, module, (example,), False):
            advice = "it can be exported with a fixed number of images a call: --batch N (batch=N)"
        raise UserError(
            f"export to {what} needs a network that it can convert, got {layer}, which fails with {reason!r}; {advice}"
        ) from error


def _culprit(attempt: Attempt, module: nn.Module, example: Images, dynamic: bool, error: Exception) -> tuple[str, str]:
    """The deepest layer that cannot be converted by itself, and why: layers are tried from the outside in."""
    inputs = _inputs(module, example)
    path, layer, why = "", module, error
    while True:
        below = [(f"{path}.{name}".lstrip("."), child) for name, child in layer.named_children()]
        failed = next(
            (
                (name, child, trouble)
                for name, child in below
                if name in inputs and (trouble := _trouble(attempt, child, inputs[name], dynamic)) is not None
            ),
            None,
        )
        if failed is None:
            break
        path, layer, why = failed
    kind = type(layer).__name__
    path = path.removeprefix("net.") if path != "net" else ""
    return f"the layer {path!r} ({kind})" if path else f"{kind}.forward", _reason(why)


def _inputs(module: nn.Module, example: Images) -> dict[str, tuple[Tensor, ...]]:
    """What every layer was given, where these are tensors only."""
    inputs_by_layer: dict[str, tuple[Tensor, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if inputs and not keywords and all(isinstance(tensor, Tensor) for tensor in inputs):
                inputs_by_layer.setdefault(name, tuple(tensor.detach().clone() for tensor in inputs))

        return hook

    handles = [m.register_forward_pre_hook(note(name), with_kwargs=True) for name, m in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return inputs_by_layer


def _trouble(attempt: Attempt, module: nn.Module, example: tuple[Tensor, ...], dynamic: bool) -> Exception | None:
    try:
        with torch.no_grad(), quiet():
            attempt(module, example, dynamic)
    except Exception as error:  # see _convert
        return error
    return None


def _succeeds(attempt: Attempt, module: nn.Module, example: tuple[Tensor, ...], dynamic: bool) -> bool:
    return _trouble(attempt, module, example, dynamic) is None


def _reason(error: BaseException) -> str:
    """The line of a long message that says what is wrong: that of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if re.search(r"No ONNX function|not supported|Unsupported|specializ", line)]
    line = (telling or lines or [type(error).__name__])[0]
    return line if len(line) <= 160 else f"{line[:157]}..."


def _strip(model: Any) -> None:
    """Drop the converter's notes, which hold the paths of the source files it read."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for part in graph.node:
        part.doc_string = ""


def metadata_of(
    names: tuple[str, ...], mean: list[float], std: list[float], image_size: tuple[int, int, int], inside: bool
) -> dict[str, str]:
    """What an ONNX file says of itself, as texts; lists are JSON."""
    return {
        "labels": json.dumps(list(names), ensure_ascii=False),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "input_size": json.dumps(list(image_size)),
        "normalisation": "inside" if inside else "outside",
        "input": "images (n, c, h, w) in [0, 1]" if inside else "(images in [0, 1] - mean) / std, (n, c, h, w)",
    }
