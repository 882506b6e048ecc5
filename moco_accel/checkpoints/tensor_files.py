"""Read and write safetensors files one tensor at a time, so that memory never holds a second copy of all tensors.

`safetensors.torch.save_file` needs all tensors on the host at once, and reports a full disk by a bare exception.
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

from moco_accel.common.atomic_files import parse_strict_json, regular_file_size
from moco_accel.networks.sharding import full_tensor

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
"""Type and shape of each tensor."""


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout of tensors in memory."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def safetensors_chunks(
    tensors: Mapping[str, Tensor], exchange_status: Callable[[], object] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the content of a safetensors file; one tensor at a time is copied to the host.

    Sharded tensors are gathered, so every rank must iterate over the same ones. Each calls `exchange_status` first.
    """
    # wider types first, so that every tensor is aligned to its item size
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
            tensor = full_tensor(tensors[name].detach(), exchange_status)
            yield tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_layout(path: Path) -> Layout:
    """Read the layout from a safetensors file's header.

    Raises:
        ValueError: If the header is invalid, or does not account for every byte of the file.
        OSError: If the file cannot be read.
    """
    size = regular_file_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH.size), "little")
        if size < _LENGTH.size or length > min(_MAX_HEADER_BYTES, size - _LENGTH.size):
            raise ValueError(f"{path.name} has a header of {length} bytes in {size}")
        header = parse_strict_json(file.read(length), f"{path.name}'s header")
    if not isinstance(header, dict):
        raise ValueError(f"{path.name}'s header is not a mapping")
    header.pop("__metadata__", None)
    layout: Layout = {}
    end = 0
    entries = [(name, *_parse_entry(name, entry, path)) for name, entry in header.items()]
    for name, dtype, shape, offsets in sorted(entries, key=lambda entry: entry[-1]):
        if offsets != [end, end + dtype.itemsize * math.prod(shape)]:
            raise ValueError(f"{path.name}: the offsets of {name[:80]!r} do not match its type and shape")
        layout[name], end = (dtype, shape), offsets[1]
    if _LENGTH.size + length + end != size:
        raise ValueError(f"{path.name} has {size} bytes, its header says {_LENGTH.size + length + end}")
    return layout


def read_tensors(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of a file whose layout has been checked, for names that begin with `prefix`."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _parse_entry(name: str, entry: Any, path: Path) -> tuple[torch.dtype, tuple[int, ...], list[int]]:
    """Return type, shape and offsets of a tensor."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [_, _] as offsets, **more} if (
            dtype in _DTYPES and not more and all(type(number) is int and number >= 0 for number in [*shape, *offsets])
        ):
            return _DTYPES[dtype], tuple(shape), offsets
    raise ValueError(f"{path.name}: {name[:80]!r} has no supported type, shape and offsets")
