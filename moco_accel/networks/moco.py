"""The MoCo v3 model: encoder, projector and predictor, with momentum encoder and momentum projector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moco_accel.networks.collectives import GlobalBatchNorm1d, rank, world_size
from moco_accel.networks.encoders import build_encoder, checkpoint_reentrant, feature_dim
from moco_accel.networks.loss import contrastive_loss, feature_std
from moco_accel.networks.sharding import Sharding, is_sharded, local_tensor, to_dtensor
from moco_accel.processes.phases import tick
from moco_accel.recipe.encoder_names import RESNET_NAMES
from moco_accel.recipe.schema import Recipe

View = Sequence[Tensor]
"""One view of a device's tiles as micro-batches of pixels [tiles, bands, height, width].

Either a list of tensors, or an `AugmentedView`, which augments a micro-batch on each access.
"""

_GRADIENT_ALIGNMENT = 64  # elements; fused kernels then read several at a time


def build_moco(recipe: Recipe) -> MoCo:
    """Build freshly initialised networks; the weights come from torch's global random state."""
    return MoCo(recipe)


class MoCo(nn.Module):
    """Networks of MoCo v3: queries from encoder, projector and predictor, keys from the momentum encoder and projector.

    Attributes:
        queue: Normalised keys [queue_size, output_dim] of earlier steps.
        queue_start: Row of the oldest key.
        query_side_moved: False after a step that the gradient scaler skipped; a buffer, so that checkpoints hold it.
        gradient_buffer: Gradients of all optimized parameters, set by `allocate_gradients`.
        optimized_parameters: Trainable parameters by name; with sharding, this rank's shards of them.
        sharding: None if every rank holds the full networks.
    """

    queue: Tensor
    queue_start: Tensor
    query_side_moved: Tensor
    gradient_buffer: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.temperature = recipe.moco.temperature
        self.keep_last_micro_batch = recipe.memory.keep_last_micro_batch
        self.sharding: Sharding | None = None
        self._shard_over_nodes = recipe.hardware.num_nodes if recipe.memory.fully_shard else None
        self.encoder = build_encoder(recipe.encoder, recipe.memory.activation_checkpointing)
        self.projector = _build_projector(recipe)
        self.predictor = _build_predictor(recipe)
        self.momentum_encoder = build_encoder(recipe.encoder)
        self.momentum_projector = _build_projector(recipe)
        self.momentum_encoder.load_state_dict(self.encoder.state_dict())
        self.momentum_projector.load_state_dict(self.projector.state_dict())
        self.momentum_encoder.requires_grad_(False)
        self.momentum_projector.requires_grad_(False)
        self.optimized_parameters = self._trainable_parameters()
        queue = functional.normalize(torch.randn(recipe.moco.queue_size, recipe.moco.output_dim), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("queue_start", torch.zeros((), dtype=torch.long))
        self.register_buffer("query_side_moved", torch.ones((), dtype=torch.bool))

    def forward(self, view: View, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of one view's queries against `keys`, and the spread of the view's features.

        Args:
            keys: Keys [ranks * tiles, output_dim] of the other view, gathered from all ranks.
        """
        features = encode(self.encoder, view, self.keep_last_micro_batch)
        queries = self.predictor(self.projector(features))
        assert len(keys) == len(queries) * world_size(), f"{len(keys)} keys for {len(queries)} queries"
        loss = contrastive_loss(queries, keys, self.temperature, len(queries) * rank(), self.queue)
        return loss, feature_std(features.detach())

    @torch.no_grad()
    def keys(self, view: View) -> Tensor:
        """Return keys [tiles, output_dim] of one view, in train mode and without gradient."""
        return self.momentum_projector(encode(self.momentum_encoder, view))  # type: ignore[no-any-return]

    @torch.no_grad()
    def update_momentum_encoder(self, coefficient: float) -> None:
        """Update the parameters of the momentum encoder and projector: p_k = m p_k + (1 - m) p_q.

        BatchNorm buffers are not averaged; the momentum networks have their own.
        """
        for momentum_module, module in (
            (self.momentum_encoder, self.encoder),
            (self.momentum_projector, self.projector),
        ):
            averaged, current = ([local_tensor(p) for p in each.parameters()] for each in (momentum_module, module))
            torch._foreach_lerp_(averaged, current, 1 - coefficient)

    @property
    def momentum_version(self) -> int:
        """A number that grows whenever the momentum encoder's parameters change."""
        return local_tensor(next(self.momentum_encoder.parameters()))._version

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys of the queue by `keys` of all ranks, normalised."""
        if not len(self.queue):
            return
        rows = (self.queue_start + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = functional.normalize(keys.to(self.queue.dtype), dim=1)
        self.queue_start.copy_((self.queue_start + len(keys)) % len(self.queue))

    def shard(self, device_type: str) -> None:
        """Keep only this rank's shards if the recipe sets `memory.fully_shard`; see `Sharding`."""
        if self._shard_over_nodes is not None:
            self.optimized_parameters = {}  # a reference would keep the full parameters on the device
            encoders = [self.encoder, self.momentum_encoder]
            heads = [self.projector, self.predictor, self.momentum_projector]
            self.sharding = Sharding(encoders, heads, device_type, self._shard_over_nodes)

    def place_encoder(self, encoder: nn.Module, device: torch.device) -> nn.Module:
        """Return another encoder of the same kind on `device`, sharded as this one."""
        return (self.sharding.sharded(encoder) if self.sharding else encoder).to(device)

    def allocate_gradients(self) -> None:
        """Allocate one buffer for all gradients: it is zeroed and averaged at once, and never freed."""
        trainable = self._trainable_parameters()
        replicated_first = sorted(trainable.items(), key=lambda named: is_sharded(named[1]))
        self.optimized_parameters = {
            name: nn.Parameter(local_tensor(parameter)) if is_sharded(parameter) else parameter
            for name, parameter in replicated_first
        }
        parameters = self.optimized_parameters.values()
        sizes = [-(-parameter.numel() // _GRADIENT_ALIGNMENT) * _GRADIENT_ALIGNMENT for parameter in parameters]
        self.gradient_buffer = next(iter(parameters)).new_zeros(sum(sizes))
        self._replicated_size = start = 0
        for (name, parameter), size in zip(self.optimized_parameters.items(), sizes, strict=True):
            parameter.grad = self.gradient_buffer.as_strided(parameter.shape, parameter.stride(), start)
            start += size
            if is_sharded(trainable[name]):  # FSDP2 then accumulates in the buffer
                trainable[name].grad = to_dtensor(parameter.grad, trainable[name])
            else:
                self._replicated_size = start

    def gradients_by_group(self) -> list[tuple[Tensor, Any]]:
        """Return the gradients to average, each with its process group; None means all ranks.

        FSDP2 has already averaged sharded gradients over the devices of a node.
        """
        if self.sharding is None:
            return [(self.gradient_buffer, None)]
        replicated, sharded = self.gradient_buffer.tensor_split([self._replicated_size])
        between_nodes = self.sharding.between_nodes
        return [(replicated, None)] + ([(sharded, between_nodes)] if between_nodes else [])

    def _trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def encode(encoder: nn.Module, view: View, keep_last: bool = True) -> Tensor:
    """Return the features of a view, computed one micro-batch at a time.

    With gradient, each micro-batch is recomputed in a nested backward, so that the activations of one micro-batch
    exist at a time. The gradient equals that of the whole batch (gradient caching at the features).

    Args:
        keep_last: Keep the activations of the last micro-batch, where backward starts, instead of recomputing them.
    """
    recomputed = len(view) - (keep_last or len(view) == 1) if torch.is_grad_enabled() else 0
    anchor = torch.zeros((), requires_grad=True)  # checkpoint needs an input with gradient

    def encode_micro_batch(_: Tensor, index: int) -> Tensor:  # takes an index, so that checkpoint does not keep pixels
        tick()
        return encoder(view[index])  # type: ignore[no-any-return]

    features = [checkpoint_reentrant(encode_micro_batch, encoder, anchor, index) for index in range(recomputed)]
    features += [encode_micro_batch(anchor, index) for index in range(recomputed, len(view))]
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
    """Build linear layers without bias; BatchNorm and ReLU between them, BatchNorm without affine at the end."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=False), GlobalBatchNorm1d(fan_out), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    if output_norm:
        layers.append(GlobalBatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)
