"""Check the networks that a recipe builds: heads, patch projection, momentum side and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from moco_accel.networks.collectives import GlobalBatchNorm1d
from moco_accel.networks.encoders import patch_projection
from moco_accel.networks.moco import MoCo
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer


@dataclass(frozen=True)
class Check:
    """What must hold, if it does, and the numbers found."""

    name: str
    passed: bool
    found: str


def check_networks(moco: MoCo, recipe: Recipe) -> Iterator[Check]:
    """Check the heads against the paper, and patch projection, momentum side and optimizer against the recipe."""
    hidden_layers = 1 if recipe.encoder.name in RESNET_NAMES else 2
    yield _check_head("projector", moco.projector, recipe, hidden_layers, True)
    yield _check_head("predictor", moco.predictor, recipe, 1, recipe.moco.predictor_output_norm)
    yield _check_patch_projection(moco, recipe)
    sides = (moco.encoder, moco.projector), (moco.momentum_encoder, moco.momentum_projector)
    query, momentum = ([p for module in side for p in module.parameters()] for side in sides)
    difference = max((a - b).abs().max().item() for a, b in zip(query, momentum, strict=True))
    trainable = sum(p.requires_grad for p in momentum)
    yield Check(
        "momentum side equals the query side at start, untrainable",
        difference == 0 and trainable == 0,
        f"largest difference {difference:g} over {len(query)} tensors; {trainable} trainable",
    )
    optimized = {id(p) for group in build_optimizer(recipe, moco).param_groups for p in group["params"]}
    expected = {id(p) for p in moco.parameters() if p.requires_grad}
    count = sum(p.numel() for p in moco.parameters() if id(p) in optimized)
    yield Check(
        "the optimizer holds every trainable parameter and no other",
        optimized == expected and not optimized & {id(p) for p in momentum},
        f"{len(optimized)} tensors, {count:,} parameters; {len(optimized ^ expected)} wrong",
    )


def _check_head(name: str, head: nn.Sequential, recipe: Recipe, hidden_layers: int, output_norm: bool) -> Check:
    """A hidden layer is Linear without bias, affine BatchNorm, ReLU; the last one Linear, BatchNorm without affine."""
    hidden, output = recipe.moco.projector_hidden_dim, recipe.moco.output_dim
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    kinds = [nn.Linear, GlobalBatchNorm1d, nn.ReLU] * hidden_layers + [nn.Linear] + [GlobalBatchNorm1d] * output_norm
    norms = [layer for layer in head if isinstance(layer, GlobalBatchNorm1d)]
    affine = [norm.weight is not None for norm in norms]
    biases = sum(linear.bias is not None for linear in linears)
    widths = [linear.out_features for linear in linears]
    last = f"last BatchNorm affine={affine[-1]}" if isinstance(head[-1], GlobalBatchNorm1d) else "no BatchNorm last"
    return Check(
        f"{name}: {hidden_layers + 1} layers, BatchNorm last{'' if output_norm else ' switched off'}, no bias",
        [type(layer) for layer in head] == kinds
        and affine == [True] * hidden_layers + [False] * output_norm
        and biases == 0
        and widths == [hidden] * hidden_layers + [output],
        f"{linears[0].in_features} → {' → '.join(map(str, widths))}; {last}; {biases} biases",
    )


def _check_patch_projection(moco: MoCo, recipe: Recipe) -> Check:
    expected = "frozen" if recipe.encoder.freeze_patch_projection else "trained"
    name = f"patch projection {expected}"
    try:
        projection = patch_projection(moco.encoder)
    except LookupError as error:
        return Check(name, False, str(error))
    states = {("trained" if p.requires_grad else "frozen") for p in projection.parameters()}
    kernel = "×".join(map(str, projection.weight.shape))
    return Check(name, states == {expected}, f"weight {kernel}: {', '.join(sorted(states))}")
