"""An export to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moco_accel.common.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_name(name: str) -> None:
    """Raises UserError."""
    if not _NAME.fullmatch(name):
        raise UserError(f"--push-to-hub={name!r} is no name of a repository; --push-to-hub user/name works")


def check_token() -> None:
    """Raises UserError where nobody has logged in."""
    from huggingface_hub import get_token

    if not get_token():
        raise UserError("--push-to-hub needs a token and there is none; hf auth login, or HF_TOKEN, gives one")


def push(folder: Path, name: str) -> str:
    """Make the repository where there is none, upload the folder; returns its address. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    client_error: Any = HfHubHTTPError.__bases__[0]  # of whichever HTTP client this hub library has
    try:
        address = api.create_repo(name, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by moco-export")
    except (HfHubHTTPError, client_error, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"--push-to-hub={name}: {api.endpoint} did not take it ({reason}); {folder} is written, and "
            f"hf upload {name} {folder} sends it later"
        ) from None
    return str(address)
