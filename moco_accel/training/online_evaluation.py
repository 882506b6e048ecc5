"""What a run's features are worth while it goes on: kNN beside its baselines, and what they tell of themselves."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from moco_accel.checkpoints.run_folder import best_accuracy
from moco_accel.checkpoints.run_log import EVALUATIONS, read_rows
from moco_accel.common.atomic_files import drop_rows_from, write_atomically
from moco_accel.common.errors import UserError
from moco_accel.evaluation.baselines import LabelledTiles, open_labelled, random_encoder
from moco_accel.evaluation.feature_health import alignment, rank_me, uniformity
from moco_accel.evaluation.features import extract_features, in_eval_mode, knn_accuracy, mean_colour_features
from moco_accel.networks.loss import feature_std
from moco_accel.networks.moco import MoCo
from moco_accel.processes.control_group import Agreement
from moco_accel.processes.phases import EVALUATION, enter, tick, waiting
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import Tiles
from moco_accel.training.loader import sample_views

_BASELINES = "baselines.json"
_SAMPLE = 1024  # tiles on which features are looked at without labels
_AT_ONCE = 256
_HEALTH_STEPS = 100  # a collapse shows there, before an epoch's end

NOTHING, HEALTH, ALL = 0, 1, 2

Figures = dict[str, float]


class Examiner:
    """Examines an encoder as it is trained. All processes call its methods together, each does its share of the tiles.

    Nothing of it changes the run: it draws no random number and runs BatchNorm by its statistics.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        tiles: Tiles,
        accelerator: Accelerator,
        agreement: Agreement,
        first_step: int,
        total_steps: int,
    ) -> None:
        self._recipe, self._run, self._tiles = recipe, run, tiles
        self._accelerator, self._agreement, self._total_steps = accelerator, agreement, total_steps
        self._began, self._spent, self._last = time.perf_counter(), 0.0, {HEALTH: 0.0, ALL: 0.0}
        wanted = recipe.evaluation.every_epochs is not None
        has_labels = recipe.evaluation.train_source is not None and recipe.evaluation.test_source is not None
        self._labelled = open_labelled(recipe) if wanted and has_labels else None
        self._best, self._is_divided = best_accuracy(run), False
        agreement.by_first(lambda: drop_rows_from(run / EVALUATIONS, first_step + 1 if first_step else 0))
        self._examined = {row["step"] for row in read_rows(run / EVALUATIONS)}

    def due(self, steps_done: int) -> int:
        """ALL after as many epochs as asked, HEALTH every 100 steps, NOTHING above its share of time; ALL at last."""
        every = self._recipe.evaluation.every_epochs
        if every is None or steps_done in self._examined:
            return NOTHING
        is_last = steps_done == self._total_steps
        if is_last or steps_done % (every * (self._total_steps // self._recipe.schedule.epochs)) == 0:
            what = ALL
        elif steps_done % _HEALTH_STEPS == 0:
            what = HEALTH
        else:
            return NOTHING
        allowed = self._recipe.evaluation.max_time_share * (time.perf_counter() - self._began)
        fits = is_last or self._spent + self._last[what] <= allowed
        return self._agreement.all(what if fits else NOTHING)[0]  # by the first process's clock

    def examine(self, moco: MoCo, what: int, steps_done: int) -> Figures:
        """Figures of the encoder, also as a row of RUN/evaluations.jsonl."""
        enter(EVALUATION)
        self._is_divided = moco.shards is not None
        began = time.perf_counter()
        epoch = round(steps_done / self._total_steps * self._recipe.schedule.epochs, 4)
        figures: Figures = {"step": steps_done, "epoch": epoch}
        if what == ALL and self._labelled is not None:
            baselines = self._baselines(self._labelled, moco)
            figures |= {"knn_epoch": epoch, "knn_top1": self._knn(moco.encoder, self._labelled)} | baselines
        figures |= self._health(moco.encoder)
        self._last[what] = time.perf_counter() - began
        self._spent += self._last[what]
        share = self._spent / (time.perf_counter() - self._began)
        figures |= {"seconds": round(self._last[what], 2), "time_share": round(share, 4)}
        self._agreement.by_first(lambda: _append(self._run / EVALUATIONS, figures))
        return figures

    def is_best(self, figures: Figures) -> bool:
        """Whether no kNN accuracy of the run was higher before."""
        accuracy = figures.get("knn_top1", -1.0)
        if not self._agreement.all(int(accuracy > self._best))[0]:
            return False
        self._best = accuracy
        return True

    def _knn(self, encoder: nn.Module, labelled: LabelledTiles) -> float:
        train, test = (self._features(encoder, side) for side in (labelled.train, labelled.test))
        evaluation = self._recipe.evaluation
        return knn_accuracy(
            train,
            labelled.train_labels,
            test,
            labelled.test_labels,
            evaluation.neighbours,
            evaluation.temperature,
            num_classes=len(labelled.names),
        )

    def _baselines(self, labelled: LabelledTiles, moco: MoCo) -> Figures:
        """Of random initialisation and mean colour: computed once, kept in RUN/baselines.json for resumed runs."""
        path, key = self._run / _BASELINES, _checksum(self._recipe, labelled)
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if any(self._agreement.all(int(kept.get("of") != key))):
            means = (
                mean_colour_features(labelled.train, self._recipe),
                mean_colour_features(labelled.test, self._recipe),
            )
            kept = {
                "of": key,
                "knn_top1_random_init": self._knn_of_random_init(labelled, moco),
                "knn_top1_mean_colour": knn_accuracy(
                    means[0],
                    labelled.train_labels,
                    means[1],
                    labelled.test_labels,
                    self._recipe.evaluation.neighbours,
                    num_classes=len(labelled.names),
                    metric="euclidean",
                ),
            }
            self._agreement.by_first(lambda: write_atomically(path, json.dumps(kept, indent=2) + "\n"))
        return {name: value for name, value in kept.items() if name != "of"}

    def _knn_of_random_init(self, labelled: LabelledTiles, moco: MoCo) -> float:
        encoder = moco.placed(random_encoder(self._recipe), self._accelerator.device)
        accuracy = self._knn(encoder, labelled)
        del encoder
        gc.collect()  # a divided one is part of cycles, and would stay on the device
        return accuracy

    def _features(self, encoder: nn.Module, tiles: Tiles) -> Tensor:
        """[N, D] of all tiles, on the CPU, on every process."""
        own = _share(len(tiles), self._accelerator)

        def extract(size: int) -> Tensor:
            return extract_features(
                encoder, tiles, self._recipe, self._accelerator.device, indices=own, batch_size=size
            )

        return self._gathered(self._smaller_until_it_fits(extract))[: len(tiles)]

    def _health(self, encoder: nn.Module) -> Figures:
        """Of both views of some of the run's own tiles."""
        count = min(_SAMPLE, len(self._tiles))
        order = torch.randperm(len(self._tiles), generator=torch.Generator().manual_seed(self._recipe.run.seed))
        indices = [int(order[place]) for place in _share(count, self._accelerator)]

        def extract(size: int) -> Tensor:
            views = sample_views(self._tiles, self._recipe, self._accelerator.device, indices, size)
            rows = []
            with torch.no_grad(), in_eval_mode(encoder):
                for pair in views:
                    rows.append(torch.stack([encoder(view).float().cpu() for view in pair], dim=1))
                    tick()
            return torch.cat(rows)

        both = self._gathered(self._smaller_until_it_fits(extract))[:count]
        first, second = both[:, 0], both[:, 1]
        return {
            "feature_std": float(feature_std(first)),
            "rank_me": rank_me(first),
            "rank_of": min(first.shape),
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
        }

    def _smaller_until_it_fits(self, extract: Callable[[int], Tensor]) -> Tensor:
        """In as many tiles at once as a step has, fewer where they do not fit: features are the same.

        Processes that divide an encoder run it in step, so that none may change its size alone. Raises UserError.
        """
        size = min(self._recipe.batch.micro_batch_size, _AT_ONCE)
        while True:
            try:
                return extract(size)
            except torch.OutOfMemoryError:
                if self._is_divided:
                    raise UserError(
                        f"out of memory in evaluation, on {size} tiles of an encoder that is divided over devices "
                        "(memory.fully_shard); evaluation.every_epochs=null trains without it"
                    ) from None
                if size == 1:
                    raise
                size //= 2
                torch.cuda.empty_cache()

    def _gathered(self, own: Tensor) -> Tensor:
        """Each process's rows, back in order: the first process has rows 0, n, 2n, …"""
        processes = self._accelerator.num_processes
        if processes == 1:
            return own
        with waiting():
            rows: Tensor = self._accelerator.gather(own.to(self._accelerator.device)).cpu()
        in_order: Tensor = rows.unflatten(0, (processes, -1)).transpose(0, 1).flatten(0, 1)
        return in_order


def _share(count: int, accelerator: Accelerator) -> list[int]:
    """This process's of `count` places; as many on each process, the last place again where they do not divide."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    return [min(place, count - 1) for place in range(rank, -(-count // processes) * processes, processes)]


def _append(path: Path, figures: Figures) -> None:
    with path.open("a") as rows:
        rows.write(json.dumps(figures) + "\n")


def _checksum(recipe: Recipe, labelled: LabelledTiles) -> str:
    """Of all that the baselines hang on."""
    parts = [recipe.evaluation.model_dump(), recipe.encoder.model_dump(), recipe.data.model_dump(), recipe.run.seed]
    parts += [labelled.train_labels.tolist(), labelled.test_labels.tolist()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
