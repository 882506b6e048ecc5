"""What a decoder returns: stored values, and which of them are marked as no data."""

from __future__ import annotations

from typing import NamedTuple

from moco_accel.common.pixels import Mask, Pixels


class DecodedImage(NamedTuple):
    """One decoded image.

    Attributes:
        pixels: [bands, height, width], of any type in `READABLE_TYPES`. Pictures are not contiguous: their bands are
            innermost.
        nodata: The number that the file declares for no data; None if it declares none.
        valid: Mask [height, width], False where a mask or a transparent alpha hides the pixel; None: nowhere.
    """

    pixels: Pixels
    nodata: float | None = None
    valid: Mask | None = None


class ImageFacts(NamedTuple):
    """What an image's header says about its values.

    Attributes:
        dtype: NumPy name of the stored type.
        nodata: The number that the file declares for no data; None if it declares none.
        scaling: (scale, offset) of each band, if the file has such tags; an empty tuple without them.
        has_alpha: Whether a band or an entry of the colour table is called alpha.
        has_mask: Whether a mask beside the bands marks no data.
        bands: Number of bands with alpha; 0 if the header does not tell.
        band_names: The file's descriptions of its bands; empty if one has none.
        pages: Images of full size in the file; only the first is read.
    """

    dtype: str
    nodata: float | None = None
    scaling: tuple[tuple[float, float], ...] = ()
    has_alpha: bool = False
    has_mask: bool = False
    bands: int = 0
    band_names: tuple[str, ...] = ()
    pages: int = 1
