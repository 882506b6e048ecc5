"""The recipe's schema: every section and field, with its type, limits, unit and default."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from moco_accel.recipe.data_sections import STORED_RANGES, Augment, Data, Section
from moco_accel.recipe.hardware_sections import Hardware, Memory, Planned

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MAX_COUNT = 1 << 24  # of tiles or keys
_MAX_WIDTH = 1 << 17  # of a layer
_MAX_STEPS = 1 << 40


class Encoder(Section):
    """The encoder of both sides.

    Attributes:
        name: One of `encoder_names.ENCODER_NAMES`, such as `vit_small_patch16` or `resnet50`.
        weights: File, folder or hub id of pretrained weights for both sides; null: random initialisation.
        image_size: Height and width of a view in pixels.
        bands: Number of bands.
        freeze_patch_projection: Keep the first layer at its initial values (MoCo v3, section 4.2); true for ViTs.
    """

    name: str
    weights: str | None = None
    image_size: int = Field(224, ge=8, le=2048)
    bands: int = Field(3, ge=1, le=1024)
    freeze_patch_projection: bool = True


class Moco(Section):
    """Heads, loss and momentum encoder.

    Attributes:
        projector_hidden_dim: Width of the hidden layers of projector and predictor.
        output_dim: Width of queries and keys.
        predictor_output_norm: End the predictor with BatchNorm.
        temperature: Temperature T of the loss.
        momentum_coefficient: Share of the momentum encoder that an optimizer step keeps.
        momentum_schedule: `constant`, or `cosine`: from `momentum_coefficient` to 1 over the run.
        queue_size: Keys of earlier steps that serve as further negatives (MoCo v2); 0: no queue.
    """

    projector_hidden_dim: int = Field(4096, ge=1, le=_MAX_WIDTH)
    output_dim: int = Field(256, ge=1, le=_MAX_WIDTH)
    predictor_output_norm: bool = True
    temperature: float = Field(0.2, ge=1e-3, le=1e3)
    momentum_coefficient: float = Field(0.99, ge=0, le=1)
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    queue_size: int = Field(0, ge=0, le=_MAX_COUNT)


class Batch(Section):
    """Batch arithmetic: global_batch_size = micro_batch_size x accumulation_steps x num_devices.

    Attributes:
        global_batch_size: Tiles per optimizer step, over all devices.
        micro_batch_size: Tiles that a device processes at once.
        accumulation_steps: Micro-batches of a device per optimizer step.
        contrast_over: Keys in the loss: `global_batch` (as without accumulation), or one `micro_batch` of each device.
    """

    global_batch_size: int = Field(ge=2, le=_MAX_COUNT, examples=[4096])
    micro_batch_size: int = Field(ge=1, le=_MAX_COUNT, examples=[128])
    accumulation_steps: int = Field(ge=1, le=_MAX_COUNT, examples=[16])
    contrast_over: Literal["global_batch", "micro_batch"] = "global_batch"


class Optimizer(Section):
    """The optimizer.

    Attributes:
        name: `adamw`, `adamw_8bit` (state in 8 bits) or `lars`.
        base_lr: Learning rate for a global batch of 256.
        lr: Peak learning rate; must equal base_lr x global_batch_size / 256.
        weight_decay: Weight decay.
    """

    name: str = "adamw"
    base_lr: float = Field(1.5e-4, ge=0, le=1e6)
    lr: float = Field(ge=0, le=1e12, examples=[2.4e-3])
    weight_decay: float = Field(0.1, ge=0, le=1e6)


class Schedule(Section):
    """The learning rate: a linear warm-up, then half a cosine down to 0.

    Attributes:
        epochs: Epochs of the run.
        warmup_epochs: Epochs of the warm-up; fractions are allowed.
    """

    epochs: int = Field(300, ge=1, le=1_000_000)
    warmup_epochs: float = Field(40, ge=0)


class Evaluation(Section):
    """Evaluation of frozen features on labelled tiles, during a run and by `moco-eval`.

    Attributes:
        train_source: Labelled tiles in which kNN looks for neighbours; null: no kNN during the run.
        test_source: Labelled tiles that kNN classifies; null: no kNN during the run.
        label_column: Column with the labels.
        every_epochs: Epochs between online evaluations, the last of which ends the run; null: no online evaluation.
        max_time_share: Largest fraction of the run's time that online evaluations may take.
        neighbours: Number k of nearest neighbours.
        temperature: Temperature that weights neighbours by their similarity.
    """

    train_source: str | None = None
    test_source: str | None = None
    label_column: str = "label"
    every_epochs: int | None = Field(1, ge=1, le=1_000_000)
    max_time_share: float = Field(0.05, gt=0, le=1)
    neighbours: int = Field(20, ge=1, le=_MAX_COUNT)
    temperature: float = Field(0.07, ge=1e-3, le=1e3)


class Run(Section):
    """How a run logs, saves and ends.

    Attributes:
        seed: Seed of initial weights, order of tiles and augmentation.
        log_every_steps: Optimizer steps between rows of metrics.jsonl.
        checkpoint_every_steps: Optimizer steps between checkpoints.
        checkpoint_every_minutes: Minutes between checkpoints, in addition; null: by steps alone.
        keep_checkpoints: Newest checkpoints to keep. The best one is always kept.
        stall_seconds: Seconds, or ten steps if longer, without progress after which the run ends; null: no limit.
        heal_out_of_memory: Retry a step that ran out of memory in smaller micro-batches; ranks exchange their status.
        rendezvous_seconds: Seconds that ranks wait for each other at startup.
        trackers: Trackers that receive the metrics through Accelerate, besides metrics.jsonl.
    """

    seed: int = Field(0, ge=0, lt=1 << 32)
    log_every_steps: int = Field(10, ge=1, le=_MAX_STEPS)
    checkpoint_every_steps: int = Field(200, ge=1, le=_MAX_STEPS)
    checkpoint_every_minutes: float | None = Field(30, gt=0, le=_MAX_STEPS)
    keep_checkpoints: int = Field(2, ge=1, le=_MAX_STEPS)
    stall_seconds: float | None = Field(90, ge=5, le=_MAX_STEPS)
    heal_out_of_memory: bool = True
    rendezvous_seconds: float = Field(600, ge=5, le=1e6)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)


class Recipe(Section):
    """A whole recipe. Each attribute is a section; `planned` is null until the planner fills it in."""

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
    def recovers_from_oom(self) -> bool:
        """True if a step that ran out of memory is retried. Ranks that shard networks cannot retry."""
        return self.run.heal_out_of_memory and not self.memory.fully_shard

    @property
    def per_device_batch_size(self) -> int:
        """Tiles of a device per optimizer step."""
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
        """Keys in one softmax that are not the positive."""
        return self.keys_per_query - 1

    @property
    def chance_loss(self) -> float:
        """Loss of features that tell no tiles apart: 4 T ln(keys), from two views of 2 T ln(keys) each."""
        return 4 * self.moco.temperature * math.log(self.keys_per_query)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per band, of pixels in [0, 1].

        Three bands default to ImageNet's; others to placeholders for a plan, as a run measures them first.
        """
        bands = self.encoder.bands
        is_rgb = bands == len(IMAGENET_MEAN)
        mean, std = (list(IMAGENET_MEAN), list(IMAGENET_STD)) if is_rgb else ([0.5] * bands, [0.25] * bands)
        return self.data.mean or mean, self.data.std or std

    @property
    def stored_range(self) -> tuple[list[float], list[float]]:
        """Low and high per band: the stored values that become 0 and 1. Percentiles must have been filled in."""
        if self.data.low is not None and self.data.high is not None:
            return self.data.low, self.data.high
        low, high = STORED_RANGES[self.data.scaling]
        return [low] * self.encoder.bands, [high] * self.encoder.bands
