"""Drop-ins for torch.nn: torch's own modules, with torch's arguments, parameters and init, calling our functions."""

from torch.nn import Flatten, Identity, Sequential

from bpexp.nn.activations import (
    CELU,
    ELU,
    GELU,
    SELU,
    Hardtanh,
    LeakyReLU,
    LogSoftmax,
    Mish,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Softsign,
    Tanh,
)
from bpexp.nn.layers import Dropout, Linear
from bpexp.nn.losses import CrossEntropyLoss, MSELoss
from bpexp.nn.norms import BatchNorm1d, BatchNorm2d, BatchNorm3d, LayerNorm, RMSNorm

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
