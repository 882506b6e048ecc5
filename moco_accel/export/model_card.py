"""README.md of an export: what was trained on what, what was measured, how to load it. Nothing that is not known."""

from __future__ import annotations

from typing import Any

from moco_accel.export.trained import PREPROCESSING, Trained, preprocessing
from moco_accel.recipe.schema import Recipe

_LIBRARY_NAMES = {"transformers": "transformers", "timm": "timm", "torchvision": "torchvision", "onnx": "onnx"}
_ROWS = {
    "knn_top1": "this encoder",
    "knn_top1_random_init": "the same encoder before training",
    "knn_top1_mean_colour": "mean colour of a tile",
    "knn_top1_grey": "this encoder, grey tiles",
    "knn_top1_grey_random_init": "the same encoder before training, grey tiles",
}


def model_card(trained: Trained, format_name: str, loading: str, worst: float | None) -> str:
    """The whole card; `loading` is Python, `worst` the largest difference found when the export was read back."""
    recipe = trained.recipe
    sections = [
        _front_matter(format_name),
        f"# {recipe.encoder.name}, pretrained with MoCo v3 on satellite imagery\n",
        f"{trained.feature_dim} features of a tile of {recipe.encoder.image_size} x {recipe.encoder.image_size} pixels "
        f"and {recipe.encoder.bands} bands. Weights of the encoder alone, query side; no projector, no predictor.\n",
        f"## Loading it\n\n```python\n{loading}```\n\n`pixels` are normalised, as below. {_compared(worst)}\n",
        _pixels(trained),
        _training(trained),
        _measured(trained),
        "## What differs from the paper\n\n" + "".join(f"- {line}\n" for line in differences(recipe)),
        "Made with moco-accel, an independent implementation of MoCo v3 "
        "(Chen, Xie, He, arXiv 2104.02057). The licence of these weights is for whoever publishes them to say; that of "
        "the imagery is its provider's.\n",
    ]
    return "\n".join(sections)


def differences(recipe: Recipe) -> list[str]:
    """Where a recipe is not the paper's, field by field."""
    resnet = recipe.encoder.name.startswith("resnet")
    moco, batch = recipe.moco, recipe.batch
    fields: list[tuple[str, Any, Any]] = [
        ("encoder.image_size", recipe.encoder.image_size, 224),
        ("encoder.bands", recipe.encoder.bands, 3),
        ("moco.projector_hidden_dim", moco.projector_hidden_dim, 4096),
        ("moco.output_dim", moco.output_dim, 256),
        ("moco.temperature", moco.temperature, 1.0 if resnet else 0.2),
        ("moco.momentum_coefficient", moco.momentum_coefficient, 0.99),
        ("moco.momentum_schedule", moco.momentum_schedule, "cosine"),
        ("moco.queue_size", moco.queue_size, 0),
        ("batch.global_batch_size", batch.global_batch_size, 4096),
        ("batch.contrast_over", batch.contrast_over, "global_batch"),
        ("optimizer.name", recipe.optimizer.name, "lars" if resnet else "adamw"),
        ("schedule.epochs", recipe.schedule.epochs, 300),
        ("augment.preset", recipe.augment.preset, "paper"),
    ]
    found = [f"`{name}` is {ours}, the paper's {theirs}" for name, ours, theirs in fields if ours != theirs]
    if recipe.encoder.weights is not None:
        found.insert(0, f"training began with the weights {recipe.encoder.weights}, the paper's at random")
    if recipe.data.pair_column is not None:
        found.append("both views are of one place at two times, the paper's of one image")
    return [*found, "trained on satellite imagery, the paper on ImageNet"]


def _compared(worst: float | None) -> str:
    if worst is None:
        return "The weights were not read back, for the library was not installed."
    return (
        f"Features equal the trainer's to {worst:.1e} (random pixels, fp32, largest difference; where features exceed "
        "1, of the largest)."
    )


def _front_matter(format_name: str) -> str:
    library = _LIBRARY_NAMES.get(format_name, format_name)
    tags = ["moco-v3", "self-supervised", "remote-sensing", "satellite-imagery", "moco-accel"]
    lines = ["license: unknown", f"library_name: {library}", "pipeline_tag: image-feature-extraction", "tags:"]
    return "---\n" + "\n".join([*lines, *(f"- {tag}" for tag in tags)]) + "\n---\n"


def _pixels(trained: Trained) -> str:
    facts = preprocessing(trained.recipe)
    columns = (facts["bands"], facts["low"], facts["high"], facts["mean"], facts["std"])
    rows = "".join(
        f"| {band} | {low:g} | {high:g} | {mean:.6g} | {std:.6g} |\n"
        for band, low, high, mean, std in zip(*columns, strict=True)
    )
    named = "" if facts["band_names_known"] else " The tiles did not name their bands."
    nodata = (
        ""
        if facts["nodata"] is None
        else f" {facts['nodata']:g} in {facts['nodata_in']} is no data: such a pixel is the mean."
    )
    return (
        f"## Pixels\n\n`(clip((stored - low) / (high - low), 0, 1) - mean) / std`, band by band; resized, bilinear and "
        f"antialiased, before mean and std are applied.{nodata}{named} `{PREPROCESSING}` says the same.\n\n"
        f"| band | low | high | mean | std |\n|---|---|---|---|---|\n{rows}"
    )


def _training(trained: Trained) -> str:
    recipe, batch = trained.recipe, trained.recipe.batch
    hardware = recipe.hardware
    card = hardware.gpu or (
        f"GPU of {hardware.vram_gib:g} GiB" if hardware.vram_gib else "device, which the recipe does not name"
    )
    rows = {
        "tiles": f"{trained.tile_count:,} of `{recipe.data.source}`",
        "training": f"{trained.epochs:.4g} of {recipe.schedule.epochs} epochs, {trained.step:,} steps",
        "batch": f"{batch.global_batch_size} tiles, {recipe.negatives_per_query} negatives per query",
        "optimizer": f"{recipe.optimizer.name}, lr {recipe.optimizer.lr:g}, weight decay "
        f"{recipe.optimizer.weight_decay:g}, {recipe.schedule.warmup_epochs:g} warmup epochs",
        "precision": {"no": "fp32"}.get(recipe.memory.mixed_precision, recipe.memory.mixed_precision),
        "augmentation": f"{recipe.augment.preset}",
        "hardware": f"{hardware.num_devices} x {card}",
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"## Training\n\n| | |\n|---|---|\n{table}"


def _measured(trained: Trained) -> str:
    figures = trained.figures
    rows = {label: figures[key] for key, label in _ROWS.items() if isinstance(figures.get(key), int | float)}
    if "knn_top1" not in figures:
        return "## Measured\n\nNothing was measured of these features; `moco-eval` does on labelled tiles.\n"
    counts = [figures.get(f"knn_{key}") for key in ("neighbours", "train_tiles", "test_tiles", "classes")]
    how = "k nearest neighbours of frozen features"
    if all(isinstance(count, int) for count in counts):
        how = f"{counts[0]} {how[2:]}; {counts[1]:,} training and {counts[2]:,} test tiles, {counts[3]} classes"
    table = "".join(f"| {label} | {value:.1%} |\n" for label, value in rows.items())
    whose = (
        f"of these weights, after {trained.epochs:.4g} epochs"
        if trained.are_its_own
        else "as last written into the run's summary.json, which may be of another of its checkpoints"
    )
    return f"## Measured\n\nTop-1 accuracy by {how}, {whose}.\n\n| features | accuracy |\n|---|---|\n{table}"
