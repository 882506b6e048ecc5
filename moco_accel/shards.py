"""Tiles in Hugging Face `datasets` parquet shards: written without holding them, read back with random access.

Tiles stay encoded (PNG, JPEG) or raw (`Array3D`) until one is asked for, and are read past the formatting of
`datasets`, which is slow. Pillow decodes them: torchvision's decoders give the same pixels, but are deprecated.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from moco_accel.imagery.shard_writer import write_shards
from moco_accel.recipe_text import RecipeError

__all__ = ["Tiles", "open_tiles", "write_shards"]

_SHARD_NAME = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.parquet$")


class Tiles:
    """Tiles of one source, in the order of its shards: `tiles[i]` is a uint8 tensor [bands, height, width].

    Backed by a memory-mapped arrow file: it costs no memory, reads at random, and is light to send to loader workers.
    """

    def __init__(self, dataset: datasets.Dataset, source: str, image_column: str, bands: int) -> None:
        self.source, self.image_column, self.bands = source, image_column, bands
        self._dataset = dataset
        feature = dataset.features[image_column]
        self._array_shape: tuple[int, ...] | None = getattr(feature, "shape", None)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Tensor:
        """Raises RecipeError when the tile is damaged or is not uint8 with the right number of bands."""
        tile = self._read(index)
        if tile.shape[0] == 1 and self.bands == 3:  # a grey JPEG among RGB ones: the same picture, stored smaller
            tile = tile.expand(3, -1, -1).contiguous()
        if tile.dtype != torch.uint8 or tile.ndim != 3 or tile.shape[0] != self.bands:
            raise RecipeError(
                f"tile {index} of {self.source!r} is {tile.dtype} {list(tile.shape)}, not uint8 [{self.bands}, H, W]; "
                f"make the tiles again without it"
            )
        return tile

    def column(self, name: str) -> list[Any]:
        """All values of column `name`, as Python objects. Raises RecipeError when there is none."""
        self._feature(name)
        return list(self._dataset.data.column(name).to_pylist())

    def label_names(self, column: str) -> list[str]:
        """Class names by label number. Raises RecipeError when `column` holds no class numbers."""
        feature = self._feature(column)
        if isinstance(feature, datasets.ClassLabel):
            return list(feature.names)
        if isinstance(feature, datasets.Value) and re.fullmatch(r"u?int\d+", feature.dtype):
            return [str(number) for number in range(max(self.column(column)) + 1)]
        raise RecipeError(
            f"evaluation.label_column={column!r} of {self.source!r} is {feature}, not ClassLabel or integers; "
            f"moco-data build --labels-from-folders writes such a column"
        )

    def _feature(self, name: str) -> Any:
        features = self._dataset.features
        if name not in features:
            raise RecipeError(f"{self.source!r} has no column {name!r}; its columns: {', '.join(features)}")
        return features[name]

    def _read(self, index: int) -> Tensor:
        """The tile as it is stored, bands first."""
        # Straight from arrow: the numpy format of `datasets` turns uint8 into int64 and takes 100 times as long.
        value = self._dataset.data.column(self.image_column)[index]
        if self._array_shape is not None:
            return self._as_bands_first(value)
        raw = value.as_py()
        try:
            if isinstance(raw, dict):
                raw = raw["bytes"] if raw["bytes"] is not None else Path(raw["path"]).read_bytes()
            return _decode(raw)
        except (OSError, SyntaxError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(
                f"tile {index} of {self.source!r} cannot be decoded ({reason}); make the tiles again without it"
            ) from None

    def _as_bands_first(self, value: Any) -> Tensor:
        assert self._array_shape is not None
        flat = value.value.values.flatten(recursive=True).to_numpy(zero_copy_only=False)
        array = torch.from_numpy(np.array(flat)).reshape(-1, *self._array_shape[1:])
        if array.ndim == 3 and array.shape[0] != self.bands and array.shape[2] == self.bands:
            return array.permute(2, 0, 1).contiguous()
        return array


def _decode(raw: bytes) -> Tensor:
    """JPEG, PNG or TIFF bytes → [bands, H, W] of the image's own type."""
    with Image.open(io.BytesIO(raw)) as image:
        array = np.array(image.convert("RGB") if image.mode == "P" else image)  # a copy: torch wants it writable
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def open_tiles(source: str, image_column: str, bands: int, field: str = "data.source") -> Tiles:
    """Open the shards of `source`: a folder, a glob or one .parquet file. `field` names the recipe's field in errors.

    Accepted columns: Image, encoded bytes, and uint8 `Array3D` ([bands, H, W], or [H, W, bands]). The arrow cache lies
    where `datasets` keeps its caches and is built again only when a shard changes. The first tile is decoded as a
    check. Raises RecipeError on a missing, incomplete or damaged source, a wrong column or number of bands.
    """
    files = _shard_files(source, field)
    with _quiet_datasets():
        try:
            dataset = datasets.Dataset.from_parquet([str(path) for path in files])
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise RecipeError(
                f"{field}={source!r}: its shards do not go together ({reason}); build them anew"
            ) from None
    if len(dataset) == 0:
        raise RecipeError(f"{field}={source!r} holds shards without tiles; {_how_to_build(source)}")
    _check_column(dataset.features, source, image_column)
    tiles = Tiles(dataset, source, image_column, bands)
    _check_bands(tiles, field)
    return tiles


def _shard_files(source: str, field: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if path.name else []
    if not files:
        inside = sorted({str(file.parent) for file in path.glob("*/*.parquet")}) if path.is_dir() else []
        hint = f"did you mean {' or '.join(inside)}?" if inside else _how_to_build(source)
        raise RecipeError(f"{field}={source!r} holds no .parquet shards; {hint}")
    _check_whole(files, source, field)
    return files


def _how_to_build(source: str) -> str:
    return f"make some: moco-data build YOUR_IMAGES {source if '*' not in source else 'data/tiles'}"


def _check_whole(files: list[Path], source: str, field: str) -> None:
    for file in files:
        try:
            pq.read_metadata(file)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(f"{field}={source!r}: {file} is not a whole parquet file ({reason})") from None
    if not Path(source).is_dir():  # a glob or a file may well name some shards of a set
        return
    for stem, count in {(m["stem"], int(m["count"])) for m in map(_SHARD_NAME.fullmatch, (f.name for f in files)) if m}:
        found = sum(
            file.name.startswith(f"{stem}-") and file.name.endswith(f"-of-{count:05d}.parquet") for file in files
        )
        if found != count:
            raise RecipeError(f"{field}={source!r} holds {found} of {count} shards {stem}-…; build or copy them anew")


def _check_column(features: datasets.Features, source: str, image_column: str) -> None:
    candidates = [name for name, feature in features.items() if _is_imagery(feature)]
    hint = f"data.image_column={candidates[0]} works" if candidates else "none of them holds images"
    if image_column not in features:
        columns = ", ".join(features)
        raise RecipeError(f"data.image_column={image_column!r} is not a column of {source!r} ({columns}); {hint}")
    if image_column not in candidates:
        kind = features[image_column]
        raise RecipeError(
            f"data.image_column={image_column!r} of {source!r} is {kind}, not Image, bytes or uint8 Array3D; {hint}"
        )


def _is_imagery(feature: Any) -> bool:
    if isinstance(feature, datasets.Array3D):
        return bool(feature.dtype == "uint8")
    if isinstance(feature, dict):  # an Image column written without the schema of `datasets`
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or feature == datasets.Value("binary")


def _check_bands(tiles: Tiles, field: str) -> None:
    first = tiles._read(0)
    if first.dtype != torch.uint8:
        raise RecipeError(f"{field}={tiles.source!r} holds {first.dtype} tiles; 8-bit tiles (torch.uint8) work")
    if first.shape[0] != tiles.bands:
        found = min(first.shape[0], first.shape[2])  # Array3D may put the bands last
        raise RecipeError(
            f"encoder.bands={tiles.bands} but the tiles in {tiles.source!r} have {found}; encoder.bands={found} works"
        )


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No progress bars and log lines of `datasets` within; its settings are as before afterwards."""
    verbosity, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
