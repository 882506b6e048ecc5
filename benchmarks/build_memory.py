"""Memory and speed of `moco-data build` on a generated scene, and on one four times as large: memory must not grow.

The scene is real Sentinel-2 imagery (tests/fixtures/sentinel2) repeated, darker or brighter each time: a tiled GeoTIFF
of 4 bands of uint16. Peak memory is the largest sum of the resident sizes of all processes of the build, looked at ten
times a second; pages they share are counted in each, so it is an upper bound.

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
    """A scene of `side` × `side` pixels, a row of blocks at a time."""
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
    """Run the command; seconds, and peak memory over all of its processes."""
    code = "from moco_accel.imagery.cli import main; main()"
    command = [sys.executable, "-c", code, "build", str(scene), str(out), "--workers", str(workers)]
    started = time.monotonic()
    process = psutil.Popen(command, stderr=subprocess.PIPE)
    peak_all = peak_main = 0
    while process.poll() is None:
        sizes = resident(process)
        peak_all, peak_main = max(peak_all, sum(sizes)), max(peak_main, sizes[0])
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode())
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 1), "peak_mib": peak_all // MIB, "peak_main_process_mib": peak_main // MIB}


def resident(process: psutil.Process) -> list[int]:
    """Bytes of the main process, then of each worker."""
    sizes = [0]
    try:
        sizes = [process.memory_info().rss]
        sizes += [child.memory_info().rss for child in process.children(recursive=True)]
    except psutil.NoSuchProcess:
        pass
    return sizes


def main(
    sides: Annotated[str, typer.Option(help="Sides of the scenes in pixels.")] = "15000,30000",
    workers: Annotated[int, typer.Option(help="Of the build.")] = 2,
    folder: Annotated[Path | None, typer.Option(help="Where there is room for a scene and its tiles.")] = None,
) -> None:
    """One JSON row for each side on stdout."""
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
            report = json.loads((out / "build.json").read_text())
            row |= {"tiles": report["num_tiles"], "tiles_per_second": round(report["num_tiles"] / row["seconds"], 1)}
            row["shards_gb"] = round(sum(path.stat().st_size for path in out.glob("*.parquet")) / 1e9, 2)
        row |= {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        print(json.dumps(row | {"gdal": rasterio.__gdal_version__}), flush=True)


if __name__ == "__main__":
    typer.run(main)
