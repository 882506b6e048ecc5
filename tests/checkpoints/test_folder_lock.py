"""The lock of a run's folder, and a launcher that dies during startup."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.trainer_processes import Trainer, quick_recipe, start_quick

from moco_accel.checkpoints.run_folder import lock_folder
from moco_accel.common.errors import UserError
from moco_accel.processes.control_group import ControlGroup


def test_a_second_run_is_refused_until_the_first_ends(tmp_path: Path, tiles_folder: Path) -> None:
    """Loader workers that outlive the first run do not hold the lock."""
    first = start_quick(tmp_path, tiles_folder, "python", "step")
    try:
        first.wait_for_phase("step")
        with pytest.raises(UserError, match=rf"is in use: process {first.process.pid} on .* trains in it"):
            lock_folder(first.run, ControlGroup()).__enter__()
        assert first.process.poll() is None
        first.process.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match="is in use"):
            lock_folder(first.run, ControlGroup()).__enter__()
        first.process.kill()
        first.process.wait()
        with lock_folder(first.run, ControlGroup()):
            assert (first.run / "running").read_text().startswith(f"process {os.getpid()} on ")
        assert not (first.run / "running").exists()
    finally:
        first.kill()


def test_a_run_that_never_started_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong"), lock_folder(tmp_path / "a" / "run", ControlGroup()):
        raise UserError("something is wrong")
    assert not (tmp_path / "a" / "run").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"run is a file; a run needs a folder, e\.g\. .*run_run"):
        lock_folder(tmp_path / "run", ControlGroup()).__enter__()


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some network file systems have no locks."""

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with lock_folder(tmp_path / "run", ControlGroup()):
        pass
    assert "cannot be locked (No locks available): make sure that no other run uses it" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how_far", ["exec", "libtorch"])
def test_a_rank_ends_if_its_launcher_dies_during_startup(how_far: str, tmp_path: Path, tiles_folder: Path) -> None:
    """Otherwise it would wait for the other ranks for half an hour."""
    recipe = quick_recipe(tmp_path, tiles_folder, 2)
    trainer = Trainer("torchrun", tmp_path / "run", recipe)
    try:
        trainer.wait_for(lambda: len(trainer.ranks()) == 2)
        first, second = trainer.ranks()
        os.kill(second, signal.SIGSTOP)
        trainer.wait_for(lambda: how_far == "exec" or how_far in Path(f"/proc/{first}/maps").read_text())
        os.kill(second, signal.SIGKILL)
        trainer.process.kill()
        trainer.process.wait()
        deadline = time.monotonic() + 60
        while trainer.alive():
            assert time.monotonic() < deadline, trainer.output()
            time.sleep(0.1)
        assert "stopped by its launcher's end, before the run started" in trainer.output()
    finally:
        trainer.kill()
