"""OUT/.build, where a build grows: whole shards, how far it got, what it was asked for. A killed build goes on from it.

A shard counts once `state.npz` says so. When all are there they move to OUT, and tiles.json comes last.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from moco_accel.common.atomic_files import write_atomically
from moco_accel.common.errors import UserError
from moco_accel.sources.tile_facts import FACTS_FILE, TileFacts, facts_from_json
from moco_accel.tiles.band_counter import BandCounter

REPORT_FILE = "build.json"
_FOLDER, _OLD = ".build", ".build-done"
_LOCK, _STATE, _ASKED, _DECIDED = "lock", "state.npz", "options.json", "decided.json"
_FORMAT = "3"  # of the journal, of the order of tiles and of what is stored
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

    def __init__(self, out: Path, asked: dict[str, str]) -> None:
        self.out, self.folder = out, out / _FOLDER
        self.asked = asked | {"format": _FORMAT}
        self._lock: IO[str] | None = None

    def finished(self) -> tuple[dict[str, Any], TileFacts] | None:
        """Report and facts of a finished build of the same tiles. Raises UserError for one of others."""
        shutil.rmtree(self.out / _OLD, ignore_errors=True)
        if not (self.out / FACTS_FILE).is_file() or not (self.out / REPORT_FILE).is_file() or self.folder.exists():
            return None
        with self._readable(REPORT_FILE):
            report = json.loads((self.out / REPORT_FILE).read_text())
            asked = dict(report["asked"])
        with self._readable(FACTS_FILE):
            facts = facts_from_json((self.out / FACTS_FILE).read_text())
            if facts.statistics is None:
                raise ValueError("without statistics")
        self._compare(self.asked, asked, "holds tiles built")
        return report, facts

    def begin(self, overwrite: bool) -> Tally:
        """How far an earlier build of the same tiles got, or a new start. Raises UserError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            tally = self._earlier(overwrite)
            for path in self.folder.glob("shard-*"):
                if path.suffix == ".partial" or int(path.stem.removeprefix("shard-")) >= tally.shards:
                    path.unlink()
        except OSError as error:
            self.close()
            raise UserError(
                f"OUT={str(self.out)!r} cannot be written ({error.strerror}); choose a folder of yours"
            ) from None
        except UserError:
            self.close()
            raise
        return tally

    def agree(self, decided: dict[str, str], tally: Tally, overwrite: bool) -> Tally:
        """`tally`, when the build that it is of had decided the same; a new start else.

        Raises UserError when that loses whole shards and `overwrite` is false.
        """
        try:
            self._compare(decided, self._read(_DECIDED), "was begun")
            return tally
        except UserError:
            if tally.shards and not overwrite:
                raise
        self._start_anew()
        write_atomically(self.folder / _DECIDED, json.dumps(decided, indent=2))
        return Tally()

    def _earlier(self, overwrite: bool) -> Tally:
        """The lock is ours: what lies here is of no build that runs."""
        if (self.folder / _ASKED).is_file():
            try:
                self._compare(self.asked, self._read(_ASKED), "was begun")
                return self._load()
            except UserError:
                if not overwrite:
                    raise
        self._start_anew()
        return Tally()

    def _read(self, name: str) -> dict[str, str]:
        with self._readable(f"{_FOLDER}/{name}"):
            return dict(json.loads((self.folder / name).read_text()))

    def _start_anew(self) -> None:
        """Nothing stays but the lock."""
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
        write_atomically(self.folder / _ASKED, json.dumps(self.asked, indent=2))

    def shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.parquet"

    def save(self, tally: Tally) -> None:
        """From here on an earlier build's work is never done again."""
        arrays: dict[str, Any] = (
            {f"counter_{name}": array for name, array in tally.counter.state().items()} if tally.counter else {}
        )
        plain = {name: value for name, value in vars(tally).items() if name != "counter"}
        dtype = str(tally.counter.dtype) if tally.counter else ""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, text=np.array(json.dumps(plain)), dtype=np.array(dtype), **arrays)
        write_atomically(self.folder / _STATE, buffer.getvalue())

    def _load(self) -> Tally:
        if not (self.folder / _STATE).is_file():
            return Tally()
        with (
            self._readable(f"{_FOLDER}/{_STATE}"),
            (self.folder / _STATE).open("rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            plain = json.loads(str(stored["text"]))
            names = [name for name in stored.files if name.startswith("counter_")]
            state = {name.removeprefix("counter_"): stored[name] for name in names}
            plain["left_out"] = [(path, reason) for path, reason in plain["left_out"]]
            plain |= {name: Counter(plain[name]) for name in ("skipped", "per_class")}
            return Tally(**plain, counter=BandCounter.restored(str(stored["dtype"]), state) if state else None)

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
        write_atomically(self.out / REPORT_FILE, json.dumps({"asked": self.asked, **report}, indent=2))
        write_atomically(self.out / FACTS_FILE, facts)
        self.remove()

    def remove(self) -> None:
        """At one stroke: a kill while files go one by one would leave what looks like a build begun.

        The lock is let go before its file goes, for NFS keeps files that are open.
        """
        old = self.out / _OLD
        shutil.rmtree(old, ignore_errors=True)
        self.folder.rename(old)
        self.close()
        shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        """Two builds in one folder would write over each other. The lock goes with its process, however that ends."""
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

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Around what reads a file of ours: damaged it is the user's to decide about."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
            raise self.damaged(name) from None

    def damaged(self, name: str) -> UserError:
        return UserError(f"OUT={str(self.out)!r} holds a damaged {name}; choose another folder, or pass --overwrite")

    def _compare(self, now: dict[str, str], begun: dict[str, str], verb: str) -> None:
        for name, value in now.items():
            if begun.get(name) == value:
                continue
            if name in ("files", "scenes", "format"):
                what = "by another version" if name == "format" else "of files that have changed since"
                raise UserError(f"OUT={str(self.out)!r} {verb} {what}; choose another folder, or pass --overwrite")
            raise UserError(
                f"OUT={str(self.out)!r} {verb} {_as_asked(name, begun.get(name))}, not {_as_asked(name, value)}; "
                f"choose another folder, or pass --overwrite"
            )


def _as_asked(name: str, value: str | None) -> str:
    return f"without {name}" if value in (None, "None", "False") else f"with {name}={value}"
