"""Shard the networks over the devices of a node with FSDP2: matrices, their gradients and optimizer state.

`fully_shard` gathers the matrices of a block before it runs and frees them afterwards; the gradient does not change.
Vectors (biases, norms) stay replicated: they are small, and 8-bit optimizers would keep their shards in 32 bits.
Accelerate's FSDP2 support is not used: it makes MoCo one unit, so that its two encoders cannot run separately, and
reduces in 16 bits under bf16 by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from moco_accel.networks.encoders import transformer_blocks

EIGHT_BIT_BLOCK_SIZE = 256  # elements that share a scale in bitsandbytes' optimizers; a shard holds whole blocks
EIGHT_BIT_MIN_SIZE = 4096  # elements; 8-bit optimizers keep the state of smaller tensors in 32 bits


class Sharding:
    """Shards of a MoCo over the devices of each node, replicated over nodes.

    Attributes:
        between_nodes: Process group of the ranks that hold the same shard; None on a single node.
    """

    def __init__(
        self, encoders: Sequence[nn.Module], heads: Sequence[nn.Module], device_type: str, num_nodes: int
    ) -> None:
        """Shard `encoders` and `heads` in place."""
        per_node = dist.get_world_size() // num_nodes
        mesh = device_mesh.init_device_mesh(device_type, (num_nodes, per_node), mesh_dim_names=("node", "device"))
        self._mesh, self.between_nodes = mesh["device"], mesh.get_group("node") if num_nodes > 1 else None
        # encoders share a root: backward of the encoder then clears what FSDP2 records of momentum forwards
        self._roots = [self._unite(map(self.sharded, encoders)), self._unite(map(self._shard, heads))]

    def sharded(self, encoder: nn.Module) -> nn.Module:
        """Shard `encoder` in place, one FSDP unit per transformer block, and return it."""
        before: FSDPModule | None = None
        for block in transformer_blocks(encoder):
            unit = self._shard(block)
            unit.register_forward_hook(_reshard_in_backward)  # type: ignore[attr-defined]
            if before is not None:  # the next block in backward
                unit.set_modules_to_backward_prefetch([before])
            before = unit
        return self._shard(encoder)  # type: ignore[return-value]

    def _unite(self, modules: Iterable[object]) -> nn.Module:
        root: nn.Module = nn.Sequential(*modules)  # type: ignore[call-overload] # never run; FSDP needs a module as root
        self._shard(root)
        fully_shard.state(root)._lazy_init()  # type: ignore[attr-defined]
        return root

    def _shard(self, module: nn.Module) -> FSDPModule:
        replicated = {parameter for parameter in module.parameters() if not _can_shard(parameter, self._mesh.size())}
        return fully_shard(module, mesh=self._mesh, reshard_after_forward=True, ignored_params=replicated)


def is_sharded(tensor: Tensor) -> bool:
    """Return True for a DTensor."""
    return isinstance(tensor, DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor; any other tensor unchanged."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def to_dtensor(shard: Tensor | None, reference: Tensor) -> DTensor:
    """Return the DTensor of all ranks' shards, sharded by rows on the mesh of `reference`."""
    assert shard is not None and isinstance(reference, DTensor)  # noqa: PT018
    return DTensor.from_local(shard, reference.device_mesh, [Shard(0)], run_check=False)


def local_rows(full: Tensor, reference: Tensor) -> Tensor:
    """Return this rank's rows of `full` if `reference` is sharded; else all rows."""
    if not isinstance(reference, DTensor):
        return full
    return full.chunk(reference.device_mesh.size())[reference.device_mesh.get_local_rank()]


def full_tensor(tensor: Tensor, exchange_status: Callable[[], object] | None = None) -> Tensor:
    """Return the full tensor of all shards; all ranks must call it for the same tensors in the same order.

    A rank that fails between `exchange_status` and the collective leaves the others waiting; the watchdog ends them.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    if exchange_status is not None:
        exchange_status()
    return tensor.full_tensor()


def _can_shard(parameter: Tensor, devices: int) -> bool:
    if is_sharded(parameter):
        return True
    rows, elements = (*parameter.shape, 0)[0], parameter.numel() // devices
    whole_blocks = rows % devices == 0 and elements % EIGHT_BIT_BLOCK_SIZE == 0
    return parameter.ndim > 1 and whole_blocks and elements >= EIGHT_BIT_MIN_SIZE


def _reshard_in_backward(block: nn.Module, _: object, __: object) -> None:
    """Free the full parameters of a recomputed block, as after its first forward."""
    if torch._C._current_graph_task_id() != -1:  # type: ignore[attr-defined]
        assert isinstance(block, FSDPModule)
        block.reshard()
