"""What the processes of `gpu_validate.py` do: one predicts and sees no GPU, one measures and traces nothing.

Tracing on a machine with a GPU makes a CUDA context (the optimizer asks whether a graph is being captured), which would
be measured beside another process' step.
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
from gpu_configurations import Configuration, configurations

from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.schema import Recipe
from planner.answer.search import best
from planner.cards.devices import Card, cards_of_this_machine, generic_card
from planner.memory.allocator import AllocatorPeaks, replay
from planner.memory.estimate import predicted_tiles_per_second, trace_for
from planner.memory.measure import Measured, as_row, measure, recipe_fields
from planner.memory.scaling import ScalableTrace
from planner.trace.events import Event

_LISTED = 40  # groups of blocks that an explanation names

Blocks = Counter[tuple[int, str]]
"""How many blocks there are of (bytes, origin)."""


class NotRun(Exception):  # noqa: N818 - no error: a configuration that this machine or this plan rules out
    """Why a configuration is left out."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the planner says of `recipe`: its own plan of it, where a card's size was named.

    `card` has that card's size and the real one's compute capability and rates.
    """

    recipe: Recipe
    card: Card
    traced: ScalableTrace
    events: list[Event]
    peaks: AllocatorPeaks

    @property
    def bytes(self) -> dict[str, int]:
        return {"peak_reserved": self.peaks.peak_reserved_bytes, "peak_allocated": self.peaks.peak_allocated_bytes}


def answer(question: dict[str, Any]) -> Any:
    """The child's answer to {"ask": …, and what that takes}."""
    asked = {"card": card_here, "prediction": predicted_row, "measurement": measured_row}
    return asked[question["ask"]](**{name: value for name, value in question.items() if name != "ask"})


def card_here() -> dict[str, Any] | None:
    """This machine's first GPU, and the bytes that are free on it; None if there is none."""
    if not torch.cuda.is_available():
        return None
    card, free = cards_of_this_machine()[0], torch.cuda.mem_get_info(0)[0]
    return {"card": dataclasses.asdict(card), "free_bytes": free}


def predict(configuration: Configuration, real: Card) -> Prediction:
    """Trace and replay, as moco-plan does. Raises NotRun where that can't be."""
    if configuration.recipe.optimizer.name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise NotRun("bitsandbytes is not installed")
    recipe, card = configuration.recipe, real
    if configuration.card_gib is not None:
        card = dataclasses.replace(
            generic_card(configuration.card_gib),
            compute_capability=real.compute_capability,
            tensor_tflops=real.tensor_tflops,
            bandwidth_gb_per_second=real.bandwidth_gb_per_second,
        )
        plan = best(recipe, card)
        if not plan.memory.fits:
            raise NotRun(f"the planner says that it does not fit, by {plan.memory.missing_bytes} bytes")
        recipe = plan.recipe
    traced = trace_for(recipe, card)
    events = traced.events(recipe.batch.micro_batch_size, recipe.batch.accumulation_steps)
    return Prediction(recipe, card, traced, events, replay(events, recipe.memory.expandable_segments))


def described(configuration: Configuration, prediction: Prediction) -> dict[str, Any]:
    """The part of a row that is known before anything is measured."""
    recipe, card, planned = prediction.recipe, prediction.card, configuration.card_gib is not None
    return {
        "name": configuration.name,
        "family": configuration.family,
        "card_gib": configuration.card_gib,
        "budget_bytes": card.budget_bytes(recipe.hardware.num_devices) if planned else None,
        "recipe": recipe_fields(recipe),
        "predicted_bytes": prediction.bytes,
        "predicted_outside_bytes": card.outside_bytes(1),  # nothing is sent, so NCCL has no buffers
        "predicted_tiles_per_second": predicted_tiles_per_second(prediction.traced, recipe, card),
    }


def predicted_row(name: str, card: dict[str, Any], card_gib: float | None, blocks: str | None = None) -> dict[str, Any]:
    """A row without its measurement, and the whole recipe. With `blocks`, those of the peak are written there."""
    found = next(c for c in configurations([card_gib] if card_gib else []) if c.name == name)
    try:
        prediction = predict(found, Card(**card))
    except NotRun as reason:
        return {"row": {"name": name, "family": found.family, "skipped": str(reason)}, "recipe": None}
    if blocks is not None:
        Path(blocks).write_text(json.dumps([[*block, count] for block, count in predicted_blocks(prediction).items()]))
    return {"row": described(found, prediction), "recipe": prediction.recipe.model_dump(exclude={"planned"})}


def measured_row(
    row: dict[str, Any], recipe: dict[str, Any], lock: str, blocks: str | None = None, explanation: str | None = None
) -> dict[str, Any]:
    """Wait for the GPU, run, complete `row`. With `explanation`, the peak is written there block by block."""
    # never closed: the GPU is the next one's when this process and its CUDA context are gone
    fcntl.flock(os.open(lock, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    if row["budget_bytes"] is not None:
        torch.cuda.set_per_process_memory_fraction(row["budget_bytes"] / torch.cuda.mem_get_info(0)[1], 0)
    wanted = recipe_from_dict(recipe)
    try:
        with _history(blocks, explanation):
            measured = measure(wanted)
    except torch.OutOfMemoryError as error:
        return {**row, "oom": True, "message": str(error)}
    return complete(row, wanted, measured)


def complete(row: dict[str, Any], recipe: Recipe, measured: Measured) -> dict[str, Any]:
    """`row` with its measurement."""
    return {
        **row,
        **as_row(measured, recipe, row["predicted_bytes"]),
        "ratio_allocated": row["predicted_bytes"]["peak_allocated"] / measured.peak_allocated_bytes,
        "measured_outside_bytes": measured.device_used_bytes - measured.peak_reserved_bytes,
        "oom": False,
    }


@contextmanager
def _history(blocks: str | None, explanation: str | None) -> Iterator[None]:
    """Record every allocation meanwhile, then write the peak's blocks beside the predicted ones."""
    if blocks is None or explanation is None:
        yield
        return
    torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=sys.maxsize)
    yield
    measured = measured_blocks(torch.cuda.memory._snapshot()["device_traces"][0])
    torch.cuda.memory._record_memory_history(enabled=None)
    predicted = Counter({(size, origin): count for size, origin, count in json.loads(Path(blocks).read_text())})
    Path(explanation).write_text(json.dumps(explained(predicted, measured), indent=1) + "\n")


def explained(predicted: Blocks, measured: Blocks) -> dict[str, Any]:
    """Live blocks at both peaks by size and origin, largest first, and the sizes whose counts differ."""
    expected, found = _by_size(predicted), _by_size(measured)
    differing = [size for size in expected.keys() | found.keys() if expected[size] != found[size]]
    differing.sort(key=lambda size: -size * abs(expected[size] - found[size]))
    return {
        "predicted_requested_bytes": sum(size * count for size, count in expected.items()),
        "measured_requested_bytes": sum(size * count for size, count in found.items()),
        "different": [
            {"bytes": size, "predicted_count": expected[size], "measured_count": found[size]}
            for size in differing[:_LISTED]
        ],
        "predicted": _listed(predicted),
        "measured": _listed(measured),
    }


def predicted_blocks(prediction: Prediction) -> Blocks:
    """(bytes, operation and where) of what the replay holds at its peak, counted."""
    live: dict[int, int] = {}
    for number, size in prediction.events[: prediction.peaks.at_event + 1]:
        if size:
            live[number] = size
        else:
            del live[number]
    blocks: Blocks = Counter()
    for number, size in live.items():
        tensor = prediction.traced.trace.tensors[prediction.traced.original(number)]
        blocks[size, f"{tensor.operation} in {tensor.phase}, {tensor.category}"] += 1
    return blocks


def measured_blocks(entries: Sequence[Mapping[str, Any]]) -> Blocks:
    """(bytes, innermost function and innermost of ours) of what was live when most was, counted.

    `entries` are those of CUDA's memory history: sizes as asked for, frames innermost first.
    """
    taken = {"alloc": 1, "free_completed": -1}
    totals = list(accumulate(taken.get(entry["action"], 0) * entry["size"] for entry in entries))
    live: dict[int, Mapping[str, Any]] = {}
    for entry in entries[: totals.index(max(totals)) + 1] if totals else ():
        if entry["action"] == "alloc":
            live[entry["addr"]] = entry
        elif entry["action"] == "free_completed":
            live.pop(entry["addr"], None)
    return Counter((entry["size"], _origin(entry["frames"])) for entry in live.values())


def _origin(frames: Iterable[Mapping[str, Any]]) -> str:
    """Backward runs in a thread without Python frames."""
    innermost = ours = ""
    for frame in frames:
        innermost = innermost or frame["name"]
        folder, name = Path(frame["filename"]).parts[-2:] if "/" in frame["filename"] else ("", "")
        if folder in ("moco_accel", "planner"):
            ours = f" < {frame['name']}, {folder}/{name}:{frame['line']}"
            break
    return (innermost + ours) or "no Python frame: backward"


def _by_size(blocks: Blocks) -> Counter[int]:
    counts: Counter[int] = Counter()
    for (size, _), count in blocks.items():
        counts[size] += count
    return counts


def _listed(blocks: Blocks) -> list[dict[str, Any]]:
    largest = sorted(blocks.items(), key=lambda item: -item[0][0] * item[1])[:_LISTED]
    return [{"bytes": size, "count": count, "of": origin} for (size, origin), count in largest]
