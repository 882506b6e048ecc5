"""Hostile tars and folders, by name: wrong sizes and names, links, pipes, endless files, damaged tiles.json files."""

# ruff: noqa: E501 - tables of bytes
from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from support.hostile_shards import GOOD_JPEG, Sources, corrupt, image_table, truncate, write_modified, write_parquet

DESCRIPTIONS: dict[str, bytes] = {
    "empty": b"", "null": b"null", "deep": b"[" * 200_000, "vast": b'{"bands": "' + b"x" * (30 << 20) + b'"}', "no text": b"\xff\xfe\0",
    "statistics short": json.dumps({"bands": ["red", "green", "blue"], "dtype": "uint8", "statistics": {"pixels": [1], "mean": [1], "std": [1],
        "minimum": [1], "maximum": [1], "percentiles": {"1": [1]}, "nodata_share": 0}}).encode(),
    "statistics of text": json.dumps({"bands": ["red", "green", "blue"], "dtype": "uint8", "statistics": {"pixels": "abc", "mean": "abc",
        "std": "abc", "minimum": "abc", "maximum": "abc", "percentiles": {}, "nodata_share": "x"}}).encode(),
    "statistics missing": json.dumps({"bands": ["red", "green", "blue"], "dtype": "uint8", "statistics": {"pixels": [1, 1, 1]}}).encode(),
    "huge number": b'{"bands": ["red", "green", "blue"], "dtype": "uint8", "nodata": 1' + b"0" * 4000 + b"}",
    "vast number": b'{"bands": ["red", "green", "blue"], "dtype": "uint8", "nodata": 1' + b"0" * 9000 + b"}",
    "not a number": b'{"bands": ["red", "green", "blue"], "dtype": "uint8", "nodata": Infinity}',
    "other type": b'{"bands": ["red", "green", "blue"], "dtype": "uint16"}',
}  # fmt: skip

PAX_RECORDS: dict[str, bytes] = {
    "size": b"22 size=99999999999999\n", "negative": b"12 size=-512\n", "path": b"17 path=/etc/x.jpg\n", "long": b"999999999999 path=x\n", "zero": b"0 path=x\n",
    "sparse": b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", "map": b"32 GNU.sparse.map=0,1,99999999,-5\n",
    "sparse size": b"30 GNU.sparse.size=9999999999\n22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", "junk": b"\xff" * 600, "many": b"6 a=b\n" * 90_000,
    "numbers": b"14 mtime=nan\n" + b"10 uid=zz\n", "huge number": b"9" * 5000 + b" path=x\n",
}  # fmt: skip


def write_tar(folder: Path, write: Callable[[tarfile.TarFile], None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "part.tar", "w") as file:
        add_member(file, "0.jpg", GOOD_JPEG)
        write(file)
    return folder


def add_member(file: tarfile.TarFile, name: str, raw: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    for field, value in fields.items():
        setattr(info, field, value)
    file.addfile(info, io.BytesIO(raw))


def write_raw_tar(folder: Path, blocks: Sequence[bytes], length: int = 0) -> Path:
    """Write a good member, then raw headers; `length` extends the file to a sparse one of that size."""
    write_tar(folder, lambda file: None)
    path = folder / "part.tar"
    raw = path.read_bytes()[: 512 + -(-len(GOOD_JPEG) // 512) * 512] + b"".join(blocks)
    path.write_bytes(raw + bytes(1024))
    if length:
        os.truncate(path, length)
    return folder


def header(name: bytes, size: bytes, kind: bytes = b"0", prefix: bytes = b"") -> bytes:
    block = bytearray(
        name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8 + kind
    )
    block += bytes(100) + b"ustar\x0000" + bytes(80) + prefix
    block += bytes(512 - len(block))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")


def pax(records: bytes) -> bytes:
    return header(b"pax", octal(len(records)), b"x") + records.ljust(-(-len(records) // 512) * 512, b"\0")


def add_members(count: int, name: str, file: tarfile.TarFile) -> None:
    for number in range(count):
        add_member(file, name.format(number), GOOD_JPEG if count < 1000 else b"")


def write_image_folder(folder: Path, write: Callable[[Path], Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0.jpg").write_bytes(GOOD_JPEG)
    write(folder)
    return folder


def write_sparse_tiff(length: int, head: bytes, folder: Path) -> None:
    (folder / "1.tif").write_bytes(head)
    os.truncate(folder / "1.tif", length)


def write_sidecars(folder: Path) -> None:
    """Write a small TIFF, and all sidecar files that GDAL would read."""
    from support.hostile_rasters import by_rasterio

    raw = by_rasterio("GTiff", "uint8", 3)
    (folder / "1.tif").write_bytes(raw)
    for name in ("1.tif.aux.xml", "1.tif.ovr", "1.tif.msk", "1.tfw", "1.aux", "1.xml", "1_MTL.txt", "1.rpb"):
        (folder / name).write_bytes(b"<PAMDataset>" * 99_999)


def hostile_tars_and_folders() -> Sources:
    return _tar_members() | _tar_sizes() | _tar_pax() | _tar_files() | _tar_labels() | _descriptions() | _folders()


def _tar_members() -> Sources:
    links = {
        "symlink": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    names = ("/etc/1.jpg", "../../1.jpg", "a/../../1.jpg", ".jpg", "1.", "1\n2.jpg", "x" * 5000 + ".jpg", "\udcff.jpg",
             "a" * 90 + "/" * 90 + ".jpg")  # fmt: skip
    sources: Sources = {}
    for name, kind in links.items():
        member = partial(add_member, name="1.jpg", type=kind, linkname="/etc/passwd")
        sources[f"tar {name}"] = partial(write_tar, write=member)
    for name in names:
        member = partial(add_member, name=name, raw=GOOD_JPEG)
        sources[f"tar name {name[:20]!r}"] = partial(write_tar, write=member)
    return sources


def _tar_sizes() -> Sources:
    sources: Sources = {}
    for size in (1 << 20, 1 << 33, 1 << 40, 1 << 62, 1 << 80):
        for kind in (b"0", b"L", b"K", b"x", b"g", b"S"):
            name = f"tar size {size}" + (f" of {kind.decode()}" if kind != b"0" else "")
            blocks = [header(b"1.jpg", octal(size), kind)]
            sources[name] = partial(write_raw_tar, blocks=blocks)
            if size <= 1 << 40:
                sources[f"sparse {name}"] = partial(write_raw_tar, blocks=blocks, length=size + (1 << 21))
    sizes = {
        "negative": b"\xff" * 12,
        "text": b"nonsense\0\0\0\0",
        "minus": b"-0000000001\0",
        "far back": b"\xff" * 10 + b"\0\0",
    }
    for name, size in sizes.items():
        for kind in (b"0", b"x", b"L", b"S"):
            blocks = [header(b"1.jpg", size, kind)]
            sources[f"tar size {name} of {kind.decode()}"] = partial(write_raw_tar, blocks=blocks)
    sources["tar size of zeros"] = partial(write_raw_tar, blocks=[header(b"1.jpg", bytes(12))])
    return sources


def _tar_pax() -> Sources:
    return {
        f"tar pax {name}": partial(write_raw_tar, blocks=[pax(records), header(b"1.jpg", octal(0))])
        for name, records in PAX_RECORDS.items()
    }


def _tar_files() -> Sources:
    long_name = header(b"@", octal(1), b"L") + bytes(512)
    sources: Sources = {
        "tar of 3,000 long names": partial(write_raw_tar, blocks=[long_name] * 3000),
        "tar of 3,000 pax": partial(write_raw_tar, blocks=[pax(b"6 a=b\n")] * 3000),
        "tar of 20,000 members": partial(write_tar, write=partial(add_members, 20_000, "{}.jpg")),
        "tar of 900 columns": partial(write_tar, write=partial(add_members, 900, "a.{}.jpg")),
    }
    modified = partial(write_modified, write=partial(write_tar, write=partial(add_members, 5, "{}.jpg")))
    for part in range(20):
        sources[f"tar truncated at {part}/20"] = partial(modified, change=partial(truncate, part / 20))
    for seed in range(40):
        sources[f"tar corrupted {seed}"] = partial(modified, change=partial(corrupt, seed))
    return sources


def _tar_labels() -> Sources:
    texts = (b"\xc2\xb2", b"--5", b"9" * 5000, b"{", b"[" * 99_999, b'{"label": NaN}', b'{"label": [1]}',
             b'{"label": 1e999}', b"\xff", b"x" * 200_000)  # fmt: skip
    return {
        f"tar label {text[:9]!r} {kind}": partial(write_tar, write=partial(add_labels, text, kind))
        for text in texts
        for kind in ("cls", "json", "txt")
    }


def add_labels(text: bytes, kind: str, file: tarfile.TarFile) -> None:
    add_member(file, f"0.{kind}", text)
    add_member(file, f"1.{kind}", b"3")
    add_member(file, "1.jpg", GOOD_JPEG)


def _descriptions() -> Sources:
    sources: Sources = {}
    for name, raw in DESCRIPTIONS.items():
        sources[f"description {name}"] = partial(write_image_folder, write=partial(write_description, raw))
        sources[f"description {name} of parquet"] = partial(write_described_parquet, raw)
    return sources


def write_description(raw: bytes, folder: Path) -> None:
    (folder / "tiles.json").write_bytes(raw)


def write_described_parquet(raw: bytes, folder: Path) -> Path:
    write_parquet(folder, image_table())
    write_description(raw, folder)
    return folder


def _folders() -> Sources:
    vrt = b"<VRTDataset rasterXSize='9' rasterYSize='9'/>"
    odd_names = ("a\nb.jpg", "\udcff.jpg", "x" * 200 + ".jpg", "[1].jpg", "*.jpg")
    writes: dict[str, Callable[[Path], Any]] = {
        "pipe": lambda f: os.mkfifo(f / "1.jpg"),
        "of zeros": lambda f: (f / "1.jpg").symlink_to("/dev/zero"),
        "link loop": lambda f: (f / "1.jpg").symlink_to("1.jpg"),
        "link up": lambda f: (f / "up").symlink_to(f),
        "folder": lambda f: (f / "1.jpg").mkdir(),
        "sidecars": write_sidecars,
        "vrt": lambda f: (f / "1.tif").write_bytes(vrt),
        "empty": lambda f: (f / "1.jpg").write_bytes(b""),
        "pipe as description": lambda f: os.mkfifo(f / "tiles.json"),
        "odd names": lambda f: [(f / name).write_bytes(b"x") for name in odd_names],
    }
    heads = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"II+\0",
             b"\x93NUMPY\x02\0\xff\xff\xff\xff")  # fmt: skip
    for head in heads:
        for size, length in (("a terabyte", 1 << 40), ("100 MiB", 100 << 20)):
            writes[f"of {size} {head[:4]!r}"] = partial(write_sparse_tiff, length, head)
    return {f"folder {name}": partial(write_image_folder, write=write) for name, write in writes.items()}
