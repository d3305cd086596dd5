"""Arrays in one `.npz` file that a stranger may have made: equal arrays give equal bytes, and reading runs nothing.

The reader takes only what the writer makes: a zip of uncompressed `.npy` members of plain numbers, each as long as its
header says. A pickle, an object array, a compressed bomb or a header that promises terabytes is refused before
anything of its size is allocated.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celr_ray.errors import PolicyError

__all__ = ["MAX_BYTES", "pack_arrays", "unpack_arrays"]

MAX_BYTES = 64 * 2**20
"""Longest file that is read; a network of three layers of 2,048 has half of it."""

_npy: Any = np.lib.format  # numpy gives no types for it
_DATE = (1980, 1, 1, 0, 0, 0)
_TYPES = ("<f4", "<f8", "<u8", "|b1")


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an `.npz` file; the order of the names does not matter.

    Raises:
        PolicyError: an array holds no plain numbers, or they are too many.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = np.asarray(arrays[name], order="C")
            if array.dtype.str not in _TYPES:
                raise PolicyError(f"the array {name} has the type {array.dtype}; it may be {', '.join(_TYPES)}")
            member = io.BytesIO()
            _npy.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), member.getvalue())
    data = buffer.getvalue()
    if len(data) > MAX_BYTES:
        raise PolicyError(f"the policy's arrays take {len(data):,} bytes; at most {MAX_BYTES:,} are read back")
    return data


def unpack_arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz` file by name.

    Args:
        data: the file.
        where: its name, for messages.

    Raises:
        PolicyError: it is not as `pack_arrays` writes it.
    """
    if len(data) > MAX_BYTES:
        raise PolicyError(f"{where} has {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            _check_members(infos, len(data), where)
            return {info.filename.removesuffix(".npy"): _read_member(archive.read(info)) for info in infos}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise PolicyError(f"{where} holds no arrays of a policy: {error}") from None


def _check_members(infos: list[zipfile.ZipInfo], n_bytes: int, where: str) -> None:
    """Raise if a member is compressed, or the members are longer than the file, as in a bomb of overlapping ones."""
    names = [info.filename for info in infos]
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise PolicyError(f"{where} holds no arrays of a policy: its members are {', '.join(sorted(names))[:200]}")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise PolicyError(f"{where} is compressed; the arrays of a policy never are, so nobody can hide a bomb in them")
    if sum(info.file_size for info in infos) > n_bytes:
        raise PolicyError(f"{where} claims to hold more than its {n_bytes:,} bytes")


def _read_member(data: bytes) -> NDArray[Any]:
    """Read one `.npy` file.

    Raises:
        ValueError: it is none, holds other than plain numbers, or is shorter or longer than its header says.
    """
    source = io.BytesIO(data)
    if _npy.read_magic(source) != (1, 0):
        raise ValueError("an array of another version of the npy format")
    shape, is_fortran, dtype = _npy.read_array_header_1_0(source)
    if dtype.str not in _TYPES or is_fortran:
        raise ValueError(f"an array of type {dtype}; only {', '.join(_TYPES)} in C order are read")
    rest = data[source.tell() :]
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"an array of shape {shape} in {len(rest):,} bytes")
    return np.frombuffer(rest, dtype=dtype).reshape(shape).copy()
