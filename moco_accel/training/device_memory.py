"""Compare the planned peak memory with the GPU: before the networks are built, and after the first steps."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress

import torch

from moco_accel.common.errors import UserError
from moco_accel.networks.collectives import rank as own_rank
from moco_accel.processes.control_group import ControlGroup
from moco_accel.processes.rendezvous import Log
from moco_accel.recipe.encoder_names import ASSUMED_PEAK_ERROR, encoder_family
from moco_accel.recipe.hardware_sections import Planned
from moco_accel.recipe.schema import Recipe

MIB = 1 << 20
_STEPS_TO_PEAK = 2  # the first step creates the optimizer state, the second runs with it


class PlannedMemory:
    """Compares planned, free and used memory of a run's GPUs. All ranks must call each method together.

    Attributes:
        planned_mib: Planned peak reserved memory in MiB; None without a plan.
    """

    def __init__(
        self, recipe: Recipe, planned: Planned | None, control_group: ControlGroup, device: torch.device, log: Log
    ) -> None:
        self._recipe, self._control_group, self._device, self._log = recipe, control_group, device, log
        self.planned_mib = planned.peak_reserved_mib if planned else None
        self._margin = ASSUMED_PEAK_ERROR[encoder_family(recipe.encoder.name)]
        self._steps, self._is_active = 0, device.type == "cuda"

    def check(self) -> None:
        """Compare the plan with the free memory; call it before the networks are built.

        Raises:
            UserError: On all ranks, if the plan does not fit the GPU of one rank.
        """
        if not self._is_active:
            return
        if self.planned_mib is None:
            self._log("the recipe has no memory plan for this GPU; moco-plan --recipe shows whether it fits")
            return
        free, total = (size // MIB for size in torch.cuda.mem_get_info(self._device))
        all_free, all_total = self._control_group.all_gather(free), self._control_group.all_gather(total)
        rank = min(range(len(all_free)), key=all_free.__getitem__)
        if all_free[rank] < self.planned_mib:
            others = other_gpu_processes(self._device) if own_rank() == rank else []
            raise UserError(explain_shortage(self.planned_mib, rank, all_free[rank], all_total[rank], others))
        if all_free[rank] < self.planned_mib * (1 + self._margin):
            otherwise = (
                "the run continues in smaller micro-batches" if self._recipe.recovers_from_oom else "the run ends"
            )
            self._log(
                f"[yellow]the GPU of rank {rank} has {all_free[rank]} MiB free for a planned peak of "
                f"{self.planned_mib} MiB, which may be off by {self._margin:.0%}; if it does not fit, {otherwise}[/]"
            )

    def after_step(self) -> None:
        """Log once how peak and plan compare; warn once if a peak exceeds the planner's error margin."""
        if not self._is_active or self.planned_mib is None:
            return
        self._steps += 1
        measured = torch.cuda.max_memory_reserved(self._device) // MIB
        if self._steps == _STEPS_TO_PEAK:
            highest = max(self._control_group.all_gather(measured))
            self._log(format_peak_comparison(self.planned_mib, highest, self._margin))
            self._is_active = highest <= self.planned_mib * (1 + self._margin)
        elif self._steps > _STEPS_TO_PEAK and measured > self.planned_mib * (1 + self._margin):
            self._log(format_peak_comparison(self.planned_mib, measured, self._margin))
            self._is_active = False

    def discard_plan(self) -> None:
        """Stop comparing, because the micro-batch size is no longer the planned one."""
        self._is_active, self.planned_mib = False, None


def explain_shortage(planned: int, rank: int, free: int, total: int, others: list[str]) -> str:
    """Return the error message of a plan that does not fit; sizes in MiB."""
    held = f" (held by {', '.join(others)})" if others else ""
    return (
        f"planned.peak_reserved_mib={planned} does not fit the GPU of rank {rank}: {free} MiB of {total} MiB are free, "
        f"{planned - free} MiB too few{held}. Try: close other programs that use the GPU, or plan for the free memory "
        f"with moco-plan --vram {free / 1024:.1f}"
    )


def format_peak_comparison(planned: int, measured: int, margin: float) -> str:
    """Return predicted and measured peak reserved memory, in MiB, as a console line."""
    text = f"peak memory: predicted {planned} MiB, measured {measured} MiB, {measured / planned - 1:+.1%}"
    if measured <= planned * (1 + margin):
        return text
    return f"[yellow]{text}: more than the planner's error margin of {margin:.0%}[/]"


def other_gpu_processes(device: torch.device) -> list[str]:
    """Return other processes that hold memory of a GPU, largest first, as nvidia-smi lists them."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return []
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = [nvidia_smi, gpu, "--query-compute-apps=pid,used_memory,process_name", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
        return parse_gpu_processes(output, os.getpid())
    return []


def parse_gpu_processes(output: str, own_pid: int) -> list[str]:
    """Return `program MiB` from rows of `pid, MiB, path`, largest first, without this process."""
    found = []
    for row in output.splitlines():
        with suppress(ValueError):
            pid, mib, path = (column.strip() for column in row.split(",", 2))
            if int(pid) != own_pid:
                program = path.replace("\\", "/").rpartition("/")[2] or path
                found.append((int(mib), f"{program} {mib} MiB"))
    return [text for _, text in sorted(found, reverse=True)]
