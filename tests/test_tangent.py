"""The tangent kernel of a wide network: its means over two Gaussians, and itself, by formulas and by autograd."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_network import ACTIVATIONS

from bpexp.theory import NoPredictionError, activation_second_moment, chi, correlation_map, describe_network, resolve
from bpexp.theory.tangent import duals, shares_of_pairs, tangent

CORRELATIONS = np.array([1.0, 0.6, -0.3])


def arc_cosine(c):
    """E relu relu and E relu' relu' at variance 1: Cho and Saul 2009."""
    angle = np.arccos(c)
    return (np.sqrt(1 - c**2) + (math.pi - angle) * c) / (2 * math.pi), (math.pi - angle) / (2 * math.pi)


@pytest.mark.parametrize("q", [0.02, 30.0])
def test_duals_of_relu_are_the_arc_cosine_kernels(q):
    found = duals(resolve("relu"), q * CORRELATIONS)
    values, slopes = arc_cosine(CORRELATIONS)
    assert found.values == pytest.approx(q * values, rel=2e-3)
    assert found.slopes == pytest.approx(slopes, rel=5e-3)
    assert (found.mean, found.kurtosis) == pytest.approx((math.sqrt(q / (2 * math.pi)), 2.0), rel=5e-3)


@pytest.mark.parametrize("name", ["tanh", "gelu", "hardtanh"])
def test_duals_are_those_of_the_correlation_map(name):
    q = 1.3
    found = duals(resolve(name), q * CORRELATIONS)
    values = correlation_map(name, CORRELATIONS, q, 1.0, 0.0) * activation_second_moment(name, q)
    assert found.values == pytest.approx(values, rel=4e-3)
    assert found.slopes == pytest.approx(chi(name, CORRELATIONS, q, 1.0), rel=4e-3)


def test_a_linear_network_has_its_kernel_exactly():
    depth, width = 4, 50
    network = describe_network("identity", "lecun", (20, *[width] * depth, 3), 1.0, 0.0)
    covariances = np.array([1.0, 0.4, -0.1])
    found = tangent(network, covariances, shares_of_pairs(8, 3), 3)
    assert found.kernel == pytest.approx((20 + depth * width) * covariances + depth + 1)
    assert found.progress == pytest.approx((20 + depth * width) * 0.5 / 3)
    assert found.step == pytest.approx((20 + depth * width) * (0.6 / 8 + 0.5 * (1 / 8 + 7 / 24)))
    alike = tangent(network, np.array([1.0, 0.9, 0.8]), shares_of_pairs(8, 3), 3)
    assert alike.step == pytest.approx(alike.kernel @ np.array([1 / 8, 7 / 24, 7 / 12]))
    assert found.fluctuation == pytest.approx(2 * depth / width)
    assert found.output_length == pytest.approx(1.0)


DEPTH, GATE = 3, 0.5
KINDS = [("tanh", "none", "none"), ("gelu", "layer", "scaled"), ("tanh", "none", "rezero")]


def measured_kernel(name, norm, residual, x, generator):
    """The tangent kernel of one output of one random network, sample by sample, by autograd."""
    width = x.shape[1]

    def draw(fan_out, fan_in):
        return (
            torch.randn(fan_out, fan_in, generator=generator, dtype=x.dtype) * 1.2 / math.sqrt(fan_in)
        ).requires_grad_()

    def constant(value):
        return torch.full((width,), value, dtype=x.dtype, requires_grad=True)

    leaves, h = [], x
    for layer in range(1, DEPTH + 1):
        weight, bias = draw(width, h.shape[1]), constant(0.0)
        leaves += [weight]
        z = F.linear(h, weight) if norm == "batch" else F.linear(h, weight, bias)
        if norm == "none":
            leaves += [bias]
        else:
            scale, shift = constant(1.0), constant(0.0)
            leaves += [scale, shift, *([bias] if norm == "layer" else [])]
            z = (
                F.layer_norm(z, (width,), scale, shift)
                if norm == "layer"
                else F.batch_norm(z, None, None, scale, shift, True)
            )
        branch = ACTIVATIONS[name](z)
        if layer > 1 and residual != "none":
            c = torch.tensor(
                {"plain": 1.0, "scaled": DEPTH**-0.5, "rezero": GATE}[residual], dtype=x.dtype, requires_grad=True
            )
            leaves += [c] if residual == "rezero" else []
            branch = h + c * branch
        h = branch
    weight, bias = draw(2, width), torch.zeros(2, dtype=x.dtype, requires_grad=True)
    outputs = F.linear(h, weight, bias)[:, 0]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(y, [*leaves, weight, bias], retain_graph=True)])
        for y in outputs
    ]
    gradients = torch.stack(rows)
    return (gradients @ gradients.T).numpy()


def compare(name, norm, residual, *, width, classes, of_class, networks):
    """The tangent kernel as theory has it and as random networks have it on average, and their inputs' pairs."""
    generator = torch.Generator().manual_seed(1)
    common, centres, own = (
        torch.randn(*shape, width, generator=generator, dtype=torch.float64)
        for shape in ((1, 1), (classes, 1), (classes, of_class))
    )
    x = (0.4 * common + 0.7 * centres + 0.6 * own).flatten(0, 1)
    same = torch.arange(len(x)) // of_class
    alike, itself = (same[:, None] == same).numpy(), np.eye(len(x), dtype=bool)
    pairs = [itself, alike & ~itself, ~alike]
    covariances = (x @ x.T / width).numpy()
    network = describe_network(name, "lecun", (width, *[width] * DEPTH, 2), 1.2, 0.0, residual, norm=norm, gate=GATE)
    found = tangent(network, [covariances[pair].mean() for pair in pairs], [pair.mean() for pair in pairs], classes)
    kernels = np.mean([measured_kernel(name, norm, residual, x, generator) for _ in range(networks)], axis=0)
    return found.kernel, np.array([kernels[pair].mean() for pair in pairs])


@pytest.mark.parametrize(("name", "norm", "residual"), KINDS, ids=["-".join(kind) for kind in KINDS])
def test_the_kernel_is_that_of_wide_random_networks(name, norm, residual):
    found, measured = compare(name, norm, residual, width=256, classes=3, of_class=2, networks=6)
    assert found == pytest.approx(measured, rel=0.1)


def test_batch_norm_s_kernel_tells_classes_apart_as_measured():
    classes, of_class = 8, 4
    kernels = compare("tanh", "batch", "none", width=150, classes=classes, of_class=of_class, networks=3)
    found, measured = (own - alike + of_class * (alike - other) for own, alike, other in kernels)
    assert found == pytest.approx(measured, rel=0.12)


def test_the_shares_of_pairs_are_those_of_batches_drawn_at_random():
    batch, classes, batches = 5, 8, 4000
    drawn = np.random.default_rng(0).integers(0, classes, (batches, batch))
    alike = (drawn[:, :, None] == drawn[:, None]).mean(axis=(1, 2))  # a sample with itself among them
    itself, together, apart = shares_of_pairs(batch, classes)
    error = alike.std() / math.sqrt(batches)
    assert itself == 1 / batch
    assert itself + together == pytest.approx(alike.mean(), abs=4 * error)
    assert itself + together + apart == pytest.approx(1)
    assert abs(1 / classes - alike.mean()) > 4 * error  # what it is not


def test_batch_norm_over_one_sample_has_no_kernel():
    network = describe_network("tanh", "lecun", (20, 50, 50, 3), 1.0, 0.0, norm="batch")
    with pytest.raises(NoPredictionError, match="single sample"):
        tangent(network, [1.0, 0.4, -0.1], shares_of_pairs(1, 3), 3)


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_orthogonal_weights_make_gradients_fluctuate_less(name):
    """The variance of the log of a squared gradient over networks, against that of gradients through random layers."""
    width, depth, networks = 48, 8, 300
    found = {}
    for init in ("lecun", "orthogonal"):
        network = describe_network(name, init, (width, *[width] * depth, 3), 1.3, 0.0)
        found[init] = tangent(network, [1.0, 0.4, -0.1], shares_of_pairs(8, 3), 3).fluctuation
    assert found["orthogonal"] < 0.75 * found["lecun"]
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(depth, networks, width, width, generator=generator)
    h = torch.randn(networks, width, generator=generator)
    h = h * (width**0.5 / h.norm(dim=1, keepdim=True))
    slopes = []
    q = torch.linalg.qr(draws)[0] * 1.3
    for weights in q:
        z = (weights @ h[..., None])[..., 0].requires_grad_()
        h = ACTIVATIONS[name](z)
        slopes.append(torch.autograd.grad(h.sum(), z)[0])
        h = h.detach()
    delta = torch.randn(networks, width, generator=generator)
    delta = delta / delta.norm(dim=1, keepdim=True)
    for weights, slope in zip(reversed(q), reversed(slopes), strict=True):
        delta = ((delta * slope)[:, None] @ weights)[:, 0]
    measured = float(delta.square().sum(1).log().var())
    assert found["orthogonal"] == pytest.approx(measured, rel=0.3)


def test_dropout_adds_to_a_sample_s_product_with_itself_alone():
    sizes = (20, 50, 50, 3)
    without, with_half = (
        tangent(
            describe_network("identity", "lecun", sizes, 1.0, 0.0, dropout=p),
            [1.0, 0.4, -0.1],
            shares_of_pairs(8, 3),
            3,
        ).kernel
        for p in (0.0, 0.5)
    )
    assert with_half[1:] == pytest.approx(without[1:])
    assert with_half[0] > 2 * without[0]


def test_what_leaves_the_range_of_numbers_has_no_kernel():
    network = describe_network("relu", "lecun", (20, *[50] * 600, 3), 10.0, 0.0)
    with pytest.raises(NoPredictionError, match="range of numbers"):
        tangent(network, [1.0, 0.4, -0.1], shares_of_pairs(8, 3), 3)
