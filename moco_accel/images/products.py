"""Tell two products of the same scenes apart by words in their names: processing levels, units, pixel sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

_WORD = re.compile(
    r"sr|boa|toa|toar|dn|rad|radiance|reflectance|visual|analytic|analyticms|pan|mul|ms|harmoni[sz]ed|udm2?"
    r"|pan-?sharp(?:en(?:ed|ing)?)?|psh?|(?:msi)?l[12][abc]|l[12](?:tp|gt|gs|sp|sr)|\d{1,4}(?:\.\d+)?m",
    re.I,
)
_SEPARATOR = re.compile(r"[/_\- ]")


def products_of(names: Sequence[str]) -> list[str]:
    """Return the product of each image; all empty unless two have one name but for the words of products.

    `MUL/MUL_img1.tif` and `MUL-PanSharpen/MUL-PanSharpen_img1.tif` are two products of img1.
    """
    split = [_split_name(name) for name in names]
    found: dict[str, set[str]] = {}
    for base, product in split:
        found.setdefault(base, set()).add(product)
    if all(len(products) == 1 for products in found.values()):
        return [""] * len(names)
    return [product or "no word of a product" for _, product in split]


def _split_name(name: str) -> tuple[str, str]:
    """Return a file's name without the words of products, and these words in the whole path."""
    path = PurePosixPath(name)
    words = [word for word in _SEPARATOR.split(str(path.with_suffix(""))) if _WORD.fullmatch(word)]
    base = "_".join(word for word in _SEPARATOR.split(path.stem) if not _WORD.fullmatch(word))
    return base, " ".join(dict.fromkeys(words))
