"""Random states of Python, NumPy and torch as bytes.

Training does not draw from them, since every tile has its own seeds. They are saved in case a library does.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

_PYTHON_WORDS, _NUMPY_WORDS = 625, 624
_WORDS_BYTES = 4 * (_PYTHON_WORDS + _NUMPY_WORDS)
_FLOATS = 5
_FLOATS_BYTES = 8 * _FLOATS


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and GPU)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> Tensor:
    """Return the random states of this process, uint8 [bytes]. The length is the same on every rank of a run."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    parts = [
        np.asarray([*words, *keys], "<u4"),
        np.asarray([gauss is not None, gauss or 0.0, position, has_gauss, cached], "<f8"),
    ]
    own = torch.frombuffer(bytearray(b"".join(part.tobytes() for part in parts)), dtype=torch.uint8)
    of_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return torch.cat([own, torch.get_rng_state(), *of_gpu])


def restore_random_states(states: Tensor) -> None:
    """Restore what `random_states` returned.

    Raises:
        ValueError: If `states` is invalid, or from a machine with other devices.
    """
    if states.shape != random_states().shape:
        raise ValueError(f"{len(states)} bytes in place of this machine's {len(random_states())}")
    content = states.numpy().tobytes()
    words = np.frombuffer(content, "<u4", _PYTHON_WORDS + _NUMPY_WORDS)
    has_own, own, position, has_gauss, cached = np.frombuffer(content, "<f8", _FLOATS, _WORDS_BYTES).tolist()
    of_torch = states[_WORDS_BYTES + _FLOATS_BYTES :]
    size = len(torch.get_rng_state())
    try:
        random.setstate((3, tuple(words[:_PYTHON_WORDS].tolist()), own if has_own else None))
        np.random.set_state(("MT19937", words[_PYTHON_WORDS:].copy(), int(position), int(has_gauss), cached))
        torch.set_rng_state(of_torch[:size].clone())
        if len(of_torch) > size:
            torch.cuda.set_rng_state(of_torch[size:].clone())
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"not a valid state: {error}") from None
