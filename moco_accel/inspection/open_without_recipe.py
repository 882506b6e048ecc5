"""Open a source of tiles without a recipe."""

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
from moco_accel.recipe.load import explain_validation_error
from moco_accel.tiles.tiles import Tiles, open_tiles

INSPECT_OPTIONS = {
    "split": "--split",
    "image_column": "--image-column",
    "bands": "--bands",
    "stored_bands": "--band-names",
    "nodata": "--nodata",
}
"""Option of `moco-data inspect` by field of a recipe's section `data`."""
_BUFFER_MIB = 1  # one row group is always held, and ascending indices need no more
_FIELD = re.compile(r"""\bdata\.(?P<field>\w+)(?:=(?P<value>\[[^]]*\]|'[^']*'|"[^"]*"|[^\s;,:()]+))?""")


def open_without_recipe(source: str, **data_fields: Any) -> Tiles:
    """Open the tiles of `source`, reading shards in place; only a hub dataset is fetched.

    Args:
        source: As `data.source` of a recipe.
        **data_fields: Fields of a recipe's section `data`.

    Raises:
        UserError: If the source or a field is invalid.
    """
    in_place = is_read_in_place(source)
    try:
        data = Data(source=source, streaming=in_place, shuffle_buffer_mib=_BUFFER_MIB, **data_fields)
    except ValidationError as error:
        raise UserError(f"data.{explain_validation_error(error, Data)}") from None
    return open_tiles(source, data, None, field="SOURCE")


def is_read_in_place(source: str) -> bool:
    """Check whether a source need not be fetched: it is an address, or on this machine."""
    without_split = source.rpartition(":")[0] or source
    return "://" in source or glob.has_magic(source) or Path(source).exists() or Path(without_split).exists()


@contextmanager
def name_options_in_errors(options: dict[str, str] | None) -> Iterator[None]:
    """Replace recipe fields in errors by the command's `options`, or by --set if it is None."""
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
