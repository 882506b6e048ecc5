"""Choose the shards that make a set: whole sets of `-of-N` names, and what save_to_disk names."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from moco_accel.common.errors import UserError, error_reason
from moco_accel.images.kinds import is_hidden
from moco_accel.images.splits import is_split_word, split_of_folder
from moco_accel.sources.base import Source

DICT_FILE, STATE_FILE = "dataset_dict.json", "state.json"  # of `datasets`
SHARD_SUFFIXES = (".parquet", ".arrow", ".tar")
COMPRESSED_TAR = re.compile(r".+\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)", re.I)
_SEPARATORS = re.compile(r"[-._ 0-9]+")
# train-00000-of-00002, also with the hash that earlier versions of `datasets` append
_SHARD_NAME = re.compile(r"(?P<stem>.+?)[-_.](?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]{16})?", re.I)
_CACHE_NAME = re.compile(r"cache-.*|tmp.*", re.I)
_MAX_STATE_BYTES = 1 << 26
_COMPARED_BYTES = 1 << 16  # at each end of two shards of one size
_MAX_NAMED = 5

Log = Callable[[str], None]


def split_of_shard(name: str) -> str:
    """Return the word for a split with which a shard's name begins or ends, else that of a folder above it; or ""."""
    path = PurePath(name)
    found = _SHARD_NAME.fullmatch(path.stem)
    words = [word for word in _SEPARATORS.split((found["stem"] if found else path.stem).lower()) if word]
    known = {word for word in (*words[:1], *words[-1:]) if is_split_word(word)}
    return known.pop() if len(known) == 1 else split_of_folder(str(path.parent))


def check_complete_sets(files: Sequence[Path], source: Source) -> None:
    """Check that all shards of each set `NAME-00000-of-000NN` are there, and that each name has one set.

    Raises:
        UserError: If shards are missing, or if shards of an earlier set are left.
    """
    sets: dict[tuple[Path, str], dict[int, set[int]]] = {}
    for file in files:
        if found := _SHARD_NAME.fullmatch(file.stem):
            counts = sets.setdefault((file.parent, found["stem"]), {})
            counts.setdefault(int(found["count"]), set()).add(int(found["number"]))
    for (_, stem), counts in sorted(sets.items()):
        if len(counts) > 1:
            numbers = " and ".join(f"of {count}" for count in sorted(counts))
            glob = str(files[0].parent / f"{stem}-*-of-{max(counts):05d}{files[0].suffix}")
            raise UserError(
                f"{source} holds several sets of shards {stem}-…, {numbers}: an earlier one was left; remove it, or "
                f"{source.field}={glob!r} works"
            )
        for count, numbers_found in counts.items():
            if len(numbers_found) != count:
                raise UserError(
                    f"{source} holds {len(numbers_found)} of {count} shards {stem}-…; rebuild or copy them again"
                )


def without_copies(folder: Path, names: Sequence[str], source: Source, log: Log) -> list[str]:
    """Return the shards below a folder without copies of others, told by size and both ends; `log` names these.

    Shards `-of-N` belong to a set in which each has its place.
    """
    files = [folder / name for name in names]
    sizes = {file: file.stat().st_size for file in files}
    of_size = Counter(sizes.values())
    kept: dict[tuple[int, bytes], Path] = {}
    copies = set()
    for file in sorted(files, key=lambda file: (len(file.name), file.name)):  # a copy's name is longer
        if of_size[size := sizes[file]] == 1:
            continue
        first = kept.setdefault((size, _ends(file, size)), file)
        if first is not file and not _SHARD_NAME.fullmatch(file.stem):
            copies.add(file)
            log(f"{source}: {file.name} is a copy of {first.name} and is left out")
    return [name for name, file in zip(names, files, strict=True) if file not in copies]


def _ends(file: Path, size: int) -> bytes:
    with file.open("rb") as opened:
        beginning = opened.read(_COMPARED_BYTES)
        opened.seek(max(0, size - _COMPARED_BYTES))
        return hashlib.sha256(beginning + opened.read(_COMPARED_BYTES)).digest()


def keep_saved_files(files: Sequence[Path], source: Source, log: Log) -> list[Path]:
    """Return the Arrow files that make a data set, without caches of `datasets` and files of an earlier save.

    A folder's state.json, which save_to_disk writes, names its files, in their order.

    Raises:
        UserError: If a named file is missing, or state.json is damaged.
    """
    kept: list[Path] = []
    for folder in dict.fromkeys(file.parent for file in files):
        inside = [file for file in files if file.parent == folder]
        named = _files_in_state(folder, source)
        if named is None:
            kept += [file for file in inside if not _CACHE_NAME.fullmatch(file.stem)]
        else:
            kept += [folder / name for name in named if folder / name in inside]
    if left := sorted(set(files) - set(kept)):
        log(
            f"{source}: {len(left):,} .arrow files are left out, caches of datasets or files that {STATE_FILE} does "
            f"not name; e.g. {left[0].name}"
        )
    return kept


def _files_in_state(folder: Path, source: Source) -> list[str] | None:
    """Return the file names in a folder's state.json; None without one of `datasets`."""
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    state = _read_json(path, source)
    if "_data_files" not in state:
        return None
    names = _file_names(state["_data_files"], path, source)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{source}: {path} names {len(names)} files, and {len(missing)} of them are missing ({missing[0]}); "
            "copy them again"
        )
    if indices := _file_names(state.get("_indices_files") or state.get("_indices_data_files") or [], path, source):
        data, rows = (f"datasets.Dataset.from_file({str(folder / files[0])!r})" for files in (names, indices))
        raise UserError(
            f"{source}: {path} has an indices mapping ({indices[0]}), which is not read; in Python, "
            f"{data}.select({rows}['indices']).flatten_indices().save_to_disk('flat') makes a folder that works"
        )
    return names


def splits_of_dict(folder: Path, source: Source) -> list[str] | None:
    """Return the splits of a saved DatasetDict, each a subfolder; None for another folder.

    Raises:
        UserError: If its description is damaged.
    """
    path = folder / DICT_FILE
    if not path.is_file():
        return None
    names = _read_json(path, source).get("splits")
    if not isinstance(names, list) or not names or not all(map(_is_plain_name, names)):
        raise UserError(f"{source}: {path} names no splits; save_to_disk of a DatasetDict writes one that works")
    return names


def _read_json(path: Path, source: Source) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_STATE_BYTES))
        if not isinstance(found, dict):
            raise ValueError(f"{type(found).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: {path} is damaged ({error_reason(error)}); save_to_disk writes it again") from None
    return found


def _file_names(entries: object, path: Path, source: Source) -> list[str]:
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in _as_list(entries)]
    if not all(map(_is_plain_name, names)):
        raise UserError(f"{source}: {path} is damaged (its files are no names); save_to_disk writes it again")
    return [str(name) for name in names]


def _as_list(entries: object) -> list[object]:
    return entries if isinstance(entries, list) else [entries]


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and PurePath(name).name == name and "\0" not in name


def folders_with_shards(folder: Path, kinds: Sequence[str] = SHARD_SUFFIXES) -> list[Path]:
    """Return the subfolders that hold shards."""
    found = {file.parent for kind in kinds for file in folder.glob(f"*/*{kind}") if not is_hidden(file, folder)}
    return sorted(found)


def suggest_folders(folders: list[Path], source: Source) -> None:
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
        if COMPRESSED_TAR.fullmatch(file.name):
            raise UserError(
                f"{source.field}: {str(file)!r} is compressed and has no random access; "
                f"{tool.get(file.suffix.lower()[1:], 'bunzip2')} {file} makes a .tar that works"
            )
