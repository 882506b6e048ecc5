"""Recipe sections `data` and `augment`: the tiles, the meaning of their values, and the two views made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moco_accel.recipe.bands import canonical_band

STORED_RANGES = {"uint8": (0.0, 255.0), "reflectance": (0.0, 10_000.0), "reflectance_offset": (1_000.0, 11_000.0)}
_MAX_BANDS = 1000
Fraction = Annotated[float, Field(ge=0, le=1)]
_LARGEST = float.fromhex("0x1.fffffep127")  # of float32; the number for no data of many elevation models
StoredValue = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
_INFINITE = 2.0**128 - 2.0**103  # from here on, float32 rounds to infinity; files and people round its largest number
NodataValue = Annotated[float, Field(gt=-_INFINITE, lt=_INFINITE)]


class Section(BaseModel):
    """A section of the recipe: immutable, strictly typed, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    """The tiles, their bands, and the range of stored values that becomes the pixel range [0, 1].

    pixel = (stored - low) / (high - low), clipped to [0, 1]. A run fills in each null among `bands`, `nodata`, `low`,
    `high`, `mean` and `std` from the tiles, prints it, and writes it to RUN/recipe.yaml.

    Attributes:
        source: Folder, file or glob (parquet, arrow, tar), folder of images, or hub id.
        split: Split of the source; null: the only one, and `train` of a hub id.
        image_column: Column with the imagery; null: the only column that holds imagery.
        pair_column: Column with the same place in another season, for one of the views; null: both show one tile.
        bands: Names of the bands in the encoder's order; null: all bands in their stored order.
        stored_bands: Names of all bands in their stored order; null: the names that the source gives.
        nodata: Stored value of pixels without data, which become the mean of their band; null: the files' own, which
            counts in any case.
        scaling: Where low and high come from. `uint8`: 0 and 255; `reflectance`: 0 and 10,000 (Sentinel-2);
            `reflectance_offset`: 1,000 and 11,000 (Sentinel-2 from processing baseline 04.00 on); `percentiles`: each
            band's 1st and 99th percentile; `range`: the fields `low` and `high`.
        low: Stored value that becomes 0, one per band; null: as `scaling` says.
        high: Stored value that becomes 1, one per band; null: as `scaling` says.
        mean: Mean of pixels in [0, 1], one per band; null: ImageNet's for three bands, else measured.
        std: Standard deviation of pixels in [0, 1], one per band; null: as for `mean`.
        streaming: Shuffle shards within a buffer, without a cache. Every loader worker reads all shards once per epoch.
        shuffle_buffer_mib: Size of the shuffle buffer in MiB, for each loader worker; used with `streaming`.
        max_damaged_share: Largest fraction of damaged tiles; the run stops above it.
        num_workers: Loader workers of each process; 0: the process loads tiles itself.
    """

    source: str = "data/tiles"
    split: str | None = None
    image_column: str | None = None
    pair_column: str | None = None
    bands: list[str] | None = Field(None, min_length=1, max_length=_MAX_BANDS)
    stored_bands: list[str] | None = Field(None, min_length=1, max_length=_MAX_BANDS)
    nodata: NodataValue | None = None
    scaling: Literal["uint8", "reflectance", "reflectance_offset", "percentiles", "range"] = "uint8"
    low: list[StoredValue] | None = Field(None, max_length=_MAX_BANDS)
    high: list[StoredValue] | None = Field(None, max_length=_MAX_BANDS)
    mean: list[StoredValue] | None = Field(None, max_length=_MAX_BANDS)
    std: list[Annotated[float, Field(ge=0, le=1e12)]] | None = Field(None, max_length=_MAX_BANDS)
    streaming: bool = False
    shuffle_buffer_mib: int = Field(512, ge=1, le=1 << 20)
    max_damaged_share: float = Field(0.01, ge=0, le=1)
    num_workers: int = Field(2, ge=0, le=1024)

    @field_validator("bands", "stored_bands")
    @classmethod
    def _canonical_names(cls, names: list[str] | None) -> list[str] | None:
        return None if names is None else [canonical_band(name) for name in names]


class Augment(Section):
    """Augmentation of both views. Brightness to greyscale apply to three bands, `band_…` to any other number.

    Attributes:
        preset: Defaults of all other fields: `satellite`; `paper` (MoCo v3's for a ViT; for a ResNet, set
            `crop_min_scale` to 0.2); `seasons` (for pairs of one place, with milder colour jitter).
        crop_min_scale: Smallest area of a crop as a fraction of the tile.
        jitter_probability: Probability of colour jitter, or of a gain and an offset per band.
        brightness: Brightness factor is drawn from 1 ± this.
        contrast: Contrast factor is drawn from 1 ± this.
        saturation: Saturation factor is drawn from 1 ± this.
        hue: Hue shift is drawn from ± this, as a fraction of the colour circle.
        greyscale_probability: Probability of a greyscale view.
        band_gain: Gain is drawn from 1 ± this, for each band.
        band_offset: Offset is drawn from ± this, for each band, in units of the pixel range.
        band_drop_probability: Probability, for each band, that it is replaced by its mean.
        blur_probability: Probability of Gaussian blur, for view 1 and view 2.
        solarize_probability: Probability of solarization, for view 1 and view 2.
        horizontal_flip_probability: Probability of a left-right flip.
        vertical_flip_probability: Probability of an up-down flip.
        rotate_quarter_turns: Turn each view by 0, 90, 180 or 270 degrees.
        noise_std: Standard deviation of Gaussian noise, in units of the pixel range, before normalisation.
    """

    preset: Literal["satellite", "paper", "seasons"] = "satellite"
    crop_min_scale: float = Field(0.2, gt=0, le=1)
    jitter_probability: float = Field(0.8, ge=0, le=1)
    brightness: float = Field(0.2, ge=0, le=1)
    contrast: float = Field(0.2, ge=0, le=1)
    saturation: float = Field(0.1, ge=0, le=1)
    hue: float = Field(0.05, ge=0, le=0.5)
    greyscale_probability: float = Field(0.2, ge=0, le=1)
    band_gain: float = Field(0.1, ge=0, le=1)
    band_offset: float = Field(0.02, ge=0, le=1)
    band_drop_probability: float = Field(0.05, ge=0, lt=1)
    blur_probability: list[Fraction] = Field([1.0, 0.1], min_length=2, max_length=2)
    solarize_probability: list[Fraction] = Field([0.0, 0.2], min_length=2, max_length=2)
    horizontal_flip_probability: float = Field(0.5, ge=0, le=1)
    vertical_flip_probability: float = Field(0.5, ge=0, le=1)
    rotate_quarter_turns: bool = True
    noise_std: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("preset", ""), str):
            return fields
        return {**PRESETS.get(fields.get("preset", ""), {}), **fields}


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "crop_min_scale": 0.08,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "band_gain": 0.4,
        "band_offset": 0.0,
        "band_drop_probability": 0.0,
        "vertical_flip_probability": 0.0,
        "rotate_quarter_turns": False,
        "noise_std": 0.0,
    },
    "seasons": {
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.05,
        "hue": 0.0,
        "greyscale_probability": 0.0,
        "solarize_probability": [0.0, 0.0],
    },
}
"""Fields in which a preset differs from the defaults, which are `satellite`."""
