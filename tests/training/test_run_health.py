"""The health of a run, its panel and its console lines."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from support.recipes import small_recipe

from moco_accel.training.console import RunState, format_row, render_panel
from moco_accel.training.run_health import assess_health

ROW: dict[str, Any] = {
    "step": 1199,
    "total_steps": 36600,
    "epoch": 10.0,
    "loss": 1.2,
    "lr": 1.2e-3,
    "momentum_coefficient": 0.99,
    "tiles_per_second": 812.4,
    "data_wait_share": 0.012,
    "feature_std": 0.8,
    "skipped_steps": 0,
    "damaged_tiles": 0,
    "peak_memory_mib": 4911,
    "planned_memory_mib": 5050,
    "card_memory_mib": 8192,
    "seconds": 7200.0,
}
EVALUATION: dict[str, Any] = {
    "step": 1220,
    "epoch": 10,
    "knn_epoch": 10,
    "knn_top1": 0.7563,
    "knn_top1_random_init": 0.601,
    "knn_top1_mean_colour": 0.6354,
    "rank_me": 120.4,
    "rank_of": 384,
    "alignment": 0.31,
    "uniformity": -2.1,
    "time_share": 0.012,
}
RECIPE = small_recipe(schedule={"epochs": 12, "warmup_epochs": 1})


@pytest.mark.parametrize(
    ("row", "evaluation", "level", "text"),
    [
        ({}, {}, "healthy", "healthy: kNN 75.6% (random initialisation 60.1%, mean colour 63.5%), RankMe 120 of 384"),
        (
            {"feature_std": 0.019},
            {},
            "unhealthy",
            "collapsed: all features are the same (standard deviation 0.019 of 1)",
        ),
        (
            {},
            {"rank_me": 3.1},
            "unhealthy",
            "collapsing: features fill 3.1 of 384 dimensions (RankMe), even if the loss",
        ),
        ({"loss": 1.66}, {}, "unhealthy", "learns nothing: after the warm-up, the loss is at its chance level, 1.66"),
        ({"loss": 1.66, "epoch": 1.5}, {}, "healthy", "healthy: kNN"),
        ({}, {"knn_top1": 0.61}, "warning", "kNN 61.0% does not beat mean colour 63.5%"),
        ({}, {"knn_top1": 0.5}, "warning", "kNN 50.0% does not beat random initialisation 60.1% or mean colour 63.5%"),
        ({"epoch": 2.9}, {"knn_top1": 0.5}, "healthy", "healthy: kNN 50.0%"),
        (
            {"skipped_steps": 50},
            {},
            "warning",
            "50 steps skipped because of fp16 overflow; try memory.mixed_precision=bf16",
        ),
        (
            {"data_wait_share": 0.31},
            {},
            "warning",
            "31% of the time is spent waiting for data; try a larger data.num_workers",
        ),
        ({"damaged_tiles": 3}, {}, "warning", "3 damaged tiles replaced by others; damaged_tiles.jsonl lists them"),
    ],
)
def test_health_is_the_worst_finding(row: dict[str, Any], evaluation: dict[str, Any], level: str, text: str) -> None:
    found = assess_health(RECIPE, ROW | row, EVALUATION | evaluation)
    assert (found.level, found.text[: len(text)]) == (level, text)


def test_health_without_labels_or_evaluations() -> None:
    unlabelled = {name: value for name, value in EVALUATION.items() if not name.startswith("knn")}
    assert assess_health(RECIPE, ROW, unlabelled).text == "healthy: RankMe 120 of 384"
    assert assess_health(RECIPE, ROW, None).text == "healthy so far"


def panel_rows(state: RunState) -> list[str]:
    console = Console(width=110, record=True, file=StringIO())
    console.print(render_panel(state))
    return [row.strip("│╭╮╰╯─ ") for row in console.export_text().splitlines()]


def test_panel_of_a_running_run() -> None:
    state = RunState(
        RECIPE, "runs/mine", 36600, 0, 1220, 7200.0, 8192, ROW, EVALUATION, assess_health(RECIPE, ROW, EVALUATION)
    )
    rows = panel_rows(state)
    assert rows[0].startswith("vit_tiny_patch8 · global batch 8 · runs/mine")
    for text in (
        "step 1,220 of 36,600",
        "2 days, 10:00:00 left, 2:00:00 elapsed",
        "1 of 12",
        "loss      1.200  chance 1.66   feature std 0.80",
        "lr 1.20e-03   momentum coefficient 0.9900",
        "812 tiles/s   1.2% waiting for data",
        "peak 4,911 MiB, planned 5,050, GPU 8,192",
        "75.6% (random initialisation 60.1%, mean colour 63.5%)   after epoch 10, 1.2% of the time",
        "RankMe 120 of 384   alignment 0.31   uniformity -2.10",
        "● healthy: kNN 75.6%",
    ):
        assert any(text in row for row in rows), (text, rows)


def test_panel_before_the_first_and_after_the_last_step() -> None:
    assert any("step 0 of 24" in row for row in panel_rows(RunState(RECIPE, "runs/[b]", 24)))
    done = panel_rows(RunState(RECIPE, "r", 24, 0, 24, 10.0))
    assert any("12 of 12" in row for row in done)
    assert any("0:00:00 left, 0:00:10 elapsed" in row for row in done)


def test_row_as_a_console_line() -> None:
    row = ROW | {"skipped_steps": 2, "damaged_tiles": 1}
    assert format_row(RunState(RECIPE, "r", 36600, card_mib=8192), row) == (
        "step 1199/36600  loss [bold]1.200[/] (chance 1.66)  lr 1.20e-03  m 0.9900  812 tiles/s  1% data wait  "
        "std 0.80  VRAM 4911 MiB (plan 5050)  [yellow]2 steps skipped (fp16 overflow)[/]  "
        "[yellow]1 damaged tiles replaced[/]"
    )
