"""One export: written aside, read back in the other library, compared, and only then put in its place."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moco_accel.common.atomic_files import strict_json
from moco_accel.common.errors import UserError
from moco_accel.export.model_card import model_card
from moco_accel.export.trained import PREPROCESSING, Trained, plain_json, preprocessing, random_pixels

CARD = "README.md"


@dataclass(frozen=True)
class Format:
    """How one library's export is written, what it computes once read back, and the code that loads it.

    `needs`: packages to write it; `reads_with`: the one to read it back. `tolerance`: of the features.
    """

    name: str
    write: Callable[[Trained, Path], None]
    features: Callable[[Path, Trained], Callable[[Tensor], Tensor]]
    loading: Callable[[Trained], str]
    needs: tuple[str, ...]
    reads_with: str
    tolerance: float = 1e-5


def format_named(name: str) -> Format:
    """The format of that name; each is a module."""
    from moco_accel.export import to_onnx, to_timm, to_torchgeo, to_torchvision, to_transformers

    timm, onnx, geo = to_timm, to_onnx, to_torchgeo
    vision, hugging = to_torchvision, to_transformers
    formats = [
        Format("transformers", hugging.write, hugging.features, hugging.loading, (), "transformers"),
        Format("torchvision", vision.write, vision.features, vision.loading, (), "torchvision"),
        Format("timm", timm.write, timm.features, timm.loading, (), "timm"),
        Format("torchgeo", geo.write, geo.features, geo.loading, (), "timm"),
        Format("onnx", onnx.write, onnx.features, onnx.loading, ("onnx", "onnxscript"), "onnxruntime", 1e-4),
    ]
    return next(entry for entry in formats if entry.name == name)


def refuse_unusable(out: Path, overwrite: bool, chosen: Format) -> None:
    """Raises UserError where `out` is taken, or where a package lacks."""
    for package in chosen.needs:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format={chosen.name} needs {package}, which is not installed; pip install 'moco-accel[export]'"
            )
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"OUT={out} is no folder; the name of a new one works")
    if any(out.iterdir()) and not overwrite:
        raise UserError(f"OUT={out} is not empty; --overwrite replaces an export, or name a new folder")
    if any(out.iterdir()) and not _is_export(out):
        raise UserError(
            f"OUT={out} holds other things than an export, which --overwrite never removes; a new folder works"
        )


def export(trained: Trained, out: Path, chosen: Format, overwrite: bool = False) -> float | None:
    """Write `out`. Returns the largest difference of features read back; None where that library is not installed.

    Raises UserError, and leaves nothing behind, where it is above the format's tolerance.
    """
    refuse_unusable(out, overwrite, chosen)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        chosen.write(trained, partial)
        (partial / PREPROCESSING).write_text(plain_json(preprocessing(trained.recipe)))
        worst = worst_difference(trained, partial, chosen)
        (partial / CARD).write_text(model_card(trained, chosen.name, chosen.loading(trained), worst))
        _put_in_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return worst


def worst_difference(trained: Trained, folder: Path, chosen: Format) -> float | None:
    """Of features read back from `folder`, on random pixels; in units of the largest feature where that is above 1."""
    if importlib.util.find_spec(chosen.reads_with) is None:
        return None
    pixels = random_pixels(trained)
    with torch.no_grad():
        ours, theirs = trained.encoder(pixels), chosen.features(folder, trained)(pixels)
    if ours.shape != theirs.shape:
        raise UserError(
            f"--format={chosen.name}: features of shape {list(theirs.shape)} came back, not {list(ours.shape)}"
        )
    worst = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
    if not worst <= chosen.tolerance:
        raise UserError(
            f"--format={chosen.name}: features read back differ by {worst:.1e}, more than {chosen.tolerance:.0e}; "
            f"nothing was written. Another version of {chosen.reads_with} may work, or another --format"
        )
    return worst


def _is_export(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        found = strict_json((folder / PREPROCESSING).read_bytes(), PREPROCESSING)
        return isinstance(found, dict) and found.get("made_by") == "moco-accel"
    return False


def _put_in_place(partial: Path, out: Path) -> None:
    """The old export, if there is one, goes when the new one is whole."""
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
