"""Evaluate the encoder during training: kNN accuracy with its baselines, and measures that need no labels."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from moco_accel.checkpoints.best_checkpoint import EVALUATION_SET, is_new_best, refresh_best
from moco_accel.checkpoints.run_log import EVALUATIONS, drop_rows_from_step, read_rows
from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.errors import UserError
from moco_accel.evaluation.baselines import random_encoder
from moco_accel.evaluation.features import extract_features, in_eval_mode, mean_colour_features
from moco_accel.evaluation.knn import MEAN_COLOUR, knn_metric, predict_by_knn
from moco_accel.evaluation.labelled_tiles import LabelledPool, open_labelled_tiles
from moco_accel.evaluation.metrics import alignment, rank_me, score_predictions, uniformity
from moco_accel.images.headers import DamagedTile
from moco_accel.networks.loss import feature_std
from moco_accel.networks.moco import MoCo
from moco_accel.processes.phases import EVALUATION, enter_phase, tick, waiting_for_peers
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import Tiles
from moco_accel.training.loader import sample_views
from moco_accel.training.run_context import RunContext, log

_BASELINES = "baselines.json"
_SAMPLE_TILES = 1024  # for the measures without labels
_MAX_BATCH_SIZE = 256
_FEATURES_EVERY_STEPS = 100  # shows a collapse before the end of an epoch
_COMPARED_TILES = 32  # whose pixels tell labelled tiles from others

NOTHING, FEATURES, ALL = 0, 1, 2

Figures = dict[str, Any]


class OnlineEvaluation:
    """Evaluates an encoder during training. All ranks call its methods together; each evaluates a share of the tiles.

    It does not change the run: it draws no random numbers, and BatchNorm uses its running statistics.
    """

    def __init__(self, context: RunContext) -> None:
        recipe, run, steps = context.recipe, context.run, context.steps
        self._recipe, self._run, self._tiles, self._total_steps = recipe, run, context.tiles, steps.stop
        self._accelerator, self._control_group = context.accelerator, context.control_group
        self._started_at, self._spent, self._last_seconds = time.perf_counter(), 0.0, {FEATURES: 0.0, ALL: 0.0}
        enabled = recipe.evaluation.every_epochs is not None
        has_labels = recipe.evaluation.train_source is not None and recipe.evaluation.test_source is not None
        self._labelled = open_labelled_tiles(recipe) if enabled and has_labels else None
        self._evaluation_set = _evaluation_set(recipe, self._labelled) if self._labelled else ""
        self._is_sharded, first_logged = False, steps.start + 1 if steps.start else 0
        self._control_group.run_on_rank_zero(lambda: drop_rows_from_step(run / EVALUATIONS, first_logged))
        self._control_group.run_on_rank_zero(lambda: refresh_best(run, log))
        self._evaluated_steps = {row["step"] for row in read_rows(run / EVALUATIONS)}

    def due(self, steps_done: int) -> int:
        """Return what to evaluate after `steps_done` steps.

        Returns:
            ALL after every `evaluation.every_epochs` epochs and after the last step, FEATURES every 100 steps, else
            NOTHING; also NOTHING if it would exceed `evaluation.max_time_share`, except after the last step.
        """
        every = self._recipe.evaluation.every_epochs
        if every is None or steps_done in self._evaluated_steps:
            return NOTHING
        is_last = steps_done == self._total_steps
        if is_last or steps_done % (every * (self._total_steps // self._recipe.schedule.epochs)) == 0:
            scope = ALL
        elif steps_done % _FEATURES_EVERY_STEPS == 0:
            scope = FEATURES
        else:
            return NOTHING
        allowed = self._recipe.evaluation.max_time_share * (time.perf_counter() - self._started_at)
        fits = is_last or self._spent + self._last_seconds[scope] <= allowed
        return self._control_group.all_gather(scope if fits else NOTHING)[0]  # rank 0's clock decides

    def evaluate(self, moco: MoCo, scope: int, steps_done: int) -> Figures:
        """Return the figures of the encoder, and append them to RUN/evaluations.jsonl; `scope` comes from `due`.

        Raises:
            UserError: If a sharded encoder runs out of memory.
        """
        enter_phase(EVALUATION)
        self._is_sharded = moco.sharding is not None
        started_at = time.perf_counter()
        epoch = round(steps_done / self._total_steps * self._recipe.schedule.epochs, 4)
        figures: Figures = {"step": steps_done, "epoch": epoch}
        if scope == ALL and self._labelled is not None:
            baselines = self._baselines(self._labelled, moco)
            figures |= {"knn_epoch": epoch, "knn_top1": self._knn(moco.encoder, self._labelled)} | baselines
            figures[EVALUATION_SET] = self._evaluation_set
        figures |= self._measure_features(moco.encoder)
        self._last_seconds[scope] = time.perf_counter() - started_at
        self._spent += self._last_seconds[scope]
        share = self._spent / (time.perf_counter() - self._started_at)
        figures |= {"seconds": round(self._last_seconds[scope], 2), "time_share": round(share, 4)}
        self._control_group.run_on_rank_zero(lambda: _append(self._run / EVALUATIONS, figures))
        return figures

    def is_best(self, figures: Figures) -> bool:
        """Return True if the kNN accuracy is the highest of the run's checkpoints."""
        is_best = self._accelerator.is_main_process and is_new_best(self._run, figures, log)
        return bool(self._control_group.all_gather(int(is_best))[0])

    def _knn(self, encoder: nn.Module, labelled: LabelledPool) -> float:
        train, test = (self._features(encoder, side) for side in labelled.sources)
        return self._knn_accuracy(train, test, labelled)

    def _knn_accuracy(self, train: Tensor, test: Tensor, labelled: LabelledPool, features: str = "") -> float:
        metric, num_classes = knn_metric(features), len(labelled.names)
        train_labels, truth = labelled.labels.split([len(train), len(test)])
        predicted = predict_by_knn(train, train_labels, test, num_classes, self._recipe.evaluation, metric)
        return score_predictions(truth, predicted, num_classes).top1

    def _baselines(self, labelled: LabelledPool, moco: MoCo) -> Figures:
        """Return the kNN accuracy of the baselines, computed once and kept in RUN/baselines.json for resumed runs."""
        path, key = self._run / _BASELINES, _checksum(self._recipe, self._evaluation_set)
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if any(self._control_group.all_gather(int(kept.get("of") != key))):
            mean_colour = self._knn_of_mean_colour(labelled)
            kept = {
                "of": key,
                "knn_top1_random_init": self._knn_of_random_init(labelled, moco),
                "knn_top1_mean_colour": mean_colour,
            }
            self._control_group.run_on_rank_zero(lambda: write_atomically(path, json.dumps(kept, indent=2) + "\n"))
        return {name: value for name, value in kept.items() if name != "of"}

    def _knn_of_mean_colour(self, labelled: LabelledPool) -> float:
        own: list[Tensor] = []

        def compute_own_share() -> None:
            for side in labelled.sources:
                own.append(mean_colour_features(side, self._recipe, _own_share(len(side), self._accelerator)))

        # a damaged tile ends all ranks, not only the one that reads it
        self._control_group.run_on_rank_zero(compute_own_share, compute_own_share)
        train, test = (self._gather(means)[: len(side)] for means, side in zip(own, labelled.sources, strict=True))
        return self._knn_accuracy(train, test, labelled, MEAN_COLOUR)

    def _knn_of_random_init(self, labelled: LabelledPool, moco: MoCo) -> float:
        encoder = moco.place_encoder(random_encoder(self._recipe), self._accelerator.device)
        accuracy = self._knn(encoder, labelled)
        del encoder
        gc.collect()  # a sharded encoder is part of reference cycles
        return accuracy

    def _features(self, encoder: nn.Module, tiles: Tiles) -> Tensor:
        """Return the features [tiles, dim] of all tiles on the CPU, on every rank."""
        own = _own_share(len(tiles), self._accelerator)

        def extract(size: int) -> Tensor:
            device = self._accelerator.device
            return extract_features(encoder, tiles, self._recipe, device, indices=own, batch_size=size)

        return self._gather(self._fit_batch_size(extract))[: len(tiles)]

    def _measure_features(self, encoder: nn.Module) -> Figures:
        """Return measures of both views' features of a sample of the run's tiles."""
        count = min(_SAMPLE_TILES, len(self._tiles))
        order = torch.randperm(len(self._tiles), generator=torch.Generator().manual_seed(self._recipe.run.seed))
        indices = [int(order[position]) for position in _own_share(count, self._accelerator)]

        def extract(size: int) -> Tensor:
            views = sample_views(self._tiles, self._recipe, self._accelerator.device, indices, size)
            rows = []
            with torch.no_grad(), in_eval_mode(encoder):
                for pair in views:
                    rows.append(torch.stack([encoder(view).float().cpu() for view in pair], dim=1))
                    tick()
            return torch.cat(rows)

        both = self._gather(self._fit_batch_size(extract))[:count]
        first, second = both[:, 0], both[:, 1]
        return {
            "feature_std": float(feature_std(first)),
            "rank_me": rank_me(first),
            "rank_of": min(first.shape),
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
        }

    def _fit_batch_size(self, extract: Callable[[int], Tensor]) -> Tensor:
        """Call `extract` with the micro-batch size, halved until it fits.

        Ranks that share a sharded encoder must use the same size, so they raise UserError instead.
        """
        size = min(self._recipe.batch.micro_batch_size, _MAX_BATCH_SIZE)
        while True:
            try:
                return extract(size)
            except torch.OutOfMemoryError:
                if self._is_sharded:
                    raise UserError(
                        f"out of memory in evaluation, on {size} tiles with a sharded encoder (memory.fully_shard); "
                        "evaluation.every_epochs=null trains without evaluation"
                    ) from None
                if size == 1:
                    raise
                size //= 2
                torch.cuda.empty_cache()

    def _gather(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks in the order of tiles; rank 0 has rows 0, n, 2n, …"""
        processes = self._accelerator.num_processes
        if processes == 1:
            return own
        with waiting_for_peers():
            rows: Tensor = self._accelerator.gather(own.to(self._accelerator.device)).cpu()
        return rows.unflatten(0, (processes, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]


def _own_share(count: int, accelerator: Accelerator) -> list[int]:
    """Return this rank's share of `range(count)`; the last number repeats so that all shares have the same length."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    return [min(index, count - 1) for index in range(rank, -(-count // processes) * processes, processes)]


def _append(path: Path, figures: Figures) -> None:
    with path.open("a") as rows:
        rows.write(json.dumps(figures) + "\n")


def _evaluation_set(recipe: Recipe, labelled: LabelledPool) -> str:
    """Return a checksum of what accuracies must share to be compared: labels, the pixels of some tiles, kNN settings.

    The content counts, not the path: tiles may have moved before a resume.
    """
    settings, sizes = recipe.evaluation, [len(side) for side in labelled.sources]
    parts = [sizes, labelled.names, labelled.labels.tolist(), settings.neighbours, settings.temperature]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for index in range(0, len(labelled), -(-len(labelled) // _COMPARED_TILES)):
        with suppress(DamagedTile):  # its own error comes with the first evaluation
            digest.update(labelled[index].numpy().tobytes())
    return digest.hexdigest()[:16]


def _checksum(recipe: Recipe, evaluation_set: str) -> str:
    """Return a checksum of everything that the baselines depend on."""
    parts = [evaluation_set, recipe.encoder.model_dump(), recipe.data.model_dump(), recipe.run.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
