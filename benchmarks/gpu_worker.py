"""Worker processes of `gpu_validate.py`: one predicts without a GPU, one measures without tracing.

Tracing on a machine with a GPU creates a CUDA context, because the optimizer asks whether a graph is being captured.
This context would add to the memory that another process measures.
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from gpu_configurations import Configuration, list_configurations

from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.schema import Recipe
from planner.cards.card import Card
from planner.cards.fleet import local_cards
from planner.cards.lookup import generic_card
from planner.evidence.measure import Measurement, measure, measurement_row, recipe_fields
from planner.memory.allocator import AllocatorPeaks, live_tensors, replay
from planner.search.best_recipe import find_best
from planner.time.step_time import predicted_tiles_per_second
from planner.trace.events import Event
from planner.trace.scaling import ScalableTrace, trace_for

_MAX_GROUPS = 40  # of blocks in a comparison

Blocks = Counter[tuple[int, str]]
"""Number of blocks by (bytes, origin)."""


class SkipConfiguration(Exception):  # noqa: N818 - not an error
    """Raised with the reason why a configuration cannot run on this machine or does not fit."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The planner's prediction for `recipe`, which is the planner's own if the configuration names a GPU.

    `card` is that GPU, with the compute capability and rates of the real one.
    """

    recipe: Recipe
    card: Card
    traced: ScalableTrace
    events: list[Event]
    peaks: AllocatorPeaks

    @property
    def bytes(self) -> dict[str, int]:
        """Return the predicted peaks in bytes."""
        return {"peak_reserved": self.peaks.peak_reserved_bytes, "peak_allocated": self.peaks.peak_allocated_bytes}


def handle_request(request: dict[str, Any]) -> Any:
    """Run the task of a request, with the other entries as arguments; return the result for JSON."""
    tasks = {"describe_card": _describe_card, "predict": _predict_row, "measure": _measure_row}
    return tasks[request["task"]](**{name: value for name, value in request.items() if name != "task"})


def _describe_card() -> dict[str, Any] | None:
    """Return the first GPU and its free memory, or None if there is no GPU."""
    if not torch.cuda.is_available():
        return None
    card, free = local_cards()[0], torch.cuda.mem_get_info(0)[0]
    return {"card": dataclasses.asdict(card), "free_bytes": free}


def predict(configuration: Configuration, real: Card) -> Prediction:
    """Predict the peaks of a configuration for the GPU `real` by tracing and replaying a step, as moco-plan does.

    Raises:
        SkipConfiguration: If bitsandbytes is needed and not installed, or no plan fits.
    """
    if configuration.recipe.optimizer.name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise SkipConfiguration("bitsandbytes is not installed")
    recipe, card = configuration.recipe, real
    if configuration.card_gib is not None:
        card = dataclasses.replace(
            generic_card(configuration.card_gib),
            compute_capability=real.compute_capability,
            tensor_tflops=real.tensor_tflops,
            bandwidth_gb_per_second=real.bandwidth_gb_per_second,
        )
        plan = find_best(recipe, card)
        if not plan.memory.fits:
            raise SkipConfiguration(f"no plan fits; missing bytes: {plan.memory.missing_bytes}")
        recipe = plan.recipe
    traced = trace_for(recipe, card)
    events = traced.events(recipe.batch.micro_batch_size, recipe.batch.accumulation_steps)
    return Prediction(recipe, card, traced, events, replay(events, recipe.memory.expandable_segments))


def predicted_entries(configuration: Configuration, prediction: Prediction) -> dict[str, Any]:
    """Return the entries of a row that do not need a measurement."""
    recipe, card, planned = prediction.recipe, prediction.card, configuration.card_gib is not None
    flops = sum(prediction.traced.flops(recipe.batch.micro_batch_size, recipe.batch.accumulation_steps).values())
    return {
        "name": configuration.name,
        "family": configuration.family,
        "card_gib": configuration.card_gib,
        "budget_bytes": card.budget_bytes(recipe.hardware.num_devices) if planned else None,
        "recipe": recipe_fields(recipe),
        "predicted_bytes": prediction.bytes,
        "predicted_outside_bytes": card.outside_bytes(1),  # without communication, NCCL has no buffers
        "predicted_tiles_per_second": predicted_tiles_per_second(flops, recipe, card),
    }


def _predict_row(name: str, card: dict[str, Any], card_gib: float | None, blocks: str | None = None) -> dict[str, Any]:
    """Return a `row` without a measurement and the `recipe` to run; with `blocks`, write the peak's to that file."""
    configuration = next(c for c in list_configurations([card_gib] if card_gib else []) if c.name == name)
    try:
        prediction = predict(configuration, Card(**card))
    except SkipConfiguration as reason:
        return {"row": {"name": name, "family": configuration.family, "skipped": str(reason)}, "recipe": None}
    if blocks is not None:
        Path(blocks).write_text(json.dumps([[*block, count] for block, count in predicted_blocks(prediction).items()]))
    return {
        "row": predicted_entries(configuration, prediction),
        "recipe": prediction.recipe.model_dump(exclude={"planned"}),
    }


def _measure_row(
    row: dict[str, Any], recipe: dict[str, Any], lock: str, blocks: str | None = None, comparison: str | None = None
) -> dict[str, Any]:
    """Wait for the GPU, run the recipe and return the completed row; with `comparison`, write blocks to that file."""
    # never closed: the lock is released when this process ends, and its CUDA context with it
    fcntl.flock(os.open(lock, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    if row["budget_bytes"] is not None:
        torch.cuda.set_per_process_memory_fraction(row["budget_bytes"] / torch.cuda.mem_get_info(0)[1], 0)
    to_run = recipe_from_dict(recipe)
    try:
        with _record_allocations(blocks, comparison):
            measured = measure(to_run)
    except torch.OutOfMemoryError as error:
        return {**row, "oom": True, "message": str(error)}
    return add_measurement(row, to_run, measured)


def add_measurement(row: dict[str, Any], recipe: Recipe, measured: Measurement) -> dict[str, Any]:
    """Return the row with its measurement."""
    return {
        **row,
        **measurement_row(measured, recipe, row["predicted_bytes"]),
        "ratio_allocated": row["predicted_bytes"]["peak_allocated"] / measured.peak_allocated_bytes,
        "measured_outside_bytes": measured.device_used_bytes - measured.peak_reserved_bytes,
        "oom": False,
    }


@contextmanager
def _record_allocations(blocks: str | None, comparison: str | None) -> Iterator[None]:
    """Record every allocation, then compare the blocks at the measured and at the predicted peak."""
    if blocks is None or comparison is None:
        yield
        return
    torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=sys.maxsize)
    yield
    measured = measured_blocks(torch.cuda.memory._snapshot()["device_traces"][0])
    torch.cuda.memory._record_memory_history(enabled=None)
    predicted = Counter({(size, origin): count for size, origin, count in json.loads(Path(blocks).read_text())})
    Path(comparison).write_text(json.dumps(compare_blocks(predicted, measured), indent=1) + "\n")


def compare_blocks(predicted: Blocks, measured: Blocks) -> dict[str, Any]:
    """List the blocks of both peaks by size and origin, largest first, and the sizes whose counts differ."""
    expected, actual = _count_by_size(predicted), _count_by_size(measured)
    differing = [size for size in expected.keys() | actual.keys() if expected[size] != actual[size]]
    differing.sort(key=lambda size: -size * abs(expected[size] - actual[size]))
    return {
        "predicted_requested_bytes": sum(size * count for size, count in expected.items()),
        "measured_requested_bytes": sum(size * count for size, count in actual.items()),
        "different": [
            {"bytes": size, "predicted_count": expected[size], "measured_count": actual[size]}
            for size in differing[:_MAX_GROUPS]
        ],
        "predicted": _largest_groups(predicted),
        "measured": _largest_groups(measured),
    }


def predicted_blocks(prediction: Prediction) -> Blocks:
    """Count the blocks at the predicted peak, by size and by operation and phase."""
    blocks: Blocks = Counter()
    for number, size in live_tensors(prediction.events, prediction.peaks.at_event).items():
        tensor = prediction.traced.trace.tensors[prediction.traced.original(number)]
        blocks[size, f"{tensor.operation} in {tensor.phase}, {tensor.category}"] += 1
    return blocks


def measured_blocks(entries: Sequence[Mapping[str, Any]]) -> Blocks:
    """Count the blocks at the measured peak, by size and by the functions that allocated them.

    `entries` are those of CUDA's memory history, with requested sizes and the innermost frame first.
    """
    signs = {"alloc": 1, "free_completed": -1}
    totals = list(accumulate(signs.get(entry["action"], 0) * entry["size"] for entry in entries))
    live: dict[int, Mapping[str, Any]] = {}
    for entry in entries[: totals.index(max(totals)) + 1] if totals else ():
        if entry["action"] == "alloc":
            live[entry["addr"]] = entry
        elif entry["action"] == "free_completed":
            live.pop(entry["addr"], None)
    return Counter((entry["size"], _origin(entry["frames"])) for entry in live.values())


def _origin(frames: Iterable[Mapping[str, Any]]) -> str:
    """Name the innermost function and the innermost one of this project; backward runs without Python frames."""
    innermost = ours = ""
    for frame in frames:
        innermost = innermost or frame["name"]
        path = Path(frame["filename"])
        package = next((folder for folder in path.parents if folder.name in ("moco_accel", "planner")), None)
        if package is not None:
            ours = f" < {frame['name']}, {path.relative_to(package.parent)}:{frame['line']}"
            break
    return (innermost + ours) or "no Python frame: backward"


def _count_by_size(blocks: Blocks) -> Counter[int]:
    counts: Counter[int] = Counter()
    for (size, _), count in blocks.items():
        counts[size] += count
    return counts


def _largest_groups(blocks: Blocks) -> list[dict[str, Any]]:
    largest = sorted(blocks.items(), key=lambda item: -item[0][0] * item[1])[:_MAX_GROUPS]
    return [{"bytes": size, "count": count, "of": origin} for (size, origin), count in largest]
