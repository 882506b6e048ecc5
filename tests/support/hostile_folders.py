"""Hostile tars and folders: sizes and names that lie, links, pipes, files without end, descriptions of tiles."""

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

from support.hostile_shards import GOOD, Sources, changed, cut, image_table, parquet, spoil

FACTS: dict[str, bytes] = {
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


def tar(folder: Path, write: Callable[[tarfile.TarFile], None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "part.tar", "w") as file:
        add(file, "0.jpg", GOOD)
        write(file)
    return folder


def add(file: tarfile.TarFile, name: str, raw: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    for field, value in fields.items():
        setattr(info, field, value)
    file.addfile(info, io.BytesIO(raw))


def raw_tar(folder: Path, blocks: Sequence[bytes], length: int = 0) -> Path:
    """A good member, then headers as they are; `length` makes the file sparse and as long as that."""
    tar(folder, lambda file: None)
    path = folder / "part.tar"
    raw = path.read_bytes()[: 512 + -(-len(GOOD) // 512) * 512] + b"".join(blocks)
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


def many_members(count: int, name: str, file: tarfile.TarFile) -> None:
    for number in range(count):
        add(file, name.format(number), GOOD if count < 1000 else b"")


def loose(folder: Path, write: Callable[[Path], Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0.jpg").write_bytes(GOOD)
    write(folder)
    return folder


def sparse_file(path: Path, length: int, head: bytes = b"") -> None:
    path.write_bytes(head)
    os.truncate(path, length)


def beside(folder: Path) -> None:
    """A small TIFF of bands, and all that GDAL would read beside it."""
    from support.hostile_rasters import by_rasterio

    raw = by_rasterio("GTiff", "uint8", 3)
    (folder / "1.tif").write_bytes(raw)
    for name in ("1.tif.aux.xml", "1.tif.ovr", "1.tif.msk", "1.tfw", "1.aux", "1.xml", "1_MTL.txt", "1.rpb"):
        (folder / name).write_bytes(b"<PAMDataset>" * 99_999)


def tars_and_folders() -> Sources:
    sources: Sources = {}
    links = {
        "symlink": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    for name, kind in links.items():
        sources[f"tar {name}"] = partial(
            tar, write=partial(lambda file, kind: add(file, "1.jpg", type=kind, linkname="/etc/passwd"), kind=kind)
        )
    for name in (
        "/etc/1.jpg",
        "../../1.jpg",
        "a/../../1.jpg",
        ".jpg",
        "1.",
        "1\n2.jpg",
        "x" * 5000 + ".jpg",
        "\udcff.jpg",
        "a" * 90 + "/" * 90 + ".jpg",
    ):
        sources[f"tar name {name[:20]!r}"] = partial(
            tar, write=partial(lambda file, name: add(file, name, GOOD), name=name)
        )
    for size in (1 << 20, 1 << 33, 1 << 40, 1 << 62, 1 << 80):
        sources[f"tar size {size}"] = partial(raw_tar, blocks=[header(b"1.jpg", octal(size))])
        for kind in (b"L", b"K", b"x", b"g", b"S"):
            sources[f"tar size {size} of {kind.decode()}"] = partial(
                raw_tar, blocks=[header(b"1.jpg", octal(size), kind)]
            )
            if size <= 1 << 40:
                sources[f"sparse tar size {size} of {kind.decode()}"] = partial(
                    raw_tar, blocks=[header(b"1.jpg", octal(size), kind)], length=size + (1 << 21)
                )
        if size <= 1 << 40:
            sources[f"sparse tar size {size}"] = partial(
                raw_tar, blocks=[header(b"1.jpg", octal(size))], length=size + (1 << 21)
            )
    for name, size in {
        "negative": b"\xff" * 12,
        "text": b"nonsense\0\0\0\0",
        "minus": b"-0000000001\0",
        "far back": b"\xff" * 10 + b"\0\0",
    }.items():
        for kind in (b"0", b"x", b"L", b"S"):
            sources[f"tar size {name} of {kind.decode()}"] = partial(raw_tar, blocks=[header(b"1.jpg", size, kind)])
    for name, records in {
        "size": b"22 size=99999999999999\n", "negative": b"12 size=-512\n", "path": b"17 path=/etc/x.jpg\n", "long": b"999999999999 path=x\n", "zero": b"0 path=x\n",
        "sparse": b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", "map": b"32 GNU.sparse.map=0,1,99999999,-5\n",
        "sparse size": b"30 GNU.sparse.size=9999999999\n22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", "junk": b"\xff" * 600, "many": b"6 a=b\n" * 90_000,
        "numbers": b"14 mtime=nan\n" + b"10 uid=zz\n", "huge number": b"9" * 5000 + b" path=x\n",
    }.items():  # fmt: skip
        sources[f"tar pax {name}"] = partial(raw_tar, blocks=[pax(records), header(b"1.jpg", octal(0))])
    sources["tar of 3,000 long names"] = partial(raw_tar, blocks=[header(b"@", octal(1), b"L") + bytes(512)] * 3000)
    sources["tar of 3,000 pax"] = partial(raw_tar, blocks=[pax(b"6 a=b\n")] * 3000)
    sources["tar of 20,000 members"] = partial(tar, write=partial(many_members, 20_000, "{}.jpg"))
    sources["tar of 900 columns"] = partial(tar, write=partial(many_members, 900, "a.{}.jpg"))
    for part in range(20):
        sources[f"tar cut {part}"] = partial(
            changed, write=partial(tar, write=partial(many_members, 5, "{}.jpg")), change=partial(cut, part / 20)
        )
    for seed in range(40):
        sources[f"tar spoilt {seed}"] = partial(
            changed, write=partial(tar, write=partial(many_members, 5, "{}.jpg")), change=partial(spoil, seed)
        )
    for text in (
        b"\xc2\xb2",
        b"--5",
        b"9" * 5000,
        b"{",
        b"[" * 99_999,
        b'{"label": NaN}',
        b'{"label": [1]}',
        b'{"label": 1e999}',
        b"\xff",
        b"x" * 200_000,
    ):
        for kind in ("cls", "json", "txt"):
            sources[f"tar label {text[:9]!r} {kind}"] = partial(
                tar,
                write=partial(
                    lambda f, text, kind: (add(f, f"0.{kind}", text), add(f, f"1.{kind}", b"3"), add(f, "1.jpg", GOOD)),
                    text=text,
                    kind=kind,
                ),
            )
    sources["tar size of zeros"] = partial(raw_tar, blocks=[header(b"1.jpg", bytes(12))])
    for name, raw in FACTS.items():
        sources[f"facts {name}"] = partial(
            loose, write=lambda folder, raw=raw: (folder / "tiles.json").write_bytes(raw)
        )
        sources[f"facts {name} of parquet"] = lambda folder, raw=raw: (
            parquet(folder, image_table()),
            (folder / "tiles.json").write_bytes(raw),
            folder,
        )[2]
    sources["folder pipe"] = partial(loose, write=lambda folder: os.mkfifo(folder / "1.jpg"))
    sources["folder of zeros"] = partial(loose, write=lambda folder: (folder / "1.jpg").symlink_to("/dev/zero"))
    sources["folder link loop"] = partial(loose, write=lambda folder: (folder / "1.jpg").symlink_to("1.jpg"))
    sources["folder link up"] = partial(loose, write=lambda folder: (folder / "up").symlink_to(folder))
    sources["folder folder"] = partial(loose, write=lambda folder: (folder / "1.jpg").mkdir())
    for head in (
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0\x08\0\0\0",
        b"II+\0",
        b"\x93NUMPY\x02\0\xff\xff\xff\xff",
    ):
        sources[f"folder of a terabyte {head[:4]!r}"] = partial(
            loose, write=partial(lambda f, head: sparse_file(f / "1.tif", 1 << 40, head), head=head)
        )
        sources[f"folder of 100 MiB {head[:4]!r}"] = partial(
            loose, write=partial(lambda f, head: sparse_file(f / "1.tif", 100 << 20, head), head=head)
        )
    sources["folder sidecars"] = partial(loose, write=beside)
    sources["folder vrt"] = partial(
        loose, write=lambda f: (f / "1.tif").write_bytes(b"<VRTDataset rasterXSize='9' rasterYSize='9'/>")
    )
    sources["folder empty"] = partial(loose, write=lambda f: (f / "1.jpg").write_bytes(b""))
    sources["folder pipe of facts"] = partial(loose, write=lambda f: os.mkfifo(f / "tiles.json"))
    sources["folder odd names"] = partial(
        loose,
        write=lambda f: [
            (f / n).write_bytes(b"x") for n in ("a\nb.jpg", "\udcff.jpg", "x" * 200 + ".jpg", "[1].jpg", "*.jpg")
        ],
    )
    return sources
