"""Find the files of a local source: a folder, a file or a glob, with a split after a colon or without."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.images.globs import glob_matcher, split_glob
from moco_accel.images.kinds import IMAGE_SUFFIXES, is_hidden, list_images
from moco_accel.sources.base import Source
from moco_accel.sources.image_choice import choose_images
from moco_accel.sources.shard_sets import (
    check_complete_sets,
    choose_split,
    describe_splits,
    is_split,
    keep_saved_files,
    split_of_folder,
    split_of_shard,
    splits_of_dict,
)
from moco_accel.sources.tile_metadata import METADATA_FILE, details_path

SHARD_SUFFIXES = (".parquet", ".arrow", ".tar")
_COMPRESSED_TAR = re.compile(r".+\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)", re.I)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".tgz", ".tbz", ".tbz2", ".txz")
_WITH_SPLIT = re.compile(r"(?P<path>.+):(?P<split>[\w.-]+)")
_BUILD_FOLDER = ".build"  # moco-data build keeps shards there until all are complete
_MAX_NAMED = 5

Log = Callable[[str], None]


@dataclass(frozen=True)
class LocalFiles:
    """Files `names` below `folder`, all of one kind: a suffix of shards, or "images"."""

    folder: Path
    names: list[str]
    kind: str

    @property
    def paths(self) -> list[Path]:
        """Return the files' paths."""
        return [self.folder / name for name in self.names]


def find_local_files(source: Source, split: str | None, log: Log) -> LocalFiles | None:
    """Return the files of a local source; None if there are none. `log` receives a line about files left out.

    Args:
        split: Split to read; None for the only one. One after a colon in the source comes first.

    Raises:
        UserError: If the files are incomplete, or of several kinds or splits.
    """
    is_own = False
    if not Path(source.path).exists() and (found := _WITH_SPLIT.fullmatch(source.path)):
        base = Source(found["path"], source.field)
        if Path(base.path).exists() or glob.has_magic(base.path):
            source, split, is_own = base, found["split"], True
    return _Finder(source, split, is_own, log).find(Path(source.path))


@dataclass(frozen=True)
class _Finder:
    """How to read a source; `is_own_split` if the split is part of its name, and must be there."""

    source: Source
    split: str | None
    is_own_split: bool
    log: Log

    def find(self, path: Path) -> LocalFiles | None:
        if path.is_dir():
            return self._in_folder(path)
        if path.is_file():
            if not _is_supported(path):
                return None
            return LocalFiles(path.parent, [path.name], _kind_of([path], self.source))
        folder, files = _matching_files(self.source.path, self.log)
        supported = [file for file in files if _is_supported(file)]
        for searched in {file.parent for file in supported} or _searched_folders(self.source.path):
            _refuse_unfinished_build(searched, self.source)
        if not supported:
            return None
        kind = _kind_of(supported, self.source)
        if kind == ".arrow":
            supported = keep_saved_files(supported, self.source, self.log)
        names = [str(file.relative_to(folder)) for file in supported]
        if kind == "images":
            return self._split_of_images(folder, names, all_glob=None)
        return LocalFiles(folder, self._split_of_shards(names, None), kind)

    def _in_folder(self, folder: Path) -> LocalFiles | None:
        _refuse_unfinished_build(folder, self.source)
        if splits := splits_of_dict(folder, self.source):
            return self._in_folder_of_split(folder, splits)
        files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file, folder))
        if arrow := [file for file in files if file.suffix.lower() == ".arrow"]:
            kept = keep_saved_files(arrow, self.source, self.log)
            files = [*(file for file in files if file not in set(arrow)), *kept]
        kinds = sorted({file.suffix.lower() for file in files} & set(SHARD_SUFFIXES))
        if len(kinds) > 1:
            glob_of_kind = str(folder / f"*{kinds[0]}")
            raise UserError(
                f"{self.source} holds {' and '.join(kinds)} files; {self.source.field}={glob_of_kind!r} works"
            )
        shards = [file for file in files if kinds and file.suffix.lower() == kinds[0]]
        if not shards or kinds == [".tar"]:
            refuse_compressed(files, self.source)
        if not shards:
            return self._in_subfolders(folder)
        self._log_others(folder, files, kinds[0])
        names = self._split_of_shards([file.name for file in shards], str(folder / f"*{kinds[0]}"))
        check_complete_sets([folder / name for name in names], self.source)
        return LocalFiles(folder, names, kinds[0])

    def _in_subfolders(self, folder: Path) -> LocalFiles | None:
        """Return the shards in the subfolder of the split, or all images below the folder."""
        with_shards = _folders_with_shards(folder)
        splits = [path.name for path in with_shards if split_of_folder(path.name)]
        if self.split and splits:
            return self._in_folder_of_split(folder, splits)
        _suggest(with_shards, self.source)
        names = list_images(folder, IMAGE_SUFFIXES, self.log)
        return self._split_of_images(folder, names, str(folder / "**/*")) if names else None

    def _in_folder_of_split(self, folder: Path, splits: list[str]) -> LocalFiles | None:
        chosen = choose_split(splits, self.split, self.source, None, "folder")
        self._log_left_out(Counter(splits), chosen, "folder")
        name = next(name for name in splits if name.lower() == chosen.lower())
        return _Finder(self.source, None, False, self.log).find(folder / name)

    def _split_of_shards(self, names: list[str], all_glob: str | None) -> list[str]:
        """Return the shards of the split; all of them if no name tells a split."""
        splits = [split_of_shard(name) for name in names]
        return self._choose(names, splits, all_glob, "shard")

    def _split_of_images(self, folder: Path, names: list[str], all_glob: str | None) -> LocalFiles:
        """Return the images of the split, if their folders tell splits: several, or one above every image."""
        splits = [split_of_folder(os.path.dirname(name)) for name in names]  # noqa: PTH120 - a million times
        if "" in splits and len(set(splits)) < 3:  # one folder may have such a name by chance
            splits = [""] * len(names)
        chosen = self._choose(names, splits, all_glob, "image")
        if len(chosen) < len(names):  # classes are the folders below the split's
            parts = chosen[0].split("/")
            above = next(n for n, part in enumerate(parts, start=1) if split_of_folder(part.lower()))
            prefix = "/".join(parts[:above]) + "/"
            if all(name.startswith(prefix) for name in chosen):
                folder, chosen = folder / prefix, [name.removeprefix(prefix) for name in chosen]
        return LocalFiles(folder, choose_images(folder, chosen, self.source, self.log), "images")

    def _choose(self, names: list[str], splits: list[str], all_glob: str | None, unit: str) -> list[str]:
        counts = Counter(splits)
        if set(splits) == {""} and not self.is_own_split:
            if self.split and not is_split("train", self.split):
                self.log(f"{self.source}: no name tells a split; data.split={self.split!r} leaves nothing out")
            return names
        if self.split is None and all_glob is None and len(counts) > 1:  # a glob may take all
            self.log(f"{self.source}: all of {describe_splits(counts, unit)}; data.split takes one of them")
            return names
        chosen = choose_split(splits, self.split, self.source, all_glob, unit)
        self._log_left_out(counts, chosen, unit)
        return [name for name, split in zip(names, splits, strict=True) if split == chosen]

    def _log_left_out(self, counts: Counter[str], chosen: str, unit: str) -> None:
        others = Counter({name: count for name, count in counts.items() if name != chosen})
        if others:
            read = describe_splits(Counter({chosen: counts[chosen]}), unit)
            self.log(f"{self.source}: {read}; left out: {describe_splits(others, unit)}")

    def _log_others(self, folder: Path, files: Sequence[Path], kind: str) -> None:
        """Log a line about images and folders with shards beside the shards."""
        images = [file.name for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        below = [str(path.relative_to(folder)) for path in _folders_with_shards(folder, (kind,))]
        for found, what in ((images, "images"), (below, "folders with shards")):
            if found:
                self.log(
                    f"{self.source} is read from {kind}; {len(found):,} {what} beside them are left out, "
                    f"e.g. {found[0]}"
                )


def _searched_folders(source: str) -> set[Path]:
    folder, pattern = split_glob(source)
    if not glob.has_magic(pattern):
        return set()
    inside = pattern.rpartition("/")[0]
    return set(folder.glob(inside)) if inside else {folder}


def _matching_files(source: str, log: Log) -> tuple[Path, list[Path]]:
    """Return the folder that a glob begins with, and the files it matches."""
    folder, pattern = split_glob(source)
    if not glob.has_magic(pattern):
        return folder, []
    if "**" not in pattern.split("/"):
        found = sorted(file for file in folder.glob(pattern) if file.is_file() and not is_hidden(file, folder))
        return folder, found
    # pathlib's ** follows no links, and glob's follows loops
    matches = glob_matcher(pattern)
    names = list_images(folder, (*SHARD_SUFFIXES, *IMAGE_SUFFIXES, *_COMPRESSED), log)
    return folder, [folder / name for name in names if matches(name)]


def _is_supported(file: Path) -> bool:
    supported = file.suffix.lower() in SHARD_SUFFIXES + IMAGE_SUFFIXES or _COMPRESSED_TAR.fullmatch(file.name)
    return bool(supported) and not is_hidden(file, file.parent)


def _kind_of(files: Sequence[Path], source: Source) -> str:
    """Return the one kind of all files."""
    refuse_compressed(files, source)
    kinds = {file.suffix.lower() if file.suffix.lower() in SHARD_SUFFIXES else "images" for file in files}
    if len(kinds) > 1:
        raise UserError(f"{source} is {' and '.join(sorted(kinds))}; files of one kind work, e.g. *.parquet")
    return kinds.pop()


def _refuse_unfinished_build(folder: Path, source: Source) -> None:
    """Refuse the folder of an unfinished moco-data build, unless an earlier build in it is finished."""
    if (folder / _BUILD_FOLDER).is_dir() and not details_path(folder, METADATA_FILE).is_file():
        raise UserError(f"{source} holds an unfinished build; the same moco-data build command resumes it")


def _folders_with_shards(folder: Path, kinds: Sequence[str] = SHARD_SUFFIXES) -> list[Path]:
    found = {file.parent for kind in kinds for file in folder.glob(f"*/*{kind}") if not is_hidden(file, folder)}
    return sorted(found)


def _suggest(folders: list[Path], source: Source) -> None:
    """Refuse a folder whose subfolders hold shards, and name those."""
    if not folders:
        return
    names = ("one of " if folders[1:] else "") + ", ".join(map(str, folders[:_MAX_NAMED]))
    more = f" … {len(folders) - _MAX_NAMED} more" if len(folders) > _MAX_NAMED else ""
    raise UserError(f"{source} has no tiles of its own; did you mean {names}{more}?")


def refuse_compressed(files: Sequence[Path], source: Source) -> None:
    """Raise UserError if one of `files` is a compressed tar; the message has the command that unpacks it."""
    tool = {"gz": "gunzip", "tgz": "gunzip", "xz": "unxz", "txz": "unxz", "zst": "unzstd"}
    for file in files:
        if _COMPRESSED_TAR.fullmatch(file.name):
            raise UserError(
                f"{source.field}: {str(file)!r} is compressed and has no random access; "
                f"{tool.get(file.suffix.lower()[1:], 'bunzip2')} {file} makes a .tar that works"
            )
