"""A pretrained encoder's kNN accuracies beside those of the same encoder at random and of the mean colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from moco_accel.encoders import build_encoder
from moco_accel.evaluation import extract_features, knn_accuracy, mean_colour_features, nearest_neighbours
from moco_accel.neighbours import NUM_NEIGHBOURS, Panel, choose_queries, draw_neighbours
from moco_accel.reading.stores import files_of, open_store
from moco_accel.reading.tiles import Tiles, tiles_in
from moco_accel.recipe import Recipe
from moco_accel.recipe_text import RecipeError
from moco_accel.tile_facts import FACTS_FILE

PASSES = 4  # over all tiles: two encoders, in colour and grey


@dataclass(frozen=True)
class LabelledTiles:
    """Both sides of an evaluation; labels int64 [N] and [M] are indices into `names`."""

    train: Tiles
    test: Tiles
    train_labels: Tensor
    test_labels: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.train) + len(self.test)


@dataclass(frozen=True)
class Judgement:
    """Accuracies in [0, 1] by their key in summary.json, and the colour features (train, test) they came from."""

    accuracies: dict[str, float]
    pretrained: tuple[Tensor, Tensor]
    random_init: tuple[Tensor, Tensor]


def open_labelled(recipe: Recipe) -> LabelledTiles:
    """Open `evaluation.train_source` and `test_source`. Raises RecipeError when one is null, unlabelled or unlike."""
    evaluation, sides = recipe.evaluation, []
    for field in ("train_source", "test_source"):
        source = getattr(evaluation, field)
        if source is None:
            raise RecipeError(
                f"evaluation.{field}=null: there is nothing to judge on; --train-source data/demo/train --test-source "
                f"data/demo/test works after moco-data demo data/demo"
            )
        sides.append(_open_side(source, recipe, f"evaluation.{field}"))
    _check_apart(str(evaluation.train_source), str(evaluation.test_source))
    column = evaluation.label_column
    labels, names = zip(*(side.labels(column) for side in sides), strict=True)
    if any(label is None for side in labels for label in side):
        raise RecipeError(f"evaluation.label_column={column!r} is empty or negative for some tiles; leave those out")
    if names[0] != names[1]:
        raise RecipeError(
            f"evaluation.label_column={column!r}: classes differ, {names[0]} in train, {names[1]} in test"
        )
    return LabelledTiles(sides[0], sides[1], torch.tensor(labels[0]), torch.tensor(labels[1]), names[0])


def _check_apart(train: str, test: str) -> None:
    """Raises RecipeError when a file is of both sources, however they are spelled."""
    shared = {file for file in files_of(test) if file.name != FACTS_FILE}.intersection(files_of(train))
    if train == test or shared:
        what = f" ({min(shared)})" if shared else ""
        raise RecipeError(
            f"evaluation.test_source={test!r} holds tiles of evaluation.train_source={train!r}{what}: each would vote "
            "for itself; tiles of other places work"
        )


def _open_side(source: str, recipe: Recipe, field: str) -> Tiles:
    """Labelled tiles, read as those of the run: from its image column where there is such a one, else the only one."""
    store = open_store(source, recipe.data, field)
    column = recipe.data.image_column if recipe.data.image_column in store.features else None
    named = None if store.facts else recipe.data.stored_bands
    data = recipe.data.model_copy(update={"pair_column": None, "image_column": column, "stored_bands": named})
    return tiles_in(store, source, data, recipe.encoder.bands, field)


def judge(
    recipe: Recipe,
    encoder: nn.Module,
    tiles: LabelledTiles,
    device: torch.device | str,
    on_progress: Callable[[str, int], None] | None = None,
) -> Judgement:
    """kNN accuracies of `encoder`, of the recipe's encoder at random initialisation, and of the mean colour.

    The mean colour votes by Euclidean distance and without weights, its stronger form: cosine drops the brightness.
    `on_progress(what, n)` hears of every n tiles done; there are PASSES × len(tiles).
    """
    encoders = {"": encoder.to(device), "_random_init": random_encoder(recipe).to(device)}
    accuracies: dict[str, float] = {}
    colour: dict[str, tuple[Tensor, Tensor]] = {}
    for grey in (False, True):
        for suffix, network in encoders.items():
            what = f"{'random' if suffix else 'pretrained'}, {'grey' if grey else 'colour'}"
            features = _features(recipe, network, tiles, device, grey, what, on_progress)
            accuracies[f"knn_top1{'_grey' if grey else ''}{suffix}"] = _knn(recipe, tiles, features)
            if not grey:
                colour[suffix] = features
    means = mean_colour_features(tiles.train, recipe), mean_colour_features(tiles.test, recipe)
    neighbours, classes = recipe.evaluation.neighbours, len(tiles.names)
    accuracies["knn_top1_mean_colour"] = knn_accuracy(
        means[0], tiles.train_labels, means[1], tiles.test_labels, neighbours, num_classes=classes, metric="euclidean"
    )
    return Judgement(accuracies, colour[""], colour["_random_init"])


def random_encoder(recipe: Recipe) -> nn.Module:
    """The recipe's encoder before any training, drawn from its seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        return build_encoder(recipe.encoder)


def draw_judgement(path: Path, recipe: Recipe, tiles: LabelledTiles, judgement: Judgement) -> None:
    """Write neighbours.png: test tiles, and the training tiles nearest to them before and after pretraining."""
    train_labels, test_labels = tiles.train_labels.tolist(), tiles.test_labels.tolist()
    queries = choose_queries(test_labels)
    panels = [
        Panel(heading, nearest_neighbours(train, test[queries], NUM_NEIGHBOURS))
        for heading, (train, test) in (
            ("nearest training tiles, pretrained", judgement.pretrained),
            ("at random initialisation", judgement.random_init),
        )
    ]
    shares = judgement.accuracies
    caption = (
        f"{recipe.encoder.name}: kNN-{recipe.evaluation.neighbours} accuracy on {len(tiles.test):,} test tiles: "
        f"pretrained {shares['knn_top1']:.1%}, random initialisation {shares['knn_top1_random_init']:.1%}, "
        f"mean colour {shares['knn_top1_mean_colour']:.1%}"
    )
    draw_neighbours(
        path,
        tiles.train,
        tiles.test,
        (train_labels, test_labels),
        tiles.names,
        queries,
        panels,
        caption,
    )


def _features(
    recipe: Recipe,
    encoder: nn.Module,
    tiles: LabelledTiles,
    device: torch.device | str,
    grey: bool,
    what: str,
    on_progress: Callable[[str, int], None] | None,
) -> tuple[Tensor, Tensor]:
    def progress(count: int) -> None:
        if on_progress:
            on_progress(what, count)

    train, test = (
        extract_features(encoder, side, recipe, device, grey, on_progress=progress)
        for side in (tiles.train, tiles.test)
    )
    return train, test


def _knn(recipe: Recipe, tiles: LabelledTiles, features: tuple[Tensor, Tensor]) -> float:
    evaluation = recipe.evaluation
    return knn_accuracy(
        features[0],
        tiles.train_labels,
        features[1],
        tiles.test_labels,
        evaluation.neighbours,
        evaluation.temperature,
        num_classes=len(tiles.names),
    )
