"""Plans for several machines: their recipe, their launch lines, what sending costs, and what cannot be asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.plans import SMALL, fitted, moco_plan

from moco_accel.recipe.hardware_sections import Hardware
from moco_accel.recipe.launch_command import launch_command
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.schema import Recipe
from planner.answer import answer
from planner.answer.launch import launch_lines
from planner.answer.request import Request, recipe_path
from planner.cards.devices import CARDS, generic_card
from planner.cards.fleet import Fleet, fleet
from planner.memory.candidate import Candidate, SentTotal
from planner.memory.estimate import judge, trace_for
from planner.time.network import between_nodes, node_link_bytes, operations_share, ring_bytes

FOUR_OF_EIGHT = ["--nodes", "4", "--gpus", "8", "--vram", "24", *SMALL]


def over_nodes(recipe: Recipe, num_nodes: int) -> Recipe:
    return recipe.model_copy(update={"hardware": recipe.hardware.model_copy(update={"num_nodes": num_nodes})})


def test_a_plan_for_four_nodes_of_eight(tmp_path: Path) -> None:
    path = tmp_path / "out.yaml"
    result = moco_plan(*FOUR_OF_EIGHT, "--json", "--output", str(path))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["hardware"]["num_devices"], found["hardware"]["num_nodes"]) == (32, 4)
    chosen, recipe = found["chosen"], load_recipe(path)
    assert (recipe.hardware.num_devices, recipe.hardware.num_nodes) == (32, 4)
    assert chosen["micro_batch_size"] * chosen["accumulation_steps"] * 32 == chosen["global_batch_size"] == 256
    sent = {each["what"]: each for each in chosen["sent_per_step"]["operations"]}
    assert sent["keys"]["size_bytes"] == 2 * 256 * 256 * 2  # both views', in 16 bits
    assert sent["keys"]["ring_bytes"] == 2 * 256 * 256 * 2 * 31 // 32
    assert chosen["sent_per_step"]["meetings"] == sum(each["times"] for each in sent.values())
    assert sum(chosen["operations_share"].values()) == pytest.approx(1)
    lines = [launch_command(recipe.hardware, str(path), node) for node in range(4)]
    assert [line for line in result.stderr.splitlines() if line.startswith("accelerate launch")] == lines
    head = path.read_text().splitlines()
    assert head[0] == f"# {lines[0]}"
    assert "on the others with --machine_rank 1 to 3." in head[1]
    assert "32 GPUs of 24 GB, 8 in each of 4 nodes" in head[2]
    shares = re.findall(r"^ *(\d+) Gbit/s .* ([\d.]+)%$", result.stderr, re.M)
    assert [int(gbits) for gbits, _ in shares] == [1, 10, 100]
    for (_, share), link in zip(shares, chosen["sent_per_step"]["between_nodes_predicted"], strict=True):
        assert float(share) == pytest.approx(100 * link["share"], abs=0.05)


def test_a_recipe_of_several_nodes_is_judged_on_its_own_and_on_other_cards(tmp_path: Path) -> None:
    path = str(tmp_path / "out.yaml")
    planned = json.loads(moco_plan(*FOUR_OF_EIGHT, "--json", "--output", path).stdout)
    for more, gib in (([], 24), (["--vram", "16"], 16), (["--nodes", "4", "--gpus", "8", "--vram", "16"], 16)):
        result = moco_plan("--recipe", path, *more, "--json")
        assert result.exit_code == 0, result.stderr
        judged = json.loads(result.stdout)
        assert (judged["hardware"]["num_devices"], judged["hardware"]["marketed_gib"]) == (32, gib)
        assert judged["chosen"]["sent_per_step"]["operations"] == planned["chosen"]["sent_per_step"]["operations"]
    for given, rule in (
        (["--nodes", "2"], f"--nodes=2 but hardware.num_nodes=4 in {path}; --nodes 4 works"),
        (["--gpus", "3", "--vram", "8"], f"over hardware.num_nodes=4 in {path}; --gpus 8 works"),
    ):
        refused = moco_plan("--recipe", path, *given)
        assert refused.exit_code == 2
        assert rule in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0", "--vram", "8"], "--nodes=0 must be at least 1; --nodes 1 works"),
        (["--nodes", "-2"], "--nodes=-2 must be at least 1; --nodes 1 works"),
        (["--nodes", "2", "--vram", "8,12"], "the smallest decides: --vram 8 works"),
        (["--nodes", "2", "--gpu", "rtx3070,rtx3090"], "the smallest decides: --gpu rtx3070 works"),
        (
            ["--nodes", "3", "--gpus", "2", "--vram", "8", "--global-batch", "1000"],
            "--global-batch=1000 does not divide over 6 GPUs (3 nodes of 2); nearest: 996, 1002",
        ),
        (["--nodes", "2", "--recipe", "recipes/dual8gb.yaml"], "--nodes=2 but hardware.num_nodes=1 in recipes/dual8gb"),
        (["--nodes", "70000", "--vram", "8", "--global-batch", "140000"], "hardware.num_devices=70000"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = moco_plan(*arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_nodes_like_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its GPUs, taken to be two: there is none where tests run."""
    monkeypatch.setattr(answer, "cards_of_this_machine", lambda: [generic_card(8)] * 2)
    result = moco_plan("--nodes", "3", *SMALL[:-1], "240", "--json", "--output", str(tmp_path / "r.yaml"))
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["hardware"]["num_devices"] == 6
    refused = moco_plan("--nodes", "3", "--gpus", "4", *SMALL)
    assert refused.exit_code == 2
    assert "--gpus=4 but this machine has 2; --gpus 2 works" in refused.stderr


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (Request(gpus=8, nodes=4), "recipes/4x8x24gb.yaml"),
        (Request(gpus=1, nodes=2, epochs=100), "recipes/2x1x24gb_100epochs.yaml"),
        (Request(gpus=8, nodes=4, gpu="rtx3090"), "recipes/4x8x_rtx3090.yaml"),
    ],
)
def test_recipes_are_named_after_their_nodes(request_: Request, path: str) -> None:
    assert recipe_path(request_, 24) == path


def test_cards_of_every_node() -> None:
    cards = fleet(None, "24", 8, 4)
    assert cards == Fleet((generic_card(24),) * 8, 4)
    assert cards is not None
    assert cards.num_devices == 32
    one = fleet("rtx3070", None, None, 2)
    assert one is not None
    assert one.deciding.budget_bytes(one.num_devices) < one.deciding.budget_bytes(1)  # NCCL, with one GPU a node too


def test_of_many_nodes_the_first_two_are_told() -> None:
    hardware = Hardware(num_devices=128, num_nodes=16, vram_gib=24)
    lines = launch_lines(hardware, "r.yaml")
    assert lines[:2] == [launch_command(hardware, "r.yaml", node) for node in (0, 1)]
    assert lines[2:] == ["… --machine_rank 2 to 15 on the others"]
    on_cpu = Hardware(num_devices=16, num_nodes=16)
    assert launch_lines(on_cpu, "r.yaml")[2:] == ["… --node_rank 2 to 15 on the others"]
    assert len(launch_lines(Hardware(num_devices=8, num_nodes=4, vram_gib=8), "r.yaml")) == 4
    assert len(launch_lines(Hardware(num_devices=8, vram_gib=8), "r.yaml")) == 1


def candidate(num_devices: int, num_nodes: int) -> Candidate:
    """One second of computing, and 1,000 bytes of each kind."""
    hardware = Hardware(num_devices=num_devices, num_nodes=num_nodes, vram_gib=8)
    recipe = fitted("vit_tiny_patch16", 64, 16)
    sent = [
        SentTotal(operation="all-reduce", what="gradients", times=1, size_bytes=1000, processes=num_devices, apart=1),
        SentTotal(operation="all-gather", what="keys", times=2, size_bytes=1000, processes=num_devices, apart=1),
        SentTotal(
            operation="reduce-scatter", what="gradients", times=2, size_bytes=1000, processes=num_devices, apart=1
        ),
    ]
    judged = judge(recipe, CARDS["rtx3070"])
    return judged.model_copy(
        update={"recipe": recipe.model_copy(update={"hardware": hardware}), "sent": sent, "tiles_per_second": 64.0}
    )


def test_what_rings_carry() -> None:
    """2 (n - 1) / n of what is reduced for all, (n - 1) / n of what is gathered or scattered."""
    reduced, gathered, scattered = candidate(8, 4).sent
    assert (ring_bytes(reduced), ring_bytes(gathered), ring_bytes(scattered)) == (1750, 875, 875)
    assert (ring_bytes(reduced, 1), ring_bytes(gathered, 1)) == (0, 0)
    assert node_link_bytes(candidate(8, 4)) == 1500 + 750 + 750
    assert node_link_bytes(candidate(8, 8)) == 1750 + 875 + 875


def test_what_groups_of_a_divided_encoder_carry() -> None:
    """4 nodes of 2: within a node nothing crosses; across, each of a node's GPUs has its own ring over the link."""
    whole = candidate(8, 4)

    def link(processes: int, apart: int) -> float:
        reduced = whole.sent[0].model_copy(update={"processes": processes, "apart": apart})
        return node_link_bytes(whole.model_copy(update={"sent": [reduced]}))

    assert link(2, 1) == 0
    assert link(4, 2) == 2 * 1500
    assert link(8, 1) == 1500


def test_what_sending_costs_between_nodes() -> None:
    links = between_nodes(candidate(8, 4))
    assert [link.gbits_per_second for link in links] == [1, 10, 100]
    for link in links:
        assert link.seconds == pytest.approx(8 * 3000 / (link.gbits_per_second * 1e9))
        assert link.share == pytest.approx(link.seconds / (link.seconds + 1))
    assert between_nodes(candidate(8, 1)) == []


def test_a_step_over_nodes_sends_what_one_over_as_many_gpus_does() -> None:
    recipe = fitted("vit_tiny_patch16", 256, 32)
    recipe = recipe.model_copy(update={"hardware": Hardware(num_devices=8, vram_gib=8)})
    recipe = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"accumulation_steps": 1})})
    card = CARDS["rtx3070"]
    together, apart = judge(recipe, card), judge(over_nodes(recipe, 4), card)
    assert together.sent == apart.sent
    assert together.tiles_per_second == apart.tiles_per_second
    assert sum(operations_share(apart).values()) == pytest.approx(1)
    assert trace_for(over_nodes(recipe, 4), card).meetings(1) == apart.meetings
