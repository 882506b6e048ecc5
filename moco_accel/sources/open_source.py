"""Find out which kind of source a recipe names, and open it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import datasets
import fsspec  # type: ignore[import-untyped]
import huggingface_hub

from moco_accel.common.console import print_note
from moco_accel.common.errors import UserError, error_reason
from moco_accel.images.kinds import IMAGE_SUFFIXES
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.arrow_store import ArrowStore, open_arrow
from moco_accel.sources.base import Source, Store
from moco_accel.sources.folder_store import FolderStore
from moco_accel.sources.local_files import LocalFiles, find_local_files
from moco_accel.sources.parquet_store import ParquetStore
from moco_accel.sources.shard_sets import SHARD_SUFFIXES
from moco_accel.sources.tar_store import TarStore

_BRACES = re.compile(r"\{[^{}]*(\.\.|,)[^{}]*\}")
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?::(?P<split>[^/:]+))?")
_SUFFIXES = (*SHARD_SUFFIXES, *IMAGE_SUFFIXES)
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
    if found := find_local_files(source, data.split, print_note):
        return _open_local(source, found, data)
    if (hub := _HUB_ID.fullmatch(path)) and not Path(path).is_dir() and not path.endswith(_SUFFIXES):
        return _open_hub(hub["id"], hub["split"] or data.split or "train", source, data)
    raise _no_tiles(source)


def _no_tiles(source: Source) -> UserError:
    target = shlex.quote(source.path) if "*" not in source.path else "data/tiles"
    return UserError(
        f"{source} has no tiles: no parquet, arrow or tar shards, and no images; "
        f"build some: moco-data build YOUR_IMAGES {target}"
    )


def _open_local(source: Source, found: LocalFiles, data: Data) -> Store:
    paths = found.paths
    if found.kind == ".parquet":
        return ParquetStore([str(path) for path in paths], source, data)
    if found.kind == ".arrow":
        return open_arrow(paths, source)
    if found.kind == ".tar":
        return TarStore(paths, source, found.split_choice)
    return FolderStore(found.folder, found.names, source)


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
