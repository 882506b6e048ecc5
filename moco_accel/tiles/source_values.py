"""Decide from a sample of a source's files how the values of all its tiles are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from moco_accel.common.errors import UserError
from moco_accel.common.pixels import Pixels, holds
from moco_accel.images.decoding import decode_image
from moco_accel.images.gdal import looks_like_mask
from moco_accel.images.headers import STORED_TYPES, DamagedTile
from moco_accel.recipe.data_sections import Data
from moco_accel.sources.base import Store
from moco_accel.tiles.ask_files import AskedFile, sample_tiles
from moco_accel.tiles.read_tile import TileColumns, encoded_bytes, read_images
from moco_accel.tiles.stored_values import ValueRules, find_numbers

_DECODED_FILES = 100  # to see what an alpha band hides
_WHOLE_TYPES = ("uint32", "int32", "uint64", "int64")
_MARK_OF = {"uint16": 0.0, "int16": -32768.0}  # where only masks tell


def choose_alpha(
    store: Store, columns: TileColumns, asked: Sequence[AskedFile], data: Data, num_bands: int | None
) -> tuple[bool, list[str]]:
    """Return whether an alpha band is a band like the others, and a line about it.

    Names or a number of bands that include it keep it. A TIFF's alpha that holds many values is kept, too: GDAL calls
    a fourth band so that is often near infrared.
    """
    found = [file for file in asked if file.facts.has_alpha]
    if not found:
        return not asked, []
    names = [*(data.bands or ()), *(data.stored_bands or ())]
    counts = {len(data.bands or ()), len(data.stored_bands or ()), num_bands}
    if "alpha" in names or max(file.facts.bands for file in found) in counts:
        return True, []
    hidden, transparent, soft = _measure_alpha(store, columns, found)
    if soft and not looks_like_mask(np.concatenate(soft)):
        return True, []
    example = f"{len(found)} of {len(asked)} sampled files, such as {(transparent or found)[0].name}"
    what = f"hides {hidden:.2%} of their pixels, which hold no data" if transparent else "hides no pixel of them"
    bands = {2: "[grey, alpha]", 4: "[red, green, blue, alpha]"}.get(found[0].facts.bands)
    field = "data.bands" if found[0].kind.startswith("png") else "data.stored_bands"
    keeps = f"; {field}={bands} encoder.bands={found[0].facts.bands} keeps it" if bands else ""
    return False, [f"{store.source}: the alpha band of {example}, is left out; it {what}{keeps}"]


def _measure_alpha(
    store: Store, columns: TileColumns, files: Sequence[AskedFile]
) -> tuple[float, list[AskedFile], list[Pixels]]:
    """Return the hidden share of pixels, the files that hide some, and the alpha values of TIFFs."""
    hidden = total = 0
    transparent, values = [], []
    step = -(-len(files) // _DECODED_FILES)
    for file in files[::step]:
        with suppress(DamagedTile):
            raw = encoded_bytes(store.values(columns.names, file.index)[0])
            image = decode_image(raw, columns.stored_bands, keep_alpha=False)
            total += image.pixels[0].size
            if image.valid is not None and not image.valid.all():
                hidden += int((~image.valid).sum())
                transparent.append(file)
            whole = decode_image(raw, columns.stored_bands).pixels if file.kind == "tiff" else image.pixels
            if len(whole) > len(image.pixels):
                values.append(whole[-1].ravel())
    return hidden / max(total, 1), transparent, values


def decide_values(
    store: Store, columns: TileColumns, asked: Sequence[AskedFile], data: Data, stored: str, keep_alpha: bool
) -> tuple[ValueRules, list[str]]:
    """Decide how the values of all tiles are read.

    Args:
        stored: Type of the first readable tile, as stored.

    Returns:
        The rules, and lines about what is mapped or cast.

    Raises:
        UserError: If the tiles cannot hold `data.nodata`.
    """
    own = store.metadata.nodata if store.metadata else _most_frequent_number(asked)
    dtype = _choose_dtype(store, columns, stored, own if data.nodata is None else data.nodata)
    lines = [_cast_line(store, stored, dtype)] if stored != dtype else []
    if dtype == "uint8":
        if store.metadata is None:  # numbers mark nothing unless the recipe says so
            own = None
        return ValueRules(
            dtype, _as_stored(own, dtype) if data.nodata is None else data.nodata, False, keep_alpha
        ), lines
    if own is None and any(file.facts.has_mask or (file.facts.has_alpha and not keep_alpha) for file in asked):
        own = _MARK_OF.get(dtype)
    own = _as_stored(own, dtype)
    _check_nodata(data.nodata, own, dtype, store)
    nodata = own if data.nodata is None else _as_stored(data.nodata, dtype)
    if data.nodata is not None and stored in _WHOLE_TYPES and holds(stored, data.nodata):
        nodata = data.nodata  # compared before the cast, which may round it
    rules = ValueRules(dtype, nodata, nodata != own, keep_alpha)
    return rules, lines + _nodata_lines(store, asked, rules, own)


def _check_nodata(nodata: float | None, own: float | None, dtype: str, store: Store) -> None:
    if nodata is None or holds(dtype, nodata):
        return
    limits = np.iinfo(dtype)
    works = own if own is not None else max(limits.min, -9999)
    raise UserError(
        f"data.nodata={nodata:g}, but the tiles in {store.source.path!r} are {dtype}, which holds whole numbers from "
        f"{limits.min} to {limits.max}; data.nodata={works:g} works"
    )


def _most_frequent_number(asked: Sequence[AskedFile]) -> float | None:
    """Return the number that most files declare for no data, of several the smallest; None if none is declared."""
    declared = Counter(file.facts.nodata for file in asked if holds(file.facts.dtype, file.facts.nodata))
    most = max(declared.values(), default=0)
    return min((number for number, count in declared.items() if count == most and number is not None), default=None)


def _as_stored(number: float | None, dtype: str) -> float | None:
    """Return a number as tiles hold it; None for NaN and infinity, which hold no data in any case."""
    if number is None or not np.isfinite(number):
        return None
    if dtype != "float32":
        return float(number)
    return float(np.float32(number)) if holds(dtype, number) else None


def _cast_line(store: Store, stored: str, dtype: str) -> str:
    return f"{store.source}: {stored} values are read as {dtype}; a tile that {dtype} cannot hold is damaged"


def _choose_dtype(store: Store, columns: TileColumns, stored: str, nodata: float | None) -> str:
    """Return the type of the tiles: the stored one, or one that holds all sampled values without loss."""
    if stored in STORED_TYPES:
        return stored
    if stored not in _WHOLE_TYPES:
        return {"bool": "uint8", "int8": "int16"}.get(stored, "float32")
    lowest, highest = (nodata, nodata) if nodata is not None else (np.inf, -np.inf)
    for index in sample_tiles(store):
        with suppress(DamagedTile):
            for image in read_images(store, columns, index, keep_alpha=False):
                if image.pixels.dtype.name not in _WHOLE_TYPES:
                    continue
                empty = find_numbers(image.pixels, {image.nodata})
                values = image.pixels if empty is None else image.pixels[~empty]
                if values.size:
                    lowest, highest = min(lowest, int(values.min())), max(highest, int(values.max()))
    ranges = {name: np.iinfo(name) for name in ("uint16", "int16")}
    holding = [name for name, limits in ranges.items() if limits.min <= lowest and highest <= limits.max]
    return holding[0] if holding else "float32"


def _nodata_lines(store: Store, asked: Sequence[AskedFile], rules: ValueRules, own: float | None) -> list[str]:
    """Return a line if files declare different numbers for no data, or some declare none."""
    by_number: dict[float | None, list[AskedFile]] = {}
    for file in asked:
        number = file.facts.nodata if holds(file.facts.dtype, file.facts.nodata) else None
        if number is not None or not (file.facts.has_mask or (file.facts.has_alpha and not rules.keep_alpha)):
            by_number.setdefault(number, []).append(file)
    if own is None or (len(by_number) < 2 and not rules.is_added):
        return []
    counts = [
        f"{'none' if number is None else f'{number:g}'} in {len(files)} (such as {files[0].name})"
        for number, files in by_number.items()
    ] or [f"{own:g}"]
    line = f"{store.source}: for no data, its {len(asked) or ''} sampled files declare {', '.join(counts)}"
    if rules.is_added:
        return [f"{line}; pixels of data.nodata={rules.nodata:g} hold no data, either"]
    if None in by_number:
        line += f"; files that declare none are read as if they declared {own:g}"
    if rules.dtype != "float32" and len(by_number.keys() - {None}) > 1:
        line += f"; the others' numbers become {own:g}, and their valid pixels of {own:g} move by 1"
    return [line]
