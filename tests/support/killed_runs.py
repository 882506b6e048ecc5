"""Kill runs of two gloo processes, resume them, and compare them with an undisturbed run, byte for byte."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from support.killed_process import TINY, Launch
from support.recipes import small_recipe
from support.run_differences import differences, logs, rows_of

from moco_accel.checkpoints.checkpoint import verify_checkpoint
from moco_accel.checkpoints.run_folder import newest_intact
from moco_accel.recipe.encoder_names import VIT_SIZES
from moco_accel.recipe.load import save_recipe

ROOT = Path(__file__).parents[2]
PHASES = ("start", "load", "step", "save", "rename", "rotate", "anywhere")
VICTIMS = ("all",) * 6 + ("own", "own", "other", "own and launcher")
TILES, DAMAGED, BATCH, EPOCHS, SAVE_EVERY = 100, (3, 41, 97), 8, 2, 2
EPOCH_STEPS = TILES // BATCH
STEPS = EPOCH_STEPS * EPOCHS
# approximate number of places of each phase, measured with Launch.count
_PLACES = {"build": 8, "load": 275, "step": 900, "save": 300, "rename": 16, "rotate": 11}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "adamw, queue": {"moco": {"queue_size": 16}},
    "8-bit, bf16": {
        "optimizer": {"name": "adamw_8bit"},
        "memory": {"mixed_precision": "bf16"},
        "run": {"keep_checkpoints": 1},
    },
    "resnet, lars, timed": {
        "encoder": {"name": "resnet10", "image_size": 32, "freeze_patch_projection": False},
        "optimizer": {"name": "lars"},
        "run": {"checkpoint_every_steps": 4, "checkpoint_every_minutes": 0.02},
    },
}


@dataclass
class Outcome:
    """The result of a case.

    Attributes:
        kills: For each launch but the last, the phase `asked` for, whether a kill `landed`, and where.
        resumed_from: Step of the newest checkpoint after each kill.
        differences: Differences from the undisturbed run; empty if both are equal.
        seconds: Duration of all launches.
    """

    seed: int
    variant: str
    kills: list[dict[str, Any]] = field(default_factory=list)
    resumed_from: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def resumes_in_one_epoch(self) -> int:
        return max(Counter(step // EPOCH_STEPS for step in self.resumed_from).values(), default=0)


class KilledRuns:
    """Context manager that launches trainers through `killed_process.py`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._undisturbed = folder, dict[str, Path]()
        _write_tiles(folder / "tiles")

    def __enter__(self) -> KilledRuns:
        self._tiny = VIT_SIZES["tiny"]
        VIT_SIZES["tiny"] = TINY  # this process verifies checkpoints, too
        changes = {
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(self._folder / "cache"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        }
        changes["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # otherwise arrow starts a thread when imported
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | changes,
        )
        assert self._read_result() == {"threads": 1}, "a fork keeps only the main thread"
        return self

    def __exit__(self, *_: object) -> None:
        VIT_SIZES["tiny"] = self._tiny
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait(30)

    def _read_result(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def launch(self, variant: str, run: Path, **options: Any) -> dict[str, Any]:
        """Launch the same command each time, with --resume from the second time on."""
        notes = run.with_suffix(".notes")
        notes.mkdir(parents=True, exist_ok=True)
        number = len(list(notes.glob("log.*.0")))
        arguments = ["--recipe", str(self._recipe(variant)), "--output-dir", str(run), *["--resume"][: number > 0]]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(Launch(arguments, str(run), str(notes), number, **options))) + "\n")
        self._process.stdin.flush()
        return self._read_result()

    def undisturbed(self, variant: str) -> Path:
        """Return the undisturbed run, which is trained once."""
        if variant not in self._undisturbed:
            run = self._folder / f"undisturbed {variant}"
            result = self.launch(variant, run)
            assert result["code"] == 0, (result, logs(run))
            assert {row["tile"] for row in rows_of(run / "damaged_tiles.jsonl")} == set(DAMAGED)
            self._undisturbed[variant] = run
        return self._undisturbed[variant]

    def _recipe(self, variant: str) -> Path:
        sections = {name: dict(fields) for name, fields in VARIANTS[variant].items()}
        common: dict[str, dict[str, Any]] = {
            "batch": {"micro_batch_size": 4, "accumulation_steps": 1},
            "hardware": {"num_devices": 2},
            "schedule": {"epochs": EPOCHS},
            "data": {"source": str(self._folder / "tiles"), "num_workers": 2, "max_damaged_share": 0.05},
            "run": {"log_every_steps": 1, "checkpoint_every_steps": SAVE_EVERY},
        }
        for name, fields in common.items():
            sections[name] = fields | sections.get(name, {})
        file = self._folder / f"{variant}.yaml"
        save_recipe(small_recipe(**sections), file)
        return file

    def run(self, seed: int, phases: list[str], variant: str) -> Outcome:
        """Launch and kill once per phase, resuming each time; then resume to the end and compare."""
        run, draw, outcome = self._folder / f"killed {seed}", random.Random(seed), Outcome(seed, variant)
        newest = 0
        for phase in phases:
            options = draw_kill(draw, phase, newest, len(phases) > 2, (run / "latest").exists())
            result = self.launch(variant, run, **options)
            kills = rows_of(run.with_suffix(".notes") / "killed.jsonl")
            landed = kills[-1] if len(kills) > sum("place" in kill for kill in outcome.kills) else {}
            killed_at = landed.get("time") or result.get("killed_at")
            gone_after = result["ended"] - killed_at if killed_at and "ended" in result else None
            landed |= {"asked": phase, "landed": bool(killed_at), "gone_after": gone_after}
            outcome.kills.append(landed)
            outcome.seconds += result["seconds"]
            before, newest = newest, self._check_after_kill(run, result, outcome)
            if newest < before:
                outcome.differences.append(f"the newest intact checkpoint was {before} and is {newest} after {landed}")
            outcome.resumed_from.append(newest)
        result = self.launch(variant, run)
        outcome.seconds += result["seconds"]
        if result["code"] != 0:
            outcome.differences.append(f"the last launch ended with {result}: {logs(run)}")
        else:
            outcome.differences += differences(run, self.undisturbed(variant), STEPS)
        return outcome

    def _check_after_kill(self, run: Path, result: dict[str, Any], outcome: Outcome) -> int:
        """Check that no process is left and that `latest` names an intact checkpoint; return the newest one's step."""
        if result.get("left"):
            outcome.differences.append(f"{result['left']} processes were left: {logs(run)}")
        messages: list[str] = []
        found = newest_intact(run, messages.append)
        if any("damaged" in line for line in messages):
            outcome.differences.append(f"a kill left damage: {messages}")
        if (run / "latest").exists():
            verify_checkpoint(run / "checkpoints" / (run / "latest").read_text().strip())
        return found.state.step if found else 0


def draw_kill(draw: random.Random, phase: str, done: int, early: bool, has_latest: bool) -> dict[str, Any]:
    """Draw where to kill: `early`, so that several kills fit into a run, or anywhere in the rest of the run."""
    if phase == "anywhere":
        return {"after": draw.uniform(0.2, 3.0)}
    if not has_latest and phase in ("start", "load"):
        phase = f"start {draw.choice(('build', 'step', 'save', 'rename'))}"
    elif phase == "start":
        phase = "load"
    left = max(1, (STEPS - done) // SAVE_EVERY - 1)
    part = phase.removeprefix("start ")
    occurs_once = part in ("build", "load") or phase in ("start save", "start rename")
    turn = 0 if occurs_once else draw.randrange(left)
    if phase == "start step":  # a later step may have a checkpoint before it
        turn = 0
    turn = min(turn, 1) if early else turn
    if phase == "rotate" and done <= SAVE_EVERY:
        turn = max(turn, 1)  # the first time, nothing is removed
    rank = draw.randrange(2) if part in ("load", "step") else 0
    # most places belong to tensors; the few before and after them are drawn as often
    few, count = min(12, _PLACES[part]), _PLACES[part]
    nth = draw.choice((draw.randrange(count), draw.randrange(few), count - 1 - draw.randrange(few)))
    kill = {"phase": phase, "turn": turn, "nth": nth, "rank": rank, "victims": draw.choice(VICTIMS)}
    return {"kill": kill}


def draw_case(seed: int) -> tuple[list[str], str]:
    """Draw the phases in which to kill, seven for every fifth seed, and the variant of the run."""
    draw = random.Random(f"case {seed}")
    main = PHASES[seed % len(PHASES)]
    if seed % 5 == 0:
        phases = [draw.choice(("start", *PHASES[2:6])), *draw.choices(PHASES[1:6], k=5), main]
    else:
        phases = [*(["step"] if main == "load" else []), main, *draw.choices(PHASES[1:], k=draw.choice((0, 0, 1)))]
    return phases, draw.choices(list(VARIANTS), weights=(8, 1, 1))[0]


def _write_tiles(folder: Path) -> None:
    """Write random RGB tiles of 20 x 20 pixels as PNG, three of them truncated."""
    folder.mkdir(parents=True)
    draw, rows = np.random.default_rng(0), []
    for number in range(TILES):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file := BytesIO(), "png")
        content = file.getvalue()
        rows.append({"bytes": content[: len(content) // 2] if number in DAMAGED else content, "path": None})
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(folder / "tiles.parquet")
