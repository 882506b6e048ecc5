"""Measure memory and speed of `moco-data build` on a generated scene and on one four times as large.

Memory must not grow with the scene. The scene is a tiled GeoTIFF of 4 bands of uint16: real Sentinel-2 imagery
(tests/fixtures/sentinel2), repeated with varying brightness. Peak memory is the largest sum of the resident sizes of
all processes of the build, sampled ten times a second. Shared pages are counted once for each process, so it is an
upper bound.

    python benchmarks/build_memory.py --sides 15000,30000 --workers 2 >> benchmarks/results/build_memory.jsonl
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import rasterio
import typer

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/sentinel2"
BANDS = ("B02", "B03", "B04", "B08")
BLOCK = 512
MIB = 1 << 20


def write_scene(path: Path, side: int) -> None:
    """Write a scene of `side` × `side` pixels, one row of blocks at a time."""
    pixels = []
    for band in BANDS:
        with rasterio.open(FIXTURE / f"s2_{band}.tif") as file:
            pixels.append(file.read(1))
            profile = {"crs": file.crs, "transform": file.transform}
    piece = np.tile(np.stack(pixels), (1, BLOCK // pixels[0].shape[0], 1))
    profile |= {"driver": "GTiff", "height": side, "width": side, "count": len(BANDS), "dtype": "uint16", "tiled": True}
    profile |= {
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "zstd",
        "zstd_level": 1,
        "num_threads": "all_cpus",
    }
    repeats = -(-side // piece.shape[2])
    with rasterio.open(path, "w", BIGTIFF="YES", **profile) as file:
        for number, band in enumerate(BANDS, start=1):
            file.set_band_description(number, band)
        for top in range(0, side, BLOCK):
            gain = 0.5 + (top // BLOCK % 16 + np.arange(repeats) % 16) / 32
            row = (np.tile(piece, (1, 1, repeats)) * np.repeat(gain, piece.shape[2])).astype(np.uint16)
            height = min(BLOCK, side - top)
            file.write(row[:, :height, :side], window=((top, top + height), (0, side)))


def build(scene: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run the command; return its duration and the peak memory of all its processes."""
    code = "from moco_accel.imagery.cli import main; main()"
    command = [sys.executable, "-c", code, "build", str(scene), str(out), "--workers", str(workers)]
    started = time.monotonic()
    process = psutil.Popen(command, stderr=subprocess.PIPE)
    peak_all = peak_main = 0
    while process.poll() is None:
        sizes = resident_bytes(process)
        peak_all, peak_main = max(peak_all, sum(sizes)), max(peak_main, sizes[0])
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode())
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 1), "peak_mib": peak_all // MIB, "peak_main_process_mib": peak_main // MIB}


def resident_bytes(process: psutil.Process) -> list[int]:
    """Return the resident size of the main process, then those of its workers."""
    sizes = [0]
    try:
        sizes = [process.memory_info().rss]
        sizes += [child.memory_info().rss for child in process.children(recursive=True)]
    except psutil.NoSuchProcess:
        pass
    return sizes


def main(
    sides: Annotated[str, typer.Option(help="Sides of the scenes in pixels.")] = "15000,30000",
    workers: Annotated[int, typer.Option(help="Worker processes of the build.")] = 2,
    folder: Annotated[Path | None, typer.Option(help="Folder with space for a scene and its tiles.")] = None,
) -> None:
    """Print one JSON row for each side."""
    for side in map(int, sides.split(",")):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            scene, out = Path(temporary) / "scene.tif", Path(temporary) / "tiles"
            write_scene(scene, side)
            row: dict[str, Any] = {"side": side, "bands": len(BANDS), "dtype": "uint16", "workers": workers}
            row |= {
                "scene_gb": round(side * side * len(BANDS) * 2 / 1e9, 2),
                "file_gb": round(scene.stat().st_size / 1e9, 2),
            }
            row |= build(scene, out, workers)
            report = json.loads((out / "__moco__/build.json").read_text())
            row |= {"tiles": report["num_tiles"], "tiles_per_second": round(report["num_tiles"] / row["seconds"], 1)}
            row["shards_gb"] = round(sum(path.stat().st_size for path in out.glob("*.parquet")) / 1e9, 2)
        row |= {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        print(json.dumps(row | {"gdal": rasterio.__gdal_version__}), flush=True)


if __name__ == "__main__":
    typer.run(main)
