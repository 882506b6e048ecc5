"""One trace, any micro-batch size and any number of micro-batches.

A step is traced with at most three micro-batches of a prime number of tiles, a prime that divides nothing else. How
often it divides a tensor's bytes says how the tensor grows: not at all (weights), with the micro-batch or with the
per-device batch (activations), or with its square (logits). Further micro-batches do what the middle one did; what each
leaves behind (its features) is all that adds up.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from moco_accel.recipe.schema import Batch, Recipe
from planner.memory.candidate import SentTotal
from planner.trace.events import Event, Sent, Trace

_PRIMES = (61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127)
MOST_TRACED = 3  # micro-batches: backward begins with one, ends with one, and treats all between alike
_BACKWARD_PHASES = ("backward", "recomputed forward")


@dataclass(frozen=True)
class Law:
    """How a tensor's bytes grow: power of the micro-batch size, of the per-device batch size; kept by each one?"""

    size_bytes: int
    per_micro: int = 0
    per_device: int = 0
    kept: bool = False


@dataclass(frozen=True)
class ScalableTrace:
    """A trace and the law of each of its tensors, traced at the sizes named. `scalable` makes it."""

    trace: Trace
    laws: list[Law]
    traced_micro_batch_size: int
    traced_steps: int
    keep_last: bool
    contrast_over: str

    def events(self, micro_batch_size: int, accumulation_steps: int, steps: int = 2) -> list[Event]:
        """Events of setting up and of `steps` optimizer steps at these sizes.

        Numbers are those of `trace.tensors`; copies of what every micro-batch keeps bear higher ones, see `original`.
        """
        assert self.traced_steps == min(accumulation_steps, MOST_TRACED), "fewer take paths of their own"
        sizes = [self._bytes(law, micro_batch_size, accumulation_steps) for law in self.laws]
        copies = range(1, accumulation_steps - self.traced_steps + 1)
        sized: list[Event] = []
        for number, size in self._repeated(steps):
            sized.append((number, size and sizes[number]))
            if self.laws[number].kept:
                sized += [(number + copy * len(sizes), size and sizes[number]) for copy in copies]
        return sized

    def original(self, number: int) -> int:
        """The number in `trace.tensors` of which `number` is a copy."""
        return number % len(self.laws)

    def flops(self, micro_batch_size: int, accumulation_steps: int) -> float:
        """Floating-point operations of one optimizer step on one device, recomputation included."""
        return sum(self.flops_by_part(micro_batch_size, accumulation_steps).values())

    def flops_by_part(self, micro_batch_size: int, accumulation_steps: int) -> dict[str, float]:
        """The same by what they are for, see `traced.Counted`: the loss's grow with the square of a device's batch."""
        # all micro-batches go through the encoder again, but for a last one that is kept
        again = (accumulation_steps - self.keep_last) / (self.traced_steps - self.keep_last or 1)
        again *= micro_batch_size / self.traced_micro_batch_size
        times = 1.0 if self.contrast_over == "global_batch" else accumulation_steps / self.traced_steps
        total: defaultdict[str, float] = defaultdict(float)
        for flops, redone, part in self.trace.flops:
            grown = again if redone else times * self._grown(flops, micro_batch_size, accumulation_steps)
            total[part] += flops * grown
        return dict(total)

    def sent(self, micro_batch_size: int, accumulation_steps: int) -> list[SentTotal]:
        """What one optimizer step sends at these sizes, by kind and by who takes part."""
        times: defaultdict[tuple[str, str, int, int], float] = defaultdict(float)
        sizes = times.copy()
        for sent in self.trace.sent:
            kind = sent.operation, sent.what, sent.processes, sent.apart
            repeats = self._repeats_of(sent, accumulation_steps)
            times[kind] += repeats
            grown = self._grown(sent.size_bytes, micro_batch_size, accumulation_steps)
            sizes[kind] += sent.size_bytes * grown * repeats
        names = ("operation", "what", "processes", "apart")
        return [
            SentTotal(**dict(zip(names, kind, strict=True)), times=round(times[kind]), size_bytes=round(sizes[kind]))  # type: ignore[arg-type]
            for kind in times
        ]

    def meetings(self, accumulation_steps: int) -> int:
        """How often all processes meet in one optimizer step: before all that they send, gathered parameters apart."""
        last = sum(sent.operation == "all-reduce" and sent.what == "gradients" for sent in self.trace.sent)
        if self.contrast_over == "global_batch":
            return self.trace.meetings
        return round((self.trace.meetings - last) * accumulation_steps / self.traced_steps) + last

    def _grown(self, number: int, micro_batch_size: int, accumulation_steps: int) -> float:
        """By how much more an operation is at these sizes, done once: all tiles' together, or one micro-batch's."""
        rows = micro_batch_size / self.traced_micro_batch_size
        if self.contrast_over == "global_batch":
            rows *= accumulation_steps / self.traced_steps
        return float(rows ** _power(number, self.traced_micro_batch_size))

    def _repeats_of(self, sent: Sent, accumulation_steps: int) -> float:
        """How often a thing is sent that was once: the middle micro-batch stands for all between first and last."""
        if self.contrast_over == "micro_batch":
            once = sent.operation == "all-reduce" and sent.what == "gradients"
            return 1.0 if once else accumulation_steps / self.traced_steps
        middle = self.traced_steps == MOST_TRACED and sent.micro_batch == 1
        return float(accumulation_steps - MOST_TRACED + 1) if middle else 1.0

    def _repeated(self, steps: int) -> list[Event]:
        """What the first step makes for good (optimizer state) is not made again."""
        step = self.trace.events[self.trace.step_start :]
        passing = {number for number, size in step if size} & {number for number, size in step if not size}
        return self.trace.events + [event for event in step if event[0] in passing] * (steps - 1)

    def _bytes(self, law: Law, micro_batch_size: int, accumulation_steps: int) -> int:
        traced = self.traced_micro_batch_size
        per_device, traced_per_device = micro_batch_size * accumulation_steps, traced * self.traced_steps
        grown = law.size_bytes * micro_batch_size**law.per_micro * per_device**law.per_device
        return int(grown // (traced**law.per_micro * traced_per_device**law.per_device))


def traceable_batch(recipe: Recipe, accumulation_steps: int) -> Recipe:
    """`recipe` with micro-batches whose size marks every tensor that grows with it."""
    size = recipe.encoder.image_size
    # of feature maps and patch grids; a ResNet's strides round up
    sides = {side for patch in (1, 2, 4, 8, 14, 16, 32) for side in (size // patch, -(-size // patch))}
    taken = sides | {side**2 + 1 for side in sides} | {recipe.encoder.bands, recipe.hardware.num_devices}
    taken |= {recipe.moco.output_dim, recipe.moco.projector_hidden_dim, recipe.moco.queue_size}
    prime = next(p for p in _PRIMES if all(n % p for n in taken if n))
    batch = Batch(
        global_batch_size=prime * accumulation_steps * recipe.hardware.num_devices,
        micro_batch_size=prime,
        accumulation_steps=accumulation_steps,
        contrast_over=recipe.batch.contrast_over,
    )
    return recipe.model_copy(update={"batch": batch})


def scalable(trace: Trace, recipe: Recipe) -> ScalableTrace:
    """The laws of the tensors of `trace`, which is of a `traceable_batch`."""
    micro, count = recipe.batch.micro_batch_size, recipe.batch.accumulation_steps
    inside, kept = _micro_batches(trace, recipe)
    rows = micro * count, micro * count * recipe.hardware.num_devices
    laws = []
    for number, tensor in enumerate(trace.tensors):
        # what is there before a step has the size it has, though a prime may divide it: all gradients' sum, say
        power = 0 if tensor.phase == "setup" else _power(tensor.size_bytes, micro)
        if recipe.batch.contrast_over == "micro_batch" or tensor.phase == "augmentation":
            whole = False
        elif number in inside:
            whole = any(length in rows for length in tensor.shape)
        else:
            whole = any(length and length % rows[0] == 0 for length in tensor.shape)
        laws.append(Law(tensor.size_bytes, 0 if whole else power, power if whole else 0, number in kept))
    return ScalableTrace(trace, laws, micro, count, recipe.memory.keep_last_micro_batch, recipe.batch.contrast_over)


def _micro_batches(trace: Trace, recipe: Recipe) -> tuple[set[int], set[int]]:
    """Tensors made while one micro-batch is worked on; and those that every one but the last leaves behind."""
    inside: set[int] = set()
    kept: set[int] = set()
    for place, mark in enumerate(trace.marks):
        if mark.loop == "through":
            continue
        backward = mark.loop in ("backward", "recomputed")
        end = _end_of_backward(trace, place) if backward else trace.marks[place + 1].event
        made = {number for number, size in trace.events[mark.event : end] if size}
        inside |= made
        if mark.loop not in ("keys", "forward") or mark.index != 0 or recipe.batch.accumulation_steps == 1:
            continue
        if recipe.batch.contrast_over == "micro_batch":  # all pixels are made first, and wait
            kept |= {number for number in made if trace.tensors[number].category == "inputs"}
        else:
            # what the caller still holds when it goes on to the next, and that grows with a micro-batch: autocast's
            # 16-bit weights, which the first one makes, serve all
            freed = {number for number, size in trace.events[mark.event : trace.marks[place + 2].event] if not size}
            micro = recipe.batch.micro_batch_size
            kept |= {n for n in made - freed if _power(trace.tensors[n].size_bytes, micro)}
    return inside, kept


def _end_of_backward(trace: Trace, place: int) -> int:
    """Where the backward through a micro-batch ends that begins, with recomputing it or not, at `marks[place]`.

    That is where the next one's begins, or whatever comes after backward.
    """
    following = next((m for m in trace.marks[place + 1 :] if m.loop != "through"), None)
    for index in range(trace.marks[place].event, len(trace.events)):
        if following is not None and index == following.event:
            return index
        number, size = trace.events[index]
        if size and trace.tensors[number].phase not in _BACKWARD_PHASES:
            return index
    return len(trace.events)


def _power(number: int, prime: int) -> int:
    power = 0
    while number and number % prime == 0:
        number, power = number // prime, power + 1
    return power
