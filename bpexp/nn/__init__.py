"""Drop-ins for torch.nn: torch's own modules, with torch's arguments, parameters and init, calling our functions."""

from torch import Tensor, nn
from torch.nn import Flatten, Identity, Sequential

from bpexp import functional

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Hardtanh",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "Mish",
    "PReLU",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
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


class Dropout(nn.Dropout):
    """Zero each value with probability p while training, and scale the rest by 1 / (1 - p)."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(input, self.p, self.training, self.inplace)


class LayerNorm(nn.LayerNorm):
    """Each row to mean 0 and variance 1, then scaled and shifted."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """Each row to root mean square 1, then scaled."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.rms_norm(input, self.normalized_shape, self.weight, self.eps)


def batch_norm(module: nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    """What a module's batch norm does: it counts batches, and says which statistics are used and which are moved."""
    module._check_input_dim(input)  # noqa: SLF001 - torch's, in its own subclass
    momentum = 0.0 if module.momentum is None else module.momentum
    moving = module.training and module.track_running_stats
    if moving and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # the mean over all batches so far
            momentum = 1.0 / float(module.num_batches_tracked)
    given = module.running_mean is not None or module.running_var is not None
    running = (module.running_mean, module.running_var) if moving or not module.training else (None, None)
    training = module.training or not given
    return functional.batch_norm(input, *running, module.weight, module.bias, training, momentum, module.eps)


class BatchNorm1d(nn.BatchNorm1d):
    """Each channel of (N, C) or (N, C, L) to mean 0 and variance 1 over the batch, then scaled and shifted."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(self, input)


class BatchNorm2d(nn.BatchNorm2d):
    """Each channel of (N, C, H, W) to mean 0 and variance 1 over the batch, then scaled and shifted."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(self, input)


class BatchNorm3d(nn.BatchNorm3d):
    """Each channel of (N, C, D, H, W) to mean 0 and variance 1 over the batch, then scaled and shifted."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(self, input)


class Softmax(nn.Softmax):
    """Probabilities along a dimension."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


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
