"""What an optimizer remembers of each parameter, as named tensors: "encoder.weight/exp_avg"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from moco_accel.checkpoints.tensor_files import Layout
from moco_accel.networks.moco import MoCo
from moco_accel.networks.sharding import BLOCK_OF_8_BITS, LEAST_IN_8_BITS, is_divided, like, part_of

_OF_ALL = {"step", "qmap1", "qmap2"}  # where processes divide a parameter, they divide all but these


def optimizer_layout(name: str, model: nn.Module) -> Layout:
    """All that the recipe's optimizer remembers after a step of `model`, which may be on the meta device."""
    return {
        f"{parameter_name}/{state}": found
        for parameter_name, parameter in trainable(model).items()
        for state, found in _remembered(name, parameter).items()
    }


def optimizer_tensors(model: MoCo, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What it remembers now: nothing before its first step. Numbers become int64 tensors; parts know their whole."""
    parameters = trainable(model)
    return {
        f"{name}/{state}": _whole(value if isinstance(value, Tensor) else torch.tensor(value), state, parameters[name])
        for name, part in model.trained.items()
        for state, value in optimizer.state.get(part, {}).items()
    }


def restore_optimizer(model: MoCo, optimizer: torch.optim.Optimizer, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Take in what `optimizer_tensors` gave, one tensor at a time. All else is the recipe's to say."""
    parameters = trainable(model)
    for name, tensor in tensors:
        parameter_name, _, state = name.rpartition("/")
        part = model.trained[parameter_name]
        own = part_of(tensor, parameters[parameter_name]) if state not in _OF_ALL else tensor
        optimizer.state[part][state] = _placed(own, part)


def _whole(part: Tensor, state: str, parameter: nn.Parameter) -> Tensor:
    return like(part, parameter) if is_divided(parameter) and state not in _OF_ALL else part


def trainable(model: nn.Module) -> Mapping[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _placed(tensor: Tensor, parameter: nn.Parameter) -> Tensor | int:
    if tensor.dtype == torch.int64 and not tensor.shape:
        return int(tensor)
    if tensor.shape == parameter.shape:  # fused kernels want the same strides
        return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return tensor.to(parameter.device, copy=True)


def _remembered(optimizer: str, parameter: nn.Parameter) -> Layout:
    shape, numbers = tuple(parameter.shape), parameter.numel()
    if optimizer == "adamw":
        moments: Layout = dict.fromkeys(("exp_avg", "exp_avg_sq"), (parameter.dtype, shape))
        return {"step": (torch.float32, ()), **moments}
    if optimizer == "lars":
        return {"velocity": (parameter.dtype, shape)}
    step: Layout = {"step": (torch.int64, ())}
    if numbers < LEAST_IN_8_BITS:
        return step | dict.fromkeys(("state1", "state2"), (torch.float32, shape))
    blocks = -(-numbers // BLOCK_OF_8_BITS)
    return {
        **step,
        **dict.fromkeys(("state1", "state2"), (torch.uint8, shape)),
        **dict.fromkeys(("absmax1", "absmax2"), (torch.float32, (blocks,))),
        **dict.fromkeys(("qmap1", "qmap2"), (torch.float32, (BLOCK_OF_8_BITS,))),
    }
