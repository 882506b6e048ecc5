"""One of several gloo processes: prints what all of them are told. argv: how many count as few."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from moco_accel.processes import control_group as agreement_module
from moco_accel.processes.control_group import Agreement


def main() -> None:
    torch.set_num_threads(1)
    agreement_module._FEW = int(sys.argv[1])
    dist.init_process_group("gloo")
    agreement, rank, size = Agreement(), dist.get_rank(), dist.get_world_size()
    told = [[agreement.worst(int(rank == one)), agreement.any_of(1 << rank)] for one in range(size)]
    told.append([agreement.worst(0), agreement.any_of(0)])
    said: list[object] = [None] * size
    dist.all_gather_object(said, told)
    if rank == 0:
        print(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
