"""Elementwise activations y = f(x): one row each; prelu alone has a slope that is learned.

A slope picks `x` or `y` by name, whichever is cheaper to keep. At a kink the slope is torch's convention, and the
sample named `kink` holds it. Where a slope jumps it is made of `sign`, `threshold` and `maximum` and not of `where`,
which is twenty times slower on a CPU; `sign` has the slope 0 as well, so second derivatives are 0 and not missing.

A gradient is a product: an infinite one at the slope 0 gives NaN (for relu and hardtanh torch selects, and gives 0).
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpexp.rules.table import Rule, Sample, elementwise

SELU_ALPHA = 1.6732632423543772848170429916717  # the fixed point (0, 1) of Klambauer et al. 2017
SELU_SCALE = 1.0507009873554804934193349852946
SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def samples_at(
    *kinks: float, constants: tuple[object, ...] = (), complex_too: bool = False
) -> Callable[[torch.Generator], Sequence[Sample]]:
    """Samples of every shape that matters; the kinks, if there are any, apart, and complex numbers if wanted."""
    extremes = torch.tensor([math.nan, math.inf, -math.inf, 800.0, -800.0], dtype=torch.float64)

    def make(generator: torch.Generator) -> Sequence[Sample]:
        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

        samples = [
            Sample("scalar", (normal(), *constants)),
            Sample("batch", (normal(5, 7), *constants)),
            Sample("networks", (normal(2, 3, 4), *constants)),
            Sample("transposed", (normal(4, 3).mT, *constants)),
            Sample("large", (normal(9, scale=30.0), *constants)),
            Sample("empty", (normal(0, 3), *constants)),
            Sample("extreme", (extremes, *constants), kink=True),
        ]
        if complex_too:
            samples.append(Sample("complex", (torch.complex(normal(5, 7), normal(5, 7)), *constants)))
        if kinks:
            samples.append(Sample("kink", (torch.tensor(kinks, dtype=torch.float64), *constants), kink=True))
        return samples

    return make


def step(x: Tensor, below: float) -> Tensor:
    """Return 1 where x > 0, else `below`."""
    return F.threshold(torch.sign(x), 0.0, below)


def nan_as_positive(x: Tensor) -> Tensor:
    """Return x with a number > 0 for NaN, whose slope is that of one in torch's elu, selu and celu."""
    return torch.nan_to_num(x, 1.0, math.inf, -math.inf)


def elu_slope(x: Tensor, alpha: float) -> Tensor:
    """Return alpha e^x where x <= 0, else 1."""
    x = nan_as_positive(x)
    return step(x, alpha) * torch.exp(F.hardtanh(x, -math.inf, 0.0))


def celu_slope(x: Tensor, alpha: float) -> Tensor:
    """Return e^(x / alpha) where x <= 0, else 1."""
    return torch.exp(F.hardtanh(nan_as_positive(x), -math.inf, 0.0) / alpha)


def gelu_slope(x: Tensor) -> Tensor:
    """Return Phi(x) + x phi(x), with the normal distribution Phi and its density phi."""
    z = x * -SQRT_HALF
    return torch.addcmul(0.5 * torch.erfc(z), x, torch.exp(-z * z), value=1 / math.sqrt(2 * math.pi))


def gelu_tanh_slope(x: Tensor) -> Tensor:
    """Return the slope of x s with s = sigmoid(u), u = 2 sqrt(2 / pi) (x + k x^3): it is x (1 + tanh(u / 2)) / 2."""
    k, scale = 0.044715, 2 * SQRT_2_OVER_PI
    square = x * x
    u = torch.addcmul(scale * x, square, x, value=scale * k)
    s = torch.sigmoid(u)
    return torch.addcmul(s, s * torch.sigmoid(-u) * x, square + 1 / (3 * k), value=3 * k * scale)


def silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return torch.addcmul(s, s * x, 1 - s)


def mish_slope(x: Tensor) -> Tensor:
    """Return t + x s (1 - t^2) with t = tanh(log(1 + e^x)), s = sigmoid(x).

    With r = 1 - s it is t = s (1 + r) / (1 + r^2) and 1 - t^2 = (2 r / (1 + r^2))^2: no tanh, and no cancellation.
    """
    s, r = torch.sigmoid(x), torch.sigmoid(-x)
    d = 1 / (1 + r * r)
    return torch.addcmul((s + s * r) * d, x * s, (r * d).square(), value=4)


def softplus_slope(z: Tensor, threshold: float) -> Tensor:
    """Return sigmoid(z), and 1 beyond the threshold."""
    return torch.maximum(torch.sigmoid(z), torch.sign(z - threshold))


def softsign_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return grad / d^2 with d = 1 + |x|. NaN at infinity, as y is. |x| is not analytic: a complex x has two terms."""
    distance = 1 + x.abs()
    if x.is_complex():
        return grad / distance - x.sgn() * (grad * x.conj()).real / distance.square()
    return grad * torch.addcmul(distance.pow(-2), x, x, value=0)  # 0 times infinity is NaN, in the derivative as well


def prelu_forward(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Torch's own, which has the slopes along dimension 1."""
    return F.prelu(x, weight) if dim == 1 else F.prelu(x.transpose(0, 1), weight).transpose(0, 1)


def spread_slopes(weight: Tensor, x: Tensor, dim: int) -> Tensor:
    """The slopes, so shaped that they broadcast along their dimension of x; one slope stands for all."""
    return weight.reshape([-1 if d == dim else 1 for d in range(x.dim())])


def prelu_slope(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    positive = torch.relu(torch.sign(x))
    return torch.addcmul(positive, 1 - positive, spread_slopes(weight, x, dim))


def prelu_weight_slope(x: Tensor) -> Tensor:
    return torch.clamp(x, max=0.0)  # unlike hardtanh it has the slope 1 at 0, where y = weight * x still


def prelu_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, dim: int) -> Tensor:
    grads = grad * prelu_weight_slope(x)
    return grads.sum_to_size(spread_slopes(weight, x, dim).shape).reshape(weight.shape)


def prelu_reference(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """F.prelu with the slope `weight` at 0 in every order: torch's second derivatives have the slope 1 there."""
    positive = x > 0
    return torch.where(positive, x, spread_slopes(weight, x, dim) * torch.where(positive, 0.0, x))


def prelu_samples(generator: torch.Generator) -> Sequence[Sample]:
    def sample(name: str, *shape: int, slopes: tuple[int, ...], dim: int = 1) -> Sample:
        x, weight = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, slopes))
        return Sample(name, (x, weight, dim))

    edges = torch.tensor([[math.inf, 0.0, -0.0]], dtype=torch.float64)
    weight = torch.tensor([0.5, -0.5, 2.0], dtype=torch.float64)
    return [
        sample("batch", 5, 3, slopes=(1,)),
        sample("channels", 2, 3, 4, slopes=(3,)),
        sample("networks", 2, 3, 4, slopes=(2,), dim=0),
        sample("scalar", slopes=()),
        sample("vector", 4, slopes=(1,)),
        sample("empty", 0, 3, slopes=(3,)),
        Sample("kink", (edges, weight, 1), kink=True),
    ]


sigmoid = elementwise(
    "sigmoid",
    lambda x: torch.sigmoid(x),
    lambda y: y * (1 - y),
    torch.sigmoid,
    samples_at(complex_too=True),
    "Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0",
)
tanh = elementwise(
    "tanh",
    lambda x: torch.tanh(x),
    lambda y: 1 - y * y,
    torch.tanh,
    samples_at(complex_too=True),
    "LeCun et al. 1998, Efficient BackProp",
)
relu = elementwise(
    "relu",
    lambda x: torch.relu(x),
    lambda y: (y != 0).to(y.dtype),  # slope 0 at 0; a NaN passes its gradient on, as torch's does
    torch.relu,
    samples_at(0.0),
    "Nair & Hinton 2010",
    flat=True,
)
leaky_relu = elementwise(
    "leaky_relu",
    lambda x, negative_slope: F.leaky_relu(x, negative_slope),
    lambda x, negative_slope: step(x, negative_slope),
    F.leaky_relu,
    samples_at(0.0, constants=(0.1,)),
    "Maas, Hannun & Ng 2013",
)
elu = elementwise(
    "elu",
    lambda x, alpha: F.elu(x, alpha),
    lambda x, alpha: elu_slope(x, alpha),
    F.elu,
    samples_at(0.0, constants=(0.7,)),
    "Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
)
celu = elementwise(
    "celu",
    lambda x, alpha: F.celu(x, alpha),
    lambda x, alpha: celu_slope(x, alpha),
    F.celu,
    samples_at(0.0, constants=(0.75,)),  # one of float32: to that torch's own gradient rounds alpha
    "Barron 2017, arXiv:1704.07483",
)
selu = elementwise(
    "selu",
    lambda x: F.selu(x),
    lambda x: SELU_SCALE * elu_slope(x, SELU_ALPHA),
    F.selu,
    samples_at(0.0),
    "Klambauer et al. 2017, arXiv:1706.02515",
)
gelu = elementwise(
    "gelu",
    lambda x: F.gelu(x),
    lambda x: gelu_slope(x),
    F.gelu,
    samples_at(),
    "Hendrycks & Gimpel 2016, arXiv:1606.08415",
)
gelu_tanh = elementwise(
    "gelu_tanh",
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: gelu_tanh_slope(x),
    lambda x: F.gelu(x, approximate="tanh"),
    samples_at(),
    "Hendrycks & Gimpel 2016, arXiv:1606.08415, the tanh approximation",
)
silu = elementwise(
    "silu",
    lambda x: F.silu(x),
    lambda x: silu_slope(x),
    F.silu,
    samples_at(),
    "Elfwing, Uchibe & Doya 2018, arXiv:1702.03118",
)
mish = elementwise(
    "mish",
    lambda x: F.mish(x),
    lambda x: mish_slope(x),
    lambda x: x * torch.tanh(F.softplus(x)),  # the second derivative of F.mish overflows to NaN from 710 on
    samples_at(),
    "Misra 2020, arXiv:1908.08681",
)
softplus = elementwise(
    "softplus",
    lambda x, beta, threshold: F.softplus(x, beta, threshold),
    lambda x, beta, threshold: softplus_slope(x * beta, threshold),
    F.softplus,
    samples_at(constants=(1.5, 2.0)),
    "Dugas et al. 2001",
    autocast="float32 on cuda",
)
softsign = elementwise(
    "softsign",
    lambda x: F.softsign(x),
    lambda grad, x: softsign_gradient(grad, x),
    F.softsign,
    samples_at(complex_too=True),
    "Bergstra et al. 2009; Glorot & Bengio 2010",
)
hardtanh = elementwise(
    "hardtanh",
    lambda x, min_val, max_val: F.hardtanh(x, min_val, max_val),
    lambda x, min_val, max_val: (1 - (x <= min_val).to(x)) * (1 - (x >= max_val).to(x)),
    F.hardtanh,
    lambda generator: [
        *samples_at(-0.5, 2.0, constants=(-0.5, 2.0))(generator),
        Sample("from-zero", (torch.tensor([-1.0, 0.0, 1.0, 6.0], dtype=torch.float64), 0.0, 6.0), kink=True),
    ],
    "Collobert 2004",
    flat=True,
)
prelu = Rule(
    "prelu",
    prelu_forward,
    {
        "x": lambda grad, x, weight, dim: grad * prelu_slope(x, weight, dim),
        "weight": prelu_grad_weight,
    },
    prelu_reference,
    prelu_samples,
    "He et al. 2015, arXiv:1502.01852",
    jvp=lambda x_tangent, weight_tangent, x, weight, dim: (
        x_tangent * prelu_slope(x, weight, dim) + spread_slopes(weight_tangent, x, dim) * prelu_weight_slope(x)
    ),
    autocast="lower",
    widen=True,
)


def network_prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Return prelu with a slope for each network: x (R, B, W), weight (R,)."""
    return prelu(x, weight, 0)
