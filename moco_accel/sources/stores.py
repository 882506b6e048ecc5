"""Where tiles lie: what every kind of source offers, and which kind a recipe's source is."""

from __future__ import annotations

import glob
import re
import shlex
from pathlib import Path

from moco_accel.common.errors import UserError
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import IMAGES, SHARDS, Store
from moco_accel.sources.tile_facts import FACTS_FILE

_SQUEEZED = re.compile(r".+\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)", re.I)
_BRACES = re.compile(r"\{[^{}]*(\.\.|,)[^{}]*\}")
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?::(?P<split>[^/:]+))?")
_BUILDING = ".build"  # where moco-data build keeps shards until all are whole
_MOST_NAMED = 5


def open_store(source: str, data: Data, field: str) -> Store:
    """The store of `source`. Raises UserError, naming `field`, when it is absent, incomplete or of no known kind."""
    if _BRACES.search(source) and not Path(source).exists():
        raise UserError(f"{field}={source!r}: braces are not read; {field}={_BRACES.sub('*', source)!r} works")
    if "://" in source:
        return _open_elsewhere(source, data, field)
    if found := _local(source, field):
        return _open_local(source, *found, data, field)
    if (hub := _HUB_ID.fullmatch(source)) and not _is_known(Path(source)):
        from moco_accel.sources.hub_store import open_hub

        return open_hub(hub["id"], hub["split"] or data.split, data, field)
    raise UserError(f"{field}={source!r} {_NOTHING}; {_how_to_build(source)}")


_NOTHING = "holds no tiles: no parquet, arrow or tar shards, and no images"


def _how_to_build(source: str) -> str:
    return f"make some: moco-data build YOUR_IMAGES {shlex.quote(source) if '*' not in source else 'data/tiles'}"


def _local(source: str, field: str) -> tuple[Path, list[Path]] | None:
    """The folder that a source on this machine begins with, and its files; none: all images in the folder."""
    path = Path(source)
    if path.is_dir():
        return path, _shards_in(path, source, field)
    if path.is_file():
        return (path.parent, [path]) if _is_known(path) else None
    folder, files = matching_files(source)
    known = [file for file in files if _is_known(file)]
    for place in {file.parent for file in known} or _searched(source):
        _refuse_half_built(place, source, field)
    return (folder, known) if known else None


def _split_glob(source: str) -> tuple[Path, str]:
    """The folder that a glob begins with, and the rest; what exists as it is written is no wildcard."""
    parts = Path(source).parts
    literal = max(place for place in range(len(parts) + 1) if Path(*parts[:place]).exists())
    return Path(*parts[:literal]), "/".join(parts[literal:])


def _searched(source: str) -> set[Path]:
    """The folders that a glob looks for files in."""
    folder, pattern = _split_glob(source)
    if not glob.has_magic(pattern):
        return set()
    inside = pattern.rpartition("/")[0]
    return set(folder.glob(inside)) if inside else {folder}


def matching_files(source: str) -> tuple[Path, list[Path]]:
    """The folder that a glob begins with, and the files it finds."""
    folder, pattern = _split_glob(source)
    if not glob.has_magic(pattern):
        return folder, []
    return folder, sorted(file for file in folder.glob(pattern) if file.is_file() and not _is_hidden(file, folder))


def files_of(source: str) -> list[Path]:
    """Every file of a source on this machine, links followed; none of what lies elsewhere."""
    path = Path(source)
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)]
    else:
        found = [path] if path.is_file() else matching_files(source)[1]
    return [file.resolve() for file in found]


def _is_hidden(file: Path, folder: Path) -> bool:
    """Also in a hidden folder below `folder`, as of an unfinished build."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _is_known(file: Path) -> bool:
    known = file.suffix.lower() in SHARDS + IMAGES or _SQUEEZED.fullmatch(file.name)
    return bool(known) and not file.name.startswith(".")


def _refuse_half_built(folder: Path, source: str, field: str) -> None:
    """Raises UserError for a folder that moco-data build has not finished, nor finished before."""
    if (folder / _BUILDING).is_dir() and not (folder / FACTS_FILE).is_file():
        raise UserError(
            f"{field}={source!r} holds an unfinished build; the same moco-data build command goes on with it"
        )


def _shards_in(folder: Path, source: str, field: str) -> list[Path]:
    _refuse_half_built(folder, source, field)
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    kinds = sorted({file.suffix.lower() for file in files} & set(SHARDS))
    if len(kinds) > 1:
        raise UserError(
            f"{field}={source!r} holds {' and '.join(kinds)} files; {field}={str(folder / ('*' + kinds[0]))!r} works"
        )
    shards = [file for file in files if kinds and file.suffix.lower() == kinds[0]]
    if not shards and (squeezed := [file for file in files if _SQUEEZED.fullmatch(file.name)]):
        _refuse_squeezed(squeezed[0], field)
    if not shards:
        _name_folders_inside(folder, source, field)
    return shards


def _name_folders_inside(folder: Path, source: str, field: str) -> None:
    """Raises UserError when it is these that hold shards."""
    inside = sorted({file.parent for kind in SHARDS for file in folder.glob(f"[!.]*/[!.]*{kind}")})
    if not inside:
        return
    names = ("one of " if inside[1:] else "") + ", ".join(map(str, inside[:_MOST_NAMED]))
    more = f" … {len(inside) - _MOST_NAMED} more" if len(inside) > _MOST_NAMED else ""
    raise UserError(f"{field}={source!r} holds no tiles of its own; did you mean {names}{more}?")


def _refuse_squeezed(file: Path, field: str) -> None:
    tool = {"gz": "gunzip", "tgz": "gunzip", "xz": "unxz", "txz": "unxz", "zst": "unzstd"}
    raise UserError(
        f"{field}: {str(file)!r} is compressed, and can't be read at random; "
        f"{tool.get(file.suffix.lower()[1:], 'bunzip2')} {file} makes a .tar that can"
    )


def _open_local(source: str, folder: Path, files: list[Path], data: Data, field: str) -> Store:
    """`files` of one kind; none stands for all images in `folder`."""
    for file in files:
        if _SQUEEZED.fullmatch(file.name):
            _refuse_squeezed(file, field)
    kinds = {file.suffix.lower() if file.suffix.lower() in SHARDS else "images" for file in files} or {"images"}
    if len(kinds) > 1:
        raise UserError(f"{field}={source!r} is {' and '.join(sorted(kinds))}; files of one kind work, e.g. *.parquet")
    kind = kinds.pop()
    if kind == ".parquet":
        from moco_accel.sources.parquet_store import open_parquet

        return open_parquet([str(file) for file in files], source, data, field)
    if kind == ".arrow":
        from moco_accel.sources.arrow_store import open_arrow

        return open_arrow(files, source, field)
    if kind == ".tar":
        from moco_accel.sources.tar_store import open_tar

        return open_tar(files, source, field)
    from moco_accel.sources.folder_store import open_folder

    store = open_folder(folder, files or None, source, field)
    if store is None:
        raise UserError(f"{field}={source!r} {_NOTHING}; {_how_to_build(source)}")
    return store


def _open_elsewhere(source: str, data: Data, field: str) -> Store:
    """Parquet shards behind any address that fsspec knows, e.g. hf://, s3://, https://."""
    from moco_accel.sources.hub_store import parquet_addresses
    from moco_accel.sources.parquet_store import open_parquet

    if not data.streaming:
        raise UserError(
            f"{field}={source!r} is an address, which is read in place: data.streaming=true works, or a copy of it here"
        )
    return open_parquet(parquet_addresses(source, field), source, data, field)
