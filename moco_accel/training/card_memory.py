"""The plan against the card: refused before anything is built if it cannot fit, compared once steps have run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress

import torch

from moco_accel.common.errors import UserError
from moco_accel.networks.collectives import rank as own_rank
from moco_accel.processes.control_group import Agreement
from moco_accel.recipe.constants import ASSUMED_SHARES, family
from moco_accel.recipe.hardware_sections import Planned

MIB = 1 << 20
_STEPS_TO_THE_PEAK = 2  # the first one makes the optimizer's state, the second has it from its beginning

Say = Callable[[str], None]


class PlannedMemory:
    """What the recipe plans of this run's cards, and what the run takes. All processes call its methods together."""

    def __init__(
        self,
        planned: Planned | None,
        encoder: str,
        agreement: Agreement,
        device: torch.device,
        say: Say,
        heals: bool = True,
    ) -> None:
        """`heals`: what does not fit is done over in smaller micro-batches."""
        self._then = "runs in smaller micro-batches" if heals else "the run ends"
        self._agreement, self._device, self._say = agreement, device, say
        self.planned_mib = planned.peak_reserved_mib if planned else None
        self._margin = ASSUMED_SHARES[family(encoder)]
        self._steps, self._is_watched = 0, device.type == "cuda"

    def check(self) -> None:
        """Before the networks are built. Raises UserError, on all processes, where the plan cannot fit a card."""
        if not self._is_watched:
            return
        if self.planned_mib is None:
            self._say("nothing was planned for this card; moco-plan --recipe says whether it fits")
            return
        free, total = (size // MIB for size in torch.cuda.mem_get_info(self._device))
        frees, totals = self._agreement.all(free), self._agreement.all(total)
        rank = min(range(len(frees)), key=frees.__getitem__)
        if frees[rank] < self.planned_mib:
            others = others_on_card(self._device) if own_rank() == rank else []
            raise UserError(too_small(self.planned_mib, rank, frees[rank], totals[rank], others))
        if frees[rank] < self.planned_mib * (1 + self._margin):
            self._say(
                f"[yellow]rank {rank}'s card has {frees[rank]} MiB free for a planned peak of {self.planned_mib} MiB, "
                f"which may be off by {self._margin:.0%}: it may not fit, and then {self._then}[/]"
            )

    def after_step(self) -> None:
        """Says once how peak and plan compare, and warns where a peak is higher than the planner thinks possible."""
        if not self._is_watched or self.planned_mib is None:
            return
        self._steps += 1
        measured = torch.cuda.max_memory_reserved(self._device) // MIB
        if self._steps == _STEPS_TO_THE_PEAK:
            highest = max(self._agreement.all(measured))
            self._say(compared(self.planned_mib, highest, self._margin))
            self._is_watched = highest <= self.planned_mib * (1 + self._margin)
        elif self._steps > _STEPS_TO_THE_PEAK and measured > self.planned_mib * (1 + self._margin):
            self._say(compared(self.planned_mib, measured, self._margin))
            self._is_watched = False

    def forget(self) -> None:
        """The micro-batch is another one than was planned."""
        self._is_watched, self.planned_mib = False, None


def too_small(planned: int, rank: int, free: int, total: int, others: list[str]) -> str:
    """Why a plan is refused; all in MiB."""
    held = f" (held by {', '.join(others)})" if others else ""
    return (
        f"planned.peak_reserved_mib={planned} does not fit rank {rank}'s card: {free} MiB of {total} MiB are free, "
        f"{planned - free} MiB too few{held}. What helps: close what else uses the card, or moco-plan "
        f"--vram {free / 1024:.1f} plans for what is free"
    )


def compared(planned: int, measured: int, margin: float) -> str:
    """Peak reserved memory in MiB, predicted and measured."""
    words = f"peak memory: predicted {planned} MiB, measured {measured} MiB, {measured / planned - 1:+.1%}"
    if measured <= planned * (1 + margin):
        return words
    return f"[yellow]{words}: more than the {margin:.0%} by which the planner thinks it may be off[/]"


def others_on_card(device: torch.device) -> list[str]:
    """Other processes that hold memory of a card, the largest first, as far as the driver's own tool tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    card = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = [tool, card, "--query-compute-apps=pid,used_memory,process_name", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
        return holders(said, os.getpid())
    return []


def holders(said: str, own_pid: int) -> list[str]:
    """From rows of `pid, MiB, name`."""
    found = []
    for row in said.splitlines():
        with suppress(ValueError):
            pid, mib, name = (word.strip() for word in row.split(",", 2))
            if int(pid) != own_pid:
                found.append((int(mib), f"{_program(name)} {mib} MiB"))
    return [words for _, words in sorted(found, reverse=True)]


def _program(path: str) -> str:
    """A program's name without its folder; the error is escaped where it is printed."""
    return path.replace("\\", "/").rpartition("/")[2] or path
