"""Tell two products of the same scenes apart by words in their names: processing levels, units, pixel sizes, bands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from moco_accel.images.band_files import is_band_name

_WORD = re.compile(
    r"sr|boa|toa|toar|dn|rad|radiance|reflectance|visual|analytic|analyticms|pan|mul|ms|harmoni[sz]ed|udm2?|(?:un)?masked"
    r"|pan-?sharp(?:en(?:ed|ing)?)?|psh?|(?:msi)?l[12][abc]|l[12](?:tp|gt|gs|sp|sr)|\d{1,4}(?:\.\d+)?m",
    re.I,
)
_SEPARATOR = re.compile(r"[/_\- ]")


def products_of(names: Sequence[str], of_one_band: bool = False) -> list[str]:
    """Return the product of each image; all empty unless two have one name but for the words of products.

    `MUL/MUL_img1.tif` and `MUL-PanSharpen/MUL-PanSharpen_img1.tif` are two products of img1.

    Args:
        of_one_band: Names of bands are such words, too: `red/1.tif` and `nir/1.tif` are no tiles of one source.
    """
    split = [_split_name(name, of_one_band) for name in names]
    found: dict[str, set[str]] = {}
    for base, product in split:
        found.setdefault(base, set()).add(product)
    if all(len(products) == 1 for products in found.values()):
        return [""] * len(names)
    return [product or "no word of a product" for _, product in split]


def _split_name(name: str, of_one_band: bool) -> tuple[str, str]:
    """Return a file's name without the words of products, and these words in the whole path."""

    def is_product(word: str) -> bool:
        return _WORD.fullmatch(word) is not None or (of_one_band and is_band_name(word))

    path = PurePosixPath(name)
    words = [word for word in _SEPARATOR.split(str(path.with_suffix(""))) if is_product(word)]
    base = "_".join(word for word in _SEPARATOR.split(path.stem) if not is_product(word))
    return base, " ".join(dict.fromkeys(words))
