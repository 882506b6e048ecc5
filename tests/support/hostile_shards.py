"""Hostile parquet and arrow shards: columns and footers that lie, bombs, bytes changed. Each name writes one source."""

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
from support.hostile_footers import lie, small_groups
from support.hostile_pictures import SMOOTH, pillow

Sources = dict[str, Callable[[Path], Path]]
GOOD = pillow(SMOOTH, "JPEG")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS = 12


def metadata(features: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def image_table(features: Any = None, **columns: Any) -> pa.Table:
    """Twelve good tiles, and more columns; `features` are what the schema says of them."""
    image = pa.array([{"bytes": GOOD, "path": None}] * ROWS, IMAGE)
    table = pa.table({"image": image, **columns})
    said = {"image": {"_type": "Image"}} if features is None else features
    return table.replace_schema_metadata(metadata(said) if said != "none" else {})


def lying_table(column: pa.Array, feature: Any) -> pa.Table:
    """A column `image` that is said to be `feature`."""
    return pa.table({"image": column}).replace_schema_metadata(metadata({"image": feature}))


def parquet(folder: Path, table: pa.Table, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "part.parquet", **{"row_group_size": 4, **options})
    return folder


def arrow(folder: Path, table: pa.Table, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(folder / "part.arrow", table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return folder


def changed(folder: Path, write: Callable[[Path], Path], change: Callable[[bytes], bytes]) -> Path:
    """What `write` writes, each file's bytes changed."""
    source = write(folder)
    for file in source.iterdir() if source.is_dir() else [source]:
        file.write_bytes(change(file.read_bytes()))
    return source


def cut(share: float, raw: bytes) -> bytes:
    return raw[: int(len(raw) * share)]


def spoil(seed: int, raw: bytes) -> bytes:
    spoilt, draw = bytearray(raw), random.Random(seed)
    low = 0 if seed % 3 else max(0, len(raw) - 1500)  # a third of them where a footer is
    for _ in range(draw.choice((1, 5, 40))):
        spoilt[draw.randrange(low, len(raw))] = draw.randrange(256)
    return bytes(spoilt)


BOMB = pa.array([bytes(300 << 20)] * 2, pa.binary())
LIES: dict[str, tuple[Callable[[], pa.Array], Any]] = {
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
    "bytes that are no image": (lambda: pa.array([{"bytes": b"junk", "path": None}] * ROWS, IMAGE), {"_type": "Image"}),
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
        lambda: pa.array([{"bytes": GOOD, "path": None}] * ROWS, IMAGE),
        {"_type": "ClassLabel", "names": ["a"]},
    ),
    "an unknown type": (lambda: pa.array([GOOD] * ROWS), {"_type": "Pickle"}),
    "a type of Python": (lambda: pa.array([GOOD] * ROWS), {"_type": "__class__"}),
    "a list of features": (lambda: pa.array([GOOD] * ROWS), ["_type"]),
    "a number of a feature": (lambda: pa.array([GOOD] * ROWS), 3),
    "video": (lambda: pa.array([GOOD] * ROWS), {"_type": "Video"}),
    "pdf": (lambda: pa.array([GOOD] * ROWS), {"_type": "Pdf"}),
    "audio": (lambda: pa.array([GOOD] * ROWS), {"_type": "Audio"}),
    "invalid text as images": (lambda: pa.array([b"\xff\xfe"] * ROWS).view(pa.string()), {"_type": "Image"}),
}
PATHS = ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/etc/shadow", "/", "a\0b", "x" * 9000, "http://127.0.0.1:9/x.png",
         "/vsicurl/http://127.0.0.1:9/x.tif", "zip://a::b", "../" * 50 + "etc/passwd", "\n\x1b[31m", ""]  # fmt: skip
SCHEMAS: dict[str, Any] = {
    "no JSON": {b"huggingface": b"{"}, "deep": {b"huggingface": b"[" * 100_000}, "a list": {b"huggingface": b"[]"},
    "null": {b"huggingface": b"null"}, "no features": {b"huggingface": b'{"info": {}}'}, "info is 3": {b"huggingface": b'{"info": 3}'},
    "vast": {b"huggingface": b'{"x": "' + b"y" * (20 << 20) + b'"}'}, "no text": {b"huggingface": b"\xff\xfe"},
    "a column too many": metadata({"image": {"_type": "Image"}, "ghost": {"_type": "Image"}}),
    "other columns": metadata({"ghost\n\x1b[31m": {"_type": "Image"}}),
    "facts no JSON": {b"moco_accel": b"{"}, "facts deep": {b"moco_accel": b"[" * 100_000}, "facts null": {b"moco_accel": b"null"},
    "facts of numbers": {b"moco_accel": b'{"bands": 3, "dtype": 4}'}, "facts wrong": {b"moco_accel": b'{"bands": ["a"], "dtype": "uint8"}'},
    "facts of lists": {b"moco_accel": b'{"bands": [["a"]], "dtype": "uint8"}'}, "facts too many": {b"moco_accel": b'{"bands": [], "dtype": "", "x": 1}'},
    "facts break lines": {b"moco_accel": b'{"bands": ["a\\nb", "c", "d"], "dtype": "uint8"}'},
    "facts of text": {b"moco_accel": b'{"bands": ["a", "b", "c"], "dtype": "uint8", "nodata": "x"}'},
}  # fmt: skip


def shards() -> Sources:
    sources: Sources = {}
    for name, (make, feature) in LIES.items():
        for kind in (parquet, arrow):
            sources[f"{kind.__name__} {name}"] = lambda folder, make=make, feature=feature, kind=kind: kind(
                folder, lying_table(make(), feature)
            )
    for path in PATHS:
        column = pa.array([{"bytes": GOOD, "path": None}, {"bytes": None, "path": path}] * 6, IMAGE)
        sources[f"parquet path {path[:20]!r}"] = lambda folder, column=column: parquet(
            folder, lying_table(column, {"_type": "Image"})
        )
    for name, said in SCHEMAS.items():
        for kind in (parquet, arrow):
            sources[f"{kind.__name__} schema {name}"] = lambda folder, said=said, kind=kind: kind(
                folder, image_table().replace_schema_metadata(said)
            )
    for kind in (parquet, arrow):
        good = partial(
            lambda folder, kind: kind(folder, image_table(x=pa.array(["text"] * ROWS), features="none")), kind=kind
        )
        for part in range(20):
            sources[f"{kind.__name__} cut {part}"] = partial(changed, write=good, change=partial(cut, part / 20))
        for seed in range(60):
            sources[f"{kind.__name__} spoilt {seed}"] = partial(changed, write=good, change=partial(spoil, seed))
        sources[f"{kind.__name__} of nothing"] = partial(changed, write=good, change=lambda raw: b"")
        sources[f"{kind.__name__} of zeros"] = partial(changed, write=good, change=lambda raw: bytes(99_999))
    checked = lambda folder: parquet(
        folder, image_table(), write_page_checksum=True, compression="none", use_dictionary=False
    )
    sources["parquet page changed"] = partial(
        changed, write=checked, change=lambda raw: raw.replace(GOOD[40:60], bytes(20), 3)
    )
    for codec in ("zstd", "gzip", "snappy", "brotli", "lz4"):
        bomb = partial(
            lambda folder, codec: parquet(folder, pa.table({"image": BOMB}), compression=codec, use_dictionary=False),
            codec=codec,
        )
        sources[f"parquet {codec} bomb"] = bomb
        sources[f"parquet {codec} bomb that lies"] = partial(changed, write=bomb, change=small_groups)
    for old, new, name in ((4, 400, "rows"), (ROWS, 1 << 30, "all rows"), (4, 1 << 5, "group rows")):
        good = lambda folder: parquet(folder, image_table())
        sources[f"parquet {name} that lie"] = partial(changed, write=good, change=partial(lie, old, new))
    for codec in ("zstd", "lz4"):
        sources[f"arrow {codec} bomb"] = partial(
            lambda folder, codec: arrow(folder, pa.table({"image": BOMB}), compression=codec), codec=codec
        )
    sources["parquet dictionary bomb"] = dictionary_bomb
    sources["parquet bomb of nulls"] = lambda folder: parquet(
        folder, pa.table({"image": pa.nulls(5_000_000, pa.binary())}), row_group_size=1 << 30
    )
    sources["parquet of one name"] = lambda folder: parquet(
        folder, pa.Table.from_arrays([pa.array([GOOD])] * 2, ["image", "image"])
    )
    sources["parquet of 3,000 columns"] = lambda folder: parquet(
        folder, pa.table({f"c{n}": pa.array([b"x"]) for n in range(3000)})
    )
    sources["parquet deeply nested"] = lambda folder: parquet(
        folder, pa.table({"image": pa.array([GOOD]), "x": nested(60)})
    )
    sources["parquet of 5,000 groups"] = lambda folder: parquet(
        folder, pa.table({"image": pa.array([GOOD] + [b""] * 4999)}), row_group_size=1
    )
    sources["parquet dictionary"] = lambda folder: parquet(
        folder, pa.table({"image": pa.array([GOOD] * ROWS).dictionary_encode()})
    )
    sources["arrow dictionary"] = lambda folder: arrow(
        folder, pa.table({"image": pa.array([GOOD] * ROWS).dictionary_encode()})
    )
    sources["arrow wrong offsets"] = partial(
        changed, write=lambda f: arrow(f, pa.table({"image": pa.array([GOOD] * ROWS)})), change=wrong_offsets
    )
    return sources


def nested(levels: int) -> pa.Array:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return pa.array([value])


def dictionary_bomb(folder: Path) -> Path:
    """Ten megabytes of zeros, 4,000 times: 40 GB in some kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array([bytes(10 << 20)], pa.binary()))
    return parquet(
        folder, pa.table({"image": column}), compression="zstd", dictionary_pagesize_limit=1 << 30, row_group_size=4000
    )


def wrong_offsets(raw: bytes) -> bytes:
    """The third of a column's offsets points gigabytes away."""
    length = len(GOOD)
    return raw.replace(struct.pack("<iii", 0, length, 2 * length), struct.pack("<iii", 0, length, 1 << 30))
