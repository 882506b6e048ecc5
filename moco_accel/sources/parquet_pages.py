"""Page headers of parquet shards, read before arrow is: it takes room for what they say, whatever the footer says.

A page header is a thrift struct in its compact form: https://parquet.apache.org/docs/file-format/data-pages/
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_MOST_PAGES = 1 << 20
_MOST_DEPTH = 8
_MOST_REPEATED = 1 << 30  # bytes that a dictionary's values may become
_SLACK, _SLACK_BYTES = 1.05, 1 << 16
_DICTIONARY_PAGE = 2
_BY_DICTIONARY = (2, 8)  # PLAIN_DICTIONARY, RLE_DICTIONARY
# fields of PageHeader: 1 type, 2 and 3 sizes, 5 and 8 a data page's header, in which 1 is its values, 2 or 4 encoding
_KIND, _UNPACKED, _PACKED = 1, 2, 3
_DATA = {5: 2, 8: 4}


@dataclass(frozen=True)
class _Page:
    header: dict[int, Any]
    start: int
    """Where the header ends and the page begins."""
    end: int


def why_absurd(path: str, group: pq.RowGroupMetaData, columns: Sequence[str] | None = None) -> str | None:
    """What `columns` of a `group` of the file at `path` would unpack to, where the footer says less; else None."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # noqa: PTH123
            chunks = [group.column(number) for number in range(group.num_columns)]
            wanted = [chunk for chunk in chunks if columns is None or chunk.path_in_schema.split(".")[0] in columns]
            return next((reason for chunk in wanted if (reason := _of_column(data, chunk))), None)
    except (IndexError, KeyError, TypeError, ValueError, OSError, struct.error, pa.ArrowException):
        return "cannot be read (headers of its pages)"


def _of_column(data: mmap.mmap, column: pq.ColumnChunkMetaData) -> str | None:
    pages = _pages(data, column)
    unpacked = sum(page.start - page.header[0] + page.header[_UNPACKED] for page in pages)
    said = column.total_uncompressed_size
    if unpacked > _SLACK * said + _SLACK_BYTES:
        return f"says that its column {column.path_in_schema} takes {said} bytes, and its pages {unpacked}"
    dictionary = next((page for page in pages if page.header[_KIND] == _DICTIONARY_PAGE), None)
    if dictionary is None or column.physical_type != "BYTE_ARRAY":
        return None
    repeated = sum(_values_by_dictionary(page.header) for page in pages)
    if repeated * dictionary.header[_UNPACKED] > _MOST_REPEATED:
        repeated *= _longest(data, dictionary, column.compression)
        if repeated > _MOST_REPEATED:
            return f"repeats values of {column.path_in_schema} until they take up to {repeated} bytes"
    return None


def _pages(data: mmap.mmap, column: pq.ColumnChunkMetaData) -> list[_Page]:
    starts = [column.data_page_offset, column.dictionary_page_offset or column.data_page_offset]
    at = min(starts)
    end = at + column.total_compressed_size
    pages: list[_Page] = []
    while at < end:
        header, start = _struct(data, at, 0)
        header[0] = at
        if header[_PACKED] < 0 or header[_UNPACKED] < 0 or len(pages) > _MOST_PAGES:
            raise ValueError("a page of negative size, or a million of them")
        at = start + header[_PACKED]
        pages.append(_Page(header, start, at))
    return pages


def _values_by_dictionary(header: dict[int, Any]) -> int:
    for field, encoding in _DATA.items():
        if field in header:
            return int(header[field][1]) if header[field][encoding] in _BY_DICTIONARY else 0
    return 0


def _longest(data: mmap.mmap, page: _Page, codec: str) -> int:
    """Bytes of the longest value in a dictionary: each has its length before it, in four bytes."""
    raw = data[page.start : page.end]
    if codec != "UNCOMPRESSED":
        name = {"lz4": "lz4_raw"}.get(codec.lower(), codec.lower())
        raw = pa.decompress(raw, page.header[_UNPACKED], name, asbytes=True)
    longest = at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        longest, at = max(longest, length), at + 4 + length
    return longest


def _struct(data: mmap.mmap, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The whole numbers and structs of a thrift struct at `at`, by field; and where it ends."""
    if depth > _MOST_DEPTH:
        raise ValueError("structs without end")
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at, kind = at + 1, head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _number(data, at)
        found[field], at = _value(data, at, kind, depth)
    return found, at + 1


def _value(data: mmap.mmap, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false: the value is in the kind
        return kind, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _number(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:  # bytes
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise ValueError(f"thrift of kind {kind}, which no page header holds")


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number without end")
