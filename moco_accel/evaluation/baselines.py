"""Compare a pretrained encoder with two baselines: its random initialisation, and the mean colour of each tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from moco_accel.evaluation import knn
from moco_accel.evaluation.features import extract_features, read_pixels
from moco_accel.evaluation.labelled_tiles import LabelledPool
from moco_accel.evaluation.linear_probe import Probe, predict_with_linear_probe
from moco_accel.evaluation.metrics import Score, score_predictions, summarise_scores
from moco_accel.evaluation.splits import Split
from moco_accel.networks.encoders import build_encoder
from moco_accel.recipe.schema import Recipe

PASSES = 5
"""Passes over all tiles: two encoders in colour and grey, and the mean colour."""
PROBES_PER_SEED = 3
"""Linear probes: two encoders in colour, and the mean colour."""


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features [tiles, D] of all tiles by the suffix of their key, and a fingerprint of each tile."""

    features: dict[str, Tensor]
    fingerprints: list[knn.Fingerprint]


@dataclass(frozen=True)
class BaselineComparison:
    """Accuracies of an encoder and its baselines, and what they were computed from.

    Attributes:
        scores: One score per seed, by (classifier, features).
        splits: One split per seed, or a single one for all seeds.
        features: Features [tiles, D] of all tiles of the pool, by the suffix of their key.
        duplicates: Test tiles that duplicate training tiles, in the first split.
        chosen_c: C of the logistic regressions on pretrained features, one per seed.
        num_unconverged: Number of linear probes that did not converge.
    """

    scores: dict[tuple[str, str], list[Score]]
    pool: LabelledPool
    splits: list[Split]
    features: dict[str, Tensor]
    duplicates: knn.DuplicateCounts
    chosen_c: list[float]
    num_unconverged: int

    @property
    def accuracies(self) -> dict[str, float]:
        """Return accuracies in [0, 1] and their standard deviations, by their key in summary.json."""
        return summarise_scores(self.scores)

    def split_features(self, suffix: str) -> tuple[Tensor, Tensor]:
        """Return the features of the training and test tiles of the first split, by the suffix of their key."""
        return self.features[suffix][self.splits[0].train], self.features[suffix][self.splits[0].test]


def extract_all_features(
    recipe: Recipe,
    encoder: nn.Module,
    pool: LabelledPool,
    device: torch.device | str,
    on_progress: Callable[[str, int], object] = lambda what, count: None,
) -> ExtractedFeatures:
    """Extract the features of the encoder and of its baselines once, for all splits.

    `on_progress` is called with a description and a number of tiles, in all `PASSES` times the number of tiles.

    Raises:
        UserError: If a tile is damaged.
    """
    features: dict[str, Tensor] = {}
    for suffix, network in {"": encoder.to(device), "_random_init": random_encoder(recipe).to(device)}.items():
        for grey in (False, True):
            what = f"{'random' if suffix else 'pretrained'}, {'grey' if grey else 'colour'}"
            features[f"{'_grey' if grey else ''}{suffix}"] = extract_features(
                network, pool, recipe, device, grey, on_progress=partial(on_progress, what)
            )
    means, fingerprints = [], []
    for index in range(len(pool)):
        pixels = read_pixels(pool, index, recipe)
        means.append(pixels.mean(dim=(1, 2)))
        fingerprints.append(knn.fingerprint(pixels))
        on_progress("mean colour", 1)
    features[knn.MEAN_COLOUR] = torch.stack(means)
    return ExtractedFeatures(features, fingerprints)


def compare_with_baselines(
    recipe: Recipe,
    extracted: ExtractedFeatures,
    pool: LabelledPool,
    splits: Sequence[Split],
    probe: Probe = "none",
    seeds: int = 1,
    on_probe: Callable[[], object] = lambda: None,
) -> BaselineComparison:
    """Classify the test tiles of every split by kNN and a linear probe, from each kind of features.

    Args:
        splits: One split per seed, or a single one for all seeds.
        probe: Linear probe; `none` runs kNN alone.
        on_probe: Called after each linear probe, in all `PROBES_PER_SEED` times per seed.
    """
    scores: dict[tuple[str, str], list[Score]] = {}
    chosen_c, num_unconverged, num_classes = [], 0, len(pool.names)
    for seed in range(max(seeds, len(splits))):
        split = splits[seed % len(splits)]
        labels, truth = pool.labels[split.train], pool.labels[split.test]
        for name, features in extracted.features.items():
            train, test = features[split.train], features[split.test]
            if seed < len(splits):
                metric = knn.knn_metric(name)
                by_knn = knn.predict_by_knn(train, labels, test, num_classes, recipe.evaluation, metric)
                scores.setdefault(("knn", name), []).append(score_predictions(truth, by_knn, num_classes))
            if probe != "none" and "_grey" not in name:
                linear = predict_with_linear_probe(train, labels, test, probe, seed)
                scores.setdefault(("linear", name), []).append(score_predictions(truth, linear.predicted, num_classes))
                chosen_c += [linear.c] if name == "" and linear.c is not None else []
                num_unconverged += not linear.converged
                on_probe()
    sides = (splits[0].train.tolist(), splits[0].test.tolist())
    duplicates = knn.count_duplicates(*([extracted.fingerprints[index] for index in side] for side in sides))
    return BaselineComparison(scores, pool, list(splits), extracted.features, duplicates, chosen_c, num_unconverged)


def random_encoder(recipe: Recipe) -> nn.Module:
    """Build the recipe's encoder at random initialisation from the recipe's seed; keep the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        return build_encoder(recipe.encoder)
