"""Independent random streams: one for each pair of a network's seed and a purpose."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def generator(seed: int, purpose: str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return the start of the stream that `seed` has for `purpose` ("split", "init", "order", "dropout", "data").

    A network draws the same numbers alone and in a group, and more draws for one purpose shift no other.

    Math:  seed of the stream = the first 63 bits of sha256("purpose:seed")
    Edge:  torch's CPU generator starts from the low 32 of these bits; one purpose's streams for a thousand seeds
           collide with probability 1e-4. CPU and CUDA draw different numbers from the same seed.
    """
    import torch

    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)
