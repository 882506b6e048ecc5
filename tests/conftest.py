"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from moco_accel.recipe.encoder_names import VIT_SIZES, VitSize
from moco_accel.sources.shard_writer import write_shards


def pytest_configure() -> None:
    """Use one thread, also in processes that tests start: with more, small steps take ten times as long."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for `support` in processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """Accelerate keeps its first precision, and refuses another one in the same process."""
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(_cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the results of tests independent of caches on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(_cache_folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(_cache_folder / "datasets"))


@pytest.fixture
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the smallest ViT three blocks instead of twelve, for many steps in seconds."""
    monkeypatch.setitem(VIT_SIZES, "tiny", VitSize(192, 3, 3))


@pytest.fixture(scope="session")
def tiles_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards of 40 random RGB tiles of 20 × 20 pixels."""
    folder = tmp_path_factory.mktemp("tiles")
    noise = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), dtype=np.uint8)
    images = [Image.fromarray(tile) for tile in noise]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(folder / "tiles-00000-of-00001.parquet")
    return folder


@pytest.fixture
def many_row_groups(tmp_path: Path) -> tuple[Path, Any]:
    """Return a folder with shards of 300 raw tiles of 16 × 16 pixels, and the tiles."""
    arrays = np.random.default_rng(0).integers(0, 255, (300, 3, 16, 16)).astype("uint8")
    features = datasets.Features({"image": datasets.Array3D((3, 16, 16), "uint8"), "name": datasets.Value("string")})
    rows = [{"image": tile, "name": str(number)} for number, tile in enumerate(arrays)]
    write_shards(rows, features, tmp_path / "t", max_shard_bytes=100_000)
    return tmp_path / "t", arrays
