"""Maps by a matrix of weights, and regularization."""

from torch import Tensor, nn

from bpexp import functional


class Linear(nn.Linear):
    """y = x W^T + b."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class Dropout(nn.Dropout):
    """Zero each value with probability p while training, and scale the rest by 1 / (1 - p)."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(input, self.p, self.training, self.inplace)
