"""moco-verify: every check passes on sound recipes, and fails on the fault that it should find."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import small_recipe
from torch import Tensor, nn
from typer.testing import CliRunner

from moco_accel.networks.collectives import GlobalBatchNorm1d
from moco_accel.networks.moco import MoCo, build_moco
from moco_accel.recipe.load import save_recipe
from moco_accel.recipe.schema import Recipe
from moco_accel.verify import checks as subject
from moco_accel.verify import network_checks
from moco_accel.verify.cli import app
from moco_accel.views.crops import Crop, CropBatch

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
RECIPE = small_recipe(
    moco={"queue_size": 16, "projector_hidden_dim": 512, "output_dim": 256},
    hardware={"num_devices": 2},
    batch={"micro_batch_size": 2, "accumulation_steps": 2},
)


def failed(recipe: Recipe = RECIPE) -> list[str]:
    return [check.name for check in subject.run_checks(recipe) if not check.passed]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"encoder": {"name": "resnet10", "freeze_patch_projection": False}},
        {"moco": {"momentum_schedule": "cosine", "predictor_output_norm": False}},
        {"optimizer": {"name": "lars"}, "batch": {"contrast_over": "micro_batch"}},
        {"optimizer": {"name": "adamw_8bit"}, "memory": {"mixed_precision": "bf16", "activation_checkpointing": True}},
    ],
    ids=lambda sections: ",".join(sections),
)
def test_sound_recipes_pass(sections: dict[str, Any]) -> None:
    wide = {"projector_hidden_dim": 512, "output_dim": 256}  # in few dimensions, random keys are close to each other
    assert failed(small_recipe(**sections | {"moco": wide | sections.get("moco", {})})) == []


def on_networks(mutate: Callable[[MoCo], Any]) -> dict[str, Any]:
    def build(recipe: Recipe) -> MoCo:
        moco = build_moco(recipe)
        with torch.no_grad():
            mutate(moco)
        return moco

    return {"build_moco": build}


def on_steps(after: Callable[[MoCo], Any]) -> dict[str, Any]:
    real = subject.train_step

    def step(accelerator: Any, model: nn.Module, *arguments: Any) -> Any:
        result = real(accelerator, model, *arguments)
        with torch.no_grad():
            after(accelerator.unwrap_model(model))
        return result

    return {"train_step": step}


def losses_times(factor: float) -> dict[str, Any]:
    real = subject.train_step

    def step(*arguments: Any) -> Any:
        result = real(*arguments)
        result.loss.mul_(factor)
        return result

    return {"train_step": step}


def with_bias(moco: MoCo) -> None:
    for projector in (moco.projector, moco.momentum_projector):
        projector[0].register_parameter("bias", nn.Parameter(torch.zeros(512)))


def with_affine_last(moco: MoCo) -> None:
    for projector in (moco.projector, moco.momentum_projector):
        projector[-1] = GlobalBatchNorm1d(256)


def gradient_on_keys(moco: MoCo) -> None:
    parameter = next(moco.momentum_projector.parameters())
    parameter.grad = torch.zeros_like(parameter)


def scale_queue(moco: MoCo) -> None:
    moco.queue *= 2


def enqueue_again(moco: MoCo) -> None:
    moco.enqueue(torch.randn(4, moco.queue.shape[1]))


def optimizer_without_the_predictor(recipe: Recipe, moco: MoCo) -> torch.optim.Optimizer:
    return torch.optim.AdamW(p for name, p in moco.named_parameters() if not name.startswith("predictor"))


def no_projection(encoder: nn.Module) -> nn.Module:
    raise LookupError("no patch projection in this encoder")


def moved_by_a_pixel(tile: Tensor, *arguments: Any) -> Crop:
    real = real_make_crop(tile, *arguments)
    return dataclasses.replace(real, pixels=torch.roll(real.pixels, 1, -1))


def noise_after_normalisation(batch: CropBatch, recipe: Recipe) -> Tensor:
    quiet = recipe.model_copy(update={"augment": recipe.augment.model_copy(update={"noise_std": 0.0})})
    clean = real_augment_pixels(batch, quiet)
    return clean + recipe.augment.noise_std * torch.randn_like(clean)


def same_tiles(*arguments: Any) -> Iterator[list[tuple[int, int]]]:
    return repeat([(0, 0), (0, 1)])


real_make_crop, real_augment_pixels = subject.make_crop, subject.augment_pixels
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "bias in the projector": (on_networks(with_bias), "projector:"),
    "affine last": (on_networks(with_affine_last), "projector:"),
    "no BatchNorm last": (on_networks(lambda m: m.predictor.pop(-1)), "predictor:"),
    "trained patch projection": (on_networks(lambda m: m.encoder.requires_grad_()), "patch projection frozen"),
    "patch projection not found": ({"patch_projection": no_projection}, "patch projection frozen"),
    "momentum side that differs": (
        on_networks(lambda m: next(m.momentum_encoder.parameters()).add_(1e-6)),
        "momentum side equals",
    ),
    "trainable momentum side": (
        on_networks(lambda m: m.momentum_projector.requires_grad_()),
        "momentum side equals",
    ),
    "optimizer misses the predictor": ({"build_optimizer": optimizer_without_the_predictor}, "the optimizer holds"),
    "lr for a batch of 512": ({"lr_at": lambda recipe, epoch: recipe.optimizer.base_lr * 2}, "lr = base_lr"),
    "constant momentum": ({"momentum_coefficient_at": lambda recipe, epoch: 0.9}, "momentum coefficient"),
    "the same tiles on every device": ({"MicroBatchSampler": same_tiles}, "micro-batch · accumulation"),
    "one view's loss": (losses_times(0.5), "loss at start"),
    "NaN": (losses_times(float("nan")), "loss at start"),
    "momentum update per micro-batch": (on_steps(lambda m: m.update_momentum_encoder(0.99)), "momentum side = m"),
    "no momentum update": (
        on_networks(lambda m: setattr(m, "update_momentum_encoder", lambda m: None)),
        "momentum side = m",
    ),
    "gradient on the momentum side": (on_steps(gradient_on_keys), "no gradient reaches"),
    "gradient on the queue": (on_steps(lambda m: m.queue.requires_grad_()), "no gradient reaches"),
    "queue not normalised": (on_steps(scale_queue), "queue takes"),
    "queue enqueued twice": (on_steps(enqueue_again), "queue takes"),
    "queue in another order": (on_steps(lambda m: m.queue.copy_(m.queue.flip(0))), "queue takes"),
    "a crop that is not a turn": ({"make_crop": moved_by_a_pixel}, "rotations are multiples"),
    "noise after normalisation": ({"augment_pixels": noise_after_normalisation}, "noise precedes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted, name = FAULTS[fault]
    for target, replacement in planted.items():
        for module in (subject, network_checks):
            if hasattr(module, target):
                monkeypatch.setattr(module, target, replacement)
    found = failed()
    assert any(check.startswith(name) for check in found), found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_pass_within_30_seconds_of_one_core(path: Path) -> None:
    begun = time.process_time()
    result = CliRunner().invoke(app, ["--recipe", str(path), "--json"])
    assert result.exit_code == 0, result.stdout
    report = json.loads(result.stdout)
    assert report["passed"]
    assert len(report["checks"]) == 14
    assert time.process_time() - begun < 30


def test_the_checklist_and_its_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sound [" / "b].yaml"  # rich would read [/b] as markup
    save_recipe(RECIPE, path)
    sound = ["--recipe", str(path)]
    passed = CliRunner().invoke(app, sound)
    assert passed.exit_code == 0
    assert f"{path}: vit_tiny_patch8, networks as the recipe builds them" in passed.stderr
    assert "all 14 checks passed" in passed.stderr
    wrong = CliRunner().invoke(app, [*sound, "--set", "moco.temperature=-1"])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: moco.temperature=-1")
    monkeypatch.setattr(subject, "lr_at", lambda recipe, epoch: 1.0)
    faulty = CliRunner().invoke(app, sound)
    assert faulty.exit_code == 1
    assert "1 of 14 checks failed" in faulty.stderr
