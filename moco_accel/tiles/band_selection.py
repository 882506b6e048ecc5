"""Select and order the stored bands as the encoder takes them: by name, never by count alone."""

from __future__ import annotations

from dataclasses import dataclass

from moco_accel.common.errors import UserError
from moco_accel.recipe.bands import canonical_bands, offer_bands, picture_bands, select_bands
from moco_accel.recipe.data_sections import Data

_MAX_UNNAMED = 3  # more bands than these need names


@dataclass(frozen=True)
class BandSelection:
    """Bands that tiles yield.

    Attributes:
        names: None if unknown.
        select: Their indices among the stored bands, None for all in stored order.
        declared: Names of all stored bands, if the recipe declares them.
    """

    names: list[str] | None
    select: list[int] | None
    declared: list[str] | None = None


def choose_bands(stored: list[str] | None, count: int, data: Data, num_bands: int | None, source: str) -> BandSelection:
    """Select the bands that the recipe wants.

    Args:
        stored: Names of the stored bands, None if the source has none.
        count: Number of stored bands.
        num_bands: `encoder.bands`; None accepts any number.

    Raises:
        UserError: If the wanted bands are not stored, if bands need names, or if their number is wrong.
    """
    declared = None
    if data.stored_bands is not None:
        stored = declared = _check_declared(canonical_bands(data.stored_bands), stored, count, source)
    if data.bands is not None:
        wanted = canonical_bands(data.bands)
        if num_bands is not None and len(wanted) != num_bands:
            raise UserError(
                f"data.bands=[{', '.join(wanted)}] are {len(wanted)} and encoder.bands={num_bands}; "
                f"encoder.bands={len(wanted)} works"
            )
        if stored is None:
            if len(wanted) != count:
                raise UserError(
                    f"data.bands=[{', '.join(wanted)}] selects bands of {source!r}, whose names are not stored; name "
                    f"all {count}, in their order: {example_band_names(count, 'data.stored_bands=')}"
                )
            return BandSelection(wanted, None)
        select = select_bands(wanted, stored, "data.bands", source)
        return BandSelection(wanted, None if select == list(range(count)) else select, declared)
    if num_bands is not None:
        _check_count(stored, count, num_bands, source)
    return BandSelection(stored, None, declared)


def _check_declared(declared: list[str], stored: list[str] | None, count: int, source: str) -> list[str]:
    """Return `declared`, which must name all bands of a source without names, or repeat the source's names."""
    if stored is not None and stored != declared:
        raise UserError(
            f"data.stored_bands=[{', '.join(declared)}], but the bands of {source!r} have names: "
            f"[{', '.join(stored)}]; data.stored_bands=null works"
        )
    if len(declared) != count:
        raise UserError(
            f"data.stored_bands=[{', '.join(declared)}] names {len(declared)} bands, but the tiles in {source!r} have "
            f"{count}; name all, in their order: {example_band_names(count, 'data.stored_bands=')}"
        )
    return declared


def _check_count(stored: list[str] | None, count: int, num_bands: int, source: str) -> None:
    if needs_band_names(stored, count):
        raise UserError(
            f"data.bands=null, but the tiles in {source!r} have {count} bands, whose names are not stored; name all, "
            f"in their order, and data.bands selects among them: {example_band_names(count, 'data.stored_bands=')}"
        )
    if count == num_bands:
        return
    names = f" [{', '.join(stored)}]" if stored else ""
    fewer = ""
    if not stored and num_bands < count:
        fewer = f", or data.bands selects after all are named: {example_band_names(count, 'data.stored_bands=')}"
    if stored and num_bands < count:
        indices = picture_bands(stored, count) if num_bands == 3 else range(num_bands)
        fewer = f", or data.bands=[{', '.join(stored[index] for index in indices)}]"
    raise UserError(
        f"encoder.bands={num_bands} but the tiles in {source!r} have {count}{names}; encoder.bands={count} works{fewer}"
    )


def needs_band_names(stored: list[str] | None, count: int) -> bool:
    """Return whether training requires names: more than a few unnamed bands cannot be told apart."""
    return stored is None and count > _MAX_UNNAMED


def example_band_names(count: int, field: str = "") -> str:
    """Return every known order of `count` bands as `field` and a list, each with the data that it is of."""
    return offer_bands(count, lambda names: f"{field}[{', '.join(names)}]")
