"""OUT/.build, where a build grows: whole shards, how far it got, what it was asked for. A killed build goes on from it.

A shard counts once `state.npz` says so. When all are there they move to OUT, and tiles.json comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from moco_accel.imagery.options import Options
from moco_accel.imagery.scenes import find_images
from moco_accel.recipe_text import RecipeError
from moco_accel.tile_facts import FACTS_FILE, BandCounter

REPORT_FILE = "build.json"
_FOLDER, _STATE, _ASKED = ".build", "state.npz", "options.json"
_FORMAT = "1"  # of the journal and of the order of tiles
_MAX_LISTED = 1000


@dataclass
class Tally:
    """All that has been counted in units before `next_unit`, whose tiles lie in `shards` whole shards."""

    next_unit: int = 0
    shards: int = 0
    done: bool = False
    scenes: int = 0
    windows: int = 0
    tiles: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    per_class: Counter[str] = field(default_factory=Counter)
    num_left_out: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    counter: BandCounter | None = None

    def leave_out(self, files: list[tuple[str, str]]) -> None:
        self.num_left_out += len(files)
        self.left_out += files[: _MAX_LISTED - len(self.left_out)]


class Journal:
    """Of one build in `out`; `asked` is what decides its tiles."""

    def __init__(self, out: Path, source: Path, options: Options) -> None:
        self.out, self.folder = out, out / _FOLDER
        self.asked = {"SRC": str(source.resolve())} | options.as_text()
        self.asked |= {"format": _FORMAT, "files": _digest(source, options)}
        self._lock: IO[str] | None = None

    def finished(self) -> dict[str, Any] | None:
        """The report of a finished build of the same tiles. Raises RecipeError for one of others."""
        if not (self.out / FACTS_FILE).is_file() or not (self.out / REPORT_FILE).is_file() or self.folder.exists():
            return None
        report: dict[str, Any] = json.loads((self.out / REPORT_FILE).read_text())
        self._compare(report["asked"], "holds tiles built")
        return report

    def begin(self, overwrite: bool) -> Tally:
        """How far an earlier build of the same tiles got, or a new start. Raises RecipeError."""
        begun = self.folder / _ASKED
        if begun.is_file():
            try:
                self._compare(json.loads(begun.read_text()), "was begun")
            except RecipeError:
                if not overwrite:
                    raise
                shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"OUT={str(self.out)!r} cannot be written ({error.strerror}); choose a folder of yours"
            ) from None
        self._take_lock()
        if not begun.is_file():
            replace(begun, json.dumps(self.asked, indent=2).encode())
        tally = self._load()
        for path in self.folder.glob("shard-*"):
            if path.suffix == ".partial" or int(path.stem.removeprefix("shard-")) >= tally.shards:
                path.unlink()
        return tally

    def shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.parquet"

    def save(self, tally: Tally) -> None:
        """From here on an earlier build's work is never done again."""
        arrays: dict[str, Any] = (
            {f"counter_{name}": array for name, array in tally.counter.state().items()} if tally.counter else {}
        )
        plain = {name: value for name, value in vars(tally).items() if name != "counter"}
        dtype = str(tally.counter.dtype) if tally.counter else ""
        temporary = self.folder / f"{_STATE}.partial"
        with temporary.open("wb") as file:
            np.savez_compressed(file, text=np.array(json.dumps(plain)), dtype=np.array(dtype), **arrays)
            _sync(file)
        temporary.replace(self.folder / _STATE)

    def _load(self) -> Tally:
        if not (self.folder / _STATE).is_file():
            return Tally()
        with np.load(self.folder / _STATE, allow_pickle=False) as stored:
            plain = json.loads(str(stored["text"]))
            state = {
                name.removeprefix("counter_"): stored[name] for name in stored.files if name.startswith("counter_")
            }
            dtype = str(stored["dtype"])
        plain["left_out"] = [(path, reason) for path, reason in plain["left_out"]]
        plain |= {name: Counter(plain[name]) for name in ("skipped", "per_class")}
        return Tally(**plain, counter=BandCounter.restored(dtype, state) if state else None)

    def publish(self, num_shards: int, report: dict[str, Any], facts: str) -> None:
        """Move the shards to OUT under their names, write build.json, then tiles.json. May be killed and repeated."""
        names = [f"tiles-{index:05d}-of-{num_shards:05d}.parquet" for index in range(num_shards)]
        if any(self.shard(index).exists() for index in range(num_shards)):
            (self.out / FACTS_FILE).unlink(missing_ok=True)
            for old in self.out.glob("tiles-*-of-*.parquet"):
                if old.name not in names or self.shard(names.index(old.name)).exists():
                    old.unlink()
        for index, name in enumerate(names):
            if self.shard(index).exists():
                self.shard(index).replace(self.out / name)
        replace(self.out / REPORT_FILE, json.dumps({"asked": self.asked, **report}, indent=2).encode())
        replace(self.out / FACTS_FILE, facts.encode())
        shutil.rmtree(self.folder)

    def abandon(self) -> None:
        """Nothing came of it: leave no trace."""
        shutil.rmtree(self.folder)

    def close(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        """Two builds in one folder would write over each other. The lock goes with its process, however that ends."""
        if sys.platform == "win32":
            return
        import fcntl

        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise RecipeError(
                f"OUT={str(self.out)!r} is being written by another build; wait, or choose another folder"
            ) from None

    def _compare(self, begun: dict[str, str], verb: str) -> None:
        for name, value in self.asked.items():
            if begun.get(name) == value:
                continue
            if name in ("files", "format"):
                what = "of files that have changed since" if name == "files" else "by another version"
                raise RecipeError(f"OUT={str(self.out)!r} {verb} {what}; choose another folder, or pass --overwrite")
            raise RecipeError(
                f"OUT={str(self.out)!r} {verb} {_as_asked(name, begun.get(name))}, not {_as_asked(name, value)}; "
                f"choose another folder, or pass --overwrite"
            )


def replace(path: Path, content: bytes) -> None:
    """Write a file so that at any time the old or the new one is there, whole."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        _sync(file)
    temporary.replace(path)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _as_asked(name: str, value: str | None) -> str:
    return f"without {name}" if value in (None, "None", "False") else f"with {name}={value}"


def _digest(source: Path, options: Options) -> str:
    """Changes when a file is added, removed or written again."""
    files = find_images(source)
    if options.pair_with:
        files += find_images(options.pair_with, "--pair-with")
    if options.label_raster:
        if not options.label_raster.is_file():
            raise RecipeError(f"--label-raster={options.label_raster} does not exist; a GeoTIFF of class numbers works")
        files.append(options.label_raster)
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
