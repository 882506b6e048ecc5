"""Find the files of a local source: a folder, a file or a glob, with a split after a colon or without."""

from __future__ import annotations

import glob
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moco_accel.common.errors import UserError, count_of
from moco_accel.images.globs import glob_matcher, split_glob
from moco_accel.images.image_kinds import images_below
from moco_accel.images.kinds import IMAGE_SUFFIXES, is_hidden, list_images
from moco_accel.images.other_formats import OTHER_SUFFIXES, SIDECAR_SUFFIXES, meaningful_sidecars, reading_command
from moco_accel.images.splits import find_splits, folder_of_split, split_of_folder
from moco_accel.sources.base import Source
from moco_accel.sources.folder_store import find_band_files
from moco_accel.sources.image_choice import ImageChoice, offer_glob
from moco_accel.sources.shard_sets import (
    COMPRESSED_TAR,
    SHARD_SUFFIXES,
    check_complete_sets,
    folders_with_shards,
    keep_saved_files,
    refuse_compressed,
    split_of_shard,
    splits_of_dict,
    suggest_folders,
    without_copies,
)
from moco_accel.sources.split_choice import SplitChoice
from moco_accel.sources.tile_metadata import METADATA_FILE, details_path

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".tgz", ".tbz", ".tbz2", ".txz")
_WITH_SPLIT = re.compile(r"(?P<path>.+):(?P<split>[\w.-]+)")
_BUILD_FOLDER = ".build"  # moco-data build keeps shards there until all are complete

Log = Callable[[str], None]


@dataclass(frozen=True)
class LocalFiles:
    """Files `names` below `folder`, all of one kind: a suffix of shards, or "images".

    Attributes:
        split_choice: The split that remains to be chosen among members of tars.
    """

    folder: Path
    names: list[str]
    kind: str
    split_choice: SplitChoice

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
    return _Finder(SplitChoice(source, split, is_own, log)).find(Path(source.path))


@dataclass(frozen=True)
class _Finder:
    """How to read a source."""

    split_choice: SplitChoice

    @property
    def source(self) -> Source:
        return self.split_choice.source

    @property
    def log(self) -> Log:
        return self.split_choice.log

    def find(self, path: Path) -> LocalFiles | None:
        if path.is_dir():
            return self._in_folder(path)
        if path.is_file():
            if not _is_supported(path):
                return None
            return LocalFiles(path.parent, [path.name], _kind_of([path], self.source), self.split_choice)
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
            return self._choose_images(folder, names, all_images=None)
        return self._split_of_shards(folder, names, kind, None)

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
        names = [file.name for file in shards]
        found = self._split_of_shards(folder, names, kinds[0], str(folder / f"*{kinds[0]}"))
        check_complete_sets(found.paths, self.source)
        return found

    def _in_subfolders(self, folder: Path) -> LocalFiles | None:
        """Return the shards in the subfolder of the split, or all images below the folder."""
        with_shards = folders_with_shards(folder)
        splits = [path.name for path in with_shards if split_of_folder(path.name)]
        if self.split_choice.split and splits:
            return self._in_folder_of_split(folder, splits)
        if with_shards == [folder / "data"]:  # a data set's repository on the hub
            self.log(f"{self.source} is read from its folder data")
            return self._in_folder(with_shards[0])
        suggest_folders(with_shards, self.source)
        found = list_images(folder, (*IMAGE_SUFFIXES, *OTHER_SUFFIXES, *SIDECAR_SUFFIXES), self.log)
        names = [name for name in found if name.lower().endswith(IMAGE_SUFFIXES)]
        if not names:
            return None
        self._log_other_formats(folder, found)
        _refuse_sidecars(folder, [name for name in found if name.endswith(SIDECAR_SUFFIXES)], names, self.source)
        return self._choose_images(folder, names, str(folder / "**/*"))

    def _log_other_formats(self, folder: Path, names: list[str]) -> None:
        others = [name for name in names if name.lower().endswith(OTHER_SUFFIXES) and not name.endswith(".npy")]
        if commands := {name: command for name in others if (command := reading_command(folder / name))}:
            name = min(commands)
            self.log(
                f"{self.source}: {count_of(len(commands), 'file')} of formats that are not read are "
                f"left out, e.g. {name}; {commands[name]}"
            )

    def _in_folder_of_split(self, folder: Path, splits: list[str]) -> LocalFiles | None:
        chosen = self.split_choice.name_of(splits, None, "folder")
        self.split_choice.log_left_out(Counter(splits), chosen, "folder")
        name = next(name for name in splits if name.lower() == chosen.lower())
        return _Finder(SplitChoice(self.source, None, False, self.log)).find(folder / name)

    def _split_of_shards(self, folder: Path, names: list[str], kind: str, all_shards: str | None) -> LocalFiles:
        """Return the shards of the split; all of them if no name tells a split. Copies of others are left out."""
        names = without_copies(folder, names, self.source, self.log)
        splits = [split_of_shard(name) for name in names]
        if not any(splits):
            splits = find_splits(names)
        if kind == ".tar" and not any(splits):
            return LocalFiles(folder, names, kind, self.split_choice)
        chosen = self.split_choice.choose(names, splits, all_shards, "shard")
        return LocalFiles(folder, chosen, kind, replace(self.split_choice, split=None, is_own=False))

    def _choose_images(self, folder: Path, names: list[str], all_images: str | None) -> LocalFiles:
        """Return the images of the split that are tiles."""
        chosen = self.split_choice.choose_images(names, all_images)
        choice = ImageChoice(self.source, self.log, offer_glob(folder, self.source), all_images is None, all_images)
        bands = find_band_files(folder, chosen)
        aside = {chosen[number] for number in (*bands.beside, *bands.coarser)} if bands else set()  # left out later
        images = images_below(folder, [name for name in chosen if name not in aside])
        tiles = sorted([*choice.choose(images, are_tiles=bands is None), *aside])
        if len(chosen) < len(names):  # classes are the folders below the split's
            tops = {folder_of_split(name) for name in tiles}
            if len(tops) == 1 and (top := tops.pop()):
                folder, tiles = folder / top, [name.removeprefix(top + "/") for name in tiles]
        return LocalFiles(folder, tiles, "images", self.split_choice)

    def _log_others(self, folder: Path, files: Sequence[Path], kind: str) -> None:
        """Log a line about images and folders with shards beside the shards."""
        images = [file.name for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        below = [str(path.relative_to(folder)) for path in folders_with_shards(folder, (kind,))]
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
    supported = file.suffix.lower() in SHARD_SUFFIXES + IMAGE_SUFFIXES or COMPRESSED_TAR.fullmatch(file.name)
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


def _refuse_sidecars(folder: Path, sidecars: Sequence[str], images: Sequence[str], source: Source) -> None:
    """Refuse images with masks or descriptions beside them, which only a build reads."""
    if found := meaningful_sidecars(folder, sidecars, images):
        raise UserError(
            f"{source} holds {found[0]}, which says where its image holds no data or what its numbers mean, and which "
            f"is not read in place; moco-data build {shlex.quote(str(folder))} OUT makes tiles that work"
        )
