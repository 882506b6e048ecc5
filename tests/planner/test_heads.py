"""The heads and the loss at scale: their share of a step's counted operations, and the logits' memory."""

from __future__ import annotations

import pytest
from support.plans import fitted

from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.schema import Recipe
from planner.answer.request import DEFAULT_ENCODER, Request, recipe_for
from planner.cards.devices import CARDS
from planner.memory.allocator import replay
from planner.memory.candidate import with_micro_batch
from planner.memory.estimate import judge, trace_for
from planner.time.network import operations_share
from planner.trace.trace import trace_step

CARD = CARDS["h100_sxm"]


@pytest.mark.parametrize(("batch", "processes", "promise"), [(4096, 2, 0.05), (32_768, 64, 0.10)])
def test_the_heads_and_the_loss_take_a_small_share_of_a_step(batch: int, processes: int, promise: float) -> None:
    """Of the default encoder's, at 224 pixels, where nothing is recomputed: measured 0.5 and 0.6 %."""
    request = Request(gpus=processes, global_batch_size=batch, mixed_precision="bf16")
    shares = operations_share(judge(recipe_for(request, DEFAULT_ENCODER), CARD))
    assert 0.001 < shares["heads"] + shares["loss"] < promise
    assert sum(shares.values()) == pytest.approx(1)


def at(batch: int, processes: int, micro_batch_size: int) -> Recipe:
    """A small encoder's recipe, whose step the loss decides."""
    recipe = fitted("vit_tiny_patch16", 512, 32)
    fields = {"global_batch_size": batch, "micro_batch_size": batch // processes, "accumulation_steps": 1}
    sizes = recipe.batch.model_copy(update=fields)
    whole = recipe.model_copy(update={"batch": sizes, "hardware": Hardware(num_devices=processes, vram_gib=80)})
    return with_micro_batch(whole, micro_batch_size)


@pytest.mark.parametrize(("batch", "processes", "tolerance"), [(32_768, 64, 0.01), (1_048_576, 1024, 0.01)])
def test_what_is_scaled_to_large_batches_is_what_is_traced_there(batch: int, processes: int, tolerance: float) -> None:
    """With four micro-batches; fake tensors have sizes alone."""
    recipe = at(batch, processes, batch // processes // 4)
    direct = replay(trace_step(recipe, CARD.compute_capability).events)
    micro, steps = recipe.batch.micro_batch_size, recipe.batch.accumulation_steps
    scaled = replay(trace_for(recipe, CARD).events(micro, steps, steps=1))
    assert scaled.peak_requested_bytes == pytest.approx(direct.peak_requested_bytes, rel=tolerance)
    assert scaled.peak_reserved_bytes == pytest.approx(direct.peak_reserved_bytes, rel=tolerance)


def test_three_copies_of_the_logits_are_the_largest_at_a_million() -> None:
    """Backward of the softmax: its output, what comes in, what goes out. Beside them keys: two views, normalised."""
    recipe = at(1_048_576, 1024, 32)
    memory = judge(recipe, CARD).memory
    logits = 1024 * 1_048_576 * 4
    keys = 1_048_576 * recipe.moco.output_dim * 4
    assert "log_softmax_backward" in memory.peak_operation
    assert memory.breakdown_bytes["temporaries"] == pytest.approx(2 * logits, rel=1e-3)
    assert memory.breakdown_bytes["heads"] == pytest.approx(logits + 3 * keys, rel=0.003)
    assert max(memory.breakdown_bytes, key=memory.breakdown_bytes.__getitem__) in ("temporaries", "headroom")
