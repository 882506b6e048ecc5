"""Damaged checkpoints and full disks: damage is detected, and the previous checkpoint is used."""

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
from support.saved_runs import SMALL, SavedRun, checkpoint_names

from moco_accel.checkpoints import saver
from moco_accel.checkpoints.checkpoint import FILES, MODEL, OPTIMIZER, verify_checkpoint
from moco_accel.checkpoints.run_folder import load_encoder, newest_intact
from moco_accel.common.errors import UserError


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one run after 1 and 2 steps."""
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
def test_flipped_bits_and_missing_bytes_are_detected(two_checkpoints: Path, tmp_path: Path, trials: int) -> None:
    """Damage every file, at its ends and in between; the previous checkpoint is used each time."""
    newest = two_checkpoints / "checkpoints" / "step_00000002"
    draw = random.Random(0)
    files = [*FILES, "manifest.json"]
    for trial in range(trials):
        path = newest / files[trial % len(files)]
        size = path.stat().st_size
        offset = draw.choice([0, size - 1, draw.randrange(size), draw.randrange(min(size, 4096))])
        logged: list[str] = []
        if trial % 2 or (trial % len(files) == 5 and trial < 6):
            bit = draw.randrange(8)
            flip(path, offset, bit)
            found = newest_intact(two_checkpoints, logged.append)
            flip(path, offset, bit)
        else:
            kept = path.read_bytes()
            os.truncate(path, offset)
            found = newest_intact(two_checkpoints, logged.append)
            path.write_bytes(kept)
        assert found is not None
        assert found.folder.name == "step_00000001", (path.name, offset)
        assert len(logged) == 1
        assert f"{newest} is damaged: " in logged[0]
        assert "the previous checkpoint, step_00000001, is used instead" in logged[0]
    assert verify_checkpoint(newest).state.step == 2, "the test restored the file"


def test_if_all_are_damaged_the_error_is_one_line(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        os.truncate(folder / MODEL, 1000)
    with pytest.raises(UserError, match=r"step_00000002 is damaged: model.safetensors has 1000 bytes in place of"):
        newest_intact(tmp_path / "run", print)
    with pytest.raises(UserError, match=r"\(and 1 more\); no checkpoint of .*run is intact"):
        load_encoder(tmp_path / "run")
    with pytest.raises(UserError, match=r"is damaged: model.safetensors"):
        load_encoder(tmp_path / "run" / "checkpoints" / "step_00000001")


def test_a_damaged_checkpoint_is_set_aside_and_not_counted(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    os.truncate(tmp_path / "run" / "checkpoints" / "step_00000002" / OPTIMIZER, 0)
    keep_one = SMALL.run.model_copy(update={"keep_checkpoints": 1})
    run = SavedRun(tmp_path / "run", SMALL.model_copy(update={"run": keep_one}))
    assert run.step == 1
    assert checkpoint_names(tmp_path / "run") == ["step_00000001", "step_00000002.damaged"]
    run.train(1)
    run.save()
    assert checkpoint_names(tmp_path / "run") == ["step_00000002", "step_00000002.damaged"]
    assert verify_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000002").state.step == 2


def test_the_encoder_comes_from_the_newest_intact_checkpoint(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step_00000002" / MODEL, 100_000, 3)
    recipe, encoder, run = load_encoder(tmp_path / "run")
    saved = load_file(two_checkpoints / "checkpoints" / "step_00000001" / MODEL)
    assert run == tmp_path / "run"
    assert recipe.encoder.name == "resnet10"
    assert all(torch.equal(saved[f"encoder.{name}"], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("where", ["model", "optimizer", "random", "state", "manifest", "latest"])
def test_a_full_disk_leaves_the_previous_checkpoint(
    where: str, two_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel limits file sizes for large files; for small files, fsync fails."""
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
        with pytest.raises(
            UserError, match=r"cannot be written .No space left on device.; step 2 is saved. Free some space on"
        ):
            run.save()
    left = checkpoint_names(tmp_path / "run")
    assert left == ["step_00000001", "step_00000002"] + ["step_00000003"] * (where == "latest")
    found = newest_intact(tmp_path / "run", print)
    assert found is not None
    assert found.state.step == (3 if where == "latest" else 2)
    monkeypatch.undo()
    run.save()  # with space, saving works
    assert checkpoint_names(tmp_path / "run") == ["step_00000002", "step_00000003"]


def fill_up_at(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fsync of one file fail. A file system that is full at this file would need root."""
    sync = os.fsync

    def full(handle: int) -> None:
        if where in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)


def test_a_disk_that_reads_back_other_bytes_is_reported(
    two_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    run = SavedRun(tmp_path / "run", SMALL)
    run.train(1)
    write_checkpoint = saver.write_checkpoint

    def write_damaged(final: Path, *state: object) -> None:
        rename = Path.rename

        def rename_and_flip(path: Path, target: Path) -> Path:
            flip(path / MODEL, 5000, 0)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", rename_and_flip)
        write_checkpoint(final, *state)  # type: ignore[arg-type]

    monkeypatch.setattr(saver, "write_checkpoint", write_damaged)
    with pytest.raises(UserError, match=r"reads back differently: model.safetensors differs from its checksum"):
        run.save()
    assert (tmp_path / "run" / "latest").read_text() == "step_00000002\n"
    assert set(checkpoint_names(tmp_path / "run")) >= {"step_00000001", "step_00000002"}
