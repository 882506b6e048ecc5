"""Validate Arrow schemas and Arrow files before anything relies on them.

Arrow trusts the offsets in a memory-mapped file: wrong ones read foreign memory or crash the process.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from moco_accel.common.errors import UserError, error_reason
from moco_accel.images.headers import MAX_TILE_BYTES
from moco_accel.sources.base import Source

_MAX_COLUMNS = 10_000
_MAX_METADATA_BYTES = 1 << 23


def read_features(schema: pa.Schema, source: Source) -> dict[str, Any]:
    """Return the features of `datasets` that a schema describes.

    Raises:
        UserError: If the schema's metadata cannot be read or describe other columns.
    """
    try:
        if sum(map(len, (schema.metadata or {}).values())) > _MAX_METADATA_BYTES:
            raise ValueError(f"more than {_MAX_METADATA_BYTES} bytes")
        features = dict(datasets.Features.from_arrow_schema(schema))
        for feature in features.values():
            if isinstance(feature, datasets.Array3D):
                _check_array(feature)
    except Exception as error:  # the metadata may hold anything
        raise UserError(
            f"{source}: the column types in its schema cannot be read ({error_reason(error)}); rebuild it"
        ) from None
    if len(set(schema.names)) != len(schema.names) or len(schema.names) > _MAX_COLUMNS:
        raise UserError(f"{source} has duplicate column names, or more than {_MAX_COLUMNS}; rebuild it")
    if set(features) != set(schema.names):
        raise UserError(
            f"{source}: its schema describes the columns {', '.join(features)}, but it has "
            f"{', '.join(schema.names)}; rebuild it"
        )
    return features


def _check_array(array: datasets.Array3D) -> None:
    sizes = [1 if size is None else size for size in array.shape]
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"an array of {array.shape}")
    if math.prod(sizes) * np.dtype(array.dtype).itemsize > MAX_TILE_BYTES:
        raise ValueError(f"an array of {sizes}; at most {MAX_TILE_BYTES} bytes are read")


def check_arrow_file(path: Path) -> pa.Schema:
    """Check an Arrow stream's messages and offsets, but not its values, and return its schema.

    Raises:
        pa.ArrowInvalid: If it is damaged or compressed.
        OSError: If it cannot be read.
    """
    with pa.memory_map(str(path)) as file:
        for message in pa.ipc.MessageReader.open_stream(file):
            if message.type in ("record batch", "dictionary") and _is_compressed(message.metadata.to_pybytes()):
                raise pa.ArrowInvalid("it is compressed and cannot be memory-mapped")
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            batch.validate(full=True)
        return batches.schema


def _is_compressed(message: bytes) -> bool:
    """Check for the field `compression` of a RecordBatch (Arrow's Message.fbs): its unpacked size has no limit."""
    try:
        (root,) = struct.unpack_from("<I", message)
        header = _field_offset(message, root, 2)
        batch = header + struct.unpack_from("<I", message, header)[0]
        is_dictionary = struct.unpack_from("<B", message, _field_offset(message, root, 1))[0] == 2
        if is_dictionary:  # its batch is its second field
            inside = _field_offset(message, batch, 1)
            batch = inside + struct.unpack_from("<I", message, inside)[0]
        return _field_offset(message, batch, 3) != 0
    except struct.error:
        raise pa.ArrowInvalid("a message is truncated") from None


def _field_offset(message: bytes, table: int, field: int) -> int:
    """Return the offset of a field of a flatbuffer table; 0 if the table lacks it."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    if 4 + 2 * field >= struct.unpack_from("<H", message, vtable)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", message, vtable + 4 + 2 * field)
    return table + offset if offset else 0
