"""Open a source to look at it: nothing is known of it yet but where it is."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moco_accel.common.errors import UserError
from moco_accel.recipe.data_sections import Data
from moco_accel.recipe.load import explain
from moco_accel.tiles.tiles import Tiles, open_tiles

INSPECT_OPTIONS = {
    "split": "--split",
    "image_column": "--image-column",
    "bands": "--bands",
    "stored_bands": "--band-names",
    "nodata": "--nodata",
}
"""What `moco-data inspect` has in place of fields of a recipe's section `data`."""
_BUFFER_MIB = 1  # one row group is held at least; more need not be, for tiles are read in ascending order
_FIELD = re.compile(r"""\bdata\.(?P<field>\w+)(?:=(?P<value>\[[^]]*\]|'[^']*'|"[^"]*"|[^\s;,:()]+))?""")


def open_unknown(source: str, **said: Any) -> Tiles:
    """The tiles of `source` as they are stored, or as fields of a recipe's section `data` say. Raises UserError.

    Shards are read in place: looking at a thousand tiles is no reason to prepare a cache of all. A hub id is fetched.
    """
    in_place = is_read_in_place(source)
    try:
        data = Data(source=source, streaming=in_place, shuffle_buffer_mib=_BUFFER_MIB, **said)
    except ValidationError as error:
        raise UserError(f"data.{explain(error, Data)}") from None
    return open_tiles(source, data, None, field="SOURCE")


def is_read_in_place(source: str) -> bool:
    """Whether there is no need to fetch it: an address, or what is on this machine."""
    return "://" in source or glob.has_magic(source) or Path(source).exists()


@contextmanager
def naming_options(options: dict[str, str] | None) -> Iterator[None]:
    """Errors within name a command's options, not the fields of a recipe that they fill; None: they are --set's."""
    try:
        yield
    except UserError as error:
        raise UserError(_FIELD.sub(lambda found: _as_option(found, options), str(error))) from None


def _as_option(found: re.Match[str], options: dict[str, str] | None) -> str:
    field, value = found["field"], found["value"]
    if field == "source":
        return found[0].replace("data.source", "SOURCE")
    if options is None:
        return found[0] if value in (None, "null") else f"--set {shlex.quote(f'data.{field}={_plain(value)}')}"
    if field not in options:
        return found[0]
    option = options[field]
    if value in (None, "null"):
        return f"no {option}" if value else option
    return f"{option}={shlex.quote(_plain(value).strip('[]').replace(', ', ','))}"


def _plain(value: str) -> str:
    return value[1:-1] if value[0] in "'\"" else value
