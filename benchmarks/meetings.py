"""Milliseconds that processes take to hear a word from each other: gloo's all-reduce, and our rounds, in turns.

The trainer meets so before each thing it sends, some 45 times a step.

    python benchmarks/meetings.py > benchmarks/results/meetings.jsonl
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from moco_accel.processes.control_group import Agreement

PROCESSES = (2, 4, 8, 16, 32)
ROUNDS, TIMES = 15, 20


def inside() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    agreement = Agreement()
    ways = {"rounds": lambda: agreement._in_rounds(0, max), "all_reduce": lambda: agreement.worst(0)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(TIMES):
                ways[name]()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - begun) / TIMES)
    if dist.get_rank() == 0:
        ratios = [one / other for one, other in zip(seconds["rounds"], seconds["all_reduce"], strict=True)]
        row = {
            "processes": dist.get_world_size(),
            "milliseconds": {name: round(1e3 * statistics.median(each), 3) for name, each in seconds.items()},
            "rounds_over_all_reduce": round(statistics.median(ratios), 3),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "network": "loopback",
        }
        print(json.dumps(row))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    for processes in PROCESSES:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(Path(__file__))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "INSIDE": "1"}
        done = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    inside() if "INSIDE" in os.environ else main()
