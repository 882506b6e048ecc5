"""Tell which files are images, by suffix and by first bytes; find them in a folder, without hidden ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from moco_accel.common.console import print_note

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", *RASTER_SUFFIXES)
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, ".npy")

Kind = Literal["jpeg", "png", "png16", "tiff", "jpeg2000", "npy"]
HEAD_BYTES = 26  # that `image_kind` needs
BIG_TIFF = (b"II+\0", b"MM\0+")
# of macOS archives, Synology, QNAP and Windows: copies and thumbnails, deleted files
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information")
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
    """Check whether a part of `path` below `root` starts with a dot, or is a folder of a system's own files."""
    return is_hidden_name(str(path.relative_to(root)))


def is_hidden_name(path: str) -> bool:
    """Check whether a part of a relative path is hidden."""
    return any(_is_hidden_part(part) for part in path.split("/") if part != ".")  # tar -cf x.tar . names ./a.png


def _is_hidden_part(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name.startswith(".") or name in _SYSTEM_FOLDERS


def list_images(root: Path, suffixes: tuple[str, ...], log: Callable[[str], None] = print_note) -> list[str]:
    """List the files below `root` that end in `suffixes` and are not hidden. Linked folders are followed.

    A link to a folder that holds it is not followed. `log` receives a line about files that are there twice, about
    links that lead nowhere and about folders that cannot be read.

    Returns:
        Paths relative to `root`, sorted.
    """
    walk = _Walk(suffixes)
    walk.read("", os.path.realpath(root), ())
    while links := sorted(walk.links):  # after all real folders: what is there twice does not depend on their order
        walk.links = []
        for name, target, above in links:
            walk.read(name + "/", target, above)
    walk.report(root, log)
    return sorted(walk.found)


class _Walk:
    """Files found so far, and the links to folders that are still to be followed."""

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self._suffixes = suffixes
        self.found: list[str] = []
        self.seen: set[str] = set()  # real paths of folders
        self.links: list[tuple[str, str, tuple[str, ...]]] = []  # name, real path, real paths of the folders above
        self._repeated: list[str] = []
        self._lost: list[str] = []
        self._linked_files: list[tuple[str, str]] = []

    def read(self, prefix: str, folder: str, above: tuple[str, ...]) -> None:
        """Read the real path `folder`, and all folders in it that are no links."""
        waiting = [(prefix, folder, above)]
        while waiting:
            prefix, folder, above = waiting.pop()
            above = (*above, folder)
            try:
                entries = list(os.scandir(folder))
            except OSError:
                self._lost.append(prefix)
                continue
            is_repeated = folder in self.seen
            self.seen.add(folder)
            for entry in entries:
                if _is_hidden_part(entry.name):
                    continue
                name = prefix + entry.name
                if _holds(entry.is_dir):
                    target = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    # links between folders that are read again would be followed in every order
                    if target in above or (is_repeated and entry.is_symlink() and target in self.seen):
                        continue
                    if entry.is_symlink():
                        self.links.append((name, target, above))
                    else:
                        waiting.append((name + "/", target, above))
                elif name.lower().endswith(self._suffixes):
                    self._add_file(name, entry, is_repeated)
                elif entry.is_symlink() and not _holds(entry.is_file):
                    self._lost.append(name)

    def _add_file(self, name: str, entry: os.DirEntry[str], is_repeated: bool) -> None:
        self.found.append(name)
        if is_repeated:
            self._repeated.append(name)
        elif entry.is_symlink():
            self._linked_files.append((name, os.path.realpath(entry.path)))

    def report(self, root: Path, log: Callable[[str], None]) -> None:
        """Log one line about files that are there twice, and one about folders and links that cannot be read."""
        targets: set[str] = set()
        for name, target in self._linked_files:
            folder, _, file = target.rpartition("/")
            is_listed = folder in self.seen and not _is_hidden_part(file) and os.path.exists(target)  # noqa: PTH110
            if target in targets or is_listed:
                self._repeated.append(name)
            targets.add(target)
        if self._repeated:
            log(f"{root}: {len(self._repeated):,} files are there twice, through links; e.g. {min(self._repeated)}")
        if self._lost:
            count = f"{len(self._lost):,} folders or links"
            log(f"{root}: {count} cannot be read or lead nowhere, and are left out; e.g. {min(self._lost)}")


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # a link that leads to itself
        return False
