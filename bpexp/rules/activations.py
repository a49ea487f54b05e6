"""Elementwise activations y = f(x): one row each.

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

from bpexp.rules.table import Sample, elementwise

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


def elu_slope(x: Tensor, alpha: float) -> Tensor:
    """Return alpha e^x where x <= 0, else 1; a NaN counts as positive, as torch's does."""
    x = torch.nan_to_num(x, 1.0, math.inf, -math.inf)
    return step(x, alpha) * torch.exp(F.hardtanh(x, -math.inf, 0.0))


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


def softplus_slope(z: Tensor, threshold: float) -> Tensor:
    """Return sigmoid(z), and 1 beyond the threshold."""
    return torch.maximum(torch.sigmoid(z), torch.sign(z - threshold))


def softsign_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return grad / d^2 with d = 1 + |x|. NaN at infinity, as y is. |x| is not analytic: a complex x has two terms."""
    distance = 1 + x.abs()
    if x.is_complex():
        return grad / distance - x.sgn() * (grad * x.conj()).real / distance.square()
    return grad * torch.addcmul(distance.pow(-2), x, x, value=0)  # 0 times infinity is NaN, in the derivative as well


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
