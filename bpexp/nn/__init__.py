"""Drop-ins for torch.nn: torch's own modules, with torch's arguments, parameters and init, calling our functions."""

from torch import Tensor, nn
from torch.nn import Flatten, Identity, Sequential

from bpexp import functional

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
]


class Linear(nn.Linear):
    """y = x W^T + b."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class Sigmoid(nn.Sigmoid):
    """The activation `functional.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.sigmoid(input)


class Tanh(nn.Tanh):
    """The activation `functional.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.tanh(input)


class ReLU(nn.ReLU):
    """The activation `functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, self.inplace)


class LeakyReLU(nn.LeakyReLU):
    """The activation `functional.leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.leaky_relu(input, self.negative_slope, self.inplace)


class ELU(nn.ELU):
    """The activation `functional.elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.elu(input, self.alpha, self.inplace)


class SELU(nn.SELU):
    """The activation `functional.selu`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.selu(input, self.inplace)


class GELU(nn.GELU):
    """The activation `functional.gelu`, exact or by tanh."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.gelu(input, approximate=self.approximate)


class SiLU(nn.SiLU):
    """The activation `functional.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.silu(input, self.inplace)


class Softplus(nn.Softplus):
    """The activation `functional.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softplus(input, self.beta, self.threshold)


class Softsign(nn.Softsign):
    """The activation `functional.softsign`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softsign(input)


class Hardtanh(nn.Hardtanh):
    """The activation `functional.hardtanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.hardtanh(input, self.min_val, self.max_val, self.inplace)


class Dropout(nn.Dropout):
    """Zero each value with probability p while training, and scale the rest by 1 / (1 - p)."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(input, self.p, self.training, self.inplace)


class LogSoftmax(nn.LogSoftmax):
    """Log probabilities along a dimension."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim, _stacklevel=5)


class MSELoss(nn.MSELoss):
    """The squared error, its mean or its sum."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """The cross entropy of logits with class indices or class probabilities."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
