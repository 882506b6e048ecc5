"""Write tiles to parquet shards of Hugging Face `datasets`, in constant memory."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from moco_accel.common.errors import UserError

_ROWS_PER_CHUNK = 64  # held in memory at once


def write_shards(
    rows: Iterable[dict[str, Any]],
    features: datasets.Features,
    out_dir: Path,
    max_shard_bytes: int = 256 << 20,
    overwrite: bool = False,
) -> int:
    """Stream `rows` into `out_dir/tiles-00000-of-000NN.parquet`.

    Shards keep the `datasets` schema, so `load_dataset("parquet", …)` restores Image, ClassLabel and Array3D. They get
    their names once all of them are complete; until then, and after an error, old shards stay as they were.

    Returns:
        The number of rows; without rows, nothing is written.

    Raises:
        UserError: If `out_dir` holds shards already; with `overwrite`, only if this function did not write them.
    """
    old_shards = set(out_dir.glob("tiles-*-of-*.parquet"))
    if foreign := set(out_dir.glob("*.parquet")) - (old_shards if overwrite else set()):
        raise UserError(f"{str(out_dir)!r} holds shards already ({min(foreign).name}, …); choose an empty folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in out_dir.glob(".tiles-*.partial"):  # of a killed process
        path.unlink()
    partial: list[Path] = []
    try:
        num_rows = _write_partial(_tables(rows, features), features.arrow_schema, out_dir, max_shard_bytes, partial)
    except BaseException:
        for path in partial:
            path.unlink(missing_ok=True)
        raise
    for path in old_shards if partial else ():
        path.unlink()
    for index, path in enumerate(partial):
        path.replace(out_dir / f"tiles-{index:05d}-of-{len(partial):05d}.parquet")
    return num_rows


def _tables(rows: Iterable[dict[str, Any]], features: datasets.Features) -> Iterator[pa.Table]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _ROWS_PER_CHUNK)):
        table = datasets.Dataset.from_list(chunk, features=features).with_format("arrow")[:]
        yield table.select(list(features)).cast(features.arrow_schema)  # rows may list their columns in any order


def _write_partial(
    tables: Iterable[pa.Table], schema: pa.Schema, out_dir: Path, max_shard_bytes: int, partial: list[Path]
) -> int:
    """Write tables to hidden `.partial` files, append those to `partial`, and return the number of rows."""
    num_rows = shard_bytes = 0
    writer: pq.ParquetWriter | None = None
    with contextlib.ExitStack() as open_writer:
        for table in tables:
            if writer is None or shard_bytes + table.nbytes > max_shard_bytes:
                open_writer.close()
                partial.append(out_dir / f".tiles-{len(partial):05d}.parquet.partial")
                writer, shard_bytes = open_writer.enter_context(pq.ParquetWriter(partial[-1], schema)), 0
            writer.write_table(table)
            shard_bytes += table.nbytes
            num_rows += table.num_rows
    return num_rows


class ShardWriter:
    """Write one parquet file, with a row group for each `write`; it gets its name on `close`."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str) -> None:
        self._path, self._schema = path, schema
        self._partial = path.with_name(path.name + ".partial")
        self._file = self._partial.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema, compression=compression)
        self._groups = 0

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append a row group."""
        self._writer.write_table(pa.Table.from_pylist(rows, self._schema))
        self._groups += 1

    def next_would_exceed(self, max_bytes: int) -> bool:
        """Return whether another row group of average size makes the file larger than `max_bytes`."""
        return self._file.tell() * (self._groups + 1) > max_bytes * self._groups

    def close(self) -> None:
        """Finish the file, flush it to the disk, and name it."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)

    def discard(self) -> None:
        """Delete the incomplete file."""
        for close in (self._writer.close, self._file.close):
            with contextlib.suppress(OSError):  # a full disk may be why it is discarded
                close()
        self._partial.unlink(missing_ok=True)
