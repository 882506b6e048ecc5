"""moco-plan: options, JSON, the recipe it writes, and shipped recipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.plans import SMALL, assert_refused, moco_plan, plan_as_json, two_device_recipe

from moco_accel.recipe.load import load_recipe, save_recipe
from planner.answer.launch import differences_from_paper
from planner.answer.request import Request, default_recipe_path
from planner.cards.card import CONTEXT_BYTES, NCCL_BYTES
from planner.cards.lookup import CARDS, generic_card
from planner.memory.allocator import MIB
from planner.memory.estimate import estimate_memory
from planner.memory.memory_estimate import CATEGORIES
from planner.search.best_recipe import evaluate
from planner.trace.scaling import trace_for

RECIPES = Path(__file__).parents[2] / "recipes"
MISFIT = ["--encoder", "vit_large_patch16", "--vram", "2", "--global-batch", "2"]


def test_json_is_alone_on_stdout_and_consistent(tmp_path: Path) -> None:
    path = tmp_path / "out.yaml"
    answer, stderr = plan_as_json("--gpus", "2", "--vram", "8", *SMALL, "--output", str(path))
    chosen = answer["chosen"]
    assert answer["candidates"] == [chosen]
    assert chosen["evidence"] == "predicted"
    assert chosen["micro_batch_size"] * chosen["accumulation_steps"] * 2 == chosen["global_batch_size"] == 256
    assert chosen["negatives_per_query"] == 255
    breakdown = chosen["breakdown_bytes"]
    assert tuple(breakdown) == CATEGORIES
    inside = sum(size for name, size in breakdown.items() if name not in ("context", "headroom"))
    assert inside == chosen["peak_reserved_bytes"]
    assert chosen["device_used_bytes"] == chosen["peak_reserved_bytes"] + CONTEXT_BYTES + NCCL_BYTES
    recipe = load_recipe(path)
    assert recipe.planned is not None
    assert recipe.planned.peak_reserved_mib == round(chosen["peak_reserved_bytes"] / MIB)
    assert recipe.hardware.num_devices == 2
    assert "predicted, not yet measured on this kind of card" in stderr
    assert f"moco_accel/train.py --recipe {path}" in stderr


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_header_states_command_hardware_and_differences(path: Path) -> None:
    recipe = load_recipe(path)
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[0].endswith(f"moco_accel/train.py --recipe recipes/{path.name}")
    config = re.search(r"--config_file (\S+)", comments[0])
    assert config is not None
    assert (RECIPES.parent / config[1]).is_file()
    hardware = next(line for line in comments if line.startswith("# Hardware: "))
    if recipe.hardware.vram_gib is not None:
        assert re.match(f"# Hardware: {recipe.hardware.num_devices} GPUs? of {recipe.hardware.vram_gib:g} GB", hardware)
        assert "not yet measured" in hardware
    text = " ".join(comments)
    words = {"bf16": "bf16", "adamw_8bit": "8-bit", "a queue": "queue", "a batch of": "a batch of"}
    words["a constant"] = "constant"
    for difference in differences_from_paper(recipe):
        assert all(word in text for key, word in words.items() if key in difference), difference


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_fit_their_cards(path: Path) -> None:
    recipe = load_recipe(path)
    if recipe.hardware.vram_gib is not None:
        assert evaluate(recipe, generic_card(recipe.hardware.vram_gib)).memory.fits


def test_shipped_dual8gb_recipe() -> None:
    recipe = load_recipe(RECIPES / "dual8gb.yaml")
    assert recipe.encoder.name == "vit_small_patch16"
    assert recipe.encoder.image_size == 224
    assert recipe.batch.global_batch_size == 4096
    assert recipe.batch.contrast_over == "global_batch"
    assert recipe.memory.mixed_precision == "bf16"
    assert recipe.optimizer.name == "adamw_8bit"
    assert recipe.optimizer.lr == pytest.approx(2.4e-3)
    memory = estimate_memory(trace_for(recipe, generic_card(8)), recipe, generic_card(8))
    assert memory.fits
    assert recipe.planned is not None
    # torch versions differ by workspaces and the segments that these move: 5,050 MiB with 2.14, 5,110 with 2.15
    assert memory.peak_reserved_bytes / MIB == pytest.approx(recipe.planned.peak_reserved_mib, rel=0.015)


def test_misfit_exits_with_code_1() -> None:
    result = moco_plan("--gpus", "1", *MISFIT)
    assert result.exit_code == 1
    assert "vit_large_patch16 does not fit" in result.stderr
    assert "MiB are missing" in result.stderr
    assert "Recipe:" not in result.stderr


def test_misfit_lists_changes_that_fit(tmp_path: Path) -> None:
    recipe = two_device_recipe("vit_small_patch16", 2048, 512)
    recipe = recipe.model_copy(update={"hardware": recipe.hardware.model_copy(update={"vram_gib": 3.0})})
    save_recipe(recipe, tmp_path / "r.yaml")
    result = moco_plan("--recipe", str(tmp_path / "r.yaml"), "--json")
    assert result.exit_code == 1, result.stderr
    text = " ".join(result.stderr.split())
    assert "It fits with micro-batch" in text
    assert "the smallest card that fits it: " in text
    assert json.loads(result.stdout)["changes_that_fit"]


def test_misfit_without_changes_lists_the_largest_categories() -> None:
    result = moco_plan(*MISFIT)
    assert result.exit_code == 1
    text = " ".join(result.stderr.split())
    assert "weights 1." in text
    assert "No change of memory settings makes it fit" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vram", "0"], "--vram=0 must be a card's marketed memory in GB; --vram 8 works"),
        (["--vram", "0.5"], "--vram 8 works"),
        (["--vram", "8", "--gpus", "0"], "--gpus=0 must be at least 1; --gpus 1 works"),
        (["--vram", "8", "--encoder", "resnet5"], "--encoder=resnet5 is not known; --encoder resnet50 works"),
        (["--vram", "8", "--optimizer", "sgd"], "--optimizer=sgd is not known"),
        (["--vram", "8", "--gpus", "3", "--global-batch", "1000"], "nearest: 999, 1002"),
        (["--vram", "8", "--encoder", "ViT-B/8"], "--encoder=ViT-B/8 is not known; --encoder vit_base_patch8 works"),
        (["--vram", "8", "--encoder", "vit-h"], "--encoder=vit-h is not known; --encoder vit_huge_patch14 works"),
        (["--vram", "8192"], "--vram=8192 must be a card's marketed memory in GB, at most 1024; --vram 8 works"),
        (["--gpu", "rx7900xtx"], "--gpu=rx7900xtx is a card of AMD, and the planner counts by CUDA's rules"),
        (["--vram", "8", "--tiles", "100", "--global-batch", "4096"], "--global-batch 100 works"),
        (["--vram", "8", "--gpus", "2", "--tiles", "3"], "--tiles=3 is less than one batch of 4; --global-batch 2"),
        (["--vram", "8", "--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["--gpus", "3", "--recipe", "recipes/dual8gb.yaml"], "--gpus=3 but hardware.num_devices=2 in recipes/dual8gb"),
        (["--recipe", "recipes/dual8gb.yaml", "--bands", "3"], "--bands has no effect with --recipe; omit it, or edit"),
        (["--recipe", "recipes/dual8gb.yaml", "--output", "x"], "--output has no effect with --recipe"),
        (["--vram", "8,12", "--gpus", "3"], "--gpus=3 but --vram=8,12 names 2 cards; --gpus 2 works"),
        (["--vram", "8", "--gpus", "2", "--global-batch", "3"], "does not divide over 2 GPUs; nearest: 2, 4"),
        (["--vram", "8", "--global-batch", "1"], "--global-batch=1 leaves no negatives; --global-batch 2 works"),
        (["--vram", "8", "--output", "/proc/nowhere/x.yaml"], "--output=/proc/nowhere/x.yaml cannot be written"),
        (["--vram", "8", "--save", "/proc/nowhere/x.svg"], "--save=/proc/nowhere/x.svg cannot be written"),
        (["--gpu", "t4", "--recipe", "recipes/single8gb.yaml"], "memory.mixed_precision=fp16 works"),
        (["--gpu", "rtx3071"], "--gpu=rtx3071 is not known; nearest: rtx3070"),
        (["--gpu", "t4", "--precision", "bf16"], "--precision=bf16 but t4 has no bf16; --precision fp16 works"),
        (["--vram", "8", "--save", "plan.png"], "--save=plan.png must end in .svg, .html, .txt; --save plan.svg works"),
        (["--vram", "8", "--measure"], "--measure runs on the GPUs of this machine; omit --gpu and --vram"),
        (["--vram", "abc"], "--vram=abc must be a card's marketed memory in GB; --vram 8 works"),
        (["--vram", "8", "--image-size", "100"], "encoder.image_size=100"),
    ],
)
def test_wrong_options_exit_with_code_2(arguments: list[str], message: str) -> None:
    assert_refused(arguments, message)


def test_help_imports_no_torch_and_shows_an_example() -> None:
    code = "import sys, planner.cli as c, typer.testing as t; r = t.CliRunner().invoke(c.app, ['--help'])"
    code += "; assert r.exit_code == 0; assert 'moco-plan --gpus 2 --vram 8' in r.output"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ending", ["svg", "html", "txt"])
def test_report_is_saved(ending: str, tmp_path: Path) -> None:
    picture = tmp_path / "new [" / f"b].{ending}"  # rich would read [/b] as markup
    output = ["--output", str(tmp_path / "r.yaml"), "--save", str(picture)]
    result = moco_plan("--gpus", "2", "--vram", "8", *SMALL, *output)
    assert result.exit_code == 0, result.stderr
    assert f"Report saved to {picture}\n" in result.stderr
    text = picture.read_text().replace("&#160;", " ").replace("\xa0", " ")
    assert "vit_tiny_patch16" in text
    assert "not yet measured" in text
    assert {"svg": "<svg", "html": "<!DOCTYPE html>", "txt": "accelerate launch"}[ending] in text


def test_repeated_plan_imports_no_torch(tmp_path: Path) -> None:
    command = ["--gpus", "2", "--vram", "8", *SMALL, "--json", "--output", str(tmp_path / "r.yaml")]
    code = f"import sys; sys.argv[1:] = {command!r}; from planner.cli import app; app(standalone_mode=False)"
    code += "; print('torch' in sys.modules, file=sys.stderr)"

    def run() -> tuple[str, str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.splitlines()[-1]

    first, second = run(), run()
    assert first[0] == second[0]
    assert (first[1], second[1]) == ("True", "False")


def test_mixed_cards_are_planned_for_the_smallest(tmp_path: Path) -> None:
    answer, stderr = plan_as_json("--vram", "8,12", *SMALL, "--output", str(tmp_path / "r.yaml"))
    hardware = answer["hardware"]
    assert hardware["num_devices"] == 2
    assert hardware["unlike_cards"] == ["8 GB card", "12 GB card"]
    assert hardware["reported_bytes"] == generic_card(8).reported_bytes
    assert "the 8 GB card limits the plan" in " ".join(stderr.split())


def test_named_card_determines_the_precision(tmp_path: Path) -> None:
    answer, _ = plan_as_json("--gpu", "Tesla T4", *SMALL, "--output", str(tmp_path / "r.yaml"))
    assert answer["hardware"]["gpu"] == "t4"
    assert answer["hardware"]["desktop_bytes"] == 0
    assert answer["chosen"]["mixed_precision"] == "fp16"
    low, high = answer["chosen"]["peak_reserved_interval_bytes"]
    assert low < answer["chosen"]["peak_reserved_bytes"] < high
    assert answer["papers_way"]["peak_reserved_bytes"] > answer["chosen"]["peak_reserved_bytes"]


def test_list_gpus() -> None:
    rows = json.loads(moco_plan("--list-gpus", "--json").stdout)
    assert {row["name"] for row in rows} == set(CARDS)
    row = next(row for row in rows if row["name"] == "rtx5060")
    assert row.pop("gib_reported") == pytest.approx(7.52)
    assert list(row.values()) == ["rtx5060", "NVIDIA GeForce RTX 5060", 8, True, 12.0, "bf16", 38.4, 448]
    assert "rtx3070" in moco_plan("--list-gpus").stderr


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (Request(gpus=2), "recipes/dual8gb.yaml"),
        (Request(gpus=1, encoder="vit_small_patch16"), "recipes/single8gb.yaml"),
        (Request(gpus=4, encoder="resnet50", bands=13, epochs=100), "recipes/4x8gb_resnet50_13bands_100epochs.yaml"),
        (Request(gpus=2, global_batch_size=512, mixed_precision="no"), "recipes/dual8gb_batch512_fp32.yaml"),
        (Request(gpus=2, gpu="NVIDIA GeForce RTX 3070"), "recipes/dual_nvidia_geforce_rtx_3070.yaml"),
    ],
)
def test_default_recipe_path(request_: Request, path: str) -> None:
    assert default_recipe_path(request_, 8) == path


def test_few_tiles_are_planned_for_a_smaller_batch_which_is_said(tmp_path: Path) -> None:
    few = ["--vram", "8", *SMALL[:4], "--output", str(tmp_path / "few.yaml")]
    answer, stderr = plan_as_json(*few, "--tiles", "3000")
    assert answer["chosen"]["global_batch_size"] == 128
    assert "--tiles=3,000 are fewer than the paper's batch of 4,096: planned for a global batch of 128" in stderr


def test_a_recipe_with_other_fields_is_kept_and_the_next_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--vram", "8", *SMALL]
    assert moco_plan(*arguments).exit_code == 0
    assert moco_plan(*arguments).exit_code == 0  # the same recipe again
    path = next((tmp_path / "recipes").iterdir())
    path.write_text(path.read_text().replace("source: data/tiles", "source: my/tiles"))
    for _ in range(2):  # the second time, the next name holds this very plan
        result = moco_plan(*arguments)
        assert result.exit_code == 0
        assert f"recipes/{path.name} is kept, because it has data.source=my/tiles" in " ".join(result.stderr.split())
        assert "my/tiles" in path.read_text()
        names = sorted(found.name for found in path.parent.iterdir())
        assert names == sorted([path.name, f"{path.stem}_2.yaml"])
    assert moco_plan(*arguments, "--output", str(path)).exit_code == 0


def test_recipe_is_checked_on_its_own_card(tmp_path: Path) -> None:
    path = str(tmp_path / "t4.yaml")
    planned, _ = plan_as_json("--gpu", "t4", *SMALL, "--output", path)
    checked, _ = plan_as_json("--recipe", path)
    assert checked["hardware"] == planned["hardware"]
    assert checked["chosen"]["headroom_bytes"] == planned["chosen"]["headroom_bytes"]


def test_resnet_micro_batches_have_two_values_per_channel(tmp_path: Path) -> None:
    tiny = ["--vram", "8", "--encoder", "resnet18", "--image-size", "32", "--output", str(tmp_path / "r.yaml")]
    answer, _ = plan_as_json(*tiny, "--global-batch", "64")
    assert answer["chosen"]["micro_batch_size"] > 1
    assert_refused([*tiny, "--gpus", "2", "--global-batch", "2"], "batch.micro_batch_size=2 works")
