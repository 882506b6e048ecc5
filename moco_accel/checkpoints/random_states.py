"""Random states of Python, NumPy and torch as bytes.

Training does not draw from them, since every tile has its own seeds. They are saved in case a library does.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

_STATES = np.dtype([("python", "<u4", 625), ("numpy", "<u4", 624), ("others", "<f8", 5)])


def random_states() -> Tensor:
    """Return the random states of this process, uint8 [bytes]. The length is the same on every rank of a run."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    others = [gauss is not None, gauss or 0.0, position, has_gauss, cached]
    states = np.array([(words, keys, others)], _STATES)
    own = torch.from_numpy(states.view(np.uint8))
    of_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return torch.cat([own, torch.get_rng_state(), *of_gpu])


def restore_random_states(states: Tensor) -> None:
    """Restore what `random_states` returned; raise ValueError if it is invalid or from a machine with other devices."""
    if states.shape != random_states().shape:
        raise ValueError(f"{len(states)} bytes in place of this machine's {len(random_states())}")
    words, keys, others = np.frombuffer(states.numpy().tobytes(), _STATES, 1)[0]
    has_gauss_of_python, gauss, position, has_gauss, cached = others.tolist()
    of_torch = states[_STATES.itemsize :]
    size = len(torch.get_rng_state())
    try:
        random.setstate((3, tuple(words.tolist()), gauss if has_gauss_of_python else None))
        np.random.set_state(("MT19937", keys.copy(), int(position), int(has_gauss), cached))
        torch.set_rng_state(of_torch[:size].clone())
        if len(of_torch) > size:
            torch.cuda.set_rng_state(of_torch[size:].clone())
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"not a valid state: {error}") from None
