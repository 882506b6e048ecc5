"""The search for a recipe, changes that make one fit, warnings, and the error of predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.plans import two_device_recipe
from support.recipes import small_recipe

from moco_accel.recipe.schema import Recipe
from planner.answer.request import Request, build_recipe, few_steps_warning
from planner.cards.lookup import CARDS, generic_card
from planner.evidence.records import evidence_label, prediction_error
from planner.memory.allocator import MIB, replay
from planner.memory.estimate import estimate_paper_step
from planner.report.reasons import micro_batch_warning
from planner.search.best_recipe import check_scaling, evaluate, find_best, find_changes
from planner.search.cache import cached
from planner.search.candidate import Candidate, Change
from planner.trace.scaling import with_memory, with_micro_batch
from planner.trace.trace import trace_step


@pytest.mark.slow
def test_networks_are_sharded_where_nothing_fits_otherwise() -> None:
    """ViT-S with heads of 4,096: weights, momentum weights, gradients and 8-bit state take 610 MiB, sharded half."""
    request = Request(gpus=2, encoder="vit_small_patch16", image_size=64, mixed_precision="bf16", global_batch_size=64)
    card = replace(generic_card(8), reported_bytes=1_960 * MIB)
    assert 620 * MIB < card.budget_bytes(2) < 720 * MIB
    found = find_best(build_recipe(request, "vit_small_patch16"), card)
    assert found.recipe.memory.fully_shard
    assert found.memory.fits
    breakdown, whole = found.memory.breakdown_bytes, 42_815_104 * 4  # bytes of the trained parameters
    assert breakdown["gradients"] == pytest.approx(whole / 2, rel=0.01)  # vectors are not sharded
    assert breakdown["momentum_weights"] == pytest.approx((84_266_752 * 4 - whole) / 2, rel=0.03)
    in_fp16 = find_best(build_recipe(replace(request, mixed_precision="fp16"), "vit_small_patch16"), card)
    assert not in_fp16.memory.fits
    assert not in_fp16.recipe.memory.fully_shard


def test_search_finds_the_largest_micro_batch_that_fits() -> None:
    recipe = with_micro_batch(two_device_recipe("vit_small_patch16", 4096, 2048), 2048)
    card = generic_card(3)
    found = find_best(recipe, card)
    size = found.recipe.batch.micro_batch_size
    assert 1 < size < 2048
    assert found.memory.fits
    larger = with_micro_batch(found.recipe, 2 * size)
    assert not evaluate(larger, card).memory.fits
    assert check_scaling(found.recipe, card) == pytest.approx(0, abs=0.001)  # measured: 0


def test_checkpointing_and_bf16_reduce_the_peak() -> None:
    def peak(**memory: object) -> int:
        recipe = two_device_recipe("vit_tiny_patch16", 128, 64, memory=memory)
        return replay(trace_step(recipe, 86).events).peak_reserved_bytes

    whole = peak(mixed_precision="no")
    assert peak(mixed_precision="bf16") < 0.8 * whole
    assert peak(mixed_precision="no", activation_checkpointing=True) < 0.7 * whole


def test_damaged_or_unwritable_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, card = two_device_recipe("vit_tiny_patch16", 64, 16), CARDS["rtx3070"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cached("planner.search.best_recipe.evaluate", Candidate, recipe, card)
    kept = list((tmp_path / "moco-accel" / "plans").iterdir())
    assert len(kept) == 1
    kept[0].write_text('{"torn')
    assert cached("planner.search.best_recipe.evaluate", Candidate, recipe, card) == first
    assert json.loads(kept[0].read_text())["tiles_per_second"] == first.tiles_per_second
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert cached("planner.search.best_recipe.evaluate", Candidate, recipe, card) == first


def applied(change: Change, recipe: Recipe) -> Recipe:
    if change.words == "activation checkpointing":
        return with_memory(recipe, activation_checkpointing=True)
    if change.words == "memory.keep_last_micro_batch=false":
        return with_memory(recipe, keep_last_micro_batch=False)
    assert change.words.startswith("micro-batch ")
    return with_micro_batch(recipe, int(change.words.split()[1].replace(",", "")))


def test_changes_fit_at_the_predicted_cost() -> None:
    recipe, card = with_micro_batch(two_device_recipe("vit_small_patch16", 2048, 1024), 512), generic_card(3)
    now = evaluate(recipe, card)
    assert not now.memory.fits
    found = find_changes(recipe, card)
    assert {change.words.split()[0] for change in found} == {"micro-batch", "activation"}
    for change in found:
        after = evaluate(applied(change, recipe), card)
        assert after.memory.fits
        assert change.memory_bytes == after.memory.peak_reserved_bytes - now.memory.peak_reserved_bytes < 0
        assert 1 + change.time_share == pytest.approx(now.tiles_per_second / after.tiles_per_second)
    assert found == sorted(found, key=lambda change: change.time_share)


@pytest.mark.parametrize(
    ("tiles", "batch", "expected"),
    [
        (None, 4096, None),
        (500_000, 4096, None),
        (20_000, 4096, "4 optimizer steps of 4,096 tiles per epoch; --global-batch 512 gives 39"),
        (100, 64, "1 optimizer steps of 64 tiles per epoch; --global-batch 4 gives 25"),
    ],
)
def test_few_steps_warning(tiles: int | None, batch: int, expected: str | None) -> None:
    warning = few_steps_warning(batch, 2, tiles)
    assert warning == (expected and f"{tiles:,} tiles give only {expected}")


def test_micro_batch_warning() -> None:
    card = generic_card(8)
    warning = micro_batch_warning(evaluate(two_device_recipe("vit_tiny_patch16", 2 * 1021, 1), card))
    assert warning is not None
    assert "1,021 tiles per device allow micro-batches of 1, and next of 1,021" in warning
    assert "--global-batch 2,048 divides better" in warning
    for batch, micro_batch_size in ((2048, 4), (2 * 1021, 1021)):
        recipe = two_device_recipe("vit_tiny_patch16", batch, micro_batch_size)
        assert micro_batch_warning(evaluate(recipe, card)) is None


def test_paper_step_takes_more_memory() -> None:
    recipe, card = two_device_recipe("vit_tiny_patch16", 256, 128), CARDS["rtx3070"]
    peak_bytes = evaluate(recipe, card).memory.peak_reserved_bytes
    assert estimate_paper_step(recipe, card).peak_reserved_bytes > 1.4 * peak_bytes


def test_prediction_error_is_the_largest_of_enough_measurements() -> None:
    recipe = small_recipe().model_dump()
    measured = {"gpu": "A card", "torch": "2.15", "compute_capability": 86}
    rows = [{"recipe": recipe, "measured": measured, "ratio": 0.97}] * 7
    card = generic_card(8)
    unmeasured, few = (prediction_error("vit_small_patch16", card, each) for each in ([], rows))
    assert unmeasured.share == few.share == 0.05
    assert "no card yet" in unmeasured.source
    assert "only 7 measured configurations (A card with torch 2.15)" in few.source
    enough = [*rows, {"recipe": recipe, "measured": measured, "ratio": 1.01}]
    assert prediction_error("vit_small_patch16", card, enough).share == pytest.approx(1 / 0.97 - 1)
    assert prediction_error("vit_small_patch16", CARDS["t4"], enough).share == 0.05  # another kind of card
    assert prediction_error("resnet50", card, enough).share == 0.1
    worse = [*rows, {"recipe": recipe, "measured": measured, "ratio": 0.9}]
    assert prediction_error("vit_small_patch16", CARDS["t4"], worse).share == pytest.approx(1 / 0.9 - 1)
    assert "not yet measured" in evidence_label(generic_card(8), [])
    assert "measured on such cards: 8" in evidence_label(generic_card(8), enough)
