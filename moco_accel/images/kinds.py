"""Tell which files are images: by suffix, by first bytes, and whether they are hidden."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", *RASTER_SUFFIXES)
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, ".npy")

Kind = Literal["jpeg", "png", "png16", "tiff", "jpeg2000", "npy"]
HEAD_BYTES = 26  # that `image_kind` needs
BIG_TIFF = (b"II+\0", b"MM\0+")
_SIGNATURES: dict[Kind, tuple[bytes, ...]] = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "tiff": (b"II*\0", b"MM\0*", *BIG_TIFF),
    "jpeg2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xffO\xffQ"),  # a JP2 file, and a bare codestream
    "npy": (b"\x93NUMPY",),
}


def image_kind(head: bytes) -> Kind | None:
    """Return the format that a file's first bytes declare, None for any other; "png16" has 16 bits per value."""
    for kind, signatures in _SIGNATURES.items():
        if head.startswith(signatures):
            return "png16" if kind == "png" and head[24:25] == b"\x10" else kind
    return None


def is_hidden(path: Path, root: Path) -> bool:
    """Check whether `path`, or a folder between it and `root`, has a name that starts with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def list_images(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files below `root` that end in `suffixes` and are not hidden, relative to `root` and sorted."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(folder, root)
        images = (name for name in files if name.lower().endswith(suffixes) and not name.startswith("."))
        found += [name if below == "." else f"{below}/{name}" for name in images]
    return sorted(found)
