"""benchmarks/gpu_validate.py: configurations, rows, blocks at the peak, and the report."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plans import MEASUREMENT, recipe_on
from support.traces import HEADS, VIT

from moco_accel.recipe.load import recipe_from_dict
from planner.cards.card import CONTEXT_BYTES
from planner.cards.fleet import local_cards
from planner.cards.lookup import CARDS
from planner.evidence.measure import measure
from planner.memory.allocator import replay, round_up
from planner.trace.scaling import trace_for

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from gpu_configurations import CARDS_GIB, Configuration, list_configurations
from gpu_report import find_failures, group_rows, summarise_errors
from gpu_validate import run_in_parallel, validate_configuration
from gpu_worker import (
    SkipConfiguration,
    add_measurement,
    compare_blocks,
    handle_request,
    measured_blocks,
    predict,
    predicted_blocks,
    predicted_entries,
)

sys.path.pop()  # benchmarks/step.py must not be importable in other tests

RTX3070 = CARDS["rtx3070"]


def test_configurations_cover_the_planners_claims() -> None:
    found = list_configurations()
    recipes = [c.recipe for c in found if c.card_gib is None]
    assert len({c.name for c in found}) == len(found)
    assert len(recipes) >= 44
    names = {recipe.encoder.name for recipe in recipes}
    assert {"vit_tiny_patch16", "vit_small_patch16", "vit_base_patch16", "resnet18", "resnet50"} <= names
    seen = {
        field: {recipe.model_dump()[section][field] for recipe in recipes}
        for section, field in (
            ("encoder", "bands"), ("encoder", "freeze_patch_projection"), ("batch", "contrast_over"),
            ("memory", "activation_checkpointing"), ("memory", "expandable_segments"),
            ("memory", "keep_last_micro_batch"), ("memory", "fully_shard"), ("hardware", "num_devices"),
            ("optimizer", "name"),
        )
    }  # fmt: skip
    assert seen["bands"] == {3, 13}
    assert seen["num_devices"] == {1, 2, 8}
    assert seen["name"] == {"adamw", "adamw_8bit", "lars"}
    assert all(len(values) >= 2 for values in seen.values())
    assert {1, 2, 4, 16} <= {recipe.batch.accumulation_steps for recipe in recipes}
    assert {c.card_gib for c in found if c.card_gib is not None} == set(CARDS_GIB)
    assert max(recipe.per_device_batch_size for recipe in recipes) == 2048  # 128 × 16, as on two cards of 8 GB


def test_first_configurations_cover_every_family_and_precision() -> None:
    first = {(c.family, c.recipe.memory.mixed_precision) for c in list_configurations()[:10]}
    assert first == {(family, precision) for family in ("vit", "resnet") for precision in ("no", "bf16", "fp16")}


def small_configuration(**sections: dict[str, Any]) -> Configuration:
    memory = {"mixed_precision": "bf16", "expandable_segments": True}
    return Configuration("small", recipe_on(2, memory=memory, **sections))


def test_row_holds_prediction_and_measurement() -> None:
    configuration = small_configuration()
    prediction = predict(configuration, RTX3070)
    row = add_measurement(predicted_entries(configuration, prediction), prediction.recipe, MEASUREMENT)
    assert row == json.loads(json.dumps(row))
    peaks = prediction.peaks
    assert peaks == replay(trace_for(configuration.recipe, RTX3070).events(4, 2), True)
    assert row["ratio"] == peaks.peak_reserved_bytes / 1000
    assert row["ratio_allocated"] == peaks.peak_allocated_bytes / 900
    assert row["measured_outside_bytes"] == 500
    assert row["predicted_outside_bytes"] == CONTEXT_BYTES
    assert row["predicted_tiles_per_second"] > 0
    assert row["budget_bytes"] is None
    assert not row["oom"]


@pytest.mark.slow
def test_plan_for_a_card_size_keeps_to_its_budget() -> None:
    sizes = {"micro_batch_size": 2048, "accumulation_steps": 1}
    recipe = recipe_on(2, encoder=VIT, moco=HEADS, batch=sizes)
    configuration = Configuration("plan", recipe, 3.0)
    real = dataclasses.replace(RTX3070, compute_capability=90)
    prediction = predict(configuration, real)
    row = predicted_entries(configuration, prediction)
    assert 0.5 * row["budget_bytes"] < prediction.peaks.peak_reserved_bytes <= row["budget_bytes"] < 3 << 30
    assert prediction.card.compute_capability == 90
    assert 1 < prediction.recipe.batch.micro_batch_size < 2048
    with pytest.raises(SkipConfiguration, match=r"no plan fits; missing bytes: [1-9]"):
        predict(Configuration("plan", recipe, 1.2), real)


def test_predicted_blocks_sum_to_the_predicted_peak() -> None:
    prediction = predict(small_configuration(), RTX3070)
    blocks = predicted_blocks(prediction)
    assert sum(round_up(size, 512) * count for (size, _), count in blocks.items()) == (
        prediction.peaks.peak_allocated_bytes
    )


def test_measured_blocks_are_those_live_at_the_peak() -> None:
    frames = [
        {"name": "layer_norm", "filename": "/lib/torch/nn/functional.py", "line": 1},
        {"name": "encode", "filename": "/here/moco_accel/networks/moco.py", "line": 99},
        {"name": "train_step", "filename": "/here/moco_accel/training/step.py", "line": 70},
    ]
    entries = [
        {"action": "segment_alloc", "addr": 0, "size": 2048, "frames": []},
        {"action": "alloc", "addr": 0, "size": 100, "frames": frames},
        {"action": "alloc", "addr": 512, "size": 100, "frames": frames},
        {"action": "free_requested", "addr": 0, "size": 100, "frames": []},
        {"action": "free_completed", "addr": 0, "size": 100, "frames": []},
        {"action": "alloc", "addr": 0, "size": 300, "frames": []},
        {"action": "free_completed", "addr": 512, "size": 100, "frames": []},
        {"action": "alloc", "addr": 512, "size": 50, "frames": []},
    ]
    expected = {(100, "layer_norm < encode, moco_accel/networks/moco.py:99"): 1, (300, "no Python frame: backward"): 1}
    assert measured_blocks(entries) == Counter(expected)
    compared = compare_blocks(
        Counter({(100, "aten.mm.default in encoder, heads"): 3, (50, "x"): 1}), measured_blocks(entries)
    )
    assert (compared["predicted_requested_bytes"], compared["measured_requested_bytes"]) == (350, 400)
    assert compared["different"] == [
        {"bytes": 300, "predicted_count": 0, "measured_count": 1},
        {"bytes": 100, "predicted_count": 3, "measured_count": 1},
        {"bytes": 50, "predicted_count": 1, "measured_count": 0},
    ]


@pytest.mark.slow
def test_configuration_that_does_not_fit_the_free_memory_is_skipped(tmp_path: Path) -> None:
    """The prediction runs in its own process."""
    configuration = next(c for c in list_configurations() if c.name == "vit_small-224px-128x1-bf16-adamw")
    row = validate_configuration(configuration, {"card": dataclasses.asdict(RTX3070), "free_bytes": 1 << 20}, tmp_path)
    assert row["predicted_bytes"] == predict(configuration, RTX3070).bytes
    assert row["recipe"]["memory"]["expandable_segments"]
    needed = row["predicted_bytes"]["peak_reserved"]
    assert row["skipped"] == f"needs up to {needed} bytes; 1048576 are free on this GPU"


def test_prediction_holds_the_recipe_and_its_blocks(tmp_path: Path) -> None:
    name, blocks = "resnet18-64px-512x2-bf16-adamw", tmp_path / "blocks.json"
    about = {"name": name, "card": dataclasses.asdict(RTX3070), "card_gib": None, "blocks": str(blocks)}
    compared = json.loads(json.dumps(handle_request({"task": "predict", **about})))
    configuration = next(c for c in list_configurations() if c.name == name)
    assert recipe_from_dict(compared["recipe"]) == configuration.recipe
    written = Counter({(size, origin): count for size, origin, count in json.loads(blocks.read_text())})
    assert written == predicted_blocks(predict(configuration, RTX3070))


def test_no_configuration_starts_after_the_time_budget() -> None:
    found = list_configurations()[:5]
    names = [configuration.name for configuration in found]

    def run(jobs: int, budget_seconds: float) -> list[str]:
        return [row["name"] for row in run_in_parallel(found, lambda c: {"name": c.name}, jobs, budget_seconds)]

    assert run(1, math.inf) == names
    assert run(1, 0) == []
    assert set(run(3, math.inf)) == set(names)


def test_failures_and_error_summary() -> None:
    errors = [i / 1000 for i in range(1, 41)]
    assert summarise_errors(errors) == {"median": pytest.approx(0.0205), "p95": 0.038, "max": 0.04}
    configuration = small_configuration()
    prediction = predict(configuration, RTX3070)
    good = add_measurement(predicted_entries(configuration, prediction), prediction.recipe, MEASUREMENT) | {
        "ratio": 1.01
    }
    bad = good | {"name": "bad", "family": "resnet", "ratio": 0.9}
    assert find_failures([good] * 30) == []
    assert find_failures([good] * 30 + [bad]) == ["max error of reserved bytes is 10.0%, target 8.0%"]
    assert {name: len(rows) for name, rows in group_rows([good, good, bad]).items()} == {
        "all": 3, "vit": 2, "precision bf16": 3, "expandable": 3, "resnet": 1,
    }  # fmt: skip
    oom = {"name": "plan", "family": "vit", "oom": True}
    retried = good | {"card_gib": 8.0, "measured": {**good["measured"], "retries": 2}}
    unlike = good | {"name": "unlike", "measured": {**good["measured"], "expandable_segments": False}}
    assert find_failures([good, oom, retried, unlike, {"name": "x", "error": "killed"}]) == [
        "x: killed",
        "plan: out of memory, although it was predicted to fit",
        "small: almost out of memory, 2 allocations were retried",
        "unlike: the allocator has other settings than the recipe",
    ]
    assert find_failures([]) == ["no row was measured"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("encoder", "devices"), [("vit_tiny_patch16", 1), ("resnet18", 2)], ids=["vit", "resnet_two_devices"]
)
def test_prediction_is_within_8_percent_of_the_measurement(encoder: str, devices: int) -> None:
    fields = {"name": encoder, "image_size": 224, "freeze_patch_projection": encoder.startswith("vit")}
    memory = {"mixed_precision": "bf16", "expandable_segments": False}
    sizes = {"micro_batch_size": 64, "accumulation_steps": 2}
    recipe = recipe_on(devices, encoder=fields, moco=HEADS, memory=memory, batch=sizes)
    prediction = predict(Configuration(encoder, recipe), local_cards()[0])
    measured = measure(recipe)
    print(f"{encoder}: predicted {prediction.bytes}, measured {measured}")
    assert measured.retries == 0
    assert prediction.peaks.peak_reserved_bytes == pytest.approx(measured.peak_reserved_bytes, rel=0.08)
    assert prediction.peaks.peak_allocated_bytes == pytest.approx(measured.peak_allocated_bytes, rel=0.08)
    assert torch.cuda.memory_allocated(0) < 0.1 * measured.peak_allocated_bytes  # the networks are freed
