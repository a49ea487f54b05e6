"""Norms."""

from torch import Tensor, nn

from bpexp import functional


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
