"""Read the footers of parquet shards: columns, and rows and bytes of each row group."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from moco_accel.common.errors import UserError, error_reason
from moco_accel.sources.base import Source

_THREADS = 16  # over a network
_MAX_ROWS = 1 << 30
_MAX_GROUP_ROWS = 1 << 22
_MAX_GROUP_BYTES = 1 << 32
_SMALL_GROUP_BYTES, _MAX_COMPRESSION_RATIO = 1 << 28, 16


@dataclass(frozen=True)
class Footer:
    """A shard's footer: rows and uncompressed bytes of each row group."""

    schema: pa.Schema
    group_rows: list[int]
    group_bytes: list[int]

    @property
    def num_rows(self) -> int:
        return sum(self.group_rows)


@contextmanager
def open_parquet_file(path: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Open a local file or a URL."""
    if "://" not in path:
        with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
            yield file
        return
    # each request crosses a network: coalesce ranges, and read nothing ahead of them
    filesystem, name = fsspec.core.url_to_fs(path)
    with filesystem.open(name, "rb", cache_type="none") as stream:
        yield pq.ParquetFile(stream, metadata=metadata, pre_buffer=True)


def read_footers(paths: list[str], source: Source) -> list[Footer]:
    """Read the footers of all shards.

    Raises:
        UserError: If a file is truncated or no parquet file, or if its footer declares implausible sizes.
    """

    def read(path: str) -> Footer:
        try:
            with open_parquet_file(path) as file:
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                sizes = [group.total_byte_size for group in groups]
                footer = Footer(file.schema_arrow, [group.num_rows for group in groups], sizes)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{source}: {path} is not a complete parquet file ({error_reason(error)})") from None
        if problem := _find_implausible_size(footer, path):
            raise UserError(f"{source}: {path} {problem}; rebuild it")
        return footer

    if all("://" not in path for path in paths):
        return [read(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read, paths))


def _find_implausible_size(footer: Footer, path: str) -> str | None:
    """Find wrong sizes and decompression bombs. Tiles are compressed already, so parquet shrinks them little."""
    if min(footer.group_rows + footer.group_bytes, default=0) < 0 or footer.num_rows > _MAX_ROWS:
        return f"declares {footer.num_rows} tiles of {sum(footer.group_bytes)} bytes"
    if max(footer.group_rows, default=0) > _MAX_GROUP_ROWS:
        return f"has a row group of {max(footer.group_rows)} tiles; the maximum is {_MAX_GROUP_ROWS}"
    largest = max(footer.group_bytes, default=0)
    if largest > _MAX_GROUP_BYTES:
        return f"has a row group of {largest >> 20} MiB; the maximum is {_MAX_GROUP_BYTES >> 20} MiB"
    if "://" not in path and largest > max(_SMALL_GROUP_BYTES, _MAX_COMPRESSION_RATIO * Path(path).stat().st_size):
        return f"has a row group that unpacks to {largest >> 20} MiB, over {_MAX_COMPRESSION_RATIO} times the file"
    return None
