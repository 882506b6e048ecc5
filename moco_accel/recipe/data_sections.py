"""The recipe's sections about tiles: where they are, what their numbers mean, how both views are made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moco_accel.recipe.bands import canonical_band

_MOST_BANDS = 1000
Share = Annotated[float, Field(ge=0, le=1)]
# what float32 holds, with room to reckon
Stored = Annotated[float, Field(ge=-1e30, le=1e30)]
Deviation = Annotated[float, Field(ge=0, le=1e12)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    """Tiles, their bands by name, and the range of stored values that becomes the pixel range [0, 1].

    pixel = (stored - low) / (high - low), cut off at 0 and 1. `scaling` says where low and high come from: `uint8`
    0 and 255; `reflectance` 0 and 10,000 (Sentinel-2); `reflectance_offset` 1,000 and 11,000 (Sentinel-2 from
    processing baseline 04.00 on); `percentiles` each band's 1st and 99th; `range` what `low` and `high` say.
    `mean` and `std` are those of pixels. What is null, a run takes from the tiles, says so, and writes down.
    """

    source: str = Field("data/tiles", description="folder, file, glob (parquet, arrow, tar), image folder, or hub id")
    split: str = Field("train", description="of a hub id")
    image_column: str | None = Field(None, description="null: the only column that holds imagery")
    pair_column: str | None = Field(None, description="the same place in another season; null: both views of one tile")
    bands: list[str] | None = Field(
        None, min_length=1, max_length=_MOST_BANDS, description="names, in the encoder's order; null: as stored"
    )
    stored_bands: list[str] | None = Field(
        None, min_length=1, max_length=_MOST_BANDS, description="names as stored, of a source without names"
    )
    nodata: Stored | None = Field(None, description="stored where there is no data; such pixels become the band's mean")
    scaling: Literal["uint8", "reflectance", "reflectance_offset", "percentiles", "range"] = "uint8"
    low: list[Stored] | None = Field(None, max_length=_MOST_BANDS)
    high: list[Stored] | None = Field(None, max_length=_MOST_BANDS)
    mean: list[Stored] | None = Field(None, max_length=_MOST_BANDS)
    std: list[Deviation] | None = Field(None, max_length=_MOST_BANDS)
    streaming: bool = Field(
        False,
        description="read shards in place, without a cache, shuffled within a buffer; every loader worker of every "
        "process reads all of them, once an epoch",
    )
    shuffle_buffer_mib: int = Field(512, ge=1, le=1 << 20, description="when streaming; of every loader worker")
    max_damaged_share: float = Field(0.01, ge=0, le=1, description="of all tiles; above it a run stops")
    num_workers: int = Field(2, ge=0, le=1024)

    @field_validator("bands", "stored_bands")
    @classmethod
    def _one_spelling(cls, names: list[str] | None) -> list[str] | None:
        return None if names is None else [canonical_band(name) for name in names]


class Augment(Section):
    """Both views' augmentation. A pair holds (view 1, view 2). Fields left out are the preset's.

    `satellite`: turns, both flips, mild colour, sensor noise; `paper`: MoCo v3's for a ViT (for a ResNet it has
    crop_min_scale 0.2); `seasons`: for pairs of one place, colour milder still. Brightness, contrast, saturation, hue
    and greyscale are for three bands; `band_…` for any other number.
    """

    preset: Literal["satellite", "paper", "seasons"] = "satellite"
    crop_min_scale: float = Field(0.2, gt=0, le=1)
    jitter_probability: float = Field(0.8, ge=0, le=1)
    brightness: float = Field(0.2, ge=0, le=1)
    contrast: float = Field(0.2, ge=0, le=1)
    saturation: float = Field(0.1, ge=0, le=1)
    hue: float = Field(0.05, ge=0, le=0.5)
    greyscale_probability: float = Field(0.2, ge=0, le=1)
    band_gain: float = Field(0.1, ge=0, le=1, description="each band by a factor of its own in 1 ± this")
    band_offset: float = Field(0.02, ge=0, le=1, description="each band plus a number of its own within ± this")
    band_drop_probability: float = Field(0.05, ge=0, lt=1, description="a band becomes its mean")
    blur_probability: list[Share] = Field([1.0, 0.1], min_length=2, max_length=2)
    solarize_probability: list[Share] = Field([0.0, 0.2], min_length=2, max_length=2)
    horizontal_flip_probability: float = Field(0.5, ge=0, le=1)
    vertical_flip_probability: float = Field(0.5, ge=0, le=1)
    rotate_quarter_turns: bool = True
    noise_std: float = Field(0.01, ge=0, le=1, description="of the pixel range [0, 1], before normalisation")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, fields: Any) -> Any:
        """What the preset says stands unless a field says otherwise."""
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
"""Where a preset differs from the fields' defaults, which are `satellite`."""
