"""MoCo v3's networks: encoder, projector and predictor, and the momentum side that makes the keys."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moco_accel.networks.collectives import GlobalBatchNorm1d, rank, world_size
from moco_accel.networks.encoders import build_encoder, feature_dim, recomputed_apart
from moco_accel.networks.loss import contrastive_loss, feature_std
from moco_accel.networks.sharding import Shards, is_divided, local, own_part, share_gradient
from moco_accel.processes.phases import tick
from moco_accel.recipe.constants import RESNET_NAMES
from moco_accel.recipe.schema import Recipe

View = Sequence[Tensor]
"""One view of a device's tiles, as micro-batches of pixels `[tiles, bands, height, width]`.

A list of tensors is one; so is `augment.AugmentedView`, which makes a micro-batch anew each time it is asked for.
"""


_ALIGNED = 64  # numbers: where each parameter's gradient may begin, for fused kernels to read several at a time


def build_moco(recipe: Recipe) -> MoCo:
    """The networks a recipe names, freshly initialised from torch's global random state."""
    return MoCo(recipe)


class MoCo(nn.Module):
    """Query side (encoder, projector, predictor) and momentum side (momentum encoder, momentum projector)."""

    queue: Tensor
    queue_start: Tensor
    query_side_moved: Tensor
    gradient: Tensor
    """Of all that is `trained` in one, once `make_room_for_gradients` has been called."""
    trained: dict[str, nn.Parameter]
    """What the optimizer updates: the trainable parameters by name, or this process's part of each."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.temperature = recipe.moco.temperature
        self.keep_last_micro_batch = recipe.memory.keep_last_micro_batch
        self.shards: Shards | None = None
        self._divided_over_nodes = recipe.hardware.num_nodes if recipe.memory.fully_shard else None
        self.encoder = build_encoder(recipe.encoder, recipe.memory.activation_checkpointing)
        self.projector = _build_projector(recipe)
        self.predictor = _build_predictor(recipe)
        self.momentum_encoder = build_encoder(recipe.encoder)
        self.momentum_projector = _build_projector(recipe)
        self.momentum_encoder.load_state_dict(self.encoder.state_dict())
        self.momentum_projector.load_state_dict(self.projector.state_dict())
        self.momentum_encoder.requires_grad_(False)
        self.momentum_projector.requires_grad_(False)
        self.trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        queue = functional.normalize(torch.randn(recipe.moco.queue_size, recipe.moco.output_dim), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("queue_start", torch.zeros((), dtype=torch.long))
        # false after a step that a gradient scaler skipped; a buffer, so that checkpoints hold it
        self.register_buffer("query_side_moved", torch.ones((), dtype=torch.bool))

    def forward(self, view: View, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of one view's queries against the gathered `keys` of the other; and the features' spread."""
        features = encode(self.encoder, view, self.keep_last_micro_batch)
        queries = self.predictor(self.projector(features))
        assert len(keys) == len(queries) * world_size(), f"{len(keys)} keys for {len(queries)} queries"
        loss = contrastive_loss(queries, keys, self.temperature, len(queries) * rank(), self.queue)
        return loss, feature_std(features.detach())

    def make_room_for_gradients(self) -> None:
        """One buffer, of which each parameter's gradient is a view: zeroed at once, sent at once, never dropped."""
        trainable = dict(named for named in self.named_parameters() if named[1].requires_grad)
        whole_first = sorted(trainable.items(), key=lambda named: is_divided(named[1]))
        self.trained = {name: own_part(parameter) for name, parameter in whole_first}
        sizes = [-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in self.trained.values()]
        self.gradient = next(iter(self.trained.values())).new_zeros(sum(sizes))
        for (name, part), start in zip(self.trained.items(), accumulate(sizes, initial=0), strict=False):
            part.grad = self.gradient.as_strided(part.shape, part.stride(), start)
            share_gradient(trainable[name], part)
        self._whole_numbers = sum(size for size, (_, p) in zip(sizes, whole_first, strict=True) if not is_divided(p))

    def gradients(self) -> list[tuple[Tensor, Any]]:
        """What is averaged over which group of processes: None is all; FSDP2 has averaged shards over a node's."""
        if self.shards is None:
            return [(self.gradient, None)]
        whole, divided = self.gradient.tensor_split([self._whole_numbers])
        return [(whole, None)] + ([(divided, self.shards.between_nodes)] if self.shards.between_nodes else [])

    def divide(self, device_type: str) -> None:
        """Leave this process its part of what the recipe divides; see `sharding`."""
        if self._divided_over_nodes is not None:
            self.trained = {}  # whole parameters that somebody held would stay on the device
            encoders = [self.encoder, self.momentum_encoder]
            heads = [self.projector, self.predictor, self.momentum_projector]
            self.shards = Shards(encoders, heads, device_type, self._divided_over_nodes)

    def placed(self, encoder: nn.Module, device: torch.device) -> nn.Module:
        """Another encoder of the kind on the device, divided as this one is."""
        return (self.shards.divided(encoder) if self.shards else encoder).to(device)

    @property
    def momentum_version(self) -> int:
        """Grows whenever the momentum side's parameters change."""
        return local(next(self.momentum_encoder.parameters()))._version

    @torch.no_grad()
    def keys(self, view: View) -> Tensor:
        """Keys `[tiles, output_dim]` of one view from the momentum side, in train mode, without gradient."""
        return self.momentum_projector(encode(self.momentum_encoder, view))  # type: ignore[no-any-return]

    @torch.no_grad()
    def update_momentum_side(self, coefficient: float) -> None:
        """p_k = m p_k + (1 - m) p_q over parameters. BatchNorm buffers of the momentum side are its own."""
        for momentum_module, module in (
            (self.momentum_encoder, self.encoder),
            (self.momentum_projector, self.projector),
        ):
            moved, towards = ([local(p) for p in side.parameters()] for side in (momentum_module, module))
            torch._foreach_lerp_(moved, towards, 1 - coefficient)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest of the queue by `keys` (all processes'), normalised."""
        if not len(self.queue):
            return
        places = (self.queue_start + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = functional.normalize(keys.to(self.queue.dtype), dim=1)
        self.queue_start.copy_((self.queue_start + len(keys)) % len(self.queue))


def encode(encoder: nn.Module, view: View, keep_last: bool = True) -> Tensor:
    """Features of a whole view, micro-batch by micro-batch.

    With gradient and more than one micro-batch, each is recomputed in backward, in a backward of its own: one
    micro-batch's activations live at a time, its gradients are added up as they come, and the gradient is that of the
    whole (gradient caching at the features). Backward begins with the last one: with `keep_last` its activations wait
    for that, and its second forward is saved.
    """
    recomputed_count = len(view) - (keep_last or len(view) == 1) if torch.is_grad_enabled() else 0
    anchor = torch.zeros((), requires_grad=True)  # checkpoint wants an input with gradient; indices have none

    def micro_batch_features(_: Tensor, index: int) -> Tensor:  # by index, so that a number is kept and not the pixels
        tick()
        return encoder(view[index])  # type: ignore[no-any-return]

    features = [recomputed_apart(micro_batch_features, encoder, anchor, index) for index in range(recomputed_count)]
    features += [micro_batch_features(anchor, index) for index in range(recomputed_count, len(view))]
    return torch.cat(features)


def _build_projector(recipe: Recipe) -> nn.Sequential:
    hidden, output = recipe.moco.projector_hidden_dim, recipe.moco.output_dim
    hidden_layers = 1 if recipe.encoder.name in RESNET_NAMES else 2
    widths = [feature_dim(recipe.encoder.name), *[hidden] * hidden_layers, output]
    return _build_head(widths, output_norm=True)


def _build_predictor(recipe: Recipe) -> nn.Sequential:
    widths = [recipe.moco.output_dim, recipe.moco.projector_hidden_dim, recipe.moco.output_dim]
    return _build_head(widths, output_norm=recipe.moco.predictor_output_norm)


def _build_head(widths: list[int], output_norm: bool) -> nn.Sequential:
    """Linear layers without bias; BatchNorm and ReLU between them; BatchNorm without affine on the output."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=False), GlobalBatchNorm1d(fan_out), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    if output_norm:
        layers.append(GlobalBatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)
