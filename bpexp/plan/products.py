"""Products of matrices by numpy's BLAS, where torch's own is slow.

torch's wheels bring MKL, which keeps its fast kernels for the processors of its maker. On others OpenBLAS, which numpy
brings, takes 0.7 of its time for the products of small matrices that a backward pass is made of. Both are chosen by the
machine alone, never by a timing: the same machine gives the same bits.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OTHER_MAKERS = ("AuthenticAMD", "HygonGenuine")


@functools.cache
def is_mkl_slow() -> bool:
    """Return whether torch multiplies by MKL on a processor of another maker, and numpy does not."""
    if (
        not torch.backends.mkl.is_available()
        or "mkl" in np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    ):
        return False
    try:
        found = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(maker in found for maker in OTHER_MAKERS)


def numpy_product(one: Tensor, other: Tensor, output: Tensor) -> Callable[[], Any] | None:
    """Return the call that puts the product of (R, n, k) and (R, k, m) into (R, n, m); None where it would not pay.

    It reads and writes the tensors' own memory. Where the second lies column by column, OpenBLAS is the slower one.
    """
    tensors = (one, other, output)
    usual = all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors)
    if not is_mkl_slow() or not usual or other.stride(2) != 1 or not output.is_contiguous() or 0 in output.shape:
        return None
    return functools.partial(np.matmul, one.detach().numpy(), other.detach().numpy(), output.detach().numpy())


def silent() -> np.errstate:
    """Return the context in which a product that is not finite is no warning: it is in torch none either."""
    return np.errstate(all="ignore")
