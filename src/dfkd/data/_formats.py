"""The file formats of MNIST (idx) and CIFAR (pickle), read without running anything they contain."""

import gzip
import math
import pickle
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from dfkd.data._limits import most_bytes
from dfkd.data._pickles import names_in_pickle
from dfkd.errors import UserError


def read_idx(file: Path, axes: int) -> npt.NDArray[np.uint8]:
    """An idx file of bytes with ``axes`` axes; packed by gzip where the name ends in .gz.

    Raises:
        UserError: wrong magic number, more or fewer bytes than the header says, or more than a file of this size
            may hold.
    """
    try:
        size = file.stat().st_size
        most = most_bytes(size) if file.suffix == ".gz" else size
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            header = stream.read(4 + 4 * axes)
            magic, *shape = struct.unpack(f">{1 + axes}I", header)
            if magic != 0x0800 + axes:
                raise UserError(
                    f"an idx reader needs magic number {0x0800 + axes}, got {magic} in {file}; fetch it again"
                )
            count = math.prod(shape)
            if count > most:
                raise UserError(
                    f"an idx reader needs at most {most} bytes in a file of this size, got {count} in the header of "
                    f"{file}; fetch it again"
                )
            body = stream.read(count + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise UserError(
            f"an idx reader needs a whole file, got {file} ({type(error).__name__}); fetch it again"
        ) from error
    if len(body) != count:
        raise UserError(f"an idx reader needs {count} bytes of data, got another number in {file}; fetch it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape).copy()


def read_cifar(file: Path) -> dict[str, object]:
    """A CIFAR pickle as a dict of bytes, lists of them, ints and uint8 arrays, keyed by str.

    Only the three NumPy names that the published files use are recognised, and they lead to inert stand-ins:
    no code that a file names is ever imported or called.

    Raises:
        UserError: anything else, or a damaged file.
    """
    try:
        data = file.read_bytes()
        names_in_pickle(BytesIO(data))  # refuses what takes forever to build
        content = _unpickle(BytesIO(data))
    except Exception as error:  # hostile bytes make the unpickler raise almost any kind of error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the CIFAR reader needs a published file, got {file} ({reason}); unpack it again") from error
    if not isinstance(content, dict):
        raise UserError(f"the CIFAR reader needs a dict in {file}, got {type(content).__name__}; unpack it again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _unpickle(stream: IO[bytes]) -> object:
    # The stand-ins are made anew for each file, so that nothing a file does to them (BUILD can set
    # attributes) outlives the reading of it.
    class Dtype:
        def __init__(self, *arguments: object) -> None:
            self.code = arguments[0] if arguments else None

        def __setstate__(self, state: object) -> None:
            pass

    class Array:
        def __init__(self, *_: object) -> None:
            self.state: object = None

        def __setstate__(self, state: object) -> None:
            self.state = state

    def find(module: str, name: str) -> object:
        allowed = {
            "numpy.core.multiarray._reconstruct": Array,
            "numpy._core.multiarray._reconstruct": Array,
            "numpy.ndarray": "ndarray",
            "numpy.dtype": Dtype,
        }
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in it")
        return allowed[f"{module}.{name}"]

    content = _restricted_unpickler(find)(stream, encoding="bytes").load()
    if not isinstance(content, dict):
        return content
    return {key: _array(value.state, Dtype) if isinstance(value, Array) else value for key, value in content.items()}


def _restricted_unpickler(find: Callable[[str, str], object]) -> type[pickle.Unpickler]:
    class Restricted(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> object:
            return find(module_name, global_name)

    return Restricted


def _array(state: object, dtype: type) -> npt.NDArray[np.uint8]:
    """The uint8 matrix that a pickled ndarray state describes: (version, shape, dtype, fortran, bytes)."""
    match state:
        case (_, (int(rows), int(columns)), kind, bool(fortran), bytes(raw)) if (
            isinstance(kind, dtype) and kind.code in (b"u1", "u1") and min(rows, columns) >= 0  # type: ignore[attr-defined]
        ):
            return np.frombuffer(raw, dtype=np.uint8).reshape((rows, columns), order="F" if fortran else "C").copy()
        case _:
            raise pickle.UnpicklingError("its array is not a matrix of uint8")
