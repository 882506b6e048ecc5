"""One of several gloo processes: print what each receives from the control group. argv: `_MAX_RANKS_OF_ALL_REDUCE`."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from moco_accel.processes import control_group as module
from moco_accel.processes.control_group import ControlGroup


def main() -> None:
    torch.set_num_threads(1)
    module._MAX_RANKS_OF_ALL_REDUCE = int(sys.argv[1])
    dist.init_process_group("gloo")
    group, rank, size = ControlGroup(), dist.get_rank(), dist.get_world_size()
    received = [[group.max_over_ranks(int(rank == one)), group.or_over_ranks(1 << rank)] for one in range(size)]
    received.append([group.max_over_ranks(0), group.or_over_ranks(0)])
    of_all_ranks: list[object] = [None] * size
    dist.all_gather_object(of_all_ranks, received)
    if rank == 0:
        print(json.dumps(of_all_ranks))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
