"""State of an optimizer as named tensors: `encoder.weight/exp_avg`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moco_accel.checkpoints.tensor_files import Layout
from moco_accel.networks.moco import MoCo
from moco_accel.networks.sharding import EIGHT_BIT_BLOCK_SIZE, EIGHT_BIT_MIN_SIZE, is_sharded, local_rows, to_dtensor

_REPLICATED = {"step", "qmap1", "qmap2"}  # state that is not sharded, even if its parameter is


def optimizer_layout(name: str, model: nn.Module) -> Layout:
    """Return the state that the optimizer `name` has after one step of `model`, which may be on the meta device."""
    return {
        f"{parameter_name}/{state}": layout
        for parameter_name, parameter in model.named_parameters()
        if parameter.requires_grad
        for state, layout in _state_layout(name, parameter).items()
    }


def optimizer_tensors(model: MoCo, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state; empty before its first step.

    Python integers become int64 tensors. The state of a sharded parameter becomes a DTensor.
    """
    parameters = dict(model.named_parameters())
    return {
        f"{name}/{state}": to_dtensor(value, parameters[name])
        if is_sharded(parameters[name]) and state not in _REPLICATED
        else torch.as_tensor(value)
        for name, local in model.optimized_parameters.items()
        for state, value in optimizer.state.get(local, {}).items()
    }


def restore_optimizer(model: MoCo, optimizer: torch.optim.Optimizer, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Restore the state that `optimizer_tensors` returned, one tensor at a time.

    Options such as lr and weight decay come from the recipe and are not restored.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in tensors:
        parameter_name, _, state = name.rpartition("/")
        local = model.optimized_parameters[parameter_name]
        own = tensor if state in _REPLICATED else local_rows(tensor, parameters[parameter_name])
        optimizer.state[local][state] = _placed(own, local)


def _placed(tensor: Tensor, parameter: nn.Parameter) -> Tensor | int:
    if tensor.dtype == torch.int64 and not tensor.shape:
        return int(tensor)
    if tensor.shape == parameter.shape:  # fused kernels need the strides of the parameter
        return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return tensor.to(parameter.device, copy=True)


def _state_layout(optimizer: str, parameter: nn.Parameter) -> Layout:
    shape, elements = tuple(parameter.shape), parameter.numel()
    if optimizer == "adamw":
        moments: Layout = dict.fromkeys(("exp_avg", "exp_avg_sq"), (parameter.dtype, shape))
        return {"step": (torch.float32, ()), **moments}
    if optimizer == "lars":
        return {"velocity": (parameter.dtype, shape)}
    large = elements >= EIGHT_BIT_MIN_SIZE
    layout: Layout = {"step": (torch.int64, ())}
    for moment in "12":
        layout[f"state{moment}"] = (torch.uint8 if large else torch.float32, shape)
        if large:
            layout[f"absmax{moment}"] = (torch.float32, (-(-elements // EIGHT_BIT_BLOCK_SIZE),))
            layout[f"qmap{moment}"] = (torch.float32, (EIGHT_BIT_BLOCK_SIZE,))
    return layout
