"""Build encoders: ViT from transformers and ResNet from torchvision, for any number of bands.

An encoder maps pixels [tiles, bands, height, width] to features [tiles, feature_dim].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from moco_accel.recipe.encoder_names import RESNET_NAMES, RESNET_SIZES, VIT_SIZES
from moco_accel.recipe.schema import Encoder as EncoderConfig


def feature_dim(name: str) -> int:
    """Return the width of the features of encoder `name`."""
    if name in RESNET_SIZES:
        return 2048 if RESNET_SIZES[name].bottleneck else 512
    return VIT_SIZES[name.split("_")[1]].width


def build_encoder(config: EncoderConfig, activation_checkpointing: bool = False) -> nn.Module:
    """Build a freshly initialised encoder; the weights come from torch's global random state.

    Args:
        activation_checkpointing: Keep only the inputs of blocks for backward; the gradient is the same.
    """
    build = _build_resnet if config.name in RESNET_NAMES else _build_vit
    encoder = build(config, activation_checkpointing)
    if config.freeze_patch_projection:
        patch_projection(encoder).requires_grad_(False)
    return encoder


def patch_projection(encoder: nn.Module) -> nn.Conv2d:
    """Return the first layer: the patch projection of a ViT, conv1 of a ResNet.

    Raises:
        LookupError: If `encoder` has neither.
    """
    layers = dict(encoder.named_modules())
    layer = layers.get("vit.embeddings.patch_embeddings.projection", layers.get("conv1"))
    if not isinstance(layer, nn.Conv2d):
        raise LookupError(f"{type(encoder).__name__} has no patch projection to freeze")
    return layer


def transformer_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a ViT, first to last."""
    from transformers.models.vit.modeling_vit import ViTLayer

    return [module for module in encoder.modules() if isinstance(module, ViTLayer)]


def _checkpoint_block(function: Callable[..., Tensor], module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Call `function`; recompute its activations in backward, without updating the running statistics of `module`."""
    options: Any = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), _frozen_running_statistics(module))}
    output: Tensor = checkpoint(function, *args, **options, **kwargs)
    return output


def checkpoint_reentrant(function: Callable[..., Tensor], module: nn.Module, *args: Any) -> Tensor:
    """Call `function`, and recompute its activations in a nested backward for each call (`use_reentrant=True`).

    Recomputation does not update the running statistics of `module`. A single backward over several calls holds the
    summed gradient of each parameter until the last call has added its own. A nested backward adds it to `.grad` after
    each call. One of `args` must require gradient.
    """

    def compute(*args: Any) -> Tensor:
        with _frozen_running_statistics(module) if torch.is_grad_enabled() else nullcontext():
            return function(*args)  # first without gradient, then recomputed with it

    output: Tensor = checkpoint(compute, *args, use_reentrant=True)
    return output


def _checkpoint_blocks(encoder: nn.Module, block_type: type[nn.Module]) -> None:
    for block in encoder.modules():
        if isinstance(block, block_type):
            block.forward = partial(_checkpoint_block, block.forward, block)


@contextmanager
def _frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    """Set BatchNorm momentum to 0: running statistics stay, and backward saves the same tensors as before."""
    norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class VisionTransformer(nn.Module):
    """ViT of transformers that returns the CLS token after the final norm."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [tiles, feature_dim]."""
        # a copy, because a view of the CLS tokens would keep the memory of all tokens
        return cast(Tensor, self.vit(pixels).last_hidden_state[:, 0].contiguous())


def _build_vit(config: EncoderConfig, activation_checkpointing: bool) -> nn.Module:
    from transformers import ViTConfig, ViTModel
    from transformers.initialization import no_init_weights
    from transformers.models.vit.modeling_vit import ViTLayer

    size, patch = config.name.split("_")[1:]
    width, layers, heads, _ = VIT_SIZES[size]
    settings = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=config.image_size,
        patch_size=int(patch.removeprefix("patch")),
        num_channels=config.bands,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    # transformers' initialisation depends on data, which fake tensors do not support, and differs from MoCo v3's
    with no_init_weights():
        vit = ViTModel(settings, add_pooling_layer=False)
    _initialise_vit(vit)
    for layer in vit.layers:
        layer.layernorm_before.register_forward_hook(_cast_to_autocast_dtype)
    if activation_checkpointing:
        _checkpoint_blocks(vit, ViTLayer)
    return VisionTransformer(vit)


def _cast_to_autocast_dtype(_: nn.Module, __: Any, normed: Tensor) -> Tensor:
    """Cast a norm's output once under autocast; otherwise query, key and value each cast and keep a copy."""
    device = normed.device.type
    return normed.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normed


@torch.no_grad()
def _initialise_vit(vit: Any) -> None:
    """Initialise as MoCo v3: Xavier-uniform linear layers (q, k and v separately), fixed sin-cos positions."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(vit.embeddings.cls_token, std=1e-6)
    projection = vit.embeddings.patch_embeddings.projection
    bands, patch = projection.in_channels, projection.kernel_size[0]
    bound = math.sqrt(6 / (bands * patch**2 + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)
    positions = vit.embeddings.position_embeddings
    side = vit.config.image_size // vit.config.patch_size
    positions.copy_(sincos_position_embedding(side, positions.shape[-1]))
    positions.requires_grad_(False)


def sincos_position_embedding(side: int, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Return the fixed 2-D position embedding [1, 1 + side², dim]: sin w, cos w, sin h, cos h; 0 for the CLS token."""
    # in float64, so that the default dtype does not change it
    frequencies = temperature ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    rows = angles[:, None].expand(side, side, -1).flatten(0, 1)
    columns = angles[None, :].expand(side, side, -1).flatten(0, 1)
    patches = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), patches])[None].to(torch.get_default_dtype())


def _build_resnet(config: EncoderConfig, activation_checkpointing: bool) -> nn.Module:
    size = RESNET_SIZES[config.name]
    block: type[nn.Module] = Bottleneck if size.bottleneck else BasicBlock
    resnet: Any = torchvision.models.ResNet(block, list(size.blocks), zero_init_residual=True)
    resnet.fc = nn.Identity()
    if config.bands != 3:
        resnet.conv1 = nn.Conv2d(config.bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    if activation_checkpointing:
        _checkpoint_blocks(resnet, block)
    # convolutions run faster at the same memory: the forward pass measured twice as fast on a CPU
    return cast(nn.Module, resnet.to(memory_format=torch.channels_last))
