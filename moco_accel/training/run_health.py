"""Is a run well? One line, from what has been logged: the console's, and the report's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moco_accel.recipe.schema import Recipe

COLLAPSED_STD = 0.02  # of 1 for evenly spread features
COLLAPSE_STEPS = 100  # so many in a row are no accident of one batch
_LEAST_RANK_SHARE = 0.03  # the demo: 0.17, at 100 times its lr 0.012 to 0.025, at random 0.09
_NO_BETTER_THAN_CHANCE = 0.99
_EARLY = 0.25  # of a run: until then pretraining need not beat its baselines
_MUCH_WAITING = 0.2
_MANY_SKIPPED = 0.02

Level = Literal["well", "look", "ill"]
STYLES: dict[Level, str] = {"well": "green", "look": "yellow", "ill": "bold red"}


@dataclass(frozen=True)
class Verdict:
    level: Level
    text: str


def verdict(recipe: Recipe, last: Mapping[str, Any], examined: Mapping[str, Any] | None) -> Verdict:
    """The worst that can be said by the last rows of metrics.jsonl and evaluations.jsonl; else that all is well."""
    for level, found in (("ill", _illness(recipe, last, examined)), ("look", _worry(recipe, last, examined))):
        if found:
            return Verdict(level, found)  # type: ignore[arg-type]
    return Verdict("well", _all_well(examined))


def _illness(recipe: Recipe, last: Mapping[str, Any], examined: Mapping[str, Any] | None) -> str:
    if last["feature_std"] < COLLAPSED_STD:
        return (
            f"collapsed: all features are one point (standard deviation {last['feature_std']:.3f} of 1); a lower "
            "optimizer.base_lr helps"
        )
    if examined and examined["rank_me"] < _LEAST_RANK_SHARE * examined["rank_of"]:
        return (
            f"collapsing: features fill {examined['rank_me']:.1f} of {examined['rank_of']} dimensions (RankMe), "
            "however the loss falls; a lower optimizer.base_lr helps"
        )
    past_warmup = last["epoch"] > recipe.schedule.warmup_epochs + 1
    if past_warmup and last["loss"] > _NO_BETTER_THAN_CHANCE * recipe.chance_loss:
        return f"learns nothing: the loss is at its chance level, {recipe.chance_loss:.2f}, after the warm-up"
    return ""


def _worry(recipe: Recipe, last: Mapping[str, Any], examined: Mapping[str, Any] | None) -> str:
    if examined and "knn_top1" in examined and last["epoch"] >= _EARLY * recipe.schedule.epochs:
        names = {"knn_top1_random_init": "random initialisation", "knn_top1_mean_colour": "mean colour"}
        lost = [f"{names[key]} {examined[key]:.1%}" for key in names if examined["knn_top1"] <= examined[key]]
        if lost:
            return f"kNN {examined['knn_top1']:.1%} does not beat {' or '.join(lost)}"
    if last["skipped_steps"] > _MANY_SKIPPED * (last["step"] + 1) and last["skipped_steps"] > 1:
        return f"{last['skipped_steps']} steps skipped for fp16 overflow; memory.mixed_precision=bf16 has none"
    if last["data_wait_share"] > _MUCH_WAITING:
        return f"{last['data_wait_share']:.0%} of the time goes to waiting for data; a larger data.num_workers helps"
    if last["damaged_tiles"]:
        return f"{last['damaged_tiles']} damaged tiles replaced by others; damaged_tiles.jsonl lists them"
    return ""


def _all_well(examined: Mapping[str, Any] | None) -> str:
    if examined is None:
        return "well so far"
    rank = f"RankMe {examined['rank_me']:.0f} of {examined['rank_of']}"
    if "knn_top1" not in examined:
        return f"well: {rank}"
    return f"well: {knn_text(examined)}, {rank}"


def knn_text(examined: Mapping[str, Any]) -> str:
    """kNN accuracy beside its baselines."""
    return (
        f"kNN {examined['knn_top1']:.1%} (random initialisation {examined['knn_top1_random_init']:.1%}, mean colour "
        f"{examined['knn_top1_mean_colour']:.1%})"
    )
