"""What columns and arrow files say of themselves, checked before anything relies on it.

Arrow trusts the offsets in a file that it maps: wrong ones read another's memory, or end the process.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from moco_accel.common.errors import UserError
from moco_accel.images.headers import MAX_TILE_BYTES

_MOST_COLUMNS = 10_000
_MOST_METADATA_BYTES = 1 << 23


def features_of(schema: pa.Schema, source: str, field: str) -> dict[str, Any]:
    """The features of `datasets` that a schema stands for. Raises UserError where its columns are others."""
    try:
        if sum(map(len, (schema.metadata or {}).values())) > _MOST_METADATA_BYTES:
            raise ValueError(f"more than {_MOST_METADATA_BYTES} bytes")
        features = dict(datasets.Features.from_arrow_schema(schema))
        for feature in features.values():
            if isinstance(feature, datasets.Array3D):
                _check_array(feature)
    except Exception as error:  # its metadata may be anything
        raise UserError(
            f"{field}={source!r}: what its schema says of columns cannot be read ({one_line(error)}); build them anew"
        ) from None
    if len(set(schema.names)) != len(schema.names) or len(schema.names) > _MOST_COLUMNS:
        raise UserError(f"{field}={source!r} has columns of one name, or more than {_MOST_COLUMNS}; build them anew")
    if set(features) != set(schema.names):
        raise UserError(
            f"{field}={source!r}: its schema says that its columns are {', '.join(features)}, and they are "
            f"{', '.join(schema.names)}; build them anew"
        )
    return features


def _check_array(array: datasets.Array3D) -> None:
    sizes = [1 if size is None else size for size in array.shape]
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"an array of {array.shape}")
    if math.prod(sizes) * np.dtype(array.dtype).itemsize > MAX_TILE_BYTES:
        raise ValueError(f"an array of {sizes}; at most {MAX_TILE_BYTES} bytes are read")


def check_arrow_file(path: Path) -> pa.Schema:
    """Read an arrow stream once, but not its values. Raises ArrowInvalid, OSError: it is damaged, or compressed."""
    with pa.memory_map(str(path)) as file:
        for message in pa.ipc.MessageReader.open_stream(file):
            if message.type in ("record batch", "dictionary") and _is_compressed(message.metadata.to_pybytes()):
                raise pa.ArrowInvalid("it is compressed, and can't be read in place")
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            batch.validate(full=True)
        return batches.schema


def _is_compressed(message: bytes) -> bool:
    """Whether a message's RecordBatch has the field `compression` (arrow's Message.fbs): of any size unpacked."""
    try:
        (root,) = struct.unpack_from("<I", message)
        header = _place(message, root, 2)
        batch = header + struct.unpack_from("<I", message, header)[0]
        is_dictionary = struct.unpack_from("<B", message, _place(message, root, 1))[0] == 2
        if is_dictionary:  # its batch is its second field
            inside = _place(message, batch, 1)
            batch = inside + struct.unpack_from("<I", message, inside)[0]
        return _place(message, batch, 3) != 0
    except struct.error:
        raise pa.ArrowInvalid("a message ends before its end") from None


def _place(message: bytes, table: int, field: int) -> int:
    """Where a flatbuffer's table holds its `field`-th field; 0 where it has none."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    if 4 + 2 * field >= struct.unpack_from("<H", message, vtable)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", message, vtable + 4 + 2 * field)
    return table + offset if offset else 0


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
