"""Assess the health of a run from its logged rows, in one line for the console and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moco_accel.recipe.schema import Recipe

COLLAPSED_STD = 0.02  # evenly spread features have 1
COLLAPSE_STEPS = 100  # in a row, so that no single batch decides
_MIN_RANK_SHARE = 0.03  # the demo: 0.17, at 100 times its lr 0.012 to 0.025, at random 0.09
_MAX_CHANCE_SHARE = 0.99
_EARLY_SHARE = 0.25  # of a run, in which pretraining need not beat its baselines
_MAX_WAIT_SHARE = 0.2
_MAX_SKIPPED_SHARE = 0.02

Row = Mapping[str, Any]
Level = Literal["healthy", "warning", "unhealthy"]
STYLES: dict[Level, str] = {"healthy": "green", "warning": "yellow", "unhealthy": "bold red"}


@dataclass(frozen=True)
class Health:
    """Health of a run, with the reason in one line."""

    level: Level
    text: str


def assess_health(recipe: Recipe, row: Row, evaluation: Row | None) -> Health:
    """Return the worst finding in the last row of metrics.jsonl and the last figures of evaluations.jsonl, if any."""
    if problem := _find_problem(recipe, row, evaluation):
        return Health("unhealthy", problem)
    if warning := _find_warning(recipe, row, evaluation):
        return Health("warning", warning)
    return Health("healthy", _describe_healthy(evaluation))


def stopped(health: Health, steps_done: int, total_steps: int) -> Health:
    """Return the health of a run that no process trains any more, given its health up to its last logged step."""
    level: Level = "warning" if health.level == "healthy" else health.level
    return Health(level, f"stopped at step {steps_done:,} of {total_steps:,}; until then: {health.text}")


def _find_problem(recipe: Recipe, row: Row, evaluation: Row | None) -> str:
    if row["feature_std"] < COLLAPSED_STD:
        return (
            f"collapsed: all features are the same (standard deviation {row['feature_std']:.3f} of 1); try a lower "
            "optimizer.base_lr"
        )
    if evaluation and evaluation["rank_me"] < _MIN_RANK_SHARE * evaluation["rank_of"]:
        return (
            f"collapsing: features fill {evaluation['rank_me']:.1f} of {evaluation['rank_of']} dimensions (RankMe), "
            "even if the loss falls; try a lower optimizer.base_lr"
        )
    past_warmup = row["epoch"] > recipe.schedule.warmup_epochs + 1
    if past_warmup and row["loss"] > _MAX_CHANCE_SHARE * recipe.chance_loss:
        return f"learns nothing: after the warm-up, the loss is at its chance level, {recipe.chance_loss:.2f}"
    return ""


def _find_warning(recipe: Recipe, row: Row, evaluation: Row | None) -> str:
    if evaluation and "knn_top1" in evaluation and row["epoch"] >= _EARLY_SHARE * recipe.schedule.epochs:
        names = {"knn_top1_random_init": "random initialisation", "knn_top1_mean_colour": "mean colour"}
        lost = [f"{names[key]} {evaluation[key]:.1%}" for key in names if evaluation["knn_top1"] <= evaluation[key]]
        if lost:
            return f"kNN {evaluation['knn_top1']:.1%} does not beat {' or '.join(lost)}"
    if row["skipped_steps"] > _MAX_SKIPPED_SHARE * (row["step"] + 1) and row["skipped_steps"] > 1:
        return f"{row['skipped_steps']} steps skipped because of fp16 overflow; try memory.mixed_precision=bf16"
    if row["data_wait_share"] > _MAX_WAIT_SHARE:
        return f"{row['data_wait_share']:.0%} of the time is spent waiting for data; try a larger data.num_workers"
    if row["damaged_tiles"]:
        return f"{row['damaged_tiles']} damaged tiles replaced by others; damaged_tiles.jsonl lists them"
    return ""


def _describe_healthy(evaluation: Row | None) -> str:
    if evaluation is None:
        return "healthy so far"
    rank = f"RankMe {evaluation['rank_me']:.0f} of {evaluation['rank_of']}"
    return f"healthy: {format_knn(evaluation)}, {rank}" if "knn_top1" in evaluation else f"healthy: {rank}"


def format_knn(evaluation: Row) -> str:
    """Return the kNN accuracy with its baselines."""
    random_init, mean_colour = evaluation["knn_top1_random_init"], evaluation["knn_top1_mean_colour"]
    return f"kNN {evaluation['knn_top1']:.1%} (random initialisation {random_init:.1%}, mean colour {mean_colour:.1%})"
