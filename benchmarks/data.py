"""Compare data pipelines on one core, in tiles per second, and measure the memory of a loader worker over 50,000 tiles.

The pipelines are the paper's, this project's, lightly's and torchgeo's; kornia's photometric part; and the reading of
parquet shards and loose files. Tiles of 256 pixels are cut from the Blue Marble and stored as JPEG of quality 90. Every
round runs each pipeline on the same tiles, in an order that is rotated by one each round; a ratio compares times of one
round. Times are CPU times of the process, so that other load on the machine matters less. `pip install lightly
torchgeo` to include those two.

    python benchmarks/data.py >> benchmarks/results/data.jsonl
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import datasets
import torch
import typer
from other_data import OTHERS, SIDE, kornia_photometric, paper
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from moco_accel.images.decoding import decode_raster
from moco_accel.recipe.data_sections import Data
from moco_accel.recipe.load import recipe_from_dict
from moco_accel.recipe.rules import scaled_lr
from moco_accel.recipe.schema import Recipe
from moco_accel.tiles.tiles import open_tiles
from moco_accel.training.loader import TwoViewDataset
from moco_accel.views.augment import augment_pixels
from moco_accel.views.crops import Crop, CropBatch, make_crop, stack_crops

IMAGERY = Path(__file__).parents[1] / "moco_accel/assets/bmng.jpg"
PAPER, LOADER, WHOLE, SATELLITE = "the paper's", "our loader", "ours, whole", "ours, whole, preset satellite"
KORNIA, PHOTOMETRIC = "kornia, view 1", "our photometric part, view 1"
PARQUET, LOOSE = "parquet shards", "loose files"
STORED = 1000  # tiles in each of the two
console = Console(stderr=True)


def tiles_of(imagery: Path, count: int, side: int = 256) -> list[bytes]:
    """Cut `count` JPEG tiles from `imagery` at random positions."""
    draw, tiles = random.Random(0), []
    with Image.open(imagery) as image:
        whole = image.convert("RGB")
    for _ in range(count):
        left, top = draw.randint(0, whole.width - side), draw.randint(0, whole.height - side)
        whole.crop((left, top, left + side, top + side)).save(file := io.BytesIO(), "JPEG", quality=90)
        tiles.append(file.getvalue())
    return tiles


def recipe_of(preset: str, side: int = SIDE, source: str = "unused") -> Recipe:
    return recipe_from_dict(
        {
            "encoder": {"name": "vit_small_patch16", "image_size": side},
            "batch": {"global_batch_size": 32, "micro_batch_size": 32, "accumulation_steps": 1},
            "optimizer": {"name": "adamw", "lr": scaled_lr(1.5e-4, 32)},
            "augment": {"preset": preset},
            "data": {"source": source},
        }
    )


def crops_of(tiles: Sequence[bytes], recipe: Recipe) -> tuple[CropBatch, CropBatch]:
    """Do what a loader worker does for a micro-batch."""
    views: tuple[list[Crop], list[Crop]] = [], []
    for index, raw in enumerate(tiles):
        tile = decode_raster(raw)
        for view in (0, 1):
            views[view].append(make_crop(tile, recipe, 0, index, view))
    return stack_crops(views[0]), stack_crops(views[1])


def whole(tiles: Sequence[bytes], recipe: Recipe) -> None:
    for batch in crops_of(tiles, recipe):
        augment_pixels(batch, recipe)


def two_view_pipelines(tiles: Sequence[bytes]) -> tuple[dict[str, Callable[[], object]], list[str]]:
    version, by_paper = paper()
    as_paper, satellite, versions = recipe_of("paper"), recipe_of("satellite"), [version]
    runs: dict[str, Callable[[], object]] = {
        PAPER: lambda: by_paper(tiles),
        LOADER: lambda: crops_of(tiles, as_paper),
        WHOLE: lambda: whole(tiles, as_paper),
        SATELLITE: lambda: whole(tiles, satellite),
    }
    for name, build in OTHERS.items():
        try:
            version, views = build()
        except ImportError as error:
            console.print(f"{name}: not installed ({error})")
            continue
        versions.append(version)
        runs[name] = lambda views=views: views(tiles)  # type: ignore[misc]
    return runs, versions


def photometric_parts(tiles: Sequence[bytes]) -> tuple[dict[str, Callable[[], object]], list[str]]:
    recipe = recipe_of("paper")
    batch, _ = crops_of(tiles, recipe)
    runs: dict[str, Callable[[], object]] = {PHOTOMETRIC: lambda: augment_pixels(batch, recipe)}
    try:
        version, photometric = kornia_photometric()
    except ImportError as error:
        console.print(f"kornia: not installed ({error})")
        return runs, []
    pixels = batch.pixels.float() / 255
    return {KORNIA: lambda: photometric(pixels), **runs}, [version]


def sources(tiles: Sequence[bytes], folder: Path) -> dict[str, Callable[[], object]]:
    """Store the tiles as parquet shards and as a folder of files, and read both in the same random order."""
    for name in (PARQUET, LOOSE):
        (folder / name).mkdir()
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": raw, "path": None} for raw in tiles]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / PARQUET / "tiles-00000-of-00001.parquet")
    for number, raw in enumerate(tiles):
        (folder / LOOSE / f"{number:06d}.jpg").write_bytes(raw)
    order = random.Random(1).sample(range(len(tiles)), len(tiles))

    def read(name: str) -> Callable[[], object]:
        opened = open_tiles(str(folder / name), Data(source=str(folder / name)), 3)
        return lambda: [opened[index] for index in order]

    return {LOOSE: read(LOOSE), PARQUET: read(PARQUET)}


def timed_rounds(runs: dict[str, Callable[[], object]], rounds: int, tiles: int) -> list[dict[str, float]]:
    """Return the CPU milliseconds per tile of each pipeline, for each round."""
    names, timings = list(runs), []
    for run in runs.values():
        run()
    for turn in range(rounds):
        row = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            runs[name]()
            row[name] = round((time.process_time() - start) * 1e3 / tiles, 4)
        timings.append({name: row[name] for name in names})
    return timings


def report(title: str, timings: list[dict[str, float]]) -> None:
    """Print the median milliseconds, and the speed relative to the first pipeline: median, minimum and maximum."""
    table = Table("pipeline", "ms per tile", "tiles/s", "speed relative to the first", title=title, box=None)
    first = next(iter(timings[0]))
    for name in timings[0]:
        ratios = sorted(row[first] / row[name] for row in timings)
        median = statistics.median(row[name] for row in timings)
        speed = f"{statistics.median(ratios):.2f} × ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        table.add_row(name, f"{median:.2f}", f"{1000 / median:.0f}", speed)
    console.print(table)


def worker_memory(folder: Path, count: int) -> list[dict[str, float]]:
    """Return the MiB of anonymous and shared memory of a loader worker as it reads tiles.

    The worker is spawned, because a forked one would inherit the memory of this process.
    """
    recipe = recipe_of("satellite", 64, str(folder / PARQUET))
    views = TwoViewDataset(open_tiles(recipe.data.source, recipe.data, 3), recipe)
    draw = random.Random(2)
    batches = ([(epoch, draw.randrange(STORED)) for _ in range(50)] for epoch in range(count // 50))
    loader = DataLoader(
        views, batch_sampler=list(batches), num_workers=1, collate_fn=len, multiprocessing_context="spawn"
    )
    rows, iterator = [], iter(loader)
    worker = iterator._workers[0].pid  # type: ignore[attr-defined]
    for number, _ in enumerate(iterator, 1):
        if number % max(1, count // 1000) == 0:
            rows.append({"tiles": number * 50, "mib": round(sum(_private_kib(worker)) / 1024, 1)})
    return rows


def _private_kib(process: int) -> Iterator[int]:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(("RssAnon", "RssShmem")):
            yield int(line.split()[1])


def main(
    tiles: Annotated[int, typer.Option(help="Tiles per micro-batch.")] = 32,
    rounds: int = 9,
    memory_tiles: Annotated[int, typer.Option(help="Tiles that the loader worker reads; 0 to skip.")] = 50_000,
    imagery: Annotated[Path, typer.Option(help="Image from which tiles are cut.")] = IMAGERY,
) -> None:
    """Compare pipelines on one core. Print a JSON row per round to stdout, and tables to stderr."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    raw = tiles_of(imagery, tiles)
    machine = {"processor": _processor(), "threads": 1, "python": platform.python_version(), "load": os.getloadavg()[0]}
    machine |= {"torch": str(torch.__version__), "imagery": imagery.name, "tiles": tiles}
    with tempfile.TemporaryDirectory() as folder:
        stored = tiles_of(imagery, STORED)
        compared = {
            "two views, 256-px JPEG to 224 px": (*two_view_pipelines(raw), tiles),
            "photometric part, 224 px": (*photometric_parts(raw), tiles),
            "reading 256-px JPEG": (sources(stored, Path(folder)), [], STORED),
        }
        for title, (runs, versions, count) in compared.items():
            timings = timed_rounds(runs, rounds, count)
            for number, row in enumerate(timings):
                print(json.dumps({"kind": title, "round": number, "ms_per_tile": row, "versions": versions, **machine}))
            report(title, timings)
        if memory_tiles:
            rows = worker_memory(Path(folder), memory_tiles)
            print(json.dumps({"kind": "memory of a loader's worker", "rows": rows, **machine}))
            mib = [row["mib"] for row in rows]
            console.print(
                f"a loader worker over {memory_tiles:,} tiles: {mib[0]} MiB at first, {min(mib)} to {max(mib)} "
                f"({max(mib) / mib[0] - 1:+.1%})"
            )


def _processor() -> str:
    with Path("/proc/cpuinfo").open() as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    typer.run(main)
