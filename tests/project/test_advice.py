"""Every value that an error's message calls working was tried: the advice is followed until the command works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic.fields import FieldInfo
from support.advice import advised_fields, advised_options, follow_advice
from typer.testing import CliRunner

from moco_accel.common.errors import UserError
from moco_accel.recipe.load import load_recipe
from moco_accel.recipe.schema import Recipe
from planner.cli import app as plan_app

DEMO = Path(__file__).parents[2] / "recipes" / "cpu_demo.yaml"
MISTAKES = [  # rules across fields, and what people type
    ["batch.global_batch_size=64"],
    ["batch.global_batch_size=192"],
    ["batch.global_batch_size=4096"],
    ["batch.micro_batch_size=100"],
    ["batch.accumulation_steps=3"],
    ["hardware.num_devices=3"],
    ["hardware.num_devices=2", "hardware.num_nodes=3"],
    ["batch.global_batch_size=1000", "hardware.num_devices=2"],
    ["optimizer.lr=1"],
    ["optimizer.base_lr=3e-4"],
    ["optimizer.name=sgd"],
    ["schedule.epochs=1", "schedule.warmup_epochs=2"],
    ["encoder.name=vit-b"],
    ["encoder.name=vit_small_patch16", "encoder.image_size=100"],
    ["encoder.name=resnet"],
    ["encoder.bands=5", "data.mean=[1,2]"],
    ["data.bands=[B4, B4]"],
    ["data.low=[0,0,0]", "data.high=[0,0,0]"],
    ["run.trackers=[neptune]"],
    ["augment.preset=none"],
    ["memory.fully_shard=true"],
    ["memory.mixed_precision=fp8"],
]


def wrong_values(field: FieldInfo) -> Iterator[str]:
    """Yield values of a wrong type, and beyond each limit of a field."""
    kinds = (field.annotation, *get_args(field.annotation))
    if str not in kinds:
        yield "wrong"
    if not any(kind in (int, float) for kind in kinds):
        yield "[[1]]"
    if int in kinds:
        yield "1.5"
    for rule in field.metadata:
        for name, beyond in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            bound = getattr(rule, name, None)
            if bound is not None:
                yield str(bound + beyond)


def field_mistakes() -> list[str]:
    found = []
    for section, of_recipe in Recipe.model_fields.items():
        if section == "planned":
            continue
        schema: Any = of_recipe.annotation
        for name, field in schema.model_fields.items():
            found += [f"{section}.{name}={value}" for value in wrong_values(field)]
    return found


def load(overrides: list[str]) -> object:
    return load_recipe(DEMO, overrides)


@pytest.mark.parametrize("mistake", field_mistakes())
def test_the_value_that_works_for_a_wrong_field_works(mistake: str) -> None:
    try:
        load([mistake])
    except UserError:
        assert follow_advice(load, [mistake], advised_fields) >= 1


@pytest.mark.parametrize("mistakes", MISTAKES, ids=" ".join)
def test_the_values_that_work_for_a_broken_rule_work(mistakes: list[str]) -> None:
    assert follow_advice(load, mistakes, advised_fields) >= 1


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.trackers=tensorboard", ["tensorboard"]),
        ("run.trackers=tensorboard,wandb", ["tensorboard", "wandb"]),
        ("data.bands=B4,B3,B2", ["B4", "B3", "B2"]),
        ("data.bands=[B4, B3, B2]", ["B4", "B3", "B2"]),
        ("data.low=0,1.5,2", [0, 1.5, 2]),
        ("augment.blur_probability=0.5,0", [0.5, 0]),
        ("data.bands=null", None),
    ],
)
def test_a_list_may_be_given_by_commas(override: str, value: object) -> None:
    section, field = override.partition("=")[0].split(".")
    more = ["data.scaling=range", "data.high=9,9,9"] if field == "low" else []
    assert getattr(getattr(load_recipe(DEMO, [override, *more]), section), field) == value


PLANS = [
    ["--gpus", "0", "--vram", "8"],
    ["--vram", "8192"],
    ["--vram", "0"],
    ["--gpu", "a100"],
    ["--gpu", "rx7900xtx"],
    ["--vram", "8", "--encoder", "vit-b"],
    ["--vram", "8", "--tiles", "100", "--global-batch", "4096"],
    ["--vram", "8", "--gpus", "2", "--tiles", "3"],
    ["--vram", "8", "--global-batch", "1"],
    ["--vram", "8,12", "--gpus", "3"],
    ["--gpu", "t4", "--precision", "bf16"],
    ["--vram", "8", "--save", "plan.png"],
]


@pytest.mark.slow
@pytest.mark.parametrize("given", PLANS, ids=" ".join)
def test_the_option_that_works_for_a_plan_works(given: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--encoder", "vit_tiny_patch16", "--image-size", "64"]

    def plan(words: list[str]) -> None:
        options: dict[str, str] = {}
        for name, value in zip(words[::2], words[1::2], strict=True):
            if name == "--vram" and value == "8" and "rx" in options.get("--gpu", ""):
                options.pop("--gpu")  # "as for an NVIDIA card of that size"
            options[name] = value
        defaults = {name: value for name, value in zip(small[::2], small[1::2], strict=True) if name not in options}
        done = CliRunner().invoke(plan_app, [word for pair in (options | defaults).items() for word in pair])
        if done.exit_code == 2:
            raise UserError(done.stderr.strip().removeprefix("error: "))
        assert done.exit_code in (0, 1), done.stderr

    assert follow_advice(plan, given, advised_options) >= 1
