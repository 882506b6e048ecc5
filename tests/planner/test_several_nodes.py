"""Plans for several nodes: recipe, launch commands, cost of communication, wrong options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.plans import SMALL, assert_refused, plan_as_json, two_device_recipe

from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.launch_command import launch_command
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.schema import Recipe
from planner.answer import request as answer_request
from planner.answer.launch import launch_lines
from planner.answer.request import Request, default_recipe_path
from planner.cards.fleet import Fleet, parse_fleet
from planner.cards.lookup import CARDS, generic_card
from planner.search.best_recipe import evaluate
from planner.search.candidate import Candidate
from planner.time.step_time import node_link_bytes, node_links, operations_share, ring_bytes
from planner.trace.events import CollectiveTotal
from planner.trace.scaling import trace_for

FOUR_OF_EIGHT = ["--nodes", "4", "--gpus", "8", "--vram", "24", *SMALL]


def with_nodes(recipe: Recipe, num_nodes: int) -> Recipe:
    return recipe.model_copy(update={"hardware": recipe.hardware.model_copy(update={"num_nodes": num_nodes})})


def test_plan_for_four_nodes_of_eight(tmp_path: Path) -> None:
    path = tmp_path / "out.yaml"
    found, stderr = plan_as_json(*FOUR_OF_EIGHT, "--output", str(path))
    assert (found["hardware"]["num_devices"], found["hardware"]["num_nodes"]) == (32, 4)
    chosen, recipe = found["chosen"], load_recipe(path)
    assert (recipe.hardware.num_devices, recipe.hardware.num_nodes) == (32, 4)
    assert chosen["micro_batch_size"] * chosen["accumulation_steps"] * 32 == chosen["global_batch_size"] == 256
    sent = {each["what"]: each for each in chosen["sent_per_step"]["operations"]}
    assert sent["keys"]["size_bytes"] == 2 * 256 * 256 * 2  # both views in 16 bits
    assert sent["keys"]["ring_bytes"] == 2 * 256 * 256 * 2 * 31 // 32
    assert chosen["sent_per_step"]["meetings"] == sum(each["times"] for each in sent.values())
    assert sum(chosen["operations_share"].values()) == pytest.approx(1)
    lines = [launch_command(recipe.hardware, str(path), node) for node in range(4)]
    assert [line for line in stderr.splitlines() if line.startswith("accelerate launch")] == lines
    head = path.read_text().splitlines()
    assert head[0] == f"# {lines[0]}"
    assert "on the others with --machine_rank 1 to 3." in head[1]
    assert "32 GPUs of 24 GB, 8 in each of 4 nodes" in head[2]
    shares = re.findall(r"^ *(\d+) Gbit/s .* ([\d.]+)%$", stderr, re.M)
    assert [int(gbits) for gbits, _ in shares] == [1, 10, 100]
    for (_, share), link in zip(shares, chosen["sent_per_step"]["between_nodes_predicted"], strict=True):
        assert float(share) == pytest.approx(100 * link["share"], abs=0.05)


def test_recipe_for_several_nodes_is_checked_on_its_own_and_on_other_cards(tmp_path: Path) -> None:
    path = str(tmp_path / "out.yaml")
    planned, _ = plan_as_json(*FOUR_OF_EIGHT, "--output", path)
    for more, gib in (([], 24), (["--vram", "16"], 16), (["--nodes", "4", "--gpus", "8", "--vram", "16"], 16)):
        checked, _ = plan_as_json("--recipe", path, *more)
        assert (checked["hardware"]["num_devices"], checked["hardware"]["marketed_gib"]) == (32, gib)
        assert checked["chosen"]["sent_per_step"]["operations"] == planned["chosen"]["sent_per_step"]["operations"]
    for given, rule in (
        (["--nodes", "2"], f"--nodes=2 but hardware.num_nodes=4 in {path}; --nodes 4 works"),
        (["--gpus", "3", "--vram", "8"], f"over hardware.num_nodes=4 in {path}; --gpus 8 works"),
    ):
        assert_refused(["--recipe", path, *given], rule)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0", "--vram", "8"], "--nodes=0 must be at least 1; --nodes 1 works"),
        (["--nodes", "-2"], "--nodes=-2 must be at least 1; --nodes 1 works"),
        (["--nodes", "2", "--vram", "8,12"], "the smallest limits the plan: --vram 8 works"),
        (["--nodes", "2", "--gpu", "rtx3070,rtx3090"], "the smallest limits the plan: --gpu rtx3070 works"),
        (
            ["--nodes", "3", "--gpus", "2", "--vram", "8", "--global-batch", "1000"],
            "--global-batch=1000 does not divide over 6 GPUs (3 nodes of 2); nearest: 996, 1002",
        ),
        (["--nodes", "2", "--recipe", "recipes/dual8gb.yaml"], "--nodes=2 but hardware.num_nodes=1 in recipes/dual8gb"),
        (["--nodes", "70000", "--vram", "8", "--global-batch", "140000"], "hardware.num_devices=70000"),
    ],
)
def test_wrong_options_exit_with_code_2(arguments: list[str], message: str) -> None:
    assert_refused(arguments, message)


def test_nodes_with_the_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine is given two GPUs."""
    monkeypatch.setattr(answer_request, "local_cards", lambda: [generic_card(8)] * 2)
    found, _ = plan_as_json("--nodes", "3", *SMALL[:-1], "240", "--output", str(tmp_path / "r.yaml"))
    assert found["hardware"]["num_devices"] == 6
    assert_refused(["--nodes", "3", "--gpus", "4", *SMALL], "--gpus=4 but this machine has 2; --gpus 2 works")


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (Request(gpus=8, nodes=4), "recipes/4x8x24gb.yaml"),
        (Request(gpus=1, nodes=2, epochs=100), "recipes/2x1x24gb_100epochs.yaml"),
        (Request(gpus=8, nodes=4, gpu="rtx3090"), "recipes/4x8x_rtx3090.yaml"),
    ],
)
def test_default_recipe_path_names_the_nodes(request_: Request, path: str) -> None:
    assert default_recipe_path(request_, 24) == path


def test_fleet_of_several_nodes() -> None:
    cards = parse_fleet(None, "24", 8, 4)
    assert cards == Fleet((generic_card(24),) * 8, 4)
    assert cards is not None
    assert cards.num_devices == 32
    one = parse_fleet("rtx3070", None, None, 2)
    assert one is not None
    assert one.limiting.budget_bytes(one.num_devices) < one.limiting.budget_bytes(1)  # NCCL, also with one GPU per node


def test_launch_lines_of_many_nodes_show_the_first_two() -> None:
    hardware = Hardware(num_devices=128, num_nodes=16, vram_gib=24)
    lines = launch_lines(hardware, "r.yaml")
    assert lines[:2] == [launch_command(hardware, "r.yaml", node) for node in (0, 1)]
    assert lines[2:] == ["… --machine_rank 2 to 15 on the others"]
    on_cpu = Hardware(num_devices=16, num_nodes=16)
    assert launch_lines(on_cpu, "r.yaml")[2:] == ["… --node_rank 2 to 15 on the others"]
    assert len(launch_lines(Hardware(num_devices=8, num_nodes=4, vram_gib=8), "r.yaml")) == 4
    assert len(launch_lines(Hardware(num_devices=8, vram_gib=8), "r.yaml")) == 1


def candidate(num_devices: int, num_nodes: int) -> Candidate:
    """One second of computation, and 1,000 bytes of each collective."""
    hardware = Hardware(num_devices=num_devices, num_nodes=num_nodes, vram_gib=8)
    recipe = two_device_recipe("vit_tiny_patch16", 64, 16)
    collectives = [
        CollectiveTotal(operation=name, what=what, times=1, size_bytes=1000, processes=num_devices, apart=1)
        for name, what in (("all-reduce", "gradients"), ("all-gather", "keys"), ("reduce-scatter", "gradients"))
    ]
    fields = {"collectives": collectives, "tiles_per_second": 64.0}
    fields["recipe"] = recipe.model_copy(update={"hardware": hardware})
    return evaluate(recipe, CARDS["rtx3070"]).model_copy(update=fields)


def link_bytes(candidate: Candidate) -> float:
    return node_link_bytes(candidate.recipe.hardware, candidate.collectives)


def test_ring_bytes() -> None:
    """2 (n - 1) / n for an all-reduce, (n - 1) / n for an all-gather or reduce-scatter."""
    reduced, gathered, scattered = candidate(8, 4).collectives
    assert (ring_bytes(reduced), ring_bytes(gathered), ring_bytes(scattered)) == (1750, 875, 875)
    assert (ring_bytes(reduced, 1), ring_bytes(gathered, 1)) == (0, 0)
    assert link_bytes(candidate(8, 4)) == 1500 + 750 + 750
    assert link_bytes(candidate(8, 8)) == 1750 + 875 + 875


def test_node_link_bytes_of_sharded_networks() -> None:
    """4 nodes of 2: groups inside a node use no link; across nodes, each GPU of a node has its own ring."""
    whole = candidate(8, 4)

    def link(processes: int, apart: int) -> float:
        reduced = whole.collectives[0].model_copy(update={"processes": processes, "apart": apart})
        return link_bytes(whole.model_copy(update={"collectives": [reduced]}))

    assert link(2, 1) == 0
    assert link(4, 2) == 2 * 1500
    assert link(8, 1) == 1500


def test_node_links() -> None:
    four, one = candidate(8, 4), candidate(8, 1)
    assert four.computing_seconds == 1
    links = node_links(four.recipe.hardware, four.collectives, 1)
    assert [link.gbits_per_second for link in links] == [1, 10, 100]
    for link in links:
        assert link.seconds == pytest.approx(8 * 3000 / (link.gbits_per_second * 1e9))
        assert link.share == pytest.approx(link.seconds / (link.seconds + 1))
    assert node_links(one.recipe.hardware, one.collectives, 1) == []


def test_collectives_do_not_depend_on_the_number_of_nodes() -> None:
    recipe = two_device_recipe("vit_tiny_patch16", 256, 32)
    recipe = recipe.model_copy(update={"hardware": Hardware(num_devices=8, vram_gib=8)})
    recipe = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"accumulation_steps": 1})})
    card = CARDS["rtx3070"]
    together, apart = evaluate(recipe, card), evaluate(with_nodes(recipe, 4), card)
    assert together.collectives == apart.collectives
    assert together.tiles_per_second == apart.tiles_per_second
    assert sum(operations_share(apart.flops).values()) == pytest.approx(1)
    assert trace_for(with_nodes(recipe, 4), card).status_exchanges(1) == apart.status_exchanges
