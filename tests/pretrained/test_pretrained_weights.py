"""encoder.weights: exports load bit-exactly, and weights that do not fit are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from support.exported_runs import perturb, saved_run
from support.recipes import small_recipe
from torch import nn

from moco_accel.checkpoints.run_folder import load_encoder
from moco_accel.common.errors import UserError
from moco_accel.export import export
from moco_accel.export.trained_encoder import find_trained_encoder
from moco_accel.networks.encoders import build_encoder
from moco_accel.networks.moco import build_moco
from moco_accel.pretrained.load import load_weights, read_weights
from moco_accel.processes.signals import StopRequest
from moco_accel.recipe.schema import Recipe
from moco_accel.training.run import run_training

pytestmark = pytest.mark.usefixtures("few_blocks")


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


def recipe_of(name: str, bands: int = 3, image_size: int = 32, weights: Path | str | None = None) -> Recipe:
    encoder = {"name": name, "bands": bands, "image_size": image_size, "weights": weights and str(weights)}
    return small_recipe(encoder=encoder)


def refusal(source: Path | str, recipe: Recipe) -> str:
    with pytest.raises(UserError) as refused:
        read_weights(str(source), build_encoder(recipe.encoder))
    message = str(refused.value)
    assert message.startswith("encoder.weights='")
    assert "\n" not in message
    return message


def are_equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("bands", [3, 13])
@pytest.mark.parametrize("name", ["vit_tiny_patch8", "vit_small_patch16", "resnet10", "resnet50"])
def test_exports_load_bit_exactly_into_both_sides(name: str, bands: int, tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", name, bands)
    trained = find_trained_encoder(run, "latest")
    sources = {"run": run, "checkpoint": run / "checkpoints/step_00000001"}
    for format_name in ("transformers", "torchvision", "timm"):
        sources[format_name] = tmp_path / format_name
        export.export_encoder(trained, sources[format_name], export.get_format(format_name))
    sources["file"] = tmp_path / "timm/model.safetensors"
    for name_of_source, source in sources.items():
        recipe, logged = recipe_of(name, bands, weights=source), list[str]()
        moco = build_moco(recipe)
        assert not are_equal(moco.encoder, trained.encoder)
        load_weights(moco, recipe, logged.append)
        assert are_equal(moco.encoder, trained.encoder), name_of_source
        assert are_equal(moco.momentum_encoder, trained.encoder), name_of_source
        assert len(logged) == (2 if name.startswith("vit") else 1), logged  # random positions are not sin-cos
        assert logged[0].startswith("encoder.weights: both sides start with ")


def test_a_run_starts_with_these_weights(
    tmp_path: Path, tiles_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved_run(tmp_path / "before", "vit_tiny_patch8", image_size=16)
    recipe = small_recipe(
        encoder={"weights": str(before)},
        optimizer={"base_lr": 0.0, "lr": 0.0},  # the weights do not change
        data={"source": str(tiles_folder)},
        schedule={"epochs": 1, "warmup_epochs": 0},
        hardware={"num_devices": 1},
    )
    run_training(recipe, tmp_path / "run", resume=False, stop=StopRequest())
    final, initial = load_encoder(tmp_path / "run")[1], load_encoder(before)[1]
    assert are_equal(final, initial)
    assert "encoder.weights: both sides start with" in capsys.readouterr().err


def test_weights_of_other_libraries(tmp_path: Path) -> None:
    """Heads are left out, 16 bits become 32, and learned position embeddings are reported."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, depth=3)
    perturb(model)
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    encoder = build_encoder(recipe_of("vit_tiny_patch16").encoder)
    found, notes = read_weights(str(tmp_path / "theirs.safetensors"), encoder)
    assert len(found) == len(encoder.state_dict())
    assert torch.equal(found["vit.layers.2.attention.k_proj.weight"], tensors["blocks.2.attn.qkv.weight"][192:384])
    assert [note.removeprefix("encoder.weights: ") for note in notes[1:]] == [
        "left out, not part of the encoder: head.bias, head.weight",
        "torch.float16 become torch.float32",
        "the file does not name the number of attention heads; assumed: 3",
        "position embeddings are the file's, learned and not sin-cos; they stay fixed",
    ]

    resnet = torchvision.models.resnet18()
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    encoder = build_encoder(recipe_of("resnet18").encoder)
    found, notes = read_weights(str(tmp_path / "resnet.safetensors"), encoder)
    assert torch.equal(found["layer4.1.conv2.weight"], resnet.layer4[1].conv2.weight)
    assert "fc.bias, fc.weight" in notes[1]

    config = transformers.ViTConfig(hidden_size=192, num_hidden_layers=3, num_attention_heads=3, intermediate_size=768)
    config.image_size, config.patch_size = 32, 8
    theirs = transformers.ViTForImageClassification(config)
    theirs.save_pretrained(tmp_path / "vit")
    found, notes = read_weights(str(tmp_path / "vit"), build_encoder(recipe_of("vit_tiny_patch8").encoder))
    assert torch.equal(found["vit.layers.1.mlp.fc2.weight"], theirs.vit.layers[1].mlp.fc2.weight)
    assert "classifier.bias, classifier.weight" in notes[1]


def test_misfits_are_reported_with_fields_that_would_fit(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "vit_tiny_patch8", 13)
    export.export_encoder(find_trained_encoder(run, "latest"), tmp_path / "timm", export.get_format("timm"))
    for source in (run, tmp_path / "timm"):
        message = refusal(source, recipe_of("vit_tiny_patch8", 3))
        assert message.endswith(" has bands 13; this encoder has bands 3. encoder.bands=13 would fit these weights")
        message = refusal(source, recipe_of("vit_tiny_patch8", 13, 64))
        assert message.endswith(
            "image size 32; this encoder has image size 64. encoder.image_size=32 would fit these weights"
        )
        message = refusal(source, recipe_of("vit_small_patch16", 13))
        assert "has width 192, layers 3, patch 8, heads 3; this encoder has width 384, layers 12, patch 16" in message
        assert message.endswith("encoder.name=vit_tiny_patch8 would fit these weights")
        message = refusal(source, recipe_of("resnet10", 13))
        assert "has kind ViT; this encoder has kind ResNet. encoder.name=vit_tiny_patch8 would fit" in message
    resnet = torchvision.models.resnet101()
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    message = refusal(tmp_path / "resnet.safetensors", recipe_of("resnet50"))
    assert "has blocks 3-4-23-3 bottleneck; this encoder has blocks 3-4-6-3 bottleneck" in message
    assert message.endswith("encoder.name=resnet101 would fit these weights")


def test_the_number_of_heads_is_read_from_the_config(tmp_path: Path) -> None:
    """Shapes do not tell timm's 6 heads from MoCo v3's 12: timm's ViT-S would load and compute other features."""
    model = timm.create_model("vit_small_patch16_224", img_size=32, num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_224", "num_features": 384}))
    message = refusal(tmp_path, recipe_of("vit_small_patch16"))
    assert message.endswith(
        "has heads 6; this encoder has heads 12. No encoder of this project is like that; "
        "encoder.weights=null starts at random"
    )


def test_other_files_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of("vit_tiny_patch8")
    (tmp_path / "old.pth").write_bytes(b"never read")
    message = refusal(tmp_path / "old.pth", recipe)
    assert "old.pth may contain any code and is not read" in message
    assert "weights_only=True" in message
    assert "is neither a file, a folder nor a hub id" in refusal("../nowhere/at/all", recipe)
    (tmp_path / "empty").mkdir()
    assert "holds no *.safetensors and no checkpoint" in refusal(tmp_path / "empty", recipe)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "are not named as in transformers, timm or torchvision" in refusal(tmp_path / "other.safetensors", recipe)
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    assert "holds no encoder's weights: " in refusal(tmp_path / "broken.safetensors", recipe)

    run = saved_run(tmp_path / "run", "vit_tiny_patch8")
    export.export_encoder(find_trained_encoder(run, "latest"), tmp_path / "timm", export.get_format("timm"))
    tensors = load_file(tmp_path / "timm/model.safetensors")
    scaled = tensors | {"blocks.0.ls1.gamma": torch.ones(192)}  # would change the features
    save_file(scaled, tmp_path / "scaled.safetensors")
    assert "this encoder has no tensor 'blocks.0.ls1.gamma' (1 such in all)" in refusal(
        tmp_path / "scaled.safetensors", recipe
    )
    del tensors["blocks.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / "less.safetensors")
    assert "lacks blocks.1.mlp.fc1.bias" in refusal(tmp_path / "less.safetensors", recipe)


def test_an_unreachable_hub_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal("someone/something-that-is-nowhere", recipe_of("vit_tiny_patch8"))
    assert "is not a local path, and the hub does not provide it" in message
    assert message.endswith("a folder or a .safetensors file works")
