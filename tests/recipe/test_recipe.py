"""The recipe: YAML round trip, overrides, derived values, rules and their messages."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.recipes import small_recipe

from moco_accel.common.errors import UserError
from moco_accel.recipe.load import load_recipe, save_recipe
from moco_accel.recipe.overrides import apply_overrides, override_argument
from moco_accel.recipe.rules import scaled_lr

PAPER = """
encoder: {name: vit_small_patch16}
batch: {global_batch_size: 4096, micro_batch_size: 128, accumulation_steps: 16}
optimizer: {name: adamw_8bit, base_lr: 1.5e-4, lr: 24e-4}
hardware: {num_devices: 2, vram_gib: 8}
"""


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "paper.yaml"
    path.write_text(PAPER)
    return path


def test_yaml_round_trip(paper: Path, tmp_path: Path) -> None:
    recipe = load_recipe(paper)
    save_recipe(recipe, tmp_path / "copy.yaml", comment="two\nlines")
    assert load_recipe(tmp_path / "copy.yaml") == recipe
    assert (tmp_path / "copy.yaml").read_text().startswith("# two\n# lines\nencoder:")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", ".0001", "0.0001", "+1e-4", "1.0e-4"])
def test_number_formats(paper: Path, text: str) -> None:
    recipe = load_recipe(paper, [f"optimizer.base_lr={text}", "optimizer.lr=16e-4"])
    assert recipe.optimizer.base_lr == 1e-4


def test_yes_and_no_stay_text(paper: Path) -> None:
    assert load_recipe(paper, ["memory.mixed_precision=no"]).memory.mixed_precision == "no"
    assert load_recipe(paper, ["hardware.gpu=on"]).hardware.gpu == "on"
    assert load_recipe(paper, ["memory.activation_checkpointing=true"]).memory.activation_checkpointing is True


PATHS = ["a [b] c", "[tiles]", "C: x", "*.parquet", "a #b", "'t' b", "{a}", "3", "true", "on", "!x", "& y", "`z`", "-"]


@pytest.mark.parametrize("text", PATHS)
def test_text_fields_take_values_literally(paper: Path, text: str) -> None:
    recipe = load_recipe(paper, [f"data.source={text}", f"hardware.gpu={text}", f"evaluation.label_column= {text} "])
    assert (recipe.data.source, recipe.hardware.gpu, recipe.evaluation.label_column) == (text, text, text)


def test_null_and_quotes_in_text_fields(paper: Path) -> None:
    overrides = ["data.source=' a '", 'hardware.gpu="null"', "evaluation.train_source=null", "data.image_column="]
    recipe = load_recipe(paper, overrides)
    assert (recipe.data.source, recipe.hardware.gpu) == (" a ", "null")
    assert (recipe.evaluation.train_source, recipe.data.image_column) == (None, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("data.source", text)
            for text in [*PATHS, "null", " a ", "'q'", '"', "it's", "ü 東", "a\nb", "\udcfc", "a" * 200]
        ),
        ("data.bands", ["B4", "a: b", "it's", "ü"]),
        ("data.low", [0.5, 1e-9, 10000.0]),
        ("encoder.bands", 4),
        ("data.nodata", None),
        ("data.streaming", True),
        ("memory.mixed_precision", "no"),
    ],
)
def test_override_argument_round_trip_through_a_shell(name: str, value: Any) -> None:
    (argument,) = shlex.split(override_argument(name, value))
    section, _, field = name.partition(".")
    assert apply_overrides({}, [argument]) == {section: {field: value}}


def test_override_argument_quotes_only_if_needed() -> None:
    assert override_argument("data.source", "data/tiles") == "data.source=data/tiles"
    assert override_argument("data.source", "a [b] c") == "'data.source=a [b] c'"
    assert override_argument("encoder.bands", 4) == "encoder.bands=4"
    assert override_argument("data.bands", ["B4", "B3"]) == "'data.bands=[B4, B3]'"


def test_recipes_are_utf8_whatever_the_locale(paper: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.yaml"
    program = (
        "import sys; from moco_accel.recipe.load import load_recipe, save_recipe; recipe, saved = sys.argv[1:]; "
        "save_recipe(load_recipe(recipe, ['data.source=T\\u00fcr \\u6771']), saved, 'T\\u00fcr \\udcfc'); "
        "assert load_recipe(saved).data.source == 'T\\u00fcr \\u6771'"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program, str(paper), str(saved)], env=os.environ | locale, check=True)
    text = saved.read_text(encoding="utf-8")
    assert "source: Tür 東, " in text
    assert text.startswith("# Tür \\udcfc\n")


def test_batch_arithmetic(paper: Path) -> None:
    recipe = load_recipe(paper)
    assert recipe.per_device_batch_size == 2048
    assert recipe.negatives_per_query == 4095
    assert recipe.chance_loss == pytest.approx(6.654, abs=1e-3)  # 4 · 0.2 · ln 4096
    plain = load_recipe(paper, ["batch.contrast_over=micro_batch", "moco.queue_size=8192"])
    assert plain.negatives_per_query == 2 * 128 - 1 + 8192
    assert plain.chance_loss == pytest.approx(4 * 0.2 * math.log(256 + 8192))
    assert scaled_lr(1.5e-4, 4096) == 2.4e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder.nam=x", "encoder.nam='x' is not a field of a recipe; did you mean name?"),
        ("encoder.image_size=big", "encoder.image_size='big': input should be a valid integer; 224 works"),
        ("encoder.image_size=true", "encoder.image_size=True: input should be a valid integer; 224 works"),
        (
            "encoder.image_size=100",
            "image_size=100 is not a multiple of vit_small_patch16's patch of 16; nearest: 96, 112",
        ),
        ("encoder.name=vit_huge", "encoder.name='vit_huge' is not known; encoder.name=vit_huge_patch14 works"),
        ("data.bands=[B4, B3]", "data.bands=['B4', 'B3'] has 2 names; encoder.bands=3 needs 3"),
        ("data.bands=[B4, B3, B4]", "names a band twice"),
        ("data.low=[0, 0, 0]", "data.high=null: data.scaling='uint8' needs low and high"),
        ("data.scaling=range", "data.low=null: data.scaling='range' needs low and high"),
        ("data.scaling=minmax", "data.scaling='minmax': input should be 'uint8', 'reflectance'"),
        ("augment.preset=seasons", "data.pair_column=image_pair works after moco-data build --pair-with"),
        ("augment.preset=strong", "augment.preset='strong': input should be 'satellite', 'paper' or 'seasons'"),
        ("hardware.num_devices=3", "batch.global_batch_size=4096 does not divide over 3 devices; nearest: 4095, 4098"),
        ("hardware.num_devices=1", "num_devices 1 = 2048; batch.accumulation_steps=32 works"),
        ("batch.micro_batch_size=100", "= 3200; batch.micro_batch_size=64 batch.accumulation_steps=32 work"),
        ("batch.global_batch_size=-1", "batch.global_batch_size=-1: input should be greater than or equal to 2"),
        ("optimizer.lr=1e-3", "optimizer.lr=0.0024 works"),
        ("optimizer.name=lars_8bit", "drops the trust ratio; use lars (32-bit) or adamw_8bit"),
        ("optimizer.name=sgd", "optimizer.name='sgd' is not known; one of: adamw, adamw_8bit, lars"),
        ("schedule.warmup_epochs=400", "schedule.warmup_epochs=400 is longer than schedule.epochs=300"),
        ("moco.queue_size=5000", "keys enqueued per optimizer step; nearest: 4096, 8192"),
        ("data.mean=[0.5]", "data.mean=[0.5] has 1 numbers; encoder.bands=3 needs 3"),
        ("data.std=[0, 1, 1]", "must be above 0 in every band"),
        ("augment.blur_probability=[1]", "[1.0, 0.1] works"),
        ("epochs=3", "--set 'epochs=3' is not section.field=value; e.g. --set schedule.epochs=100"),
        (
            "data.bands=[a: b: c]",
            "--set 'data.bands=[a: b: c]': '[a: b: c]' is not a YAML value; e.g. 1e-4, true, [1, 2], ['a: b', c] work",
        ),
        ("data.source=null", "data.source=None: input should be a valid string; data/tiles works"),
    ],
)
def test_mistakes_are_reported_in_one_line(paper: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(paper, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "3", "[a]", "{", "encoder: 3", "a: &a [*a]", "!!python/object:os.system {}"])
def test_files_that_are_not_recipes_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_recipe(path)


def test_missing_file_lists_the_existing_ones(paper: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; there are: .*paper\.yaml"):
        load_recipe(paper.with_name("nope.yaml"))


def test_missing_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("encoder: {name: resnet50}")
    with pytest.raises(UserError, match="batch is missing"):
        load_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert load_recipe(path).encoder.name


def test_small_recipe_is_valid() -> None:
    assert small_recipe().keys_per_query == 8


def test_low_and_high_must_match_the_scaling(paper: Path) -> None:
    reflectance = ["data.scaling=reflectance", "data.low=[0, 0, 0]"]
    assert load_recipe(paper, [*reflectance, "data.high=[1e4, 1e4, 1e4]"]).stored_range[1] == [1e4] * 3
    with pytest.raises(UserError, match=r"not what data.scaling='reflectance' means \(0 and 10000\); data.scaling=r"):
        load_recipe(paper, [*reflectance, "data.high=[1e4, 1e4, 9e3]"])
    with pytest.raises(UserError, match="must be above"):
        load_recipe(paper, ["data.scaling=range", "data.low=[0, 0, 5]", "data.high=[1, 1, 5]"])


def test_fields_override_presets(paper: Path, tmp_path: Path) -> None:
    augment = load_recipe(paper, ["augment.preset=paper", "augment.hue=0.02"]).augment
    assert (augment.brightness, augment.vertical_flip_probability, augment.noise_std, augment.hue) == (0.4, 0, 0, 0.02)
    assert load_recipe(paper).augment.brightness == 0.2
    save_recipe(load_recipe(paper, ["augment.preset=paper", "augment.hue=0.02"]), tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml").augment == augment
