"""Compare the tiles of a resumed run with those that it trained on, by content: a moved folder holds the same tiles."""

from __future__ import annotations

from collections.abc import Callable

from rich.markup import escape

from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.base import Source
from moco_accel.sources.local_files import find_local_files
from moco_accel.sources.open_source import open_store

_FIELDS = ("source", "split")


def compare_sources(
    recipe: Recipe, before: Recipe, tile_count: int, digest: str, log: Callable[[str], None]
) -> tuple[Recipe, str]:
    """Compare `data.source` and `data.split` of a launch with those of the run `before`, if their spelling differs.

    Args:
        tile_count: Tiles of the run's source.
        digest: Checksum of the run's source (`Tiles.digest`); empty in checkpoints of earlier versions, for which the
            old source is read, where it still exists.

    Returns:
        The recipe `before`, with the new spelling if the tiles are the same; and why they are not, or "".

    Raises:
        UserError: If the new source cannot be opened.
    """
    now, was = ({name: getattr(of.data, name) for name in _FIELDS} for of in (recipe, before))
    if now == was:
        return before, ""
    store = open_store(recipe.data.source, recipe.data, "data.source")
    expected = digest or _digest_of(before)
    if not expected:
        return before, f"{was['source']} is gone, and the run's checkpoint does not describe its tiles"
    if len(store) != tile_count:
        return before, f"it holds {len(store):,} tiles, the run's held {tile_count:,}"
    if store.digest() != expected:
        return before, f"it holds as many tiles as the run's, {tile_count:,}, but in other files"
    log(f"data.source={escape(repr(now['source']))} holds the tiles of the run's {escape(repr(was['source']))}")
    return before.model_copy(update={"data": before.data.model_copy(update=now)}), ""


def _digest_of(recipe: Recipe) -> str:
    """Return the checksum of a recipe's source; "" if it is not on this machine, or cannot be opened."""
    source = Source(recipe.data.source, "data.source")
    try:
        is_local = find_local_files(source, recipe.data.split, lambda line: None) is not None
        return open_store(source.path, recipe.data, source.field).digest() if is_local else ""
    except UserError:
        return ""
