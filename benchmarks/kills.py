"""Kill runs of two processes with SIGKILL, resume them, and compare them with undisturbed runs.

Prints one row per seed: each kill (phase, place, step, processes that died, seconds until the last one was gone), the
step from which each launch resumed, and whether the results are byte-equal. tests/support/run_differences.py lists what
is compared.

    python benchmarks/kills.py --first 0 --last 200 >> benchmarks/results/kills.jsonl
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.killed_runs import KilledRuns, Outcome, draw_case


def outcomes(first: int, last: int) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder, KilledRuns(Path(folder)) as runs:
        for seed in range(first, last):
            yield runs.run(seed, *draw_case(seed))
            for finished in Path(folder).glob(f"killed {seed}*"):
                shutil.rmtree(finished)


def row(outcome: Outcome) -> dict[str, Any]:
    kills = [
        {name: round(value, 2) if isinstance(value, float) else value for name, value in kill.items() if name != "time"}
        for kill in outcome.kills
    ]
    found = asdict(outcome) | {"kills": kills, "seconds": round(outcome.seconds, 1)}
    return found | {
        "resumes_in_one_epoch": outcome.resumes_in_one_epoch,
        "equal": not outcome.differences,
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("torch", "accelerate", "bitsandbytes")},
        "python": platform.python_version(),
    }


def main(
    first: Annotated[int, typer.Option(help="First seed.")] = 0,
    last: Annotated[int, typer.Option(help="Last seed, exclusive.")] = 200,
) -> None:
    for outcome in outcomes(first, last):
        print(json.dumps(row(outcome)), flush=True)
        print(outcome.seed, "equal" if not outcome.differences else outcome.differences, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
