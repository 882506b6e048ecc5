"""Recipe sections `memory`, `hardware` and `planned`: where a recipe runs and how it fits there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moco_accel.recipe.data_sections import Section

Mib = Annotated[int, Field(ge=-(1 << 40), le=1 << 40)]


class Memory(Section):
    """What is stored in which precision. All but `mixed_precision` leave the gradient as it is.

    Attributes:
        mixed_precision: Autocast type of the forward passes; `no`: float32.
        activation_checkpointing: Keep only the inputs of the encoder's blocks and recompute the rest in backward.
        keep_last_micro_batch: Keep the last micro-batch's activations beside the heads' to save one recomputation.
        expandable_segments: Let CUDA's allocator grow its segments, which reduces fragmentation (Linux only).
        fully_shard: Shard matrices, gradients and optimizer state over the devices of a node (FSDP2).
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    activation_checkpointing: bool = False
    keep_last_micro_batch: bool = True
    expandable_segments: bool = True
    fully_shard: bool = False


class Hardware(Section):
    """The devices that a recipe is made for.

    Attributes:
        num_devices: Devices of all nodes together; every node has the same number.
        num_nodes: Nodes (hosts).
        vram_gib: Memory of each GPU in GiB; null: no GPU in particular, the recipe may run on a CPU.
        gpu: Name of the GPU; null: any with `vram_gib`.
    """

    num_devices: int = Field(1, ge=1, le=65_536)
    num_nodes: int = Field(1, ge=1, le=65_536)
    vram_gib: float | None = Field(None, gt=0, le=1e6)
    gpu: str | None = None


class Planned(Section):
    """The planner's prediction for each device; only the planner writes this section.

    Attributes:
        peak_reserved_mib: Peak memory reserved by the allocator, in MiB.
        headroom_mib: Memory left on the device at the peak, in MiB.
        breakdown_mib: Memory of the device at the peak by kind, in MiB.
        torch: Version of torch that was traced.
        measured_on: GPU on which the peak was measured; null: it is predicted.
    """

    peak_reserved_mib: Mib
    headroom_mib: Mib
    breakdown_mib: dict[str, Mib]
    torch: str
    measured_on: str | None = None
