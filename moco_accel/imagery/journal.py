"""The folder OUT/.build, in which a build grows: complete shards, progress and options. A killed build resumes from it.

A shard counts once `state.npz` includes it. When all are complete, they move to OUT; tiles.json is written last.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.errors import UserError
from moco_accel.imagery.tile_cutter import BuildProgress
from moco_accel.scenes.begun_scenes import BegunScenes
from moco_accel.sources.tile_metadata import (
    DETAILS_FOLDER,
    METADATA_FILE,
    TileMetadata,
    details_path,
    metadata_from_json,
)
from moco_accel.tiles.running_statistics import RunningStatistics

SUMMARY_FILE = "build.json"
_FOLDER, _REMOVED_FOLDER = ".build", ".build-done"
_LOCK, _STATE, _OPTIONS, _DECISIONS = "lock", "state.npz", "options.json", "decided.json"
_FORMAT = "3"  # of the journal, the order of tiles and what is stored
MAX_LISTED = 1000  # files that are left out
_ADVICE = "choose another folder, or pass --overwrite"


class BuildJournal:
    """Progress of one build in `out`, on disk; `identity` is that of `build_identity`."""

    def __init__(self, out: Path, identity: dict[str, str]) -> None:
        self.out, self.folder = out, out / _FOLDER
        self.identity = identity | {"format": _FORMAT}
        self._lock: IO[str] | None = None

    def finished(self) -> tuple[dict[str, Any], TileMetadata] | None:
        """Return summary and metadata of a finished build of the same tiles; None if there is none.

        Raises:
            UserError: If `out` holds a finished build of other tiles, or a damaged one.
        """
        shutil.rmtree(self.out / _REMOVED_FOLDER, ignore_errors=True)
        described, summarized = (details_path(self.out, name) for name in (METADATA_FILE, SUMMARY_FILE))
        if not (described.is_file() and summarized.is_file()) or self.folder.exists():
            return None
        with self.damage_as_user_error(SUMMARY_FILE):
            summary = json.loads(summarized.read_text())
            identity = dict(summary["asked"])
        with self.damage_as_user_error(METADATA_FILE):
            metadata = metadata_from_json(described.read_text())
            if metadata.statistics is None:
                raise ValueError("without statistics")
        self._check_equal(self.identity, identity, "tiles built")
        return summary, metadata

    def resume_or_start(self, overwrite: bool) -> BuildProgress:
        """Lock the folder until `close`; return the progress of an earlier build of the same tiles, or of a new one.

        Raises:
            UserError: If the folder cannot be written, is in use, or holds a build of other tiles without `overwrite`.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire_lock()
            progress = self._earlier_progress(overwrite)
            for path in self.folder.glob("shard-*"):
                if path.suffix == ".partial" or int(path.stem.removeprefix("shard-")) >= progress.shards:
                    path.unlink()
        except OSError as error:
            raise UserError(
                f"OUT={str(self.out)!r} cannot be written ({error.strerror}); choose a folder that you own"
            ) from None
        return progress

    def begun(self, progress: BuildProgress) -> BegunScenes | None:
        """Return the scenes that a build with complete shards began with; None if its version did not store them.

        Raises:
            UserError: If their file is damaged.
        """
        if not progress.shards:
            return None
        with self.damage_as_user_error(f"{_FOLDER}/{_DECISIONS}"):
            fields = json.loads((self.folder / _DECISIONS).read_text()).get("begun")
            return BegunScenes.from_json(fields) if fields else None

    def check_decisions(
        self, decisions: dict[str, str], begun: BegunScenes, progress: BuildProgress, overwrite: bool
    ) -> BuildProgress:
        """Return `progress` if the earlier build made the same decisions, else that of a new start.

        Raises:
            UserError: If a new start would lose complete shards and `overwrite` is False.
        """
        try:
            self._check_equal(decisions, self._read(_DECISIONS), "a build begun")
            return progress
        except UserError:
            if progress.shards and not overwrite:
                raise
        progress = self._start_anew()
        write_atomically(self.folder / _DECISIONS, json.dumps(decisions | {"begun": begun.to_json()}, indent=2))
        return progress

    def shard(self, index: int) -> Path:
        """Return the path of a shard while the build runs."""
        return self.folder / f"shard-{index:05d}.parquet"

    def save(self, progress: BuildProgress) -> None:
        """Store the progress; a resumed build continues from here."""
        assert progress.counter
        arrays: dict[str, Any] = {f"counter_{name}": array for name, array in progress.counter.state().items()}
        plain = {name: value for name, value in vars(progress).items() if name != "counter"}
        buffer, dtype = io.BytesIO(), str(progress.counter.dtype)
        np.savez_compressed(buffer, text=np.array(json.dumps(plain)), dtype=np.array(dtype), **arrays)
        write_atomically(self.folder / _STATE, buffer.getvalue())

    def publish(self, num_shards: int, summary: dict[str, Any], metadata: str) -> None:
        """Move the shards to OUT, and write build.json, then tiles.json; may be killed and repeated."""
        names = [f"tiles-{index:05d}-of-{num_shards:05d}.parquet" for index in range(num_shards)]
        waiting = {name: self.shard(index) for index, name in enumerate(names) if self.shard(index).exists()}
        details = self.out / DETAILS_FOLDER
        if waiting:
            for folder in (details, self.out):
                (folder / METADATA_FILE).unlink(missing_ok=True)
            for old in self.out.glob("tiles-*-of-*.parquet"):
                if old.name not in names or old.name in waiting:
                    old.unlink()
        for name, shard in waiting.items():
            shard.replace(self.out / name)
        details.mkdir(exist_ok=True)
        write_atomically(details / SUMMARY_FILE, json.dumps({"asked": self.identity, **summary}, indent=2))
        write_atomically(details / METADATA_FILE, metadata)
        for name in (METADATA_FILE, SUMMARY_FILE):
            (self.out / name).unlink(missing_ok=True)  # of an earlier version
        self.remove()

    def remove(self) -> None:
        """Remove the folder in one step; a kill half way through its files would leave what looks like a build."""
        removed = self.out / _REMOVED_FOLDER
        shutil.rmtree(removed, ignore_errors=True)
        self.folder.rename(removed)
        self.close()  # NFS keeps open files
        shutil.rmtree(removed, ignore_errors=True)

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None

    @contextmanager
    def damage_as_user_error(self, name: str) -> Iterator[None]:
        """Turn the errors of reading a damaged file of the build into a UserError that names it."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
            raise UserError(f"OUT={str(self.out)!r} holds a damaged {name}; {_ADVICE}") from None

    def _earlier_progress(self, overwrite: bool) -> BuildProgress:
        if (self.folder / _OPTIONS).is_file():
            try:
                progress, identity = self._load(), self._read(_OPTIONS)
                if not progress.shards or self.begun(progress):
                    identity["files"] = self.identity["files"]  # those that changed lose their own tiles only
                self._check_equal(self.identity, identity, "a build begun")
                return progress
            except UserError:
                if not overwrite:
                    raise
        return self._start_anew()

    def _load(self) -> BuildProgress:
        if not (self.folder / _STATE).is_file():
            return BuildProgress()
        with (
            self.damage_as_user_error(f"{_FOLDER}/{_STATE}"),
            (self.folder / _STATE).open("rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            plain = json.loads(str(stored["text"]))
            names = [name for name in stored.files if name.startswith("counter_")]
            state = {name.removeprefix("counter_"): stored[name] for name in names}
            plain["left_out"] = [(path, reason) for path, reason in plain["left_out"]]
            plain |= {name: Counter(plain[name]) for name in ("skipped", "per_class")}
            return BuildProgress(**plain, counter=RunningStatistics.from_state(str(stored["dtype"]), state))

    def _start_anew(self) -> BuildProgress:
        """Remove all files but the lock, and write the options."""
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
        write_atomically(self.folder / _OPTIONS, json.dumps(self.identity, indent=2))
        return BuildProgress()

    def _read(self, name: str) -> dict[str, str]:
        with self.damage_as_user_error(f"{_FOLDER}/{name}"):
            return dict(json.loads((self.folder / name).read_text()))

    def _acquire_lock(self) -> None:
        """Keep a second build out of the folder; the lock ends with its process, however that ends."""
        if sys.platform == "win32":
            return
        import fcntl

        self._lock = (self.folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"OUT={str(self.out)!r} is being written by another build; wait, or choose another folder"
            ) from None

    def _check_equal(self, now: dict[str, str], earlier: dict[str, str], holds: str) -> None:
        """Raise UserError for the first entry of `now` that differs from `earlier`."""
        for name, value in now.items():
            if earlier.get(name) == value or (name not in earlier and value in ("None", "False")):
                continue  # an option that the earlier version did not have
            if name == "format":
                difference = "by another version"
            elif name in ("files", "scenes"):
                difference = "from files that have changed since"
            else:
                difference = f"{_option(name, earlier.get(name))}, not {_option(name, value)}"
            raise UserError(f"OUT={str(self.out)!r} holds {holds} {difference}; {_ADVICE}")


def _option(name: str, value: str | None) -> str:
    return f"without {name}" if value in (None, "None", "False") else f"with {name}={value}"
