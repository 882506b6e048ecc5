"""List the files in an uncompressed tar, with the place of their bytes; nothing is unpacked."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from moco_accel.images.kinds import is_hidden_name

_MAX_HEADER_BYTES = 1 << 20  # of a long name or a PAX header


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar.

    Attributes:
        folder: Folders in its name, with the last slash.
        name: Name without folders.
        offset: Place of its bytes in the tar.
        size: Their number.
    """

    folder: str
    name: str
    offset: int
    size: int


def list_tar_members(file: Path) -> list[TarMember]:
    """Return the regular files in a tar that are not hidden.

    Raises:
        tarfile.TarError: If it is compressed or damaged; also OSError, ValueError, OverflowError and RecursionError.
    """
    members = []
    with file.open("rb") as opened, tarfile.open(fileobj=_HeaderReader(opened), mode="r:") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= member.offset:  # type: ignore[attr-defined] # would loop forever
                raise tarfile.ReadError("a member of negative size")
            tar.members = []  # type: ignore[attr-defined] # it would keep all of them
            folder, slash, name = member.name.rpartition("/")
            if member.isreg() and not member.issparse() and not is_hidden_name(member.name):
                members.append(TarMember(folder + slash, name, member.offset_data, member.size))
    return members


class _HeaderReader:
    """A tar file for `tarfile`, which would read a header of any length into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)
