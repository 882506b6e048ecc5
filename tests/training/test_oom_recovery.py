"""Out of memory on one process, anywhere in a step: all do the step over, and it is the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.interruptions import StopBefore
from support.recipes import small_recipe

from moco_accel.checkpoints.checkpoint import MODEL
from moco_accel.checkpoints.run_folder import newest_whole
from moco_accel.common.errors import UserError
from moco_accel.networks.encoders import VisionTransformer
from moco_accel.recipe.load import load_recipe
from moco_accel.training.loop import run_training
from moco_accel.training.oom_recovery import halved, in_micro_batches, is_out_of_memory

SUPPORT = Path(__file__).parents[1] / "support"
BATCH = {"global_batch_size": 16, "micro_batch_size": 2, "accumulation_steps": 4}
TWO = {"hardware": {"num_devices": 2}, "batch": BATCH, "moco": {"queue_size": 16}}
PLACES = {
    "before momentum update": (0,),
    "after momentum update": (0,),
    "forward momentum_encoder": range(8),  # keys of both views, four micro-batches each
    "forward momentum_projector.1": (0, 1),  # between BatchNorm's sums, which cross processes
    "forward momentum_projector.7": (0, 1),
    "forward encoder": range(14),  # four micro-batches of a view, and three again in backward
    "forward projector": (0, 1),
    "forward projector.4": (0, 1),
    "forward predictor": (0, 1),
    "backward predictor": (0, 1),
    "backward projector.3": (0, 1),
    "backward encoder": range(8),
    "before average": (0,),
    "after average": (0,),
    "before optimizer": (0,),
    "after optimizer": (0,),
}
"""Where, and the how manieth time in a step."""


def run_failing(
    count: int, sections: dict[str, Any], cases: list[dict[str, Any]], seconds: int
) -> list[dict[str, Any]]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT.parent)}
    command = [sys.executable, *launch, str(SUPPORT / "oom_processes.py"), json.dumps(sections), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def every_case() -> list[dict[str, Any]]:
    return [
        {"rank": rank, "place": place, "nth": nth, "step": step}
        for place, times in PLACES.items()
        for nth in times
        for rank in (0, 1)
        for step in (0, 1)  # before and after the optimizer has a state
    ]


def check_healed(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["sprung"], row
        assert row["error"] is None, row
        assert not row["apart"], row  # losses, gradients, parameters, BatchNorm's buffers, queue
        expected = [] if row["place"].endswith("optimizer") else [[1, [row["rank"]]]]
        assert row["halvings"] == expected, row


def test_a_process_out_of_memory_anywhere_in_a_step() -> None:
    """One time at every place, and at the first, a middle and the last micro-batch; rank and step take turns."""
    chosen = [
        {"rank": number % 2, "place": place, "nth": nth, "step": number // 2 % 2}
        for number, (place, nth) in enumerate(
            (place, nth)
            for place, times in PLACES.items()
            for nth in sorted({times[0], times[len(times) // 2], times[-1]})
        )
    ]
    half = {"rank": 1, "place": "in half the optimizer", "nth": 0, "step": 1}
    *rows, half_done = run_failing(2, TWO, [*chosen, half], seconds=240)
    check_healed(rows)
    assert half_done["error"].startswith(
        "out of memory on rank 1 in the midst of the optimizer's step, which cannot be done over; --resume goes on"
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_process_out_of_memory_everywhere_in_a_step() -> None:
    rows = run_failing(2, TWO, every_case(), seconds=3000)
    check_healed(rows)
    print(f"{len(rows)} cases, none hung, worst difference {max(row['worst'] for row in rows):.1e}")


def test_alone_and_twice_in_a_step() -> None:
    batch = {"global_batch_size": 8, "micro_batch_size": 4, "accumulation_steps": 2}
    row = run_failing(1, {"batch": batch}, [{"rank": 0, "place": "forward encoder", "nth": 1, "step": 0}], seconds=60)[
        0
    ]
    assert (row["error"], row["apart"], row["halvings"]) == (None, 0, [[2, [0]]])


def test_who_does_not_want_it_is_not_healed() -> None:
    sections = {"batch": {"global_batch_size": 8, "micro_batch_size": 4, "accumulation_steps": 2}}
    case = {"rank": 0, "place": "forward encoder", "nth": 1, "step": 0}
    rows = run_failing(1, sections | {"run": {"heal_out_of_memory": False}}, [case], seconds=60)
    assert "out of memory, and with run.heal_out_of_memory=false a step can't be done over" in rows[0]["error"]


def test_the_micro_batch_is_the_largest_that_divides() -> None:
    recipe = small_recipe(batch={"global_batch_size": 90, "micro_batch_size": 45, "accumulation_steps": 2})
    assert halved(recipe, [0]).batch.micro_batch_size == 18
    assert halved(recipe, [0]).per_device_batch_size == 90


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"batch": {"global_batch_size": 8, "micro_batch_size": 1, "accumulation_steps": 8}}, "=1, the smallest"),
        ({"encoder": {"name": "resnet10", "image_size": 32}}, "BatchNorm in resnet10 sees a micro-batch at a time"),
        ({"batch": {"contrast_over": "micro_batch"}}, "contrasted with its micro-batch alone"),
    ],
)
def test_what_cannot_be_halved_says_what_helps(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        halved(small_recipe(**sections), [0, 1])
    assert "memory.activation_checkpointing=true" in str(caught.value)
    assert str(caught.value).startswith("out of memory on ranks 0, 1 ")


def test_views_are_split_in_order() -> None:
    view = [torch.arange(4), torch.arange(4, 8)]
    parts = in_micro_batches(view, 2)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_what_is_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


def test_a_run_goes_on_in_smaller_micro_batches_and_is_resumed_in_them(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped after the step that was done over, resumed as it was started: the end is that of an undisturbed run."""
    run, calm = tmp_path / "run [1]", tmp_path / "calm"
    recipe = small_recipe(data={"source": str(tiles_folder)}, run={"log_every_steps": 1})
    run_training(recipe, calm, False, StopBefore(100))
    capfd.readouterr()
    forward, calls = VisionTransformer.forward, 0

    def full_at_the_seventh(self: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 17:  # in the second step's first view
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels)

    monkeypatch.setattr(VisionTransformer, "forward", full_at_the_seventh)
    run_training(recipe, run, False, StopBefore(3))
    said = capfd.readouterr().err
    assert (
        said.count("out of memory on rank 0: this step is done over, and all from here on, in micro-batches of 2 × 4")
        == 1
    )
    assert load_recipe(run / "recipe.yaml").batch.micro_batch_size == 2
    run_training(recipe, run, True, StopBefore(100))
    assert "batch.micro_batch_size=2, as the run found that 4 does not fit" in capfd.readouterr().err
    last = [newest_whole(folder, print) for folder in (run, calm)]
    assert last[0] is not None
    assert last[1] is not None
    assert last[0].state.step == last[1].state.step == 10
    ours, theirs = (
        torch.cat([tensor.double().flatten() for tensor in load_file(found.folder / MODEL).values()])
        for found in last
        if found
    )
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"relative difference of all weights {difference:.1e}")
    assert difference < 1e-5  # in float32; measured: 6e-7
    losses = [
        [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, calm)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
