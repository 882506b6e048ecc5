"""Versions of the libraries that compute a run."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

_LIBRARIES = ("moco-accel", "torch", "torchvision", "transformers", "accelerate", "bitsandbytes", "numpy", "datasets")


def library_versions() -> dict[str, str]:
    """Return versions by name; "absent" for a library that is not installed."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
