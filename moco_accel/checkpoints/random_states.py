"""The random states of a process, of all its libraries, as bytes.

Nothing that training draws comes from them: every tile has seeds of its own. They are kept so that nothing a library
may draw some day is lost without a word.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

_WORDS = 4 * (625 + 624)
_REST = 8 * 5


def seed_all(seed: int) -> None:
    """Python's, numpy's, torch's on CPU and GPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> Tensor:
    """uint8 `[bytes]`, as many on every process of a run."""
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
    """Raises ValueError for what `random_states` has not made on such a machine."""
    if states.shape != random_states().shape:
        raise ValueError(f"{len(states)} bytes of random states are not this machine's {len(random_states())}")
    content = states.numpy().tobytes()
    words = np.frombuffer(content, "<u4", 625 + 624)
    has_own, own, position, has_gauss, cached = np.frombuffer(content, "<f8", 5, _WORDS).tolist()
    of_torch = states[_WORDS + _REST :]
    size = len(torch.get_rng_state())
    try:
        random.setstate((3, tuple(words[:625].tolist()), own if has_own else None))
        np.random.set_state(("MT19937", words[625:].copy(), int(position), int(has_gauss), cached))
        torch.set_rng_state(of_torch[:size].clone())
        if len(of_torch) > size:
            torch.cuda.set_rng_state(of_torch[size:].clone())
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"random states that nothing can be in: {error}") from None
