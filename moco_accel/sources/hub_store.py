"""Tiles of the Hugging Face hub, and parquet shards behind an address."""

from __future__ import annotations

import datasets
import fsspec  # type: ignore[import-untyped]

from moco_accel.common.errors import UserError
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.arrow_files import one_line
from moco_accel.sources.arrow_store import ArrowStore
from moco_accel.sources.base import Store
from moco_accel.sources.parquet_store import open_parquet

_SECONDS = 15


def open_hub(name: str, split: str, data: Data, field: str) -> Store:
    """`owner/name` on the hub: downloaded and cached by `datasets`, or, streaming, its parquet files read in place.

    Raises UserError, one line, also when there is no network; then HF_HUB_OFFLINE=1 uses what was downloaded before.
    """
    _look_up(name, field)
    try:
        if data.streaming:
            files = datasets.load_dataset_builder(name).config.data_files[split]
        else:
            dataset = datasets.load_dataset(name, split=split)
    except KeyError:
        raise UserError(f"data.split={split!r} is not a split of {name!r}; data.split=train works most often") from None
    except Exception as error:  # of the network, the hub, a dataset's own making: all are the user's to see in one line
        raise UserError(f"{field}={name!r} cannot be had from the hub ({one_line(error)})") from None
    if not data.streaming:
        return ArrowStore(dataset, [name], [len(dataset)], None)
    if other := next((file for file in files if not str(file).endswith(".parquet")), None):
        raise UserError(f"data.streaming=true reads parquet, and {name!r} holds {other}; data.streaming=false works")
    return open_parquet([str(file) for file in files], name, data, field)


def _look_up(name: str, field: str) -> None:
    """Ask the hub once, and briefly: `datasets` tries for half a minute before it says that there is no network."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_SECONDS)
    except Exception as error:  # as above
        raise UserError(
            f"{field}={name!r} is no path here, and the hub can't be asked for it or has none ({one_line(error)}); "
            f"moco-data build YOUR_IMAGES {name} makes tiles there, HF_HUB_OFFLINE=1 uses an earlier download"
        ) from None


def parquet_addresses(source: str, field: str) -> list[str]:
    """The files that an address with wildcards stands for, in order. Raises UserError when there are none."""
    try:
        filesystem, pattern = fsspec.core.url_to_fs(source)
        names = sorted(str(name) for name in filesystem.glob(pattern)) if "*" in pattern else [pattern]
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{field}={source!r} cannot be listed ({one_line(error)})") from None
    addresses = [filesystem.unstrip_protocol(name) for name in names if name.endswith(".parquet")]
    if not addresses:
        raise UserError(
            f"{field}={source!r} finds no .parquet files; e.g. {source.partition('*')[0].rstrip('/')}/*.parquet"
        )
    return addresses
