"""encoder.weights: what was exported comes back to the bit, and what does not fit is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from support.exported_runs import saved_run, shake
from support.recipes import small_recipe
from torch import nn

from moco_accel.checkpoints.run_folder import load_encoder
from moco_accel.common.errors import UserError
from moco_accel.export import exporting
from moco_accel.export.trained import find_trained
from moco_accel.networks.encoders import build_encoder
from moco_accel.networks.moco import build_moco
from moco_accel.pretrained.load import load_weights, read_weights
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.schema import Recipe
from moco_accel.training.loop import run_training

pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


def of(name: str, bands: int = 3, image_size: int = 32, weights: Path | str | None = None) -> Recipe:
    encoder = {"name": name, "bands": bands, "image_size": image_size, "weights": weights and str(weights)}
    return small_recipe(encoder=encoder)


def refusal(source: Path | str, recipe: Recipe) -> str:
    with pytest.raises(UserError) as refused:
        read_weights(str(source), build_encoder(recipe.encoder))
    said = str(refused.value)
    assert said.startswith("encoder.weights='")
    assert "\n" not in said
    return said


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("bands", [3, 13])
@pytest.mark.parametrize("name", ["vit_tiny_patch8", "vit_small_patch16", "resnet10", "resnet50"])
def test_exports_come_back_to_the_bit_on_both_sides(name: str, bands: int, tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", name, bands)
    trained = find_trained(run, "latest")
    sources = {"run": run, "checkpoint": run / "checkpoints/step_00000001"}
    for format_name in ("transformers", "torchvision", "timm"):
        sources[format_name] = tmp_path / format_name
        exporting.export(trained, sources[format_name], exporting.format_named(format_name))
    sources["file"] = tmp_path / "timm/model.safetensors"
    for what, source in sources.items():
        recipe, said = of(name, bands, weights=source), list[str]()
        moco = build_moco(recipe)
        assert not same(moco.encoder, trained.encoder)
        load_weights(moco, recipe, said.append)
        assert same(moco.encoder, trained.encoder), what
        assert same(moco.momentum_encoder, trained.encoder), what
        assert len(said) == (2 if name.startswith("vit") else 1), said  # shaken positions are no sin-cos
        assert said[0].startswith("encoder.weights: both sides begin with ")


def test_a_run_begins_with_these_weights(
    tmp_path: Path, tiles_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved_run(tmp_path / "before", "vit_tiny_patch8", image_size=16)
    recipe = small_recipe(
        encoder={"weights": str(before)},
        optimizer={"base_lr": 0.0, "lr": 0.0},  # what it begins with is what it ends with
        data={"source": str(tiles_folder)},
        schedule={"epochs": 1, "warmup_epochs": 0},
        hardware={"num_devices": 1},
    )
    run_training(recipe, tmp_path / "run", resume=False, stop=StopRequest())
    ended, began = load_encoder(tmp_path / "run")[1], load_encoder(before)[1]
    assert same(ended, began)
    assert "encoder.weights: both sides begin with" in capsys.readouterr().err


def test_weights_of_other_libraries_own_models(tmp_path: Path) -> None:
    """Not only our exports: heads are left out by name, 16 bits widened, learned positions said."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, depth=3)
    shake(model)
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    encoder = build_encoder(of("vit_tiny_patch16").encoder)
    found, notes = read_weights(str(tmp_path / "theirs.safetensors"), encoder)
    assert len(found) == len(encoder.state_dict())
    assert torch.equal(found["vit.layers.2.attention.k_proj.weight"], tensors["blocks.2.attn.qkv.weight"][192:384])
    assert [note.removeprefix("encoder.weights: ") for note in notes[1:]] == [
        "left out, being no part of the encoder: head.bias, head.weight",
        "torch.float16 become torch.float32",
        "the file does not say how many attention heads; taken to be 3",
        "position embeddings are the file's, learned and not sin-cos; they stay fixed",
    ]

    resnet = torchvision.models.resnet18()
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    encoder = build_encoder(of("resnet18").encoder)
    found, notes = read_weights(str(tmp_path / "resnet.safetensors"), encoder)
    assert torch.equal(found["layer4.1.conv2.weight"], resnet.layer4[1].conv2.weight)
    assert "fc.bias, fc.weight" in notes[1]

    config = transformers.ViTConfig(hidden_size=192, num_hidden_layers=3, num_attention_heads=3, intermediate_size=768)
    config.image_size, config.patch_size = 32, 8
    theirs = transformers.ViTForImageClassification(config)
    theirs.save_pretrained(tmp_path / "vit")
    found, notes = read_weights(str(tmp_path / "vit"), build_encoder(of("vit_tiny_patch8").encoder))
    assert torch.equal(found["vit.layers.1.mlp.fc2.weight"], theirs.vit.layers[1].mlp.fc2.weight)
    assert "classifier.bias, classifier.weight" in notes[1]


def test_what_does_not_fit_is_named_with_what_would(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "vit_tiny_patch8", 13)
    exporting.export(find_trained(run, "latest"), tmp_path / "timm", exporting.format_named("timm"))
    for source in (run, tmp_path / "timm"):
        said = refusal(source, of("vit_tiny_patch8", 3))
        assert said.endswith(" has bands 13; this encoder has bands 3. encoder.bands=13 would fit these weights")
        said = refusal(source, of("vit_tiny_patch8", 13, 64))
        assert said.endswith(
            "image size 32; this encoder has image size 64. encoder.image_size=32 would fit these weights"
        )
        said = refusal(source, of("vit_small_patch16", 13))
        assert "has width 192, layers 3, patch 8, heads 3; this encoder has width 384, layers 12, patch 16" in said
        assert said.endswith("encoder.name=vit_tiny_patch8 would fit these weights")
        said = refusal(source, of("resnet10", 13))
        assert "has kind ViT; this encoder has kind ResNet. encoder.name=vit_tiny_patch8 would fit" in said
    resnet = torchvision.models.resnet101()
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    said = refusal(tmp_path / "resnet.safetensors", of("resnet50"))
    assert "has blocks 3-4-23-3 bottleneck; this encoder has blocks 3-4-6-3 bottleneck" in said
    assert said.endswith("encoder.name=resnet101 would fit these weights")


def test_heads_of_attention_are_no_guess(tmp_path: Path) -> None:
    """No shape tells 6 heads from MoCo v3's 12: timm's ViT-S would load and compute something else."""
    model = timm.create_model("vit_small_patch16_224", img_size=32, num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_224", "num_features": 384}))
    said = refusal(tmp_path, of("vit_small_patch16"))
    assert said.endswith(
        "has heads 6; this encoder has heads 12. No encoder here is like that; encoder.weights=null starts at random"
    )


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    recipe = of("vit_tiny_patch8")
    (tmp_path / "old.pth").write_bytes(b"never read")
    said = refusal(tmp_path / "old.pth", recipe)
    assert "old.pth may hold any code, and is not read" in said
    assert "weights_only=True" in said
    assert "is neither a file, a folder nor a hub id" in refusal("../nowhere/at/all", recipe)
    (tmp_path / "empty").mkdir()
    assert "holds no *.safetensors and no checkpoint" in refusal(tmp_path / "empty", recipe)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "have no names of transformers', timm's or torchvision's" in refusal(tmp_path / "other.safetensors", recipe)
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    assert "is no encoder's weights: " in refusal(tmp_path / "broken.safetensors", recipe)

    run = saved_run(tmp_path / "run", "vit_tiny_patch8")
    exporting.export(find_trained(run, "latest"), tmp_path / "timm", exporting.format_named("timm"))
    tensors = load_file(tmp_path / "timm/model.safetensors")
    scaled = tensors | {"blocks.0.ls1.gamma": torch.ones(192)}  # would compute something else
    save_file(scaled, tmp_path / "scaled.safetensors")
    assert "'blocks.0.ls1.gamma' (1 such in all) has no place in this encoder" in refusal(
        tmp_path / "scaled.safetensors", recipe
    )
    del tensors["blocks.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / "less.safetensors")
    assert "lacks blocks.1.mlp.fc1.bias" in refusal(tmp_path / "less.safetensors", recipe)


def test_hub_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refusal("someone/something-that-is-nowhere", of("vit_tiny_patch8"))
    assert "is no path here, and the hub does not give it" in said
    assert said.endswith("a folder or a .safetensors file works")
