"""Predicted beside measured on this machine's first GPU: the planner's figures held against the real step.

Each configuration is predicted in one process, without a GPU to be seen, and measured in another; they overlap, but for
the GPU's own work. Plans for small cards run with the allocator held to exactly the budget of such a card. Needs no
installation of moco-accel itself.

    python benchmarks/gpu_validate.py

Exit codes: 0 every target is met, 1 one is missed, 2 the question is wrong.
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

from gpu_configurations import CARDS_GIB, Configuration, configurations
from gpu_verdict import Row, failures, show, told, worst_first
from rich.markup import escape

from moco_accel.common.console import console, user_errors
from moco_accel.common.errors import UserError
from planner.memory.evidence import append_row, read_rows

RESULTS = Path(__file__).parent / "results"
_CHILD_SECONDS = 300
_EXPLAINING_SECONDS = 30
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def child(question: Row, gpu: bool = True, expandable_segments: bool = False) -> Row | None:
    """`gpu_one.answer`'s answer, given by a process of its own; or `error`, the end of its stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_ALLOC_CONF")}
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if gpu else ""
    if expandable_segments:
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    command = [sys.executable, __file__, "--one", json.dumps(question)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {_CHILD_SECONDS} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]
    last_lines = [line.strip() for line in done.stderr.strip().splitlines()[-3:]]
    return {"error": " ".join(last_lines) or f"exit code {done.returncode}"}


def row_of(configuration: Configuration, here: Row, folder: Path, explanation: Path | None = None) -> Row:
    """`configuration`'s row: predicted, then measured on the GPU that `here` describes.

    With `explanation`, its peak is written there block by block.
    """
    blocks = str(folder / f"{configuration.name}.json") if explanation else None
    about = {"name": configuration.name, "card_gib": configuration.card_gib, "card": here["card"]}
    predicted = child({"ask": "prediction", **about, "blocks": blocks}, gpu=False)
    assert predicted is not None
    if "error" in predicted:
        return {"name": configuration.name, "family": configuration.family, **predicted}
    row: Row = predicted["row"]
    if "skipped" in row:
        return row
    if (needed := row["budget_bytes"] or row["predicted_bytes"]["peak_reserved"]) > here["free_bytes"]:
        return {**row, "skipped": f"it may take {needed} bytes, and {here['free_bytes']} are free on this card"}
    question = {"ask": "measurement", **predicted, "lock": str(folder / "gpu"), "blocks": blocks}
    question["explanation"] = str(explanation.resolve()) if explanation else None
    measured = child(question, expandable_segments=row["recipe"]["memory"]["expandable_segments"])
    assert measured is not None
    return {**row, **measured}


def in_turn(
    wanted: Sequence[Configuration], work: Callable[[Configuration], Row], jobs: int, budget_seconds: float
) -> Iterator[Row]:
    """`work`'s rows as they come, `jobs` at a time; none is begun that would end after `budget_seconds` if it took
    as long as the longest so far."""
    begun, longest = time.monotonic(), 0.0
    waiting, running = list(wanted), dict[Future[Row], float]()
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            while waiting and len(running) < jobs and time.monotonic() - begun + longest < budget_seconds:
                running[pool.submit(work, waiting.pop(0))] = time.monotonic()
            if not running:
                console.print(f"{len(waiting)} not begun, for want of time; --resume goes on with them")
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                longest = max(longest, time.monotonic() - running.pop(future))
                yield future.result()


def explain(wanted: Sequence[Configuration], here: Row, folder: Path, output: Path, deadline: float) -> None:
    """Run `wanted` again with every allocation recorded, and write their peaks, block by block, beside `output`."""
    for configuration in wanted:
        if time.monotonic() + _EXPLAINING_SECONDS > deadline:
            return
        path = output.with_name(f"{output.stem}-{configuration.name}.json")
        row = row_of(configuration, here, folder, path)
        console.print(f"{configuration.name}, its peak by blocks: {row.get('error', path)}", soft_wrap=True)


def ask_card() -> Row:
    """The GPU, asked by another process: a context of ours would be measured too."""
    here = child({"ask": "card"})
    if here is None:
        raise UserError("gpu_validate needs a GPU and torch sees none here; --list names the configurations")
    if "error" in here:
        raise UserError(f"torch cannot be asked about the GPU: {here['error']}")
    return here


def rows_before(output: Path, resume: bool) -> list[Row]:
    """What `output` holds. Raises UserError where it is not to be gone on with."""
    rows = [row for row in read_rows(output) if "error" not in row]
    if rows and not resume:
        raise UserError(f"--output={output} holds {len(rows)} rows; --resume goes on with them, or name another file")
    return rows


def validate(
    wanted: list[Configuration], output: Path | None, resume: bool, jobs: int, budget: float, count: int
) -> int:
    """Run what is wanted, write its rows, judge them. Returns the exit code."""
    begun, here = time.monotonic(), ask_card()
    gpu = here["card"]["name"]
    output = output or RESULTS / f"gpu_validate_{re.sub(r'[^a-z0-9]+', '_', gpu.lower()).strip('_')}.jsonl"
    rows = rows_before(output, resume)
    left = [configuration for configuration in wanted if configuration.name not in {row["name"] for row in rows}]
    console.print(f"{len(left)} of {len(wanted)} configurations on {gpu}; rows: {output}", soft_wrap=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row in in_turn(left, lambda c: row_of(c, here, folder), jobs, budget):
            rows.append(row)
            append_row(output, row)
            console.print(f"{time.monotonic() - begun:5.0f} s  {row['name']}: {escape(told(row))}", soft_wrap=True)
        show(rows)
        worst = [row["name"] for row in worst_first(rows)[:count]]
        explain([c for c in wanted if c.name in worst], here, folder, output, begun + budget)
    return 1 if failures(rows) else 0


@app.command()
def main(
    output: Annotated[Path | None, typer.Option(help="Raw rows.", show_default="results/, by the card's name")] = None,
    budget_seconds: Annotated[float, typer.Option(help="Begin nothing that would end later.")] = math.inf,
    only: Annotated[str, typer.Option(help="Only configurations whose name has this in it.")] = "",
    card_gib: Annotated[list[float] | None, typer.Option(help="Cards to emulate.", show_default="8, 12, 24")] = None,
    resume: Annotated[bool, typer.Option(help="Go on: leave out what the output holds.")] = False,
    snapshots: Annotated[int, typer.Option(help="How many of the worst to explain block by block.")] = 3,
    jobs: Annotated[int, typer.Option(help="Processes at once; the GPU is for one.")] = max(
        1, (os.cpu_count() or 1) // 4
    ),
    names: Annotated[bool, typer.Option("--list", help="Print the configurations and run none.")] = False,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Hold the planner's predictions against this machine's GPU."""
    if one is not None:
        from gpu_one import answer

        print(json.dumps(answer(json.loads(one))))
        return
    wanted = [found for found in configurations(card_gib or CARDS_GIB) if only in found.name]
    if names:
        print("\n".join(configuration.name for configuration in wanted))
        return
    with user_errors():
        if not wanted:
            raise UserError(f"--only={only} names no configuration; --list names them all")
        code = validate(wanted, output, resume, jobs, budget_seconds, snapshots)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
