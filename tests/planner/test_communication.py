"""Collectives and operations of a traced step, by part, against formulas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.plans import CONTRAST_AND_KEEP_LAST, two_device_recipe
from support.recipes import small_recipe

from moco_accel.networks.encoders import feature_dim
from moco_accel.networks.moco import build_moco
from moco_accel.recipe.hardware_sections import Hardware
from planner.cards.lookup import CARDS
from planner.search.best_recipe import evaluate
from planner.trace.events import CollectiveTotal, Trace
from planner.trace.scaling import trace_for
from planner.trace.trace import trace_step

CARD = CARDS["rtx3070"]
SUPPORT = Path(__file__).parents[1] / "support"


def totals(trace: Trace) -> list[CollectiveTotal]:
    kinds = [(each.operation, each.what, each.processes, each.apart) for each in trace.collectives]
    times, sizes = Counter(kinds), Counter[tuple[str, str, int, int]]()
    for kind, each in zip(kinds, trace.collectives, strict=True):
        sizes[kind] += each.size_bytes
    names = ("operation", "what", "processes", "apart")
    fields = [dict(zip(names, kind, strict=True)) for kind in times]
    return [
        CollectiveTotal.model_validate(each | {"times": times[kind], "size_bytes": sizes[kind]})
        for kind, each in zip(times, fields, strict=True)
    ]


def flops_by_part(trace: Trace) -> Counter[str]:
    flops: Counter[str] = Counter()
    for counted in trace.flops:
        flops[counted.part] += counted.flops
    return flops


def test_collectives_match_a_formula() -> None:
    """ViT on 4 processes with 2 x 8 tiles, in fp32; keys of width 16, heads of width 32."""
    batch = {"global_batch_size": 64, "micro_batch_size": 8, "accumulation_steps": 2}
    recipe = small_recipe(batch=batch, hardware={"num_devices": 4})
    trace = trace_step(recipe, CARD.compute_capability)
    projector, predictor = [32, 32, 16], [32, 16]  # features of each BatchNorm
    keys, queries = projector, projector + predictor
    # mean and variance per view for queries and keys; in backward, sums of gradients for the queries
    times = 2 * 2 * (len(keys) + len(queries)) + 2 * len(queries)
    numbers = 2 * 2 * (sum(keys) + sum(queries)) + 2 * 2 * sum(queries)
    trained = [parameter.numel() for parameter in build_moco(recipe).parameters() if parameter.requires_grad]
    rounded = [-(-numbers // 64) * 64 for numbers in trained]  # aligned for fused kernels
    assert {each.what: (each.times, each.size_bytes) for each in totals(trace)} == {
        "keys": (2, 2 * 64 * 16 * 4),
        "batch_norm": (times, 4 * numbers),
        "gradients": (1, 4 * sum(rounded)),
    }
    assert trace.status_exchanges == len(trace.collectives) == 2 + times + 1


def test_real_processes_send_the_counted_bytes() -> None:
    """Two gloo processes with two micro-batches each: equal bytes and status exchanges."""
    sections = {
        "batch": {"global_batch_size": 16, "micro_batch_size": 4, "accumulation_steps": 2},
        "hardware": {"num_devices": 2},
    }
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(SUPPORT / "counting_processes.py"), json.dumps(sections)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    trace = trace_step(small_recipe(**sections), None)
    counted: Counter[str] = Counter({"status_exchanges": trace.status_exchanges})
    for each in trace.collectives:
        counted[each.operation] += each.size_bytes
    assert json.loads(done.stdout.strip().splitlines()[-1]) == counted


def test_bf16_halves_keys_only() -> None:
    batch = {"global_batch_size": 32, "micro_batch_size": 8, "accumulation_steps": 2}
    sizes = []
    for precision in ("no", "bf16"):
        recipe = small_recipe(batch=batch, hardware={"num_devices": 2}, memory={"mixed_precision": precision})
        sizes.append({each.what: each.size_bytes for each in totals(trace_step(recipe, CARD.compute_capability))})
    assert sizes[1] == sizes[0] | {"keys": sizes[0]["keys"] // 2}


def test_one_process_has_no_collectives() -> None:
    recipe = small_recipe()
    trace = trace_step(recipe, CARD.compute_capability)
    assert (trace.collectives, trace.status_exchanges) == ([], 0)
    candidate = evaluate(recipe, CARD)
    assert (candidate.collectives, candidate.status_exchanges) == ([], 0)


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16", "resnet18"])
@pytest.mark.parametrize(("contrast_over", "keep_last"), CONTRAST_AND_KEEP_LAST)
def test_scaled_counts_are_those_of_a_trace_at_that_size(encoder: str, contrast_over: str, keep_last: bool) -> None:
    """From three micro-batches of a prime size to 8 of 32, on two processes: collectives and operations are exact."""
    recipe = two_device_recipe(encoder, 512, 32, contrast_over, memory={"keep_last_micro_batch": keep_last})
    direct, scaled = trace_step(recipe, CARD.compute_capability), evaluate(recipe, CARD)
    assert scaled.collectives == totals(direct)
    assert scaled.status_exchanges == direct.status_exchanges == len(direct.collectives)
    assert scaled.flops == pytest.approx(dict(flops_by_part(direct)), rel=1e-9)  # measured: 2e-16
    assert sum(scaled.flops.values()) == pytest.approx(sum(trace_for(recipe, CARD).flops(32, 8).values()))


@pytest.mark.parametrize("contrast_over", ["global_batch", pytest.param("micro_batch", marks=pytest.mark.slow)])
def test_collectives_of_sharded_networks_scale(contrast_over: str) -> None:
    """FSDP2 gathers a block's matrices per micro-batch inside a node; gradient shards are reduced between nodes."""
    memory = {"fully_shard": True, "keep_last_micro_batch": False}
    recipe = two_device_recipe("vit_tiny_patch16", 512, 32, contrast_over, memory=memory)
    recipe = recipe.model_copy(update={"hardware": Hardware(num_devices=4, num_nodes=2, vram_gib=8)})
    recipe = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"accumulation_steps": 4})})
    direct, scaled = trace_step(recipe, CARD.compute_capability), evaluate(recipe, CARD)
    assert scaled.collectives == totals(direct)
    assert scaled.status_exchanges == 0  # such a step is not retried
    assert scaled.flops == pytest.approx(dict(flops_by_part(direct)), rel=1e-9)
    assert {(each.operation, each.what, each.processes, each.apart) for each in scaled.collectives} == {
        ("all-gather", "parameters", 2, 1),
        ("all-gather", "keys", 4, 1),
        ("all-reduce", "batch_norm", 4, 1),
        ("reduce-scatter", "gradients", 2, 1),
        ("all-reduce", "gradients", 4, 1),  # vectors, which are not sharded
        ("all-reduce", "gradients", 2, 2),
    }


@pytest.mark.parametrize("keep_last", [True, False])
@pytest.mark.parametrize(("encoder", "layers"), [("vit_tiny_patch16", 3), ("resnet18", 2)])
def test_flops_of_heads_and_loss_match_a_formula(encoder: str, layers: int, keep_last: bool) -> None:
    """Linear layers of both heads, once for keys and three times for queries; logits, forward and backward."""
    recipe = two_device_recipe(encoder, 512, 32, memory={"keep_last_micro_batch": keep_last})
    hidden, out, tiles = recipe.moco.projector_hidden_dim, recipe.moco.output_dim, 512 // 2
    projector = feature_dim(encoder) * hidden + (layers - 2) * hidden**2 + hidden * out
    predictor = 2 * hidden * out
    flops = evaluate(recipe, CARD).flops
    assert flops["heads"] == 2 * tiles * 2 * (projector + 3 * (projector + predictor))
    assert flops["loss"] == 2 * 2 * 2 * tiles * 512 * out
