"""Malicious checkpoints: each is refused with a reason, without running code, blocking, or using much memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.saved_runs import SMALL, SavedRun

from moco_accel.checkpoints.checkpoint import FILES, MODEL, OPTIMIZER, RANDOM, RECIPE, STATE, verify_checkpoint
from moco_accel.checkpoints.manifest import MANIFEST, DamagedCheckpointError
from moco_accel.checkpoints.run_folder import load_encoder, newest_intact
from moco_accel.common.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "run"
    saved = SavedRun(folder, SMALL)
    saved.train(1)
    saved.save()
    return folder


def seal(folder: Path, **claims: dict[str, Any]) -> None:
    """Write a manifest that matches the folder, as an attacker can, plus the entries `claims`."""
    files = {}
    for name in FILES:
        path = folder / name
        if path.is_file() and path.stat().st_size < 1 << 30:
            content = path.read_bytes()
            files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        else:
            files[name] = {"sha256": "0" * 64, "bytes": path.stat().st_size if path.exists() else 0}
    (folder / MANIFEST).write_text(json.dumps({"files": files | claims}))


def with_state(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = json.loads((folder / STATE).read_text()) | changes
        (folder / STATE).write_text(json.dumps({name: value for name, value in state.items() if value != "absent"}))

    return change


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def with_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return rewrite


def with_header(header: dict[str, Any] | bytes, data: int = 0, length: int | None = None) -> Callable[[Path], None]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def write(folder: Path) -> None:
        with (folder / MODEL).open("wb") as file:
            file.write(struct.pack("<Q", len(text) if length is None else length) + text)
            file.truncate(file.tell() + data)

    return write


def in_place(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return replace


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def recipe_line(before: str, after: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / RECIPE).read_text()
        assert before in text
        (folder / RECIPE).write_text(text.replace(before, after, 1))

    return change


_PICKLE = b"cos\nsystem\n(S'touch ran'\ntR."
_NAN = '{"format": 1, "step": NaN}'
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_FIRST = "predictor.0.weight"

HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle beside": (
        lambda f: (f / "scheduler.pkl").write_bytes(_PICKLE),
        "'scheduler.pkl' is not a file of a checkpoint",
    ),
    "code beside": (lambda f: (f / "model.py").write_text("import os"), "'model.py' is not a file of a checkpoint"),
    "a pickle for tensors": (lambda f: (f / MODEL).write_bytes(_PICKLE), "header of"),
    "a pickle for state": (lambda f: (f / STATE).write_bytes(_PICKLE), "state.json is not valid JSON"),
    "NaN": (with_text(STATE, _NAN), "NaN is not a finite number"),
    "infinity as a number": (with_text(STATE, _NAN.replace("NaN", "1e999")), "1e999 is not a finite number"),
    "a name twice": (with_text(STATE, '{"step": 1, "step": 2}'), "a name is repeated"),
    "a thousand digits": (with_text(STATE, '{"step": ' + "9" * 5000 + "}"), "state.json is not valid JSON"),
    "deep JSON": (with_text(STATE, "[" * 60_000), "state.json"),
    "huge JSON": (with_text(STATE, " " * 2_000_000), "state.json has more than"),
    "state is a list": (with_text(STATE, "[]"), "state.json"),
    "state is empty": (with_text(STATE, ""), "state.json is not valid JSON"),
    "a negative step": (with_state(step=-1), "step=-1: input should be greater than or equal to 0"),
    "a huge step": (with_state(step=10**18), "is past the run's last"),
    "a step of true": (with_state(step=True), "step=True: input should be a valid integer"),
    "a step of text": (with_state(step="1"), "step='1'"),
    "no step": (with_state(step="absent"), "step is missing"),
    "another format": (with_state(format=2), "format=2"),
    "an unknown key": (with_state(__reduce__="os.system"), "__reduce__"),
    "a scaler of zero": (with_state(scaler={"scale": 0, "growth_tracker": 0}), "scaler.scale=0"),
    "a scaler with more": (with_state(scaler={"scale": 1, "growth_tracker": 0, "x": 1}), "scaler.x"),
    "versions that are code": (with_state(versions={"torch": ["os.system"]}), "versions.torch"),
    "no process": (with_state(processes=0), "processes=0"),
    "YAML that is Python": (
        with_text(RECIPE, "!!python/object/apply:os.system ['touch ran']"),
        "aliases and !tags are not supported",
    ),
    "YAML aliases": (with_text(RECIPE, _BOMB), "aliases and !tags are not supported"),
    "huge YAML": (with_text(RECIPE, "#" * (2 << 20)), "recipe.yaml has more than"),
    "no recipe": (with_text(RECIPE, "encoder: {name: resnet10}"), "missing"),
    "an encoder of another size": (recipe_line("resnet10", "resnet18"), "tensor encoder"),
    "heads of absurd size": (recipe_line("projector_hidden_dim: 32", "projector_hidden_dim: 60000"), "in place of"),
    "a tensor missing": (with_tensors(MODEL, lambda t: t.pop(_FIRST)), f"tensor {_FIRST} is missing"),
    "a tensor more": (with_tensors(MODEL, lambda t: t.update(evil=torch.ones(2))), "tensor 'evil' is unexpected"),
    "another shape": (
        with_tensors(MODEL, lambda t: t.update({_FIRST: torch.ones(3, 3)})),
        "is float32 \\[3, 3\\] in pl",
    ),
    "another type": (with_tensors(MODEL, lambda t: t.update({_FIRST: t[_FIRST].half()})), "is float16"),
    "a type that is no number": (with_header(entry("F8_E4M3", [8])), "no supported type, shape and offsets"),
    "optimizer state of nobody": (
        with_tensors(OPTIMIZER, lambda t: t.update({"../x/velocity": torch.ones(1)})),
        "is unexpected",
    ),
    "optimizer state missing": (with_tensors(OPTIMIZER, lambda t: t.pop(next(iter(t)))), "is missing"),
    "no optimizer state": (with_tensors(OPTIMIZER, lambda t: t.clear()), "is missing"),
    "random states of another": (with_tensors(RANDOM, lambda t: t.update(states=torch.zeros(9))), "does not hold the"),
    "a giant header": (with_header(b"", 0, 1 << 62), "header of"),
    "a header of 9 MB": (with_header(b" " * (9 << 20)), "header of"),
    "a deep header": (with_header(b"[" * 100_000), "header is not valid JSON"),
    "a header that is a list": (with_header(b"[]"), "header is not a mapping"),
    "offsets past the end": (with_header(entry(offsets=[0, 1 << 40])), "do not match its type and shape"),
    "offsets that overlap": (with_header(entry() | {"y": entry()["x"]}, 8), "do not match its type and shape"),
    "offsets backwards": (with_header(entry(offsets=[8, 0]), 8), "do not match its type and shape"),
    "offsets of text": (with_header(entry(offsets=["0", "8"]), 8), "no supported type, shape and offsets"),
    "a negative shape": (with_header(entry(shape=[-2])), "no supported type, shape and offsets"),
    "a hole": (with_header(entry(), 16), "its header says"),
    "a sparse terabyte": (
        with_header(entry("U8", [1 << 40], [0, 1 << 40]), 1 << 40),
        "model.safetensors has more than",
    ),
    "a link to a secret": (in_place(STATE, lambda p: p.symlink_to("/etc/passwd")), "is not a regular file"),
    "a link to itself": (in_place(MODEL, lambda p: p.symlink_to(p)), "is not a regular file"),
    "a pipe": (in_place(STATE, os.mkfifo), "is not a regular file"),
    "a pipe for tensors": (in_place(MODEL, os.mkfifo), "is not a regular file"),
    "an endless device": (in_place(MODEL, lambda p: p.symlink_to("/dev/zero")), "is not a regular file"),
    "a folder for a file": (in_place(OPTIMIZER, Path.mkdir), "is not a regular file"),
}


@pytest.mark.parametrize(("harm", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_checkpoint_is_refused(
    harm: Callable[[Path], object], reason: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run" / "checkpoints" / "step_00000001"
    shutil.copytree(run, tmp_path / "run")
    harm(folder)
    seal(folder)
    with pytest.raises(DamagedCheckpointError, match=reason) as refused:
        verify_checkpoint(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    with pytest.raises(UserError, match="step_00000001 is damaged"):
        load_encoder(folder)
    with pytest.raises(UserError, match="no checkpoint of"):
        newest_intact(tmp_path / "run", print)
    assert not (tmp_path / "ran").exists(), "code ran"


MANIFESTS: dict[str, tuple[Any, str]] = {
    "a path upwards": ({"files": {"../../../etc/passwd": {"sha256": "", "bytes": 1}}}, "does not list its files"),
    "an absolute path": ({"files": {"/etc/passwd": {"sha256": "", "bytes": 1}}}, "does not list its files"),
    "nothing": ({}, "does not list its files"),
    "a list": ([], "does not list its files"),
    "files of text": ({"files": "all"}, "does not list its files"),
    "sizes of text": ({"files": {name: {"sha256": "", "bytes": "9"} for name in FILES}}, "no valid size and checksum"),
    "negative sizes": ({"files": {name: {"sha256": "", "bytes": -1} for name in FILES}}, "no valid size and checksum"),
    "no checksums": ({"files": {name: {"bytes": 1} for name in FILES}}, "no valid size and checksum"),
    "NaN": ({"files": {name: {"sha256": "", "bytes": float("nan")} for name in FILES}}, "NaN is not a finite number"),
    "another's checksums": ({"files": {name: {"sha256": "0" * 64, "bytes": 1} for name in FILES}}, "in place of 1"),
    "huge": ({"files": " " * (1 << 20)}, "manifest.json has more than"),
}


@pytest.mark.parametrize(("manifest", "reason"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_hostile_manifest_is_refused(manifest: Any, reason: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step_00000001"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpointError, match=reason):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    "pointer",
    [
        "../../etc",
        "/etc/passwd",
        "step_00000009",
        "step_00000001/../../x",
        "",
        "\0",
        "step_00000001\nstep_00000009",
        "é" * 500,
    ],
)
def test_latest_is_not_used_as_a_path(pointer: str, run: Path, tmp_path: Path) -> None:
    """Whatever `latest` contains, the newest intact checkpoint of the folder is used."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "latest").write_text(pointer)
    found = newest_intact(tmp_path / "run", print)
    assert found is not None
    assert found.folder == tmp_path / "run" / "checkpoints" / "step_00000001"


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda p: p.symlink_to("/dev/zero")], ids=["pipe", "folder", "link"]
)
def test_latest_does_not_block(make: Callable[[Path], object], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "latest").unlink()
    make(tmp_path / "run" / "latest")
    logged: list[str] = []
    assert newest_intact(tmp_path / "run", logged.append) is not None
    assert "latest does not name a checkpoint; step_00000001 is the newest intact one" in logged[0]


def test_a_checkpoint_that_is_a_link_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_00000001").symlink_to(run / "checkpoints" / "step_00000001")
    with pytest.raises(UserError, match="it is not a folder"):
        newest_intact(tmp_path / "run", print)
