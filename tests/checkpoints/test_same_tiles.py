"""`--resume` from a moved or differently spelled source: the same tiles continue the run, others are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from support.interruptions import StopBefore
from support.recipes import small_recipe
from support.source_files import IMAGE, encode_image, image_value, random_pixels, write_file

from moco_accel.checkpoints.resume_rules import resume_recipe
from moco_accel.checkpoints.run_folder import newest_intact
from moco_accel.common.errors import UserError
from moco_accel.recipe.schema import Recipe
from moco_accel.training.run import run_training

PIXELS = random_pixels(24, size=16)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def recipe_of(source: str, **data: Any) -> Recipe:
    return small_recipe(
        encoder={"name": "vit_tiny_patch8", "image_size": 16},
        data={"source": source, "num_workers": 0, **data},
        schedule={"epochs": 1, "warmup_epochs": 0},
        run={"checkpoint_every_steps": 1},
    )


def write_shards(folder: str, pixels: np.ndarray = PIXELS) -> None:
    Path(folder).mkdir(parents=True)
    for number, part in enumerate(np.split(pixels, 2)):
        rows = [{"image": image_value(array)} for array in part]
        datasets.Dataset.from_list(rows, IMAGE).to_parquet(f"{folder}/t-{number:05}-of-00002.parquet")


def write_pictures(folder: str, pixels: np.ndarray = PIXELS) -> None:
    for number, array in enumerate(pixels):
        write_file(Path(folder) / f"{number % 2}" / f"{number}.png", encode_image(array))


def train_one_step(source: str) -> None:
    run_training(recipe_of(source), Path("run"), False, StopBefore(1))


def resume(source: str, **data: Any) -> list[str]:
    """Return the lines of a resume with another source; raise UserError if it is refused."""
    checkpoint = newest_intact(Path("run"), print)
    assert checkpoint is not None
    lines: list[str] = []
    recipe, fill = resume_recipe(recipe_of(source, **data), checkpoint.recipe, checkpoint.state, False, lines.append)
    assert (recipe.data.source, fill) == (source, False)
    return lines


@pytest.mark.parametrize("write", [write_shards, write_pictures])
def test_the_same_tiles_elsewhere_resume(write: Any, capfd: pytest.CaptureFixture[str]) -> None:
    write("data/tiles")
    train_one_step("data/tiles")
    assert resume("data/tiles") == []
    Path("link").symlink_to("data/tiles")
    for source in ("data/tiles/", "./data/tiles", str(Path("data/tiles").resolve()), "link", "data/../data/tiles"):
        assert resume(source) == [f"data.source={source!r} holds the tiles of the run's 'data/tiles'"]
    Path("data").rename("moved")
    Path("link").unlink()
    assert len(resume("moved/tiles")) == 1
    run_training(recipe_of("moved/tiles"), Path("run"), True, StopBefore(1000))
    assert (Path("run") / "checkpoints" / "step_00000003").is_dir()
    assert len(resume("moved/tiles")) == 0
    assert "data.source='moved/tiles' holds the tiles of the run's 'data/tiles'" in capfd.readouterr().err


@pytest.mark.parametrize("write", [write_shards, write_pictures])
def test_other_tiles_are_refused_with_the_reason(write: Any) -> None:
    write("a")
    write("fewer", PIXELS[:22])
    write("other", random_pixels(24, size=12, seed=5))
    train_one_step("a")
    with pytest.raises(
        UserError, match=r"^data.source='fewer' .* its result: it holds 22 tiles, the run's held 24; --set"
    ):
        resume("fewer")
    with pytest.raises(UserError, match=r": it holds as many tiles as the run's, 24, but in other files; --set"):
        resume("other")
    with pytest.raises(UserError, match="has no tiles"):
        resume("nowhere/at/all")


def test_globs_and_splits_are_compared_by_content() -> None:
    write_shards("a")
    train_one_step("a")
    assert len(resume("a/*.parquet")) == 1
    assert len(resume("a", split="train")) == 1  # no name tells a split
    write_shards("b")
    for file in Path("b").iterdir():
        file.rename(file.with_name(f"test{file.name[1:]}"))
    with pytest.raises(UserError, match="in other files"):
        resume("b")


def test_checkpoints_without_a_digest() -> None:
    """The run's own source is read, where it still exists."""
    write_shards("a")
    train_one_step("a")
    checkpoint = newest_intact(Path("run"), print)
    assert checkpoint is not None
    state = checkpoint.state.model_copy(update={"tiles_digest": ""})
    before = checkpoint.recipe.model_copy(update={"data": checkpoint.recipe.data.model_copy(update={"split": "train"})})
    shutil.copytree("a", "copy")
    lines: list[str] = []
    for source in ("copy", "a"):
        recipe, _ = resume_recipe(recipe_of(source), before, state, False, lines.append)
        assert recipe.data.split == "train"  # of earlier recipes, which is no change
    assert lines == ["data.source='copy' holds the tiles of the run's 'a'"]
    shutil.rmtree("a")
    with pytest.raises(UserError, match="a is gone, and the run's checkpoint does not describe its tiles"):
        resume_recipe(recipe_of("copy"), before, state, False, lines.append)


def test_changed_files_of_the_same_source_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    write_pictures("a")
    train_one_step("a")
    write_pictures("a", random_pixels(24, size=12, seed=5))
    run_training(recipe_of("a"), Path("run"), True, StopBefore(1))
    assert "holds as many tiles as when the run started, but other files" in capfd.readouterr().err


def test_files_that_vanish_during_a_run_are_damaged_tiles() -> None:
    write_pictures("a")
    train_one_step("a")
    Path("a/0/4.png").unlink()
    Path("a/1/5.png").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"holds 23 tiles, and the run started with 24"):
        run_training(recipe_of("a"), Path("run"), True, StopBefore(1000))
