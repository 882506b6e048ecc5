"""Find the file that `encoder.weights` names: a file, a folder or a hub repository, and the config beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from moco_accel.checkpoints.manifest import MANIFEST
from moco_accel.common.atomic_files import parse_strict_json, read_regular_file
from moco_accel.common.errors import UserError, error_reason, short_repr

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_USUAL_NAME = "model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_TIMM_HEAD_WIDTH = 64  # of ViTs, unless their arguments say otherwise
_CONVERT = (
    'python -c "import sys; from torch import load; from safetensors.torch import save_file; '
    'save_file(load(sys.argv[1], weights_only=True), sys.argv[2])"'
)


def locate_weights(source: str) -> Path:
    """Return the folder of a run or a checkpoint, or a safetensors file; a hub repository is downloaded.

    Raises:
        UserError: If `source` does not exist or holds no weights in a supported format.
    """
    path = Path(source).expanduser()
    if not path.exists():
        name = source.removeprefix("hf-hub:")
        if not _HUB_ID.fullmatch(name):
            raise UserError(
                f"encoder.weights={short_repr(source)} is neither a file, a folder nor a hub id; a run's folder works"
            )
        path = _download(source, name)
    path = path.resolve()  # the hub's cache consists of links
    if path.is_dir() and not (path / MANIFEST).exists() and not (path / "checkpoints").is_dir():
        return _file_in_folder(source, path)
    if path.is_file():
        _check_format(source, path)
    return path


def read_head_count(path: Path) -> int | None:
    """Return the number of attention heads from a file's metadata or the config.json beside it; None if unknown.

    The shapes of tensors do not determine it.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "arguments" in metadata:
        heads = parse_strict_json(metadata["arguments"].encode(), "its metadata").get("num_heads")
    else:
        config = _read_config(path.with_name("config.json"))
        heads = config.get("num_attention_heads")
        if "num_attention_heads" not in config and "architecture" in config:
            arguments = config.get("model_args") or {}
            width = arguments.get("embed_dim", config.get("num_features", 0))
            heads = arguments.get("num_heads", width // _TIMM_HEAD_WIDTH)
    return heads if isinstance(heads, int) and heads > 0 else None


def _file_in_folder(source: str, folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if folder / _USUAL_NAME in found:
        return (folder / _USUAL_NAME).resolve()
    if len(found) == 1:
        return found[0].resolve()
    if found:
        raise UserError(
            f"encoder.weights={short_repr(source)} holds {len(found)} safetensors files; one by name works: {found[0]}"
        )
    for path in sorted(folder.iterdir()):
        _check_format(source, path)
    raise UserError(
        f"encoder.weights={short_repr(source)} holds no *.safetensors and no checkpoint; a run's folder works"
    )


def _check_format(source: str, path: Path) -> None:
    if path.suffix in _PICKLE_SUFFIXES:
        raise UserError(
            f"encoder.weights={short_repr(source)}: {path.name} may contain any code and is not read; this converts a "
            f"file of tensors to safetensors: {_CONVERT} {path} {path.stem}.safetensors"
        )
    if path.suffix == ".onnx":
        raise UserError(
            f"encoder.weights={short_repr(source)}: {path.name} is ONNX, which is not read; --format timm of it works"
        )


def _download(source: str, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    client_error: Any = HfHubHTTPError.__bases__[0]  # depends on the hub library's HTTP client
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "config.json"]))
    except (HfHubHTTPError, HFValidationError, client_error, OSError) as error:
        raise UserError(
            f"encoder.weights={short_repr(source)} is not a local path, and the hub does not provide it "
            f"({error_reason(error, 160)}); a folder or a .safetensors file works"
        ) from None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = parse_strict_json(read_regular_file(path.resolve(), _MAX_CONFIG_BYTES), path.name)
    return found if isinstance(found, dict) else {}
