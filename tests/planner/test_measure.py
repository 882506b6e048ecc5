"""Measuring: the trainer's step as it runs, what is remembered of it, and the validation that a GPU's owner starts."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import small_recipe
from support.traces import CONVOLUTIONS, HEADS, VIT, _peak_without_scratch
from torch.profiler import profile

from moco_accel.common.errors import UserError
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step
from moco_accel.views.augment import AugmentedView
from planner.cards.devices import CARDS, CONTEXT_BYTES, cards_of_this_machine
from planner.memory.allocator import replay, round_up
from planner.memory.estimate import trace_for
from planner.memory.evidence import append_row
from planner.memory.measure import Measured, as_row, host_crops, measure, remember, remembered, run_steps
from planner.memory.scaling import scalable, traceable_batch
from planner.trace.fake_processes import fresh_accelerate
from planner.trace.trace import trace_step

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from gpu_configurations import CARDS_GIB, Configuration, configurations
from gpu_one import NotRun, answer, complete, described, explained, measured_blocks, predict, predicted_blocks
from gpu_validate import in_turn, row_of
from gpu_verdict import failures, groups, spread

sys.path.pop()  # other tests are not to find benchmarks/step.py

CPU = torch.device("cpu")
HERE = Measured(
    peak_allocated_bytes=900, peak_reserved_bytes=1000, device_used_bytes=1500, total_bytes=4000, retries=0,
    skipped_steps=0, seconds_per_step=0.5, tiles_per_second=16.0, gpu="a card", compute_capability=86, driver="1",
    torch="2", cuda="13", cudnn="9", transformers="5", accelerate="1", expandable_segments=True,
)  # fmt: skip
RTX3070 = CARDS["rtx3070"]
PREDICTED = {"peak_reserved": 1010, "peak_allocated": 945}


def on_devices(devices: int, **sections: dict[str, Any]) -> Recipe:
    """`small_recipe` on so many devices, each with 2 micro-batches of 4 unless `batch` says otherwise."""
    batch = {"micro_batch_size": 4, "accumulation_steps": 2} | sections.pop("batch", {})
    batch["global_batch_size"] = batch["micro_batch_size"] * batch["accumulation_steps"] * devices
    return small_recipe(batch=batch, hardware={"num_devices": devices}, **sections)


@pytest.mark.parametrize("sections", [{}, {"memory": {"mixed_precision": "bf16"}}], ids=["fp32", "bf16"])
def test_what_runs_is_the_trainers_step(sections: dict[str, dict[str, Any]]) -> None:
    recipe = on_devices(1, **sections)
    losses = [run.loss for run in run_steps(recipe, CPU, 3)]
    accelerator = build_accelerator(recipe, cpu=True)
    torch.manual_seed(recipe.run.seed)
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    first, second = ([host_crops(recipe, view)] * 2 for view in (0, 1))
    for loss in losses:
        views = AugmentedView(first, recipe, CPU), AugmentedView(second, recipe, CPU)
        assert train_step(accelerator, model, optimizer, views, recipe, 0.99).loss.item() == loss
    assert len(set(losses)) == 3


def test_two_devices_contrast_with_the_keys_of_both() -> None:
    """In a group that sends nothing every process gathers this one's keys."""
    recipe = on_devices(2)
    run = run_steps(recipe, CPU, 1)[0]
    with fresh_accelerate(2):
        torch.manual_seed(recipe.run.seed)
        moco = build_moco(recipe)
        view1, view2 = (AugmentedView([host_crops(recipe, view)] * 2, recipe, CPU) for view in (0, 1))
        keys1, keys2 = moco.keys(view1), moco.keys(view2)
        loss = moco(view1, torch.cat([keys2, keys2]))[0] + moco(view2, torch.cat([keys1, keys1]))[0]
    assert run.loss == pytest.approx(loss.item(), abs=1e-6)  # worst seen: 0
    assert run.seconds > 0
    assert not torch.distributed.is_initialized()


def test_the_networks_are_gone_afterwards() -> None:
    run_steps(on_devices(2), CPU, 1)
    gc.collect()
    assert [thing for thing in gc.get_objects() if type(thing) is MoCo] == []


@pytest.mark.parametrize("devices", [1, 2])
def test_what_runs_takes_what_was_traced(devices: int) -> None:
    """Gradients and gathered keys included, on the CPU, by torch.profiler's own account."""
    sizes = {"micro_batch_size": 8, "accumulation_steps": 2}
    recipe = on_devices(devices, encoder=VIT, moco=HEADS, batch=sizes)
    traceable = traceable_batch(recipe, 2)
    events = scalable(trace_step(traceable, None), traceable).events(8, 2)
    gc.collect()
    with profile(profile_memory=True, acc_events=True) as profiler:
        run_steps(recipe, CPU, 2)
    happened = profiler.profiler.kineto_results.events()
    scratch = [(e.start_ns(), e.end_ns()) for e in happened if e.name() in CONVOLUTIONS]
    changes = [(e.start_ns(), e.nbytes()) for e in happened if e.name() == "[memory]"]
    ran = _peak_without_scratch(changes, scratch)
    traced = replay(events).peak_requested_bytes
    print(f"traced {traced:,} ran {ran:,} {traced / ran - 1:+.2%}")
    assert traced == pytest.approx(ran, rel=0.01)  # worst seen: 0.13 %


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    line = "--measure needs a GPU and torch sees none here; leave --measure out for a prediction"
    with pytest.raises(UserError) as error:
        measure(on_devices(1))
    assert str(error.value) == line


def test_measurements_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remembered() == []
    for recipe in (on_devices(1), on_devices(2)):
        remember(HERE, recipe, PREDICTED)
    one, two = remembered()
    assert (tmp_path / "moco-accel" / "measured.jsonl").is_file()
    assert one == json.loads(json.dumps(as_row(HERE, on_devices(1), PREDICTED)))
    assert one["ratio"] == pytest.approx(1.01)
    assert one["measured"]["peak_reserved_bytes"] == 1000
    assert two["recipe"]["hardware"] == {"num_devices": 2}
    assert two["recipe"]["batch"]["global_batch_size"] == 16
    assert set(two["recipe"]) == {"encoder", "moco", "batch", "optimizer", "memory", "hardware"}


def test_a_line_cut_off_while_written_is_left_out_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    remember(HERE, on_devices(1), PREDICTED, path)
    whole = path.read_bytes()
    for torn in range(1, len(whole) - 2, 97):
        path.write_bytes(whole + whole[:torn])
        assert len(remembered(path)) == 1
        append_row(path, {"next": torn})
        assert remembered(path)[1:] == [{"next": torn}]
    path.write_bytes(whole.rstrip(b"\n"))  # whole, but for its end
    append_row(path, {"next": 0})
    assert len(remembered(path)) == 2
    path.write_bytes(whole + b"{torn}\n" + whole)
    with pytest.raises(UserError, match="line 2 is not a row of JSON"):
        remembered(path)


def test_configurations_cover_what_the_planner_claims() -> None:
    found = configurations()
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


def test_the_first_configurations_cover_every_family_and_precision() -> None:
    first = {(c.family, c.recipe.memory.mixed_precision) for c in configurations()[:10]}
    assert first == {(family, precision) for family in ("vit", "resnet") for precision in ("no", "bf16", "fp16")}


def small_configuration(**sections: dict[str, Any]) -> Configuration:
    memory = {"mixed_precision": "bf16", "expandable_segments": True}
    return Configuration("small", on_devices(2, memory=memory, **sections))


def test_a_row_holds_what_was_predicted_beside_what_was_measured() -> None:
    configuration = small_configuration()
    prediction = predict(configuration, RTX3070)
    row = complete(described(configuration, prediction), prediction.recipe, HERE)
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


def test_a_plan_for_a_card_is_the_planners_own_and_keeps_to_its_budget() -> None:
    sizes = {"micro_batch_size": 2048, "accumulation_steps": 1}
    recipe = on_devices(2, encoder=VIT, moco=HEADS, batch=sizes)
    configuration = Configuration("plan", recipe, 3.0)
    real = dataclasses.replace(RTX3070, compute_capability=90)
    prediction = predict(configuration, real)
    row = described(configuration, prediction)
    assert 0.5 * row["budget_bytes"] < prediction.peaks.peak_reserved_bytes <= row["budget_bytes"] < 3 << 30
    assert prediction.card.compute_capability == 90
    assert 1 < prediction.recipe.batch.micro_batch_size < 2048
    with pytest.raises(NotRun, match="does not fit"):
        predict(Configuration("plan", recipe, 1.2), real)


def test_blocks_at_the_predicted_peak_add_up_to_it() -> None:
    prediction = predict(small_configuration(), RTX3070)
    blocks = predicted_blocks(prediction)
    assert sum(round_up(size, 512) * count for (size, _), count in blocks.items()) == (
        prediction.peaks.peak_allocated_bytes
    )


def test_blocks_at_the_measured_peak_are_those_live_when_most_was() -> None:
    frames = [
        {"name": "layer_norm", "filename": "/lib/torch/nn/functional.py", "line": 1},
        {"name": "encode", "filename": "/here/moco_accel/moco.py", "line": 99},
        {"name": "train_step", "filename": "/here/moco_accel/step.py", "line": 70},
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
    expected = {(100, "layer_norm < encode, moco_accel/moco.py:99"): 1, (300, "no Python frame: backward"): 1}
    assert measured_blocks(entries) == Counter(expected)
    said = explained(Counter({(100, "aten.mm.default in encoder, heads"): 3, (50, "x"): 1}), measured_blocks(entries))
    assert (said["predicted_requested_bytes"], said["measured_requested_bytes"]) == (350, 400)
    assert said["different"] == [
        {"bytes": 300, "predicted_count": 0, "measured_count": 1},
        {"bytes": 100, "predicted_count": 3, "measured_count": 1},
        {"bytes": 50, "predicted_count": 1, "measured_count": 0},
    ]


@pytest.mark.slow
def test_a_prediction_is_made_in_a_process_of_its_own(tmp_path: Path) -> None:
    """And what is not free on the card is not tried there."""
    configuration = next(c for c in configurations() if c.name == "vit_small-224px-128x1-bf16-adamw")
    row = row_of(configuration, {"card": dataclasses.asdict(RTX3070), "free_bytes": 1 << 20}, tmp_path)
    assert row["predicted_bytes"] == predict(configuration, RTX3070).bytes
    assert row["recipe"]["memory"]["expandable_segments"]
    needed = row["predicted_bytes"]["peak_reserved"]
    assert row["skipped"] == f"it may take {needed} bytes, and 1048576 are free on this card"


def test_a_predictions_answer_holds_the_recipe_to_run_and_its_blocks(tmp_path: Path) -> None:
    name, blocks = "resnet18-64px-512x2-bf16-adamw", tmp_path / "blocks.json"
    about = {"name": name, "card": dataclasses.asdict(RTX3070), "card_gib": None, "blocks": str(blocks)}
    said = json.loads(json.dumps(answer({"ask": "prediction", **about})))
    configuration = next(c for c in configurations() if c.name == name)
    assert recipe_from_dict(said["recipe"]) == configuration.recipe
    written = Counter({(size, origin): count for size, origin, count in json.loads(blocks.read_text())})
    assert written == predicted_blocks(predict(configuration, RTX3070))


def test_nothing_is_begun_beyond_the_budget() -> None:
    found = configurations()[:5]
    assert [row["name"] for row in in_turn(found, lambda c: {"name": c.name}, 1, math.inf)] == [c.name for c in found]
    assert list(in_turn(found, lambda c: {"name": c.name}, 1, 0)) == []
    assert {row["name"] for row in in_turn(found, lambda c: {"name": c.name}, 3, math.inf)} == {c.name for c in found}


def test_the_verdict() -> None:
    errors = [i / 1000 for i in range(1, 41)]
    assert spread(errors) == {"median": pytest.approx(0.0205), "p95": 0.038, "max": 0.04}
    configuration = small_configuration()
    prediction = predict(configuration, RTX3070)
    good = complete(described(configuration, prediction), prediction.recipe, HERE) | {"ratio": 1.01}
    bad = good | {"name": "bad", "family": "resnet", "ratio": 0.9}
    assert failures([good] * 30) == []
    assert failures([good] * 30 + [bad]) == ["max of reserved bytes is off by 10.0%, target 8.0%"]
    assert {name: len(rows) for name, rows in groups([good, good, bad]).items()} == {
        "all": 3, "vit": 2, "precision bf16": 3, "expandable": 3, "resnet": 1,
    }  # fmt: skip
    oom = {"name": "plan", "family": "vit", "oom": True}
    retried = good | {"card_gib": 8.0, "measured": {**good["measured"], "retries": 2}}
    unlike = good | {"name": "unlike", "measured": {**good["measured"], "expandable_segments": False}}
    assert failures([good, oom, retried, unlike, {"name": "x", "error": "killed"}]) == [
        "x: killed",
        "plan was said to fit and ran out of memory",
        "small only just fitted: 2 allocations were tried again",
        "unlike: the allocator was not set as the recipe says",
    ]
    assert failures([]) == ["nothing was measured"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("encoder", "devices"), [("vit_tiny_patch16", 1), ("resnet18", 2)], ids=["vit", "resnet_two_devices"]
)
def test_predicted_is_within_8_per_cent_of_measured(encoder: str, devices: int) -> None:
    fields = {"name": encoder, "image_size": 224, "freeze_patch_projection": encoder.startswith("vit")}
    memory = {"mixed_precision": "bf16", "expandable_segments": False}
    sizes = {"micro_batch_size": 64, "accumulation_steps": 2}
    recipe = on_devices(devices, encoder=fields, moco=HEADS, memory=memory, batch=sizes)
    prediction = predict(Configuration(encoder, recipe), cards_of_this_machine()[0])
    measured = measure(recipe)
    print(f"{encoder}: predicted {prediction.bytes}, measured {measured}")
    assert measured.retries == 0
    assert prediction.peaks.peak_reserved_bytes == pytest.approx(measured.peak_reserved_bytes, rel=0.08)
    assert prediction.peaks.peak_allocated_bytes == pytest.approx(measured.peak_allocated_bytes, rel=0.08)
    assert torch.cuda.memory_allocated(0) < 0.1 * measured.peak_allocated_bytes  # the networks are gone
