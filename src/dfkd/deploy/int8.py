"""Static INT8 quantization of an ONNX file, calibrated on images."""

from pathlib import Path
from typing import Any

from dfkd.deploy.programs import quiet
from dfkd.errors import UserError
from dfkd.types import Images

__all__ = ["write_int8"]

WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")


def write_int8(source: Path, path: Path, images: Images, batch: int | None = None) -> list[str]:
    """Static INT8 in the QDQ form: weights per channel, activations per tensor, ranges from ``images``.

    Args:
        source: the fp32 ONNX file.
        path: of the file to write.
        images: what the network sees, (n, c, h, w).
        batch: images of every call, where the model has a fixed number; fewer at the end of ``images`` are left out.

    Returns:
        Names of layers with weights that stay in float.

    Raises:
        UserError: a scale that is not finite.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name(f"{path.stem}-prepared.onnx")
    with quiet():
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(path),
            _reader(images, batch),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_normalisation(onnx.load(str(prepared))),
        )
    prepared.unlink()
    model = onnx.load(str(path))
    _check_scales(model)
    _copy_metadata(onnx.load(str(source)), model)
    onnx.save_model(model, str(path))
    return _in_float(model)


def _reader(images: Images, batch: int | None) -> Any:
    """What the calibration reads ``images`` through: full batches where their size is fixed, all of them otherwise."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts = iter([part for part in images.split(batch or 32) if batch is None or len(part) == batch])

        def get_next(self) -> Any:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    return Reader()


def _normalisation(model: Any) -> list[str]:
    """The nodes before the first layer with weights: pixels keep their precision."""
    names = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            break
        names.append(node.name)
    return names


def _check_scales(model: Any) -> None:
    import numpy as np
    from onnx import numpy_helper

    scales = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) if tensor.name in scales else np.ones(1)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UserError(
                f"INT8 needs finite scales, got {values.min()} to {values.max()} for {tensor.name}; calibrate on more "
                "images, or on images that resemble those the network will see"
            )


def _copy_metadata(source: Any, model: Any) -> None:
    have = {entry.key for entry in model.metadata_props}
    for entry in source.metadata_props:
        if entry.key not in have:
            model.metadata_props.append(entry)


def _in_float(model: Any) -> list[str]:
    """Layers with weights whose input is not dequantized."""
    quantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return [node.name for node in model.graph.node if node.op_type in WEIGHTED and not set(node.input[:2]) <= quantized]
