"""Activations, with softmax and its logarithm."""

from torch import Tensor, nn

from bpexp import functional


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


class CELU(nn.CELU):
    """The activation `functional.celu`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.celu(input, self.alpha, self.inplace)


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


class Mish(nn.Mish):
    """The activation `functional.mish`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.mish(input, self.inplace)


class PReLU(nn.PReLU):
    """The activation `functional.prelu`: one learned slope, or one for each channel (dimension 1)."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.prelu(input, self.weight)


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


class Softmax(nn.Softmax):
    """Probabilities along a dimension."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(nn.LogSoftmax):
    """Log probabilities along a dimension."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim, _stacklevel=5)
