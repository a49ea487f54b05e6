"""Maps by a matrix of weights."""

import torch.nn.functional as F
from torch import Tensor

from bpexp.rules import linear as linear_map


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dim() > 2:  # the rule takes one with a network axis; torch says what it has against it
        return F.linear(input, weight, bias)
    return linear_map.linear(input, weight, bias)
