"""1,600 kinds of hostile tiles and shards: none crashes, hangs or leaks memory, and each gives a reason."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from support.hostile_arrays import npy_of
from support.hostile_pictures import many_scans, pictures
from support.hostile_rasters import many_tags, sparse, tiff
from support.hostile_shards import GOOD_JPEG, image_table, write_dictionary_bomb, write_parquet
from support.hostile_worker import Result, all_sources, all_tiles, run_kinds
from support.source_files import error_message

from moco_accel.common.errors import UserError
from moco_accel.images.decoding import DamagedTile, decode_raster
from moco_accel.images.headers import MAX_ENCODED_BYTES, read_file
from moco_accel.sources.base import Source
from moco_accel.sources.split_choice import SplitChoice
from moco_accel.sources.tar_store import TarStore

MAX_SECONDS = 5.0  # of CPU time; measured: 0.97, a whole PNG of 8192 x 8192 pixels
MAX_MIB = 600  # measured: 450, as many pixels of four bands
MAX_GROWTH_MIB = 32  # measured: 16 in one of twelve runs, by GDAL; 0 otherwise
ONE_OF = 20


def names_of(what: str) -> list[str]:
    names = list(all_tiles() if what == "tiles" else all_sources())
    return names + [f"{name} streamed" for name in names if what == "sources" and name.startswith("parquet")]


def check(names: list[str], results: list[Result], resident: list[list[int]]) -> None:
    assert [result.name for result in results] == names
    bugs = [result for result in results if result.outcome.split()[0] not in ("read", "damaged", "refused")]
    assert not bugs, bugs
    slow = [result for result in results if result.seconds > MAX_SECONDS]
    assert not slow, slow
    large = [result for result in results if result.peak_mib > MAX_MIB]
    assert not large, large
    assert len(resident) == 1  # no child died
    assert resident[0][-1] - resident[0][1] <= MAX_GROWTH_MIB, resident


def few(names: list[str]) -> list[str]:
    """Every twentieth kind, without those that are large but harmless."""
    return [name for name in names[::ONE_OF] if "8192" not in name and "bomb" not in name]


@pytest.mark.parametrize("what", ["tiles", "sources"])
def test_a_twentieth_of_the_hostile_kinds(what: str) -> None:
    names = few(names_of(what))
    check(names, *run_kinds(names, what))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["tiles", "sources"])
def test_all_hostile_kinds(what: str) -> None:
    names = names_of(what)
    assert len(names) > 500
    check(names, *run_kinds(names, what))


def test_there_are_over_five_hundred_kinds() -> None:
    assert len(all_tiles()) > 500
    assert len(all_sources()) > 400


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (lambda: pictures()["png of 81 megapixels"](), "has 9000 x 9000 pixels; at most 67108864 are read"),
        (lambda: many_scans(20_000, 8192), "scans over 8192 x 8192 pixels; together at most"),
        (lambda: pictures()["jp2 16 x 16 tiles 16 x 16 components 16384"](), "has 16384 bands; at most 1024 are read"),
        (lambda: pictures()["bare jp2 of many tiles"](), "16384 bands of 4080 x 4080 pixels; at most"),
        (lambda: pictures()["jp2 8192 x 8192 tiles 1 x 1 components 1"](), "in 67108864 blocks; at most 65536"),
        (lambda: many_tags(4000, 1 << 20), "has tags of 4194304030 bytes, in a file of 1048584"),
        (lambda: many_tags(5000, 4), "has 5010 tags; at most 4096 are read"),
        (lambda: tiff({322: (4, 1, 1 << 20), 323: (4, 1, 1 << 20)}), "has 1048576 x 1048576 pixels"),
        (lambda: sparse(8192, 1, 16, "uint8"), "is stored in 262144 blocks; at most 65536 are read"),
        (lambda: sparse(4096, 16, 256, "float32"), "16 bands of 4096 x 4096 pixels; at most 268435456 bytes are read"),
        (lambda: npy_of("'|O'", "(3, 8, 8)"), "holds object"),
        (lambda: b"\x93NUMPY\x01\x00\x28\x23" + b"-" * 9000, "its header is no description of an array"),
    ],
)  # fmt: skip
def test_headers_are_checked_against_limits(raw: object, reason: str) -> None:
    with pytest.raises(DamagedTile, match=reason):
        decode_raster(raw())  # type: ignore[operator]


def test_files_without_end_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "huge.tif").touch()
    with (tmp_path / "huge.tif").open("r+b") as file:
        file.truncate(1 << 40)
    (tmp_path / "zeros.tif").symlink_to("/dev/zero")
    for name, reason in (("huge", f"has {1 << 40} bytes; at most {MAX_ENCODED_BYTES}"), ("zeros", "is no file")):
        with pytest.raises(DamagedTile, match=reason):
            read_file(tmp_path / f"{name}.tif")


def test_row_groups_that_would_unpack_without_end_are_refused(tmp_path: Path) -> None:
    """A file of kilobytes repeats ten megabytes 4,000 times."""
    folder = write_dictionary_bomb(tmp_path / "t")
    assert (folder / "part.parquet").stat().st_size < 10_000
    assert "repeats values of column image up to" in error_message(folder)


def test_column_names_are_printed_in_one_line(tmp_path: Path) -> None:
    table = image_table("none", **{"x\n\x1b[31m": pa.array([GOOD_JPEG] * 12)})
    assert "has several image columns (image, x [31m)" in error_message(write_parquet(tmp_path / "t", table))


def test_a_tar_header_of_terabytes_is_not_read(tmp_path: Path) -> None:
    source = all_sources()["sparse tar size 1099511627776 of x"](tmp_path / "t")
    named = Source(str(source), "data.source")
    with pytest.raises(UserError, match="a header of 1099511627776 bytes"):
        TarStore([source / "part.tar"], named, SplitChoice(named, None, False, print))


@pytest.mark.parametrize("kind", ["npy pickle", "bare pickle", "npy header code 1", "npy header calls 1"])
def test_code_in_a_tile_is_not_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pickles would create a file in the working folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DamagedTile):
        decode_raster(all_tiles()[kind]())
    assert not list(tmp_path.iterdir())


def test_good_tiles_are_read_among_the_hostile() -> None:
    assert decode_raster(GOOD_JPEG).shape == (3, 40, 30)
