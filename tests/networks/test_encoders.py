"""Encoders and heads have the published parameter counts, initialisation and structure."""

from __future__ import annotations

import math

import pytest
import torch
from support.recipes import small_recipe
from torch import nn

from moco_accel.networks.encoders import build_encoder, feature_dim, patch_projection, sincos_position_embedding
from moco_accel.networks.moco import build_moco
from moco_accel.recipe.encoder_names import ENCODER_NAMES
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.schema import Encoder


@pytest.mark.parametrize(
    ("name", "freeze", "output_norm", "all_parameters", "trainable"),
    [
        ("resnet50", False, False, 68_012_160, 35_058_752),
        ("vit_small_patch16", True, True, 84_266_752, 42_815_104),
        ("vit_base_patch16", True, True, 215_678_464, 108_150_016),
        ("vit_huge_patch14", True, True, 1_309_805_056, 654_872_320),  # the encoder alone 630,764,800, as published
    ],
)
def test_published_parameter_counts(
    name: str, freeze: bool, output_norm: bool, all_parameters: int, trainable: int
) -> None:
    fields = small_recipe().model_dump() | {"encoder": {"name": name, "freeze_patch_projection": freeze}}
    fields["moco"] = {"predictor_output_norm": output_norm}
    with torch.device("meta"):
        moco = build_moco(recipe_from_dict(fields))
    assert sum(p.numel() for p in moco.parameters()) == all_parameters
    assert sum(p.numel() for p in moco.parameters() if p.requires_grad) == trainable


@pytest.mark.parametrize("name", [n for n in ENCODER_NAMES if not {"base", "large", "huge"} & {*n.split("_")}])
@pytest.mark.parametrize("bands", [3, 13])
def test_any_number_of_bands_gives_features(name: str, bands: int) -> None:
    encoder = build_encoder(Encoder(name=name, image_size=32, bands=bands))
    assert encoder(torch.rand(2, bands, 32, 32)).shape == (2, feature_dim(name))
    assert not any(p.requires_grad for p in patch_projection(encoder).parameters())


def test_missing_patch_projection_is_an_error() -> None:
    with pytest.raises(LookupError, match="Linear has no patch projection"):
        patch_projection(nn.Linear(1, 1))


def test_vit_initialisation() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(Encoder(name="vit_small_patch16", bands=13))
    weight = patch_projection(encoder).weight
    bound = math.sqrt(6 / (13 * 16**2 + 384))
    assert 0.99 * bound < weight.abs().max().item() <= bound
    fans = {(384, 384), (384, 1536)}
    linears = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 12 * 6
    for linear in linears:
        assert tuple(sorted(linear.weight.shape)) in fans
        bound = math.sqrt(6 / sum(linear.weight.shape))
        assert 0.99 * bound < linear.weight.abs().max().item() <= bound
        assert linear.bias.abs().max().item() == 0
    norms = [m for m in encoder.modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


def test_position_embedding_equals_hand_computed_values() -> None:
    positions = sincos_position_embedding(side=2, dim=8)[0]
    assert positions[0].abs().max() == 0  # CLS token
    w, h = 1.0, 1.0  # last patch; frequencies 1 and 1/100
    expected = [f(x * q) for x, f in ((w, math.sin), (w, math.cos), (h, math.sin), (h, math.cos)) for q in (1, 0.01)]
    torch.testing.assert_close(positions[4], torch.tensor(expected))
    torch.testing.assert_close(positions[2, :4], positions[4, :4])  # same column; w comes first
    assert positions[2, 4:].tolist() == positions[1, 4:].tolist()


def test_position_embedding_is_frozen() -> None:
    encoder = build_encoder(Encoder(name="vit_tiny_patch8", image_size=16))
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    prefix = "vit.embeddings."
    assert frozen == {
        f"{prefix}position_embeddings",
        f"{prefix}patch_embeddings.projection.weight",
        f"{prefix}patch_embeddings.projection.bias",
    }


def test_resnet_residuals_start_at_zero() -> None:
    encoder = build_encoder(Encoder(name="resnet50"))
    weights = [module.bn3.weight for module in encoder.modules() if hasattr(module, "bn3")]
    assert len(weights) == 16
    assert max(weight.abs().max().item() for weight in weights) == 0


@pytest.mark.parametrize("name", ["vit_tiny_patch8", "resnet18"])
def test_heads_have_the_published_layers(name: str) -> None:
    moco = build_moco(small_recipe(encoder={"name": name, "image_size": 32}))
    projector = [m for m in moco.projector if not isinstance(m, nn.ReLU)]
    assert len(projector) == (4 if name == "resnet18" else 6)
    assert len([m for m in moco.predictor if isinstance(m, nn.Linear)]) == 2
    for head in (moco.projector, moco.predictor):
        assert all(m.bias is None for m in head if isinstance(m, nn.Linear))
        norms = [m for m in head if isinstance(m, nn.BatchNorm1d)]
        assert [norm.affine for norm in norms] == [True] * (len(norms) - 1) + [False]
        assert isinstance(head[-1], nn.BatchNorm1d)


def test_momentum_networks_start_as_copies_without_gradient() -> None:
    moco = build_moco(small_recipe())
    for module, momentum_module in ((moco.encoder, moco.momentum_encoder), (moco.projector, moco.momentum_projector)):
        state, momentum_state = module.state_dict(), momentum_module.state_dict()
        assert list(state) == list(momentum_state)
        assert all(torch.equal(value, momentum_state[name]) for name, value in state.items())
        assert not any(p.requires_grad for p in momentum_module.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch8", "resnet18"])
def test_features_do_not_keep_the_memory_of_other_tokens(name: str) -> None:
    features = build_encoder(Encoder(name=name, image_size=32))(torch.rand(2, 3, 32, 32))
    assert features.untyped_storage().nbytes() == features.numel() * features.itemsize
