"""Find out which kind of source a recipe names, and open it."""

from __future__ import annotations

import glob
import re
import shlex
from pathlib import Path

import datasets
import fsspec  # type: ignore[import-untyped]
import huggingface_hub

from moco_accel.common.errors import UserError, error_reason
from moco_accel.images.kinds import IMAGE_SUFFIXES, is_hidden, list_images
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.arrow_store import ArrowStore, open_arrow
from moco_accel.sources.base import Source, Store
from moco_accel.sources.folder_store import FolderStore
from moco_accel.sources.parquet_store import ParquetStore
from moco_accel.sources.tar_store import TarStore
from moco_accel.sources.tile_metadata import METADATA_FILE

_SHARDS = (".parquet", ".arrow", ".tar")
_COMPRESSED_TAR = re.compile(r".+\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)", re.I)
_BRACES = re.compile(r"\{[^{}]*(\.\.|,)[^{}]*\}")
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?::(?P<split>[^/:]+))?")
_BUILD_FOLDER = ".build"  # moco-data build keeps shards there until all are complete
_MAX_NAMED = 5
_HUB_TIMEOUT_SECONDS = 15


def open_store(path: str, data: Data, field: str) -> Store:
    """Open a folder, a file, a glob, a URL or a hub id; errors name the recipe field `field`.

    Raises:
        UserError: If the source is missing, incomplete or of an unknown kind.
    """
    source = Source(path, field)
    if _BRACES.search(path) and not Path(path).exists():
        raise UserError(f"{source}: braces are not supported; {field}={_BRACES.sub('*', path)!r} works")
    if "://" in path:
        if not data.streaming:
            raise UserError(f"{source} is a URL, which is read in place: data.streaming=true works, or a local copy")
        return ParquetStore(_list_parquet_urls(source), source, data)
    if found := _find_local(source):
        return _open_local(source, *found, data)
    if (hub := _HUB_ID.fullmatch(path)) and not _is_supported(Path(path)):
        return _open_hub(hub["id"], hub["split"] or data.split, source, data)
    raise _no_tiles(source)


def list_source_files(source: str) -> list[Path]:
    """Return every file of a local source, links resolved; an empty list for other sources."""
    path = Path(source)
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and not is_hidden(file, path)]
    else:
        found = [path] if path.is_file() else _matching_files(source)[1]
    return [file.resolve() for file in found]


def _no_tiles(source: Source) -> UserError:
    target = shlex.quote(source.path) if "*" not in source.path else "data/tiles"
    return UserError(
        f"{source} has no tiles: no parquet, arrow or tar shards, and no images; "
        f"build some: moco-data build YOUR_IMAGES {target}"
    )


def _find_local(source: Source) -> tuple[Path, list[Path]] | None:
    """Return the root folder of a local source and its files; no files stand for all images in the folder."""
    path = Path(source.path)
    if path.is_dir():
        return path, _shards_in(path, source)
    if path.is_file():
        return (path.parent, [path]) if _is_supported(path) else None
    folder, files = _matching_files(source.path)
    supported = [file for file in files if _is_supported(file)]
    for searched in {file.parent for file in supported} or _searched_folders(source.path):
        _refuse_unfinished_build(searched, source)
    return (folder, supported) if supported else None


def _split_glob(source: str) -> tuple[Path, str]:
    """Split a glob into a folder and a pattern. A part that exists under its literal name is no pattern."""
    parts = Path(source).parts
    literal = max(count for count in range(len(parts) + 1) if Path(*parts[:count]).exists())
    return Path(*parts[:literal]), "/".join(parts[literal:])


def _searched_folders(source: str) -> set[Path]:
    folder, pattern = _split_glob(source)
    if not glob.has_magic(pattern):
        return set()
    inside = pattern.rpartition("/")[0]
    return set(folder.glob(inside)) if inside else {folder}


def _matching_files(source: str) -> tuple[Path, list[Path]]:
    """Return the folder that a glob begins with, and the files it matches."""
    folder, pattern = _split_glob(source)
    if not glob.has_magic(pattern):
        return folder, []
    return folder, sorted(file for file in folder.glob(pattern) if file.is_file() and not is_hidden(file, folder))


def _is_supported(file: Path) -> bool:
    supported = file.suffix.lower() in _SHARDS + IMAGE_SUFFIXES or _COMPRESSED_TAR.fullmatch(file.name)
    return bool(supported) and not is_hidden(file, file.parent)


def _refuse_unfinished_build(folder: Path, source: Source) -> None:
    """Refuse the folder of an unfinished moco-data build, unless an earlier build in it is finished."""
    if (folder / _BUILD_FOLDER).is_dir() and not (folder / METADATA_FILE).is_file():
        raise UserError(f"{source} holds an unfinished build; the same moco-data build command resumes it")


def _shards_in(folder: Path, source: Source) -> list[Path]:
    _refuse_unfinished_build(folder, source)
    files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file, folder))
    kinds = sorted({file.suffix.lower() for file in files} & set(_SHARDS))
    if len(kinds) > 1:
        glob_of_kind = str(folder / f"*{kinds[0]}")
        raise UserError(f"{source} holds {' and '.join(kinds)} files; {source.field}={glob_of_kind!r} works")
    shards = [file for file in files if kinds and file.suffix.lower() == kinds[0]]
    if not shards:
        _refuse_compressed(files, source)
        _suggest_subfolders(folder, source)
    return shards


def _suggest_subfolders(folder: Path, source: Source) -> None:
    """Refuse a folder whose subfolders hold shards, and name those."""
    inside = sorted({file.parent for kind in _SHARDS for file in folder.glob(f"[!.]*/[!.]*{kind}")})
    if not inside:
        return
    names = ("one of " if inside[1:] else "") + ", ".join(map(str, inside[:_MAX_NAMED]))
    more = f" … {len(inside) - _MAX_NAMED} more" if len(inside) > _MAX_NAMED else ""
    raise UserError(f"{source} has no tiles of its own; did you mean {names}{more}?")


def _refuse_compressed(files: list[Path], source: Source) -> None:
    tool = {"gz": "gunzip", "tgz": "gunzip", "xz": "unxz", "txz": "unxz", "zst": "unzstd"}
    for file in files:
        if _COMPRESSED_TAR.fullmatch(file.name):
            raise UserError(
                f"{source.field}: {str(file)!r} is compressed and has no random access; "
                f"{tool.get(file.suffix.lower()[1:], 'bunzip2')} {file} makes a .tar that works"
            )


def _open_local(source: Source, folder: Path, files: list[Path], data: Data) -> Store:
    """Open `files`, which must be of one kind; without files, all images in `folder`."""
    _refuse_compressed(files, source)
    kinds = {file.suffix.lower() if file.suffix.lower() in _SHARDS else "images" for file in files} or {"images"}
    if len(kinds) > 1:
        raise UserError(f"{source} is {' and '.join(sorted(kinds))}; files of one kind work, e.g. *.parquet")
    kind = kinds.pop()
    if kind == ".parquet":
        return ParquetStore([str(file) for file in files], source, data)
    if kind == ".arrow":
        return open_arrow(files, source)
    if kind == ".tar":
        return TarStore(files, source)
    names = [str(file.relative_to(folder)) for file in files] or list_images(folder, IMAGE_SUFFIXES)
    if not names:
        raise _no_tiles(source)
    return FolderStore(folder, names, source)


def _list_parquet_urls(source: Source) -> list[str]:
    """Return the parquet files that a URL with wildcards matches, sorted; any URL of fsspec, e.g. hf://, s3://."""
    try:
        filesystem, pattern = fsspec.core.url_to_fs(source.path)
        names = sorted(str(name) for name in filesystem.glob(pattern)) if "*" in pattern else [pattern]
    except Exception as error:  # each file system has its own errors
        raise UserError(f"{source} cannot be listed ({error_reason(error)})") from None
    urls = [filesystem.unstrip_protocol(name) for name in names if name.endswith(".parquet")]
    if not urls:
        folder = source.path.partition("*")[0].rstrip("/")
        raise UserError(f"{source} matches no .parquet files; e.g. {folder}/*.parquet")
    return urls


def _open_hub(name: str, split: str, source: Source, data: Data) -> Store:
    """Open `owner/name` on the hub: cached by `datasets`, or, if streaming, its parquet files read in place."""
    _check_on_hub(name, source)
    try:
        if data.streaming:
            files = datasets.load_dataset_builder(name).config.data_files[split]
        else:
            dataset = datasets.load_dataset(name, split=split)
    except KeyError:
        raise UserError(f"data.split={split!r} is not a split of {name!r}; data.split=train works most often") from None
    except Exception as error:  # of the network, of the hub, or of a dataset's own code
        raise UserError(f"{source} cannot be loaded from the hub ({error_reason(error)})") from None
    if not data.streaming:
        return ArrowStore(dataset, [name], [len(dataset)], None, source)
    if other := next((file for file in files if not str(file).endswith(".parquet")), None):
        raise UserError(f"data.streaming=true reads parquet, and {name!r} holds {other}; data.streaming=false works")
    return ParquetStore([str(file) for file in files], source, data)


def _check_on_hub(name: str, source: Source) -> None:
    """Ask the hub once, with a short timeout: `datasets` retries for half a minute without a network."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_SECONDS)
    except Exception as error:  # of the network or of the hub
        raise UserError(
            f"{source} is no local path, and the hub cannot be reached or lacks it ({error_reason(error)}); "
            f"moco-data build YOUR_IMAGES {name} makes tiles there, HF_HUB_OFFLINE=1 uses an earlier download"
        ) from None
