"""A folder's manifest: every file's size and checksum, so that a bit flipped or a byte missing is found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from moco_accel.common.atomic_files import ordinary_size, read_ordinary, strict_json, sync

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 1 << 16
_CHUNK = 1 << 22

Manifest = dict[str, tuple[str, int]]
"""Each file's sha256 and bytes."""


class DamagedError(Exception):
    """What is wrong with a checkpoint, in one line."""


def write_hashed(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[str, int]:
    """Write and sync a file; its checksum is that of what was meant to be written."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), size


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last of a folder's files."""
    files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in manifest.items()}
    write_hashed(folder / MANIFEST, [json.dumps({"files": files}, indent=1).encode()])
    sync(folder)


def read_manifest(folder: Path, names: Collection[str]) -> Manifest:
    """The manifest of a folder that holds ordinary files of these `names`, in their sizes, and nothing else.

    Hidden files are nobody's business. Raises DamagedError.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise DamagedError("it is no folder")
    try:
        expected = {MANIFEST, *names}
        found = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".") or entry.name in expected}
        if missing := sorted(expected - found):
            raise DamagedError(f"it has no {missing[0]}")
        if more := sorted(found - expected):
            raise DamagedError(f"it holds {more[0][:80]!r}, which no checkpoint has")
        content = strict_json(read_ordinary(folder / MANIFEST, _MAX_MANIFEST_BYTES), MANIFEST)
        files = content.get("files") if isinstance(content, dict) else None
        if not (isinstance(files, dict) and set(files) == set(names)):
            raise DamagedError(f"{MANIFEST} does not list its files")
        manifest = {name: _entry(files[name], name) for name in names}
        for name, (_, size) in manifest.items():
            if (actual := ordinary_size(folder / name)) != size:
                raise DamagedError(f"{name} has {actual} bytes in place of {size}")
    except (OSError, ValueError) as error:
        raise DamagedError(str(error)) from None
    return manifest


def read_checked(folder: Path, name: str, manifest: Manifest, limit: int) -> bytes:
    """A small file's content, which has the manifest's checksum. Raises DamagedError."""
    try:
        content = read_ordinary(folder / name, limit)
    except (OSError, ValueError) as error:
        raise DamagedError(str(error)) from None
    if hashlib.sha256(content).hexdigest() != manifest[name][0]:
        raise DamagedError(f"{name} differs from its checksum")
    return content


def check_hashes(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Read these files from the disk itself, where that can be had, and compare checksums. Raises DamagedError."""
    for name in names:
        digest = hashlib.sha256()
        try:
            with (folder / name).open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # what has been synced is then read again
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from None
        if digest.hexdigest() != manifest[name][0]:
            raise DamagedError(f"{name} differs from its checksum")


def _entry(entry: object, name: str) -> tuple[str, int]:
    if not (isinstance(entry, dict) and set(entry) == {"sha256", "bytes"}):
        raise DamagedError(f"{MANIFEST} says nothing of {name}")
    digest, size = entry["sha256"], entry["bytes"]
    if not (isinstance(digest, str) and type(size) is int and size >= 0):
        raise DamagedError(f"{MANIFEST} says no size and checksum of {name}")
    return digest, size
