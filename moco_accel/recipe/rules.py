"""Rules between fields of a recipe: batch arithmetic, linear scaling of lr, divisibility."""

from __future__ import annotations

import math
import re

from moco_accel.common.errors import UserError, short_repr
from moco_accel.recipe.data_sections import STORED_RANGES, Data
from moco_accel.recipe.encoder_names import ENCODER_NAMES, RESNET_NAMES, VIT_NAMES, closest_encoder
from moco_accel.recipe.schema import Recipe

_LINEAR_SCALING_BASE = 256  # lr = base_lr * global_batch_size / 256 (Goyal et al. 2017; MoCo v3 section 4)
_RESNET_STRIDE = 32  # of the last feature map
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
MIN_RELATIVE_RANGE = 1e-6  # of low to high; float32 resolves no less
_MAX_TEXT_CHARACTERS = 4096  # of a path on Linux


def check_rules(recipe: Recipe) -> None:
    """Check all rules between fields; raise UserError for the first that is violated."""
    _check_texts(recipe)
    _check_encoder(recipe)
    _check_batch(recipe)
    _check_sharding(recipe)
    _check_optimizer(recipe)
    _check_schedule(recipe)
    _check_queue(recipe)
    _check_data(recipe)
    _check_scaling(recipe.data)


def _check_texts(recipe: Recipe) -> None:
    """Refuse texts that are too long for a path, or hold characters that would break a line or a path."""
    for section, fields in recipe:
        for field, value in fields or ():
            for text in value if isinstance(value, list | dict) else [value]:
                if isinstance(text, str) and (len(text) > _MAX_TEXT_CHARACTERS or _UNPRINTABLE.search(text)):
                    raise UserError(
                        f"{section}.{field}={short_repr(text)} is longer than {_MAX_TEXT_CHARACTERS} characters, or "
                        "holds an unprintable one; a plain name works"
                    )


def nearest_multiples(size: int, unit: int) -> str:
    """Return the multiples of `unit` nearest to `size`, of 2 or more, for error messages."""
    below = size // unit * unit
    return ", ".join(str(n) for n in (below, below + unit) if n >= 2)


def scaled_lr(base_lr: float, global_batch_size: int) -> float:
    """Return base_lr x global_batch_size / 256, rounded to 10 digits so that it can be written down."""
    return float(f"{base_lr * global_batch_size / _LINEAR_SCALING_BASE:.10g}")


def _check_encoder(recipe: Recipe) -> None:
    name, size = recipe.encoder.name, recipe.encoder.image_size
    if name not in ENCODER_NAMES:
        raise UserError(f"encoder.name={name!r} is not known; encoder.name={closest_encoder(name)} works")
    if name in VIT_NAMES and size % (patch := int(name.rpartition("patch")[2])):
        raise UserError(
            f"encoder.image_size={size} is not a multiple of {name}'s patch of {patch}; "
            f"nearest: {nearest_multiples(size, patch)}"
        )


def min_micro_batch_size(encoder: str, image_size: int) -> int:
    """Return 2 for a ResNet on 32 pixels or less, whose last map leaves BatchNorm one value per tile; otherwise 1."""
    return 2 if encoder in RESNET_NAMES and image_size <= _RESNET_STRIDE else 1


def _check_batch(recipe: Recipe) -> None:
    encoder, batch = recipe.encoder, recipe.batch
    devices, nodes = recipe.hardware.num_devices, recipe.hardware.num_nodes
    if devices % nodes:
        raise UserError(
            f"hardware.num_devices={devices} does not divide over hardware.num_nodes={nodes} nodes of equal size; "
            f"hardware.num_nodes={max(n for n in range(1, nodes) if devices % n == 0)} works"
        )
    total, micro_batch = batch.global_batch_size, batch.micro_batch_size
    least = min_micro_batch_size(encoder.name, encoder.image_size)
    if micro_batch < least:
        raise UserError(
            f"batch.micro_batch_size={micro_batch} leaves {encoder.name}'s BatchNorm one value per channel at "
            f"{encoder.image_size} pixels; batch.micro_batch_size={least} works"
        )
    if total % devices:
        raise UserError(
            f"batch.global_batch_size={total} does not divide over {devices} devices; "
            f"nearest: {nearest_multiples(total, devices)}"
        )
    product = recipe.per_device_batch_size * devices
    if product != total:
        raise UserError(
            f"batch.global_batch_size={total} is not micro_batch_size {micro_batch} x accumulation_steps "
            f"{batch.accumulation_steps} x num_devices {devices} = {product}; {_settings_for_batch(recipe, least)}"
        )


def _settings_for_batch(recipe: Recipe, least: int) -> str:
    """Return the overrides with which a recipe's global batch works, in micro-batches of at most the recipe's size."""
    batch, optimizer = recipe.batch, recipe.optimizer
    per_device = batch.global_batch_size // recipe.hardware.num_devices
    sizes = [size for size in range(1, min(batch.micro_batch_size, per_device) + 1) if per_device % size == 0]
    size = max((size for size in sizes if size >= least), default=per_device)
    works: dict[str, object] = {}
    if size != batch.micro_batch_size:
        works["batch.micro_batch_size"] = size
    if per_device // size != batch.accumulation_steps:
        works["batch.accumulation_steps"] = per_device // size
    if not math.isclose(optimizer.lr, lr := scaled_lr(optimizer.base_lr, batch.global_batch_size), rel_tol=1e-6):
        works["optimizer.lr"] = lr
    fields = " ".join(f"{name}={value}" for name, value in works.items())
    return f"{fields} work{'s' if len(works) == 1 else ''}"


def can_shard(devices: int) -> bool:
    """Return True if a node with so many devices supports `memory.fully_shard`: powers of two from 2 on."""
    return devices > 1 and not devices & (devices - 1)


def _check_sharding(recipe: Recipe) -> None:
    if not recipe.memory.fully_shard:
        return
    per_node, rule = recipe.hardware.num_devices // recipe.hardware.num_nodes, "memory.fully_shard=true"
    if recipe.encoder.name in RESNET_NAMES:
        raise UserError(f"{rule} shards ViTs, and encoder.name={recipe.encoder.name!r}; memory.fully_shard=false works")
    if not can_shard(per_node):
        raise UserError(
            f"{rule} shards matrices over a node's devices, of which there are {per_node}; 2, 4 or 8 work, or "
            "memory.fully_shard=false"
        )
    if recipe.optimizer.name == "lars":
        raise UserError(
            f"{rule} leaves each device a shard of a matrix, and optimizer.name='lars' needs its norm; adamw works"
        )
    if recipe.memory.mixed_precision == "fp16":
        raise UserError(
            f"{rule} leaves each device a shard of the gradient, and memory.mixed_precision='fp16' must detect an "
            "overflow in any of them; bf16 works"
        )
    if recipe.memory.keep_last_micro_batch and recipe.batch.accumulation_steps > 1:
        raise UserError(
            f"{rule} runs backward through one micro-batch at a time; memory.keep_last_micro_batch=false works"
        )


def _check_optimizer(recipe: Recipe) -> None:
    name, base_lr, lr = recipe.optimizer.name, recipe.optimizer.base_lr, recipe.optimizer.lr
    if name == "lars_8bit":
        raise UserError(
            "optimizer.name='lars_8bit' is refused: bitsandbytes' 8-bit LARS drops the trust ratio; use lars "
            "(32-bit) or adamw_8bit"
        )
    if name not in (known := ("adamw", "adamw_8bit", "lars")):
        raise UserError(f"optimizer.name={name!r} is not known; one of: {', '.join(known)}")
    expected = scaled_lr(base_lr, recipe.batch.global_batch_size)
    if not math.isclose(lr, expected, rel_tol=1e-6):
        raise UserError(
            f"optimizer.lr={lr:g} is not base_lr {base_lr:g} x global_batch_size "
            f"{recipe.batch.global_batch_size} / {_LINEAR_SCALING_BASE}; optimizer.lr={expected:.10g} works"
        )


def _check_schedule(recipe: Recipe) -> None:
    warmup, epochs = recipe.schedule.warmup_epochs, recipe.schedule.epochs
    if warmup > epochs:
        raise UserError(
            f"schedule.warmup_epochs={warmup:g} is longer than schedule.epochs={epochs}; "
            f"schedule.warmup_epochs={epochs // 10} works"
        )


def _check_queue(recipe: Recipe) -> None:
    size, enqueued = recipe.moco.queue_size, recipe.batch.global_batch_size
    if size % enqueued:
        raise UserError(
            f"moco.queue_size={size} is not a multiple of the {enqueued} keys enqueued per optimizer step; "
            f"nearest: {size // enqueued * enqueued}, {(size // enqueued + 1) * enqueued}"
        )


def _check_data(recipe: Recipe) -> None:
    data, bands = recipe.data, recipe.encoder.bands
    for field, names in (("bands", data.bands or []), ("stored_bands", data.stored_bands or [])):
        if len(set(names)) != len(names):
            once = ", ".join(dict.fromkeys(names))
            raise UserError(f"data.{field}={names} names a band twice; data.{field}=[{once}] works")
    for field in ("bands", "low", "high", "mean", "std"):
        values = getattr(data, field)
        if values is not None and len(values) != bands:
            what, works = "numbers", f"data.{field}=null"
            if field == "bands":
                what, works = "names", f"encoder.bands={len(values)}"
            raise UserError(
                f"data.{field}={values} has {len(values)} {what}; encoder.bands={bands} needs {bands}; {works} works"
            )
    if data.std is not None and min(data.std) <= 0:
        raise UserError(
            f"data.std={data.std} must be above 0 in every band; data.std=null works: measured, or ImageNet's"
        )
    if recipe.augment.preset == "seasons" and data.pair_column is None:
        raise UserError(
            "augment.preset='seasons' needs pairs of one place, and data.pair_column=null; data.pair_column=image_pair "
            "works after moco-data build --pair-with, augment.preset=satellite without pairs"
        )


def _check_scaling(data: Data) -> None:
    if (data.low is None) != (data.high is None) or (data.scaling == "range" and data.low is None):
        missing = "low" if data.low is None else "high"
        raise UserError(
            f"data.{missing}=null: data.scaling={data.scaling!r} needs low and high, one number per band each; "
            "data.scaling=percentiles data.low=null data.high=null work: the tiles' own"
        )
    if data.low is None or data.high is None:
        return
    for low, high in zip(data.low, data.high, strict=True):
        if not high - low > MIN_RELATIVE_RANGE * max(abs(low), abs(high)):
            raise UserError(
                f"data.high={data.high} must be above data.low={data.low} in every band, by what float32 resolves; "
                f"data.high={[low + max(1.0, abs(low)) for low in data.low]} works"
            )
    expected = STORED_RANGES.get(data.scaling)
    if expected and any(pair != expected for pair in zip(data.low, data.high, strict=True)):
        raise UserError(
            f"data.low={data.low} and data.high={data.high} are not what data.scaling={data.scaling!r} means "
            f"({expected[0]:g} and {expected[1]:g}); data.scaling=range works"
        )
