"""Read the footers of parquet shards, and check sizes before Arrow relies on them.

Arrow allocates what a page header declares, whatever the footer says; so headers are read before Arrow reads the file.
A page header is a thrift struct in compact form: https://parquet.apache.org/docs/file-format/data-pages/
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_MAX_PAGES = 1 << 20
_MAX_DEPTH = 8
_MAX_REPEATED_BYTES = 1 << 30  # that the values of a dictionary expand to
_TOLERANCE, _TOLERANCE_BYTES = 1.05, 1 << 16
_DICTIONARY_PAGE = 2
_DICTIONARY_ENCODINGS = (2, 8)  # PLAIN_DICTIONARY, RLE_DICTIONARY
# Fields of PageHeader: 1 type, 2 and 3 sizes, 5 and 8 the data page headers.
_TYPE, _UNPACKED_SIZE, _PACKED_SIZE = 1, 2, 3
_DATA_PAGE_ENCODING_FIELD = {5: 2, 8: 4}  # field 1 of a data page header counts its values


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


@dataclass(frozen=True)
class _Page:
    """`header_start`, `start` and `end` are offsets; the header ends and the data begin at `start`."""

    header: dict[int, Any]
    header_start: int
    start: int
    end: int


def find_page_problem(path: str, group: pq.RowGroupMetaData, columns: Sequence[str] | None = None) -> str | None:
    """Compare the sizes in the page headers of `columns`, None for all, with those in the footer.

    Returns:
        What is wrong, if `columns` of the row group would unpack to more than the footer declares, or if headers
        cannot be read; else None.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # noqa: PTH123
            chunks = [group.column(number) for number in range(group.num_columns)]
            wanted = [chunk for chunk in chunks if columns is None or chunk.path_in_schema.split(".")[0] in columns]
            return next((problem for chunk in wanted if (problem := _find_column_problem(data, chunk))), None)
    except (IndexError, KeyError, TypeError, ValueError, OSError, struct.error, pa.ArrowException):
        return "cannot be read (page headers)"


def _find_column_problem(data: mmap.mmap, column: pq.ColumnChunkMetaData) -> str | None:
    pages = _read_pages(data, column)
    unpacked = sum(page.start - page.header_start + page.header[_UNPACKED_SIZE] for page in pages)
    declared = column.total_uncompressed_size
    if unpacked > _TOLERANCE * declared + _TOLERANCE_BYTES:
        return f"declares {declared} bytes in column {column.path_in_schema}, but its pages unpack to {unpacked}"
    dictionary = next((page for page in pages if page.header[_TYPE] == _DICTIONARY_PAGE), None)
    if dictionary is None or column.physical_type != "BYTE_ARRAY":
        return None
    repeated = sum(_count_dictionary_values(page.header) for page in pages)
    if repeated * dictionary.header[_UNPACKED_SIZE] > _MAX_REPEATED_BYTES:
        repeated *= _longest_value(data, dictionary, column.compression)
        if repeated > _MAX_REPEATED_BYTES:
            return f"repeats values of column {column.path_in_schema} up to {repeated} bytes"
    return None


def _read_pages(data: mmap.mmap, column: pq.ColumnChunkMetaData) -> list[_Page]:
    header_start = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
    end = header_start + column.total_compressed_size
    pages: list[_Page] = []
    while header_start < end:
        header, start = _read_struct(data, header_start, 0)
        if header[_PACKED_SIZE] < 0 or header[_UNPACKED_SIZE] < 0 or len(pages) > _MAX_PAGES:
            raise ValueError("a page of negative size, or too many pages")
        pages.append(_Page(header, header_start, start, start + header[_PACKED_SIZE]))
        header_start = pages[-1].end
    return pages


def _count_dictionary_values(header: dict[int, Any]) -> int:
    for field, encoding in _DATA_PAGE_ENCODING_FIELD.items():
        if field in header:
            return int(header[field][1]) if header[field][encoding] in _DICTIONARY_ENCODINGS else 0
    return 0


def _longest_value(data: mmap.mmap, page: _Page, codec: str) -> int:
    """Return the bytes of a dictionary's longest value. Four bytes before each value hold its length."""
    raw = data[page.start : page.end]
    if codec != "UNCOMPRESSED":
        name = {"lz4": "lz4_raw"}.get(codec.lower(), codec.lower())
        raw = pa.decompress(raw, page.header[_UNPACKED_SIZE], name, asbytes=True)
    longest = at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        longest, at = max(longest, length), at + 4 + length
    return longest


def _read_struct(data: mmap.mmap, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the integers and structs of the thrift struct at `at`, by field; and the offset of its end."""
    if depth > _MAX_DEPTH:
        raise ValueError("structs are nested too deeply")
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at, kind = at + 1, head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _read_integer(data, at)
        found[field], at = _read_value(data, at, kind, depth)
    return found, at + 1


def _read_value(data: mmap.mmap, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false: the kind is the value
        return kind, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _read_integer(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:  # bytes
        length, at = _read_varint(data, at)
        return None, at + length
    if kind == 12:
        return _read_struct(data, at, depth + 1)
    raise ValueError(f"thrift type {kind}, which no page header has")


def _read_integer(data: mmap.mmap, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1, at


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("an integer of more than 10 bytes")
