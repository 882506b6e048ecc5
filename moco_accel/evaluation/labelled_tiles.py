"""Open labelled tiles, and address the tiles of several sources by one index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moco_accel.common.errors import UserError
from moco_accel.evaluation.splits import Split
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.open_source import open_store
from moco_accel.tiles.tiles import Tiles


@dataclass(frozen=True)
class LabelledPool:
    """Labelled tiles of one or more sources, one after another, with class numbers, int64 [tiles], and class names."""

    sources: tuple[Tiles, ...]
    labels: Tensor
    names: list[str]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Tensor:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    @property
    def bands(self) -> list[str] | None:
        """Return the names of the bands, or None if unknown."""
        return self.sources[0].bands

    def split_by_source(self) -> Split:
        """Return the split into the tiles of the first source, for training, and of the second, for testing."""
        return Split(*torch.arange(len(self)).split([len(source) for source in self.sources]))


def open_labelled_tiles(recipe: Recipe) -> LabelledPool:
    """Open `evaluation.train_source`, then `evaluation.test_source`.

    Raises:
        UserError: If a source is null, tiles have no label, classes differ, or the sources share tiles.
    """
    evaluation, sides = recipe.evaluation, []
    for field in ("train_source", "test_source"):
        source = getattr(evaluation, field)
        if source is None:
            raise UserError(
                f"evaluation.{field}=null: evaluation needs labelled tiles; --train-source data/demo/train "
                f"--test-source data/demo/test works after moco-data demo data/demo"
            )
        sides.append(open_labelled_source(source, recipe, f"evaluation.{field}"))
    _check_disjoint(*sides)
    column = evaluation.label_column
    labels, names = zip(*(side.labels(column) for side in sides), strict=True)
    if any(label is None for side in labels for label in side):
        raise UserError(f"evaluation.label_column={column!r} is empty or negative for some tiles; leave those out")
    if names[0] != names[1]:
        raise UserError(f"evaluation.label_column={column!r}: classes differ, {names[0]} in train, {names[1]} in test")
    return LabelledPool(tuple(sides), torch.tensor([*labels[0], *labels[1]]), names[0])


def _check_disjoint(train: Tiles, test: Tiles) -> None:
    files, test_files = ({file.resolve() for file in tiles.files} for tiles in (train, test))
    shared = files & test_files
    if train.source == test.source or shared:
        example = f" ({min(shared)})" if shared else ""
        raise UserError(
            f"evaluation.test_source={test.source!r} shares tiles with "
            f"evaluation.train_source={train.source!r}{example}: each would "
            "be its own nearest neighbour; tiles of other places work"
        )


def open_labelled_source(source: str, recipe: Recipe, field: str) -> Tiles:
    """Open labelled tiles with the settings of the run.

    The image column is the run's if the source has a column of that name, else the only one with imagery. Errors name
    the recipe field or option `field`.

    Raises:
        UserError: If the source cannot be opened or does not fit the recipe.
    """
    # data.split is of data.source; a split of labelled tiles follows a colon in their own
    store = open_store(source, recipe.data.model_copy(update={"split": None}), field)
    column = recipe.data.image_column if recipe.data.image_column in store.features else None
    band_names = None if store.metadata else recipe.data.stored_bands
    data = recipe.data.model_copy(update={"pair_column": None, "image_column": column, "stored_bands": band_names})
    return Tiles(store, data, recipe.encoder.bands)
