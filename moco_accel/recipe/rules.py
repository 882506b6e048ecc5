"""What holds between a recipe's fields: batch arithmetic, linearly scaled lr, sizes that must divide."""

from __future__ import annotations

import math
import re

from moco_accel.common.errors import UserError, short
from moco_accel.recipe.constants import ENCODER_NAMES, RESNET_NAMES, STORED_RANGES, VIT_NAMES
from moco_accel.recipe.data_sections import Data
from moco_accel.recipe.schema import Recipe

_LINEAR_SCALING_BASE = 256  # lr = base_lr * global_batch_size / 256 (Goyal et al. 2017; MoCo v3 section 4)
_LAST_STRIDE = 32
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LEAST_RANGE = 1e-6
_LONGEST_TEXT = 4096  # as of a path


def check_rules(recipe: Recipe) -> None:
    """Raises UserError on the first rule that `recipe` breaks."""
    checks = (
        _check_texts,
        _check_encoder,
        _check_nodes,
        _check_batch,
        _check_sharding,
        _check_optimizer,
        _check_schedule,
        _check_queue,
        _check_data,
    )
    for check in checks:
        check(recipe)


def _check_texts(recipe: Recipe) -> None:
    """No name is as long as a book, or has a character that can't be seen: it would break lines, or end a path."""
    for section, fields in recipe:
        for field, value in fields or ():
            for text in value if isinstance(value, list | dict) else [value]:
                if isinstance(text, str) and (len(text) > _LONGEST_TEXT or _UNSEEN.search(text)):
                    raise UserError(
                        f"{section}.{field}={short(text)} is longer than {_LONGEST_TEXT} characters, or holds one that "
                        "can't be seen; a plain name works"
                    )


def divisible_batches(global_batch_size: int, unit: int) -> str:
    """The batch sizes nearest to `global_batch_size` that are multiples of `unit`, for error messages."""
    below = global_batch_size // unit * unit
    return ", ".join(str(n) for n in (below, below + unit) if n >= 2)


def scaled_lr(base_lr: float, global_batch_size: int) -> float:
    """Linear scaling rule. Rounded to 10 digits, so that a person can write the product down."""
    return float(f"{base_lr * global_batch_size / _LINEAR_SCALING_BASE:.10g}")


def _check_encoder(recipe: Recipe) -> None:
    name, size = recipe.encoder.name, recipe.encoder.image_size
    if name not in ENCODER_NAMES:
        raise UserError(f"encoder.name={name!r} is not known; one of: {', '.join(ENCODER_NAMES)}")
    if name in VIT_NAMES and size % (patch := int(name.rpartition("patch")[2])):
        raise UserError(
            f"encoder.image_size={size} is not a multiple of {name}'s patch of {patch}; "
            f"nearest: {divisible_batches(size, patch)}"
        )


def least_micro_batch(encoder: str, image_size: int) -> int:
    """BatchNorm wants two values of a channel: a ResNet's last map of a tile of 32 pixels or less has one."""
    return 2 if encoder in RESNET_NAMES and image_size <= _LAST_STRIDE else 1


def _check_batch(recipe: Recipe) -> None:
    least = least_micro_batch(recipe.encoder.name, recipe.encoder.image_size)
    if recipe.batch.micro_batch_size < least:
        raise UserError(
            f"batch.micro_batch_size={recipe.batch.micro_batch_size} gives {recipe.encoder.name}'s BatchNorm one value "
            f"a channel at {recipe.encoder.image_size} pixels; batch.micro_batch_size={least} works"
        )
    batch, devices = recipe.batch, recipe.hardware.num_devices
    total = batch.global_batch_size
    if total % devices:
        raise UserError(
            f"batch.global_batch_size={total} does not divide over {devices} devices; "
            f"nearest: {divisible_batches(total, devices)}"
        )
    if batch.micro_batch_size * batch.accumulation_steps * devices == total:
        return
    rule = (
        f"batch.global_batch_size={total} is not micro_batch_size {batch.micro_batch_size} x accumulation_steps "
        f"{batch.accumulation_steps} x num_devices {devices} = "
        f"{batch.micro_batch_size * batch.accumulation_steps * devices}"
    )
    per_device = total // devices
    if per_device % batch.micro_batch_size == 0:
        raise UserError(f"{rule}; batch.accumulation_steps={per_device // batch.micro_batch_size} works")
    works = divisible_batches(total, batch.micro_batch_size * devices)
    raise UserError(f"{rule}; nearest global batches for this micro-batch: {works}")


def _check_nodes(recipe: Recipe) -> None:
    devices, nodes = recipe.hardware.num_devices, recipe.hardware.num_nodes
    if devices % nodes:
        raise UserError(
            f"hardware.num_devices={devices} does not divide over hardware.num_nodes={nodes}, each with as many; "
            f"hardware.num_devices={-(-devices // nodes) * nodes} works"
        )


def divides_networks(devices: int) -> bool:
    """Whether so many devices of a node can divide matrices between them (`memory.fully_shard`): powers of two."""
    return devices > 1 and not devices & (devices - 1)


def _check_sharding(recipe: Recipe) -> None:
    if not recipe.memory.fully_shard:
        return
    per_node, rule = recipe.hardware.num_devices // recipe.hardware.num_nodes, "memory.fully_shard=true"
    if recipe.encoder.name in RESNET_NAMES:
        raise UserError(
            f"{rule} divides ViTs, and encoder.name={recipe.encoder.name!r}; memory.fully_shard=false works"
        )
    if not divides_networks(per_node):
        raise UserError(
            f"{rule} divides matrices over a node's devices, of which there are {per_node}; 2, 4 or 8 work, or "
            "memory.fully_shard=false"
        )
    if recipe.optimizer.name == "lars":
        raise UserError(
            f"{rule} leaves each device a part of a matrix, and optimizer.name='lars' wants its norm; adamw works"
        )
    if recipe.memory.mixed_precision == "fp16":
        raise UserError(
            f"{rule} leaves each device a part of the gradient, and memory.mixed_precision='fp16' wants to know of an "
            "overflow in any; bf16 works"
        )
    if recipe.memory.keep_last_micro_batch and recipe.batch.accumulation_steps > 1:
        raise UserError(f"{rule} goes back through one micro-batch at a time; memory.keep_last_micro_batch=false works")


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
    if data.bands is not None and len(set(data.bands)) != len(data.bands):
        raise UserError(f"data.bands={data.bands} names a band twice; every band once works")
    if data.stored_bands is not None and len(set(data.stored_bands)) != len(data.stored_bands):
        raise UserError(f"data.stored_bands={data.stored_bands} names a band twice; every band once works")
    for field in ("bands", "low", "high", "mean", "std"):
        values = getattr(data, field)
        if values is not None and len(values) != bands:
            what = "names" if field == "bands" else "numbers"
            raise UserError(f"data.{field}={values} has {len(values)} {what}; encoder.bands={bands} wants {bands}")
    if data.std is not None and min(data.std) <= 0:
        raise UserError(f"data.std={data.std} must be above 0 in every band; e.g. 0.2")
    if recipe.augment.preset == "seasons" and data.pair_column is None:
        raise UserError(
            "augment.preset='seasons' wants pairs of one place, and data.pair_column=null; data.pair_column=image_pair "
            "works after moco-data build --pair-with, augment.preset=satellite without pairs"
        )
    _check_scaling(data)


def _check_scaling(data: Data) -> None:
    if (data.low is None) != (data.high is None) or (data.scaling == "range" and data.low is None):
        missing = "low" if data.low is None else "high"
        raise UserError(
            f"data.{missing}=null: data.scaling={data.scaling!r} wants low and high, one number per band each; "
            "data.scaling=percentiles takes them from the tiles"
        )
    if data.low is None or data.high is None:
        return
    for low, high in zip(data.low, data.high, strict=True):
        if not high - low > _LEAST_RANGE * max(abs(low), abs(high)):
            raise UserError(
                f"data.high={data.high} must be above data.low={data.low} in every band, by what float32 can tell"
            )
    if data.scaling in STORED_RANGES:
        expected = STORED_RANGES[data.scaling]
        if any(pair != expected for pair in zip(data.low, data.high, strict=True)):
            raise UserError(
                f"data.low={data.low} and data.high={data.high} are not what data.scaling={data.scaling!r} means "
                f"({expected[0]:g} and {expected[1]:g}); data.scaling=range keeps them"
            )
