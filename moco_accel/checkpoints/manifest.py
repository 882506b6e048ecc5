"""A checkpoint's manifest: size and SHA-256 of each file, to detect missing bytes and flipped bits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from moco_accel.common.atomic_files import fsync, parse_strict_json, read_regular_file, regular_file_size

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 22

Manifest = dict[str, tuple[str, int]]
"""SHA-256 and size in bytes, by file name."""


class DamagedCheckpointError(Exception):
    """A checkpoint is damaged; the message says how, in one line."""


def write_files(folder: Path, contents: Mapping[str, Iterable[bytes | memoryview]]) -> None:
    """Write and sync files, given as chunks by file name, and then `manifest.json`, which lists them."""
    files = {name: write_with_checksum(folder / name, chunks) for name, chunks in contents.items()}
    write_with_checksum(folder / MANIFEST, [json.dumps({"files": files}, indent=1).encode()])
    fsync(folder)


def write_with_checksum(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, str | int]:
    """Write and sync a file; return SHA-256 and size of `chunks`, which may differ from what the disk holds."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}


def read_manifest(folder: Path, names: Collection[str]) -> Manifest:
    """Read the manifest and compare it with the folder. Hidden files are ignored.

    Raises:
        DamagedCheckpointError: If the folder does not hold exactly the regular files `names` in the listed sizes.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise DamagedCheckpointError("it is not a folder")
    try:
        expected = {MANIFEST, *names}
        found = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".") or entry.name in expected}
        if missing := sorted(expected - found):
            raise DamagedCheckpointError(f"{missing[0]} is missing")
        if unexpected := sorted(found - expected):
            raise DamagedCheckpointError(f"{unexpected[0][:80]!r} is not a file of a checkpoint")
        content = parse_strict_json(read_regular_file(folder / MANIFEST, _MAX_MANIFEST_BYTES), MANIFEST)
        files = content.get("files") if isinstance(content, dict) else None
        if not (isinstance(files, dict) and set(files) == set(names)):
            raise DamagedCheckpointError(f"{MANIFEST} does not list its files")
        manifest = {name: _parse_entry(files[name], name) for name in names}
        for name, (_, size) in manifest.items():
            if (actual := regular_file_size(folder / name)) != size:
                raise DamagedCheckpointError(f"{name} has {actual} bytes in place of {size}")
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(str(error)) from None
    return manifest


def verify_checksums(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Verify the checksums of files, read from the disk rather than the page cache where possible.

    Raises:
        DamagedCheckpointError: If a file cannot be read or differs from its checksum.
    """
    for name in names:
        digest = hashlib.sha256()
        try:
            with (folder / name).open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # drops synced pages from the cache
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise DamagedCheckpointError(f"{name} cannot be read ({error.strerror})") from None
        if digest.hexdigest() != manifest[name][0]:
            raise DamagedCheckpointError(f"{name} differs from its checksum")


def _parse_entry(entry: object, name: str) -> tuple[str, int]:
    if isinstance(entry, dict) and set(entry) == {"sha256", "bytes"}:
        digest, size = entry["sha256"], entry["bytes"]
        if isinstance(digest, str) and type(size) is int and size >= 0:
            return digest, size
    raise DamagedCheckpointError(f"{MANIFEST} has no valid size and checksum for {name}")
