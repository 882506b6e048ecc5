"""Results of moco-eval: summary.json, JSON, a table, a verdict, warnings and a line on preprocessing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.markup import escape
from rich.table import Table

from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.errors import UserError
from moco_accel.evaluation.baselines import BaselineComparison
from moco_accel.evaluation.linear_probe import MAX_ITERATIONS
from moco_accel.evaluation.metrics import accuracies_by_seed
from moco_accel.recipe.schema import Recipe

_MAX_LISTED_BANDS = 4
# baseline → key of the pretrained encoder, key of the baseline
_COMPARISONS = {
    "random initialisation (kNN)": ("knn_top1", "knn_top1_random_init"),
    "the mean colour (kNN)": ("knn_top1", "knn_top1_mean_colour"),
    "random initialisation on grey tiles (kNN)": ("knn_top1_grey", "knn_top1_grey_random_init"),
    "random initialisation (linear probe)": ("linear_top1", "linear_top1_random_init"),
    "the mean colour (linear probe)": ("linear_top1", "linear_top1_mean_colour"),
}


def verdict(by_seed: dict[str, list[float]]) -> str:
    """State which baselines pretraining beats, from the accuracies of each seed.

    A lead is compared with the sample standard deviation of the leads of all seeds, because a difficult split lowers
    the accuracy of the encoder and of the baseline alike.
    """
    lost: list[str] = []
    narrow: list[str] = []
    won: list[str] = []
    for baseline, (ours, theirs) in _COMPARISONS.items():
        if ours not in by_seed:
            continue
        lead = fmean(by_seed[ours]) - fmean(by_seed[theirs])
        leads = [mine - other for mine, other in zip(by_seed[ours], by_seed[theirs], strict=True)]
        deviation = stdev(leads) if len(leads) > 1 else 0.0
        (lost if lead <= 0 else narrow if lead <= deviation else won).append(baseline)
    sentences = []
    if lost:
        sentences.append(f"Pretraining does not beat {_join(lost, 'or')}.")
    elif won:
        sentences.append(f"Pretraining beats {_join(won, 'and')}.")
    if narrow:
        sentences.append(f"The lead over {_join(narrow, 'and')} is within one standard deviation.")
    return " ".join(sentences)


def summary_figures(recipe: Recipe, comparison: BaselineComparison, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the entries for summary.json; numbers of tiles are those of the first split."""
    split, pool = comparison.splits[0], comparison.pool
    chosen_c: dict[str, Any] = {"linear_strengths": comparison.chosen_c} if comparison.chosen_c else {}
    return {
        **{name: round(value, 4) for name, value in comparison.accuracies.items()},
        "knn_train_tiles": len(split.train),
        "knn_test_tiles": len(split.test),
        "knn_classes": len(pool.names),
        "knn_neighbours": recipe.evaluation.neighbours,
        **chosen_c,
        **{f"evaluation_{name}": value for name, value in settings.items()},
        "evaluation_left_out_tiles": split.left_out,
        "evaluation_exact_copies": comparison.duplicates.exact,
        "evaluation_near_copies": comparison.duplicates.near,
    }


def json_details(recipe: Recipe, comparison: BaselineComparison) -> dict[str, Any]:
    """Return what `--json` adds to the summary; confusion matrices are those of the first seed."""
    by_seed, scores = accuracies_by_seed(comparison.scores), comparison.scores
    (low, high), (mean, std) = recipe.stored_range, recipe.normalisation
    preprocessing = {"image_size": recipe.encoder.image_size, "bands": comparison.pool.bands}
    return {
        "classes": comparison.pool.names,
        "per_seed": {key: [round(value, 4) for value in values] for key, values in by_seed.items()},
        "confusion": {
            name: scores[name, ""][0].confusion.tolist() for name in ("knn", "linear") if (name, "") in scores
        },
        "preprocessing": preprocessing | {"low": low, "high": high, "mean": mean, "std": std},
    }


def update_summary(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures into a summary.json, atomically, and keep entries that are not from moco-eval.

    Raises:
        UserError: If the file is not JSON.
    """
    try:
        before = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is not JSON; move it away and run moco-eval again") from None
    kept = {name: value for name, value in before.items() if not _is_outdated(name)}
    write_atomically(path, json.dumps({**kept, **figures}, indent=2) + "\n")


def _is_outdated(key: str) -> bool:
    """Return whether an earlier moco-eval wrote this key of summary.json and this one may not overwrite it."""
    return key.startswith(("linear_", "evaluation_")) or (
        key.startswith("knn_") and (key.endswith("_sd") or "_balanced" in key)
    )


def describe_preprocessing(recipe: Recipe, bands: Sequence[str] | None) -> str:
    """Describe in one line how tiles with these bands are prepared for the encoder."""
    size, (low, high), (mean, std) = recipe.encoder.image_size, recipe.stored_range, recipe.normalisation
    names = ", ".join(bands[:_MAX_LISTED_BANDS]) + (" …" if bands[_MAX_LISTED_BANDS:] else "") if bands else "unknown"
    return (
        f"preprocessing as in training: {size} × {size} pixels, {recipe.encoder.bands} bands ({names}), values "
        f"{_format_per_band(low)} to {_format_per_band(high)} scaled to 0 to 1, minus mean {_format_per_band(mean)}, "
        f"divided by std {_format_per_band(std)}"
    )


def results_table(recipe: Recipe, comparison: BaselineComparison, split: str) -> Table:
    """Build a table of at most 80 columns: a row per kind of features, a column per metric."""
    first, accuracies = comparison.splits[0], comparison.accuracies
    counts = f"{len(first.train):,} training and {len(first.test):,} test tiles, {len(comparison.pool.names)} classes"
    title = f"{recipe.encoder.name}: accuracy in % (balanced: mean over classes)"
    table = Table(title=escape(title), caption=escape(f"{counts}; {split}"))
    table.add_column("features", no_wrap=True)
    columns = {f"kNN-{recipe.evaluation.neighbours}": "knn_top1", "balanced": "knn_balanced"}
    if "linear_top1" in accuracies:
        columns |= {"linear": "linear_top1", "balanced ": "linear_balanced"}
    columns["kNN, grey"] = "knn_top1_grey"
    for column in columns:
        table.add_column(column.strip(), justify="right", no_wrap=True)
    rows = {"pretrained": "", "random init": "_random_init", "mean colour": "_mean_colour"}
    for row, suffix in rows.items():
        cells = [_format_accuracy(accuracies, f"{key}{suffix}") for key in columns.values()]
        table.add_row(row, *cells, style="" if suffix else "bold")
    return table


def warnings(comparison: BaselineComparison, split: str) -> list[str]:
    """Return a line for each reason to distrust the accuracies."""
    lines, duplicates, left_out = [], comparison.duplicates, comparison.splits[0].left_out
    if split == "random":
        lines.append(
            "A random split puts neighbouring tiles on both sides, so accuracies are too high; use --split block:5."
        )
    if duplicates.exact or duplicates.near:
        lines.append(
            f"{duplicates.exact + duplicates.near:,} of {duplicates.tested:,} test tiles ({duplicates.share:.1%}) "
            f"are also training tiles: {duplicates.exact:,} with the same pixels, {duplicates.near:,} near-duplicates. "
            "This inflates kNN accuracy most."
        )
    if left_out:
        lines.append(f"{left_out:,} tiles are left out of both sides of the split.")
    if comparison.num_unconverged:
        lines.append(f"{comparison.num_unconverged} linear probes did not converge in {MAX_ITERATIONS:,} iterations.")
    return lines


def _format_accuracy(accuracies: dict[str, float], key: str) -> str:
    if key not in accuracies:
        return "–"
    deviation = accuracies.get(f"{key}_sd")
    return f"{100 * accuracies[key]:.1f}" + (f" ±{100 * deviation:.1f}" if deviation is not None else "")


def _join(names: Sequence[str], conjunction: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def _format_per_band(values: Sequence[float]) -> str:
    """Format one number if all bands have the same, else the numbers of the first few bands."""
    if len(set(values)) == 1:
        return f"{values[0]:.4g}"
    listed = "/".join(f"{value:.4g}" for value in values[:_MAX_LISTED_BANDS])
    return listed + ("/…" if len(values) > _MAX_LISTED_BANDS else "")
