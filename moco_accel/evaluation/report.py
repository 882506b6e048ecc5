"""What moco-eval says: figures for summary.json and JSON, a table, a verdict, and how tiles were prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from moco_accel.evaluation.baselines import Judgement
    from moco_accel.recipe.schema import Recipe

_MOST_BANDS = 4  # spelled out
# name → key of ours, key of theirs
_CONTESTS = {
    "random initialisation in colour": ("knn_top1", "knn_top1_random_init"),
    "the mean colour": ("knn_top1", "knn_top1_mean_colour"),
    "random initialisation on grey tiles": ("knn_top1_grey", "knn_top1_grey_random_init"),
    "random initialisation under a linear probe": ("linear_top1", "linear_top1_random_init"),
    "the mean colour under a linear probe": ("linear_top1", "linear_top1_mean_colour"),
}


def verdict(accuracies: dict[str, float], by_seed: dict[str, list[float]] | None = None) -> str:
    """In a sentence or two: which baselines pretraining beats, and which it does not, or hardly.

    `by_seed` has each seed's accuracies: a lead is held against the sample deviation of its own values, since seeds
    that are hard for one are hard for all.
    """
    from moco_accel.evaluation.scores import mean_and_sd

    contests = {name: keys for name, keys in _CONTESTS.items() if keys[0] in accuracies}
    lost: list[str] = []
    narrow: list[str] = []
    won: list[str] = []
    for name, (ours, theirs) in contests.items():
        lead = accuracies[ours] - accuracies[theirs]
        seeds = by_seed or {}
        leads = [mine - other for mine, other in zip(seeds.get(ours, []), seeds.get(theirs, []), strict=True)]
        deviation = mean_and_sd(leads)[1] or 0.0 if leads else 0.0
        (lost if lead <= 0 else narrow if lead <= deviation else won).append(name)
    sentence = ""
    if lost:
        sentence = f"Pretraining did not beat {_listed(lost, 'or')}."
    elif won:
        sentence = f"Pretraining beats {_listed(won, 'and')}."
    if narrow:
        sentence += f" Its lead over {_listed(narrow, 'and')} is within one standard deviation."
    return sentence.strip()


def figures(recipe: Recipe, judgement: Judgement, told: dict[str, Any]) -> dict[str, Any]:
    """For summary.json: accuracies, then what they are of. Counts are those of the first split."""
    split, pool = judgement.splits[0], judgement.pool
    of_probe: dict[str, Any] = {"linear_strengths": judgement.strengths} if judgement.strengths else {}
    return {
        **{name: round(value, 4) for name, value in judgement.accuracies.items()},
        "knn_train_tiles": len(split.train),
        "knn_test_tiles": len(split.test),
        "knn_classes": len(pool.names),
        "knn_neighbours": recipe.evaluation.neighbours,
        **of_probe,
        **{f"evaluation_{name}": value for name, value in told.items()},
        "evaluation_left_out_tiles": split.left_out,
        "evaluation_exact_copies": judgement.copies.exact,
        "evaluation_near_copies": judgement.copies.near,
    }


def accuracies_by_seed(judgement: Judgement) -> dict[str, list[float]]:
    """By the same keys as their means."""
    return {
        f"{probe}_{metric}{name}": [getattr(each, metric) for each in scores]
        for (probe, name), scores in judgement.scores.items()
        for metric in ("top1", "balanced")
    }


def details(recipe: Recipe, judgement: Judgement) -> dict[str, Any]:
    """What JSON has beside the figures: each seed's, confusion matrices of the first, and how tiles were prepared."""
    by_seed = {key: [round(value, 4) for value in values] for key, values in accuracies_by_seed(judgement).items()}
    of_ours = {probe: scores[0] for (probe, name), scores in judgement.scores.items() if not name}
    confusion = {probe: each.confusion.tolist() for probe, each in of_ours.items()}
    low, high = recipe.stored_range
    mean, std = recipe.normalisation
    prepared: dict[str, Any] = {"image_size": recipe.encoder.image_size, "bands": judgement.pool.bands}
    prepared |= {"low": low, "high": high, "mean": mean, "std": std}
    return {"classes": judgement.pool.names, "per_seed": by_seed, "confusion": confusion, "preprocessing": prepared}


def stale(name: str) -> bool:
    """Whether a key of an earlier summary is moco-eval's and may not be written again."""
    return name.startswith(("linear_", "evaluation_")) or (
        name.startswith("knn_") and (name.endswith("_sd") or "_balanced" in name)
    )


def preprocessing(recipe: Recipe, bands: Sequence[str] | None) -> str:
    """One line: what the checkpoint's recipe does to a tile before the encoder sees it."""
    size, (low, high), (mean, std) = recipe.encoder.image_size, recipe.stored_range, recipe.normalisation
    names = ", ".join(bands[:_MOST_BANDS]) + (" …" if bands[_MOST_BANDS:] else "") if bands else "names unknown"
    return (
        f"tiles as in training: {size} × {size} pixels, {recipe.encoder.bands} bands ({names}), stored {_numbers(low)} "
        f"to {_numbers(high)} → 0 to 1, less mean {_numbers(mean)}, over std {_numbers(std)}"
    )


def table(recipe: Recipe, judgement: Judgement, split: str) -> Table:
    """Rows: pretrained, random initialisation, mean colour. Columns: kNN, linear probe, kNN on grey tiles; 80 wide."""
    first, accuracies = judgement.splits[0], judgement.accuracies
    counts = f"{len(first.train):,} training and {len(first.test):,} test tiles, {len(judgement.pool.names)} classes"
    caption = f"{counts}; {split}"
    with_linear = "linear_top1" in accuracies
    title = f"{recipe.encoder.name}: accuracy in % (balanced: mean over classes)"
    shown = Table(title=escape(title), caption=escape(caption))
    shown.add_column("features", no_wrap=True)
    columns = {f"kNN-{recipe.evaluation.neighbours}": "knn_top1", "balanced": "knn_balanced"}
    if with_linear:
        columns |= {"linear": "linear_top1", "balanced ": "linear_balanced"}
    columns["kNN, grey"] = "knn_top1_grey"
    for column in columns:
        shown.add_column(column.strip(), justify="right", no_wrap=True)
    rows = {"pretrained": "", "random init": "_random_init", "mean colour": "_mean_colour"}
    for row, suffix in rows.items():
        cells = [_cell(accuracies, f"{key}{suffix}") for key in columns.values()]
        shown.add_row(row, *cells, style="" if suffix else "bold")
    return shown


def _cell(accuracies: dict[str, float], key: str) -> str:
    if key not in accuracies:
        return "–"
    deviation = accuracies.get(f"{key}_sd")
    return f"{100 * accuracies[key]:.1f}" + (f" ±{100 * deviation:.1f}" if deviation is not None else "")


def _listed(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _numbers(values: Sequence[float]) -> str:
    """One where all are the same; of many bands the first few."""
    if len(set(values)) == 1:
        return f"{values[0]:.4g}"
    return "/".join(f"{value:.4g}" for value in values[:_MOST_BANDS]) + ("/…" if len(values) > _MOST_BANDS else "")
