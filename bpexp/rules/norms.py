"""The norms with torch's arguments: subtract a mean, divide by a standard deviation, then scale and shift.

Letters: N rows, C channels. Statistics are over the last `dims` dimensions, or over all but the channels (N, C, ...).
With h = (x - mean) / sqrt(var + eps) and y = weight * h + bias, and with means over what the statistics are over,

    grad_x = (g - mean(g) - h * mean(g * h)) / sqrt(var + eps)   where g = grad * weight
    grad_weight = sum(grad * h)     grad_bias = sum(grad)

The tangent of h is the same map of the tangent of x as grad_x is of g. Statistics of float16 and bfloat16 are float32.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.table import LOW, Rule, Sample, raised

IOFFE = "Ioffe & Szegedy 2015, arXiv:1502.03167"
BA = "Ba, Kiros & Hinton 2016, arXiv:1607.06450"
ZHANG = "Zhang & Sennrich 2019, arXiv:1910.07467"


def times(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else x * weight


def pulled_back(g: Tensor, h: Tensor, rstd: Tensor, dims: list[int]) -> Tensor:
    """The gradient of x from that of h: what is left of g without its mean and without its part along h."""
    share = rstd.numel() / max(g.numel(), 1)  # 1 over the number of values of a mean
    rest = torch.addcmul(g, h, (g * h).sum(dims, keepdim=True), value=-share)
    return torch.sub(rest, g.sum(dims, keepdim=True), alpha=share) * rstd


def last(dims: int) -> list[int]:
    """So many dimensions, counted from the end."""
    return list(range(-dims, 0))


def layer_statistics(x: Tensor, dims: int, eps: float) -> tuple[Tensor, Tensor]:
    """Each row's mean and 1 / standard deviation over the last dimensions, which stay with size 1."""
    mean = x.mean(last(dims), keepdim=True)
    return mean, torch.rsqrt((x - mean).square().mean(last(dims), keepdim=True) + eps)


def layer_forward(
    x: Tensor, dims: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if x.dtype not in LOW:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-dims:], weight, bias, eps)
        return y, mean, rstd
    y, mean, rstd = layer_forward(x.float(), dims, raised(weight), raised(bias), eps)
    return y.to(x.dtype), mean, rstd


def layer_grads(
    grad: Tensor,
    x: Tensor,
    dims: int,
    weight: Tensor | None,
    bias_shape: torch.Size | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    h, shape = (x - mean) * rstd, x.shape[-dims:]
    return (
        pulled_back(times(grad, weight), h, rstd, last(dims)),
        None if weight is None else (grad * h).sum_to_size(shape),
        None if bias_shape is None else grad.sum_to_size(shape),
    )


def layer_tangent(
    x_tangent: Tensor,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    x: Tensor,
    dims: int,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    mean, rstd = layer_statistics(x, dims, eps)
    h = (x - mean) * rstd
    total = times(pulled_back(x_tangent, h, rstd, last(dims)), weight)
    if weight_tangent is not None:
        total = total + weight_tangent * h
    return total if bias_tangent is None else total + bias_tangent


def rms_statistic(x: Tensor, dims: int, eps: float | None) -> tuple[Tensor]:
    """1 / root mean square of each row; torch's default eps is that of the type in which it computes."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return (torch.rsqrt(x.square().mean(last(dims), keepdim=True) + eps),)


def rms_forward(x: Tensor, dims: int, weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    (rstd,) = rms_statistic(raised(x), dims, eps)
    return times(raised(x) * rstd, raised(weight)).to(x.dtype), rstd


def rms_pulled_back(g: Tensor, h: Tensor, rstd: Tensor, dims: list[int]) -> Tensor:
    """The gradient of x from that of h, as `pulled_back` without the mean."""
    return (g - h * (g * h).mean(dims, keepdim=True)) * rstd


def rms_grad_x(grad: Tensor, x: Tensor, dims: int, weight: Tensor | None, rstd: Tensor) -> Tensor:
    g = grad if weight is None else grad * weight.conj()
    return rms_pulled_back(g, (x * rstd).conj(), rstd.conj(), last(dims))


def rms_tangent(
    x_tangent: Tensor,
    weight_tangent: Tensor | None,
    x: Tensor,
    dims: int,
    weight: Tensor | None,
    eps: float | None,
) -> Tensor:
    (rstd,) = rms_statistic(x, dims, eps)
    total = times(rms_pulled_back(x_tangent, x * rstd, rstd, last(dims)), weight)
    return total if weight_tangent is None else total + weight_tangent * x * rstd


def others(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [d for d in range(x.dim()) if d != 1]


def channels(vector: Tensor, x: Tensor) -> Tensor:
    """Give (C,) the dimensions of x (N, C, ...)."""
    return vector.reshape([-1 if d == 1 else 1 for d in range(x.dim())])


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and biased variance, (C,); a sum and a quotient take half the time of torch's mean."""
    size = math.prod([x.shape[d] for d in others(x)])
    mean = x.sum(others(x)) / size
    return mean, (x - channels(mean, x)).square().sum(others(x)) / size


def batch_forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = batch_statistics(raised(x))
    return given_forward(x, mean, var, weight, bias, eps), mean, var


def given_forward(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    affine = raised(weight), raised(bias)
    return F.batch_norm(raised(x), raised(mean), raised(var), *affine, training=False, eps=eps).to(x.dtype)


def standardized(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x - channels(mean, x)) * channels(rstd, x)


def scaled(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else x * channels(weight, x)


def batch_grads(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias_shape: torch.Size | None,
    eps: float,
    mean: Tensor,
    var: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    rstd = torch.rsqrt(var + eps)
    h = standardized(x, mean, rstd)
    return (
        pulled_back(scaled(grad, weight), h, channels(rstd, x), others(x)),
        None if weight is None else (grad * h).sum(others(x)),
        None if bias_shape is None else grad.sum(others(x)),
    )


def batch_tangent(
    x_tangent: Tensor,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    mean, var = batch_statistics(x)
    rstd = torch.rsqrt(var + eps)
    h = standardized(x, mean, rstd)
    slope = pulled_back(x_tangent, h, channels(rstd, x), others(x))
    return affine_tangent(slope, weight_tangent, bias_tangent, h, weight)


def given_tangent(
    x_tangent: Tensor,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    rstd = torch.rsqrt(var + eps)
    h = standardized(x, mean, rstd)
    return affine_tangent(x_tangent * channels(rstd, x), weight_tangent, bias_tangent, h, weight)


def affine_tangent(
    slope: Tensor, weight_tangent: Tensor | None, bias_tangent: Tensor | None, h: Tensor, weight: Tensor | None
) -> Tensor:
    total = scaled(slope, weight)
    if weight_tangent is not None:
        total = total + h * channels(weight_tangent, h)
    return total if bias_tangent is None else total + channels(bias_tangent, h)


def both(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """For a reference: torch's second derivatives leave out a bias that has no weight beside it."""
    return (torch.ones_like(bias) if weight is None and bias is not None else weight), bias


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layer_samples(generator: torch.Generator) -> Sequence[Sample]:
    def sample(name: str, x: Tensor, *shape: int, affine: str = "wb", eps: float = 1e-5) -> Sample:
        weight, bias = normal(generator, *shape), normal(generator, *shape)
        return Sample(name, (x, len(shape), weight if "w" in affine else None, bias if "b" in affine else None, eps))

    constant = normal(generator, 3, 4)
    constant[1] = 0.7
    return [
        sample("batch", normal(generator, 5, 4), 4),
        sample("plain", normal(generator, 5, 4), 4, affine=""),
        sample("no-bias", normal(generator, 5, 4), 4, affine="w"),
        sample("no-weight", normal(generator, 5, 4), 4, affine="b"),
        sample("two-dims", normal(generator, 3, 2, 4), 2, 4),
        sample("all-dims", normal(generator, 3, 4), 3, 4),
        sample("sequence", normal(generator, 2, 3, 4), 4, eps=0.1),
        sample("one-place", normal(generator, 5, 1), 1),
        sample("constant-row", constant, 4, eps=1e-2),
        sample("far", 100 + normal(generator, 3, 4), 4),
        sample("transposed", normal(generator, 4, 5).mT, 4),
        sample("empty", normal(generator, 0, 4), 4),
        sample("no-place", normal(generator, 4, 0), 0),
    ]


def rms_samples(generator: torch.Generator) -> Sequence[Sample]:
    zero = normal(generator, 3, 4)
    zero[1] = 0.0
    numbers = torch.randn(2, 5, 4, generator=generator, dtype=torch.complex128)
    return [
        Sample("batch", (normal(generator, 5, 4), 1, normal(generator, 4), None)),
        Sample("plain", (normal(generator, 5, 4), 1, None, 1e-2)),
        Sample("two-dims", (normal(generator, 3, 2, 4), 2, normal(generator, 2, 4), 0.1)),
        Sample("all-dims", (normal(generator, 3, 4), 2, normal(generator, 3, 4), None)),
        Sample("zero-row", (zero, 1, normal(generator, 4), 1e-2)),
        Sample("transposed", (normal(generator, 4, 5).mT, 1, normal(generator, 4), None)),
        Sample("complex", (numbers[0], 1, numbers[1, 0], None)),
        Sample("empty", (normal(generator, 0, 4), 1, normal(generator, 4), None)),
    ]


def batch_samples(generator: torch.Generator) -> Sequence[Sample]:
    def sample(name: str, x: Tensor, affine: str = "wb", eps: float = 1e-5) -> Sample:
        weight, bias = normal(generator, x.shape[1]), normal(generator, x.shape[1])
        return Sample(name, (x, weight if "w" in affine else None, bias if "b" in affine else None, eps))

    constant = normal(generator, 4, 3)
    constant[:, 1] = 0.7
    return [
        sample("batch", normal(generator, 5, 3)),
        sample("plain", normal(generator, 5, 3), ""),
        sample("no-bias", normal(generator, 5, 3), "w"),
        sample("no-weight", normal(generator, 5, 3), "b"),
        sample("sequence", normal(generator, 4, 3, 2), eps=0.1),
        sample("grid", normal(generator, 2, 3, 2, 2)),
        sample("volume", normal(generator, 2, 3, 1, 2, 2)),
        sample("one-row", normal(generator, 1, 3, 4)),
        sample("two-values", normal(generator, 2, 3)),
        sample("constant-channel", constant, eps=1e-2),
        sample("far", 100 + normal(generator, 4, 3)),
        sample("transposed", normal(generator, 3, 5).mT),
        sample("channels-last", normal(generator, 2, 2, 2, 3).permute(0, 3, 1, 2)),
        sample("empty", normal(generator, 0, 3)),
    ]


def given_samples(generator: torch.Generator) -> Sequence[Sample]:
    samples = []
    for name, (x, weight, bias, eps) in [(sample.name, sample.args) for sample in batch_samples(generator)]:
        mean, var = normal(generator, x.shape[1]), 0.1 + normal(generator, x.shape[1]).square()
        samples.append(Sample(name, (x, mean, var, weight, bias, eps)))
    single = [normal(generator, 3).square() + 0.1 for _ in range(4)]
    return [*samples, Sample("one-sample", (normal(generator, 1, 3), *single, 0.0))]


layer_norm = Rule(
    "layer_norm",
    layer_forward,
    {("x", "weight", "bias"): layer_grads},
    lambda x, dims, weight, bias, eps: F.layer_norm(x, x.shape[-dims:], *both(weight, bias), eps),
    layer_samples,
    BA,
    jvp=layer_tangent,
    autocast="float32 on cuda",
    widen=True,
    intermediates=(("mean", "rstd"), layer_statistics),
)
rms_norm = Rule(
    "rms_norm",
    rms_forward,
    {
        "x": rms_grad_x,
        "weight": lambda grad, x, rstd, weight_shape: (grad * (x * rstd).conj()).sum_to_size(weight_shape),
    },
    lambda x, dims, weight, eps: F.rms_norm(x, x.shape[-dims:], weight, eps),
    rms_samples,
    ZHANG,
    jvp=rms_tangent,
    autocast="float32 on cuda",
    widen=True,
    intermediates=(("rstd",), rms_statistic),
)
batch_norm = Rule(
    "batch_norm",
    batch_forward,
    {("x", "weight", "bias"): batch_grads},
    lambda x, weight, bias, eps: F.batch_norm(x, None, None, *both(weight, bias), True, 0.0, eps),
    batch_samples,
    IOFFE,
    jvp=batch_tangent,
    widen=True,
    intermediates=(("mean", "var"), batch_statistics),
)
batch_norm_eval = Rule(
    "batch_norm_eval",
    given_forward,
    {
        "x": lambda grad, x, var, weight, eps: scaled(grad, weight) * channels(torch.rsqrt(var + eps), x),
        "weight": lambda grad, x, eps, mean, var: (grad * standardized(x, mean, torch.rsqrt(var + eps))).sum(others(x)),
        "bias": lambda grad, bias: grad.to(bias.dtype).sum(others(grad)),
    },
    lambda x, mean, var, weight, bias, eps: F.batch_norm(x, mean, var, *both(weight, bias), False, 0.0, eps),
    given_samples,
    IOFFE,
    jvp=given_tangent,
    widen=True,
)
