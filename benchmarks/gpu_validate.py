"""Compare the planner's predictions with the real training step on the first GPU of this machine.

Each configuration is predicted in one process, which sees no GPU, and measured in another. Processes overlap, except on
the GPU. Plans for small GPUs run with the allocator limited to the memory budget of such a GPU. moco-accel itself need
not be installed.

    python benchmarks/gpu_validate.py

Exit codes: 0 all targets are met, 1 a target is missed, 2 user error.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_configurations import CARDS_GIB, Configuration, list_configurations
from gpu_report import Row, describe_row, find_failures, print_report, worst_first
from rich.markup import escape

from moco_accel.common.console import console, user_errors
from moco_accel.common.errors import UserError
from planner.evidence.records import append_row, read_rows

RESULTS = Path(__file__).parent / "results"
_WORKER_TIMEOUT_SECONDS = 300
_COMPARISON_SECONDS = 30
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _run_worker(request: Row, gpu: bool = True, expandable_segments: bool = False) -> Row | None:
    """Run `gpu_worker.handle_request` in a new process; return its result, or `error` with the end of its stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_ALLOC_CONF")}
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if gpu else ""
    if expandable_segments:
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    command = [sys.executable, __file__, "--one", json.dumps(request)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_WORKER_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {_WORKER_TIMEOUT_SECONDS} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]
    last_lines = [line.strip() for line in done.stderr.strip().splitlines()[-3:]]
    return {"error": " ".join(last_lines) or f"exit code {done.returncode}"}


def validate_configuration(configuration: Configuration, gpu: Row, folder: Path, comparison: Path | None = None) -> Row:
    """Predict a configuration, then measure it.

    Args:
        configuration: The configuration.
        gpu: Result of the `describe_card` task.
        folder: Folder for temporary files.
        comparison: File to write the predicted and measured blocks of the peak to.

    Returns:
        The row; with `skipped` or `error` if it could not be measured.
    """
    blocks = str(folder / f"{configuration.name}.json") if comparison else None
    about = {"name": configuration.name, "card_gib": configuration.card_gib, "card": gpu["card"]}
    predicted = _run_worker({"task": "predict", **about, "blocks": blocks}, gpu=False)
    assert predicted is not None
    if "error" in predicted:
        return {"name": configuration.name, "family": configuration.family, **predicted}
    row: Row = predicted["row"]
    if "skipped" in row:
        return row
    if (needed := row["budget_bytes"] or row["predicted_bytes"]["peak_reserved"]) > gpu["free_bytes"]:
        return {**row, "skipped": f"needs up to {needed} bytes; {gpu['free_bytes']} are free on this GPU"}
    request = {"task": "measure", **predicted, "lock": str(folder / "gpu"), "blocks": blocks}
    request["comparison"] = str(comparison.resolve()) if comparison else None
    measured = _run_worker(request, expandable_segments=row["recipe"]["memory"]["expandable_segments"])
    assert measured is not None
    return {**row, **measured}


def run_in_parallel(
    configurations: Sequence[Configuration], work: Callable[[Configuration], Row], jobs: int, budget_seconds: float
) -> Iterator[Row]:
    """Yield the rows of `work` as they are ready.

    Args:
        configurations: The configurations to run.
        work: Function that returns the row of a configuration.
        jobs: Number of configurations at a time.
        budget_seconds: None is started that would end later if it took as long as the longest so far.
    """
    started, longest = time.monotonic(), 0.0
    waiting, running = list(configurations), dict[Future[Row], float]()
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            while waiting and len(running) < jobs and time.monotonic() - started + longest < budget_seconds:
                running[pool.submit(work, waiting.pop(0))] = time.monotonic()
            if not running:
                console.print(f"{len(waiting)} configurations not started within --budget-seconds; --resume runs them")
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                longest = max(longest, time.monotonic() - running.pop(future))
                yield future.result()


def _write_comparisons(
    configurations: Sequence[Configuration], gpu: Row, folder: Path, output: Path, deadline: float
) -> None:
    """Run configurations again, record all allocations and write the blocks at the peak to files next to `output`."""
    for configuration in configurations:
        if time.monotonic() + _COMPARISON_SECONDS > deadline:
            return
        path = output.with_name(f"{output.stem}-{configuration.name}.json")
        row = validate_configuration(configuration, gpu, folder, path)
        console.print(f"{configuration.name}, blocks of its peak: {row.get('error', path)}", soft_wrap=True)


def _find_gpu() -> Row:
    """Describe the GPU, from another process: a CUDA context in this one would be measured too."""
    gpu = _run_worker({"task": "describe_card"})
    if gpu is None:
        raise UserError("gpu_validate needs a GPU and torch finds none; --list prints the configurations")
    if "error" in gpu:
        raise UserError(f"torch cannot describe the GPU: {gpu['error']}")
    return gpu


def _read_previous_rows(output: Path, resume: bool) -> list[Row]:
    rows = [row for row in read_rows(output) if "error" not in row]
    if rows and not resume:
        raise UserError(f"--output={output} has {len(rows)} rows; --resume continues with them, another file works too")
    return rows


def _validate(
    configurations: list[Configuration], output: Path | None, resume: bool, jobs: int, budget_seconds: float, count: int
) -> int:
    """Run the configurations, report, and compare the blocks of the `count` worst; return the exit code."""
    started, gpu = time.monotonic(), _find_gpu()
    gpu_name = gpu["card"]["name"]
    output = output or RESULTS / f"gpu_validate_{re.sub(r'[^a-z0-9]+', '_', gpu_name.lower()).strip('_')}.jsonl"
    rows = _read_previous_rows(output, resume)
    done = {row["name"] for row in rows}
    left = [configuration for configuration in configurations if configuration.name not in done]
    console.print(f"{len(left)} of {len(configurations)} configurations on {gpu_name}; rows: {output}", soft_wrap=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row in run_in_parallel(left, lambda c: validate_configuration(c, gpu, folder), jobs, budget_seconds):
            rows.append(row)
            append_row(output, row)
            seconds = time.monotonic() - started
            console.print(f"{seconds:5.0f} s  {row['name']}: {escape(describe_row(row))}", soft_wrap=True)
        print_report(rows)
        worst = [row["name"] for row in worst_first(rows)[:count]]
        to_compare = [configuration for configuration in configurations if configuration.name in worst]
        _write_comparisons(to_compare, gpu, folder, output, started + budget_seconds)
    return 1 if find_failures(rows) else 0


@app.command()
def main(
    output: Annotated[
        Path | None, typer.Option(help="File for the rows.", show_default="results/, named after the GPU")
    ] = None,
    budget_seconds: Annotated[float, typer.Option(help="Start no configuration that would end later.")] = math.inf,
    only: Annotated[str, typer.Option(help="Run only configurations whose name contains this.")] = "",
    card_gib: Annotated[
        list[float] | None, typer.Option(help="Memory of the GPUs to emulate, in GiB.", show_default="8, 12, 24")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Skip configurations that the output has already.")] = False,
    snapshots: Annotated[int, typer.Option(help="Number of the worst configurations whose blocks to compare.")] = 3,
    jobs: Annotated[int, typer.Option(help="Parallel processes; one of them uses the GPU.")] = max(
        1, (os.cpu_count() or 1) // 4
    ),
    names: Annotated[bool, typer.Option("--list", help="Print the configurations and exit.")] = False,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare the planner's predictions with measurements on this machine's GPU."""
    if one is not None:
        from gpu_worker import handle_request

        print(json.dumps(handle_request(json.loads(one))))
        return
    chosen = [
        configuration for configuration in list_configurations(card_gib or CARDS_GIB) if only in configuration.name
    ]
    if names:
        print("\n".join(configuration.name for configuration in chosen))
        return
    with user_errors():
        if not chosen:
            raise UserError(f"--only={only} matches no configuration; --list prints all of them")
        code = _validate(chosen, output, resume, jobs, budget_seconds, snapshots)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
