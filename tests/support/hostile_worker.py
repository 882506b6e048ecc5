"""Read hostile tiles and sources in a child process, to detect crashes, hangs and leaked memory.

The child prints a line of JSON before and after each kind, so that the kind it dies or hangs at is known.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.hostile_arrays import arrays, corrupted
from support.hostile_folders import hostile_tars_and_folders, write_image_folder
from support.hostile_pictures import Kinds, pictures
from support.hostile_rasters import tiffs
from support.hostile_shards import GOOD_JPEG, Sources, hostile_shards

HANG_SECONDS = 60
REPEATS = 3
_CHEAP_SECONDS = 0.05
_ROWS = 100


@dataclass(frozen=True)
class Result:
    """`seconds` are CPU time. `outcome` begins with `read`, `damaged` or `refused`; anything else is a bug."""

    name: str
    seconds: float
    peak_mib: int
    outcome: str


def all_tiles() -> Kinds:
    return pictures() | arrays() | tiffs() | corrupted()


def all_sources() -> Sources:
    return hostile_shards() | hostile_tars_and_folders()


def read_tile(raw: bytes) -> str:
    from moco_accel.images.decoding import DamagedTile, decode_raster

    try:
        return f"read {list(decode_raster(raw).shape)}"
    except DamagedTile as reason:
        return f"damaged {check_line(reason)}"


def read_source(source: Path, streaming: bool) -> str:
    from moco_accel.common.errors import UserError
    from moco_accel.images.headers import DamagedTile
    from moco_accel.recipe.data_sections import Data
    from moco_accel.tiles.tiles import open_tiles

    reasons: list[str] = []
    try:
        tiles = open_tiles(str(source), Data(streaming=streaming), 3)
        for index in range(min(len(tiles), _ROWS)):
            try:
                tiles[index]
            except DamagedTile as reason:
                reasons.append(check_line(reason))
        for name in {"label", "x", "file", "__key__"} & set(tiles.column_names):
            tiles.column(name)
        if "label" in tiles.column_names:
            tiles.labels("label")
    except UserError as error:
        return f"refused {check_line(error)}"
    return f"damaged {len(reasons)} of {len(tiles)}: {reasons[0]}" if reasons else f"read {len(tiles)}"


def check_line(error: Exception) -> str:
    text = str(error)
    assert text, "no reason"
    assert len(text.splitlines()) == 1, text
    return text


def resident_mib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def peak_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def measured(name: str, work: Callable[[], str]) -> Result:
    print(json.dumps({"start": name}), flush=True)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, begun = resident_mib(), time.process_time()
    try:
        outcome = work()
    except BaseException as error:
        outcome = f"raised {type(error).__name__}: {error}"[:500]
    return Result(name, round(time.process_time() - begun, 3), peak_mib() - before, outcome)


def child(names: list[str], what: str) -> None:
    """Measure each kind; then repeat the quick ones, which must not leak memory."""
    import datasets
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    works = tile_works() if what == "tiles" else source_works(folder)
    read_tile(GOOD_JPEG)
    read_source(write_image_folder(folder / "first", lambda _: None), False)
    import rasterio  # noqa: F401 - its memory must not count for a tile

    quick = []
    for name in names:
        work = works(name)
        result = measured(name, work)
        print(json.dumps(result.__dict__), flush=True)
        quick += [work] if what == "tiles" and result.seconds < _CHEAP_SECONDS else []
    resident = []
    for _ in range(REPEATS):
        for work in quick:
            work()
        resident.append(resident_mib())
    print(json.dumps({"resident_mib": resident}), flush=True)
    shutil.rmtree(folder)


def tile_works() -> Callable[[str], Callable[[], str]]:
    kinds = all_tiles()

    def prepared(name: str) -> Callable[[], str]:
        raw = kinds[name]()
        return lambda: read_tile(raw)

    return prepared


def source_works(folder: Path) -> Callable[[str], Callable[[], str]]:
    kinds = all_sources()

    def prepared(name: str) -> Callable[[], str]:
        place = folder / "source"
        shutil.rmtree(place, ignore_errors=True)
        source, streaming = kinds[name.removesuffix(" streamed")](place), name.endswith(" streamed")
        return lambda: read_source(source, streaming)

    return prepared


def run_kinds(names: list[str], what: str) -> tuple[list[Result], list[list[int]]]:
    """Return the result of each kind, and the resident MiB of each child after each repeat."""
    results: list[Result] = []
    resident: list[list[int]] = []
    while left := names[len(results) :]:
        process = subprocess.Popen(
            [sys.executable, __file__, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(left).encode())
        process.stdin.close()
        current = read_results(process, results, resident)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        if current is None and process.returncode == 0:
            break
        results.append(Result(current or left[0], 0.0, 0, f"died or hung ({process.returncode})"))
    return results, resident


def read_results(process: subprocess.Popen[bytes], results: list[Result], resident: list[list[int]]) -> str | None:
    """Collect a child's lines until it ends; return the kind that it did not finish, if any."""
    assert process.stdout is not None
    current = None
    buffered = b""
    while True:
        if not select.select([process.stdout], [], [], HANG_SECONDS)[0]:
            process.kill()
            return current
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            return current
        *lines, buffered = (buffered + piece).split(b"\n")
        for message in map(json.loads, lines):
            if "start" in message:
                current = message["start"]
            elif "resident_mib" in message:
                resident.append(message["resident_mib"])
            else:
                current = None
                results.append(Result(**message))


if __name__ == "__main__":
    child(json.load(sys.stdin), sys.argv[1])
