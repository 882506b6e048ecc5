"""Where a recipe runs and how it fits there: memory, hardware, and what the planner expected."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moco_accel.recipe.data_sections import Section

Mib = Annotated[int, Field(ge=-(1 << 40), le=1 << 40)]


class Memory(Section):
    """Where things are stored; the gradient is the same.

    `keep_last_micro_batch`: its activations are what backward needs first, so that it need not be recomputed, but they
    then live beside the heads' activations. `expandable_segments`: CUDA's allocator grows its segments, which leaves
    fewer gaps (Linux only). `fully_shard`: a node's devices divide matrices, gradients and optimizer state between them
    and send each other what the step needs (FSDP2, for encoders too big for one).
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    activation_checkpointing: bool = False
    keep_last_micro_batch: bool = True
    expandable_segments: bool = True
    fully_shard: bool = False


class Hardware(Section):
    """`num_devices` of all `num_nodes`, each with as many. `vram_gib: null` means the recipe was made for no GPU in
    particular and may run on a CPU."""

    num_devices: int = Field(1, ge=1, le=65_536)
    num_nodes: int = Field(1, ge=1, le=65_536)
    vram_gib: float | None = Field(None, gt=0, le=1e6)
    gpu: str | None = None


class Planned(Section):
    """What the planner expected. `measured_on` names the card once the figure was measured on one."""

    peak_reserved_mib: Mib
    headroom_mib: Mib
    breakdown_mib: dict[str, Mib]
    torch: str
    measured_on: str | None = None
