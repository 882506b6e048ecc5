"""What a run tells: metrics.jsonl, summary.json, trackers, and the console. The main process alone writes."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from rich.markup import escape

from moco_accel.common.atomic_files import drop_rows_from, write_atomically
from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.processes.control_group import Agreement
from moco_accel.processes.phases import waiting
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.damage import DamageLog
from moco_accel.training.card_memory import PlannedMemory
from moco_accel.training.console import Shown, TrainingConsole
from moco_accel.training.run_health import COLLAPSE_STEPS, COLLAPSED_STD, STYLES, verdict
from moco_accel.training.step import StepResult
from moco_accel.training.trackers import track

MIB = 1 << 20
Row = dict[str, Any]


class Monitor:
    """Logs the first step, every `log_every_steps`-th and the last; use it as a context."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        tile_count: int,
        first_step: int,
        total_steps: int,
        accelerator: Accelerator,
        agreement: Agreement,
        damage: DamageLog,
        memory: PlannedMemory,
        skipped_steps: int = 0,
    ) -> None:
        self._recipe, self._run, self._accelerator, self._damage = recipe, run, accelerator, damage
        self._agreement, self._memory = agreement, memory
        self._first_step, self._total_steps, self._tile_count = first_step, total_steps, tile_count
        self._window_start, self._window_step, self._waited = time.perf_counter(), first_step, 0.0
        self._started, self.skipped_steps, self._collapsed_steps = self._window_start, skipped_steps, 0
        on_gpu = accelerator.device.type == "cuda"
        self._shown = Shown(
            recipe,
            str(run),
            total_steps,
            first_step,
            first_step,
            card_mib=torch.cuda.get_device_properties(accelerator.device).total_memory // MIB if on_gpu else None,
            on_gpu=on_gpu,
        )
        self._console = TrainingConsole(self._shown)

    def __enter__(self) -> Monitor:
        if self._accelerator.is_main_process:
            self._run.mkdir(parents=True, exist_ok=True)
            drop_rows_from(self._run / "metrics.jsonl", self._first_step)
            self._print_start()
            self._console.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if not self._accelerator.is_main_process:
            return
        self._console.__exit__()
        if kind is None:
            self._finish()

    def after_step(
        self, step: int, epoch: float, lr: float, momentum_coefficient: float, result: StepResult, waited: float
    ) -> None:
        """Take in step `step` (from 0), which waited `waited` seconds for data; log it if its turn has come."""
        self._waited += waited
        self.skipped_steps += result.skipped
        self._watch_collapse(step, result.feature_std.item())
        self._shown.steps_done, self._shown.elapsed_seconds = step + 1, time.perf_counter() - self._started
        if not (
            step == self._first_step or step + 1 == self._total_steps or step % self._recipe.run.log_every_steps == 0
        ):
            return
        with waiting():  # every process takes part in the mean
            loss, spread = self._accelerator.reduce(torch.stack([result.loss, result.feature_std]), "mean").tolist()
        now = time.perf_counter()
        seconds, steps = now - self._window_start, step + 1 - self._window_step
        row = {
            "step": step,
            "total_steps": self._total_steps,
            "epoch": round(epoch, 4),
            "loss": loss,
            "lr": lr,
            "momentum_coefficient": momentum_coefficient,
            "tiles_per_second": round(steps * self._recipe.batch.global_batch_size / seconds, 2),
            "data_wait_share": round(self._waited / seconds, 4),
            "feature_std": spread,
            "skipped_steps": self.skipped_steps,
            "damaged_tiles": len(self._damage),
            "peak_memory_mib": _peak_memory_mib(),
            "planned_memory_mib": self._memory.planned_mib,
            "card_memory_mib": self._shown.card_mib,
            "seconds": round(now - self._started, 1),
        }
        self._window_start, self._window_step, self._waited = now, step + 1, 0.0
        self._agreement.by_first(lambda: self._write(row))

    def examined(self, figures: Row, seconds: float) -> None:
        """Take in an evaluation, which took `seconds` of the time between two rows of the log."""
        self._window_start += seconds
        self._shown.examined = {**(self._shown.examined or {}), **figures}
        if self._accelerator.is_main_process:
            track(self._accelerator, figures, "evaluation/")
            self._console.say_examined(figures)
            self._judge()

    def _write(self, row: Row) -> None:
        path = self._run / "metrics.jsonl"
        try:
            with path.open("a") as metrics:
                metrics.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}). Room on that disk, then --resume") from None
        track(self._accelerator, row)
        self._shown.row = row
        self._console.say_row(row)
        self._judge()

    def _judge(self) -> None:
        """Says it, where there is no panel to show it, when a run is not well, or well again."""
        if self._shown.row is None:  # resumed, and no step done yet
            return
        before, found = self._shown.verdict, verdict(self._recipe, self._shown.row, self._shown.examined)
        self._shown.verdict = found
        if found.level != before.level and not console.is_terminal:
            console.print(f"[{STYLES[found.level]}]{escape(found.text)}[/]", soft_wrap=True)

    def _watch_collapse(self, step: int, spread: float) -> None:
        self._collapsed_steps = self._collapsed_steps + 1 if spread < COLLAPSED_STD else 0
        if self._collapsed_steps == COLLAPSE_STEPS and self._accelerator.is_main_process:
            console.print(
                f"[bold red]COLLAPSED:[/] for {COLLAPSE_STEPS} steps, to step {step}, all features have been one "
                f"point (standard deviation {spread:.4f}; spread features have 1). The run learns nothing. What helps: "
                "a lower optimizer.base_lr, a longer schedule.warmup_epochs, tiles that differ from each other",
                soft_wrap=True,
            )

    def _print_start(self) -> None:
        recipe, batch = self._recipe, self._recipe.batch
        precision = "fp32" if recipe.memory.mixed_precision == "no" else recipe.memory.mixed_precision
        console.print(
            f"{recipe.encoder.name} at {recipe.encoder.image_size} px, {recipe.encoder.bands} bands · "
            f"{self._tile_count} tiles · micro-batch {batch.micro_batch_size} × {batch.accumulation_steps} × "
            f"{recipe.hardware.num_devices} device(s) = global batch {batch.global_batch_size} · "
            f"{recipe.negatives_per_query} negatives per query · {precision} on "
            f"{self._accelerator.device} · {escape(str(self._run))}",
            soft_wrap=True,
        )
        if recipe.encoder.bands != 3:
            names = f" ({escape(', '.join(recipe.data.bands))})" if recipe.data.bands else ""
            console.print(
                f"{recipe.encoder.bands} bands{names}: augment.band_gain, band_offset and band_drop_probability in "
                "place of colour jitter and greyscale",
                soft_wrap=True,
            )
        if left_out := self._tile_count % batch.global_batch_size:
            console.print(f"each epoch leaves out {left_out} tiles, others each time: they would not fill a batch")
        if self._first_step:
            console.print(f"resumed after step {self._first_step}")

    def _finish(self) -> None:
        rows = [json.loads(row) for row in (self._run / "metrics.jsonl").read_text().splitlines()]
        rates = sorted(row["tiles_per_second"] for row in rows)
        summary = {
            "steps": self._total_steps,
            "tiles_per_second": rates[len(rates) // 2] if rates else None,
            "final_loss": rows[-1]["loss"] if rows else None,
            "chance_loss": self._recipe.chance_loss,
            "skipped_steps": self.skipped_steps,
            "damaged_tiles": len(self._damage),
            "seconds": round(time.perf_counter() - self._started, 1),
            "peak_memory_mib": _peak_memory_mib(),
        }
        write_atomically(self._run / "summary.json", json.dumps(summary, indent=2) + "\n")
        console.print(
            f"done: {summary['steps']} steps, final loss {summary['final_loss']:.3f} "
            f"(chance {summary['chance_loss']:.2f}), {summary['tiles_per_second']:.0f} tiles/s · "
            f"{escape(str(self._run))}",
            soft_wrap=True,
        )


def _peak_memory_mib() -> int:
    """Peak reserved on the GPU; without one, this process's peak resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() // MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
