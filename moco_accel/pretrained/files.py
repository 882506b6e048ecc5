"""Where encoder.weights lie: a file, a folder or a repository on the hub; and what its config says beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from moco_accel.checkpoints.manifest import MANIFEST
from moco_accel.common.atomic_files import read_ordinary, strict_json
from moco_accel.common.errors import UserError, short

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAY_RUN_CODE = (".pth", ".pt", ".bin", ".ckpt")
_USUAL_NAME = "model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_HEAD_WIDTH = 64  # of timm's ViTs, unless their arguments say otherwise
_CONVERT = (
    'python -c "import sys; from torch import load; from safetensors.torch import save_file; '
    'save_file(load(sys.argv[1], weights_only=True), sys.argv[2])"'
)


def locate(source: str) -> Path:
    """The folder of a run or a checkpoint, or a safetensors file. Raises UserError, in one line each."""
    path = Path(source).expanduser()
    if not path.exists():
        name = source.removeprefix("hf-hub:")
        if not _HUB_ID.fullmatch(name):
            raise UserError(
                f"encoder.weights={short(source)} is neither a file, a folder nor a hub id; a run's folder works"
            )
        path = _download(source, name)
    path = path.resolve()  # the hub's cache is made of links
    if path.is_dir() and not _is_ours(path):
        return _in_folder(source, path)
    if path.is_file():
        _refuse_other_kinds(source, path)
    return path


def heads_said(path: Path) -> int | None:
    """Attention heads, which no tensor's shape tells: as config.json beside the file, or its metadata, says."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "arguments" in metadata:
        return _whole(strict_json(metadata["arguments"].encode(), "its metadata").get("num_heads"))
    config = _config(path.with_name("config.json"))
    if "num_attention_heads" in config:
        return _whole(config["num_attention_heads"])
    arguments = config.get("model_args") or {}
    if "architecture" in config:
        width = arguments.get("embed_dim", config.get("num_features", 0))
        return _whole(arguments.get("num_heads", width // _HEAD_WIDTH))
    return None


def _is_ours(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or (folder / "checkpoints").is_dir()


def _in_folder(source: str, folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if folder / _USUAL_NAME in found:
        return (folder / _USUAL_NAME).resolve()
    if len(found) == 1:
        return found[0].resolve()
    if found:
        raise UserError(
            f"encoder.weights={short(source)} holds {len(found)} safetensors files; one by name works: {found[0]}"
        )
    for path in sorted(folder.iterdir()):
        _refuse_other_kinds(source, path)
    raise UserError(f"encoder.weights={short(source)} holds no *.safetensors and no checkpoint; a run's folder works")


def _refuse_other_kinds(source: str, path: Path) -> None:
    if path.suffix in _MAY_RUN_CODE:
        raise UserError(
            f"encoder.weights={short(source)}: {path.name} may hold any code, and is not read; this makes safetensors "
            f"of a file of tensors: {_CONVERT} {path} {path.stem}.safetensors"
        )
    if path.suffix == ".onnx":
        raise UserError(
            f"encoder.weights={short(source)}: {path.name} is ONNX, which is not read; --format timm of it works"
        )


def _download(source: str, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    client_error: Any = HfHubHTTPError.__bases__[0]  # of whichever HTTP client this hub library has
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "config.json"]))
    except (HfHubHTTPError, HFValidationError, client_error, OSError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"encoder.weights={short(source)} is no path here, and the hub does not give it ({reason}); "
            "a folder or a .safetensors file works"
        ) from None


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = strict_json(read_ordinary(path.resolve(), _MAX_CONFIG_BYTES), path.name)
    return found if isinstance(found, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
