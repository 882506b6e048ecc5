"""Write an export, verify it in the target library, and move it into place."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moco_accel.common.atomic_files import parse_strict_json
from moco_accel.common.errors import UserError
from moco_accel.export.model_card import render_model_card
from moco_accel.export.trained_encoder import PREPROCESSING, TrainedEncoder, format_json, preprocessing, random_pixels


@dataclass(frozen=True)
class ExportFormat:
    """Functions and packages of one target library.

    Attributes:
        reader: Package that reads the export back.
        required: Packages that writing needs.
        tolerance: Largest accepted difference of features.
    """

    name: str
    write_export: Callable[[TrainedEncoder, Path], None]
    read_features: Callable[[Path, TrainedEncoder], Callable[[Tensor], Tensor]]
    loading_snippet: Callable[[TrainedEncoder], str]
    reader: str
    required: tuple[str, ...] = ()
    tolerance: float = 1e-5


def get_format(name: str) -> ExportFormat:
    module = importlib.import_module(f"moco_accel.export.to_{name}")
    functions = (module.write_export, module.read_features, module.loading_snippet)
    if name == "onnx":
        return ExportFormat(name, *functions, "onnxruntime", ("onnx", "onnxscript"), 1e-4)
    return ExportFormat(name, *functions, "timm" if name == "torchgeo" else name)


def check_output(out: Path, overwrite: bool, export_format: ExportFormat) -> None:
    """Check that the format's packages are installed, and that `out` is new, empty or an export to replace.

    Raises:
        UserError: If a package is missing, or `out` is anything else.
    """
    for package in export_format.required:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format={export_format.name} needs {package}, which is not installed; "
                "pip install 'moco-accel[export]'"
            )
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"OUT={out} is not a folder; the name of a new folder works")
    if any(out.iterdir()) and not overwrite:
        raise UserError(f"OUT={out} is not empty; --overwrite replaces an export, or name a new folder")
    if any(out.iterdir()) and not _is_export(out):
        raise UserError(f"OUT={out} holds files that --overwrite never removes (not an export); a new folder works")


def export_encoder(
    trained: TrainedEncoder, out: Path, export_format: ExportFormat, overwrite: bool = False
) -> float | None:
    """Write an export to the folder `out`, and verify it.

    Returns:
        Largest difference of the features read back; None if the reading package is not installed.

    Raises:
        UserError: If a package is missing, `out` is taken, or the difference is too large; no files are left behind.
    """
    check_output(out, overwrite, export_format)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        export_format.write_export(trained, partial)
        (partial / PREPROCESSING).write_text(format_json(preprocessing(trained.recipe)))
        difference = _largest_difference(trained, partial, export_format)
        snippet = export_format.loading_snippet(trained)
        (partial / "README.md").write_text(render_model_card(trained, export_format.name, snippet, difference))
        _move_into_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return difference


def _largest_difference(trained: TrainedEncoder, folder: Path, export_format: ExportFormat) -> float | None:
    """Compare features of random pixels, in units of the largest feature where that exceeds 1."""
    if importlib.util.find_spec(export_format.reader) is None:
        return None
    pixels = random_pixels(trained)
    with torch.no_grad():
        ours, theirs = trained.encoder(pixels), export_format.read_features(folder, trained)(pixels)
    if ours.shape != theirs.shape:
        raise UserError(
            f"--format={export_format.name}: features of shape {list(theirs.shape)} came back, not {list(ours.shape)}"
        )
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
    if not difference <= export_format.tolerance:
        raise UserError(
            f"--format={export_format.name}: features read back differ by {difference:.1e}, more than "
            f"{export_format.tolerance:.0e}; nothing was written. Another version of {export_format.reader} may work, "
            "or another --format"
        )
    return difference


def _is_export(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        found = parse_strict_json((folder / PREPROCESSING).read_bytes(), PREPROCESSING)
        return isinstance(found, dict) and found.get("made_by") == "moco-accel"
    return False


def _move_into_place(partial: Path, out: Path) -> None:
    """Keep the old export until the new one has its name."""
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
