"""MoCo v3 steps built from components of other libraries, on our encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from moco_accel.networks.encoders import build_encoder, feature_dim
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.schema import Recipe
from moco_accel.training.optimizers import build_optimizer

Step = Callable[[], float]


def lightly_step(recipe: Recipe, views: Tensor) -> tuple[str, Step]:
    """Return the version of lightly, and a step with its heads, loss and momentum update in the order of the paper."""
    import lightly
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    moco, layers = recipe.moco, 2 if recipe.encoder.name in RESNET_NAMES else 3
    width, hidden, output = feature_dim(recipe.encoder.name), moco.projector_hidden_dim, moco.output_dim
    query = nn.Sequential(
        build_encoder(recipe.encoder), MoCoProjectionHead(width, hidden, output, layers, batch_norm=True)
    )
    momentum = copy.deepcopy(query)
    deactivate_requires_grad(momentum)
    predictor = MoCoProjectionHead(output, hidden, output, 2, batch_norm=True)
    criterion = NTXentLoss(moco.temperature)
    optimizer = build_optimizer(recipe, nn.ModuleList([query, predictor]))

    def step() -> float:
        optimizer.zero_grad()
        q1, q2 = predictor(query(views[0])), predictor(query(views[1]))
        with torch.no_grad():
            update_momentum(query, momentum, moco.momentum_coefficient)
            k1, k2 = momentum(views[0]), momentum(views[1])
        loss = criterion(q1, k2) + criterion(q2, k1)
        loss.backward()
        optimizer.step()
        return float(loss)

    return lightly.__version__, step


def torchgeo_step(recipe: Recipe, views: Tensor) -> tuple[str, Step]:
    """Return the version of torchgeo, and a step of its MoCoTask (version 3) with our encoder, without augmentation."""
    import torchgeo
    from torchgeo.trainers import MoCoTask

    resnet = recipe.encoder.name in RESNET_NAMES
    # the task builds its heads for a timm model of the same width
    model = recipe.encoder.name if resnet else f"{recipe.encoder.name}_224"
    task = MoCoTask(
        model, version=3, layers=2 if resnet else 3, hidden_dim=recipe.moco.projector_hidden_dim,
        output_dim=recipe.moco.output_dim, lr=recipe.optimizer.lr, weight_decay=recipe.optimizer.weight_decay,
        temperature=recipe.moco.temperature, augmentation1=nn.Identity(), augmentation2=nn.Identity(),
    )  # fmt: skip
    task.backbone = build_encoder(recipe.encoder)
    task.backbone_momentum = copy.deepcopy(task.backbone).requires_grad_(False)
    task._trainer = SimpleNamespace(max_epochs=300, current_epoch=0)
    task.log = lambda *arguments, **options: None
    optimizer = build_optimizer(recipe, task)
    batch = {"image": torch.cat([views[0], views[1]], dim=1)}

    def step() -> float:
        optimizer.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        return float(loss)

    return torchgeo.__version__, step


OTHERS: dict[str, Callable[[Recipe, Tensor], tuple[str, Step]]] = {
    "lightly components": lightly_step,
    "torchgeo MoCoTask": torchgeo_step,
}
