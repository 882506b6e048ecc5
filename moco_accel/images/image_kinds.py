"""Images by name, wherever their bytes lie, and their kinds: images of one kind fit together as tiles."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from moco_accel.common.pixels import Pixels
from moco_accel.images.decoded import ImageFacts
from moco_accel.images.decoding import decode_image, image_facts
from moco_accel.images.gdal import looks_like_mask
from moco_accel.images.headers import DamagedTile, read_file
from moco_accel.images.kinds import image_kind
from moco_accel.images.products import products_of
from moco_accel.recipe.bands import RGB, canonical_band, format_bands

_ASKED_FILES, _ASKED_BYTES = 1000, 1 << 29
_MAX_DECODED_BYTES = 1 << 24  # of a file; larger ones are scenes, whose names are believed
_READ_AS = {"bool": "uint8", "float64": "float32", "float16": "float32"}


@dataclass(frozen=True)
class ImageKind:
    """What images must share to be tiles of one source.

    Attributes:
        bands: Their number, without alpha.
        dtype: NumPy name of the stored type.
        names: Names of the bands; empty if the file has none, and for red, green and blue of 8 bits.
        product: Words in the name by which it differs from another product of the same scene.
    """

    bands: int
    dtype: str
    names: tuple[str, ...] = ()
    product: str = ""

    def has_other_names(self, other: ImageKind) -> bool:
        """Check whether only the names of the bands differ, which no reader of a tile would notice."""
        return (self.bands, self.dtype) == (other.bands, other.dtype) and self.names != other.names

    def __str__(self) -> str:
        if self in (GREY, COLOUR):
            return f"8-bit {'grey' if self == GREY else 'colour'}"
        product = f" ({self.product})" if self.product else ""
        names = f" [{format_bands(self.names)}]" if self.names else ""
        return f"{self.bands} band{'s' * (self.bands > 1)}{names} of {self.dtype}{product}"


GREY, COLOUR = ImageKind(1, "uint8"), ImageKind(3, "uint8")  # pictures of 8 bits


def kind_of_facts(facts: ImageFacts) -> ImageKind | None:
    """Return the kind that an image's header tells; None if it does not tell the number of bands."""
    if not facts.bands or not facts.dtype:
        return None
    bands, dtype = facts.bands - facts.has_alpha, _READ_AS.get(facts.dtype, facts.dtype)
    names = tuple(map(canonical_band, facts.band_names[:bands]))
    if dtype == "uint8" and names in (RGB, ("grey",)):
        names = ()
    return ImageKind(bands, dtype, names)


@dataclass(frozen=True)
class Sample:
    """What was found in a sample of images, by name.

    Attributes:
        digests: Digest of each file's bytes; empty unless all images were read.
    """

    kinds: dict[str, ImageKind]
    digests: dict[str, bytes]

    def copies_among(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of images of the same bytes, the first of `names` and another."""
        first_of: dict[bytes, str] = {}
        known = [name for name in names if name in self.digests]
        pairs = ((first_of.setdefault(self.digests[name], name), name) for name in known)
        return [(first, name) for first, name in pairs if first != name]


@dataclass(frozen=True)
class Images:
    """Images by name.

    Attributes:
        names: Paths relative to what holds them all.
        read: Returns the bytes of a file. Raises DamagedTile, or FileNotFoundError.
    """

    names: Sequence[str]
    read: Callable[[str], bytes]

    def without(self, names: set[str]) -> Images:
        """Return the images that are not among `names`."""
        return replace(self, names=[name for name in self.names if name not in names])

    def pixels(self, name: str) -> Pixels | None:
        """Return pixels [bands, height, width] without alpha; None if they cannot be decoded, or are a whole scene."""
        with suppress(DamagedTile, FileNotFoundError):
            raw = self.read(name)
            return decode_image(raw, keep_alpha=False).pixels if len(raw) <= _MAX_DECODED_BYTES else None
        return None

    def look(self, are_tiles: bool = True) -> Sample:
        """Read up to 1,000 images, spread evenly; those that cannot be read have no kind.

        Args:
            are_tiles: Each image is a tile, and not a band of one.
        """
        found: dict[str, ImageKind] = {}
        digests: dict[str, bytes] = {}
        is_whole, read = len(self.names) <= _ASKED_FILES, 0
        for name in self._sample():
            if read > _ASKED_BYTES:
                is_whole = False
                break
            with suppress(DamagedTile, FileNotFoundError):
                raw = self.read(name)
                read += len(raw)
                if is_whole and raw:
                    digests[name] = hashlib.sha256(raw).digest()
                found[name] = _kind_of(raw)
        return Sample(with_products(found, are_tiles), digests if is_whole else {})

    def _sample(self) -> list[str]:
        """Return up to 1,000 names, spread evenly, in an order whose beginning is spread evenly, too."""
        count = min(len(self.names), _ASKED_FILES)
        chosen = [self.names[number * len(self.names) // count] for number in range(count)]
        random.Random(0).shuffle(chosen)
        return chosen


def with_products(kinds: dict[str, ImageKind], are_tiles: bool = True) -> dict[str, ImageKind]:
    """Return the kinds with the products that the names of images of each kind tell.

    Args:
        are_tiles: Each image is a tile, and not a band of one.
    """
    by_kind: dict[ImageKind, list[str]] = {}
    for name, kind in kinds.items():
        by_kind.setdefault(kind, []).append(name)
    products = {
        name: product
        for kind, names in by_kind.items()
        for name, product in zip(names, products_of(names, are_tiles and kind.bands == 1), strict=True)
    }
    return {name: replace(kind, product=products[name]) for name, kind in kinds.items()}


def images_below(root: Path, names: Sequence[str]) -> Images:
    """Return the images in the files `names` below a folder."""
    return Images(names, lambda name: read_file(root / name))


def _kind_of(raw: bytes) -> ImageKind:
    facts = image_facts(raw)
    kind = kind_of_facts(facts)
    if kind is None:
        pixels = decode_image(raw).pixels
        return ImageKind(len(pixels), _READ_AS.get(pixels.dtype.name, pixels.dtype.name))
    if facts.has_alpha and facts.bands > 1 and image_kind(raw) == "tiff":  # GDAL calls a fourth band so, often infrared
        last = decode_image(raw).pixels[-1]
        return kind if looks_like_mask(last) else replace(kind, bands=facts.bands)
    return kind
