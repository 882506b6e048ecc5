"""Check what a recipe builds: schedules, batch, training step, queue and augmentation.

Steps are taken with a smaller copy of the recipe (`_make_trial_recipe`), so that all checks take seconds on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moco_accel.networks.moco import build_moco
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.sampler import MicroBatchSampler
from moco_accel.training.optimizers import build_optimizer, lr_at, momentum_coefficient_at
from moco_accel.training.step import build_accelerator, contrast_groups, prepare, train_step
from moco_accel.verify.network_checks import Check, check_networks
from moco_accel.views.augment import augment_pixels
from moco_accel.views.crops import CropBatch, make_crop
from moco_accel.views.parameters import Photometry

_TRIAL_TILES, _TRIAL_MICRO_BATCH, _TRIAL_SIDE = 16, 8, 32


def run_checks(recipe: Recipe) -> Iterator[Check]:
    """Yield the result of each check of `recipe`."""
    # no tiles are opened: 8-bit noise takes their place
    recipe = _change(recipe, "data", scaling="uint8", low=None, high=None)
    torch.manual_seed(recipe.run.seed)
    yield from check_networks(build_moco(recipe), recipe)
    yield from _check_rates(recipe)
    yield from _check_batch(recipe)
    yield from _check_steps(_make_trial_recipe(recipe))
    yield _check_rotations(recipe)
    yield _check_noise(recipe)


def _make_trial_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe for one process in fp32, with 16 tiles of at most 32 pixels in micro-batches of 8."""
    fields = recipe.model_dump(exclude={"planned"})
    fields["encoder"]["image_size"] = min(recipe.encoder.image_size, _TRIAL_SIDE)
    fields["batch"] |= {
        "global_batch_size": _TRIAL_TILES,
        "micro_batch_size": _TRIAL_MICRO_BATCH,
        "accumulation_steps": _TRIAL_TILES // _TRIAL_MICRO_BATCH,
    }
    fields["optimizer"]["lr"] = scaled_lr(recipe.optimizer.base_lr, _TRIAL_TILES)
    fields["moco"]["queue_size"] = 2 * _TRIAL_TILES if recipe.moco.queue_size else 0
    fields["memory"]["mixed_precision"] = "no"
    fields["hardware"] = {}
    return recipe_from_dict(fields)


def _check_rates(recipe: Recipe) -> Iterator[Check]:
    """Check lr at start, after warm-up and at the end, and the first and last momentum coefficient."""
    optimizer, schedule = recipe.optimizer, recipe.schedule
    expected = optimizer.base_lr * recipe.batch.global_batch_size / 256
    found = [lr_at(recipe, epoch) for epoch in (0, schedule.warmup_epochs, schedule.epochs)]
    start = 0.0 if schedule.warmup_epochs else expected
    yield Check(
        "lr = base_lr · global batch / 256, from 0 through warm-up to 0",
        all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15) for a, b in zip(found, [start, expected, 0.0], strict=True))
        and math.isclose(optimizer.lr, expected, rel_tol=1e-9),
        f"{optimizer.base_lr:g} · {recipe.batch.global_batch_size} / 256 = {expected:.4g}; "
        f"start {found[0]:.4g}, epoch {schedule.warmup_epochs:g} {found[1]:.4g}, end {found[2]:.1g}",
    )
    first, last = (momentum_coefficient_at(recipe, epoch) for epoch in (0, schedule.epochs))
    end = 1.0 if recipe.moco.momentum_schedule == "cosine" else recipe.moco.momentum_coefficient
    yield Check(
        f"momentum coefficient, {recipe.moco.momentum_schedule}",
        first == recipe.moco.momentum_coefficient and math.isclose(last, end),
        f"{first:g} at the start, {last:g} at the end",
    )


def _check_batch(recipe: Recipe) -> Iterator[Check]:
    """Check that the first step of all ranks together takes every tile of a global batch once."""
    batch, devices = recipe.batch, recipe.hardware.num_devices
    taken: list[Any] = []
    product = f"{batch.micro_batch_size} · {batch.accumulation_steps} · {devices}"
    for rank in range(devices):
        places = MicroBatchSampler(recipe, batch.global_batch_size, rank, 0)
        taken += [place for micro in islice(places, batch.accumulation_steps) for place in micro]
    yield Check(
        "micro-batch · accumulation steps · devices = global batch, each tile once",
        len(taken) == len(set(taken)) == batch.global_batch_size,
        f"{product} = {recipe.per_device_batch_size * devices}, {len(set(taken))} different tiles; "
        f"{recipe.negatives_per_query} negatives per query",
    )


def _check_steps(trial: Recipe) -> Iterator[Check]:
    """Take two optimizer steps on noise; check the loss, the momentum side, the gradients and the queue."""
    accelerator = build_accelerator(trial, cpu=True)
    moco = build_moco(trial)
    model, optimizer = prepare(accelerator, moco, build_optimizer(trial, moco))
    side = trial.encoder.image_size
    shape = (2, _TRIAL_TILES, trial.encoder.bands, side, side)
    first, second = (view.split(_TRIAL_MICRO_BATCH) for view in torch.randn(shape))
    # the momentum side equals the query side at the start, so these are the keys of the first step
    keys = torch.cat([moco.keys(view) for _, view in contrast_groups((first, second), trial)])
    start, queue = _parameters(moco.momentum_encoder), moco.queue.clone()
    coefficient = trial.moco.momentum_coefficient
    loss = train_step(accelerator, model, optimizer, (first, second), trial, coefficient).loss.item()
    query, queue_after = _parameters(moco.encoder), moco.queue.clone()
    places = int(moco.queue_start)
    two_tiles = [first[0][:2]], [second[0][:2]]  # the second step updates the momentum side with the first
    train_step(accelerator, model, optimizer, two_tiles, trial, coefficient)
    yield _check_first_loss(loss, trial)
    yield _check_momentum_step(start, query, _parameters(moco.momentum_encoder), coefficient)
    reached = [
        name
        for name, p in moco.named_parameters()
        if name.startswith("momentum_") and (p.grad is not None or p.requires_grad)
    ]
    reached += [name for name, tensor in (("keys", keys), ("queue", moco.queue)) if tensor.requires_grad]
    yield Check(
        "no gradient reaches keys, momentum side or queue",
        not reached,
        f"{len(reached)} tensors reached" + (f": {reached[0]} …" if reached else ""),
    )
    yield _check_queue(queue, queue_after, keys, places)


def _check_first_loss(loss: float, trial: Recipe) -> Check:
    # similarities of random unit vectors in d dimensions have variance 1/d, which adds 1/(2 d T²) to each cross-entropy
    temperature = trial.moco.temperature
    expected = trial.chance_loss + 4 * temperature / (2 * trial.moco.output_dim * temperature**2)
    return Check(
        "loss at start near 4 T ln(keys)",
        math.isfinite(loss) and abs(loss / expected - 1) < 0.1,
        f"{loss:.3f}; 4 · {temperature:g} · ln({trial.keys_per_query}) = {trial.chance_loss:.3f}",
    )


def _check_momentum_step(start: Tensor, query: Tensor, momentum: Tensor, coefficient: float) -> Check:
    expected = torch.lerp(start, query, 1 - coefficient)  # rounded as in the step: LARS moves little more than an ulp
    due, error = _norm(expected - start), _norm(momentum - expected)
    way = _norm(momentum - start) / _norm(query - start)
    return Check(
        "momentum side = m · itself + (1 - m) · query side, once per step",
        error <= 0.01 * due,
        f"{way:.4f} of the way in a step (1 - m = {1 - coefficient:.4f}); relative error {error / due:.0e}",
    )


def _check_queue(before: Tensor, after: Tensor, keys: Tensor, start: int) -> Check:
    name = "queue takes the normalised keys of view 2 once per step"
    if not len(before):
        return Check(name, True, "off")
    expected = torch.cat([functional.normalize(keys, dim=1), before[len(keys) :]])
    error = (after - expected).abs().max().item()
    changed = int((after != before).any(1).sum())
    return Check(
        name,
        error < 1e-5 and start == len(keys) == changed,
        f"{changed} of {len(before)} replaced by {len(keys)} keys; largest difference {error:.0e}",
    )


def _check_rotations(recipe: Recipe) -> Check:
    """Check that each whole-tile crop is one of the eight turns and flips of a square."""
    side = min(recipe.encoder.image_size, _TRIAL_SIDE)
    whole = _change(_change(recipe, "augment", crop_min_scale=1.0), "encoder", image_size=side)
    tile = torch.randint(0, 256, (recipe.encoder.bands, side, side), dtype=torch.uint8)
    turned = [torch.rot90(tile, turns, (-2, -1)) for turns in range(4)]
    eight = [image.flip(axes) for image in turned for axes in ([], [-1])]
    found = [make_crop(tile, whole, 0, index, index % 2).pixels for index in range(64)]
    kinds = [next((kind for kind, image in enumerate(eight) if torch.equal(image, crop)), None) for crop in found]
    between = kinds.count(None)
    return Check(
        "rotations are multiples of 90°",
        between == 0,
        f"{len(found)} crops: {len(set(kinds) - {None})} of the square's 8 turns and flips, {between} of none",
    )


def _check_noise(recipe: Recipe) -> Check:
    """Check on grey pixels that the noise has its size in the pixel range, not in normalised units."""
    name, std = "noise precedes normalisation", min(recipe.augment.noise_std, 0.05)  # beyond it, pixels saturate
    if not std:
        return Check(name, True, "off")
    noisy = _change(recipe, "augment", noise_std=std)
    grey = torch.full((8, recipe.encoder.bands, _TRIAL_SIDE, _TRIAL_SIDE), 0.5)
    output = augment_pixels(CropBatch(grey, [Photometry()] * 8, list(range(8))), noisy)
    mean, scale = (torch.tensor(values)[:, None, None] for values in recipe.normalisation)
    found = (output * scale + mean).std().item()
    return Check(
        name, abs(found / std - 1) < 0.05, f"standard deviation {found:.4f} of the pixel range; recipe {std:g}"
    )


def _change(recipe: Recipe, section: str, **fields: object) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=fields)})


def _norm(difference: Tensor) -> float:
    """Float32 loses 10 % over 86 million squares. At least 1e-12, because results are divided by it."""
    return max(float(torch.linalg.vector_norm(difference, dtype=torch.float64)), 1e-12)


def _parameters(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
