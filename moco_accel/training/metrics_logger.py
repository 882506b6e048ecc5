"""Log a run: metrics.jsonl, summary.json, trackers and the console. Only rank 0 writes."""

from __future__ import annotations

import json
import resource
import time
from types import TracebackType

import torch
from rich.markup import escape

from moco_accel.checkpoints.run_log import FIRST_STEP, drop_rows_from_step, elapsed_seconds, read_rows
from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.console import console
from moco_accel.common.errors import UserError
from moco_accel.processes.phases import waiting_for_peers
from moco_accel.tiles.damaged_tiles import DamageLog
from moco_accel.training.console import RunState, format_evaluation, format_row, live_panel, print_without_panel
from moco_accel.training.device_memory import MIB, PlannedMemory
from moco_accel.training.run_context import RunContext, log
from moco_accel.training.run_health import COLLAPSE_STEPS, COLLAPSED_STD, STYLES, Row, assess_health
from moco_accel.training.step import StepResult
from moco_accel.training.trackers import log_row

METRICS = "metrics.jsonl"


class MetricsLogger:
    """Logs the first step, every `run.log_every_steps`-th and the last. Use it as a context, on all ranks.

    Attributes:
        skipped_steps: Steps that the gradient scaler has skipped, also before a resume.
    """

    def __init__(self, context: RunContext, damage: DamageLog, memory: PlannedMemory, skipped_steps: int) -> None:
        self._recipe, self._run, self._accelerator = context.recipe, context.run, context.accelerator
        self._control_group, self._damage, self._memory = context.control_group, damage, memory
        first, last = context.steps.start, context.steps.stop
        self._first_step, self._total_steps, self._tile_count = first, last, len(context.tiles)
        self._window_start, self._window_step, self._waited = time.perf_counter(), first, 0.0
        self._started_at, self.skipped_steps, self._collapsed_steps = self._window_start, skipped_steps, 0
        device = context.accelerator.device
        card_mib = torch.cuda.get_device_properties(device).total_memory // MIB if device.type == "cuda" else None
        self._state = RunState(context.recipe, str(context.run), last, first, steps_done=first, card_mib=card_mib)
        self._panel = live_panel(self._state)

    def __enter__(self) -> MetricsLogger:
        if self._accelerator.is_main_process:
            self._run.mkdir(parents=True, exist_ok=True)
            drop_rows_from_step(self._run / METRICS, self._first_step)
            seconds = elapsed_seconds(read_rows(self._run / METRICS), self._recipe, self._first_step)
            self._state.elapsed_seconds = self._state.seconds_before = seconds
            self._remove_outdated_summary()
            self._print_start()
            if console.is_terminal:
                self._panel.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if not self._accelerator.is_main_process:
            return
        self._panel.stop()
        if kind is None:
            self._write_summary()

    def after_step(
        self, step: int, epoch: float, lr: float, momentum_coefficient: float, result: StepResult, waited: float
    ) -> None:
        """Record a step, and log it if it is due.

        Args:
            step: Step number from 0.
            epoch: Fractional epoch.
            waited: Seconds spent waiting for data.

        Raises:
            UserError: On all ranks, if metrics.jsonl cannot be written.
        """
        self._waited += waited
        self.skipped_steps += result.skipped
        self._check_collapse(step, result.feature_std.item())
        self._state.steps_done, self._state.elapsed_seconds = step + 1, self._elapsed_seconds()
        is_first_or_last = step == self._first_step or step + 1 == self._total_steps
        if not is_first_or_last and step % self._recipe.run.log_every_steps != 0:
            return
        with waiting_for_peers():  # all ranks take part in the mean
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
            "card_memory_mib": self._state.card_mib,
            "seconds": round(self._elapsed_seconds(), 1),
            FIRST_STEP: self._first_step,
        }
        self._window_start, self._window_step, self._waited = now, step + 1, 0.0
        self._control_group.run_on_rank_zero(lambda: self._write(row))

    def _elapsed_seconds(self) -> float:
        """Return the seconds that the run has taken, including its earlier processes (on rank 0)."""
        return self._state.seconds_before + time.perf_counter() - self._started_at

    def log_evaluation(self, figures: Row) -> None:
        """Log an evaluation; its `seconds` do not count as training time."""
        self._window_start += figures["seconds"]
        self._state.evaluation = {**(self._state.evaluation or {}), **figures}
        if self._accelerator.is_main_process:
            log_row(self._accelerator, figures, "evaluation/")
            print_without_panel(format_evaluation(figures))
            self._update_health()

    def _write(self, row: Row) -> None:
        path = self._run / METRICS
        try:
            with path.open("a") as metrics:
                metrics.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}). Free some space on that disk, then --resume"
            ) from None
        log_row(self._accelerator, row)
        self._state.row = row
        print_without_panel(format_row(self._state, row))
        self._update_health()

    def _update_health(self) -> None:
        """Assess the health again; without a panel, print it when the level changes."""
        if self._state.row is None:  # a resumed run before its first step
            return
        before, health = self._state.health, assess_health(self._recipe, self._state.row, self._state.evaluation)
        self._state.health = health
        if health.level != before.level:
            print_without_panel(f"[{STYLES[health.level]}]{escape(health.text)}[/]")

    def _check_collapse(self, step: int, spread: float) -> None:
        self._collapsed_steps = self._collapsed_steps + 1 if spread < COLLAPSED_STD else 0
        if self._collapsed_steps == COLLAPSE_STEPS and self._accelerator.is_main_process:
            log(
                f"[bold red]COLLAPSED:[/] for {COLLAPSE_STEPS} steps, to step {step}, all features have been the same "
                f"(standard deviation {spread:.4f}; evenly spread features have 1). The run learns nothing. Try: a "
                "lower optimizer.base_lr, a longer schedule.warmup_epochs, tiles that differ from each other"
            )

    def _print_start(self) -> None:
        recipe, batch = self._recipe, self._recipe.batch
        precision = "fp32" if recipe.memory.mixed_precision == "no" else recipe.memory.mixed_precision
        log(
            f"{recipe.encoder.name} at {recipe.encoder.image_size} px, {recipe.encoder.bands} bands · "
            f"{self._tile_count} tiles · micro-batch {batch.micro_batch_size} × {batch.accumulation_steps} × "
            f"{recipe.hardware.num_devices} device(s) = global batch {batch.global_batch_size} · "
            f"{recipe.negatives_per_query} negatives per query · {precision} on "
            f"{self._accelerator.device} · {escape(str(self._run))}"
        )
        if recipe.encoder.bands != 3:
            names = f" ({escape(', '.join(recipe.data.bands))})" if recipe.data.bands else ""
            log(
                f"{recipe.encoder.bands} bands{names}: augment.band_gain, band_offset and band_drop_probability "
                "replace colour jitter and greyscale"
            )
        if left_out := self._tile_count % batch.global_batch_size:
            console.print(f"each epoch leaves out {left_out} tiles, which do not fill a batch; they differ by epoch")
        if self._first_step:
            console.print(f"resumed after step {self._first_step}")

    def _remove_outdated_summary(self) -> None:
        """Remove the summary of a run that was complete and now continues from an earlier checkpoint."""
        path = self._run / "summary.json"
        if self._first_step < self._total_steps and path.is_file():
            path.unlink()
            log(f"{escape(str(path))} is removed: it described later steps; the end of the run writes it again")

    def _write_summary(self) -> None:
        rows = read_rows(self._run / METRICS)
        rates = sorted(row["tiles_per_second"] for row in rows)
        summary = {
            "steps": self._total_steps,
            "tiles_per_second": rates[len(rates) // 2] if rates else None,
            "final_loss": rows[-1]["loss"] if rows else None,
            "chance_loss": self._recipe.chance_loss,
            "skipped_steps": self.skipped_steps,
            "damaged_tiles": len(self._damage),
            "seconds": round(self._elapsed_seconds(), 1),
            "peak_memory_mib": _peak_memory_mib(),
        }
        write_atomically(self._run / "summary.json", json.dumps(summary, indent=2) + "\n")
        log(
            f"done: {summary['steps']} steps, final loss {summary['final_loss']:.3f} "
            f"(chance {summary['chance_loss']:.2f}), {summary['tiles_per_second']:.0f} tiles/s · "
            f"{escape(str(self._run))}"
        )


def _peak_memory_mib() -> int:
    """Return the peak reserved memory of the GPU; without a GPU, the peak resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() // MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
