"""The recipe: the one contract between planner and trainer.

A recipe is strict and typed; unknown keys are refused, and every error names the field, its value, the rule and a
value that works. This module imports no torch, so that `--help` and error messages come at once.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from moco_accel.recipe.constants import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    STORED_RANGES,
)
from moco_accel.recipe.data_sections import Augment, Data, Section
from moco_accel.recipe.hardware_sections import Hardware, Memory, Planned

_LARGEST = 1 << 24  # of a count of tiles or keys
_WIDEST = 1 << 17  # of a layer
_MOST_STEPS = 1 << 40


class Encoder(Section):
    """`weights`: a file, folder or hub id of pretrained weights that both sides start from; null: a random start."""

    name: str
    weights: str | None = None
    image_size: int = Field(224, ge=8, le=2048)
    bands: int = Field(3, ge=1, le=64)
    freeze_patch_projection: bool = True


class Moco(Section):
    projector_hidden_dim: int = Field(4096, ge=1, le=_WIDEST)
    output_dim: int = Field(256, ge=1, le=_WIDEST)
    predictor_output_norm: bool = True
    temperature: float = Field(0.2, ge=1e-3, le=1e3)
    momentum_coefficient: float = Field(0.99, ge=0, le=1)
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    queue_size: int = Field(0, ge=0, le=_LARGEST)


class Batch(Section):
    global_batch_size: int = Field(ge=2, le=_LARGEST, examples=[4096])
    micro_batch_size: int = Field(ge=1, le=_LARGEST, examples=[128])
    accumulation_steps: int = Field(ge=1, le=_LARGEST, examples=[16])
    contrast_over: Literal["global_batch", "micro_batch"] = "global_batch"


class Optimizer(Section):
    name: str = "adamw"
    base_lr: float = Field(1.5e-4, ge=0, le=1e6)
    lr: float = Field(ge=0, le=1e12, examples=[2.4e-3])
    weight_decay: float = Field(0.1, ge=0, le=1e6)


class Schedule(Section):
    epochs: int = Field(300, ge=1, le=1_000_000)
    warmup_epochs: float = Field(40, ge=0)


class Evaluation(Section):
    """Labelled shards on which frozen features are judged; `null` sources mean none.

    In training: after every `every_epochs` epochs (null: never), as far as it takes no more than `max_time_share` of
    the run's time, and after the last.
    """

    train_source: str | None = None
    test_source: str | None = None
    label_column: str = "label"
    every_epochs: int | None = Field(1, ge=1, le=1_000_000)
    max_time_share: float = Field(0.05, gt=0, le=1)
    neighbours: int = Field(20, ge=1, le=_LARGEST)
    temperature: float = Field(0.07, ge=1e-3, le=1e3)


class Run(Section):
    """`trackers`: where the figures go beside metrics.jsonl, through Accelerate.

    `heal_out_of_memory`: a step that runs out of memory is done over in smaller micro-batches, for which all processes
    meet before they send anything, some 45 times a step.
    """

    seed: int = Field(0, ge=0, lt=1 << 32)
    log_every_steps: int = Field(10, ge=1, le=_MOST_STEPS)
    checkpoint_every_steps: int = Field(200, ge=1, le=_MOST_STEPS)
    checkpoint_every_minutes: float | None = Field(30, gt=0, le=_MOST_STEPS)
    keep_checkpoints: int = Field(2, ge=1, le=_MOST_STEPS)
    stall_seconds: float | None = Field(90, ge=5, le=_MOST_STEPS)
    heal_out_of_memory: bool = True
    rendezvous_seconds: float = Field(600, ge=5, le=1e6)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)


class Recipe(Section):
    encoder: Encoder
    moco: Moco = Moco()
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    memory: Memory = Memory()
    hardware: Hardware = Hardware()
    augment: Augment = Augment()
    data: Data = Data()
    evaluation: Evaluation = Evaluation()
    run: Run = Run()
    planned: Planned | None = None

    @property
    def heals(self) -> bool:
        """Whether a step that ran out of memory is done over; processes that divide networks can't do so."""
        return self.run.heal_out_of_memory and not self.memory.fully_shard

    @property
    def per_device_batch_size(self) -> int:
        return self.batch.micro_batch_size * self.batch.accumulation_steps

    @property
    def keys_per_query(self) -> int:
        """Keys in one softmax: the positive, the other keys of the batch, and the queue."""
        if self.batch.contrast_over == "global_batch":
            in_batch = self.batch.global_batch_size
        else:
            in_batch = self.batch.micro_batch_size * self.hardware.num_devices
        return in_batch + self.moco.queue_size

    @property
    def negatives_per_query(self) -> int:
        return self.keys_per_query - 1

    @property
    def chance_loss(self) -> float:
        """The loss of features that tell nothing apart: 4 T ln(keys), two views of 2 T ln(keys) each."""
        return 4 * self.moco.temperature * math.log(self.keys_per_query)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Per-band mean and standard deviation of pixels in [0, 1].

        For three bands, null means ImageNet's. For others a run fills them in before it needs them (`resolve`); until
        then, and for a plan, they are one half and one quarter.
        """
        of_rgb = self.encoder.bands == len(IMAGENET_MEAN)
        mean = (
            (list(IMAGENET_MEAN) if of_rgb else [0.5] * self.encoder.bands)
            if self.data.mean is None
            else self.data.mean
        )
        std = (
            (list(IMAGENET_STD) if of_rgb else [0.25] * self.encoder.bands) if self.data.std is None else self.data.std
        )
        return mean, std

    @property
    def stored_range(self) -> tuple[list[float], list[float]]:
        """Per-band low and high: the stored values that become 0 and 1. Percentiles must have been filled in."""
        if self.data.low is not None and self.data.high is not None:
            return self.data.low, self.data.high
        low, high = STORED_RANGES[self.data.scaling]
        return [low] * self.encoder.bands, [high] * self.encoder.bands
