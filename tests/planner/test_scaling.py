"""Scaled traces against traces at the same size; the cost of heads and loss at large batches."""

from __future__ import annotations

import pytest
from support.plans import CONTRAST_AND_KEEP_LAST, two_device_recipe

from moco_accel.networks.moco import build_moco
from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.schema import Recipe
from planner.answer.request import DEFAULT_ENCODER, Request, build_recipe
from planner.cards.card import Card
from planner.cards.lookup import CARDS
from planner.memory.allocator import replay
from planner.memory.estimate import estimate_memory
from planner.search.best_recipe import evaluate
from planner.time.step_time import operations_share
from planner.trace.scaling import trace_for, with_micro_batch
from planner.trace.trace import trace_step

CARD = CARDS["h100_sxm"]


def assert_scaled_memory_is_traced_memory(recipe: Recipe, card: Card, requested: float, reserved: float) -> None:
    """Compare the scaled trace's peaks with those of a trace at that size, within these relative tolerances."""
    direct = replay(trace_step(recipe, card.compute_capability).events)
    micro_batch_size, steps = recipe.batch.micro_batch_size, recipe.batch.accumulation_steps
    scaled = replay(trace_for(recipe, card).events(micro_batch_size, steps, steps=1))
    assert scaled.peak_requested_bytes == pytest.approx(direct.peak_requested_bytes, rel=requested)
    assert scaled.peak_reserved_bytes == pytest.approx(direct.peak_reserved_bytes, rel=reserved)


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16", "resnet18"])
@pytest.mark.parametrize(("contrast_over", "keep_last"), CONTRAST_AND_KEEP_LAST)
def test_scaled_memory_is_that_of_a_trace_at_that_size(encoder: str, contrast_over: str, keep_last: bool) -> None:
    """From three micro-batches of a prime size to 8 of 32, on two devices."""
    recipe = two_device_recipe(encoder, 512, 32, contrast_over, memory={"keep_last_micro_batch": keep_last})
    # measured: 0; with contrast over micro-batches 6e-4
    assert_scaled_memory_is_traced_memory(recipe, CARDS["rtx3070"], requested=1e-3, reserved=5e-3)


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_scaled_memory_of_sharded_networks_is_that_of_a_trace_at_that_size(checkpointing: bool) -> None:
    memory = {"fully_shard": True, "keep_last_micro_batch": False, "activation_checkpointing": checkpointing}
    recipe, card = two_device_recipe("vit_tiny_patch16", 512, 32, memory=memory), CARDS["rtx3070"]
    assert_scaled_memory_is_traced_memory(recipe, card, requested=1e-3, reserved=5e-3)
    assert sum(trace_for(recipe, card).flops(32, 8).values()) == pytest.approx(
        sum(counted.flops for counted in trace_step(recipe, card.compute_capability).flops), rel=1e-3
    )


@pytest.mark.parametrize(("encoder", "size"), [("resnet18", 121), ("resnet50", 481), ("vit_tiny_patch8", 488)])
def test_prime_differs_from_the_sides_of_feature_maps(encoder: str, size: int) -> None:
    """61, the first prime, is the side of a feature map."""
    recipe = two_device_recipe(encoder, 96, 16)
    recipe = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"image_size": size})})
    card = CARDS["rtx3070"]
    scaled, direct = trace_for(recipe, card).events(16, 3, steps=1), trace_step(recipe, 86).events
    expected = replay(direct).peak_allocated_bytes
    assert replay(scaled).peak_allocated_bytes == pytest.approx(expected, rel=0.01)


def test_tensors_of_the_setup_do_not_scale() -> None:
    """The gradient buffer of ResNet-101 is a multiple of 61, the prime of the traced batch."""
    recipe = build_recipe(Request(gpus=2, global_batch_size=384, mixed_precision="bf16"), "resnet101")
    gradients = [
        estimate_memory(trace_for(sized, CARD), sized, CARD).breakdown_bytes["gradients"]
        for sized in (with_micro_batch(recipe, size) for size in (64, 32))
    ]
    moco = build_moco(recipe)
    moco.allocate_gradients()
    assert moco.gradient_buffer.nbytes % 61 == 0
    assert gradients == [moco.gradient_buffer.nbytes] * 2


@pytest.mark.parametrize(("batch", "processes", "limit"), [(4096, 2, 0.05), (32_768, 64, 0.10)])
def test_heads_and_loss_take_a_small_share_of_the_operations(batch: int, processes: int, limit: float) -> None:
    """For the default encoder at 224 pixels, without recomputation. Counted: 0.5 and 0.6 %."""
    request = Request(gpus=processes, global_batch_size=batch, mixed_precision="bf16")
    shares = operations_share(evaluate(build_recipe(request, DEFAULT_ENCODER), CARD).flops)
    assert 0.001 < shares["heads"] + shares["loss"] < limit
    assert sum(shares.values()) == pytest.approx(1)


def loss_dominated_recipe(batch: int, processes: int, micro_batch_size: int) -> Recipe:
    """A recipe of a small encoder, whose memory is mostly the loss's."""
    recipe = two_device_recipe("vit_tiny_patch16", 512, 32)
    fields = {"global_batch_size": batch, "micro_batch_size": batch // processes, "accumulation_steps": 1}
    sizes = recipe.batch.model_copy(update=fields)
    whole = recipe.model_copy(update={"batch": sizes, "hardware": Hardware(num_devices=processes, vram_gib=80)})
    return with_micro_batch(whole, micro_batch_size)


@pytest.mark.parametrize(("batch", "processes", "tolerance"), [(32_768, 64, 0.01), (1_048_576, 1024, 0.01)])
def test_scaled_memory_of_large_batches_is_that_of_a_trace(batch: int, processes: int, tolerance: float) -> None:
    """With four micro-batches."""
    recipe = loss_dominated_recipe(batch, processes, batch // processes // 4)
    assert_scaled_memory_is_traced_memory(recipe, CARD, requested=tolerance, reserved=tolerance)


def test_logits_dominate_at_a_million_tiles() -> None:
    """Three copies: output, incoming and outgoing gradient of the softmax; beside them both views' normalized keys."""
    recipe = loss_dominated_recipe(1_048_576, 1024, 32)
    memory = evaluate(recipe, CARD).memory
    logits = 1024 * 1_048_576 * 4
    keys = 1_048_576 * recipe.moco.output_dim * 4
    assert "log_softmax_backward" in memory.peak_operation
    assert memory.breakdown_bytes["temporaries"] == pytest.approx(2 * logits, rel=1e-3)
    assert memory.breakdown_bytes["heads"] == pytest.approx(logits + 3 * keys, rel=0.003)
    assert max(memory.breakdown_bytes, key=memory.breakdown_bytes.__getitem__) in ("temporaries", "headroom")
