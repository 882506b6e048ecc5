"""Scale one trace to any micro-batch size and any number of micro-batches.

A step is traced with at most three micro-batches, of a prime number of tiles that divides no other size. How often the
prime divides a tensor's bytes tells how the tensor grows: not at all (weights), with the micro-batch or the per-device
batch (activations), or with its square (logits). Further micro-batches repeat the middle one; only what each of them
leaves behind (its features) adds up.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from moco_accel.recipe.schema import Batch, Recipe
from planner.cards.card import Card
from planner.trace.events import Collective, CollectiveTotal, Event, Trace
from planner.trace.trace import trace_step

_PRIMES = (61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127)
MAX_TRACED_MICRO_BATCHES = 3  # the first and the last one differ in backward; all others are like the middle one
_BACKWARD_PHASES = ("backward", "recomputed forward")


@dataclass(frozen=True)
class GrowthRule:
    """How a tensor's bytes grow.

    Attributes:
        size_bytes: Bytes at the traced size.
        per_micro: Power of the micro-batch size.
        per_device: Power of the per-device batch size.
        kept: Every micro-batch leaves one such tensor behind.
    """

    size_bytes: int
    per_micro: int = 0
    per_device: int = 0
    kept: bool = False


@dataclass(frozen=True)
class ScalableTrace:
    """A trace with the growth rule of each of its tensors; `make_scalable` creates it."""

    trace: Trace
    rules: list[GrowthRule]
    traced_micro_batch_size: int
    traced_steps: int
    keep_last: bool
    contrast_over: str

    def events(self, micro_batch_size: int, accumulation_steps: int, steps: int = 2) -> list[Event]:
        """Return the events of the setup and of `steps` optimizer steps at these sizes.

        Tensors keep their numbers; copies that further micro-batches keep have higher numbers, see `original`.
        """
        traced = min(accumulation_steps, MAX_TRACED_MICRO_BATCHES)
        assert self.traced_steps == traced, "steps of fewer micro-batches are traced separately"
        sizes = [self._bytes(rule, micro_batch_size, accumulation_steps) for rule in self.rules]
        copies = range(1, accumulation_steps - self.traced_steps + 1)
        scaled: list[Event] = []
        for number, size in self._repeated(steps):
            scaled.append((number, size and sizes[number]))
            if self.rules[number].kept:
                scaled += [(number + copy * len(sizes), size and sizes[number]) for copy in copies]
        return scaled

    def original(self, number: int) -> int:
        """Return the number in `trace.tensors` of a tensor or of its copy."""
        return number % len(self.rules)

    def flops(self, micro_batch_size: int, accumulation_steps: int) -> dict[str, float]:
        """Return the operations of one optimizer step on one device by part, see `OperationFlops`.

        Recomputation is included. The loss grows with the square of the per-device batch.
        """
        # all micro-batches are recomputed, except a last one that is kept
        recomputations = (accumulation_steps - self.keep_last) / (self.traced_steps - self.keep_last or 1)
        recomputations *= micro_batch_size / self.traced_micro_batch_size
        times = 1.0 if self.contrast_over == "global_batch" else accumulation_steps / self.traced_steps
        total: defaultdict[str, float] = defaultdict(float)
        for flops, recomputed, part in self.trace.flops:
            growth = self._growth(flops, micro_batch_size, accumulation_steps)
            total[part] += flops * (recomputations if recomputed else times * growth)
        return dict(total)

    def collectives(self, micro_batch_size: int, accumulation_steps: int) -> list[CollectiveTotal]:
        """Return the collectives of one optimizer step at these sizes, by kind and group."""
        times: defaultdict[tuple[str, str, int, int], float] = defaultdict(float)
        sizes = times.copy()
        for each in self.trace.collectives:
            kind = each.operation, each.what, each.processes, each.apart
            repeats = self._repeats(each, accumulation_steps)
            times[kind] += repeats
            growth = self._growth(each.size_bytes, micro_batch_size, accumulation_steps)
            sizes[kind] += each.size_bytes * growth * repeats
        return [
            CollectiveTotal(
                operation=kind[0], what=kind[1], processes=kind[2], apart=kind[3],
                times=round(times[kind]), size_bytes=round(sizes[kind]),
            )
            for kind in times
        ]  # fmt: skip

    def status_exchanges(self, accumulation_steps: int) -> int:
        """Return how often all processes exchange their status: before all collectives but gathers of parameters."""
        last = sum(each.operation == "all-reduce" and each.what == "gradients" for each in self.trace.collectives)
        if self.contrast_over == "global_batch":
            return self.trace.status_exchanges
        return round((self.trace.status_exchanges - last) * accumulation_steps / self.traced_steps) + last

    def _growth(self, number: int, micro_batch_size: int, accumulation_steps: int) -> float:
        """Return by which factor one operation on the whole batch, or on a micro-batch, is larger at these sizes."""
        rows = micro_batch_size / self.traced_micro_batch_size
        if self.contrast_over == "global_batch":
            rows *= accumulation_steps / self.traced_steps
        return float(rows ** _power(number, self.traced_micro_batch_size))

    def _repeats(self, collective: Collective, accumulation_steps: int) -> float:
        """Return how many collectives a traced one stands for; the middle micro-batch stands for all like it."""
        if self.contrast_over == "micro_batch":
            once = collective.operation == "all-reduce" and collective.what == "gradients"
            return 1.0 if once else accumulation_steps / self.traced_steps
        middle = self.traced_steps == MAX_TRACED_MICRO_BATCHES and collective.micro_batch == 1
        return float(accumulation_steps - MAX_TRACED_MICRO_BATCHES + 1) if middle else 1.0

    def _repeated(self, steps: int) -> list[Event]:
        """Repeat the traced step. Tensors that it creates and does not free (optimizer state) are created once."""
        step = self.trace.events[self.trace.step_start :]
        transient = {number for number, size in step if size} & {number for number, size in step if not size}
        return self.trace.events + [event for event in step if event[0] in transient] * (steps - 1)

    def _bytes(self, rule: GrowthRule, micro_batch_size: int, accumulation_steps: int) -> int:
        traced = self.traced_micro_batch_size
        per_device, traced_per_device = micro_batch_size * accumulation_steps, traced * self.traced_steps
        grown = rule.size_bytes * micro_batch_size**rule.per_micro * per_device**rule.per_device
        return int(grown // (traced**rule.per_micro * traced_per_device**rule.per_device))


_traces: dict[tuple[str, int], ScalableTrace] = {}


def trace_for(recipe: Recipe, card: Card) -> ScalableTrace:
    """Return a trace of `recipe`'s step that scales to every micro-batch size; it is computed once per process."""
    traceable = with_traceable_batch(recipe, min(recipe.batch.accumulation_steps, MAX_TRACED_MICRO_BATCHES))
    key = (traceable.model_dump_json(exclude={"planned"}), card.compute_capability)
    if key not in _traces:
        _traces[key] = make_scalable(trace_step(traceable, card.compute_capability), traceable)
    return _traces[key]


def with_traceable_batch(recipe: Recipe, accumulation_steps: int) -> Recipe:
    """Return `recipe` with a prime micro-batch size that divides the bytes of exactly the tensors that grow with it."""
    size = recipe.encoder.image_size
    # of feature maps and patch grids; a ResNet's strides round up
    sides = {side for patch in (1, 2, 4, 8, 14, 16, 32) for side in (size // patch, -(-size // patch))}
    other_sizes = sides | {side**2 + 1 for side in sides} | {recipe.encoder.bands, recipe.hardware.num_devices}
    other_sizes |= {recipe.moco.output_dim, recipe.moco.projector_hidden_dim, recipe.moco.queue_size}
    prime = next(p for p in _PRIMES if all(n % p for n in other_sizes if n))
    return with_batch(recipe, prime, accumulation_steps)


def with_micro_batch(recipe: Recipe, micro_batch_size: int) -> Recipe:
    """Return `recipe` with the same global batch in micro-batches that divide the per-device batch."""
    steps, rest = divmod(recipe.per_device_batch_size, micro_batch_size)
    assert rest == 0, f"micro-batches of {micro_batch_size} do not divide {recipe.per_device_batch_size}"
    return with_batch(recipe, micro_batch_size, steps)


def with_batch(recipe: Recipe, micro_batch_size: int, accumulation_steps: int) -> Recipe:
    """Return `recipe` with these sizes and the global batch that follows from them."""
    batch = Batch(
        global_batch_size=micro_batch_size * accumulation_steps * recipe.hardware.num_devices,
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        contrast_over=recipe.batch.contrast_over,
    )
    return recipe.model_copy(update={"batch": batch})


def with_memory(recipe: Recipe, **settings: object) -> Recipe:
    """Return `recipe` with other settings in its `memory` section."""
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update=settings)})


def make_scalable(trace: Trace, recipe: Recipe) -> ScalableTrace:
    """Derive the growth rules of the tensors in a trace of a recipe from `with_traceable_batch`."""
    micro, count = recipe.batch.micro_batch_size, recipe.batch.accumulation_steps
    inside, kept = _micro_batch_tensors(trace, recipe)
    rows = micro * count, micro * count * recipe.hardware.num_devices
    rules = []
    for number, tensor in enumerate(trace.tensors):
        # tensors of the setup do not grow, even where the prime divides them by chance (such as the gradient buffer)
        power = 0 if tensor.phase == "setup" else _power(tensor.size_bytes, micro)
        if recipe.batch.contrast_over == "micro_batch" or tensor.phase == "augmentation":
            whole = False
        elif number in inside:
            whole = any(length in rows for length in tensor.shape)
        else:
            whole = any(length and length % rows[0] == 0 for length in tensor.shape)
        rule = GrowthRule(tensor.size_bytes, 0 if whole else power, power if whole else 0, number in kept)
        rules.append(rule)
    return ScalableTrace(trace, rules, micro, count, recipe.memory.keep_last_micro_batch, recipe.batch.contrast_over)


def _micro_batch_tensors(trace: Trace, recipe: Recipe) -> tuple[set[int], set[int]]:
    """Return the tensors made while one micro-batch runs, and those that each but the last leaves behind."""
    inside: set[int] = set()
    kept: set[int] = set()
    for index, mark in enumerate(trace.marks):
        if mark.kind == "forward end":
            continue
        backward = mark.kind in ("backward", "recomputed")
        end = _end_of_backward(trace, index) if backward else trace.marks[index + 1].event
        made = {number for number, size in trace.events[mark.event : end] if size}
        inside |= made
        if mark.kind not in ("keys", "forward") or mark.index != 0 or recipe.batch.accumulation_steps == 1:
            continue
        if recipe.batch.contrast_over == "micro_batch":  # the pixels of all micro-batches are made first
            kept |= {number for number in made if trace.tensors[number].category == "inputs"}
        else:
            # still alive when the next micro-batch begins, and growing with the micro-batch; autocast's 16-bit
            # weights do not grow: the first micro-batch makes them for all
            freed = {number for number, size in trace.events[mark.event : trace.marks[index + 2].event] if not size}
            micro = recipe.batch.micro_batch_size
            kept |= {n for n in made - freed if _power(trace.tensors[n].size_bytes, micro)}
    return inside, kept


def _end_of_backward(trace: Trace, index: int) -> int:
    """Return where the backward that begins at `marks[index]` ends: at the next micro-batch's, or at anything else."""
    following = next((m for m in trace.marks[index + 1 :] if m.kind != "forward end"), None)
    for event in range(trace.marks[index].event, len(trace.events)):
        if following is not None and event == following.event:
            return event
        number, size = trace.events[event]
        if size and trace.tensors[number].phase not in _BACKWARD_PHASES:
            return event
    return len(trace.events)


def _power(number: int, prime: int) -> int:
    power = 0
    while number and number % prime == 0:
        number, power = number // prime, power + 1
    return power
