"""Measuring the step on a device, and the measurements of this machine."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plans import MEASUREMENT, recipe_on
from support.traces import CONVOLUTIONS, HEADS, VIT, peak_without_scratch
from torch.profiler import profile

from moco_accel.common.errors import UserError
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.training.optimizers import build_optimizer
from moco_accel.training.step import build_accelerator, prepare, train_step
from moco_accel.views.augment import AugmentedView
from planner.evidence.measure import measure, measurement_row, random_crops, run_steps
from planner.evidence.records import append_row, measured_path, read_rows
from planner.memory.allocator import replay
from planner.trace.fake_processes import fresh_accelerate
from planner.trace.scaling import make_scalable, with_traceable_batch
from planner.trace.trace import trace_step

CPU = torch.device("cpu")
PREDICTED = {"peak_reserved": 1010, "peak_allocated": 945}


@pytest.mark.parametrize("sections", [{}, {"memory": {"mixed_precision": "bf16"}}], ids=["fp32", "bf16"])
def test_run_steps_runs_the_trainers_step(sections: dict[str, dict[str, Any]]) -> None:
    recipe = recipe_on(1, **sections)
    losses = [run.loss for run in run_steps(recipe, CPU, 3)]
    accelerator = build_accelerator(recipe, cpu=True)
    torch.manual_seed(recipe.run.seed)
    moco = build_moco(recipe)
    model, optimizer = prepare(accelerator, moco, build_optimizer(recipe, moco))
    first, second = ([random_crops(recipe, view)] * 2 for view in (0, 1))
    for loss in losses:
        views = AugmentedView(first, recipe, CPU), AugmentedView(second, recipe, CPU)
        assert train_step(accelerator, model, optimizer, views, recipe, 0.99).loss.item() == loss
    assert len(set(losses)) == 3


def test_run_steps_contrasts_with_the_keys_of_all_devices() -> None:
    """In a process group that sends nothing, every process gathers its own keys."""
    recipe = recipe_on(2)
    run = run_steps(recipe, CPU, 1)[0]
    with fresh_accelerate(2):
        torch.manual_seed(recipe.run.seed)
        moco = build_moco(recipe)
        view1, view2 = (AugmentedView([random_crops(recipe, view)] * 2, recipe, CPU) for view in (0, 1))
        keys1, keys2 = moco.keys(view1), moco.keys(view2)
        loss = moco(view1, torch.cat([keys2, keys2]))[0] + moco(view2, torch.cat([keys1, keys1]))[0]
    assert run.loss == pytest.approx(loss.item(), abs=1e-6)  # worst measured: 0
    assert run.seconds > 0
    assert not torch.distributed.is_initialized()


def test_run_steps_frees_the_networks() -> None:
    run_steps(recipe_on(2), CPU, 1)
    gc.collect()
    assert [thing for thing in gc.get_objects() if type(thing) is MoCo] == []


@pytest.mark.parametrize("devices", [1, 2])
def test_run_steps_takes_the_traced_memory(devices: int) -> None:
    """On the CPU, gradients and gathered keys included, as torch.profiler reports it."""
    sizes = {"micro_batch_size": 8, "accumulation_steps": 2}
    recipe = recipe_on(devices, encoder=VIT, moco=HEADS, batch=sizes)
    traceable = with_traceable_batch(recipe, 2)
    events = make_scalable(trace_step(traceable, None), traceable).events(8, 2)
    gc.collect()
    with profile(profile_memory=True, acc_events=True) as profiler:
        run_steps(recipe, CPU, 2)
    recorded = profiler.profiler.kineto_results.events()
    scratch = [(e.start_ns(), e.end_ns()) for e in recorded if e.name() in CONVOLUTIONS]
    changes = [(e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]"]
    ran = peak_without_scratch(changes, scratch)
    traced = replay(events).peak_requested_bytes
    print(f"traced {traced:,} ran {ran:,} {traced / ran - 1:+.2%}")
    assert traced == pytest.approx(ran, rel=0.01)  # worst measured: 0.13 %


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_measure_without_a_gpu_is_refused() -> None:
    line = "--measure needs a GPU, but torch finds none; omit --measure for a prediction"
    with pytest.raises(UserError) as error:
        measure(recipe_on(1))
    assert str(error.value) == line


def test_measurements_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_rows(measured_path()) == []
    for recipe in (recipe_on(1), recipe_on(2)):
        append_row(measured_path(), measurement_row(MEASUREMENT, recipe, PREDICTED))
    one, two = read_rows(measured_path())
    assert (tmp_path / "moco-accel" / "measured.jsonl").is_file()
    assert one == json.loads(json.dumps(measurement_row(MEASUREMENT, recipe_on(1), PREDICTED)))
    assert one["ratio"] == pytest.approx(1.01)
    assert one["measured"]["peak_reserved_bytes"] == 1000
    assert two["recipe"]["hardware"] == {"num_devices": 2}
    assert two["recipe"]["batch"]["global_batch_size"] == 16
    assert set(two["recipe"]) == {"encoder", "moco", "batch", "optimizer", "memory", "hardware"}


def test_only_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, measurement_row(MEASUREMENT, recipe_on(1), PREDICTED))
    whole = path.read_bytes()
    for torn in range(1, len(whole) - 2, 97):
        path.write_bytes(whole + whole[:torn])
        assert len(read_rows(path)) == 1
        append_row(path, {"next": torn})
        assert read_rows(path)[1:] == [{"next": torn}]
    path.write_bytes(whole.rstrip(b"\n"))  # complete, without the newline
    append_row(path, {"next": 0})
    assert len(read_rows(path)) == 2
    path.write_bytes(whole + b"{torn}\n" + whole)
    with pytest.raises(UserError, match="line 2 is not a row of JSON"):
        read_rows(path)
