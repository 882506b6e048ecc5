"""safetensors files, written and read tensor by tensor, so that no second copy of all of them is in memory.

`safetensors.torch.save_file` wants all tensors on the host at once, and leaves a full disk a bare exception.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moco_accel.common.atomic_files import ordinary_size, strict_json
from moco_accel.networks.sharding import nobody, whole

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 1 << 23

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Each tensor's type and shape."""


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def layout_bytes(layout: Layout) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


def tensor_chunks(tensors: Mapping[str, Tensor], meet: Callable[[], object] = nobody) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file of `tensors`, which are brought to the host one at a time.

    Those that processes divide are made whole, for which all of them have to ask; they `meet` before each.
    """
    # the wider types first, so that each tensor begins at a multiple of its numbers' size
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, start = {}, 0
    for name in order:
        size = tensors[name].numel() * tensors[name].dtype.itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH.size)
    yield _LENGTH.pack(len(text)) + text
    for name in order:
        if tensors[name].numel():
            yield whole(tensors[name].detach(), meet).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_layout(path: Path) -> Layout:
    """What a safetensors file holds, by its header, which must account for every byte. Raises ValueError, OSError."""
    size = ordinary_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH.size), "little")
        if size < _LENGTH.size or length > min(_MAX_HEADER_BYTES, size - _LENGTH.size):
            raise ValueError(f"{path.name} has a header of {length} bytes in {size}")
        header = strict_json(file.read(length), f"{path.name}'s header")
    if not isinstance(header, dict):
        raise ValueError(f"{path.name}'s header is no mapping")
    header.pop("__metadata__", None)
    layout: Layout = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1], path)):
        dtype, shape = _type_and_shape(entry, name, path)
        if _offsets(entry, path) != [end, end + dtype.itemsize * math.prod(shape)]:
            raise ValueError(f"{path.name}: {name[:80]!r} does not lie where its type and shape say")
        layout[name], end = (dtype, shape), entry["data_offsets"][1]
    if _LENGTH.size + length + end != size:
        raise ValueError(f"{path.name} has {size} bytes, its header says {_LENGTH.size + length + end}")
    return layout


def read_tensors(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of a file whose layout has been checked, one at a time; those whose names begin with `prefix`."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _offsets(entry: Any, path: Path) -> list[int]:
    found = entry.get("data_offsets") if isinstance(entry, dict) else None
    if found is None or not _whole_numbers(found) or len(found) != 2:
        raise ValueError(f"{path.name}'s header does not say where its tensors lie")
    return list(found)


def _type_and_shape(entry: dict[str, Any], name: str, path: Path) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype, shape = entry.get("dtype"), entry.get("shape", "")
    if not (isinstance(dtype, str) and dtype in _DTYPES and _whole_numbers(shape) and len(entry) == 3):
        raise ValueError(f"{path.name}: {name[:80]!r} has no type and shape of ours")
    return _DTYPES[dtype], tuple(shape)


def _whole_numbers(found: Any) -> bool:
    return isinstance(found, list) and all(type(number) is int and number >= 0 for number in found)
