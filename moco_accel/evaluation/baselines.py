"""What a pretrained encoder's features are worth, beside the same encoder at random and the mean colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from moco_accel.common.errors import UserError
from moco_accel.evaluation.features import Metric, extract_features, knn_predictions, nearest_neighbours, read_pixels
from moco_accel.evaluation.labelled_pool import Pool
from moco_accel.evaluation.linear_probe import Probe, predict_linearly
from moco_accel.evaluation.near_duplicates import Copies, Looks, checksum, find_copies, thumbnail
from moco_accel.evaluation.neighbours_picture import NUM_NEIGHBOURS, Panel, choose_queries, draw_neighbours
from moco_accel.evaluation.scores import Score, figures_of, score
from moco_accel.evaluation.splits import Split
from moco_accel.networks.encoders import build_encoder
from moco_accel.recipe.schema import Recipe
from moco_accel.sources.stores import files_of, open_store
from moco_accel.sources.tile_facts import FACTS_FILE
from moco_accel.tiles.tiles import Tiles, tiles_in

PASSES = 5  # over all tiles: two encoders, in colour and grey, and the mean colours
MEAN_COLOUR = "_mean_colour"

Progress = Callable[[str, int], None]


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
    """Figures by their key in summary.json (accuracies in [0, 1]), and what they came from.

    `scores` has one score per seed, by (probe, features); `splits` one split per seed. `features` [N, D] are of all
    tiles of `pool`, by the suffix of their key. `strengths` are the probes' C, `cut_off` counts those not converged.
    """

    accuracies: dict[str, float]
    scores: dict[tuple[str, str], list[Score]]
    pool: Pool
    splits: list[Split]
    features: dict[str, Tensor]
    copies: Copies
    strengths: list[float]
    cut_off: int

    @property
    def pretrained(self) -> tuple[Tensor, Tensor]:
        return self._sides("")

    @property
    def random_init(self) -> tuple[Tensor, Tensor]:
        return self._sides("_random_init")

    def _sides(self, name: str) -> tuple[Tensor, Tensor]:
        """Training and test side of the first split."""
        return self.features[name][self.splits[0].train], self.features[name][self.splits[0].test]


def open_labelled(recipe: Recipe) -> LabelledTiles:
    """Open `evaluation.train_source` and `test_source`. Raises UserError when one is null, unlabelled or unlike."""
    evaluation, sides = recipe.evaluation, []
    for field in ("train_source", "test_source"):
        source = getattr(evaluation, field)
        if source is None:
            raise UserError(
                f"evaluation.{field}=null: there is nothing to judge on; --train-source data/demo/train --test-source "
                f"data/demo/test works after moco-data demo data/demo"
            )
        sides.append(open_side(source, recipe, f"evaluation.{field}"))
    _check_apart(str(evaluation.train_source), str(evaluation.test_source))
    column = evaluation.label_column
    labels, names = zip(*(side.labels(column) for side in sides), strict=True)
    if any(label is None for side in labels for label in side):
        raise UserError(f"evaluation.label_column={column!r} is empty or negative for some tiles; leave those out")
    if names[0] != names[1]:
        raise UserError(f"evaluation.label_column={column!r}: classes differ, {names[0]} in train, {names[1]} in test")
    return LabelledTiles(sides[0], sides[1], torch.tensor(labels[0]), torch.tensor(labels[1]), names[0])


def _check_apart(train: str, test: str) -> None:
    """Raises UserError when a file is of both sources, however they are spelled."""
    shared = {file for file in files_of(test) if file.name != FACTS_FILE}.intersection(files_of(train))
    if train == test or shared:
        what = f" ({min(shared)})" if shared else ""
        raise UserError(
            f"evaluation.test_source={test!r} holds tiles of evaluation.train_source={train!r}{what}: each would vote "
            "for itself; tiles of other places work"
        )


def open_side(source: str, recipe: Recipe, field: str) -> Tiles:
    """Labelled tiles, read as those of the run: from its image column where there is such a one, else the only one."""
    store = open_store(source, recipe.data, field)
    column = recipe.data.image_column if recipe.data.image_column in store.features else None
    named = None if store.facts else recipe.data.stored_bands
    data = recipe.data.model_copy(update={"pair_column": None, "image_column": column, "stored_bands": named})
    return tiles_in(store, source, data, recipe.encoder.bands, field)


def fixed_split(tiles: LabelledTiles) -> tuple[Pool, Split]:
    """Both sides under one numbering, training tiles first, and which is which."""
    labels = torch.cat([tiles.train_labels, tiles.test_labels])
    indices = torch.arange(len(tiles))
    pool = Pool((tiles.train, tiles.test), labels, tiles.names)
    return pool, Split(indices[: len(tiles.train)], indices[len(tiles.train) :])


def judge(
    recipe: Recipe,
    encoder: nn.Module,
    tiles: LabelledTiles,
    device: torch.device | str,
    on_progress: Progress | None = None,
) -> Judgement:
    """kNN accuracies of `encoder`, of the recipe's encoder at random initialisation, and of the mean colour.

    `on_progress(what, n)` hears of every n tiles done; there are PASSES × len(tiles).
    """
    pool, split = fixed_split(tiles)
    return judge_splits(recipe, extract_all(recipe, encoder, pool, device, on_progress), pool, [split])


@dataclass(frozen=True)
class Extracted:
    """Features [N, D] of a pool by the suffix of their key, and what its tiles look like."""

    features: dict[str, Tensor]
    looks: Looks


def extract_all(
    recipe: Recipe, encoder: nn.Module, pool: Pool, device: torch.device | str, on_progress: Progress | None = None
) -> Extracted:
    """Features of `encoder` and of the random one, in colour and grey, and the mean colours: once, for all splits."""

    def heard(what: str) -> Callable[[int], None]:
        return lambda count: on_progress(what, count) if on_progress else None

    tiles = cast(Tiles, pool)
    features: dict[str, Tensor] = {}
    for suffix, network in {"": encoder.to(device), "_random_init": random_encoder(recipe).to(device)}.items():
        for grey in (False, True):
            what = f"{'random' if suffix else 'pretrained'}, {'grey' if grey else 'colour'}"
            features[f"{'_grey' if grey else ''}{suffix}"] = extract_features(
                network, tiles, recipe, device, grey, on_progress=heard(what)
            )
    checksums, thumbnails, means, done = [], [], [], heard("mean colour")
    for index in range(len(pool)):
        pixels = read_pixels(tiles, index, recipe)
        checksums.append(checksum(pixels))
        thumbnails.append(thumbnail(pixels))
        means.append(pixels.mean(dim=(1, 2)))
        done(1)
    return Extracted(features | {MEAN_COLOUR: torch.stack(means)}, Looks(checksums, torch.stack(thumbnails)))


def judge_splits(
    recipe: Recipe,
    extracted: Extracted,
    pool: Pool,
    splits: Sequence[Split],
    probe: Probe = "none",
    seeds: int = 1,
    on_probe: Callable[[], None] | None = None,
) -> Judgement:
    """kNN and, unless `probe` is none, a linear probe of all features on every split; a single split serves all seeds.

    The mean colour votes by Euclidean distance and without weights, its stronger form: cosine drops the brightness.
    `on_probe()` hears of every linear probe done; there are 3 per seed.
    """
    scores: dict[tuple[str, str], list[Score]] = {}
    strengths, cut_off = [], 0
    for seed in range(max(seeds, len(splits))):
        split = splits[seed % len(splits)]
        labels, truth = pool.labels[split.train], pool.labels[split.test]
        for name, features in extracted.features.items():
            train, test = features[split.train], features[split.test]
            if seed < len(splits):
                predicted = _vote(recipe, train, labels, test, len(pool.names), name)
                scores.setdefault(("knn", name), []).append(score(truth, predicted, len(pool.names)))
            if probe != "none" and "_grey" not in name:
                answers = predict_linearly(train, labels, test, probe, seed)
                scores.setdefault(("linear", name), []).append(score(truth, answers.predicted, len(pool.names)))
                strengths += [answers.strength] if name == "" and answers.strength is not None else []
                cut_off += not answers.converged
                if on_probe:
                    on_probe()
    copies = find_copies(extracted.looks, splits[0].train, splits[0].test)
    return Judgement(figures_of(scores), scores, pool, list(splits), extracted.features, copies, strengths, cut_off)


def _vote(recipe: Recipe, train: Tensor, labels: Tensor, test: Tensor, num_classes: int, name: str) -> Tensor:
    evaluation = recipe.evaluation
    metric: Metric = "euclidean" if name == MEAN_COLOUR else "cosine"
    return knn_predictions(train, labels, test, evaluation.neighbours, evaluation.temperature, num_classes, metric)


def random_encoder(recipe: Recipe) -> nn.Module:
    """The recipe's encoder before any training, drawn from its seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        return build_encoder(recipe.encoder)


def draw_judgement(path: Path, recipe: Recipe, judgement: Judgement) -> None:
    """Write neighbours.png: test tiles, and the training tiles nearest to them before and after pretraining."""
    pool, split = judgement.pool, judgement.splits[0]
    queries = choose_queries(pool.labels[split.test].tolist())
    panels = [
        Panel(heading, split.train[nearest_neighbours(train, test[queries], NUM_NEIGHBOURS)])
        for heading, (train, test) in (
            ("nearest training tiles, pretrained", judgement.pretrained),
            ("at random initialisation", judgement.random_init),
        )
    ]
    shares = judgement.accuracies
    caption = (
        f"{recipe.encoder.name}: kNN-{recipe.evaluation.neighbours} accuracy on {len(split.test):,} test tiles: "
        f"pretrained {shares['knn_top1']:.1%}, random initialisation {shares['knn_top1_random_init']:.1%}, "
        f"mean colour {shares['knn_top1_mean_colour']:.1%}"
    )
    tiles, labels = cast(Tiles, pool), pool.labels.tolist()
    draw_neighbours(path, tiles, tiles, (labels, labels), pool.names, split.test[queries].tolist(), panels, caption)
