"""What moco-plan says beyond a table: cards, prices, warnings, pictures, and answers that it remembers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.plans import SMALL, fitted, moco_plan
from support.recipes import small_recipe

from moco_accel.networks.moco import build_moco
from moco_accel.recipe.load import save_recipe
from moco_accel.recipe.schema import Recipe
from planner.answer.advice import changes
from planner.answer.cache import answered
from planner.answer.reasons import coarse
from planner.answer.request import Request, few_steps, recipe_for, recipe_path
from planner.cards.devices import CARDS, generic_card
from planner.memory.allocator import replay
from planner.memory.candidate import Candidate, Change, with_memory, with_micro_batch
from planner.memory.estimate import estimate, judge, papers_way, trace_for
from planner.memory.evidence import evidence, standing
from planner.trace.trace import trace_step

FITS_NOT = ["--encoder", "vit_large_patch16", "--vram", "2", "--global-batch", "2"]


@pytest.mark.parametrize("ending", ["svg", "html", "txt"])
def test_a_report_is_kept_as_a_picture(ending: str, tmp_path: Path) -> None:
    picture = tmp_path / "new [" / f"b].{ending}"  # rich would read [/b] as markup
    result = moco_plan(
        "--gpus", "2", "--vram", "8", *SMALL, "--output", str(tmp_path / "r.yaml"), "--save", str(picture)
    )
    assert result.exit_code == 0, result.stderr
    assert f"The report is in {picture}\n" in result.stderr
    text = picture.read_text().replace("&#160;", " ").replace("\xa0", " ")
    assert "vit_tiny_patch16" in text
    assert "not yet measured" in text
    assert {"svg": "<svg", "html": "<!DOCTYPE html>", "txt": "accelerate launch"}[ending] in text


def test_the_same_question_is_answered_without_torch(tmp_path: Path) -> None:
    command = ["--gpus", "2", "--vram", "8", *SMALL, "--json", "--output", str(tmp_path / "r.yaml")]
    code = f"import sys; sys.argv[1:] = {command!r}; from planner.cli import app; app(standalone_mode=False)"
    code += "; print('torch' in sys.modules, file=sys.stderr)"

    def ask() -> tuple[str, str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.splitlines()[-1]

    first, second = ask(), ask()
    assert first[0] == second[0]
    assert (first[1], second[1]) == ("True", "False")


def test_an_answer_that_cannot_be_read_or_kept_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, card = fitted("vit_tiny_patch16", 64, 16), CARDS["rtx3070"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = answered("planner.memory.estimate.judge", Candidate, recipe, card)
    kept = list((tmp_path / "moco-accel" / "plans").iterdir())
    assert len(kept) == 1
    kept[0].write_text('{"torn')
    assert answered("planner.memory.estimate.judge", Candidate, recipe, card) == first
    assert json.loads(kept[0].read_text())["tiles_per_second"] == first.tiles_per_second
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert answered("planner.memory.estimate.judge", Candidate, recipe, card) == first


def test_unlike_cards_are_planned_for_the_smallest(tmp_path: Path) -> None:
    result = moco_plan("--vram", "8,12", *SMALL, "--json", "--output", str(tmp_path / "r.yaml"))
    assert result.exit_code == 0, result.stderr
    hardware = json.loads(result.stdout)["hardware"]
    assert hardware["num_devices"] == 2
    assert hardware["unlike_cards"] == ["8 GB card", "12 GB card"]
    assert hardware["reported_bytes"] == generic_card(8).reported_bytes
    assert "the 8 GB card decides" in " ".join(result.stderr.split())


def test_a_named_card_decides_the_precision(tmp_path: Path) -> None:
    result = moco_plan("--gpu", "Tesla T4", *SMALL, "--json", "--output", str(tmp_path / "r.yaml"))
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["hardware"]["gpu"] == "t4"
    assert answer["hardware"]["desktop_bytes"] == 0
    assert answer["chosen"]["mixed_precision"] == "fp16"
    low, high = answer["chosen"]["peak_reserved_interval_bytes"]
    assert low < answer["chosen"]["peak_reserved_bytes"] < high
    assert answer["papers_way"]["peak_reserved_bytes"] > answer["chosen"]["peak_reserved_bytes"]


def test_cards_are_listed() -> None:
    rows = json.loads(moco_plan("--list-gpus", "--json").stdout)
    assert {row["name"] for row in rows} == set(CARDS)
    assert "rtx3070" in moco_plan("--list-gpus").stderr


def applied(change: Change, recipe: Recipe) -> Recipe:
    if change.words == "activation checkpointing":
        return with_memory(recipe, activation_checkpointing=True)
    if change.words == "memory.keep_last_micro_batch=false":
        return with_memory(recipe, keep_last_micro_batch=False)
    assert change.words.startswith("micro-batch ")
    return with_micro_batch(recipe, int(change.words.split()[1].replace(",", "")))


def test_every_change_named_makes_it_fit_at_its_price() -> None:
    recipe, card = with_micro_batch(fitted("vit_small_patch16", 2048, 1024), 512), generic_card(3)
    now = judge(recipe, card)
    assert not now.memory.fits
    found = changes(recipe, card).changes
    assert {change.words.split()[0] for change in found} == {"micro-batch", "activation"}
    for change in found:
        after = judge(applied(change, recipe), card)
        assert after.memory.fits
        assert change.memory_bytes == after.memory.peak_reserved_bytes - now.memory.peak_reserved_bytes < 0
        assert 1 + change.time_share == pytest.approx(now.tiles_per_second / after.tiles_per_second)
    assert found == sorted(found, key=lambda change: change.time_share)


def test_a_recipe_that_does_not_fit_is_told_what_would(tmp_path: Path) -> None:
    recipe = fitted("vit_small_patch16", 2048, 512)
    recipe = recipe.model_copy(update={"hardware": recipe.hardware.model_copy(update={"vram_gib": 3.0})})
    save_recipe(recipe, tmp_path / "r.yaml")
    result = moco_plan("--recipe", str(tmp_path / "r.yaml"), "--json")
    assert result.exit_code == 1, result.stderr
    said = " ".join(result.stderr.split())
    assert "It fits with micro-batch" in said
    assert "the smallest card that would do: " in said
    assert json.loads(result.stdout)["changes_that_fit"]


def test_what_can_never_fit_says_what_is_too_big() -> None:
    result = moco_plan(*FITS_NOT)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "weights 1." in said
    assert "No change of memory settings makes it fit" in said


@pytest.mark.parametrize(
    ("tiles", "batch", "expected"),
    [
        (None, 4096, None),
        (500_000, 4096, None),
        (20_000, 4096, "4 optimizer steps of 4,096 an epoch, which is few; --global-batch 512 takes 39"),
        (100, 64, "1 optimizer steps of 64 an epoch, which is few; --global-batch 4 takes 25"),
    ],
)
def test_few_steps_an_epoch_are_warned_of(tiles: int | None, batch: int, expected: str | None) -> None:
    warning = few_steps(batch, 2, tiles)
    assert warning == (expected and f"{tiles:,} tiles make {expected}")


def test_a_batch_that_divides_badly_is_warned_of() -> None:
    card = generic_card(8)
    warning = coarse(judge(fitted("vit_tiny_patch16", 2 * 1021, 1), card))
    assert warning is not None
    assert "1,021 tiles per device divide into micro-batches of 1, next of 1,021" in warning
    assert "--global-batch 2,048 divides better" in warning
    for well_divided in (fitted("vit_tiny_patch16", 2048, 4), fitted("vit_tiny_patch16", 2 * 1021, 1021)):
        assert coarse(judge(well_divided, card)) is None


def test_the_papers_own_way_takes_more_than_ours() -> None:
    recipe, card = fitted("vit_tiny_patch16", 256, 128), CARDS["rtx3070"]
    assert papers_way(recipe, card).peak_reserved_bytes > 1.4 * judge(recipe, card).memory.peak_reserved_bytes


def test_evidence_is_the_worst_that_was_measured_once_there_is_enough() -> None:
    recipe = small_recipe().model_dump()
    measured = {"gpu": "A card", "torch": "2.15", "compute_capability": 86}
    rows = [{"recipe": recipe, "measured": measured, "ratio": 0.97}] * 7
    card = generic_card(8)
    assert evidence("vit_small_patch16", card, []).share == 0.05
    assert "no card yet" in evidence("vit_small_patch16", card, []).checked
    assert evidence("vit_small_patch16", card, rows).share == 0.05
    assert (
        "only 7 measured configurations (A card with torch 2.15)" in evidence("vit_small_patch16", card, rows).checked
    )
    enough = [*rows, {"recipe": recipe, "measured": measured, "ratio": 1.01}]
    assert evidence("vit_small_patch16", card, enough).share == pytest.approx(1 / 0.97 - 1)
    assert evidence("vit_small_patch16", CARDS["t4"], enough).share == 0.05  # another kind of card
    assert evidence("resnet50", card, enough).share == 0.1
    worse = [*rows, {"recipe": recipe, "measured": measured, "ratio": 0.9}]
    assert evidence("vit_small_patch16", CARDS["t4"], worse).share == pytest.approx(1 / 0.9 - 1)
    assert "not yet measured" in standing(generic_card(8), [])
    assert "measured on such cards: 8" in standing(generic_card(8), enough)


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
def test_recipes_are_named_after_what_they_are_for(request_: Request, path: str) -> None:
    assert recipe_path(request_, 8) == path


def test_a_recipe_with_other_fields_is_not_replaced_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--vram", "8", *SMALL]
    assert moco_plan(*arguments).exit_code == 0
    assert moco_plan(*arguments).exit_code == 0  # the same again
    path = next((tmp_path / "recipes").iterdir())
    path.write_text(path.read_text().replace("source: data/tiles", "source: my/tiles"))
    refused = moco_plan(*arguments)
    assert refused.exit_code == 2
    assert f"recipes/{path.name} exists and has data.source=my/tiles" in " ".join(refused.stderr.split())
    assert "my/tiles" in path.read_text()
    assert moco_plan(*arguments, "--output", str(path)).exit_code == 0


def test_a_recipes_own_named_card_judges_it(tmp_path: Path) -> None:
    path = str(tmp_path / "t4.yaml")
    planned = json.loads(moco_plan("--gpu", "t4", *SMALL, "--output", path, "--json").stdout)
    judged = json.loads(moco_plan("--recipe", path, "--json").stdout)
    assert judged["hardware"] == planned["hardware"]
    assert judged["chosen"]["headroom_bytes"] == planned["chosen"]["headroom_bytes"]


@pytest.mark.parametrize(("encoder", "size"), [("resnet18", 121), ("resnet50", 481), ("vit_tiny_patch8", 488)])
def test_sizes_whose_maps_are_a_primes_multiple_wide_are_traced_with_another(encoder: str, size: int) -> None:
    """61, the first prime, is the side of a feature map there."""
    recipe = fitted(encoder, 96, 16)
    recipe = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"image_size": size})})
    card = CARDS["rtx3070"]
    scaled, direct = trace_for(recipe, card).events(16, 3, steps=1), trace_step(recipe, 86).events
    expected = replay(direct).peak_allocated_bytes
    assert replay(scaled).peak_allocated_bytes == pytest.approx(expected, rel=0.01)


def test_what_is_there_before_a_step_does_not_grow_with_the_batch() -> None:
    """The buffer of ResNet-101's gradients is a multiple of 61, the prime that is traced with."""
    recipe, card = (
        recipe_for(Request(gpus=2, global_batch_size=384, mixed_precision="bf16"), "resnet101"),
        CARDS["h100_sxm"],
    )
    gradients = [
        estimate(trace_for(sized, card), sized, card).breakdown_bytes["gradients"]
        for sized in (with_micro_batch(recipe, size) for size in (64, 32))
    ]
    moco = build_moco(recipe)
    moco.make_room_for_gradients()
    assert moco.gradient.nbytes % 61 == 0
    assert gradients == [moco.gradient.nbytes] * 2


def test_a_resnet_needs_two_values_a_channel(tmp_path: Path) -> None:
    tiny = ["--vram", "8", "--encoder", "resnet18", "--image-size", "32", "--output", str(tmp_path / "r.yaml")]
    result = moco_plan(*tiny, "--global-batch", "64", "--json")
    assert json.loads(result.stdout)["chosen"]["micro_batch_size"] > 1
    alone = moco_plan(*tiny, "--gpus", "2", "--global-batch", "2")
    assert alone.exit_code == 2
    assert "batch.micro_batch_size=2 works" in alone.stderr
