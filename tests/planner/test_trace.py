"""The traced peak against that of the real step on the CPU, as torch.profiler reports it."""

from __future__ import annotations

import pytest
from support.recipes import small_recipe
from support.traces import HEADS, RESNET, VIT, batch, measured_peak_bytes

from planner.memory.allocator import replay
from planner.trace.fake_processes import fresh_accelerate
from planner.trace.trace import trace_step

RESNET10 = RESNET | {"name": "resnet10"}
BANDS, STATISTICS = {"bands": 13}, {"mean": [0.4] * 13, "std": [0.2] * 13}


BF16, CHECKPOINTED = {"mixed_precision": "bf16"}, {"activation_checkpointing": True}
CONFIGURATIONS: dict[str, dict[str, dict[str, object]]] = {
    "vit": {"encoder": VIT, "batch": batch(32, 1)},
    "vit_two": {"encoder": VIT, "batch": batch(16, 2)},
    "vit_plain": {"encoder": VIT, "batch": batch(16, 2, contrast_over="micro_batch")},
    "vit_checkpointed": {"encoder": VIT, "batch": batch(32, 1), "memory": CHECKPOINTED},
    "vit_two_checkpointed": {"encoder": VIT, "batch": batch(16, 2), "memory": CHECKPOINTED},
    "vit_bf16": {"encoder": VIT, "batch": batch(32, 1), "memory": BF16},
    "vit_bf16_two": {"encoder": VIT, "batch": batch(16, 2), "memory": BF16},
    "vit_bf16_checkpointed": {"encoder": VIT, "batch": batch(16, 1), "memory": BF16 | CHECKPOINTED},
    "vit_8bit": {"encoder": VIT, "batch": batch(16, 1), "optimizer": {"name": "adamw_8bit"}},
    "vit_free_projection": {"encoder": VIT | {"freeze_patch_projection": False}, "batch": batch(16, 1)},
    "vit_13_bands": {"encoder": VIT | BANDS, "batch": batch(16, 1), "data": STATISTICS},
    "resnet10_four": {"encoder": RESNET10, "batch": batch(8, 4)},
    "resnet10_four_8bit": {"encoder": RESNET10, "batch": batch(8, 4), "optimizer": {"name": "adamw_8bit"}},
    "resnet10_queue": {"encoder": RESNET10, "batch": batch(8, 2), "moco": {"queue_size": 8192}},
    "resnet10_plain_queue": {
        "encoder": RESNET10,
        "batch": batch(16, 2, contrast_over="micro_batch"),
        "moco": {"queue_size": 8192},
    },
    "resnet10_uneven_heads": {
        "encoder": RESNET10,
        "batch": batch(16, 2),
        "moco": {"projector_hidden_dim": 1001, "output_dim": 37, "predictor_output_norm": False},
    },
    "resnet10_13_bands": {"encoder": RESNET10 | BANDS, "batch": batch(8, 2), "data": STATISTICS},
    "resnet18": {"encoder": RESNET, "batch": batch(16, 1)},
    "resnet18_two_lars": {"encoder": RESNET, "batch": batch(8, 2), "optimizer": {"name": "lars"}},
    "resnet18_two_checkpointed": {"encoder": RESNET, "batch": batch(8, 2), "memory": CHECKPOINTED},
    "resnet18_bf16": {"encoder": RESNET, "batch": batch(8, 2), "memory": BF16},
    "resnet50_lars": {"encoder": RESNET | {"name": "resnet50"}, "batch": batch(8, 1), "optimizer": {"name": "lars"}},
}
SHARDED = {"fully_shard": True, "keep_last_micro_batch": False}
TWO: dict[str, dict[str, object]] = {"hardware": {"num_devices": 2}, "batch": batch(16, 2, global_batch_size=64)}
CONFIGURATIONS |= {
    "vit_of_two_processes": {"encoder": VIT, **TWO},
    "vit_sharded": {"encoder": VIT, **TWO, "memory": SHARDED},
    "vit_sharded_checkpointed": {"encoder": VIT, **TWO, "memory": SHARDED | CHECKPOINTED},
    "vit_sharded_8bit": {"encoder": VIT, **TWO, "memory": SHARDED | CHECKPOINTED, "optimizer": {"name": "adamw_8bit"}},
    "vit_sharded_bf16": {"encoder": VIT, **TWO, "memory": SHARDED | BF16},
}


# each differs from another one in one setting only; together they take three minutes
SLOW = (
    "vit_plain",
    "vit_two_checkpointed",
    "vit_bf16_two",
    "vit_13_bands",
    "vit_bf16_checkpointed",
    "resnet18_two_checkpointed",
    "vit_sharded",
    "vit_sharded_8bit",
    "vit_sharded_checkpointed",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CONFIGURATIONS])
def test_traced_peak_equals_that_of_the_real_step(name: str) -> None:
    sections = CONFIGURATIONS[name]
    recipe = small_recipe(**{**sections, "moco": HEADS | sections.get("moco", {})})
    traced = replay(trace_step(recipe, None, steps=2).events).peak_requested_bytes
    # one of several processes, in a group that sends nothing, because gloo makes copies that NCCL does not
    with fresh_accelerate(recipe.hardware.num_devices):
        measured = measured_peak_bytes(recipe)
    print(f"traced {traced:,} measured {measured:,} {traced / measured - 1:+.2%}")
    assert traced == pytest.approx(measured, rel=0.02)
