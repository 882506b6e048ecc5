"""Out of memory on one rank, anywhere in a step: all ranks retry the step, with the same result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.interruptions import StopBefore
from support.rank_scripts import run_ranks
from support.recipes import small_recipe

from moco_accel.checkpoints.checkpoint import MODEL
from moco_accel.checkpoints.run_folder import newest_intact
from moco_accel.common.errors import UserError
from moco_accel.networks.encoders import VisionTransformer
from moco_accel.recipe.load import load_recipe
from moco_accel.training.oom_recovery import halve_micro_batch, is_out_of_memory, split_view
from moco_accel.training.run import run_training

BATCH = {"global_batch_size": 16, "micro_batch_size": 2, "accumulation_steps": 4}
TWO_RANKS = {"hardware": {"num_devices": 2}, "batch": BATCH, "moco": {"queue_size": 16}}
BATCH_OF_8 = {"global_batch_size": 8, "micro_batch_size": 4, "accumulation_steps": 2}
PLACES = {
    "before momentum update": (0,),
    "after momentum update": (0,),
    "forward momentum_encoder": range(8),  # keys of both views, 4 micro-batches each
    "forward momentum_projector.1": (0, 1),  # between BatchNorm's sums over ranks
    "forward momentum_projector.7": (0, 1),
    "forward encoder": range(14),  # 4 micro-batches of a view, 3 of them again in backward
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
"""Place of the error, and its numbers of calls in a step."""


def run_with_faults(
    count: int, sections: dict[str, Any], cases: list[dict[str, Any]], seconds: int
) -> list[dict[str, Any]]:
    arguments = json.dumps(sections), json.dumps(cases)
    rows: list[dict[str, Any]] = run_ranks("oom_processes.py", count, *arguments, seconds=seconds)
    return rows


def every_case() -> list[dict[str, Any]]:
    return [
        {"rank": rank, "place": place, "nth": nth, "step": step}
        for place, times in PLACES.items()
        for nth in times
        for rank in (0, 1)
        for step in (0, 1)  # without and with optimizer state
    ]


def check_recovered(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["was_raised"], row
        assert row["error"] is None, row
        assert not row["differs"], row  # losses, gradients, parameters, BatchNorm's buffers, queue
        expected = [] if row["place"].endswith("optimizer") else [[1, [row["rank"]]]]
        assert row["halvings"] == expected, row


def test_out_of_memory_on_one_rank_leaves_the_step_unchanged() -> None:
    """At every place, in the first, a middle and the last micro-batch; rank and step alternate."""
    chosen = [
        {"rank": number % 2, "place": place, "nth": nth, "step": number // 2 % 2}
        for number, (place, nth) in enumerate(
            (place, nth)
            for place, times in PLACES.items()
            for nth in sorted({times[0], times[len(times) // 2], times[-1]})
        )
    ]
    partial_update = {"rank": 1, "place": "in half the optimizer", "nth": 0, "step": 1}
    *rows, refused = run_with_faults(2, TWO_RANKS, [*chosen, partial_update], seconds=240)
    check_recovered(rows)
    assert refused["error"].startswith(
        "out of memory on rank 1 during the optimizer step, which cannot be retried; --resume continues from the last"
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_out_of_memory_on_every_rank_and_at_every_call() -> None:
    rows = run_with_faults(2, TWO_RANKS, every_case(), seconds=3000)
    check_recovered(rows)
    print(f"{len(rows)} cases, none hung, worst difference {max(row['worst'] for row in rows):.1e}")


def test_recovery_on_a_single_rank() -> None:
    case = {"rank": 0, "place": "forward encoder", "nth": 1, "step": 0}
    row = run_with_faults(0, {"batch": BATCH_OF_8}, [case], seconds=60)[0]
    assert (row["error"], row["differs"], row["halvings"]) == (None, 0, [[2, [0]]])


def test_no_recovery_if_the_recipe_disables_it() -> None:
    sections = {"batch": BATCH_OF_8, "run": {"heal_out_of_memory": False}}
    case = {"rank": 0, "place": "forward encoder", "nth": 1, "step": 0}
    rows = run_with_faults(0, sections, [case], seconds=60)
    assert "out of memory, and with run.heal_out_of_memory=false a step cannot be retried" in rows[0]["error"]


def test_micro_batch_becomes_the_largest_divisor_of_at_most_half() -> None:
    recipe = small_recipe(batch={"global_batch_size": 90, "micro_batch_size": 45, "accumulation_steps": 2})
    assert halve_micro_batch(recipe, [0]).batch.micro_batch_size == 18
    assert halve_micro_batch(recipe, [0]).per_device_batch_size == 90


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"batch": {"global_batch_size": 8, "micro_batch_size": 1, "accumulation_steps": 8}}, "=1, the smallest"),
        (
            {"encoder": {"name": "resnet10", "image_size": 32}},
            "BatchNorm in resnet10 uses the statistics of one micro-batch",
        ),
        ({"batch": {"contrast_over": "micro_batch"}}, "contrasted only with its micro-batch"),
    ],
)
def test_micro_batch_that_cannot_be_halved_is_an_error(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        halve_micro_batch(small_recipe(**sections), [0, 1])
    assert "memory.activation_checkpointing=true" in str(caught.value)
    assert str(caught.value).startswith("out of memory on ranks 0, 1 ")


def test_views_are_split_in_order() -> None:
    view = [torch.arange(4), torch.arange(4, 8)]
    parts = split_view(view, 2)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_errors_that_count_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


def test_run_continues_and_resumes_in_smaller_micro_batches(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stop after the retried step, resume with the same command; the end is that of an undisturbed run."""
    run, undisturbed = tmp_path / "run [1]", tmp_path / "undisturbed"
    recipe = small_recipe(data={"source": str(tiles_folder)}, run={"log_every_steps": 1})
    run_training(recipe, undisturbed, False, StopBefore(100))
    capfd.readouterr()
    forward, calls = VisionTransformer.forward, 0

    def fail_once(self: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 17:  # in the second step's first view
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels)

    monkeypatch.setattr(VisionTransformer, "forward", fail_once)
    run_training(recipe, run, False, StopBefore(3))
    error = "out of memory on rank 0: this step is retried in micro-batches of 2 × 4, which later steps use as well"
    assert capfd.readouterr().err.count(error) == 1
    assert load_recipe(run / "recipe.yaml").batch.micro_batch_size == 2
    run_training(recipe, run, True, StopBefore(100))
    assert "batch.micro_batch_size=2, as the run found that 4 does not fit" in capfd.readouterr().err
    last = [newest_intact(folder, print) for folder in (run, undisturbed)]
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
        for folder in (run, undisturbed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
