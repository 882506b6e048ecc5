"""What a step sends and computes, part by part: counted in the trace, against formulas by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.plans import WAYS, fitted
from support.recipes import small_recipe

from moco_accel.networks.encoders import feature_dim
from moco_accel.networks.moco import build_moco
from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.schema import Recipe
from planner.cards.devices import CARDS
from planner.memory.candidate import SentTotal
from planner.memory.estimate import judge, trace_for
from planner.trace.events import Trace
from planner.trace.trace import trace_step

CARD = CARDS["rtx3070"]
SUPPORT = Path(__file__).parents[1] / "support"


def totals(trace: Trace) -> list[SentTotal]:
    kinds = [(sent.operation, sent.what, sent.processes, sent.apart) for sent in trace.sent]
    times, sizes = Counter(kinds), Counter[tuple[str, str, int, int]]()
    for kind, sent in zip(kinds, trace.sent, strict=True):
        sizes[kind] += sent.size_bytes
    return [
        SentTotal(operation=o, what=w, processes=p, apart=a, times=times[o, w, p, a], size_bytes=sizes[o, w, p, a])
        for o, w, p, a in times
    ]


def by_part(trace: Trace) -> Counter[str]:
    flops: Counter[str] = Counter()
    for counted in trace.flops:
        flops[counted.part] += counted.flops
    return flops


def over(recipe: Recipe, contrast_over: str) -> Recipe:
    return recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"contrast_over": contrast_over})})


def test_what_is_sent_is_what_a_formula_says() -> None:
    """ViT on 4 processes of 2 x 8 tiles, in fp32: keys of 16, heads of 32 wide."""
    batch = {"global_batch_size": 64, "micro_batch_size": 8, "accumulation_steps": 2}
    recipe = small_recipe(batch=batch, hardware={"num_devices": 4})
    trace = trace_step(recipe, CARD.compute_capability)
    projector, predictor = [32, 32, 16], [32, 16]  # features of each BatchNorm
    keys, queries = projector, projector + predictor
    # a view's mean and variance on both sides; in backward, sums of gradients for the queries
    times = 2 * 2 * (len(keys) + len(queries)) + 2 * len(queries)
    numbers = 2 * 2 * (sum(keys) + sum(queries)) + 2 * 2 * sum(queries)
    trained = [parameter.numel() for parameter in build_moco(recipe).parameters() if parameter.requires_grad]
    rounded = [-(-numbers // 64) * 64 for numbers in trained]  # each begins where fused kernels can read it
    assert {sent.what: (sent.times, sent.size_bytes) for sent in totals(trace)} == {
        "keys": (2, 2 * 64 * 16 * 4),
        "batch_norm": (times, 4 * numbers),
        "gradients": (1, 4 * sum(rounded)),
    }
    assert trace.meetings == len(trace.sent) == 2 + times + 1


def test_real_processes_send_what_was_counted() -> None:
    """Two gloo processes, each of two micro-batches; bytes of all-reduces, of gathers, and meetings, to the byte."""
    sections = {
        "batch": {"global_batch_size": 16, "micro_batch_size": 4, "accumulation_steps": 2},
        "hardware": {"num_devices": 2},
    }
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT.parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(SUPPORT / "counting_processes.py"), json.dumps(sections)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    trace = trace_step(small_recipe(**sections), None)
    counted: Counter[str] = Counter({"meetings": trace.meetings})
    for sent in trace.sent:
        counted[sent.operation] += sent.size_bytes
    assert json.loads(done.stdout.strip().splitlines()[-1]) == counted


def test_16_bits_halve_keys_alone() -> None:
    batch = {"global_batch_size": 32, "micro_batch_size": 8, "accumulation_steps": 2}
    sizes = []
    for precision in ("no", "bf16"):
        recipe = small_recipe(batch=batch, hardware={"num_devices": 2}, memory={"mixed_precision": precision})
        sizes.append({sent.what: sent.size_bytes for sent in totals(trace_step(recipe, CARD.compute_capability))})
    assert sizes[1] == sizes[0] | {"keys": sizes[0]["keys"] // 2}


def test_one_process_sends_nothing() -> None:
    recipe = small_recipe()
    trace = trace_step(recipe, CARD.compute_capability)
    assert (trace.sent, trace.meetings) == ([], 0)
    assert (judge(recipe, CARD).sent, judge(recipe, CARD).meetings) == ([], 0)


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16", "resnet18"])
@pytest.mark.parametrize(("contrast_over", "keep_last"), WAYS)
def test_scaled_counts_are_those_at_that_size(encoder: str, contrast_over: str, keep_last: bool) -> None:
    """From three micro-batches of a prime size to 8 of 32, on two processes: sent bytes exactly, operations too."""
    recipe = over(fitted(encoder, 512, 32, memory={"keep_last_micro_batch": keep_last}), contrast_over)
    direct, scaled = trace_step(recipe, CARD.compute_capability), judge(recipe, CARD)
    assert scaled.sent == totals(direct)
    assert scaled.meetings == direct.meetings == len(direct.sent)
    assert scaled.flops == pytest.approx(dict(by_part(direct)), rel=1e-9)  # measured: 2e-16
    assert sum(scaled.flops.values()) == pytest.approx(trace_for(recipe, CARD).flops(32, 8))


@pytest.mark.parametrize("contrast_over", ["global_batch", "micro_batch"])
def test_what_is_sent_of_divided_parameters_grows_with_the_micro_batches(contrast_over: str) -> None:
    """FSDP2 gathers a block's matrices for every micro-batch, on a node; gradients' parts are reduced between nodes."""
    memory = {"fully_shard": True, "keep_last_micro_batch": False}
    recipe = over(fitted("vit_tiny_patch16", 512, 32, memory=memory), contrast_over)
    recipe = recipe.model_copy(update={"hardware": Hardware(num_devices=4, num_nodes=2, vram_gib=8)})
    recipe = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"accumulation_steps": 4})})
    direct, scaled = trace_step(recipe, CARD.compute_capability), judge(recipe, CARD)
    assert scaled.sent == totals(direct)
    assert scaled.meetings == 0  # such a step is not done over, so nobody asks before
    assert scaled.flops == pytest.approx(dict(by_part(direct)), rel=1e-9)
    assert {(sent.operation, sent.what, sent.processes, sent.apart) for sent in scaled.sent} == {
        ("all-gather", "parameters", 2, 1),
        ("all-gather", "keys", 4, 1),
        ("all-reduce", "batch_norm", 4, 1),
        ("reduce-scatter", "gradients", 2, 1),
        ("all-reduce", "gradients", 4, 1),  # vectors, which are whole on each
        ("all-reduce", "gradients", 2, 2),
    }


@pytest.mark.parametrize("keep_last", [True, False])
@pytest.mark.parametrize(("encoder", "layers"), [("vit_tiny_patch16", 3), ("resnet18", 2)])
def test_heads_and_loss_are_what_a_formula_says(encoder: str, layers: int, keep_last: bool) -> None:
    """Linear layers of both heads, for keys once and for queries three times; logits each way, of queries."""
    recipe = fitted(encoder, 512, 32, memory={"keep_last_micro_batch": keep_last})
    hidden, out, tiles = recipe.moco.projector_hidden_dim, recipe.moco.output_dim, 512 // 2
    projector = feature_dim(encoder) * hidden + (layers - 2) * hidden**2 + hidden * out
    predictor = 2 * hidden * out
    flops = judge(recipe, CARD).flops
    assert flops["heads"] == 2 * tiles * 2 * (projector + 3 * (projector + predictor))
    assert flops["loss"] == 2 * 2 * 2 * tiles * 512 * out
