"""Hostile parquet and Arrow shards, by name: wrong schemas and footers, decompression bombs, corrupted bytes."""

# ruff: noqa: E501, E731 - tables of bytes
from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.hostile_footers import replace_number, shrink_groups
from support.hostile_pictures import SMOOTH, pillow

Sources = dict[str, Callable[[Path], Path]]
GOOD_JPEG = pillow(SMOOTH, "JPEG")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS = 12


def metadata(features: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def image_table(features: Any = None, **columns: Any) -> pa.Table:
    """Return twelve good tiles and further columns; the schema declares `features`, or nothing for "none"."""
    image = pa.array([{"bytes": GOOD_JPEG, "path": None}] * ROWS, IMAGE)
    table = pa.table({"image": image, **columns})
    declared = {"image": {"_type": "Image"}} if features is None else features
    return table.replace_schema_metadata(metadata(declared) if declared != "none" else {})


def mistyped_table(column: pa.Array, feature: Any) -> pa.Table:
    """Return a column `image` that the schema declares as `feature`."""
    return pa.table({"image": column}).replace_schema_metadata(metadata({"image": feature}))


def write_parquet(folder: Path, table: pa.Table, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "part.parquet", **{"row_group_size": 4, **options})
    return folder


def write_arrow(folder: Path, table: pa.Table, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(folder / "part.arrow", table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return folder


def write_modified(folder: Path, write: Callable[[Path], Path], change: Callable[[bytes], bytes]) -> Path:
    """Call `write`, then change the bytes of each file."""
    source = write(folder)
    for file in source.iterdir() if source.is_dir() else [source]:
        file.write_bytes(change(file.read_bytes()))
    return source


def truncate(share: float, raw: bytes) -> bytes:
    return raw[: int(len(raw) * share)]


def corrupt(seed: int, raw: bytes) -> bytes:
    corrupted, draw = bytearray(raw), random.Random(seed)
    low = 0 if seed % 3 else max(0, len(raw) - 1500)  # for a third of the seeds, in the footer
    for _ in range(draw.choice((1, 5, 40))):
        corrupted[draw.randrange(low, len(raw))] = draw.randrange(256)
    return bytes(corrupted)


BOMB = pa.array([bytes(300 << 20)] * 2, pa.binary())
MISTYPED_COLUMNS: dict[str, tuple[Callable[[], pa.Array], Any]] = {
    "numbers as images": (lambda: pa.array(range(ROWS)), {"_type": "Image"}),
    "text as images": (lambda: pa.array(["x"] * ROWS), {"_type": "Image"}),
    "lists as images": (lambda: pa.array([[1, 2]] * ROWS), {"_type": "Image"}),
    "floats as bytes": (lambda: pa.array([0.5] * ROWS), {"dtype": "binary", "_type": "Value"}),
    "struct of numbers": (lambda: pa.array([{"bytes": 3, "path": 4}] * ROWS), {"_type": "Image"}),
    "struct without bytes": (lambda: pa.array([{"other": b"x"}] * ROWS), {"_type": "Image"}),
    "struct of lists": (lambda: pa.array([{"bytes": [b"x"], "path": ["y"]}] * ROWS), {"_type": "Image"}),
    "structs of nulls": (lambda: pa.array([{"x": None}] * ROWS), {"_type": "Image"}),
    "nulls": (lambda: pa.nulls(ROWS), {"_type": "Image"}),
    "no bytes, no path": (lambda: pa.array([{"bytes": None, "path": None}] * ROWS, IMAGE), {"_type": "Image"}),
    "junk as images": (lambda: pa.array([{"bytes": b"junk", "path": None}] * ROWS, IMAGE), {"_type": "Image"}),
    "flat list as Array3D": (
        lambda: pa.array([[1, 2, 3]] * ROWS),
        {"_type": "Array3D", "shape": [3, 8, 8], "dtype": "uint8"},
    ),
    "text as Array3D": (lambda: pa.array(["abc"] * ROWS), {"_type": "Array3D", "shape": [3, 8, 8], "dtype": "uint8"}),
    "ragged Array3D": (
        lambda: pa.array([[[[1, 2], [3]], [[4]]]] * ROWS),
        {"_type": "Array3D", "shape": [2, 2, 2], "dtype": "uint8"},
    ),
    "vast Array3D": (
        lambda: pa.array([[[[1]]]] * ROWS),
        {"_type": "Array3D", "shape": [1 << 31, 1 << 31, 3], "dtype": "uint8"},
    ),
    "negative Array3D": (
        lambda: pa.array([[[[1]]]] * ROWS),
        {"_type": "Array3D", "shape": [-1, 8, 8], "dtype": "uint8"},
    ),
    "Array3D of text": (
        lambda: pa.array([[[[1]]]] * ROWS),
        {"_type": "Array3D", "shape": ["a", 8, 8], "dtype": "uint8"},
    ),
    "Array3D of objects": (
        lambda: pa.array([[[[1]]]] * ROWS),
        {"_type": "Array3D", "shape": [3, 8, 8], "dtype": "object"},
    ),
    "numbers as labels": (
        lambda: pa.array([{"bytes": GOOD_JPEG, "path": None}] * ROWS, IMAGE),
        {"_type": "ClassLabel", "names": ["a"]},
    ),
    "an unknown type": (lambda: pa.array([GOOD_JPEG] * ROWS), {"_type": "Pickle"}),
    "a type of Python": (lambda: pa.array([GOOD_JPEG] * ROWS), {"_type": "__class__"}),
    "a list of features": (lambda: pa.array([GOOD_JPEG] * ROWS), ["_type"]),
    "a number of a feature": (lambda: pa.array([GOOD_JPEG] * ROWS), 3),
    "video": (lambda: pa.array([GOOD_JPEG] * ROWS), {"_type": "Video"}),
    "pdf": (lambda: pa.array([GOOD_JPEG] * ROWS), {"_type": "Pdf"}),
    "audio": (lambda: pa.array([GOOD_JPEG] * ROWS), {"_type": "Audio"}),
    "invalid text as images": (lambda: pa.array([b"\xff\xfe"] * ROWS).view(pa.string()), {"_type": "Image"}),
}
PATHS = ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/etc/shadow", "/", "a\0b", "x" * 9000, "http://127.0.0.1:9/x.png",
         "/vsicurl/http://127.0.0.1:9/x.tif", "zip://a::b", "../" * 50 + "etc/passwd", "\n\x1b[31m", ""]  # fmt: skip
SCHEMAS: dict[str, Any] = {
    "no JSON": {b"huggingface": b"{"}, "deep": {b"huggingface": b"[" * 100_000}, "a list": {b"huggingface": b"[]"},
    "null": {b"huggingface": b"null"}, "no features": {b"huggingface": b'{"info": {}}'}, "info is 3": {b"huggingface": b'{"info": 3}'},
    "vast": {b"huggingface": b'{"x": "' + b"y" * (20 << 20) + b'"}'}, "no text": {b"huggingface": b"\xff\xfe"},
    "an extra column": metadata({"image": {"_type": "Image"}, "ghost": {"_type": "Image"}}),
    "other columns": metadata({"ghost\n\x1b[31m": {"_type": "Image"}}),
    "description no JSON": {b"moco_accel": b"{"}, "description deep": {b"moco_accel": b"[" * 100_000}, "description null": {b"moco_accel": b"null"},
    "description of numbers": {b"moco_accel": b'{"bands": 3, "dtype": 4}'}, "description wrong": {b"moco_accel": b'{"bands": ["a"], "dtype": "uint8"}'},
    "description of lists": {b"moco_accel": b'{"bands": [["a"]], "dtype": "uint8"}'}, "description with unknown field": {b"moco_accel": b'{"bands": [], "dtype": "", "x": 1}'},
    "description with line breaks": {b"moco_accel": b'{"bands": ["a\\nb", "c", "d"], "dtype": "uint8"}'},
    "description of text": {b"moco_accel": b'{"bands": ["a", "b", "c"], "dtype": "uint8", "nodata": "x"}'},
}  # fmt: skip


WRITERS = {"parquet": write_parquet, "arrow": write_arrow}


def hostile_shards() -> Sources:
    return _wrong_schemas() | _corrupted() | _bombs() | _odd_tables()


def _wrong_schemas() -> Sources:
    sources: Sources = {}
    for name, (make, feature) in MISTYPED_COLUMNS.items():
        for kind, write in WRITERS.items():
            sources[f"{kind} {name}"] = lambda folder, make=make, feature=feature, write=write: write(
                folder, mistyped_table(make(), feature)
            )
    for path in PATHS:
        column = pa.array([{"bytes": GOOD_JPEG, "path": None}, {"bytes": None, "path": path}] * 6, IMAGE)
        sources[f"parquet path {path[:20]!r}"] = lambda folder, column=column: write_parquet(
            folder, mistyped_table(column, {"_type": "Image"})
        )
    for name, schema in SCHEMAS.items():
        for kind, write in WRITERS.items():
            sources[f"{kind} schema {name}"] = lambda folder, schema=schema, write=write: write(
                folder, image_table().replace_schema_metadata(schema)
            )
    return sources


def _corrupted() -> Sources:
    sources: Sources = {}
    for kind, write in WRITERS.items():
        good = partial(
            lambda folder, write: write(folder, image_table(x=pa.array(["text"] * ROWS), features="none")), write=write
        )
        modified = partial(write_modified, write=good)
        for part in range(20):
            sources[f"{kind} truncated at {part}/20"] = partial(modified, change=partial(truncate, part / 20))
        for seed in range(60):
            sources[f"{kind} corrupted {seed}"] = partial(modified, change=partial(corrupt, seed))
        sources[f"{kind} of nothing"] = partial(modified, change=lambda raw: b"")
        sources[f"{kind} of zeros"] = partial(modified, change=lambda raw: bytes(99_999))
    checked = lambda folder: write_parquet(
        folder, image_table(), write_page_checksum=True, compression="none", use_dictionary=False
    )
    sources["parquet page changed"] = partial(
        write_modified, write=checked, change=lambda raw: raw.replace(GOOD_JPEG[40:60], bytes(20), 3)
    )
    good = lambda folder: write_parquet(folder, image_table())
    for old, new, name in ((4, 400, "rows"), (ROWS, 1 << 30, "all rows"), (4, 1 << 5, "group rows")):
        sources[f"parquet wrong number of {name}"] = partial(
            write_modified, write=good, change=partial(replace_number, old, new)
        )
    sources["arrow wrong offsets"] = partial(
        write_modified,
        write=lambda folder: write_arrow(folder, pa.table({"image": pa.array([GOOD_JPEG] * ROWS)})),
        change=wrong_offsets,
    )
    return sources


def _bombs() -> Sources:
    sources: Sources = {}
    table = pa.table({"image": BOMB})
    for codec in ("zstd", "gzip", "snappy", "brotli", "lz4"):
        bomb = partial(write_parquet, table=table, compression=codec, use_dictionary=False)
        sources[f"parquet {codec} bomb"] = bomb
        sources[f"parquet {codec} bomb with a wrong footer"] = partial(write_modified, write=bomb, change=shrink_groups)
    for codec in ("zstd", "lz4"):
        sources[f"arrow {codec} bomb"] = partial(write_arrow, table=table, compression=codec)
    sources["parquet dictionary bomb"] = write_dictionary_bomb
    sources["parquet bomb of nulls"] = lambda folder: write_parquet(
        folder, pa.table({"image": pa.nulls(5_000_000, pa.binary())}), row_group_size=1 << 30
    )
    return sources


def _odd_tables() -> Sources:
    one = pa.array([GOOD_JPEG])
    dictionary = pa.table({"image": pa.array([GOOD_JPEG] * ROWS).dictionary_encode()})
    same_names = pa.Table.from_arrays([one, one], ["image", "image"])
    columns = pa.table({f"c{n}": pa.array([b"x"]) for n in range(3000)})
    groups = pa.table({"image": pa.array([GOOD_JPEG] + [b""] * 4999)})
    return {
        "parquet of one name": partial(write_parquet, table=same_names),
        "parquet of 3,000 columns": partial(write_parquet, table=columns),
        "parquet deeply nested": partial(write_parquet, table=pa.table({"image": one, "x": nested(60)})),
        "parquet of 5,000 groups": partial(write_parquet, table=groups, row_group_size=1),
        "parquet dictionary": partial(write_parquet, table=dictionary),
        "arrow dictionary": partial(write_arrow, table=dictionary),
    }


def nested(levels: int) -> pa.Array:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return pa.array([value])


def write_dictionary_bomb(folder: Path) -> Path:
    """Repeat ten megabytes of zeros 4,000 times: 40 GB in some kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array([bytes(10 << 20)], pa.binary()))
    return write_parquet(
        folder, pa.table({"image": column}), compression="zstd", dictionary_pagesize_limit=1 << 30, row_group_size=4000
    )


def wrong_offsets(raw: bytes) -> bytes:
    """Move the third offset of a column by gigabytes."""
    length = len(GOOD_JPEG)
    return raw.replace(struct.pack("<iii", 0, length, 2 * length), struct.pack("<iii", 0, length, 1 << 30))
