"""Checkpoints on disks that lie, fill up or lose bits: it is found out, and the one before takes its place."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.saved_runs import SMALL, SavedRun, names

from moco_accel.checkpoints import saver
from moco_accel.checkpoints.checkpoint import FILES, MODEL, OPTIMIZER, check_checkpoint
from moco_accel.checkpoints.run_folder import load_encoder, newest_whole
from moco_accel.common.errors import UserError


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one run, after 1 and 2 steps."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run = SavedRun(folder, SMALL)
    for _ in range(2):
        run.train(1)
        run.save()
    return folder


def flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.mark.parametrize("trials", [12, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_bit_flipped_or_a_byte_missing_is_found(two_checkpoints: Path, tmp_path: Path, trials: int) -> None:
    """In every file, at its ends and anywhere between; the one before takes its place each time."""
    newest = two_checkpoints / "checkpoints" / "step_00000002"
    draw = random.Random(0)
    files = [*FILES, "manifest.json"]
    for trial in range(trials):
        path = newest / files[trial % len(files)]
        size = path.stat().st_size
        offset = draw.choice([0, size - 1, draw.randrange(size), draw.randrange(min(size, 4096))])
        said: list[str] = []
        if trial % 2 or (trial % len(files) == 5 and trial < 6):
            bit = draw.randrange(8)
            flip(path, offset, bit)
            found = newest_whole(two_checkpoints, said.append)
            flip(path, offset, bit)
        else:
            kept = path.read_bytes()
            os.truncate(path, offset)
            found = newest_whole(two_checkpoints, said.append)
            path.write_bytes(kept)
        assert found is not None
        assert found.folder.name == "step_00000001", (path.name, offset)
        assert len(said) == 1
        assert f"{newest} is damaged: " in said[0]
        assert "step_00000001, the one before, takes its place" in said[0]
    assert check_checkpoint(newest).state.step == 2, "put back as it was"


def test_all_damaged_is_an_error_in_one_line(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        os.truncate(folder / MODEL, 1000)
    with pytest.raises(UserError, match=r"step_00000002 is damaged: model.safetensors has 1000 bytes in place of"):
        newest_whole(tmp_path / "run", print)
    with pytest.raises(UserError, match=r"\(and 1 more\); no checkpoint of .*run is whole"):
        load_encoder(tmp_path / "run")
    with pytest.raises(UserError, match=r"is damaged: model.safetensors"):
        load_encoder(tmp_path / "run" / "checkpoints" / "step_00000001")


def test_a_damaged_one_is_set_aside_and_does_not_count_among_those_kept(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    os.truncate(tmp_path / "run" / "checkpoints" / "step_00000002" / OPTIMIZER, 0)
    run = SavedRun(
        tmp_path / "run", SMALL.model_copy(update={"run": SMALL.run.model_copy(update={"keep_checkpoints": 1})})
    )
    assert run.step == 1
    assert names(tmp_path / "run") == ["step_00000001", "step_00000002.damaged"]
    run.train(1)
    run.save()
    assert names(tmp_path / "run") == ["step_00000002", "step_00000002.damaged"]
    assert check_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000002").state.step == 2


def test_the_encoder_is_that_of_the_newest_whole_one(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step_00000002" / MODEL, 100_000, 3)
    recipe, encoder, run = load_encoder(tmp_path / "run")
    saved = load_file(two_checkpoints / "checkpoints" / "step_00000001" / MODEL)
    assert run == tmp_path / "run"
    assert recipe.encoder.name == "resnet10"
    assert all(torch.equal(saved[f"encoder.{name}"], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("where", ["model", "optimizer", "random", "state", "manifest", "latest"])
def test_a_full_disk_leaves_the_checkpoint_before(
    where: str, two_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's size is limited by the kernel, as on a full disk; for small files, the disk is full when it comes."""
    shutil.copytree(two_checkpoints, tmp_path / "run")
    run = SavedRun(tmp_path / "run", SMALL)
    run.train(1)
    if where in ("model", "optimizer"):
        sizes = [
            (tmp_path / "run" / "checkpoints" / "step_00000002" / name).stat().st_size for name in (MODEL, OPTIMIZER)
        ]
        limit = sizes[0] - 1 if where == "model" else max(sizes) - 1
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(UserError, match=r"cannot be written .File too large.; step 2 is saved"):
                run.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    else:
        fill_up_at(where, monkeypatch)
        with pytest.raises(UserError, match=r"cannot be written .No space left on device.; step 2 is saved. Room on"):
            run.save()
    left = names(tmp_path / "run")
    assert left == ["step_00000001", "step_00000002"] + ["step_00000003"] * (where == "latest")
    found = newest_whole(tmp_path / "run", print)
    assert found is not None
    assert found.state.step == (3 if where == "latest" else 2)
    monkeypatch.undo()
    run.save()  # and with room, it goes on
    assert names(tmp_path / "run") == ["step_00000002", "step_00000003"]


def fill_up_at(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real file system that is full at one file cannot be had without rights of an administrator."""
    sync = os.fsync

    def full(handle: int) -> None:
        if where in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)


def test_a_disk_that_gives_back_other_bytes_is_not_trusted(
    two_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    run = SavedRun(tmp_path / "run", SMALL)
    run.train(1)
    written = saver.write_checkpoint

    def damage_then_read(final: Path, *state: object) -> None:
        rename = Path.rename

        def rename_and_flip(path: Path, target: Path) -> Path:
            flip(path / MODEL, 5000, 0)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", rename_and_flip)
        written(final, *state)  # type: ignore[arg-type]

    monkeypatch.setattr(saver, "write_checkpoint", damage_then_read)
    with pytest.raises(UserError, match=r"reads back otherwise: model.safetensors differs from its checksum"):
        run.save()
    assert (tmp_path / "run" / "latest").read_text() == "step_00000002\n"
    assert set(names(tmp_path / "run")) >= {"step_00000001", "step_00000002"}
