"""Render the README.md of an export: training, measured accuracy and code that loads it."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from moco_accel.export.trained_encoder import PREPROCESSING, TrainedEncoder, preprocessing
from moco_accel.recipe.schema import Recipe

_ROWS = {
    "knn_top1": "this encoder",
    "knn_top1_random_init": "the same encoder before training",
    "knn_top1_mean_colour": "mean colour of a tile",
    "knn_top1_grey": "this encoder, grey tiles",
    "knn_top1_grey_random_init": "the same encoder before training, grey tiles",
}
_PAPER: dict[str, Any] = {
    "encoder.image_size": 224,
    "encoder.bands": 3,
    "moco.projector_hidden_dim": 4096,
    "moco.output_dim": 256,
    "moco.temperature": 0.2,
    "moco.momentum_coefficient": 0.99,
    "moco.momentum_schedule": "cosine",
    "moco.queue_size": 0,
    "batch.global_batch_size": 4096,
    "batch.contrast_over": "global_batch",
    "optimizer.name": "adamw",
    "schedule.epochs": 300,
    "augment.preset": "paper",
}
_PAPER_RESNET = {"moco.temperature": 1.0, "optimizer.name": "lars"}


def render_model_card(trained: TrainedEncoder, format_name: str, snippet: str, difference: float | None) -> str:
    """Return the model card; `difference` is the largest of the features read back (None: they were not)."""
    recipe = trained.recipe
    sections = [
        f"---\nlicense: unknown\nlibrary_name: {format_name}\npipeline_tag: image-feature-extraction\ntags:\n"
        "- moco-v3\n- self-supervised\n- remote-sensing\n- satellite-imagery\n- moco-accel\n---\n",
        f"# {recipe.encoder.name}, pretrained with MoCo v3 on satellite imagery\n",
        f"{trained.feature_dim} features of a tile of {recipe.encoder.image_size} x {recipe.encoder.image_size} pixels "
        f"and {recipe.encoder.bands} bands. The weights are those of the encoder (query side), without projector and "
        "predictor.\n",
        f"## Loading\n\n```python\n{snippet}```\n\n`pixels` are normalised as described below. "
        f"{_comparison(difference)}\n",
        _pixels(trained),
        _training(trained),
        _accuracy(trained),
        "## Differences from the paper\n\n" + "".join(f"- {line}\n" for line in _differences_from_paper(recipe)),
        "Made with moco-accel, an independent implementation of MoCo v3 (Chen, Xie, He, arXiv 2104.02057). "
        "The publisher of these weights decides on their licence. The licence of the imagery is its provider's.\n",
    ]
    return "\n".join(sections)


def _comparison(difference: float | None) -> str:
    if difference is None:
        return "The weights were not read back, because the library was not installed."
    return (
        f"Features differ from the trainer's by at most {difference:.1e} (random pixels, fp32; relative to the largest "
        "feature where that exceeds 1)."
    )


def _pixels(trained: TrainedEncoder) -> str:
    scaling = preprocessing(trained.recipe)
    columns = (scaling["bands"], scaling["low"], scaling["high"], scaling["mean"], scaling["std"])
    rows = "".join(
        f"| {band} | {low:g} | {high:g} | {mean:.6g} | {std:.6g} |\n"
        for band, low, high, mean, std in zip(*columns, strict=True)
    )
    names = "" if scaling["band_names_known"] else " The names of the bands are not known."
    nodata = ""
    if scaling["nodata"] is not None:
        nodata = f" {scaling['nodata']:g} in {scaling['nodata_in']} marks no data; the mean replaces such a pixel."
    return (
        f"## Pixels\n\n`(clip((stored - low) / (high - low), 0, 1) - mean) / std`, band by band. Pixels are resized "
        f"(bilinear, antialiased) before mean and std are applied.{nodata}{names} `{PREPROCESSING}` holds the same "
        f"values.\n\n| band | low | high | mean | std |\n|---|---|---|---|---|\n{rows}"
    )


def _training(trained: TrainedEncoder) -> str:
    recipe, batch, hardware = trained.recipe, trained.recipe.batch, trained.recipe.hardware
    device = f"GPU of {hardware.vram_gib:g} GiB" if hardware.vram_gib else "device (not named in the recipe)"
    rows = {
        "tiles": f"{trained.tile_count:,} of `{recipe.data.source}`",
        "training": f"{trained.epochs:.4g} of {recipe.schedule.epochs} epochs, {trained.step:,} steps",
        "batch": f"{batch.global_batch_size} tiles, {recipe.negatives_per_query} negatives per query",
        "optimizer": f"{recipe.optimizer.name}, lr {recipe.optimizer.lr:g}, weight decay "
        f"{recipe.optimizer.weight_decay:g}, {recipe.schedule.warmup_epochs:g} warmup epochs",
        "precision": {"no": "fp32"}.get(recipe.memory.mixed_precision, recipe.memory.mixed_precision),
        "augmentation": recipe.augment.preset,
        "hardware": f"{hardware.num_devices} x {hardware.gpu or device}",
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"## Training\n\n| | |\n|---|---|\n{table}"


def _accuracy(trained: TrainedEncoder) -> str:
    metrics = trained.metrics
    rows = {label: metrics[key] for key, label in _ROWS.items() if isinstance(metrics.get(key), int | float)}
    if "knn_top1" not in metrics:
        return "## Accuracy\n\nNot measured. `moco-eval` measures it on labelled tiles.\n"
    counts = [metrics.get(f"knn_{key}") for key in ("neighbours", "train_tiles", "test_tiles", "classes")]
    details = ""
    if all(isinstance(count, int) for count in counts):
        details = f" (k = {counts[0]}; {counts[1]:,} training and {counts[2]:,} test tiles, {counts[3]} classes)"
    checkpoint = (
        f"measured on these weights, after {trained.epochs:.4g} epochs"
        if trained.metrics_of_checkpoint
        else "read from the run's summary.json, which may be of another checkpoint of the run"
    )
    table = "".join(f"| {label} | {value:.1%} |\n" for label, value in rows.items())
    return (
        f"## Accuracy\n\nTop-1 accuracy of kNN on frozen features{details}, {checkpoint}.\n\n"
        f"| features | accuracy |\n|---|---|\n{table}"
    )


def _differences_from_paper(recipe: Recipe) -> list[str]:
    paper = _PAPER | (_PAPER_RESNET if recipe.encoder.name.startswith("resnet") else {})
    ours = {name: attrgetter(name)(recipe) for name in paper}
    lines = [f"`{name}` is {ours[name]}; the paper uses {paper[name]}" for name in paper if ours[name] != paper[name]]
    if recipe.encoder.weights is not None:
        lines.insert(0, f"training started from the weights {recipe.encoder.weights}; the paper starts at random")
    if recipe.data.pair_column is not None:
        lines.append("the two views show one place at two times; the paper's show one image")
    return [*lines, "trained on satellite imagery; the paper uses ImageNet"]
