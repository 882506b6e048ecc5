"""Compare milliseconds per status exchange between ranks: gloo's all-reduce, and the rounds of `ControlGroup`.

The trainer exchanges the status before each collective, some 45 times per step.

    python benchmarks/status_exchange.py > benchmarks/results/status_exchange.jsonl
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

from moco_accel.processes.control_group import ControlGroup

PROCESSES = (2, 4, 8, 16, 32)
ROUNDS, REPEATS = 15, 20


def run_rank() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    control_group = ControlGroup()
    methods = {
        "rounds": lambda: control_group._combine_in_rounds(0, max),
        "all_reduce": lambda: control_group.max_over_ranks(0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(ROUNDS + 1):
        for name in list(methods)[:: 1 if number % 2 else -1]:
            dist.barrier()
            start = time.perf_counter()
            for _ in range(REPEATS):
                methods[name]()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / REPEATS)
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
        result = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        print(result.stdout.strip(), flush=True)


if __name__ == "__main__":
    run_rank() if "INSIDE" in os.environ else main()
